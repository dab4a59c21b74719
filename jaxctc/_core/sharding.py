"""What the devices of a mesh have to tell each other, and what `jax.shard_map` has to be told.

Examples know nothing of each other, so a batch may lie on as many devices as there are, which
exchange nothing then. Classes are summed over: where they lie on several devices, along an axis of
the mesh (`axis`, None for classes in one place), the functions below are all that is exchanged.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax import Array, lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from jaxctc._core.lean import select

Arguments = ParamSpec("Arguments")
Results = TypeVar("Results")
AXES_OF_AN_EXAMPLE = {
    "logits": 2,
    "hidden": 2,
    "logit_paddings": 1,
    "labels": 1,  # or 2, with alternatives: then they are not the first argument
    "label_paddings": 1,
}
"""Arguments that begin with the batch axes, and how many axes they have after those."""


def over_explicit_axes(function: Callable[Arguments, Results]) -> Callable[Arguments, Results]:
    """`function`, also for arrays on a mesh of explicit axes.

    There JAX wants the sharding of every step to be given. So the axes are automatic within
    `function`, and its results are sharded as the examples are. All of them have to begin with the
    batch axes of the first argument.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def spread(*arguments: Arguments.args, **options: Arguments.kwargs) -> Results:
        if not any(map(_on_explicit_axes, (*arguments, *options.values()))):
            return function(*arguments, **options)
        given = signature.bind(*arguments, **options).arguments
        arrays = {name: value for name, value in given.items() if isinstance(value, Array)}
        others = {name: value for name, value in given.items() if name not in arrays}
        first = next(iter(signature.parameters))
        place = _place_of_examples(np.ndim(given[first]) - AXES_OF_AN_EXAMPLE[first], arrays)
        by_name: Callable[..., Results] = function
        automatic: Any = jax.sharding.auto_axes(
            lambda arrays: by_name(**arrays, **others),
            axes=place.mesh.explicit_axes,
            out_sharding=place,
        )
        return automatic(arrays)

    return spread


def _on_explicit_axes(value: object) -> bool:
    """Whether it lies on a mesh that has some, spread over them or not."""
    return isinstance(value, Array) and bool(jax.typeof(value).sharding.mesh.explicit_axes)


def _place_of_examples(batch_axes: int, arrays: dict[str, Array]) -> NamedSharding:
    """How the batch axes are sharded: as those of the first argument that has them sharded."""
    places = {
        name: jax.typeof(value).sharding
        for name, value in arrays.items()
        if _on_explicit_axes(value)
    }
    specs = [
        place.spec[:batch_axes] for name, place in places.items() if name in AXES_OF_AN_EXAMPLE
    ]
    spec = next((spec for spec in specs if any(spec)), ())
    return NamedSharding(next(iter(places.values())).mesh, PartitionSpec(*spec))


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
