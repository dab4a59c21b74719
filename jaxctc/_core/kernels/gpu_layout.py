"""How a problem lies before the threads of a GPU: both halves of the frames, labels in columns.

As in `mirrored`, the graph stands beside its mirror image, whose frames and labels are reversed: a
step forward through the image is one backward through the graph. A *side* is one of the two, for
one example: the frames from its start to the middle, of which the middle one of an odd number
counts for the graph alone. There are P = 2 · B sides, those of the graphs first.

A side belongs to 128 threads. Thread i has the V labels from i · V on, and beside each the blank
before it. Arrays hold one *column* after the other, [V, 128], where column v has label i · V + v of
every thread i: so neighbouring threads read neighbouring words, and the label before another is in
another column of the same thread, but for those of the first column. There is at least one place
more than labels, for the last blank.

    scores, history, occupancies   [P, H, V, 128]   of a label in a frame
    states                         [P, V, 128]      of a label, and of the blank before it
    frame_max, blank               [P, H]           of a frame
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int, Shaped

from jaxctc._core.lean import reverse, select
from jaxctc._core.problem import Problem
from jaxctc._core.recursion import (
    Alpha,
    start_blank,
    sum_of_products,
    transition,
    transitions,
    weight_one_in,
)
from jaxctc._core.semirings import SMALLEST, WIDE, ZERO, Wide

THREADS = 128
MOST_FRAMES = 8
"""In a block: they are unrolled, and on their way to the registers while the block before them is
computed."""


class Layout(NamedTuple):
    """Static."""

    batch: int
    frames: int
    labels: int
    columns: int
    """V, for each thread."""
    block: int
    """Frames of a block: an even number."""

    @property
    def places(self) -> int:
        """For labels, in all threads."""
        return self.columns * THREADS

    @property
    def half(self) -> int:
        """H, the frames of a side, filled up to whole blocks."""
        return -(-self.frames // (2 * self.block)) * self.block


def layout_of(problem: Problem, block: int | None = None) -> Layout:
    """The fewest columns; shorter blocks where there are many."""
    (batch, frames), labels = problem.is_frame.shape, problem.is_label.shape[-1]
    columns = -(-(labels + 1) // THREADS)
    # A power of two, and so even: two frames in a row use different places of the shared memory.
    fitting = next(size for size in (8, 4, 2) if size * columns <= MOST_FRAMES or size == 2)
    return Layout(batch, frames, labels, columns, block or fitting)


class Sides(NamedTuple):
    """What the kernels read."""

    scores: Float[Array, "P H V 128"]
    """Of the labels; -inf for what is no label."""
    frame_max: Float[Array, "P H"]
    blank: Wide
    """[P, H]. As in `mirrored.Chunk`, a mantissa below 0 marks a padded frame."""
    can_skip: Int[Array, "P V 128"]
    """1 where a path may enter the label from the one before it, without a blank; else 0."""
    blocks: Int[Array, "P"]
    """Up to the last one with a frame that is not padded."""


def sides_of(problem: Problem, label_loop: bool, layout: Layout) -> Sides:
    """Both sides of every example."""
    frames, is_frame = _frames(problem, layout)
    frame_max = _at(problem.frame_max, frames)
    blank = WIDE.encode(_at(problem.blank_scores, frames), frame_max)
    blank = blank._replace(mantissa=select(is_frame, blank.mantissa, -1))
    forward, backward = (transitions(problem, label_loop, backward=way) for way in (False, True))
    can_skip = _mirrored(forward.can_skip, backward.can_skip).astype(jnp.int32)
    block = lax.broadcasted_iota(jnp.int32, is_frame.shape, 2) // layout.block
    blocks = jnp.max(select(is_frame, block + 1, 0), axis=-1)
    frame_max, blank, blocks = jax.tree.map(_as_programs, (frame_max, blank, blocks))
    scores = _label_scores(problem, frames, layout)
    return Sides(scores, frame_max, blank, in_columns(can_skip, layout, 0), blocks)


def _frames(problem: Problem, layout: Layout) -> tuple[Array, Array]:
    """Which frames a side goes through, `[2, H]`, and which of them count, `[2, B, H]`."""
    step = lax.iota(jnp.int32, layout.half)
    last = layout.frames - 1
    frames = jnp.clip(jnp.stack([step, last - step]), 0, last)
    counts = jnp.stack([2 * step <= last, 2 * step < last])
    return frames, _at(problem.is_frame, frames) & counts[:, None]


def _at(rows: Shaped[Array, "B T"], frames: Int[Array, "2 H"]) -> Shaped[Array, "2 B H"]:
    found = rows.at[:, frames].get(mode="promise_in_bounds", wrap_negative_indices=False)
    return jnp.moveaxis(found, 1, 0)


def _label_scores(
    problem: Problem, frames: Int[Array, "2 H"], layout: Layout
) -> Float[Array, "P H V 128"]:
    """Gathered where they lie, in the order of the threads: nothing is transposed."""
    shape = 2, layout.batch, 1, layout.columns, THREADS
    columns, is_label = (
        in_columns(_mirrored(part, part), layout, 0).reshape(shape)
        for part in (problem.columns, problem.is_label)
    )
    example = lax.broadcasted_iota(jnp.int32, (1, layout.batch, 1, 1, 1), 1)
    index = example, frames[:, None, :, None, None], columns
    read = problem.scores.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)
    return _as_programs(select(is_label, read.astype(jnp.float32), -jnp.inf))


def starts(problem: Problem, layout: Layout) -> Alpha:
    """Weight one in the blank that a side starts from, zero elsewhere."""
    blanks = _mirrored(*(start_blank(problem, backward=way) for way in (False, True)))
    return states_in_columns(weight_one_in(blanks, problem, WIDE), layout)


def meet(last: Alpha, problem: Problem, label_loop: bool, layout: Layout) -> tuple[Wide, Alpha]:
    """The total over all paths of each example, and for each side the states of the other one.

    By the last states of all sides, as in `recursion.total`.
    """
    blank, label = (
        jax.tree.map(lambda part, states=states: _in_order(part, states, layout), number)
        for number, states in zip(last, (layout.labels + 1, layout.labels), strict=True)
    )
    met = Alpha(blank, label)
    others = jax.tree.map(lambda part: reverse(part, 0, -1), met)
    alpha, beta = (jax.tree.map(lambda part: part[0], states) for states in (met, others))
    arrived = transition(alpha, transitions(problem, label_loop), WIDE)
    total = WIDE.normalize(sum_of_products(arrived, beta, WIDE))
    return total, states_in_columns(others, layout)


def inverse(total: Wide) -> Wide:
    """One by the total of a side's example, `[P]`; zero where that is zero."""
    exponent = select(total.exponent > SMALLEST, -total.exponent, ZERO)
    return Wide(*(jnp.concatenate([part, part]) for part in (1 / total.mantissa, exponent)))


