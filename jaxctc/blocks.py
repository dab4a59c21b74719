"""The frames of either half of a lattice in blocks, and the tables in which blocks wait.

Emissions are computed a block at a time, which keeps them in the cache and several cores busy, as
one frame would not; it takes a block for a number to need tidying.

What belongs to a block is a pair: of the lattice, frames from the first one on, and of its mirror
image (`jaxctc.steps.with_mirror_image`), frames from the last one on. In a table `[*B, R, M]` rows
are in the order of the frames. The halves may overlap in the middle, by what the blocks have more
than there are frames: there a frame counts for the half that it is nearer to the start of, and for
the other it is a padded one, and a table has a row for each.
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from jaxctc.lattice import Lattice, frame_scores
from jaxctc.semirings import UNTIDY, Semiring
from jaxctc.steps import Frame, frames_at


class Blocks(NamedTuple):
    """How the frames are cut."""

    frames: int
    """Of the whole lattice."""
    number: int
    """Of blocks in a half."""
    size: int
    """Frames of a block, no more than `UNTIDY`."""

    @classmethod
    def of(cls, lattice: Lattice) -> "Blocks":
        """As few as there can be, as equal as they can be."""
        frames = lattice.is_frame.shape[0]
        half = -(-frames // 2)
        number = -(-half // UNTIDY)
        return cls(frames, number, -(-half // number))

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
        table = self.put(table, frame_scores(pair, first, self.size), index)
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
        return frames_at(pair, frames, is_nearer, scores, semiring)

    def table(
        self, pair: Lattice, width: int, *, of_all: bool = True
    ) -> Float[Array, "*B R width"]:
        """An empty one, for all blocks or for one after the other."""
        rows = 2 * (self.half if of_all else self.size)
        nothing = jnp.zeros_like(pair.label_count, pair.scales.dtype)[..., None, None]
        return jnp.broadcast_to(nothing, (*pair.label_count.shape, rows, width))

    def get(
        self, table: Float[Array, "*B R N"], index: Int[Array, ""]
    ) -> Float[Array, "2 *B size N"]:
        """The scores of a block; those of the image wait in its own order of labels."""
        early, later = (
            lax.dynamic_slice_in_dim(table, start, self.size, table.ndim - 2)
            for start in self._starts(table, index)
        )
        return jnp.stack([early, jnp.flip(later, -2)])

    def put(
        self, table: Float[Array, "*B R M"], parts: Iterable[Array], index: Int[Array, ""]
    ) -> Float[Array, "*B R M"]:
        """Writes the rows `[*B, size, M]` of a block, frames in their order on both sides."""
        for part, start in zip(parts, self._starts(table, index), strict=True):
            table = lax.dynamic_update_slice_in_dim(table, part, start, table.ndim - 2)
        return table

    def in_order(self, table: Float[Array, "*B R M"]) -> Float[Array, "*B T M"]:
        """The rows that count, one for each frame."""
        if 2 * self.half == self.frames:
            return table
        later = self.frames // 2
        rows, axis = table.shape[-2], table.ndim - 2
        parts = [
            lax.slice_in_dim(table, 0, self.frames - later, axis=axis),
            lax.slice_in_dim(table, rows - later, rows, axis=axis),
        ]
        return jnp.concatenate(parts, axis=axis)

    def _starts(self, table: Array, index: Int[Array, ""]) -> tuple[Array, Array]:
        """Of a block, in a table of all or of one."""
        rows = table.shape[-2]
        early = index * self.size if rows > 2 * self.size else jnp.zeros_like(index)
        return early, rows - self.size - early
