import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxctc.semirings import LOG, MAX

SEMIRINGS = {"LOG": LOG, "MAX": MAX}
VALUES = [-jnp.inf, -3.0, -0.5, 0.0, 2.0]

each = pytest.mark.parametrize("semiring", SEMIRINGS.values(), ids=SEMIRINGS)
numbers = st.sampled_from(VALUES).map(jnp.float32)


@each
@given(a=numbers, b=numbers, c=numbers)
def test_axioms(semiring, a, b, c):
    zero, one = jnp.float32(semiring.zero), jnp.float32(semiring.one)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    with jax.debug_nans(True):
        close(semiring.plus(a, zero), a)
        close(semiring.plus(a, b), semiring.plus(b, a))
        close(semiring.plus(a, b, c), semiring.plus(a, semiring.plus(b, c)))
        close(semiring.times(a, one), a)
        close(semiring.times(a, zero), zero)
        close(semiring.times(a, semiring.times(b, c)), semiring.times(semiring.times(a, b), c))
        left = semiring.times(a, semiring.plus(b, c))
        close(left, semiring.plus(semiring.times(a, b), semiring.times(a, c)))


@each
@pytest.mark.parametrize("count", [1, 2, 3])
def test_plus_against_float64(semiring, count):
    for terms in itertools.product(VALUES, repeat=count):
        exact = {
            "LOG": functools.reduce(np.logaddexp, terms),
            "MAX": max(terms),
        }["LOG" if semiring is LOG else "MAX"]
        np.testing.assert_allclose(semiring.plus(*map(jnp.float32, terms)), exact, rtol=1e-6)


@pytest.mark.parametrize("terms", list(itertools.product(VALUES, repeat=3)), ids=str)
def test_gradient_of_log_plus_is_each_terms_share(terms):
    terms = jnp.array(terms, jnp.float32)
    with jax.debug_nans(True):
        gradient = jax.grad(lambda terms: LOG.plus(*terms))(terms)
    weights = np.exp(np.float64(terms))
    share = weights / weights.sum() if weights.any() else 0 * weights
    np.testing.assert_allclose(gradient, share, atol=1e-6)


@pytest.mark.parametrize("terms", list(itertools.product(VALUES, repeat=3)), ids=str)
def test_gradient_of_max_plus_goes_to_the_first_of_the_largest(terms):
    terms = jnp.array(terms, jnp.float32)
    gradient = jax.grad(lambda terms: MAX.plus(*terms))(terms)
    np.testing.assert_array_equal(gradient, np.eye(3)[np.argmax(terms)])


def test_second_derivative_of_log_plus():
    terms = np.array([-np.inf, 0.3, -1.2], np.float32)
    share = np.exp(np.float64(terms)) / np.exp(np.float64(terms)).sum()
    hessian = jax.hessian(lambda terms: LOG.plus(*terms))(terms)
    np.testing.assert_allclose(hessian, np.diag(share) - np.outer(share, share), atol=1e-6)
    nothing = jax.hessian(lambda terms: LOG.plus(*terms))(jnp.full(3, -jnp.inf))
    np.testing.assert_array_equal(nothing, 0)


@each
@pytest.mark.parametrize("place", [0, 1, 2])
def test_nan_is_not_lost(semiring, place):
    terms = np.array([1.0, -np.inf, 2.0], np.float32)
    terms[place] = np.nan
    assert np.isnan(semiring.plus(*map(jnp.float32, terms)))
