"""From classes to labels and back: reads scores of labels, and sums what labels have by class.

XLA:CPU is fast where a slice of a gather is a column: one label in several frames. XLA:TPU makes a
loop of such a gather, with a turn for every example and label, and another of every scatter, which
is what the derivative of a gather is. So on a TPU the frames are sliced first and then read row by
row, and the derivative is a product with a matrix of zeros and ones. Which of the two a program
holds is decided when it is lowered; values are the same to the bit.

Values of labels become values of classes by such a product, too, in full precision, and not by a
scatter, whose order of adding is not the same on every run of every device.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

LANES = 128
"""Numbers that a TPU computes at once along the minor-most axis."""


def read_frames(
    scores: Float[Array, "*B T K"],
    first: Sequence[Int[Array, ""]],
    columns: Int[Array, "*B D N"],
    count: int,
) -> Float[Array, "*B D F N"]:
    """The scores in some columns, in `count` frames from each of D first ones on.

    Frames and columns must exist. Written for one example, so that a sharded batch stays where it
    is.
    """
    one = jnp.vectorize(
        lambda scores, columns: _read(count, scores, first, columns),
        signature="(t,k),(d,n)->(d,f,n)",
    )
    return one(scores, columns)


# A rule of its own, because JAX would transpose the gather that gives values.
@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _read(count: int, scores: Array, first: Sequence[Array], columns: Array) -> Array:
    return lax.platform_dependent(
        scores,
        first,
        columns,
        tpu=functools.partial(_by_row, count),
        default=functools.partial(_by_column, count),
    )


@_read.defjvp
def _read_jvp(count, primals, tangents):
    scores, first, columns = primals
    movement = lax.platform_dependent(
        tangents[0],
        first,
        columns,
        tpu=functools.partial(_by_product, count),
        default=functools.partial(_by_column, count),
    )
    return _read(count, scores, first, columns), movement


def _by_column(count: int, scores: Array, first: Sequence[Array], columns: Array) -> Array:
    """XLA:CPU works out anew for every slice where it starts: the fewer slices, the better."""
    starts = jnp.broadcast_to(jnp.stack(list(first))[:, None], columns.shape)
    starts = jnp.stack([starts, columns], axis=-1)
    column = lax.GatherDimensionNumbers((1,), (1,), (0, 1))
    return lax.gather(scores, starts, column, (count, 1), mode="promise_in_bounds")


def _by_row(count: int, scores: Array, first: Sequence[Array], columns: Array) -> Array:
    if count == 1:
        return _by_column(count, scores, first, columns)  # no slice is longer than a number
    return jnp.stack(
        [
            _rows(count, scores, start)
            .at[:, places]
            .get(mode="promise_in_bounds", wrap_negative_indices=False)
            for start, places in zip(first, columns, strict=True)
        ]
    )


def _by_product(count: int, scores: Array, first: Sequence[Array], columns: Array) -> Array:
    """For finite scores alone: infinity times 0 would be NaN."""
    classes = jnp.arange(scores.shape[1], dtype=columns.dtype)
    return jnp.stack(
        [
            jnp.matmul(
                _rows(count, scores, start),
                (classes[:, None] == places[None]).astype(scores.dtype),
                precision=lax.Precision.HIGHEST,
            )
            for start, places in zip(first, columns, strict=True)
        ]
    )


def _rows(count: int, scores: Array, start: Array) -> Array:
    return lax.dynamic_slice_in_dim(scores, start, count, allow_negative_indices=False)


def classes_innermost(scores: Float[Array, "*B T K"]) -> Float[Array, "*B T K"]:
    """The same numbers, for a TPU flattened behind a barrier, so that XLA keeps their order.

    It would lay out all that is computed from them for priors and wildcards with the examples
    innermost: 32 examples in 128 lanes are four times the memory, and the time.
    """
    if scores.shape[-1] < LANES:
        return scores

    def flattened(scores: Array) -> Array:
        return lax.optimization_barrier(scores.ravel()).reshape(scores.shape)

    return lax.platform_dependent(scores, tpu=flattened, default=lambda scores: scores)


@functools.partial(jnp.vectorize, signature="(t,k),(n)->(t,n)")
def read_columns(scores: Array, columns: Array) -> Array:
    """The scores in some columns, in all frames; the last column for those that do not exist."""
    return jnp.take(scores, columns, axis=1, mode="clip")


def sum_by_class(
    values: Float[Array, "*B T N"], labels: Int[Array, "*B N"], classes: int
) -> Float[Array, "*B T K"]:
    """Adds up what belongs to labels of the same class; labels that are no class are left out.

    With more classes than labels, labels of one class are merged in the place of the first one, and
    every class looks up its place. A class without a label finds a column of zeros. That column
    comes out of the product because XLA:CPU vectorises nothing that it computes along with a
    concatenation.
    """
    if classes <= labels.shape[-1]:
        ids = jnp.expand_dims(jnp.arange(classes, dtype=jnp.int32), range(labels.ndim))
        return _product(values, labels[..., None] == ids)
    none = jnp.full_like(labels, -1, shape=(*labels.shape[:-1], 1, 1))
    ids = jnp.concatenate([labels[..., None, :], none], axis=-1)
    is_same = (labels[..., None] == ids) & (labels[..., None] >= 0)
    return _look_up(_product(values, is_same), labels, classes)


def _product(values: Array, matrix: Bool[Array, "*B N M"]) -> Array:
    return jnp.matmul(values, matrix.astype(values.dtype), precision=lax.Precision.HIGHEST)


@functools.partial(jnp.vectorize, signature="(t,m),(n)->(t,k)", excluded={2})
def _look_up(merged, labels, classes):
    nowhere = labels.shape[0]
    column, order = jnp.full(classes, nowhere, jnp.int32), jnp.arange(nowhere, dtype=jnp.int32)
    column = column.at[labels].min(order, mode="drop", wrap_negative_indices=False)
    return merged.at[:, column].get(mode="promise_in_bounds", wrap_negative_indices=False)
