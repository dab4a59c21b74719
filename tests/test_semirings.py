import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxctc._core.semirings import LOG, MAX, MAX_UNNORMALIZED_STEPS, WIDE, ZERO, Wide

SEMIRINGS = {"LOG": LOG, "MAX": MAX, "WIDE": WIDE}
TRIPLES = np.array([*itertools.product([-np.inf, -3.0, -0.5, 0.0, 2.0], repeat=3)], np.float32)
VALUES = [-np.inf, -300.0, -3.0, -0.5, 0.0]

each = pytest.mark.parametrize("semiring", SEMIRINGS.values(), ids=SEMIRINGS)
values = st.sampled_from(VALUES)


def number(semiring, value):
    return semiring.encode(jnp.float32(value), jnp.float32(0))


def constant(value):
    """`semiring.zero` or `semiring.one` as arrays."""
    return jax.tree.map(lambda x: jnp.int32(x) if isinstance(x, int) else jnp.float32(x), value)


@each
@given(a=values, b=values, c=values)
def test_axioms(semiring, a, b, c):
    zero, one = constant(semiring.zero), constant(semiring.one)
    a, b, c = (number(semiring, value) for value in (a, b, c))

    def same(left, right):
        left, right = semiring.decode(left), semiring.decode(right)
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)

    plus, times = semiring.plus, semiring.times
    same(plus(a, zero), a)
    same(plus(a, b), plus(b, a))
    same(plus(a, b, c), plus(a, plus(b, c)))
    same(times(a, one), a)
    same(times(a, zero), zero)
    same(times(a, times(b, c)), times(times(a, b), c))
    same(times(a, plus(b, c)), plus(times(a, b), times(a, c)))
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), a, b, c)
    same(semiring.sum(stacked), plus(a, b, c))


@each
def test_zero_is_minus_infinity_and_one_is_zero_nats(semiring):
    assert semiring.decode(constant(semiring.zero)) == -jnp.inf
    assert semiring.decode(constant(semiring.one)) == 0
    assert semiring.decode(number(semiring, -np.inf)) == -jnp.inf


