"""Against optax itself, and by its own tests."""

import functools
import importlib
import unittest
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxctc.adapters.optax import ctc_loss, ctc_loss_with_forward_probs

SIZE, FRAMES, CLASSES, PLACES = 5, 12, 4, 5
LOGIT_LENGTHS, LABEL_LENGTHS = np.array([12, 11, 10, 7, 12]), np.array([5, 3, 0, 2, 4])


def batch_of(rng, blank_id):
    logits = rng.normal(size=(SIZE, FRAMES, CLASSES)).astype(np.float32) * 2
    labels = rng.integers(1, CLASSES, size=(SIZE, PLACES)) - (blank_id != 0)
    return (
        logits,
        np.arange(FRAMES) >= LOGIT_LENGTHS[:, None],
        labels,
        np.arange(PLACES) >= LABEL_LENGTHS[:, None],
    )


def their(function):
    """One of optax's, which promotes dtypes and ranks on its own."""

    @functools.partial(jax.jit, static_argnames="blank_id")
    def call(logits, logit_paddings, labels, label_paddings, **options):
        paddings = (p.astype(jnp.float32) for p in (logit_paddings, label_paddings))
        logit_paddings, label_paddings = paddings
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return function(logits, logit_paddings, labels, label_paddings, **options)

    return call


our_loss = jax.jit(ctc_loss, static_argnames="blank_id")
our_rows = jax.jit(ctc_loss_with_forward_probs, static_argnames="blank_id")
their_loss, their_rows = their(optax.ctc_loss), their(optax.ctc_loss_with_forward_probs)


def loss_and_gradient(function, logits, *rest, **options):
    loss, pullback = jax.vjp(lambda logits: function(logits, *rest, **options), logits)
    return loss, *pullback(jnp.ones_like(loss))


@pytest.mark.smoke
@pytest.mark.parametrize(("blank_id", "dtype"), [(0, np.int32), (CLASSES - 1, bool)])
def test_loss_and_gradient(rng, blank_id, dtype):
    logits, logit_paddings, labels, label_paddings = batch_of(rng, blank_id)
    paddings = logit_paddings.astype(dtype), label_paddings.astype(dtype)
    arguments = logits, paddings[0], labels, paddings[1]
    loss, gradient = loss_and_gradient(our_loss, *arguments, blank_id=blank_id)
    expected, slopes = loss_and_gradient(their_loss, *arguments, blank_id=blank_id)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, slopes, atol=1e-5)


