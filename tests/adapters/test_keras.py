"""Against Keras itself, on its JAX backend."""

import functools
import os
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxctc.adapters.keras import ctc_decode, ctc_loss

SIZE, FRAMES, CLASSES, PLACES = 3, 10, 5, 4
LENGTHS, LABEL_LENGTHS = np.array([10, 8, 5]), np.array([4, 2, 0])
DECODE_STATIC = ("strategy", "beam_width", "top_paths", "merge_repeated", "mask_index")
decode = jax.jit(ctc_decode, static_argnames=DECODE_STATIC)


@functools.cache
def keras_ops():
    os.environ["KERAS_BACKEND"] = "jax"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("keras", reason="needs the extra `compare`").ops


def theirs(name, *args, **options):
    """A call of Keras, which promotes dtypes and ranks on its own."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return getattr(keras_ops(), name)(*args, **options)


@pytest.fixture
def logits(rng):
    return rng.normal(size=(SIZE, FRAMES, CLASSES)).astype(np.float32) * 2


def targets(rng, mask_index):
    labels = rng.integers(0, CLASSES - 1, size=(SIZE, PLACES))
    return labels + (labels >= mask_index)


@functools.partial(jax.jit, static_argnames=("function", "mask_index"))
def loss_and_gradient(target, output, *lengths, function=ctc_loss, mask_index=0):
    def cost(output):
        return function(target, output, *lengths, mask_index=mask_index)

    loss, pullback = jax.vjp(cost, output)
    return loss, *pullback(jnp.ones_like(loss))


their_loss = functools.partial(theirs, "ctc_loss")


@pytest.mark.parametrize("mask_index", [0, CLASSES - 1, pytest.param(2, marks=pytest.mark.slow)])
def test_loss_and_gradient(rng, logits, mask_index):
    keras_ops()
    arguments = targets(rng, mask_index), logits, LABEL_LENGTHS, LENGTHS
    loss, gradient = loss_and_gradient(*arguments, mask_index=mask_index)
    expected, slopes = loss_and_gradient(*arguments, function=their_loss, mask_index=mask_index)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, slopes, atol=1e-5)


def test_infeasible_pairs_cost_1e5_and_teach_nothing(logits):
    """Repeats that do not fit, the blank among the labels, no frames."""
    target = np.array([[1, 1, 1, 1], [1, 0, 2, 3], [1, 2, 3, 4]])
    lengths = np.array([4, 4, 4]), np.array([6, 10, 0])
    loss, gradient = loss_and_gradient(target, logits, *lengths)
    np.testing.assert_array_equal(loss, 1e5)
    np.testing.assert_array_equal(gradient, 0)
    longer, _ = loss_and_gradient(target, logits, *(length + 20 for length in lengths))
    full = np.full(SIZE, PLACES), np.full(SIZE, FRAMES)
    np.testing.assert_array_equal(longer, loss_and_gradient(target, logits, *full)[0])


def test_published_loss():
    """keras/src/ops/nn_test.py, `test_ctc_loss`; from lists."""
    output = [
        [[0.4, 0.8, 0.4], [0.2, 0.8, 0.3], [0.9, 0.4, 0.5]],
        [[0.4, 0.8, 0.4], [0.2, 0.3, 0.3], [0.4, 0.3, 0.2]],
    ]
    arguments: tuple[Any, ...] = ([[1, 2, 1], [1, 2, 2]], output, [3, 2], [3, 2])
    expected = [3.4411672, 1.91680186]
    np.testing.assert_allclose(jax.jit(lambda: ctc_loss(*arguments))(), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(ctc_loss)(*arguments), expected, rtol=1e-6)


@pytest.mark.parametrize("mask_index", [0, 2, CLASSES - 1, None])
@pytest.mark.parametrize("merge_repeated", [True, False])
def test_greedy(rng, mask_index, merge_repeated):
    """Labels and scores, value for value; small whole numbers make for repeats and ties."""
    inputs = rng.integers(0, 3, size=(SIZE, FRAMES, CLASSES)).astype(np.float32)
    options = {"merge_repeated": merge_repeated, "mask_index": mask_index}
    decoded, scores = decode(inputs, LENGTHS, **options)
    expected, their_scores = theirs("ctc_decode", inputs, LENGTHS, **options)
    assert decoded.dtype == jnp.int32
    np.testing.assert_array_equal(decoded, expected)
    np.testing.assert_array_equal(scores, their_scores)


def test_padded_frames_do_not_matter(logits):
    padded = np.arange(FRAMES) >= LENGTHS[:, None]
    dirty = np.where(padded[..., None], np.float32(np.nan), logits)
    for options in ({}, {"strategy": "beam_search", "beam_width": 8, "top_paths": 2}):
        clean = decode(logits, LENGTHS, **options)
        for part, same in zip(decode(dirty, LENGTHS, **options), clean, strict=True):
            np.testing.assert_array_equal(part, same)


BEAM = {"strategy": "beam_search", "beam_width": 16, "top_paths": 3}


@pytest.mark.slow
@pytest.mark.parametrize("mask_index", [0, 1, None])
def test_beam_search(rng, mask_index):
    inputs = rng.normal(size=(2, 6, 4)).astype(np.float32) * 2
    lengths = np.array([6, 4])
    decoded, scores = decode(inputs, lengths, **BEAM, mask_index=mask_index)
    expected, their_scores = theirs("ctc_decode", inputs, lengths, **BEAM, mask_index=mask_index)
    assert (decoded.shape, scores.shape) == ((3, 2, 6), (2, 3))
    np.testing.assert_array_equal(decoded, expected)
    np.testing.assert_allclose(scores, their_scores, rtol=1e-5)


def test_beam_search_with_few_frames(rng):
    """With one, four sequences and an empty place; without any, nothing at all, for certain.

    Keras takes the first frame even where it is not in use.
    """
    inputs, lengths = rng.normal(size=(2, 6, 4)).astype(np.float32), np.array([0, 1])
    options = {"strategy": "beam_search", "beam_width": 16, "top_paths": 5}
    decoded, scores = decode(inputs, lengths, **options)
    expected, their_scores = theirs("ctc_decode", inputs, lengths, **options)
    np.testing.assert_array_equal(decoded[:, 1], expected[:, 1])
    np.testing.assert_allclose(scores[1], their_scores[1], rtol=1e-5)
    np.testing.assert_array_equal(np.isneginf(scores), [[False] + [True] * 4, [False] * 4 + [True]])
    np.testing.assert_array_equal(scores[0, 0], 0)
    np.testing.assert_array_equal(decoded[:, 0], -1)
    assert their_scores[0, 0] < 0


PUBLISHED = [
    [[0.1, 0.4, 0.2, 0.4], [0.3, -0.3, 0.4, 0.2], [0.3, 0.2, 0.4, 0.3]],
    [[0.7, 0.4, 0.3, 0.2], [0.3, 0.3, 0.4, 0.1], [0.6, -0.1, 0.1, 0.5]],
    [[0.1, 0.4, 0.2, 0.7], [0.3, 0.3, -0.2, 0.7], [0.3, 0.2, 0.4, 0.1]],
]


def test_published_decoding():
    """keras/src/ops/nn_test.py, `test_ctc_decode`; from lists."""
    decoded, scores = decode(PUBLISHED, [3, 3, 1])
    np.testing.assert_array_equal(decoded, [[[1, 2, -1], [2, -1, -1], [3, -1, -1]]])
    np.testing.assert_allclose(scores, [[-1.2], [-1.7], [-0.7]], rtol=1e-6)
    decoded, scores = decode(PUBLISHED, [3, 3, 1], merge_repeated=False)
    np.testing.assert_array_equal(decoded, [[[1, 2, 2], [2, -1, -1], [3, -1, -1]]])
    np.testing.assert_allclose(scores, [[-1.2], [-1.7], [-0.7]], rtol=1e-6)
    options = {"strategy": "beam_search", "beam_width": 4, "top_paths": 2}
    decoded, scores = decode(PUBLISHED, [3, 3, 1], **options)
    best, second = [[1, 2, -1], [2, -1, -1], [3, -1, -1]], [[2, -1, -1], [3, -1, -1], [1, -1, -1]]
    np.testing.assert_array_equal(decoded, [best, second])
    expected = [[-2.426537, -2.435596], [-2.127681, -2.182338], [-1.063386, -1.363386]]
    np.testing.assert_allclose(scores, expected, atol=1e-6)


LOSS_ERRORS = {
    "rank": ({"output": jnp.zeros((4, 3))}, r"output must have shape \(batch_size, max_length, "),
    "target": ({"target": jnp.ones((3, 1), int)}, r"target must .* batch_size = 2, .* \(3, 1\)"),
    "real target": (
        {"target": jnp.ones((2, 1))},
        "target must be integers; got an array of float32",
    ),
    "frames": ({"output_length": [4]}, r"output_length must be integers of shape \(2,\), .*\[1\]"),
    "labels": ({"target_length": [1.0, 1.0]}, "target_length must be integers .* float32"),
    "mask": ({"mask_index": 3}, r"mask_index must be a class id in \[-3, 3\); got 3"),
}


@pytest.mark.parametrize(("bad", "message"), LOSS_ERRORS.values(), ids=LOSS_ERRORS)
def test_errors_of_the_loss(bad, message):
    good = {
        "target": jnp.ones((2, 1), int),
        "output": jnp.zeros((2, 4, 3)),
        "target_length": [1, 1],
        "output_length": [4, 4],
    }
    with pytest.raises(ValueError, match=f"^adapters.keras.ctc_loss: {message}"):
        jax.eval_shape(lambda: ctc_loss(**good | bad))


DECODE_ERRORS = {
    "rank": ({"inputs": jnp.zeros((4, 3))}, r"inputs must have shape \(batch_size, max_length, "),
    "lengths": ({"sequence_lengths": [4]}, r"sequence_lengths must be integers of shape \(2,\)"),
    "strategy": ({"strategy": "best"}, "strategy must be .*; got 'best'"),
    "mask": ({"mask_index": -4}, r"mask_index must be a class id in \[-3, 3\); got -4"),
    "a word": ({"merge_repeated": "no"}, "merge_repeated must be True or False"),
    "no path": ({"top_paths": 0}, "top_paths must be at least 1; got 0"),
    "greedy paths": ({"top_paths": 2}, 'top_paths must be 1 for strategy="greedy"; got 2'),
    "no beam": (BEAM | {"beam_width": 0}, "beam_width must be at least 1"),
    "more than the beam": (BEAM | {"top_paths": 17}, "top_paths must be at most .* 16; got 17"),
    "repeats": (
        BEAM | {"merge_repeated": False},
        'merge_repeated must be True for strategy="beam_search"; got False',
    ),
}


@pytest.mark.parametrize(("bad", "message"), DECODE_ERRORS.values(), ids=DECODE_ERRORS)
def test_errors_of_decoding(bad, message):
    good = {"inputs": jnp.zeros((2, 4, 3)), "sequence_lengths": [4, 4]}
    with pytest.raises(ValueError, match=f"^adapters.keras.ctc_decode: {message}"):
        jax.eval_shape(lambda: ctc_decode(**good | bad))
