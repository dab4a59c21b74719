"""What the devices of a mesh have to tell each other, and what `jax.shard_map` has to be told.

Examples know nothing of each other, so a batch may lie on as many devices as there are, which
exchange nothing then. Classes are summed over: where they lie on several devices, along an axis of
the mesh (`axis`, None for classes in one place), the functions below are all that is exchanged.
"""

from typing import Any

import jax
from jax import Array, lax
from jaxtyping import Float, Int

from jaxctc._core.lean import select


def varying_like(values: Any, *others: Array) -> Any:
    """The same arrays, varying, as `jax.shard_map` sees it, over all axes that others vary over.

    What a scan carries has to do so from the start.
    """
    axes = frozenset().union(*map(_varying_axes, others))

    def one(value: Array) -> Array:
        missing = sorted(axes - _varying_axes(value), key=str)
        return lax.pcast(value, tuple(missing), to="varying") if missing else value

    return jax.tree.map(one, values)


def is_varying(value: Array) -> bool:
    """Whether the devices of a `jax.shard_map` have different values."""
    return bool(_varying_axes(value))


def _varying_axes(value: Array) -> frozenset[Any]:
    return jax.typeof(value).manual_axis_type.varying


def number_of_classes(logits: Float[Array, "*B T K"], axis: str | None) -> int:
    """Of all devices, which have equally many."""
    return logits.shape[-1] * (1 if axis is None else lax.axis_size(axis))


def sum_over(axis: str | None, values: Float[Array, "..."]) -> Float[Array, "..."]:
    """The sum of what the devices have."""
    return values if axis is None else lax.psum(values, axis)


def max_over(axis: str | None, values: Float[Array, "..."]) -> Float[Array, "..."]:
    """The largest of what the devices have; not part of a derivative."""
    return values if axis is None else lax.pmax(lax.stop_gradient(values), axis)


def local_ids(ids: Int[Array, "..."], classes: int, axis: str | None) -> Int[Array, "..."]:
    """Class ids as columns of the `classes` that this device has; `classes` for those of others."""
    if axis is None:
        return ids
    here = ids - lax.axis_index(axis) * classes
    return select((here >= 0) & (here < classes), here, classes)
