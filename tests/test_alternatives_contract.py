"""The contract, where labels may each be any of several classes."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from alternatives import compiled, everything
from cases import NARROW
from jax.test_util import check_grads
from jaxprs import dtypes, scans

from jaxctc import ctc_loss, forced_align, posteriors

LETTERS = np.array([[1, 2, -1], [2, 1, 2], [3, -1, -1]], np.int32)
WEIGHTS = np.array([[-0.1, -2.0, 0.0], [0.3, -1.0, -0.5], [-0.7, 0.0, 0.0]], np.float32)
LOGITS = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32) * 2
NOTHING = np.zeros(6, bool), np.zeros(3, bool)
ONE = LOGITS, NOTHING[0], LETTERS, NOTHING[1], WEIGHTS


def batch_like(first, *others):
    """Examples side by side, each with something in the place of a part of `first`."""
    rows = [first, *((*first[:i], part, *first[i + 1 :]) for i, part in others)]
    return tuple(np.stack(parts) for parts in zip(*rows, strict=True))


def loss(logits, no_frame, labels, no_label, weights, **options):
    return ctc_loss(logits, no_frame, labels, no_label, label_log_weights=weights, **options)


@pytest.mark.slow
def test_one_alternative_is_what_there_is_without(rng):
    """In float32, at some length, equal neighbours among the labels."""
    logits = rng.normal(size=(2, 300, 6)).astype(np.float32) * 3
    no_frame = np.arange(300) >= np.array([[300], [250]])
    labels = rng.integers(1, 6, (2, 40)).astype(np.int32)
    no_label = np.arange(40) >= np.array([[40], [30]])
    found = compiled(
        logits, no_frame, labels[..., None], no_label, np.zeros((2, 40, 1), np.float32)
    )

    @jax.jit
    def plain(logits):
        arguments = logits, no_frame, labels, no_label
        losses, pullback = jax.vjp(lambda x: ctc_loss(x, *arguments[1:]), logits)
        gradient = pullback(jnp.ones_like(losses))[0]
        return losses, gradient, posteriors(*arguments), forced_align(*arguments)

    losses, gradient, shares, aligned = plain(logits)
    np.testing.assert_allclose(found.loss, losses, rtol=2e-7)
    np.testing.assert_allclose(found.gradients[0], gradient, atol=1e-6)
    np.testing.assert_allclose(found.gradients[1][..., 0], no_label - 1.0, atol=1e-6)
    np.testing.assert_allclose(found.posteriors.label[..., 0], shares.label, atol=1e-6)
    np.testing.assert_allclose(found.posteriors.blank, shares.blank, atol=1e-6)
    chex.assert_trees_all_close(tuple(found.aligned[:-1]), tuple(aligned), rtol=1e-6)
    np.testing.assert_array_equal(found.aligned.alternatives, np.where(no_label, -1, 0))


def test_either_case_without_loops(rng):
    """There, letters in either case are letters whose two cases are one class."""
    log_probs = np.log(rng.dirichlet(np.ones(7), 9)).astype(np.float32)
    letters = np.array([1, 2, 2, 3], np.int32)
    either = np.stack([letters, letters + 3], axis=-1)
    merged = np.column_stack([log_probs[:, 0], np.logaddexp(log_probs[:, 1:4], log_probs[:, 4:])])
    options = {"logits_normalized": True, "label_loop": False}
    found = jax.jit(functools.partial(loss, **options))(
        log_probs, None, either, None, np.zeros((4, 2), np.float32)
    )
    expected = jax.jit(functools.partial(ctc_loss, **options))(merged, None, letters, None)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.slow
def test_long_inputs_are_right_in_float32(x64, rng):
    logits = rng.normal(size=(1000, 8)).astype(np.float32) * 4
    labels = rng.integers(1, 8, (150, 2)).astype(np.int32)
    weights = rng.normal(size=(150, 2)).astype(np.float32)

    @jax.jit
    def both(logits, weights):
        return jax.value_and_grad(lambda x, w: loss(x, None, labels, None, w), (0, 1))(
            logits, weights
        )

    found, (of_logits, of_weights) = both(logits, weights)
    truth, (true_logits, true_weights) = both(logits.astype(float), weights.astype(float))
    assert found.dtype == of_logits.dtype == of_weights.dtype == jnp.float32
    np.testing.assert_allclose(found, truth, rtol=3e-7)
    np.testing.assert_allclose(of_logits, true_logits, atol=1e-5)
    np.testing.assert_allclose(of_weights, true_weights, atol=1e-5)


@pytest.mark.slow
def test_derivatives_of_every_order(x64):
    arguments = LOGITS.astype(float), WEIGHTS.astype(float)

    def of(logits, weights):
        given = logits, None, LETTERS, None
        shares = posteriors(*given, label_log_weights=weights)
        best = forced_align(*given, label_log_weights=weights)
        return loss(*given, weights), shares, best.score, best.confidences[:2]

    check_grads(jax.jit(lambda x, w: of(x, w)[0]), arguments, order=2)
    check_grads(jax.jit(of), arguments, order=1)


@pytest.mark.slow
def test_derivatives_in_float32(x64):
    """Values are in numbers that JAX cannot differentiate; derivatives are there all the same."""

    def of(logits, weights):
        given = logits, None, LETTERS, None
        best = forced_align(*given, label_log_weights=weights)
        shares = posteriors(*given, label_log_weights=weights)
        gradient = jax.grad(lambda w: loss(*given, w))(weights)
        return shares.label, best.score, best.confidences, gradient

    jacobian = jax.jit(jax.jacrev(of, (0, 1)))
    found = jacobian(LOGITS, WEIGHTS)
    truth = jacobian(LOGITS.astype(float), WEIGHTS.astype(float))
    chex.assert_trees_all_close(found, jax.tree.map(jnp.float32, truth), atol=2e-6)
    forward = jax.jit(jax.jacfwd(of, (0, 1)))(LOGITS, WEIGHTS)
    chex.assert_trees_all_close(found, forward, atol=2e-6)


SPOILT_LOGITS = np.where(np.arange(24).reshape(6, 4) == 9, np.nan, LOGITS).astype(np.float32)


@pytest.mark.parametrize(
    ("place", "part"),
    [
        (0, SPOILT_LOGITS),
        (4, np.where(WEIGHTS == -2.0, np.float32(np.nan), WEIGHTS)),
        (4, np.where(WEIGHTS == -2.0, np.float32(np.inf), WEIGHTS)),
    ],
    ids=["NaN", "weight NaN", "weight +inf"],
)
def test_nan_stays_where_it_is(place, part):
    clean = compiled(*batch_like(ONE, (place, ONE[place])))
    spoilt = compiled(*batch_like(ONE, (place, part)))
    chex.assert_trees_all_equal(*(jax.tree.map(lambda x: x[0], found) for found in (clean, spoilt)))
    one = jax.tree.map(lambda x: x[1], spoilt)
    assert np.isnan(one.loss)
    assert np.isnan(one.gradients[0]).all()
    np.testing.assert_array_equal(np.isnan(one.gradients[1]), LETTERS != -1)
    assert np.isnan(one.posteriors.label).all()
    assert np.isnan(one.aligned.score)
    assert (one.aligned.alternatives == -1).all()
    assert (one.aligned.frame_labels == -1).all()


def test_a_weight_of_nothing_is_no_alternative():
    """Neither its class nor its slope counts; a label with no other cannot be aligned."""
    without = np.where(LETTERS == 2, -1, LETTERS).astype(np.int32)
    weights = np.where(LETTERS == 2, np.float32(-np.inf), WEIGHTS)
    log_probs = np.where(np.arange(4) == 2, np.float32(np.nan), LOGITS)
    options = {"logits_normalized": True}
    found = compiled(log_probs, None, LETTERS, None, weights, **options)
    expected = compiled(log_probs, None, without, None, WEIGHTS, **options)
    assert np.isfinite(found.loss)
    chex.assert_trees_all_equal(found, expected)

    nothing = np.where(LETTERS == 3, np.float32(-np.inf), WEIGHTS)
    found = compiled(LOGITS, None, LETTERS, None, nothing)
    assert found.loss == np.inf
    assert not found.gradients[0].any()
    assert not found.gradients[1].any()
    assert loss(LOGITS, None, LETTERS, None, nothing, zero_infinity=True) == 0
    assert loss(LOGITS, None, LETTERS, None, nothing, log_epsilon=-1e5) == 1e5


@pytest.mark.slow
def test_batches_of_any_axes():
    others = [
        (1, np.arange(6) % 4 == 1),
        (2, np.roll(LETTERS, 1, axis=0)),
        (3, np.array([False, True, False])),
    ]
    batch = batch_like(ONE, *others)
    found = compiled(*batch)
    mapped = jax.jit(jax.vmap(everything))(*batch)
    folded = compiled(*(part.reshape(2, 2, *part.shape[1:]) for part in batch))
    for other in (mapped, jax.tree.map(lambda x: x.reshape(4, *x.shape[2:]), folded)):
        chex.assert_trees_all_close(found, other, rtol=1e-6, atol=1e-7)
    alone = jax.jit(everything)(*ONE)
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[0], found), alone, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", NARROW)
def test_narrow_numbers(dtype):
    logits, weights = jnp.asarray(LOGITS, dtype), jnp.asarray(WEIGHTS, dtype)
    narrow = compiled(logits, None, LETTERS, None, weights)
    wide = compiled(logits.astype(jnp.float32), None, LETTERS, None, weights.astype(jnp.float32))
    assert narrow.loss.dtype == jnp.float32
    assert [part.dtype for part in narrow.gradients] == [dtype, dtype]
    np.testing.assert_array_equal(narrow.loss, wide.loss)
    np.testing.assert_array_equal(narrow.gradients[0], wide.gradients[0].astype(dtype))
    chex.assert_trees_all_equal(narrow.posteriors, wide.posteriors)
    chex.assert_trees_all_equal(narrow.aligned, wide.aligned)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frames", "labels", "expected"), [(0, 0, 0.0), (0, 2, np.inf), (3, 0, 3 * np.log(2))]
)
def test_where_there_is_nothing(frames, labels, expected):
    ids = np.ones((2, labels, 2), np.int32)
    found = compiled(
        np.zeros((2, frames, 2), np.float32), None, ids, None, np.zeros_like(ids, float)
    )
    np.testing.assert_allclose(found.loss, np.full(2, expected), rtol=1e-6)
    assert found.posteriors.label.shape == (2, frames, labels, 2)
    assert found.aligned.alternatives.shape == (2, labels)
    assert found.gradients[1].shape == ids.shape
    assert loss(LOGITS[:0][None][:0], None, ids[:0], None, np.zeros(ids[:0].shape)).shape == (0,)


def test_no_float64_and_one_pass_each_way():
    arguments = *ONE[:4], jnp.asarray(WEIGHTS)
    with jax.enable_x64(True):
        jaxpr = jax.make_jaxpr(everything)(*arguments)
    assert not {"float64", "complex128"} & dtypes(jaxpr.jaxpr)
    alone = jax.make_jaxpr(loss)(*arguments)
    assert [scan.params["length"] for scan in scans(alone.jaxpr)] == [6]
    gradient = jax.make_jaxpr(jax.grad(loss))(*arguments)
    assert [scan.params["length"] for scan in scans(gradient.jaxpr)] == [6, 6]


@pytest.mark.slow
def test_checkpoints_say_the_same(rng, monkeypatch):
    logits = rng.normal(size=(50, 4)).astype(np.float32)
    arguments = logits, np.arange(50) % 7 == 3, LETTERS, NOTHING[1], WEIGHTS
    at_once = compiled(*arguments)
    monkeypatch.setattr("jaxctc._core.frames.MAX_RESIDENT_BYTES", 0)
    jax.clear_caches()
    in_stretches = jax.jit(everything)(*arguments)
    every = forced_align(*arguments[:4], label_log_weights=WEIGHTS, checkpoint_every=7)
    jax.clear_caches()
    chex.assert_trees_all_close(at_once, in_stretches, rtol=1e-6, atol=1e-7)
    chex.assert_trees_all_close(at_once.aligned, every, rtol=1e-6)


def test_priors_weigh_the_classes(rng):
    priors = np.log(rng.dirichlet(np.ones(4))).astype(np.float32)
    found = loss(*ONE, label_priors=priors, prior_scale=0.5)
    log_probs = jax.nn.log_softmax(LOGITS) - np.float32(0.5) * priors[None]
    np.testing.assert_allclose(found, loss(log_probs, *ONE[1:], logits_normalized=True), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wildcard_id": 4}, "wildcard_id must be None with label_log_weights; got 4"),
        ({"label_bias": 0.0}, "label_bias must be None with label_log_weights; got both"),
        ({"implementation": "pallas"}, 'implementation must be None or "xla" here; .* one class'),
        ({"weights": np.zeros((3, 2), np.float32)}, r"label_log_weights must have shape \(3, 3\)"),
        ({"weights": np.zeros((3, 3), np.int32)}, "label_log_weights must be real numbers"),
        ({"labels": LETTERS[0]}, r"labels must have shape \[\*B, N, A\] .* got \(3,\). Fill up"),
        ({"labels": LETTERS[:, :0]}, r"labels must .* A ≥ 1, with label_log_weights; got \(3, 0\)"),
        ({"no_label": np.zeros((3, 3))}, r"label_paddings must have shape \(3,\)"),
        ({"weights": None}, r"labels must have shape \[\*B, N\] .* got \(3, 3\)"),
    ],
    ids=str,
)
@pytest.mark.parametrize("function", [ctc_loss, posteriors, forced_align])
def test_mistakes(function, options, message):
    if function is forced_align and "implementation" in options:
        pytest.skip("it has none")
    given = {"labels": LETTERS, "no_label": None, "weights": WEIGHTS} | options
    labels, no_label, weights = (given.pop(name) for name in ("labels", "no_label", "weights"))
    with pytest.raises(ValueError, match=f"{function.__name__}: {message}"):
        function(LOGITS, None, labels, no_label, label_log_weights=weights, **given)


@pytest.mark.filterwarnings("ignore:forced_align. band goes:DeprecationWarning")
def test_no_band():
    with pytest.raises(ValueError, match="forced_align: band must be None with label_log_weights"):
        forced_align(*ONE[:4], label_log_weights=WEIGHTS, band=1)
