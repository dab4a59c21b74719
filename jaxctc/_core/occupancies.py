"""Occupancies of all states, made of those of labels and gaps that the recursion returns."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxctc._core import kernels
from jaxctc._core.classes import sum_by_class
from jaxctc._core.emissions import Config
from jaxctc._core.problem import Problem, wildcard_share
from jaxctc._core.recursion import label_occupancies
from jaxctc._core.semirings import WIDE, Semiring


class Occupancies(NamedTuple):
    """Parts of the total that pass through a state; 0 in padded frames and where no path exists."""

    blank: Float[Array, "*B T"]
    """Of all blanks together."""
    label: Float[Array, "*B T N"]
    """Of packed labels; or by column of the scores, `[*B, T, M]`."""
    wildcard: Float[Array, "*B T N+1"] | None
    """Of the wildcard in each gap; None without wildcards."""


def solve(
    problem: Problem, config: Config, semiring: Semiring, *, by_column: bool = False
) -> tuple[Float[Array, "*B"], Occupancies]:
    """The log of the total, in nats, and all occupancies; from a kernel for WIDE."""
    if semiring is WIDE:
        log_total, label, blanks = kernels.log_total_and_occupancies(
            problem,
            label_loop=config.label_loop,
            by_column=by_column,
            implementation=config.implementation,
        )
    else:
        total, label, blanks = label_occupancies(problem, semiring, label_loop=config.label_loop)
        log_total = semiring.decode(total)
        if by_column:
            label = sum_by_class(label, problem.columns, problem.scores.shape[-1])
    taken, wildcard = jnp.sum(label, axis=-1), None
    if blanks is not None and problem.wildcards is not None:
        wildcard = blanks * wildcard_share(problem, problem.wildcards)[..., None]
        is_some = problem.wildcards.in_gap[..., None, :] & (blanks > 0)
        wildcard = jnp.where(is_some, wildcard, jnp.zeros_like(wildcard))
        taken += jnp.sum(wildcard, axis=-1)
    # What is left is the blanks'. Below the rounding of the sum, it is nothing.
    blank = 1 - taken
    blank = jnp.where(blank > 8 * jnp.finfo(blank.dtype).eps, blank, jnp.zeros_like(blank))
    counts = problem.is_frame & (log_total > -jnp.inf)[..., None]
    blank = jnp.where(counts, blank, jnp.zeros_like(blank))
    return log_total, Occupancies(blank, label, wildcard)
