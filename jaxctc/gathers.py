"""Reads the scores of labels out of those of all classes, as each platform does it best.

XLA:CPU is fast where a slice of a gather is a column: one label in several frames. XLA:TPU makes a
loop of such a gather, with a turn for every example and label, and another of every scatter, which
is what the derivative of a gather is. So on a TPU the frames are sliced first and then read row by
row, and the derivative is a product with a matrix of zeros and ones. Which of the two a program
holds is decided when it is lowered; values are the same to the bit.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int


def read_frames(
    scores: Float[Array, "*B T K"],
    first: Int[Array, "D"],
    columns: Int[Array, "*B D N"],
    frames: int,
) -> Float[Array, "*B D F N"]:
    """The scores in some columns, in as many frames from each first one on.

    Frames and columns must exist. Written for one example, so that a sharded batch stays where it
    is.
    """
    one = jnp.vectorize(
        lambda scores, columns: _read(frames, scores, first, columns),
        signature="(t,k),(d,n)->(d,f,n)",
    )
    return one(scores, columns)


# A rule of its own, because JAX would transpose the gather that gives values.
@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _read(frames: int, scores: Array, first: Array, columns: Array) -> Array:
    return lax.platform_dependent(
        scores,
        first,
        columns,
        tpu=functools.partial(_by_row, frames),
        default=functools.partial(_by_column, frames),
    )


@_read.defjvp
def _read_jvp(frames, primals, tangents):
    scores, first, columns = primals
    movement = lax.platform_dependent(
        tangents[0],
        first,
        columns,
        tpu=functools.partial(_by_product, frames),
        default=functools.partial(_by_column, frames),
    )
    return _read(frames, scores, first, columns), movement


def _by_column(frames: int, scores: Array, first: Array, columns: Array) -> Array:
    """XLA:CPU works out anew for every slice where it starts: the fewer slices, the better."""
    starts = jnp.stack([jnp.broadcast_to(first[:, None], columns.shape), columns], axis=-1)
    column = lax.GatherDimensionNumbers((1,), (1,), (0, 1))
    return lax.gather(scores, starts, column, (frames, 1), mode="promise_in_bounds")


def _by_row(frames: int, scores: Array, first: Array, columns: Array) -> Array:
    if frames == 1:
        return _by_column(frames, scores, first, columns)  # no slice is longer than a number
    return jnp.stack(
        [
            _rows(frames, scores, start).at[:, places].get(mode="promise_in_bounds")
            for start, places in zip(first, columns, strict=True)
        ]
    )


def _by_product(frames: int, scores: Array, first: Array, columns: Array) -> Array:
    """For finite scores alone: infinity times 0 would be NaN."""
    classes = jnp.arange(scores.shape[1], dtype=columns.dtype)
    return jnp.stack(
        [
            jnp.matmul(
                _rows(frames, scores, start),
                (classes[:, None] == places[None]).astype(scores.dtype),
                precision=lax.Precision.HIGHEST,
            )
            for start, places in zip(first, columns, strict=True)
        ]
    )


def _rows(frames: int, scores: Array, start: Array) -> Array:
    return lax.dynamic_slice_in_dim(scores, start, frames)
