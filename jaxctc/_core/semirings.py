"""How path weights combine: `times` along a path, `plus` across paths.

One recursion over the graph gives the loss, its gradient or the best path, according to the
semiring it runs in (Mohri 2002, "Semiring frameworks and algorithms for shortest-distance
problems"). The numbers of a semiring are a pytree of arrays of one shape: one array of logarithms
for LOG and MAX, a mantissa and an exponent for WIDE.

LOG and MAX are differentiable to every order, and safely so. JAX's own `logaddexp` has a NaN
gradient where all terms are -inf, and its `maximum` splits the gradient of a tie. Here

    LOG   a sum of zeros alone is zero, with gradient 0 towards each;
          of others, each term's gradient is its part of the sum
    MAX   of equal terms one gets the whole gradient, so that the gradient of a best-path score
          is always one path

WIDE is not differentiable: it takes numbers apart by their bits. Whatever leaves it carries a
derivative rule of its own (`derivatives`).
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from jaxctc._core.lean import select

Number = Any
"""A pytree of arrays of one shape; which, the semiring knows."""


MAX_UNNORMALIZED_STEPS = 20
"""How many products, and sums of three, a number may go through before it is normalized."""


class Semiring(NamedTuple):
    """Numbers that path weights are computed in."""

    zero: Number
    """Weight of an impossible path, as scalars; neutral in `plus`, absorbing in `times`."""
    one: Number
    """Weight of an empty path, as scalars; neutral in `times`."""
    times: Callable[[Number, Number], Number]
    """Weight of two path pieces in a row."""
    plus: Callable[..., Number]
    """Weight of any number of alternatives, given as numbers of one shape."""
    sum: Callable[..., Number]
    """Weight of all the alternatives along the last axis, or the one that is given as `axis`."""
    encode: Callable[[Array, Array], Number]
    """The number `exp(score - scale)`, for scores that are not above their scale."""
    decode: Callable[[Number], Array]
    """The logarithm of a number."""
    normalize: Callable[[Number], Number]
    """The same number, safe for the next `MAX_UNNORMALIZED_STEPS` products and sums of three."""
    occupancy: Callable[[Number, Number, Number], Array]
    """`a · b / total` as an ordinary float; anything finite where `total` is zero."""
    divide: Callable[[Number, Number], Number]
    """The first number by the second, which is not zero; zero where the first is."""
    mask: Callable[[Array, Number], Number]
    """The number where a condition holds, zero elsewhere."""


def ratio(part: Number, total: Number, semiring: Semiring) -> Array:
    """`part / total` as an ordinary float; anything finite where `total` is zero."""
    one = jax.tree.map(lax.full_like, total, semiring.one)
    return semiring.occupancy(part, one, total)


def weighed(number: Number, log_weight: Array, semiring: Semiring) -> Number:
    """The number times `exp(log_weight)`, for logarithms up to 0; normalized."""
    weight = semiring.encode(log_weight, lax.full_like(log_weight, 0))
    return semiring.normalize(semiring.times(number, weight))


def _log_of_sum(largest: Array, sum_over: Callable[[Array], Array]) -> Array:
    # The largest term cancels out of value and gradient alike, so it is only a shift. The two
    # selects keep -inf from meeting -inf, and log from meeting 0, in the value and in its
    # derivative: a select after the fact would hide the NaN in the first only.
    largest = lax.stop_gradient(largest)
    shift = select(largest != -jnp.inf, largest, 0)
    total = sum_over(shift)
    possible = total != 0
    return select(possible, shift + jnp.log(select(possible, total, 1)), -jnp.inf)


def _log_plus(*terms: Array) -> Array:
    largest = functools.reduce(jnp.maximum, terms)
    return _log_of_sum(
        largest, lambda shift: functools.reduce(jnp.add, (jnp.exp(t - shift) for t in terms))
    )


def _log_sum(terms: Array, axis: int = -1) -> Array:
    largest = jnp.max(terms, axis=axis)

    def sum_over(shift: Array) -> Array:
        return jnp.sum(jnp.exp(terms - jnp.expand_dims(shift, axis)), axis=axis)

    return _log_of_sum(largest, sum_over)


def _max_plus(*terms: Array) -> Array:
    # A NaN on the left fails the comparison and stays; one on the right is asked for.
    def larger(left, right):
        return select((right > left) | (right != right), right, left)

    return functools.reduce(larger, terms)


def _max_sum(terms: Array, axis: int = -1) -> Array:
    best = lax.argmax(terms, axis % terms.ndim, jnp.int32)
    best = jnp.expand_dims(best, axis)
    return jnp.squeeze(jnp.take_along_axis(terms, best, axis=axis), axis)


def _identity(number: Array) -> Array:
    return number


def _log_occupancy(a: Array, b: Array, total: Array) -> Array:
    return jnp.exp(a + b - select(total != -jnp.inf, total, 0))


def _log_mask(condition: Array, number: Array) -> Array:
    return select(condition, number, -jnp.inf)


def _log_divide(a: Array, b: Array) -> Array:
    return select(a == -jnp.inf, a, a - b)


LOG = Semiring(
    zero=-jnp.inf,
    one=0.0,
    times=jnp.add,
    plus=_log_plus,
    sum=_log_sum,
    encode=jnp.subtract,
    decode=_identity,
    normalize=_identity,
    occupancy=_log_occupancy,
    divide=_log_divide,
    mask=_log_mask,
)
"""Sums over paths: log-probabilities."""

MAX = LOG._replace(plus=_max_plus, sum=_max_sum)
"""The best path alone (Viterbi)."""


# WIDE numbers: float32 mantissas with an exponent of their own.
#
# A log-probability of a long input is a large number: at -6000 neighbouring float32 values lie
# 5e-4 apart, and that is how wrong each of the T sums of a LOG recursion can be, and its
# gradients with them. A probability has no such problem, it only does not fit: e^-6000 is zero.
# So a WIDE number is m · 2^e, a float mantissa and an int32 exponent. Products multiply m and
# add e; sums bring all terms to the largest exponent. Both cost a rounding of m, one part in
# 2^24, so T frames cost about √T · 2^-24, relative, whatever the magnitude; and no exp or log is
# needed on the way, for powers of two are made by writing bits.
#
# Where the model is sure, all that counts has probabilities next to 1, their logarithms lie next to
# 0, and there LOG is the more precise: torch's gradients are right to 1e-8 there. What WIDE numbers
# have against them is the rounding of T frames; but alpha · beta of neighbouring frames, and their
# sum over states, have it in common. So a kernel does well to divide by a total summed close by:
# then occupancies are right to some 1e-7 at any length.
#
# Mantissas have room to spare, so products and sums leave them as they come, and exponents do not
# depend on them; a number is normalized only now and then.
#
# Invariants
#   m     in [1, 2) when normalized, in [0.7, 1.42) when encoded (up to rounding). A sum of three
#         has at least the m of a term, at most three times the largest. So after
#         `MAX_UNNORMALIZED_STEPS` frames m lies between 2^-11 and 2^53: sums, which drop what is
#         2^127 times smaller by its exponent, lose nothing that counts, and a product of two such
#         numbers does not overflow
#   zero  is every number whose e is not above SMALLEST. Encoded zeros have e = ZERO, and products
#         nothing less, so that no int32 overflows; sums of zeros may rise from there, by 1.6 a
#         frame when normalized, and stay below SMALLEST for a million frames. A tiny number in the
#         place of zero would make an infeasible pair cost thousands of nats, with a gradient
#   NaN   may become anything; it is carried outside (`emissions.Lattice.has_nan`)


class Wide(NamedTuple):
    """Numbers m · 2^e."""

    mantissa: Float[Array, "..."]
    exponent: Int[Array, "..."]


ZERO = -(1 << 30)
SMALLEST = ZERO + (1 << 21)

_MANTISSA_BITS = 23
_BIAS = 127
_LOG2_E = 1 / math.log(2)
# log 2 in two parts (Cody & Waite 1980): the first has nine bits, so that its products with
# integers up to 2^15 are exact.
_LN2_HI = 355 / 512
_LN2_LO = math.log(2) - _LN2_HI
_STEP = 1024


def power_of_two(exponent: Array, nothing: Array | int = -_BIAS) -> Array:
    """2^(exponent - nothing - 127) as a float32, for results up to 2^127; 0 up to `nothing`."""
    biased = jnp.maximum(exponent - nothing, 0)
    return lax.bitcast_convert_type(biased << _MANTISSA_BITS, jnp.float32)


def _wide_encode(score: Array, scale: Array) -> Wide:
    # score - scale = gap + rest exactly (Knuth's two-sum): a large gap must not swallow what
    # distinguishes one frame from another.
    gap = score - scale
    shadow = gap - score
    rest = (score - (gap - shadow)) - (scale + shadow)
    possible = gap * _LOG2_E > ZERO
    zero = lax.full_like(gap, 0)
    gap, rest = select(possible, gap, zero), select(possible, rest, zero)
    # gap = coarse · 1024 log 2 + near + far, where near is exact; coarse = far = 0 above -355.
    coarse = _round(gap * (1 / (_STEP * _LN2_HI)))
    near, far = gap - coarse * (_STEP * _LN2_HI), coarse * (-_STEP * _LN2_LO)
    fine = _round((near + far) * _LOG2_E)
    mantissa = _small_exp((near - fine * _LN2_HI) + ((far - fine * _LN2_LO) + rest))
    exponent = coarse.astype(jnp.int32) * _STEP + fine.astype(jnp.int32)
    return _wide_mask(possible, Wide(mantissa, exponent))


def _round(x: Array) -> Array:
    return lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN)


def _small_exp(x: Array) -> Array:
    """exp for |x| ≤ log(2) / 2, by its series; the next term is below 2^-27."""
    terms = (1 / math.factorial(power) for power in range(5, -1, -1))
    start = x * (1 / math.factorial(7)) + 1 / math.factorial(6)
    return functools.reduce(lambda value, term: value * x + term, terms, start)


def _wide_decode(number: Wide) -> Array:
    exponent = number.exponent.astype(jnp.float32)
    value = exponent * _LN2_HI + (exponent * _LN2_LO + jnp.log(number.mantissa))
    return select(number.exponent > SMALLEST, value, -jnp.inf)


def _wide_times(a: Wide, b: Wide) -> Wide:
    return Wide(a.mantissa * b.mantissa, jnp.maximum(a.exponent + b.exponent, ZERO))


def _wide_normalize(number: Wide) -> Wide:
    bits = lax.bitcast_convert_type(number.mantissa, jnp.int32)
    carry = (bits >> _MANTISSA_BITS) - _BIAS
    one = _BIAS << _MANTISSA_BITS
    bits = (bits & ((1 << _MANTISSA_BITS) - 1)) | one
    return Wide(
        lax.bitcast_convert_type(bits, jnp.float32), jnp.maximum(number.exponent + carry, ZERO)
    )


def _wide_plus(*terms: Wide) -> Wide:
    largest = functools.reduce(jnp.maximum, (term.exponent for term in terms))
    nothing = largest - _BIAS
    scaled = (term.mantissa * power_of_two(term.exponent, nothing) for term in terms)
    return Wide(functools.reduce(jnp.add, scaled), largest)


def _wide_sum(terms: Wide, axis: int = -1) -> Wide:
    largest = jnp.max(terms.exponent, axis=axis)
    nothing = jnp.expand_dims(largest - _BIAS, axis)
    scaled = terms.mantissa * power_of_two(terms.exponent, nothing)
    return Wide(jnp.sum(scaled, axis=axis), largest)


def _wide_occupancy(a: Wide, b: Wide, total: Wide) -> Array:
    both = _wide_times(a, b)
    exponent = jnp.minimum(both.exponent - total.exponent, _BIAS)
    return both.mantissa / total.mantissa * power_of_two(exponent)


def _wide_divide(a: Wide, b: Wide) -> Wide:
    exponent = a.exponent - b.exponent
    return Wide(a.mantissa / b.mantissa, select(a.exponent > SMALLEST, exponent, ZERO))


def _wide_mask(condition: Array, number: Wide) -> Wide:
    return Wide(number.mantissa, select(condition, number.exponent, ZERO))


WIDE = Semiring(
    zero=Wide(1.0, ZERO),  # pyright: ignore[reportArgumentType]  # scalars, as in every semiring
    one=Wide(1.0, 0),  # pyright: ignore[reportArgumentType]
    times=_wide_times,
    plus=_wide_plus,
    sum=_wide_sum,
    encode=_wide_encode,
    decode=_wide_decode,
    normalize=_wide_normalize,
    occupancy=_wide_occupancy,
    divide=_wide_divide,
    mask=_wide_mask,
)
"""Sums over paths, exact to float32 at any magnitude; not differentiable."""