@pytest.mark.parametrize("blank_id", [pytest.param(0, marks=pytest.mark.slow), CLASSES - 1])
def test_forward_probs(rng, blank_id):
    """Entry by entry where a path beginning exists; elsewhere exactly log_epsilon."""
    arguments = batch_of(rng, blank_id)
    loss, *rows = our_rows(*arguments, blank_id=blank_id)
    expected, *their_own = their_rows(*arguments, blank_id=blank_id)
    np.testing.assert_array_equal(loss, our_loss(*arguments, blank_id=blank_id))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert [row.shape for row in rows] == [(FRAMES, SIZE, PLACES + 1), (FRAMES, SIZE, PLACES)]
    for row, theirs, first in zip(rows, their_own, (0, 1), strict=True):
        spelt = np.arange(first, PLACES + 1)
        within = np.broadcast_to(spelt <= LABEL_LENGTHS[:, None], row.shape)
        exists = within & (np.asarray(theirs) > -1e4)
        np.testing.assert_allclose(row[exists], theirs[exists], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(row[~exists], -1e5)
        assert exists[-1].any()
        assert (within & ~exists).any()


def test_gradient_of_the_last_row(rng):
    """The loss is in it, with its gradient; and where log 0 meets log 0, the gradient is finite."""
    arguments = batch_of(rng, 0)

    @jax.jit
    def slopes_of(logits, *rest):
        def probed(logits):
            _, blank, label = ctc_loss_with_forward_probs(logits, *rest)
            return -blank[-1, np.arange(SIZE), LABEL_LENGTHS], jnp.sum(blank) + jnp.sum(label)

        (in_the_row, _), pullback = jax.vjp(probed, logits)
        ones, zeros, one = jnp.ones(SIZE), jnp.zeros(SIZE), jnp.ones(())
        return in_the_row, *pullback((ones, 0 * one)), *pullback((zeros, one))

    loss, gradient = loss_and_gradient(our_loss, *arguments)
    same, slopes, all_slopes = slopes_of(*arguments)
    np.testing.assert_allclose(same, loss, rtol=1e-6)
    np.testing.assert_allclose(slopes, gradient, atol=2e-6)
    chex.assert_tree_all_finite(all_slopes)


def test_infeasible_pairs_cost_log_epsilon_and_teach_nothing(rng):
    logits, *_ = batch_of(rng, 0)
    arguments = (
        logits[:3],
        np.arange(FRAMES) >= np.array([[2], [12], [0]]),
        np.array([[1, 1], [2, 0], [1, 2]]),  # repeats do not fit; the blank; no frames
        np.zeros((3, 2)),
    )
    for cost in (1e5, 123.0, np.inf):
        loss, gradient = loss_and_gradient(our_loss, *arguments, log_epsilon=np.float32(-cost))
        np.testing.assert_array_equal(loss, cost)
        np.testing.assert_array_equal(gradient, 0)
    _, blank, label = our_rows(*arguments)
    np.testing.assert_array_equal(blank[-1, 0, -1], -1e5)
    np.testing.assert_array_equal(label[-1, 0, -1], -1e5)
    theirs, slopes = loss_and_gradient(their_loss, *arguments)
    assert np.abs(slopes).max() > 0.1
    assert theirs[1] < 100  # the blank as a label


def test_log_epsilon_is_one_number():
    arguments = np.zeros((2, 3, 4)), None, np.ones((2, 1), int), None
    for function, name in [
        (ctc_loss, "ctc_loss"),
        (ctc_loss_with_forward_probs, "adapters.optax.ctc_loss_with_forward_probs"),
    ]:
        with pytest.raises(ValueError, match=f"^{name}: log_epsilon must be one real number; got"):
            function(*arguments, log_epsilon=[-1e5, -1e5])  # pyright: ignore[reportArgumentType]


def test_without_frames():
    """optax fails here."""
    arguments = jnp.zeros((2, 0, 3)), None, jnp.array([[1], [1]]), jnp.array([[0], [1]])
    loss, blank, label = our_rows(*arguments)
    np.testing.assert_array_equal(loss, [1e5, 0])
    assert (blank.shape, label.shape) == ((0, 2, 2), (0, 2, 1))


def test_lists_by_position(rng):
    arguments = batch_of(rng, 0)
    lists = [*(part.tolist() for part in arguments), 0, -1e5]
    found = jax.jit(lambda: ctc_loss_with_forward_probs(*lists))()
    for ours, expected in zip(found, our_rows(*arguments), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-6)
    without_a_batch = our_loss(*(argument[0] for argument in arguments), 0, -1e5)
    np.testing.assert_allclose(without_a_batch, our_loss(*arguments)[0], rtol=1e-6)


@pytest.mark.parametrize("function", [ctc_loss, ctc_loss_with_forward_probs])
def test_errors(function):
    name = function.__name__
    with pytest.raises(ValueError, match=f"{name}: labels must have shape .* got \\(3, 1\\)"):
        function(jnp.zeros((2, 4, 3)), None, jnp.ones((3, 1), int), None)
    with pytest.raises(ValueError, match=f"{name}: blank_id must be a class id .* got 3"):
        function(jnp.zeros((2, 4, 3)), None, jnp.ones((2, 1), int), None, 3)


def methods_of_optax():
    """optax's own test class, which its wheel brings along, and the names of its tests."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tests = importlib.import_module("optax.losses._classification_test").CTCTest
    except ImportError as error:
        reason = f"optax's own tests cannot be loaded here: {error}"
        return [pytest.param(None, None, marks=pytest.mark.skip(reason=reason))]
    names = unittest.TestLoader().getTestCaseNames(tests)
    return [pytest.param(tests, name, id=name) for name in names]


@pytest.mark.parametrize(("tests", "name"), methods_of_optax())
def test_of_optax(monkeypatch, tests, name):
    theirs = importlib.import_module("optax.losses._classification")
    calls = []

    def counted(function):
        @functools.wraps(function)
        def call(*args, **kwargs):
            calls.append(function)
            return function(*args, **kwargs)

        return call

    for function in (ctc_loss, ctc_loss_with_forward_probs):
        monkeypatch.setattr(theirs, function.__name__, counted(function))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        tests(name).debug()  # raises where run() would write it down
    assert calls
