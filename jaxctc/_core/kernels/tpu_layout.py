"""How a problem lies in the memory of a TPU: labels in lanes, examples in sublanes.

An example takes `fold` rows of P lanes: one row where there are many examples, several where there
are few, or labels for more lanes than fit. Label n stands in row n // (P - 3), lane n % (P - 3).
The last three lanes of a row hold no labels, but what all labels of a frame have in common. So a
problem is three kinds of arrays:

    frames   [T, R, P]   the score of the label; in the last three lanes frame_max, the same again
                         (-inf in padded frames) and the score of the blank
    graph    [R, P]      which lanes hold labels, and which of these a path may skip a blank to
    states   [R, P]      alpha or beta of the label and of a blank beside it: forward the blank
                         before the label, backward the blank after it

with R = B · fold rows. Forward, the last blank stands beside label N, which is none. Backward,
blank 0 stands in the last lane of an example's first row.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from jaxctc._core.classes import LANES
from jaxctc._core.problem import Problem
from jaxctc._core.recursion import Alpha, transitions
from jaxctc._core.semirings import SMALLEST, WIDE, ZERO, Wide

SUBLANES = 8
IN_COMMON = 3
"""Lanes at the end of a row that hold no label."""
MEMORY = 12 << 20
"""Bytes that a kernel may fill, of the 16 MiB that every kind of TPU grants by default."""
MOST_FRAMES = 128
"""In a block: longer ones save nothing more."""
ROWS_KEPT = 30
"""Arrays [8, P] of 32 bits that stay or pass through, whatever the length of a block."""
ROWS_PER_FRAME = 6
"""Those for each frame of a block: scores and occupancies, twice each, and alpha."""


class Graph(NamedTuple):
    """Of a tile or of all rows; int32, 0 or 1, in the kernel's arguments and bool within."""

    is_label: Array
    """[R, P]"""
    can_skip: Array
    """Whether a path may enter the label from the label before it, without a blank."""
    can_skip_back: Array
    """Whether it may enter it from the label after it, on the way back."""


