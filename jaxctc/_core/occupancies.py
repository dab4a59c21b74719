"""Occupancies of all states, made of those of labels and gaps that the recursion returns."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxctc._core import alternatives, kernels
from jaxctc._core.classes import sum_by_class
from jaxctc._core.emissions import Config
from jaxctc._core.lean import select
from jaxctc._core.problem import Problem, wildcard_share
from jaxctc._core.recursion import label_occupancies_by_derivative
from jaxctc._core.semirings import LOG, WIDE


class Occupancies(NamedTuple):
    """Parts of the total that pass through a state; 0 in padded frames and where no path exists."""

    blank: Float[Array, "*B T"]
    """Of all blanks together."""
    label: Float[Array, "*B T N"]
    """Of packed labels; or by column of the scores, `[*B, T, M]`."""
    wildcard: Float[Array, "*B T N+1"] | None
    """Of the wildcard in each gap; None without wildcards."""
    taken: Float[Array, "*B L"] | None = None
    """How likely it is that a path takes the alternative, of packed labels; None without them."""


def solve(
    problem: Problem, config: Config, *, by_column: bool = False, differentiable: bool = False
) -> tuple[Float[Array, "*B"], Occupancies]:
    """The log of the total, in nats, and all occupancies: of a kernel or, for JAX, of LOG."""
    taken = None
    if problem.alternatives is not None:
        is_in_log = differentiable or problem.frame_max.dtype == jnp.float64
        log_total, label, taken = alternatives.log_total_and_occupancies(
            problem,
            problem.alternatives,
            LOG if is_in_log else WIDE,
            label_loop=config.label_loop,
        )
        blanks = None
        if by_column:
            label = sum_by_class(label, problem.columns, problem.scores.shape[-1])
    elif not differentiable:
        log_total, label, blanks = kernels.log_total_and_occupancies(
            problem,
            label_loop=config.label_loop,
            by_column=by_column,
            implementation=config.implementation,
        )
    else:
        log_total, label, blanks = label_occupancies_by_derivative(
            problem, label_loop=config.label_loop
        )
    occupied, wildcard = jnp.sum(label, axis=-1), None
    if blanks is not None and problem.wildcards is not None:
        wildcard = blanks * wildcard_share(problem, problem.wildcards)[..., None]
        is_some = problem.wildcards.in_gap[..., None, :] & (blanks > 0)
        wildcard = select(is_some, wildcard, 0)
        occupied += jnp.sum(wildcard, axis=-1)
    # What is left is the blanks'. Below the rounding of the sum, it is nothing.
    blank = 1 - occupied
    is_some = blank > 8 * jnp.finfo(blank.dtype).eps
    counts = problem.is_frame & (log_total > -jnp.inf)[..., None]
    blank = select(is_some & counts, blank, 0)
    return log_total, Occupancies(blank, label, wildcard, taken)
