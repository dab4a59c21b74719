"""What the devices of a mesh have to tell each other, and what `jax.shard_map` has to be told.

Examples know nothing of each other, so a batch may lie on as many devices as there are, without a
word between them. Classes are summed over: where they lie on several devices, along an axis of the
mesh (`axis`, None for classes in one place), the functions below are all that is exchanged.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int


def varying_like(values: Any, *others: Array) -> Any:
    """The same arrays, varying, as `jax.shard_map` sees it, over all axes that others vary over.

    What a scan carries has to do so from the start. A select between equals, which XLA removes.
    """
    never = jnp.zeros((), bool)
    for other in others:
        never |= jnp.zeros_like(other, bool, shape=())
    return jax.tree.map(lambda value: jnp.where(never, value, value), values)


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
    return jnp.where((here >= 0) & (here < classes), here, jnp.full_like(here, classes))
