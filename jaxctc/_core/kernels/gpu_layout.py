"""How a problem lies before the threads of a GPU: labels in columns, two sides for each example.

A *side* is one pass over one example, from an end of its frames to the middle: alpha from the first
frame on, or beta from the last one back. There are P = 2 · B sides, those of alpha first.

A side belongs to 128 threads, of which each has V places in a row: thread i those from i · V on.
Label n stands in place n + 1, and beside it a blank: for alpha the one before it, for beta the one
after it. Place 0 is for the blank that beta has before all labels, a place after the labels for the
one that alpha has after them. Then both passes take the same step: what a path enters a blank from
stands in the next place, on one side or the other, and what it enters the label from, too.

Arrays hold one *column* after the other, [V, 128], where column v has place i · V + v of every
thread i: neighbouring threads read neighbouring words, and what is next to a place stands in
another column of the same thread, but for one.

    scores, history, occupancies   [B, T', V, 128]   of a label in a frame
    states                         [P, V, 128]       of a label, and of the blank beside it
    frame_max, blank               [B, T']           of a frame

T' is the number of frames, filled up with padded ones to an even number of blocks.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int, Shaped

from jaxctc._core.lean import broadcast, select
from jaxctc._core.problem import Problem
from jaxctc._core.recursion import Alpha, sum_of_products, transition, transitions
from jaxctc._core.semirings import SMALLEST, WIDE, ZERO, Wide

THREADS = 128
MOST_IN_FLIGHT = 8
"""Scores for each thread in a block: they are on their way to registers while the block before it
is computed."""


class Layout(NamedTuple):
    """Static."""

    batch: int
    frames: int
    labels: int
    columns: int
    """V, the places of each thread."""
    block: int
    """Frames of a block, which are unrolled: an even number."""

    @classmethod
    def of(cls, batch: int, frames: int, labels: int, block: int | None = None) -> "Layout":
        """The fewest columns; shorter blocks where there are many."""
        columns = -(-(labels + 2) // THREADS)
        fitting = next(size for size in (8, 4, 2) if size == 2 or size * columns <= MOST_IN_FLIGHT)
        return cls(batch, frames, labels, columns, block or fitting)

    @property
    def places(self) -> int:
        """For labels, in all threads."""
        return self.columns * THREADS

    @property
    def blocks(self) -> int:
        """Of a side."""
        return -(-self.frames // (2 * self.block))

    @property
    def filled(self) -> int:
        """T'."""
        return 2 * self.blocks * self.block


class Sides(NamedTuple):
    """What the kernels read."""

    scores: Float[Array, "B T' V 128"]
    """Of the labels; -inf for what is no label."""
    frame_max: Float[Array, "B T'"]
    blank: Wide
    """[B, T']. As in `mirrored.Chunk`, a mantissa below 0 marks a padded frame."""
    can_skip: Int[Array, "P V 128"]
    """1 where a path may enter the label from the next one, without a blank; else 0."""
    start: Int[Array, "P"]
    """The place of the blank that a side starts from."""
    first: Int[Array, "P"]
    """The first block of a side that holds a frame which is not padded."""
    end: Int[Array, "P"]
    """One more than the last such block."""


def sides_of(problem: Problem, label_loop: bool, layout: Layout) -> Sides:
    """Both sides of every example."""
    frame_max = _fill_up(problem.frame_max, 0.0, layout)
    is_frame = _fill_up(problem.is_frame, False, layout)
    blank = WIDE.encode(_fill_up(problem.blank_scores, 0.0, layout), frame_max)
    blank = blank._replace(mantissa=select(is_frame, blank.mantissa, -1))
    can_skip = [transitions(problem, label_loop, backward=way).can_skip for way in (False, True)]
    count = problem.label_count
    start = jnp.concatenate([lax.full_like(count, 1), count])
    scores = _label_scores(problem, layout)
    can_skip = in_columns(jnp.concatenate(can_skip).astype(jnp.int32), layout)
    return Sides(scores, frame_max, blank, can_skip, start, *_blocks_in_use(is_frame, layout))


