"""What is added per frame and label, against every path with the biases that lie on it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from every_pair import LONGEST, every_pair, every_topology, some_topologies
from jax.test_util import check_grads
from jaxprs import dtypes
from oracles import assert_close

import jaxctc

FRAMES, PLACES = LONGEST + 2, LONGEST + 2


@functools.partial(jax.jit, static_argnames=("blank_id", "label_loop", "logits_normalized"))
def everything(logits, logit_paddings, labels, label_paddings, bias, **options):
    """Losses of all paths and of the best, with both gradients, posteriors and alignments."""

    def losses(logits, bias):
        arguments = logits, logit_paddings, labels, label_paddings
        loss = functools.partial(jaxctc.ctc_loss, *arguments, label_bias=bias, **options)
        return loss(), loss(max_approx=True)

    (loss, best_loss), pullback = jax.vjp(losses, logits, bias)
    one, zero = jnp.ones_like(loss), jnp.zeros_like(loss)
    arguments = logits, logit_paddings, labels, label_paddings
    return {
        "loss": loss,
        "gradient": pullback((one, zero)),
        "best_loss": best_loss,
        "best_gradient": pullback((zero, one)),
        "posteriors": jaxctc.posteriors(*arguments, label_bias=bias, **options),
        "alignment": jaxctc.forced_align(*arguments, label_bias=bias, **options),
    }


def spread(every):
    """The pairs with padding anywhere and junk in it, with biases; where frames and labels are."""
    rng = np.random.default_rng(7)
    logits, _, ids, _ = every.arguments
    batch = len(logits)
    out = (
        np.full((batch, FRAMES, logits.shape[-1]), np.nan, np.float32),
        np.ones((batch, FRAMES), bool),
        np.full((batch, PLACES), 99, np.int32),
        np.ones((batch, PLACES), bool),
        np.full((batch, FRAMES, PLACES), np.nan, np.float32),
    )
    places = []
    for row in range(batch):
        pair = min(row, len(every.labels) - 1)
        frames, count = len(every.log_probs[pair]), len(every.labels[pair])
        where = [
            np.sort(rng.choice(size, used, replace=False))
            for size, used in ((FRAMES, frames), (PLACES, count))
        ]
        bias = rng.normal(size=(frames, count)).astype(np.float32) * 2
        bias[rng.random(bias.shape) < 0.1] = -np.inf
        for part, value, index in zip(
            out,
            (logits[row, :frames], False, ids[row, :count], False, bias),
            (where[0], where[0], where[1], where[1], np.ix_(*where)),
            strict=True,
        ):
            part[row][index] = value
        places.append(where)
    return out, places


def with_bias(paths, bias):
    """The paths that biases leave possible, with them in their weights."""
    found = []
    for path in paths:
        added = sum(bias[t, n] for t, n in enumerate(path.places) if n >= 0)
        if added > -np.inf:
            found.append(path._replace(weight=path.weight + added))
    return found


def check_pair(found, paths, labels, softmax, blank, where):
    """Everything of one example, whose arrays are reduced to what is in use."""
    frames, count = len(softmax), len(labels)
    in_blank, in_label = oracles.posteriors(paths, frames, count)
    assert_close(found["loss"], oracles.loss(paths))
    assert_close(found["posteriors"].blank[where[0]], in_blank)
    assert_close(found["posteriors"].label[np.ix_(*where)], in_label)
    best = max(paths, key=lambda path: path.weight, default=None)
    for name, shares in (
        ("gradient", in_label),
        ("best_gradient", oracles.posteriors([best] if best else [], frames, count)[1]),
    ):
        to_logits, to_bias = found[name]
        expected = np.zeros_like(to_bias)
        expected[np.ix_(*where)] = -shares
        assert_close(to_bias, expected)
        by_class = np.zeros_like(softmax)
        for place, label in enumerate(labels):
            by_class[:, label] += shares[:, place]
        by_class[:, blank] = 1 - shares.sum(axis=-1)
        assert_close(
            to_logits[where[0]][:, : softmax.shape[-1]], (softmax - by_class) * bool(paths)
        )
        np.testing.assert_array_equal(np.delete(to_logits, where[0], axis=0), 0)
    weight = best.weight if best else -np.inf
    assert_close(found["best_loss"], 0.0 - weight)
    assert_close(found["alignment"].score, weight)
    best_classes = best.classes if best else [-1] * frames
    np.testing.assert_array_equal(found["alignment"].frame_labels[where[0]], best_classes)


def check_every_pair(every, arguments, places, blank):
    found = jax.device_get(everything(*arguments, blank_id=blank))
    for row, (log_probs, labels) in enumerate(zip(every.log_probs, every.labels, strict=True)):
        bias = arguments[-1][row][np.ix_(*places[row])]
        paths = with_bias(oracles.alignments(log_probs, labels, blank), bias)
        one = jax.tree.map(lambda part, row=row: part[row], found)
        check_pair(one, paths, labels, np.exp(log_probs), blank, places[row])


@pytest.mark.smoke
@every_topology
def test_every_pair(classes, blank):
    """All T ≤ 5, K ≤ 3 and label sequences, in float32: WIDE numbers."""
    every = every_pair(classes, blank)
    check_every_pair(every, *spread(every), blank)


@some_topologies
def test_every_pair_in_float64(classes, blank):
    """Which LOG computes, and with it all second derivatives."""
    every = every_pair(classes, blank)
    arguments, places = spread(every)
    with jax.enable_x64(True):
        wide = [part.astype(np.float64) if part.dtype == np.float32 else part for part in arguments]
        check_every_pair(every, wide, places, blank)


def problem(rng, *shape, dtype="float32", classes=6, scale=2.0):
    """Random logits, ids with repeats, and biases with a window for each label."""
    *batch, frames, labels = shape
    logits = rng.normal(size=(*batch, frames, classes)).astype(dtype) * 2
    ids = rng.integers(1, classes, size=(*batch, labels)).astype(np.int32)
    bias = rng.normal(size=(*batch, frames, labels)).astype(dtype) * scale
    distance = np.arange(frames)[:, None] - np.arange(labels) * (frames / labels)
    bias[..., np.abs(distance) > frames / 3] = -np.inf
    return logits, ids, bias


@jax.jit
def loss_and_gradients(logits, ids, bias):
    def loss(logits, bias):
        return jaxctc.ctc_loss(logits, None, ids, None, label_bias=bias)

    value, pullback = jax.vjp(loss, logits, bias)
    return value, *pullback(jnp.ones_like(value))


@pytest.mark.parametrize("scale", [2.0, 3e5])
@pytest.mark.parametrize("shape", [(2, 130, 30), (1, 131, 4), (20, 90, 9)])
def test_wide_against_float64(x64, rng, shape, scale):
    """Labels of every class, fewer than classes, and so few that examples fill the vectors.

    With biases of 300 000 nats, the exponents of the weights sum to tens of millions.
    """
    logits, ids, bias = problem(rng, *shape, scale=scale)
    found = loss_and_gradients(logits, ids, bias)
    truth = loss_and_gradients(logits.astype(np.float64), ids, bias.astype(np.float64))
    assert found[0].dtype == np.float32
    np.testing.assert_allclose(found[0], truth[0], rtol=2e-6)
    for one, other in zip(found[1:], truth[1:], strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_what_blanks_gain_labels_lose(rng):
    """The same biases of all labels of a frame are a blank that scores so much less."""
    logits, ids, _ = problem(rng, 3, 40, 8)
    of_frame = rng.normal(size=(3, 40)).astype(np.float32) * 3 + 2
    bias = np.broadcast_to(of_frame[..., None], (3, 40, 8))
    loss = jax.jit(functools.partial(jaxctc.ctc_loss, logits_normalized=True))
    less = logits - of_frame[..., None] * (np.arange(6) == 0)
    expected = loss(less, None, ids, None) - of_frame.sum(axis=-1)
    np.testing.assert_allclose(
        loss(logits, None, ids, None, label_bias=bias), expected, rtol=1e-5, atol=1e-4
    )


def test_huge_logits_are_as_accurate_as_centred_ones(rng):
    logits, ids, bias = problem(rng, 2, 40, 8)
    logits, bias = np.round(logits * 64) / 64, np.abs(bias)
    for one, other in zip(
        loss_and_gradients(logits + np.float32(1e4), ids, bias),
        loss_and_gradients(logits, ids, bias),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("value", [-np.inf, -1e9])
def test_infeasible_by_bias(rng, value):
    """Infinite, with gradient exactly 0, and next to an example that it leaves alone."""
    logits, ids, bias = problem(rng, 2, 12, 3)
    alone = loss_and_gradients(logits[1], ids[1], bias[1])
    bias[0, :, 1] = value
    found = loss_and_gradients(logits, ids, bias)
    assert np.isposinf(found[0][0])
    for gradient in found[1:]:
        np.testing.assert_array_equal(gradient[0], 0)
    for one, other in zip(found, alone, strict=True):
        np.testing.assert_allclose(one[1], other, rtol=1e-6, atol=1e-7)
    shares = jaxctc.posteriors(logits, None, ids, None, label_bias=bias)
    np.testing.assert_array_equal(shares.label[0], 0)
    if value == -np.inf:  # else the best path is one, of a billion nats
        assert jaxctc.forced_align(logits, None, ids, None, label_bias=bias).score[0] == value
    options = {"label_bias": bias, "zero_infinity": True}
    assert jaxctc.ctc_loss(logits, None, ids, None, **options)[0] == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_stays_with_its_example(rng, value):
    logits, ids, bias = problem(rng, 2, 12, 3)
    alone = loss_and_gradients(logits[1], ids[1], bias[1])
    bias[0, 3, 2] = value
    found = loss_and_gradients(logits, ids, bias)
    for one, other in zip(found, alone, strict=True):
        assert np.isnan(one[0]).all()
        np.testing.assert_allclose(one[1], other, rtol=1e-6, atol=1e-7)
    assert np.isnan(jaxctc.posteriors(logits, None, ids, None, label_bias=bias).label[0]).all()
    assert np.isnan(jaxctc.forced_align(logits, None, ids, None, label_bias=bias).score[0])


def test_nothing_to_add_is_the_plain_loss(rng):
    """With priors and without loops, too; and where there are no frames or no labels."""
    logits, ids, _ = problem(rng, 2, 12, 3)
    for options in (
        {"label_priors": np.array([-0.1, -2, -3, -1, -1, -4], np.float32)},
        {"label_loop": False},
        {"logits_normalized": True},
    ):
        loss = functools.partial(jaxctc.ctc_loss, logits, None, ids, None, **options)
        np.testing.assert_allclose(loss(label_bias=np.zeros((2, 12, 3))), loss(), rtol=1e-6)
    for frames, labels in ((0, 3), (0, 0), (12, 0)):
        some = logits[:, :frames], None, ids[:, :labels], None
        bias = np.zeros((2, frames, labels), np.float32)
        np.testing.assert_array_equal(
            jaxctc.ctc_loss(*some, label_bias=bias), jaxctc.ctc_loss(*some)
        )
        assert jaxctc.posteriors(*some, label_bias=bias).label.shape == bias.shape


def test_without_loops(rng):
    """Against all paths, each of whose labels takes one frame."""
    logits = rng.normal(size=(5, 3)).astype(np.float32)
    labels = np.array([1, 1, 2], np.int32)
    bias = rng.normal(size=(5, 3)).astype(np.float32)
    paths = oracles.alignments(oracles.log_softmax(logits), labels, label_loop=False)
    paths = with_bias(paths, bias)
    options = {"label_loop": False, "label_bias": bias}
    assert_close(jaxctc.ctc_loss(logits, None, labels, None, **options), oracles.loss(paths))
    shares = jaxctc.posteriors(logits, None, labels, None, **options)
    assert_close(shares.label, oracles.posteriors(paths, 5, 3)[1])


def where_possible(bias):
    """Finite biases, and a function that puts -inf back where some of them were."""
    possible = bias > -np.inf
    return np.where(possible, bias, 0), lambda bias: jnp.where(possible, bias, -jnp.inf)


def test_derivatives_of_every_order(x64, rng):
    """To both arguments at once, where some biases are -inf."""
    logits, ids, bias = problem(rng, 6, 3, dtype="float64", classes=4)
    finite, masked = where_possible(bias)

    @jax.jit
    def loss(logits, bias):
        return jaxctc.ctc_loss(logits, None, ids, None, label_bias=masked(bias))

    check_grads(loss, (logits, finite), order=2, modes=("rev",), rtol=1e-4)


@pytest.mark.slow
def test_derivatives_of_posteriors_and_alignments(x64, rng):
    logits, ids, bias = problem(rng, 6, 3, dtype="float64", classes=4)
    finite, masked = where_possible(bias)

    @jax.jit
    def found(logits, bias):
        best = jaxctc.forced_align(logits, None, ids, None, label_bias=masked(bias))
        shares = jaxctc.posteriors(logits, None, ids, None, label_bias=masked(bias))
        return *shares, best.score, best.confidences

    check_grads(found, (logits, finite), order=1, modes=("fwd", "rev"), rtol=1e-4)


@pytest.mark.slow
def test_float32_curvature(x64, rng):
    """Values of WIDE, whose second derivatives come from LOG."""

    def product(logits, ids, bias):
        def gradients(logits, bias):
            def loss(*given):
                return jaxctc.ctc_loss(given[0], None, ids, None, label_bias=given[1])

            return jax.grad(loss, (0, 1))(logits, bias)

        moves = jnp.ones_like(logits), jnp.cos(jnp.arange(bias.size, dtype=bias.dtype))
        moves = moves[0], moves[1].reshape(bias.shape)
        return jax.jvp(gradients, (logits, bias), moves)[1]

    logits, ids, bias = problem(rng, 20, 5)
    truth = jax.jit(product)(logits.astype(np.float64), ids, bias.astype(np.float64))
    found = jax.jit(product)(logits, ids, bias)
    for one, other in zip(found, truth, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_vmap_over_biases_alone(rng):
    """One input, several windows."""
    logits, ids, bias = problem(rng, 3, 12, 4)
    found = jax.vmap(loss_and_gradients, in_axes=(None, None, 0))(logits[0], ids[0], bias)
    same = (np.broadcast_to(part[:1], part.shape) for part in (logits, ids))
    for one, other in zip(found, loss_and_gradients(*same, bias), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def test_dtypes(rng):
    """Integers and narrow floats come in; gradients go back as the bias came."""
    logits, ids, _ = problem(rng, 12, 4)
    bias = rng.integers(-3, 3, size=(12, 4)).astype(np.int32)
    loss = functools.partial(jaxctc.ctc_loss, logits, None, ids, None)
    wide = loss(label_bias=bias.astype(np.float32))
    np.testing.assert_array_equal(loss(label_bias=bias), wide)
    narrow = jnp.asarray(bias, jnp.bfloat16)
    np.testing.assert_array_equal(loss(label_bias=narrow), wide)
    assert jax.grad(lambda bias: loss(label_bias=bias))(narrow).dtype == jnp.bfloat16
    with jax.enable_x64(True):
        given = jnp.asarray(logits), jnp.asarray(ids), jnp.asarray(bias, jnp.float32)
        jaxpr = jax.make_jaxpr(loss_and_gradients)(*given).jaxpr
    assert "float64" not in dtypes(jaxpr)


@pytest.mark.parametrize(
    ("bias", "options", "line"),
    [
        (
            np.zeros((12, 3)),
            {},
            "ctc_loss: label_bias must have shape (12, 4), [*B, T, N]; got (12, 3). One value per",
        ),
        (np.zeros((12, 4), complex), {}, "ctc_loss: label_bias must be real numbers; got an array"),
        (
            np.zeros((12, 4)),
            {"wildcard_id": 6},
            "ctc_loss: label_bias must be None with wildcard_id; got both. A wildcard has no state",
        ),
        (
            np.zeros((12, 4)),
            {"implementation": "pallas"},
            'ctc_loss: implementation must be None or "xla" here; got pallas. The TPU kernel knows '
            "no label_bias. The GPU kernel knows no label_bias.",
        ),
    ],
    ids=["shape", "dtype", "wildcard", "pallas"],
)
def test_mistakes(rng, bias, options, line):
    logits, ids, _ = problem(rng, 12, 4)
    with pytest.raises(ValueError, match="must") as caught:
        jaxctc.ctc_loss(logits, None, ids, None, label_bias=bias, **options)
    assert str(caught.value).startswith(line)
