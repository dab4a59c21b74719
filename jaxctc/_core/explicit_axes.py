"""Functions of examples, for arrays that are spread over explicit axes of a mesh.

There JAX wants to be told the sharding of every step, which a recursion over frames could hardly
do. So the axes are automatic inside a function, and its results are sharded again as the examples
are.
"""

import functools
import inspect
import operator
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
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
    "estimated": 0,  # but for the axis of the classes, where there is one: `axis`
    "target": 0,
    "counts": 0,
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
            arrays = {name: _as_arrays(value) for name, value in given.items() if _arrays(value)}
            others = {name: value for name, value in given.items() if name not in arrays}
            rank = _rank(given[first])
            axis = _axis(given.get("axis", -1), rank) if "axis" in signature.parameters else None
            mesh, batch = _place_of_examples(rank, AXES_OF_AN_EXAMPLE[first], axis, arrays)
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
    """An array, or those in a named tuple; none in anything else."""
    leaves = value if isinstance(value, tuple) else (value,)
    return [leaf for leaf in leaves if isinstance(leaf, Array)]


def _as_arrays(value: Any) -> Any:
    """With the arrays of NumPy in a named tuple, too."""
    return jax.tree.map(jnp.asarray, value) if isinstance(value, tuple) else value


def _on_explicit_axes(value: object) -> bool:
    """Whether it lies on a mesh that has some, spread over them or not."""
    if isinstance(value, Array):
        return bool(jax.typeof(value).sharding.mesh.explicit_axes)
    return isinstance(value, tuple) and any(map(_on_explicit_axes, _arrays(value)))


def _rank(value: Any) -> int:
    """Of an array, or of the first one of a named tuple; 0 of what is none, which is refused."""
    first = value[0] if isinstance(value, tuple) and value else value
    try:
        return np.ndim(first)
    except ValueError:
        return 0


def _axis(axis: Any, rank: int) -> int | None:
    """Where the classes are, counted from the first axis; None for what is refused."""
    try:
        return range(rank)[operator.index(axis)]
    except (IndexError, TypeError):
        return None


def _place_of_examples(
    rank: int, others: int, axis: int | None, arrays: dict[str, Any]
) -> tuple[Any, PartitionSpec]:
    """The mesh, and how it shards the batch: as the first argument that has it sharded.

    Of the `rank` axes of the first argument all are the batch's but `others` at their end, and that
    of the classes.
    """

    def batch_of(array: Array) -> tuple[Any, ...]:
        spec = tuple(jax.typeof(array).sharding.spec)
        spec += (None,) * (array.ndim - len(spec))
        if axis is not None and array.ndim == rank:
            spec = spec[:axis] + spec[axis + 1 :]
        return spec[: rank - others]

    on_mesh = {
        name: next(filter(_on_explicit_axes, _arrays(value)))
        for name, value in arrays.items()
        if _on_explicit_axes(value)
    }
    found = [batch_of(array) for name, array in on_mesh.items() if name in AXES_OF_AN_EXAMPLE]
    spec = next(filter(any, found), ())
    return _mesh_of(next(iter(on_mesh.values()))), PartitionSpec(*spec)


def _mesh_of(array: Array) -> Any:
    """Of an eager call with its devices: a result that depends on no argument has to go there."""
    known: Any = jax.typeof(array) if isinstance(array, Tracer) else array
    return known.sharding.mesh
