"""The recursion as it stands in `recursion`, as an implementation: the one to hold others against.

In WIDE numbers, or in LOG for float64, which can do without. It solves every problem.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxctc._core.classes import sum_by_class
from jaxctc._core.problem import Problem
from jaxctc._core.recursion import label_occupancies, total
from jaxctc._core.semirings import LOG, WIDE, Semiring


def unsupported(problem: Problem, *, label_loop: bool) -> str | None:
    """None: there is nothing that it cannot solve."""
    del problem, label_loop


def log_total(problem: Problem, *, label_loop: bool) -> Float[Array, "*B"]:
    """In the middle, where alpha and beta meet."""
    semiring = _semiring_of(problem)
    return semiring.decode(total(problem, semiring, label_loop=label_loop))


def log_total_and_occupancies(
    problem: Problem, *, label_loop: bool, by_column: bool
) -> tuple[Float[Array, "*B"], Float[Array, "*B T N"], Float[Array, "*B T N+1"] | None]:
    """One pass forward, one backward, with checkpoints."""
    semiring = _semiring_of(problem)
    weight, label, blanks = label_occupancies(problem, semiring, label_loop=label_loop)
    if by_column:
        label = sum_by_class(label, problem.columns, problem.scores.shape[-1])
    return semiring.decode(weight), label, blanks


def _semiring_of(problem: Problem) -> Semiring:
    return LOG if problem.frame_max.dtype == jnp.float64 else WIDE
