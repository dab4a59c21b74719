"""Against the paths themselves, and the numbers that warp-ctc has published."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jaxctc.adapters.theano import ConnectionistTemporalClassification, ctc

SHAPE = (5, 4, 5)  # t, m, p
LABELS = np.array([[1, -1, 2], [-3, 2, 2], [-1, -1, -1], [1, 1, -1]], np.int32)
LENGTHS = np.array([5, 4, 3, 2], np.int32)  # the last does not fit


@functools.partial(jax.jit, static_argnames="function")
def cost_and_gradient(activations, *rest, function=ctc):
    cost, pullback = jax.vjp(lambda activations: function(activations, *rest), activations)
    return cost, *pullback(jnp.ones_like(cost))


@pytest.fixture
def activations(rng):
    return rng.normal(size=SHAPE).astype(np.float32) * 2


def test_cost_and_gradient(activations):
    """Negative labels are padding wherever they stand; padded frames may hold anything."""
    padded = np.arange(SHAPE[0])[:, None] >= LENGTHS
    dirty = np.where(padded[..., None], np.float32(np.nan), activations)
    costs, gradient = cost_and_gradient(dirty, LABELS, LENGTHS)
    for row, (labels, length) in enumerate(zip(LABELS, LENGTHS, strict=True)):
        log_probs = oracles.log_softmax(activations[:length, row])
        truth = oracles.enumerate_paths(log_probs, labels[labels >= 0])
        oracles.assert_close(costs[row], truth.loss)
        expected = (np.exp(log_probs) - truth.occupancies) * np.isfinite(truth.loss)
        oracles.assert_close(gradient[:length, row], expected)
    np.testing.assert_array_equal(np.isinf(costs), [False, False, False, True])
    np.testing.assert_array_equal(gradient[padded], 0)


@pytest.mark.smoke
def test_published_numbers():
    """warp-ctc's own, from the tutorial of its torch binding: one batch of three."""
    activations = np.zeros(SHAPE, np.float32)
    activations[:3, 1] = np.arange(1, 16).reshape(3, 5)
    activations[:3, 2] = np.arange(-15, 0).reshape(3, 5)[::-1]
    labels = np.array([[1, -1, -1], [3, 3, -1], [2, 3, -1], [-1, -1, -1]], np.int32)
    costs, _ = cost_and_gradient(activations, labels, np.array([1, 3, 3, 0], np.int32))
    expected = [1.6094379425049, 7.355742931366, 4.938850402832, 0]
    np.testing.assert_allclose(costs, expected, rtol=2e-6)


def test_large_ids_are_no_padding(activations):
    """Nor any other class."""
    for large in (np.array(2**32 - 1), np.array(2**32 + 1)):
        costs = ctc(activations, np.where(LABELS < 0, large, LABELS), LENGTHS)
        np.testing.assert_array_equal(costs[:3], np.inf)


def test_a_blank_among_the_labels_costs_infinity(activations):
    costs, gradient = cost_and_gradient(activations, np.where(LABELS < 0, 0, LABELS), LENGTHS)
    np.testing.assert_array_equal(costs, np.inf)
    np.testing.assert_array_equal(gradient, 0)


def test_as_an_object(activations):
    arguments = activations, LABELS, LENGTHS
    costs, gradient = cost_and_gradient(*arguments)
    for compute_grad, expected in ((True, gradient), (False, np.zeros(SHAPE))):
        function = ConnectionistTemporalClassification(compute_grad)
        same, slopes = cost_and_gradient(*arguments, function=function)
        np.testing.assert_allclose(same, costs, rtol=1e-6)
        np.testing.assert_allclose(slopes, expected, atol=1e-6)


def test_lists(activations):
    arguments = activations, LABELS, LENGTHS
    costs, _ = cost_and_gradient(*arguments)
    cost = ConnectionistTemporalClassification(compute_grad=False, openmp=None)
    lists = [argument.tolist() for argument in arguments]
    np.testing.assert_allclose(jax.jit(lambda: cost(*lists))(), costs, rtol=1e-6)


ERRORS = {
    "rank": ({"activations": jnp.zeros((5, 4))}, r"activations must have shape \(t, m, p\); got"),
    "complex": ({"activations": jnp.zeros(SHAPE, complex)}, "activations must be real numbers"),
    "another batch": ({"labels": LABELS[1:]}, r"labels must have shape \(m, n\) with m = 4"),
    "labels in a row": ({"labels": LABELS[0]}, r"labels must have shape \(m, n\) with m = 4"),
    "real labels": (
        {"labels": LABELS.astype(np.float32)},
        "labels must be integers; got an array of float32",
    ),
    "lengths": ({"input_lengths": LENGTHS[1:]}, r"input_lengths must be .*\(4,\), .* int32\[3\]"),
    "real lengths": ({"input_lengths": [1.0] * 4}, "input_lengths must be integers .* float32"),
}


@pytest.mark.parametrize(("bad", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(bad, message):
    good = {"activations": jnp.zeros(SHAPE), "labels": LABELS, "input_lengths": LENGTHS}
    with pytest.raises(ValueError, match=f"^adapters.theano.ctc: {message}"):
        jax.eval_shape(lambda: ctc(**good | bad))


@pytest.mark.parametrize("openmp", [True, False])
def test_openmp_cannot_be_chosen(openmp):
    with pytest.raises(
        ValueError, match=r"ConnectionistTemporalClassification: openmp must be None"
    ):
        ConnectionistTemporalClassification(openmp=openmp)