def _blocks_in_use(is_frame: Bool[Array, "B T'"], layout: Layout) -> tuple[Array, Array]:
    """The first block of each side and the end; none where all frames are padded."""
    halves = is_frame.reshape(layout.batch, 2, layout.blocks, layout.block).any(axis=-1)
    in_use = jnp.concatenate([halves[:, 0], halves[:, 1, ::-1]])
    block = lax.broadcasted_iota(jnp.int32, in_use.shape, 1)
    first = jnp.min(select(in_use, block, layout.blocks), axis=1)
    return first, jnp.max(select(in_use, block + 1, 0), axis=1)


def _fill_up(rows: Shaped[Array, "B T"], fill: float, layout: Layout) -> Shaped[Array, "B T'"]:
    missing = layout.filled - layout.frames
    return lax.pad(rows, jnp.asarray(fill, rows.dtype), [(0, 0, 0), (0, missing, 0)])


def _label_scores(problem: Problem, layout: Layout) -> Float[Array, "B T' V 128"]:
    """Gathered in the order of the threads: nothing is transposed."""
    columns, is_label = (
        in_columns(part, layout)[:, None] for part in (problem.columns, problem.is_label)
    )
    shape = layout.batch, layout.filled, layout.columns, THREADS
    example, frame = (lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
    index = example, jnp.minimum(frame, layout.frames - 1), broadcast(columns, shape)
    read = problem.scores.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)
    return select(is_label, read.astype(jnp.float32), -jnp.inf)


def total_of(last: Alpha, problem: Problem, label_loop: bool, layout: Layout) -> Wide:
    """Weight of all paths of each example, by the last states of both sides.

    Where alpha and beta meet, as in `recursion.total`.
    """

    def side(rows: slice, first_blank: int) -> Alpha:
        blank, label = (jax.tree.map(lambda part: part[rows], number) for number in last)
        return Alpha(
            _in_order(blank, first_blank, layout.labels + 1), _in_order(label, 1, layout.labels)
        )

    alpha, beta = side(slice(layout.batch), 1), side(slice(layout.batch, None), 0)
    arrived = transition(alpha, transitions(problem, label_loop), WIDE)
    return WIDE.normalize(sum_of_products(arrived, beta, WIDE))


def inverse(total: Wide) -> Wide:
    """One by the total of each example, `[B]`; zero where that is zero."""
    exponent = select(total.exponent > SMALLEST, -total.exponent, ZERO)
    return Wide(1 / total.mantissa, exponent)


def by_label(
    values: Float[Array, "B T' V 128"], total: Wide, problem: Problem, layout: Layout
) -> Float[Array, "B T N"]:
    """In the order of the labels; 0 in padded frames, and without any path."""
    found = _in_order(values, 1, layout.labels)[:, : layout.frames]
    counts = problem.is_frame & (total.exponent > SMALLEST)[:, None]
    return select(counts[..., None], found, 0)


# Labels in columns.


def in_columns(part: Shaped[Array, "R N"], layout: Layout) -> Shaped[Array, "R V 128"]:
    """Filled up with zeros, False; place i · V + v becomes [v, i]."""
    missing = layout.places - 1 - part.shape[-1]
    part = lax.pad(part, jnp.zeros((), part.dtype), [(0, 0, 0), (1, missing, 0)])
    return jnp.swapaxes(part.reshape(-1, THREADS, layout.columns), -1, -2)


def _in_order(number: Any, first: int, count: int) -> Any:
    """So many places from the first one on."""

    def one(part: Array) -> Array:
        places = jnp.swapaxes(part, -1, -2).reshape(*part.shape[:-2], -1)
        return lax.slice_in_dim(places, first, first + count, axis=-1)

    return jax.tree.map(one, number)
