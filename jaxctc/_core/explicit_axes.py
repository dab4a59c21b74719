"""Functions of examples, for arrays that are spread over explicit axes of a mesh.

There JAX wants the sharding of every step to be given, and of a recursion over frames it could
hardly be. So the axes are automatic within a function, and what comes out is sharded again: as the
examples are, which know nothing of each other.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

Arguments = ParamSpec("Arguments")
Results = TypeVar("Results")
AXES_OF_AN_EXAMPLE = {
    "logits": 2,
    "log_probs": 2,
    "hidden": 2,
    "logit_paddings": 1,
    "labels": 1,  # or 2, with alternatives: then they are not the first of these
    "label_paddings": 1,
    "frame_labels": 1,
    "alignment": 1,
    "estimated": 0,  # with classes along `axis`: those before it
    "target": 0,
    "hyp": 1,
    "hyp_paddings": 1,
    "ref": 1,
    "ref_paddings": 1,
}
"""Arguments that begin with the batch axes, and how many axes they have after those."""


def over_explicit_axes(function: Callable[Arguments, Results]) -> Callable[Arguments, Results]:
    """`function`, also for arrays on a mesh of explicit axes.

    All of its results have to begin with the batch axes of the first argument that
    `AXES_OF_AN_EXAMPLE` knows.
    """
    return over_explicit_axes_to(lambda batch: batch)(function)


def over_explicit_axes_to(
    results: Callable[[PartitionSpec], Any],
) -> Callable[[Callable[Arguments, Results]], Callable[Arguments, Results]]:
    """`over_explicit_axes` for results that do not begin with the batch axes.

    `results` is told how these are sharded and returns how each result is, or all of them.
    """

    def decorate(function: Callable[Arguments, Results]) -> Callable[Arguments, Results]:
        signature = inspect.signature(function)
        first = next(name for name in signature.parameters if name in AXES_OF_AN_EXAMPLE)

        @functools.wraps(function)
        def spread(*arguments: Arguments.args, **options: Arguments.kwargs) -> Results:
            if not any(map(_on_explicit_axes, (*arguments, *options.values()))):
                return function(*arguments, **options)
            given = signature.bind(*arguments, **options).arguments
            arrays = {name: value for name, value in given.items() if _arrays(value)}
            others = {name: value for name, value in given.items() if name not in arrays}
            batch_axes = _batch_axes(first, signature.parameters, given)
            mesh, batch = _place_of_examples(batch_axes, arrays)
            by_name: Callable[..., Results] = function
            automatic: Any = jax.sharding.auto_axes(
                lambda arrays: by_name(**arrays, **others),
                axes=mesh.explicit_axes,
                out_sharding=jax.tree.map(functools.partial(NamedSharding, mesh), results(batch)),
            )
            return automatic(arrays)

        return spread

    return decorate


def batch_second(batch: PartitionSpec) -> PartitionSpec:
    """Of results with one axis before those of the batch."""
    return PartitionSpec(None, *batch)


def everywhere(batch: PartitionSpec) -> PartitionSpec:
    """Of results about the batch as a whole, which every device has."""
    del batch
    return PartitionSpec()


def _arrays(value: object) -> list[Array]:
    """An array, or those of a named tuple of arrays and None; nothing of anything else."""
    leaves = [leaf for leaf in value if leaf is not None] if isinstance(value, tuple) else [value]
    arrays = [leaf for leaf in leaves if isinstance(leaf, Array)]
    return arrays if len(arrays) == len(leaves) else []


def _on_explicit_axes(value: object) -> bool:
    """Whether it lies on a mesh that has some, spread over them or not."""
    if isinstance(value, Array):
        return bool(jax.typeof(value).sharding.mesh.explicit_axes)
    return isinstance(value, tuple) and any(map(_on_explicit_axes, _arrays(value)))


def _batch_axes(name: str, parameters: Mapping[str, Any], given: Mapping[str, Any]) -> int:
    """How many axes of an argument come first; of one with classes along `axis`, those before."""
    rank = np.ndim((_arrays(given[name]) or [given[name]])[0])
    if "axis" in parameters:
        axis = given.get("axis", parameters["axis"].default)
        return axis % rank if rank and isinstance(axis, int) else 0  # or `function` refuses it
    return rank - AXES_OF_AN_EXAMPLE[name]


def _place_of_examples(batch_axes: int, arrays: dict[str, Any]) -> tuple[Any, PartitionSpec]:
    """The mesh, and how it shards the batch: as in the first argument where it is sharded."""
    on_mesh = {
        name: _arrays(value)[0] for name, value in arrays.items() if _on_explicit_axes(value)
    }
    specs = [
        jax.typeof(array).sharding.spec[:batch_axes]
        for name, array in on_mesh.items()
        if name in AXES_OF_AN_EXAMPLE
    ]
    spec = next((spec for spec in specs if any(spec)), ())
    return _mesh_of(next(iter(on_mesh.values()))), PartitionSpec(*spec)


def _mesh_of(array: Array) -> Any:
    """With its devices where they are known: a result that no argument has a say in goes there."""
    known: Any = jax.typeof(array) if isinstance(array, Tracer) else array
    return known.sharding.mesh
