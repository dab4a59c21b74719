"""The scan itself; what it computes is tested through the loss, against enumeration."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import EDGES
from hypothesis import given
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params
from jaxprs import scans, shapes
from oracles import assert_close

from jaxctc import _checks, blocks, ctc_loss, ctc_loss_with_forward_probs, posteriors, recursions
from jaxctc.lattice import build_lattice
from jaxctc.recursions import rows, shares, total
from jaxctc.scores import Reading
from jaxctc.semirings import LOG, MAX, WIDE
from jaxctc.steps import Axes

ARGUMENTS = (jnp.zeros((2, 70, 4)), None, jnp.ones((2, 3), jnp.int32), None)
# Of half the input: two blocks of 18 are one frame more than the half of 70.
BLOCKS, FRAMES = 2, 18


def lengths(scans):
    return [scan.params["length"] for scan in scans]


def test_loss_alone_is_one_pass_over_half_the_frames_without_stored_rows():
    found = scans(jax.make_jaxpr(ctc_loss)(*ARGUMENTS).jaxpr)
    assert lengths(found) == [BLOCKS, FRAMES]
    (body,) = jaxprs_in_params(found[0].params)
    # What a scan stacks has an axis more than what its body returns.
    assert shapes(found[0].outvars) == shapes(body.outvars)


def test_loss_and_gradient_are_two_passes_over_half_the_frames_and_one_more():
    """Forward, and for each block on the way back the forward pass again and the backward one."""

    def loss(logits):
        return ctc_loss(logits, *ARGUMENTS[1:]).sum()

    found = scans(jax.make_jaxpr(jax.value_and_grad(loss))(ARGUMENTS[0]).jaxpr)
    assert lengths(found) == [BLOCKS, FRAMES, BLOCKS, FRAMES, FRAMES]


def lattice_of(logits, no_frame, labels, no_label):
    inputs = _checks.ctc_inputs("test", logits, no_frame, labels, no_label)
    return build_lattice(inputs, Reading(blank=0, logits_normalized=False))


@jax.jit
def forward_middle_backward(logits, no_frame, labels, no_label):
    """Log totals of the forward pass alone, where both meet, and of the backward pass alone."""

    def last(stacked, lattice):
        end = lattice.label_count[..., None]
        blank = jax.tree.map(
            lambda part: jnp.take_along_axis(part[-1], end, axis=-1)[..., 0], stacked.blank
        )
        label = jax.tree.map(
            lambda part: jnp.take_along_axis(part[-1], end - 1, axis=-1)[..., 0], stacked.label
        )
        return WIDE.decode(WIDE.plus(blank, label))

    arguments = logits, no_frame, labels, no_label
    there, back = lattice_of(*arguments), lattice_of(*(part[:, ::-1] for part in arguments))
    return (
        last(rows(there, WIDE, backward=False), there),
        WIDE.decode(total(there, WIDE)),
        last(rows(back, WIDE, backward=False), back),
    )


def random_batch(seed, scale, frames=25):
    """Frames and labels of different numbers, padded anywhere."""
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(2, frames, 5)) * scale).astype(np.float32)
    labels = rng.integers(1, 5, (2, 6))
    return logits, rng.random((2, frames)) < 0.3, labels, rng.random((2, 6)) < 0.3


cases = {"seed": st.integers(0, 2**32 - 1), "scale": st.sampled_from([0.1, 1, 10, 100])}


@given(**cases)
def test_both_passes_and_the_middle_agree(seed, scale):
    logits, no_frame, labels, no_label = random_batch(seed, scale)
    no_label[:, 0] = False  # one label at least, for there to be a last one
    forward, middle, backward = forward_middle_backward(logits, no_frame, labels, no_label)
    np.testing.assert_allclose(forward, middle, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(backward, middle, rtol=1e-6, atol=1e-6)


@functools.partial(jax.jit, static_argnames=("semiring", "examples_last"))
def totals_and_shares(arguments, semiring, examples_last):
    with pytest.MonkeyPatch.context() as patch:
        for module in (blocks, recursions):
            patch.setattr(module, "axes_of", lambda lattice: Axes(examples_last))
        whole, parts = shares(lattice_of(*arguments), semiring)
        return semiring.decode(whole), parts.label


def assert_wide_agrees_with_log_in_float64(batch):
    """Whichever axis lies innermost."""
    with jax.enable_x64(True):
        logits, *rest = batch
        truth = totals_and_shares((logits.astype(np.float64), *rest), LOG, True)
    for examples_last in (False, True):
        ours = totals_and_shares(batch, WIDE, examples_last)
        np.testing.assert_allclose(ours[0], truth[0], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(ours[1], truth[1], atol=3e-6)


@given(**cases)
def test_wide_agrees_with_log_in_float64(seed, scale):
    assert_wide_agrees_with_log_in_float64(random_batch(seed, scale))


@pytest.mark.parametrize(
    "frames", [1, *(pytest.param(few, marks=pytest.mark.slow) for few in (2, 3, 32)), 33, 70]
)
def test_every_frame_is_in_one_block(frames):
    assert_wide_agrees_with_log_in_float64(random_batch(frames, 1, frames))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="plain"),
        pytest.param({"wildcard_id": 5}, id="wildcard", marks=pytest.mark.slow),
        pytest.param({"label_loop": False}, id="no-loop", marks=pytest.mark.slow),
        pytest.param({"logits_normalized": True}, id="normalized", marks=pytest.mark.slow),
    ],
)
def test_examples_side_by_side_are_what_they_are_alone(options, rng):
    """Few labels of many examples are laid out in another way (`jaxctc.blocks.axes_of`)."""
    batch, frames, labels = (2, 16), 45, 6  # the halves overlap
    logits = rng.normal(size=(*batch, frames, 5)).astype(np.float32)
    logits[0, 3, 7, 2] = np.nan
    rest = (
        rng.random((*batch, frames)) < 0.3,
        rng.integers(1, 6 if "wildcard_id" in options else 5, (*batch, labels)),
        rng.random((*batch, labels)) < 0.3,
    )
    rest[0][0, 5, 2:] = True  # infeasible, most likely
    weights = jnp.asarray(rng.normal(size=(*batch, frames, labels)), jnp.float32)

    def of(logits, weights, *rest):
        loss = functools.partial(ctc_loss, **options)
        share = functools.partial(posteriors, **options)

        def weighed(logits):
            return jnp.sum(share(logits, *rest).label * weights)

        gradient = jax.grad(lambda logits: jnp.sum(loss(logits, *rest)))(logits)
        values = loss(logits, *rest), gradient, share(logits, *rest)
        return values, jax.grad(weighed)(logits)

    together, slope = jax.jit(of)(logits, weights, *rest)
    one_by_one, its_slope = jax.jit(jax.vmap(jax.vmap(of)))(logits, weights, *rest)
    chex.assert_trees_all_close(together, one_by_one, rtol=2e-5, atol=2e-6)
    assert np.isinf(together[0]).any()
    assert np.isfinite(together[0]).any()
    np.testing.assert_allclose(slope, its_slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", EDGES, ids=[case.name for case in EDGES])
def test_nothing_side_by_side_is_what_it_is_alone(case):
    """The other awkward cases make a batch in test_loss.py that is laid out like this."""
    logits, *rest = case.arguments
    sixteen = [a if a is None else np.broadcast_to(a, (16, *a.shape)) for a in (logits, *rest)]
    own = loss_and_gradient(logits, *rest, blank_id=case.blank_id)
    together = loss_and_gradient(*sixteen, blank_id=case.blank_id)
    for one, many in zip(own, together, strict=True):
        np.testing.assert_allclose(many, np.broadcast_to(one, many.shape), rtol=1e-5, atol=1e-6)


@functools.partial(jax.jit, static_argnames="blank_id")
def loss_and_gradient(logits, *rest, blank_id):
    def total(logits):
        losses = ctc_loss(logits, *rest, blank_id=blank_id)
        return jnp.sum(losses), losses

    (_, losses), gradient = jax.value_and_grad(total, has_aux=True)(logits)
    return losses, gradient


@pytest.mark.parametrize(
    ("batch", "labels", "innermost"),
    [
        ((16,), 24, "examples"),
        ((1, 128), 1, "examples"),
        ((16,), 25, "labels"),
        ((15,), 3, "labels"),
        ((16, 2), 3, "labels"),
        ((16,), 0, "labels"),
        ((), 3, "labels"),
    ],
)
def test_few_labels_of_many_examples_lie_side_by_side(batch, labels, innermost):
    def check(logits, ids):
        axes = blocks.axes_of(lattice_of(logits, None, ids, None))
        assert axes.examples_last == (innermost == "examples")

    jax.eval_shape(check, jnp.zeros((*batch, 3, 4)), jnp.ones((*batch, labels), jnp.int32))


@pytest.mark.parametrize(
    ("frames", "number", "size"),
    [(1, 1, 1), (40, 1, 20), (45, 2, 12), (70, 2, 18), (400, 10, 20), (418, 11, 19), (500, 14, 18)],
)
def test_halves_overlap_as_little_as_they_can(frames, number, size):
    def check(logits, ids):
        found = blocks.Blocks.of(blocks.pair_of(lattice_of(logits, None, ids, None)))
        assert (found.number, found.size) == (number, size)

    jax.eval_shape(check, jnp.zeros((frames, 4)), jnp.ones(2, jnp.int32))


@pytest.mark.parametrize("labels", [1, 15, 17])
def test_labels_are_filled_up_to_whole_vectors(labels):
    @jax.jit
    def pair_of(logits, ids):
        return blocks.pair_of(lattice_of(logits, None, ids, None))._replace(label_loop=True)

    pair, width = (
        pair_of(jnp.zeros((3, 4)), jnp.ones(labels, jnp.int32)),
        max(16, -(-labels // 8) * 8),
    )
    assert pair.can_skip.shape == pair.columns.shape == (2, width)
    assert pair.is_label.sum() == 2 * labels


def test_labels_are_folded_to_classes_by_the_way():
    logits, no_frame, labels, no_label = random_batch(5, 1, 45)  # the halves overlap in 3

    @jax.jit
    def both(logits):
        lattice = lattice_of(logits, no_frame, labels, no_label)
        return shares(lattice, WIDE)[1].label, shares(lattice, WIDE, 5)[1].label, lattice.labels

    by_label, by_class, packed = both(logits)
    is_class = np.asarray(packed)[..., None] == np.arange(5)
    np.testing.assert_allclose(
        by_class, np.einsum("btn,bnk->btk", by_label, is_class), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("semiring", [LOG, MAX, WIDE], ids=["LOG", "MAX", "WIDE"])
def test_rows_end_in_the_total(semiring, rng):
    logits = jnp.asarray(rng.normal(size=(2, 8, 5)), jnp.float32)

    @jax.jit
    def last_and_total(logits):
        lattice = lattice_of(logits, None, np.array([[1, 1, 2], [4, 3, 2]]), None)
        stacked = rows(lattice, semiring, backward=False)
        ends = jax.tree.map(lambda part: part[-1, :, -1], stacked)
        last = semiring.plus(ends.blank, ends.label)
        return semiring.decode(last), semiring.decode(total(lattice, semiring))

    last, whole = last_and_total(logits)
    np.testing.assert_allclose(last, whole, rtol=1e-6)


def test_forward_and_backward_enumerations_agree(rng):
    """The oracle against itself: Σ_s α_t(s) β_t(s) / y_t(s) is the total, at every frame."""
    log_probs, labels = oracles.log_softmax(rng.normal(size=(5, 3))), (1, 1)
    alpha, beta = oracles.forward_rows(log_probs, labels), oracles.backward_rows(log_probs, labels)
    emission = log_probs[:, [0]], log_probs[:, list(labels)]
    joint = np.concatenate([a + b - e for a, b, e in zip(alpha, beta, emission, strict=True)], 1)
    total = -oracles.enumerate_paths(log_probs, labels).loss
    np.testing.assert_allclose(np.logaddexp.reduce(joint, axis=1), total, rtol=1e-12)


def test_long_narrow_rows_are_stored_right():
    """Scan rows of a few bytes, many of them (jax issue 40101), and shifts that must not alias
    (openxla/xla issue 49176): with uniform scores every row is a count of paths."""
    frames = 2000
    loss, in_blank, in_label = jax.jit(
        lambda scores: ctc_loss_with_forward_probs(
            scores, None, jnp.array([1]), None, logits_normalized=True
        )
    )(jnp.zeros((frames, 2)))
    t = np.arange(1, frames + 1, dtype=np.float64)
    assert_close(in_label[:, 0], np.log(t), rtol=1e-5)
    with np.errstate(divide="ignore"):
        assert_close(in_blank[:, 1], np.log(t * (t - 1) / 2), rtol=1e-5)
    np.testing.assert_array_equal(in_blank[:, 0], 0)
    assert_close(loss, -np.log(frames * (frames + 1) / 2), rtol=1e-5)


def test_shares_of_a_total_near_the_smallest():
    """The weights of beginnings and of endings both have what the only frame costs: a sum of more
    nats than there may be."""
    logits, labels = jnp.array([[0, -5e8]]), jnp.array([1])
    loss, gradient = jax.value_and_grad(ctc_loss)(logits, None, labels, None)
    assert loss == 5e8
    assert gradient.tolist() == [[1, -1]]


@pytest.mark.usefixtures("x64")
def test_wildcards_where_the_halves_overlap(rng):
    """The gradient, by tables of labels and of gaps, against differences of the loss, without."""
    logits, step = rng.normal(size=(2, 45, 5))
    labels = np.array([1, 5, 2, 2, 5, 3])

    @jax.jit
    def loss(logits):
        return ctc_loss(logits, None, labels, None, wildcard_id=5)

    slope = np.vdot(jax.jit(jax.grad(loss))(logits), step)
    difference = (loss(logits + 1e-5 * step) - loss(logits - 1e-5 * step)) / 2e-5
    np.testing.assert_allclose(slope, difference, rtol=1e-7)
