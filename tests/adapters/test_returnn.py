"""Against RETURNN's documented definitions, written out in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jaxctc.adapters import returnn

FRAMES, CLASSES, BLANK = 4, 3, 2
LENGTHS, TARGETS = np.array([4, 3, 2]), np.array([[0, 0], [1, 0], [1, 1]])
TARGET_LENGTHS = np.array([2, 1, 2])


@functools.partial(jax.jit, static_argnames=("logits_normalized", "max_approx", "label_loop"))
def loss_of(logits, **options):
    return returnn.ctc_loss(
        logits=logits,
        targets=TARGETS,
        input_spatial_dim=LENGTHS,
        targets_spatial_dim=TARGET_LENGTHS,
        blank_index=BLANK,
        **options,
    )


@pytest.mark.parametrize("logits_normalized", [False, True])
@pytest.mark.parametrize(
    ("max_approx", "label_loop"), [(False, True), (True, True), (False, False)]
)
def test_ctc_loss(rng, logits_normalized, max_approx, label_loop):
    """All alignments, the best of them, or those that give every label one frame."""
    logits = rng.normal(size=(3, FRAMES, CLASSES)).astype(np.float32)
    losses = loss_of(
        logits,
        logits_normalized=logits_normalized,
        max_approx=max_approx,
        label_loop=label_loop,
    )
    for row, length in enumerate(LENGTHS):
        scores = logits[row, :length].astype(np.float64)
        scores = scores if logits_normalized else oracles.log_softmax(scores)
        labels = TARGETS[row, : TARGET_LENGTHS[row]]
        paths = oracles.alignments(scores, labels, BLANK, label_loop=label_loop)
        weights = [path.weight for path in paths]
        expected = -max(weights, default=-np.inf) if max_approx else oracles.loss(paths)
        oracles.assert_close(losses[row], expected)
    assert np.isinf(losses).tolist() == [False, False, label_loop]


@pytest.mark.parametrize("kind", ["logits", "log-probs", "probs"])
@pytest.mark.parametrize("axis", [1, 2])
def test_cross_entropy(rng, kind, axis):
    """-Σ target log(estimated) over the axis, for ids and for probabilities."""
    log_probs = oracles.log_softmax(rng.normal(size=(2, 3, 4)))
    ids, target = rng.integers(0, 4, (2, 3)), rng.dirichlet(np.ones(4), (2, 3))
    estimated = {"logits": log_probs + 3, "log-probs": log_probs, "probs": np.exp(log_probs)}[kind]
    estimated = np.moveaxis(estimated, -1, axis).astype(np.float32)
    options = {"axis": axis, "estimated_type": kind}
    sparse = returnn.cross_entropy(estimated=estimated, target=ids, **options)
    expected = -np.take_along_axis(log_probs, ids[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(sparse, expected, rtol=1e-5)
    dense = np.moveaxis(target, -1, axis).astype(np.float32)
    loss = returnn.cross_entropy(estimated=estimated, target=dense, **options)
    np.testing.assert_allclose(loss, -(target * log_probs).sum(axis=-1), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["int32", "int16", "float32"])
def test_edit_distance(rng, dtype):
    a, b = rng.integers(0, 3, (8, 6)), rng.integers(0, 3, (8, 5))
    sizes = rng.integers(0, 7, 8), rng.integers(0, 6, 8)
    distances = returnn.edit_distance(a, sizes[0], b, sizes[1], dtype=dtype)
    assert distances.dtype == dtype
    expected = [
        oracles.levenshtein(tuple(x[:n]), tuple(y[:m]))
        for x, n, y, m in zip(a, sizes[0], b, sizes[1], strict=True)
    ]
    np.testing.assert_array_equal(distances, expected)


def test_errors():
    good = {
        "logits": jnp.zeros((2, 4, 3)),
        "targets": jnp.zeros((2, 1), jnp.int32),
        "input_spatial_dim": np.array([4, 4]),
        "targets_spatial_dim": np.array([1, 1]),
        "blank_index": 2,
    }
    for bad, message in (
        ({"use_native_op": True}, "use_native_op must be None or False; got True"),
        ({"targets": jnp.zeros((3, 1), jnp.int32)}, "targets must have shape"),
        ({"input_spatial_dim": np.array([4.0, 4.0])}, "input_spatial_dim must be integers"),
        ({"targets_spatial_dim": np.array([1])}, "targets_spatial_dim must be integers of shape"),
        ({"blank_index": 3}, "blank_index must be a class id"),
    ):
        with pytest.raises(ValueError, match=f"^adapters.returnn.ctc_loss: {message}"):
            jax.eval_shape(lambda bad=bad: returnn.ctc_loss(**good | bad))
    ids, lengths = np.zeros((1, 300), np.int32), np.array([300])
    for kind in ("int8", "int64", "bfloat16", "bool", "complex64"):
        with pytest.raises(ValueError, match="dtype must hold distances up to 300"):
            returnn.edit_distance(ids, lengths, ids, lengths, dtype=kind)