@each
@pytest.mark.parametrize("count", [1, 2, 3])
def test_plus_against_float64(semiring, count):
    reduce = max if semiring is MAX else lambda terms: functools.reduce(np.logaddexp, terms)
    for terms in itertools.product(VALUES, repeat=count):
        total = semiring.plus(*(number(semiring, term) for term in terms))
        np.testing.assert_allclose(semiring.decode(total), reduce(terms), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("semiring", [LOG, WIDE], ids=["LOG", "WIDE"])
def test_share(semiring):
    a, b, total = (number(semiring, value) for value in (-700.0, -30.0, -729.0))
    np.testing.assert_allclose(semiring.occupancy(a, b, total), np.exp(-1), rtol=1e-4)
    assert semiring.occupancy(constant(semiring.zero), b, total) == 0


@each
@given(a=values, b=values)
def test_over_undoes_times(semiring, a, b):
    zero = constant(semiring.zero)
    a, b = (number(semiring, value) for value in (a, b))
    product = semiring.times(a, b)
    if semiring.decode(product) == -jnp.inf:
        assert semiring.decode(semiring.divide(zero, b)) == -jnp.inf
    else:
        found = semiring.decode(semiring.divide(product, b))
        np.testing.assert_allclose(found, semiring.decode(a), rtol=1e-5, atol=1e-6)


def test_gradient_of_log_plus_is_each_terms_share():
    with jax.debug_nans(True):
        gradient = jax.vmap(jax.grad(lambda terms: LOG.plus(*terms)))(jnp.asarray(TRIPLES))
    weights = np.exp(np.float64(TRIPLES))
    total = weights.sum(axis=1, keepdims=True)
    share = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    np.testing.assert_allclose(gradient, share, atol=1e-6)


def test_gradient_of_max_plus_goes_to_the_first_of_the_largest():
    gradient = jax.vmap(jax.grad(lambda terms: MAX.plus(*terms)))(jnp.asarray(TRIPLES))
    np.testing.assert_array_equal(gradient, np.eye(3)[np.argmax(TRIPLES, axis=1)])


def test_second_derivative_of_log_plus():
    terms = np.array([-np.inf, 0.3, -1.2], np.float32)
    share = np.exp(np.float64(terms)) / np.exp(np.float64(terms)).sum()
    hessian = jax.hessian(lambda terms: LOG.plus(*terms))(terms)
    np.testing.assert_allclose(hessian, np.diag(share) - np.outer(share, share), atol=1e-6)
    nothing = jax.hessian(lambda terms: LOG.plus(*terms))(jnp.full(3, -jnp.inf))
    np.testing.assert_array_equal(nothing, 0)


@pytest.mark.parametrize("semiring", [LOG, MAX], ids=["LOG", "MAX"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_nan_is_not_lost(semiring, place):
    terms = np.array([1.0, -np.inf, 2.0], np.float32)
    terms[place] = np.nan
    assert np.isnan(semiring.plus(*map(jnp.float32, terms)))


def exact_log(wide):
    return np.log(np.float64(wide.mantissa)) + np.float64(wide.exponent) * np.log(2)


@pytest.mark.smoke
@pytest.mark.parametrize(("smallest", "error"), [(-350, 2e-7), (-1e4, 1e-6), (-1e6, 5e-5)])
def test_wide_encodes_any_gap(smallest, error):
    gaps = np.linspace(smallest, 0, 20001, dtype=np.float32)
    wide = WIDE.encode(jnp.asarray(gaps), jnp.zeros_like(gaps))
    np.testing.assert_allclose(exact_log(wide), np.float64(gaps), rtol=0, atol=error)
    assert ((wide.mantissa > 0.707106) & (wide.mantissa < 1.414215)).all()
    tidy = WIDE.normalize(wide)
    assert ((tidy.mantissa >= 1) & (tidy.mantissa < 2)).all()
    np.testing.assert_allclose(exact_log(tidy), exact_log(wide), rtol=1e-15)


def test_wide_encode_keeps_what_a_subtraction_rounds_away(rng):
    scales = rng.uniform(0, 3, 1000).astype(np.float32)
    wide = WIDE.encode(jnp.full(1000, -2e5, jnp.float32), jnp.asarray(scales))
    truth = -2e5 - np.float64(scales)
    assert np.abs(np.float32(-2e5) - scales - truth).max() > 5e-3
    np.testing.assert_allclose(exact_log(wide), truth, rtol=0, atol=1e-5)


def test_wide_encode_knows_no_common_offset(rng):
    scores = np.round(-rng.uniform(0, 30, 1000) * 64).astype(np.float32) / 64
    plain = WIDE.encode(jnp.asarray(scores), jnp.zeros_like(scores))
    moved = WIDE.encode(jnp.asarray(scores + 1e4), jnp.full_like(scores, 1e4))
    for part, other in zip(plain, moved, strict=True):
        np.testing.assert_array_equal(part, other)


def test_wide_zero_stays_zero():
    zero, tiny = constant(WIDE.zero), Wide(jnp.float32(1.5), jnp.int32(ZERO + 10))
    rest = number(WIDE, -300.0)
    for product in (WIDE.times(zero, zero), WIDE.times(zero, rest), WIDE.times(tiny, rest)):
        assert product.exponent == ZERO
    for _ in range(100):
        for _ in range(MAX_UNNORMALIZED_STEPS):
            zero = WIDE.times(WIDE.plus(zero, zero, zero), number(WIDE, -0.1))
        zero = WIDE.normalize(zero)
        assert WIDE.decode(zero) == -jnp.inf
        assert WIDE.decode(WIDE.plus(zero, rest)) == WIDE.decode(rest)
    assert int(zero.exponent) < ZERO + 1.6 * 100 * MAX_UNNORMALIZED_STEPS


@pytest.mark.parametrize("score", [-0.3465, 0.0, -0.347, -1e5])
def test_wide_stays_exact_between_tidyings(score):
    """The largest and the smallest mantissas that there can be, and what is added to them."""
    emission, weight = number(WIDE, score), constant(WIDE.one)
    for _ in range(MAX_UNNORMALIZED_STEPS):
        weight = WIDE.times(WIDE.plus(weight, weight, weight), emission)
    lone = constant(WIDE.one)
    for _ in range(MAX_UNNORMALIZED_STEPS):
        lone = WIDE.times(lone, emission)
    truth = MAX_UNNORMALIZED_STEPS * np.array([np.log(3) + np.float32(score), np.float32(score)])
    for found, expected in zip((weight, lone), truth, strict=True):
        np.testing.assert_allclose(exact_log(found), expected, rtol=1e-6, atol=1e-5)
    both = WIDE.plus(weight, lone, lone)
    np.testing.assert_allclose(
        exact_log(both), np.logaddexp(truth[0], truth[1] + np.log(2)), rtol=1e-6, atol=1e-5
    )
    square = WIDE.occupancy(weight, weight, WIDE.times(weight, weight))
    np.testing.assert_allclose(square, 1, rtol=1e-6)


def test_wide_products_and_sums_do_not_drift(rng):
    """A thousand steps, each a sum and a product, against float64."""
    gaps = -rng.exponential(20, (1000, 2)).astype(np.float32)

    def step(weight, gap):
        emission = WIDE.encode(gap, jnp.zeros_like(gap))
        first, second = (jax.tree.map(lambda part, i=i: part[i], emission) for i in range(2))
        return WIDE.normalize(
            WIDE.times(WIDE.plus(weight, WIDE.times(weight, first)), second)
        ), None

    weight, _ = jax.lax.scan(step, constant(WIDE.one), jnp.asarray(gaps))
    truth = np.sum(np.log1p(np.exp(np.float64(gaps[:, 0]))) + np.float64(gaps[:, 1]))
    np.testing.assert_allclose(exact_log(weight), truth, rtol=0, atol=1e-7 * np.sqrt(3000))