def by_label(
    values: Float[Array, "P H V 128"], total: Wide, problem: Problem, layout: Layout
) -> Float[Array, "B T N"]:
    """Of both sides, in the order of the frames; 0 in padded frames, and without any path."""
    graph, image = _in_order(values, layout.labels, layout)
    later = layout.frames // 2
    found = [graph[:, : layout.frames - later], reverse(image[:, :later], -1, -2)]
    counts = problem.is_frame & (total.exponent > SMALLEST)[:, None]
    return select(counts[..., None], jnp.concatenate(found, axis=1), 0)


# The order of the columns.


def _mirrored(part: Array, image: Array) -> Array:
    return jnp.stack([part, reverse(image, -1)])


def _as_programs(part: Shaped[Array, "2 B ..."]) -> Shaped[Array, "P ..."]:
    return part.reshape(-1, *part.shape[2:])


def states_in_columns(alpha: Alpha, layout: Layout) -> Alpha:
    """Of `[2, B, N + 1]` and `[2, B, N]`, zero where nothing stands."""
    return jax.tree.map(lambda part, zero: in_columns(part, layout, zero), alpha, Alpha(WIDE.zero, WIDE.zero))


def in_columns(
    part: Shaped[Array, "2 B N"], layout: Layout, fill: float
) -> Shaped[Array, "P V 128"]:
    """Filled up; label i · V + v becomes [v, i]."""
    missing = layout.places - part.shape[-1]
    part = lax.pad(part, jnp.asarray(fill, part.dtype), [(0, 0, 0), (0, 0, 0), (0, missing, 0)])
    return jnp.swapaxes(part.reshape(-1, THREADS, layout.columns), -1, -2)


def _in_order(
    part: Shaped[Array, "P *H V 128"], states: int, layout: Layout
) -> Shaped[Array, "2 B *H states"]:
    """The other way, without what was filled up."""
    part = jnp.swapaxes(part, -1, -2).reshape(2, layout.batch, *part.shape[1:-2], -1)
    return part[..., :states]
