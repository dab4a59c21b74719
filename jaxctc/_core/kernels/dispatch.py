"""The implementation "pallas": which kernel runs is decided when a program is lowered.

A primitive of its own stands for the whole solution in the traced program. Its operands are the
arrays of a `Problem`. Only when a program is lowered is it known for which platforms, and for how
many devices:

    TPU, CUDA      its kernel, where one device or `jax.shard_map` hands it whole arrays; else the
                   plain path, with a warning, for XLA cannot partition a kernel
    others, and what the kernel of a platform cannot do
                   the plain path in a program for several platforms; in a program for one alone,
                   an error, because a caller who names a kernel wants no other
    a CPU, where `JAXCTC_PALLAS_INTERPRET` is "tpu" or "gpu"
                   that kernel, emulated by plain operations

This is the only module that knows how JAX's primitives, batching and lowering work. Pallas is
imported when the first problem asks for it.
"""

import functools
import math
import os
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jaxtyping import Float

from jaxctc._core import checks
from jaxctc._core.kernels import xla_blocked
from jaxctc._core.problem import Problem
from jaxctc._core.sharding import varying_like

INTERPRET = "JAXCTC_PALLAS_INTERPRET"
"""The environment variable that asks for emulation: "tpu", "gpu" or nothing."""
KERNELS = ("tpu", "gpu")
CAPABILITY = 9.0
"""The least that the kernel for GPUs asks of a card. For older ones Mosaic's compiler does not fail
but ends the process."""


def unsupported(problem: Problem, *, label_loop: bool) -> str | None:
    """Why no kernel can solve a problem, in a sentence for each; None if one can."""
    if problem.alternatives is not None:
        return "Its kernels know one class for each label, and no label_log_weights."
    reasons = [_kernel(name).unsupported(problem, label_loop=label_loop) for name in KERNELS]
    return None if None in reasons else " ".join(reasons)


def log_total(problem: Problem, *, label_loop: bool) -> Float[Array, "*B"]:
    """As the module that is chosen has it."""
    return _bind(problem, label_loop=label_loop, by_column=None)[0]


def log_total_and_occupancies(
    problem: Problem, *, label_loop: bool, by_column: bool
) -> tuple[Float[Array, "*B"], Float[Array, "*B T N"], None]:
    """As the module that is chosen has it; there are no wildcards."""
    total, occupancies = _bind(problem, label_loop=label_loop, by_column=by_column)
    return total, occupancies, None


def _kernel(name: str) -> ModuleType:
    # Both import Pallas.
    if name == "gpu":
        from jaxctc._core.kernels import pallas_gpu

        return pallas_gpu
    from jaxctc._core.kernels import pallas_tpu

    return pallas_tpu


def _bind(problem: Problem, **static: Any) -> list[Array]:
    # `jax.shard_map` wants to see what varies over its axes vary together.
    operands = jax.tree.leaves(problem)
    return solve_p.bind(*varying_like(operands, *operands), **static)


def _run(
    kernel: ModuleType, operands: Sequence[Array], static: dict[str, Any], **more: Any
) -> list[Array]:
    """The outputs of the primitive, by one of the modules."""
    problem = jax.tree.unflatten(_STRUCTURE, operands)
    label_loop, by_column = static["label_loop"], static["by_column"]

    def solve(problem: Problem) -> list[Array]:
        if by_column is None:
            return [kernel.log_total(problem, label_loop=label_loop, **more)]
        options = {"label_loop": label_loop, "by_column": by_column, **more}
        return list(kernel.log_total_and_occupancies(problem, **options)[:2])

    batch = problem.label_count.shape
    if kernel is xla_blocked:
        # Folded into one, a batch that XLA spreads over two of its axes would be gathered.
        for _ in batch[1:]:
            solve = jax.vmap(solve)
        return solve(problem)
    axes, size = len(batch), math.prod(batch)
    folded = jax.tree.map(lambda part: part.reshape(size, *part.shape[axes:]), problem)
    return [part.reshape(*batch, *part.shape[1:]) for part in solve(folded)]


_UNKNOWN = "wildcards", "bias", "alternatives"  # to all kernels
_FIELDS = [None if name in _UNKNOWN else 0 for name in Problem._fields]
_STRUCTURE = jax.tree.structure(Problem(*_FIELDS))  # pyright: ignore[reportArgumentType]

solve_p = Primitive("ctc_solve")
"""For any axes of batch. Static: `label_loop`; `by_column`, None for the total alone."""
solve_p.multiple_results = True


@solve_p.def_impl
def _eager(*operands, **static):
    with jax.disable_jit(False):  # else it would call itself
        return jax.jit(functools.partial(solve_p.bind, **static))(*operands)


