"""How path weights combine: `times` along a path, `plus` across paths.

One recursion over the lattice gives the loss, the best path or the forward probabilities,
according to the semiring it runs in (Mohri 2002, "Semiring frameworks and algorithms for
shortest-distance problems").

Both semirings here hold logarithms, so their zero, the weight of what cannot happen, is -inf.
JAX's own `logaddexp` has a NaN gradient where all terms are -inf, and its `maximum` splits the
gradient of a tie. Here, each with a derivative of every order:

    LOG.plus   of zeros alone is zero, with gradient 0 towards each
               of others: gradients are the terms' shares of the sum
    MAX.plus   of equal terms: the first gets the whole gradient, so that the gradient of a
               best-path score is always one path
    NaN        in any term, the result is NaN
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax


class Semiring(NamedTuple):
    """Numbers that path weights are computed in."""

    zero: float
    """Weight of an impossible path; neutral in `plus`, absorbing in `times`."""
    one: float
    """Weight of an empty path; neutral in `times`."""
    times: Callable[[Array, Array], Array]
    """Weight of two path pieces in a row."""
    plus: Callable[..., Array]
    """Weight of any number of alternatives, given as arrays of one shape."""


def _log_plus(*terms: Array) -> Array:
    # The largest term cancels out of value and gradient alike, so it is only a shift. The two
    # selects keep -inf from meeting -inf, and log from meeting 0, in the value and in its
    # derivative: a select after the fact would hide the NaN in the first only.
    largest = lax.stop_gradient(functools.reduce(jnp.maximum, terms))
    shift = jnp.where(largest == -jnp.inf, jnp.zeros_like(largest), largest)
    total = functools.reduce(jnp.add, (jnp.exp(term - shift) for term in terms))
    impossible = total == 0
    log_total = jnp.log(jnp.where(impossible, jnp.ones_like(total), total))
    return jnp.where(impossible, jnp.full_like(total, -jnp.inf), shift + log_total)


def _max_plus(*terms: Array) -> Array:
    # A NaN on the left fails the comparison and stays; one on the right is asked for.
    def larger(left, right):
        return jnp.where((right > left) | jnp.isnan(right), right, left)

    return functools.reduce(larger, terms)


LOG = Semiring(zero=-jnp.inf, one=0.0, times=jnp.add, plus=_log_plus)
"""Sums over paths: log-probabilities."""

MAX = Semiring(zero=-jnp.inf, one=0.0, times=jnp.add, plus=_max_plus)
"""The best path alone (Viterbi)."""