class Layout(NamedTuple):
    """Static."""

    batch: int
    frames: int
    labels: int
    fold: int
    """Rows of an example: a divisor of 8, so that no example lies in two tiles."""
    lanes: int
    """P, a multiple of 128."""
    block: int
    """Frames of a block, a multiple of `normalize_every`."""
    normalize_every: int
    """Frames between two normalizations, which are unrolled."""

    @classmethod
    def of(
        cls, batch: int, frames: int, labels: int, normalize_every: int | None = None
    ) -> "Layout":
        """The widest tiles that the examples fill, in as many rows as the memory asks for."""
        folds = [fold for fold in (1, 2, 4, 8) if fold == 1 or batch * fold <= SUBLANES]
        # No more rows than the labels fill: a row of 128 lanes costs what one of three does.
        most_lanes = _lanes_of(labels, folds[-1])
        fold = next(fold for fold in folds if _lanes_of(labels, fold) <= most_lanes)
        while _lanes_of(labels, fold) > _most_lanes() and fold < SUBLANES:
            fold *= 2
        lanes = _lanes_of(labels, fold)
        every = normalize_every or _normalize_every(lanes)
        fitting = (MEMORY // (4 * SUBLANES * lanes) - ROWS_KEPT) // ROWS_PER_FRAME
        most = max(min(fitting, MOST_FRAMES) // every, 1) * every
        # Blocks of one length, because the frames that fill up the last one cost time, too.
        block = -(-frames // -(-frames // most))
        return cls(batch, frames, labels, fold, lanes, -(-block // every) * every, every)

    @property
    def rows(self) -> int:
        """R, of all examples."""
        return self.batch * self.fold

    @property
    def tile(self) -> int:
        """Rows that a program works on at a time: eight, or all there are."""
        return min(SUBLANES, self.rows)

    @property
    def blocks(self) -> int:
        """Blocks of frames."""
        return -(-self.frames // self.block)

    @property
    def width(self) -> int:
        """Labels of a row."""
        return self.lanes - IN_COMMON


def most_labels() -> int:
    """How many labels of an example fit."""
    return SUBLANES * (_most_lanes() - IN_COMMON) - 1


def _lanes_of(labels: int, fold: int) -> int:
    """For labels and one place more, for the last blank."""
    return -(-(-(-(labels + 1) // fold) + IN_COMMON) // LANES) * LANES


def _normalize_every(lanes: int) -> int:
    return 8 if lanes <= 1024 else 4


def _most_lanes() -> int:
    rows = ROWS_PER_FRAME * _normalize_every(MEMORY) + ROWS_KEPT
    return MEMORY // (4 * SUBLANES * rows) // LANES * LANES


# Into the layout.


def in_lanes(values: Array, layout: Layout, fill: int) -> Array:
    """`[B, N]` in the order of the lanes, `[B, fold · P]`."""
    missing = layout.fold * layout.width - values.shape[1]
    rows = jnp.pad(values, ((0, 0), (0, missing)), constant_values=fill)
    rows = rows.reshape(-1, layout.fold, layout.width)
    rows = jnp.pad(rows, ((0, 0), (0, 0), (0, IN_COMMON)), constant_values=fill)
    return rows.reshape(-1, layout.fold * layout.lanes)


def _lane(layout: Layout) -> Int[Array, "L"]:
    """Of a row, for all lanes of an example, counted from its end: -1 for the last one."""
    places = lax.iota(jnp.int32, layout.fold * layout.lanes)
    return places % layout.lanes - layout.lanes


def columns_of_lanes(problem: Problem, layout: Layout) -> Int[Array, "B L"]:
    """Which column of the scores belongs to a lane; -1 for none."""
    return in_lanes(jnp.where(problem.is_label, problem.columns, -1), layout, -1)


def frames_in_lanes(
    problem: Problem, columns: Int[Array, "B L"], layout: Layout
) -> Float[Array, "T R P"]:
    """What the kernels read of a frame.

    Labels' scores are a product with zeros and ones, which is exact in full precision: the parts
    of eight bits that a TPU multiplies add up to what they were. Infinity times zero would be NaN
    in it, and NaN times zero is, so nothing in a column that no label reads may be either: -inf
    and NaN are a number that is zero in WIDE. Examples that read NaN or +inf are known by then
    (`emissions.Lattice.has_nan`). A lane without a label scores `frame_max`,
    which keeps every mantissa in bounds.
    """
    scores = problem.scores
    if scores.dtype != jnp.bfloat16:
        scores = scores.astype(jnp.float32)
    # What is beyond bfloat16 would be rounded to infinity.
    most = jnp.finfo(jnp.bfloat16).max.astype(scores.dtype)
    finite = jnp.where(jnp.isnan(scores), -most, jnp.clip(scores, -most, most))
    is_read = _is_read(columns, scores.shape[-1]).astype(scores.dtype)
    read = jnp.einsum(
        "btk,bkl->tbl",
        finite,
        is_read,
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    scale, blank, is_frame = (
        jnp.swapaxes(part, 0, 1)[..., None]
        for part in (problem.frame_max, problem.blank_scores, problem.is_frame)
    )
    lane = _lane(layout)[None, None]
    read = jnp.where(columns[None] < 0, scale, read)
    read = jnp.where((lane == -2) & ~is_frame, -jnp.inf, read)
    read = jnp.where(lane == -1, blank, read)
    return read.reshape(layout.frames, layout.rows, layout.lanes)


def graph_in_lanes(problem: Problem, label_loop: bool, layout: Layout) -> Graph:
    """The graphs of all examples."""
    back = transitions(problem, label_loop, backward=True).can_skip
    return Graph(
        *(
            in_lanes(part.astype(jnp.int32), layout, 0).reshape(layout.rows, layout.lanes)
            for part in (problem.is_label, problem.can_skip, back)
        )
    )


def weight_one_beside(label: Int[Array, "B"], layout: Layout) -> Alpha:
    """Weight one in the blank beside one label of each example, zero elsewhere."""
    places = lax.iota(jnp.int32, layout.fold * layout.lanes)[None]
    here = (places == _place(label, layout)[:, None]).reshape(layout.rows, layout.lanes)
    one, zero = jnp.ones_like(here, jnp.float32), jnp.full_like(here, ZERO, jnp.int32)
    return Alpha(Wide(one, jnp.where(here, 0, zero)), Wide(one, zero))


def _place(label: Array, layout: Layout) -> Array:
    """Of a label among the lanes of its example; label -1 stands before blank 0, in no row."""
    place = label // layout.width * layout.lanes + label % layout.width
    return jnp.where(label < 0, layout.lanes - 1, place)


def inverse(total: Wide, layout: Layout) -> Wide:
    """One by the total of each example in all its lanes; zero where that is zero."""
    exponent = jnp.where(total.exponent > SMALLEST, -total.exponent, ZERO)
    rows = (jnp.repeat(part, layout.fold)[:, None] for part in (1 / total.mantissa, exponent))
    return Wide(*(jnp.broadcast_to(part, (layout.rows, layout.lanes)) for part in rows))


# And out of it.


def total_of(last: Alpha, problem: Problem, layout: Layout) -> Wide:
    """Weight of all paths: one transition from the last frame, into the blank after all labels."""

    def at(number: Wide, label: Array) -> Wide:
        place = _place(label, layout)[:, None]
        examples = (part.reshape(layout.batch, -1) for part in number)
        return Wide(*(jnp.take_along_axis(part, place, 1)[:, 0] for part in examples))

    # Without labels, the last of them is sought in the last lane, where none is.
    blank, label = at(last.blank, problem.label_count), at(last.label, problem.label_count - 1)
    return WIDE.normalize(WIDE.plus(blank, label))


def by_label(values: Float[Array, "T R P"], layout: Layout) -> Float[Array, "B T N"]:
    """What lanes hold, in the order of the labels."""
    values = values.reshape(layout.frames, layout.batch, layout.fold, layout.lanes)
    values = values[..., : layout.width].reshape(layout.frames, layout.batch, -1)
    return jnp.swapaxes(values[..., : layout.labels], 0, 1)


def by_column(
    values: Float[Array, "T R P"], columns: Int[Array, "B L"], count: int, layout: Layout
) -> Float[Array, "B T M"]:
    """What lanes hold, added up for each column of the scores."""
    values = values.reshape(layout.frames, layout.batch, -1)
    is_read = _is_read(columns, count).astype(values.dtype)
    return jnp.einsum("tbl,bkl->btk", values, is_read, precision=lax.Precision.HIGHEST)


def _is_read(columns: Int[Array, "B L"], count: int) -> Bool[Array, "B M L"]:
    return lax.iota(jnp.int32, count)[None, :, None] == columns[:, None, :]
