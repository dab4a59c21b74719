"""The frames of either half of a lattice in blocks, and the tables in which blocks wait.

Backward is forward through the mirror image of a lattice, so one step through the two, side by
side, goes both ways: `pair_of`. What belongs to a block is a pair, too: of the lattice, frames from
the first one on, and of its image, frames from the last one on. In a table `[*B, R, M]` rows are in
the order of the frames. The halves may overlap in the middle, by what the blocks have more than
there are frames: there a frame counts for the half that it is nearer to the start of, and for the
other it is a padded one, and a table has a row for each.

Emissions are computed a block at a time, which keeps them in the cache and several cores busy, as
one frame would not; it takes a block for a number to need tidying.

What lies innermost in an array is what processors compute in vectors: the labels or, of many
examples with few labels, the examples (`jaxctc.steps.Axes`, `axes_of`).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from jaxctc.lattice import Lattice, frame_scores
from jaxctc.semirings import UNTIDY, Semiring
from jaxctc.steps import Axes, Frame, frames_at, passes, with_a_frame

FEW = 24
"""Labels that are too few to be computed in vectors."""
VECTOR = 8
"""Numbers that XLA:CPU computes at once."""


def pair_of(lattice: Lattice) -> Lattice:
    """A lattice beside itself with its labels in reverse: what belongs to labels is stacked.

    A step forward through the image is one backward through the lattice. Frames are neither copied
    nor reversed; whoever asks for some says which for each.
    """
    lattice = _in_whole_vectors(with_a_frame(lattice))
    forward, backward = passes(lattice)
    pair = _with_labels(lattice, lambda part: _beside(part, part))
    return pair._replace(can_skip=_beside(forward.can_skip, backward.can_skip))


def axes_of(lattice: Lattice) -> Axes:
    """Whether its examples or its labels lie in the lanes."""
    batch, labels = lattice.label_count.shape, lattice.can_skip.shape[-1]
    return Axes(examples_last=len(batch) > 0 and batch[-1] >= 2 * VECTOR and 0 < labels <= FEW)


def _in_whole_vectors(lattice: Lattice) -> Lattice:
    """Labels that lie in the lanes, filled up with padding.

    XLA:CPU computes rows of them in vectors, but one by one what is left over at the end of each
    row, and everything in rows of less than sixteen.
    """
    labels = lattice.can_skip.shape[-1]
    if labels == 0 or axes_of(lattice).examples_last:
        return lattice
    more = max(2 * VECTOR, -(-labels // VECTOR) * VECTOR) - labels

    def filled(part: Array) -> Array:
        return jnp.concatenate([part, jnp.zeros_like(part, shape=(*part.shape[:-1], more))], -1)

    return _with_labels(lattice, filled)


def _with_labels(lattice: Lattice, change: Callable[[Array], Array]) -> Lattice:
    """A lattice with everything changed that has an axis of labels or gaps."""
    wildcards = lattice.wildcards
    if wildcards is not None:
        wildcards = wildcards._replace(in_gap=change(wildcards.in_gap))
    return lattice._replace(
        columns=change(lattice.columns),
        labels=change(lattice.labels),
        is_label=change(lattice.is_label),
        can_skip=change(lattice.can_skip),
        wildcards=wildcards,
    )


def _beside(part: Array, mirrored: Array) -> Array:
    return jnp.stack([part, jnp.flip(mirrored, -1)])


class Blocks(NamedTuple):
    """How the frames of a pair are cut. Arrays are laid out as `axes` says."""

    frames: int
    """Of the whole lattice."""
    number: int
    """Of blocks in a half."""
    size: int
    """Frames of a block, no more than `UNTIDY`."""
    axes: Axes

    @classmethod
    def of(cls, pair: Lattice) -> "Blocks":
        """Equal ones, at most half as many again as have to be, that overlap the least."""
        frames = pair.is_frame.shape[0]
        half = -(-frames // 2)
        fewest = -(-half // UNTIDY)
        numbers = range(fewest, fewest + -(-fewest // 2))
        number = min(numbers, key=lambda number: number * -(-half // number))
        return cls(frames, number, -(-half // number), axes_of(pair))

    @property
    def half(self) -> int:
        """How many frames there are in a half."""
        return self.number * self.size

    @property
    def indices(self) -> Int[Array, "number"]:
        """Of the blocks."""
        return jnp.arange(self.number, dtype=jnp.int32)

    @property
    def places(self) -> Int[Array, "size"]:
        """Of the frames in a block."""
        return jnp.arange(self.size, dtype=jnp.int32)

    def scores(
        self, pair: Lattice, table: Float[Array, "*B R N"], index: Int[Array, ""]
    ) -> tuple[Float[Array, "*B R N"], Float[Array, "2 *B size N"]]:
        """Reads what the labels score in a block; the same scores are left in the table.

        The gather leaves the frames of a label side by side. Read straight from it, XLA:CPU would
        compute emissions one by one; rows of the table it computes in vectors.
        """
        early = index * self.size
        first = jnp.stack([early, self.frames - self.size - early])
        early, later = self.axes.arranged(frame_scores(pair, first, self.size), 2)
        table = self._written(table, early, later, index)
        return table, self.get(table, index)

    def emissions(
        self,
        pair: Lattice,
        index: Int[Array, ""],
        scores: Float[Array, "2 *B size N"],
        semiring: Semiring,
    ) -> Frame:
        """Those of a block, by the scores of its labels."""
        early = index * self.size + self.places
        frames = jnp.stack([early, self.frames - 1 - early])
        is_nearer = jnp.stack([2 * early < self.frames, 2 * early < self.frames - 1])
        return frames_at(pair, frames, is_nearer, scores, semiring, self.axes)

    def table(
        self, pair: Lattice, width: int, *, of_all: bool = True
    ) -> Float[Array, "*B R width"]:
        """An empty one, for all blocks or for one after the other."""
        rows = 2 * (self.half if of_all else self.size)
        nothing = jnp.zeros_like(pair.label_count, pair.scales.dtype)[..., None, None]
        table = jnp.broadcast_to(nothing, (*pair.label_count.shape, rows, width))
        return self.axes.arranged(table, 2)

    def get(
        self, table: Float[Array, "*B R N"], index: Int[Array, ""]
    ) -> Float[Array, "2 *B size N"]:
        """The scores of a block; those of the image wait in its own order of labels."""
        early, later = (
            lax.dynamic_slice_in_dim(table, start, self.size, table.ndim + self.axes.frames)
            for start in self._starts(table, index)
        )
        return jnp.stack([early, jnp.flip(later, self.axes.frames)])

    def put(
        self,
        table: Float[Array, "*B R M"],
        parts: Float[Array, "2 *B size M"],
        index: Int[Array, ""],
    ) -> Float[Array, "*B R M"]:
        """Writes what belongs to a block, of the image the last frame first."""
        later = jnp.flip(parts[1], self.axes.frames)
        return self._written(table, parts[0], later, index)

    def in_order(self, table: Float[Array, "*B R M"]) -> Float[Array, "*B T M"]:
        """The rows that count, one for each frame, the batch in front."""
        if 2 * self.half > self.frames:
            axis, later = table.ndim + self.axes.frames, self.frames // 2
            parts = [
                lax.slice_in_dim(table, 0, self.frames - later, axis=axis),
                lax.slice_in_dim(table, 2 * self.half - later, 2 * self.half, axis=axis),
            ]
            table = jnp.concatenate(parts, axis=axis)
        return self.axes.restored(table, 2)

    def _written(self, table: Array, early: Array, later: Array, index: Array) -> Array:
        for part, start in zip((early, later), self._starts(table, index), strict=True):
            table = lax.dynamic_update_slice_in_dim(
                table, part, start, table.ndim + self.axes.frames
            )
        return table

    def _starts(self, table: Array, index: Int[Array, ""]) -> tuple[Array, Array]:
        """Of a block, in a table of all or of one."""
        rows = table.shape[self.axes.frames]
        early = index * self.size if rows > 2 * self.size else jnp.zeros_like(index)
        return early, rows - self.size - early
