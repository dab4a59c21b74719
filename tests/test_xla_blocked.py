"""The schedule that XLA:CPU runs fastest; its values are tested in `test_kernels.py`."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import EDGES
from jax.extend.core import jaxprs_in_params
from jaxprs import scans, shapes

from jaxctc import ctc_loss, posteriors
from jaxctc._core.emissions import build_lattice, prepare_inputs
from jaxctc._core.kernels import chunk_tables, mirrored, reference, xla_blocked

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
    """Forward, and for each block on the way back the forward pass again and the backward one: one
    after the other on a CPU, elsewhere in one.
    """

    def loss(logits):
        return ctc_loss(logits, *ARGUMENTS[1:]).sum()

    found = scans(jax.make_jaxpr(jax.value_and_grad(loss))(ARGUMENTS[0]).jaxpr)
    assert lengths(found) == [BLOCKS, FRAMES, *(BLOCKS, FRAMES, FRAMES), *(BLOCKS, FRAMES)]


def problem_of(*arguments, **options):
    config, inputs = prepare_inputs(
        "test", *arguments, blank_id=0, logits_normalized=False, **options
    )
    return build_lattice(inputs, config).problem


def random_batch(seed, frames):
    """Frames and labels of different numbers, padded anywhere."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(2, frames, 5)).astype(np.float32)
    labels = rng.integers(1, 5, (2, 6))
    return logits, rng.random((2, frames)) < 0.3, labels, rng.random((2, 6)) < 0.3


def solved(arguments, implementation, by_column=False, **given):
    def solve(*arguments):
        options = {"label_loop": True, "by_column": by_column}
        problem = problem_of(*arguments, **given)
        return implementation.log_total_and_occupancies(problem, **options)

    return jax.jit(solve)(*arguments)


@pytest.mark.parametrize("batch_minor", [False, True])
@pytest.mark.parametrize(
    "frames", [1, *(pytest.param(few, marks=pytest.mark.slow) for few in (2, 3, 32)), 33, 70]
)
def test_every_frame_is_in_one_chunk(frames, batch_minor, monkeypatch):
    """Whichever axis is minor-most."""
    layout = chunk_tables.Layout(batch_minor)
    monkeypatch.setattr(mirrored, "choose_layout", lambda batch, labels: layout)
    batch = random_batch(frames, frames)
    with jax.enable_x64(True):
        truth = solved((batch[0].astype(np.float64), *batch[1:]), reference)
    ours = solved(batch, xla_blocked)
    np.testing.assert_allclose(ours[0], truth[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(ours[1], truth[1], atol=3e-6)


@pytest.mark.parametrize("wildcard", [None, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("batch_minor", [False, True])
@pytest.mark.parametrize("frames", [pytest.param(1, marks=pytest.mark.slow), 70])
def test_other_platforms_find_the_same(frames, batch_minor, wildcard, monkeypatch, pretend):
    """All four passes of a chunk side by side, which no CPU would choose; halves overlap in 70."""
    layout = chunk_tables.Layout(batch_minor)
    monkeypatch.setattr(mirrored, "choose_layout", lambda batch, labels: layout)
    batch = random_batch(frames, frames)
    found = []
    for platform in ("cpu", "default"):
        pretend(platform)
        found.append(solved(batch, xla_blocked, wildcard_id=wildcard))
    chex.assert_trees_all_close(*found, atol=2e-6)


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
    """Few labels of many examples are laid out in another way (`choose_layout`)."""
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
    ("batch", "labels", "batch_minor"),
    [(16, 24, True), (128, 1, True), (16, 25, False), (15, 3, False), (16, 0, False)],
)
def test_few_labels_of_many_examples_lie_side_by_side(batch, labels, batch_minor):
    assert chunk_tables.choose_layout(batch, labels).batch_minor == batch_minor


@pytest.mark.parametrize(
    ("frames", "number", "size"),
    [(1, 1, 1), (40, 1, 20), (45, 2, 12), (70, 2, 18), (400, 10, 20), (418, 11, 19), (500, 14, 18)],
)
def test_halves_overlap_as_little_as_they_can(frames, number, size):
    found = chunk_tables.ChunkPlan.of(frames, chunk_tables.Layout(False))
    assert (found.num_chunks, found.chunk_size) == (number, size)


@pytest.mark.parametrize("labels", [1, 15, 17])
def test_labels_fill_whole_vectors(labels):
    problem = problem_of(jnp.zeros((1, 3, 4)), None, jnp.ones((1, labels), jnp.int32), None)
    filled = mirrored._fill_up_vectors(problem)
    assert filled.can_skip.shape == filled.columns.shape == (1, max(16, -(-labels // 8) * 8))
    assert filled.is_label.sum() == labels


def test_labels_are_summed_by_class_chunk_by_chunk():
    batch = random_batch(5, 45)  # the halves overlap in 3
    by_label, by_class = (solved(batch, xla_blocked, by_column=way)[1] for way in (False, True))
    columns = problem_of(*batch).columns
    is_class = np.asarray(columns)[..., None] == np.arange(5)
    np.testing.assert_allclose(
        by_class, np.einsum("btn,bnk->btk", by_label, is_class), rtol=1e-6, atol=1e-7
    )


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
