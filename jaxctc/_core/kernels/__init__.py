"""The implementations of the loss, each a module with two functions and one refusal.

    unsupported(problem, *, label_loop)      why it cannot solve a problem, or None
    log_total(problem, *, label_loop)        log of the weight of all paths, `[B]`, in nats; -inf
                                             where there is none
    log_total_and_occupancies(problem, *, label_loop, by_column)
                                             the same, the occupancies of the labels, `[B, T, N]`,
                                             and those of the blanks, `[B, T, N+1]`, None without
                                             wildcards

An occupancy is the part of the weight that passes through a state in a frame; 0 in padded frames,
where nothing stands, and where the total is zero. A blank's includes what a wildcard absorbs.
`by_column` sums those of labels that stand in the same column of the scores, `[B, T, M]`. Problems
have one axis of batch; `label_loop` and `by_column` are static. A kernel is never differentiated
(`derivatives` do that in plain operations), but for the reference, and that in float64 alone.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import jax
from jax import Array
from jaxtyping import Float

from jaxctc._core.kernels import dispatch, reference, xla_blocked
from jaxctc._core.problem import Problem

IMPLEMENTATIONS: dict[str, ModuleType] = {
    "xla": xla_blocked,
    "pallas": dispatch,
    "reference": reference,
}
PUBLIC_NAMES = ("xla", "pallas")
"""Those that users may ask for."""


def refusal(problem: Problem, *, label_loop: bool) -> str | None:
    """Why "pallas", which has no substitute, cannot solve a problem; None if it can."""
    return dispatch.unsupported(problem, label_loop=label_loop)


def resolve(implementation: str | None, problem: Problem, *, label_loop: bool) -> ModuleType:
    """The module that solves a problem: the one asked for or, if it cannot, the reference."""
    kernel = IMPLEMENTATIONS[implementation or "xla"]
    if kernel.unsupported(problem, label_loop=label_loop) is not None:
        return reference
    return kernel


def log_total(
    problem: Problem, *, label_loop: bool, implementation: str | None = None
) -> Float[Array, "*B"]:
    """Log of the weight of all paths, in nats, for any axes of batch."""
    kernel = resolve(implementation, problem, label_loop=label_loop)
    with _named(kernel):
        return _with_one_batch_axis(
            functools.partial(kernel.log_total, label_loop=label_loop), problem
        )


def log_total_and_occupancies(
    problem: Problem,
    *,
    label_loop: bool,
    by_column: bool = False,
    implementation: str | None = None,
) -> tuple[Float[Array, "*B"], Float[Array, "*B T N"], Float[Array, "*B T N+1"] | None]:
    """The same, and the occupancies of labels and, with wildcards, of blanks."""
    kernel = resolve(implementation, problem, label_loop=label_loop)
    options = {"label_loop": label_loop, "by_column": by_column}
    with _named(kernel):
        return _with_one_batch_axis(
            functools.partial(kernel.log_total_and_occupancies, **options), problem
        )


def _named(kernel: ModuleType) -> AbstractContextManager[Any]:
    """The scope by which a profile shows which implementation ran."""
    return jax.named_scope(f"ctc_{kernel.__name__.rpartition('.')[2]}")


def _with_one_batch_axis(solve: Callable[[Problem], Any], problem: Problem) -> Any:
    """Maps over all axes of batch but the last, and makes one where there is none.

    Not folded into one, which would gather a batch that is sharded over two of them.
    """
    axes = problem.label_count.ndim
    if axes == 0:
        one = jax.tree.map(lambda part: part[None], problem)
        return jax.tree.map(lambda part: part[0], solve(one))
    for _ in range(axes - 1):
        solve = jax.vmap(solve)
    return solve(problem)
