"""What both Pallas kernels ask of a batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxctc._core.problem import Problem


def with_an_example(solve: Callable[[Problem], Any], problem: Problem) -> Any:
    """Solves a batch of none as a batch of one: no grid is empty.

    In 32 bits, whatever the caller's integers are: Mosaic knows no others.
    """
    batch = problem.label_count.shape[0]
    with jax.enable_x64(False):
        if batch > 0:
            return solve(problem)
        one = jax.tree.map(lambda part: jnp.zeros_like(part, shape=(1, *part.shape[1:])), problem)
        return jax.tree.map(lambda part: part[:0], solve(one))