@solve_p.def_abstract_eval
def _shapes(*operands, label_loop, by_column):
    del label_loop
    problem = jax.tree.unflatten(_STRUCTURE, operands)
    *batch, frames = problem.is_frame.shape
    total = _like(problem.frame_max, batch)
    if by_column is None:
        return [total]
    entries = problem.scores.shape[-1] if by_column else problem.is_label.shape[-1]
    return [total, _like(problem.frame_max, batch, frames, entries)]


def _like(aval: Any, batch: Sequence[int], *more: int) -> Any:
    """Of another shape, spread over the devices by its batch alone; varying as before."""
    spread = (*aval.sharding.spec, *[None] * len(batch))[: len(batch)]
    spec = jax.P(*spread, *[None] * len(more))
    return aval.update(shape=(*batch, *more), sharding=aval.sharding.update(spec=spec))


def _batched(operands, axes, **static):
    """One axis of batch more, which stays an axis until it is known what runs."""
    given = zip(operands, axes, strict=True)
    size = next(operand.shape[axis] for operand, axis in given if axis is not None)
    operands = [
        jnp.broadcast_to(operand, (size, *operand.shape))
        if axis is None
        else jnp.moveaxis(operand, axis, 0)
        for operand, axis in zip(operands, axes, strict=True)
    ]
    found = solve_p.bind(*operands, **static)
    return found, [0] * len(found)


batching.primitive_batchers[solve_p] = _batched


# Lowering.


def _lower(context: Any, operands: Sequence[Any], static: Any, kernel: Any, **more: Any) -> Any:
    """What a module makes of it, for the platform of the context alone."""
    alone = context.module_context.replace(platforms=tuple(_platforms(context)))

    def solve(*operands):
        with jax.named_scope(f"ctc_{kernel.__name__.rpartition('.')[2]}"):
            return _run(kernel, operands, static, **more)

    # They are the arrays of this device, whatever varies over an axis of a mesh around it.
    avals = [ShapedArray(aval.shape, aval.dtype) for aval in context.avals_in]
    lower = mlir.lower_fun(solve, multiple_results=True)
    return lower(context.replace(module_context=alone, avals_in=avals), *operands)


def _platforms(context: Any) -> Sequence[str]:
    return context.platforms or context.module_context.platforms


def _has_whole_arrays(context: Any) -> bool:
    """Whether a program sees all that a device has: one device, or all axes manual."""
    axes = context.module_context.axis_context
    if getattr(axes, "num_devices", None) == 1:
        return True
    manual = getattr(axes, "manual_axes", None)
    return manual is not None and manual == frozenset(axes.mesh.axis_names)


def _too_old(context: Any) -> str | None:
    """Why a card cannot run the kernel for GPUs, where it is known which card it is.

    That is where a program is compiled for certain devices or for those of this process, and not
    where it is exported.
    """
    backend = context.module_context.backend
    for device in backend.devices() if backend is not None else ():
        capability = getattr(device, "compute_capability", None)
        if capability is not None and float(capability) < CAPABILITY:
            return (
                f"The GPU kernel needs compute capability {CAPABILITY}; "
                f"{device.device_kind} has {capability}."
            )
    return None


def _by_kernel(context, *operands, name, **static):
    """On the platform of a kernel."""
    if not _has_whole_arrays(context):
        warnings.warn(checks.NOT_PARTITIONED, stacklevel=2)
        return _lower(context, operands, static, xla_blocked)
    reason = _refusal(context, name, static) or (_too_old(context) if name == "gpu" else None)
    if reason is not None and len(context.module_context.platforms) > 1:
        return _lower(context, operands, static, xla_blocked)
    checks.implementation_can("jaxctc", "pallas", reason)
    return _lower(context, operands, static, _kernel(name))


def _refusal(context: Any, name: str, static: dict[str, Any]) -> str | None:
    problem = jax.tree.unflatten(_STRUCTURE, context.avals_in)
    return _kernel(name).unsupported(problem, label_loop=static["label_loop"])


def _elsewhere(context, *operands, **static):
    if len(context.module_context.platforms) > 1:
        return _lower(context, operands, static, xla_blocked)
    (platform,) = context.module_context.platforms
    name = os.environ.get(INTERPRET)
    if platform == "cpu" and name in KERNELS:
        checks.implementation_can("jaxctc", "pallas", _refusal(context, name, static))
        return _lower(context, operands, static, _kernel(name), interpret=True)
    checks.fail_without_kernel(platform, INTERPRET)


mlir.register_lowering(solve_p, functools.partial(_by_kernel, name="tpu"), platform="tpu")
mlir.register_lowering(solve_p, functools.partial(_by_kernel, name="gpu"), platform="cuda")
mlir.register_lowering(solve_p, _elsewhere)
