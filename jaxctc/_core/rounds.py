"""Recurrences along frames whose every step is a line, x_{t+1} = a_t · x_t + b_t, in any semiring.

Such steps can be joined in any order: log T rounds instead of T steps (Hillis and Steele 1986,
"Data parallel algorithms"; Blelloch 1990, "Prefix sums and their applications", section 1.4).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxctc._core.semirings import Number, Semiring


def steps(factors: Number, more: Number, semiring: Semiring) -> Number:
    """x of `x_{t+1} = factor_t · x_t + more_t` from zero on, `[*B, W, T+1]`."""

    def join(first: Any, then: Any) -> Any:
        factor, more = semiring.times(first[0], then[0]), semiring.times(first[1], then[0])
        return semiring.normalize(factor), semiring.normalize(semiring.plus(more, then[1]))

    _, found = _joined(join, (factors, more), (semiring.one, semiring.zero))
    return _with_first(found, semiring.zero)


def products(numbers: Number, semiring: Semiring) -> Number:
    """Of the first t numbers, `[*B, T+1]`."""

    def join(first: Number, then: Number) -> Number:
        return semiring.normalize(semiring.times(first, then))

    return _with_first(_joined(join, numbers, semiring.one), semiring.one)


def _joined(join: Callable[[Any, Any], Any], parts: Any, neutral: Any) -> Any:
    """Every part joined to all before it along the last axis, in log T rounds.

    In each round, stretches twice as long as before: more products than `lax.associative_scan` has,
    but a loop, which compiles once, where that has a program of its own for every round.
    """
    size = jax.tree.leaves(parts)[0].shape[-1]

    def next_round(parts: Any, distance: Array) -> tuple[Any, None]:
        def before(part: Array, value: float | int) -> Array:
            part = jnp.concatenate([lax.full_like(part, value), part], axis=-1)
            return lax.dynamic_slice_in_dim(part, size - distance, size, axis=-1)

        return join(jax.tree.map(before, parts, neutral), parts), None

    rounds = (size - 1).bit_length()
    distances = jnp.left_shift(jnp.int32(1), jnp.arange(rounds, dtype=jnp.int32))
    return lax.scan(next_round, parts, distances)[0]


def _with_first(row: Number, value: Number) -> Number:
    def one(part: Array, value: float | int) -> Array:
        return jnp.concatenate([lax.full_like(part[..., :1], value), part], axis=-1)

    return jax.tree.map(one, row, value)
