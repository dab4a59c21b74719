"""How `xla_blocked` cuts the frames into chunks, and the tables in which chunks wait.

A table `[B, R, M]` holds rows for chunks of both halves, in the order of the frames: those of the
graph from the top, those of its mirror image from the bottom. In the overlap there is a row for
each.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from jaxctc._core.lean import reverse
from jaxctc._core.semirings import MAX_UNNORMALIZED_STEPS

VECTOR = 8
"""Numbers that XLA:CPU computes at once."""
MANY_EXAMPLES = 2 * VECTOR
"""So many examples fill whole vectors."""
FEW_LABELS = 24
"""So few labels do not."""


class Layout(NamedTuple):
    """Which axis lies minor-most: labels, `[…, B, F, N]`, or the batch, `[…, F, N, B]`."""

    batch_minor: bool

    @property
    def labels(self) -> int:
        """The axis of the labels, counted from the end."""
        return -2 if self.batch_minor else -1

    @property
    def frames(self) -> int:
        """The axis of the frames of a chunk, counted from the end."""
        return self.labels - 1

    def to_layout(self, part: Array, trailing: int) -> Array:
        """Lays out an array that has so many axes after that of the batch."""
        return jnp.moveaxis(part, -1 - trailing, -1) if self.batch_minor else part

    def from_layout(self, part: Array, trailing: int) -> Array:
        """Brings the axis of the batch back in front of so many axes."""
        return jnp.moveaxis(part, -1, -1 - trailing) if self.batch_minor else part


def choose_layout(batch: int, labels: int) -> Layout:
    """The batch minor-most if it fills vectors and the labels do not."""
    return Layout(batch_minor=batch >= MANY_EXAMPLES and 0 < labels <= FEW_LABELS)


class ChunkPlan(NamedTuple):
    """How the frames are cut into two halves, and each half into chunks of equal size."""

    frames: int
    num_chunks: int
    """Of one half."""
    chunk_size: int
    """At most `MAX_UNNORMALIZED_STEPS`."""
    layout: Layout

    @classmethod
    def of(cls, frames: int, layout: Layout) -> "ChunkPlan":
        """The chunk count, at most 1.5 times the smallest possible, with the least overlap."""
        half = -(-frames // 2)
        fewest = -(-half // MAX_UNNORMALIZED_STEPS)
        counts = range(fewest, fewest + -(-fewest // 2))
        count = min(counts, key=lambda count: count * -(-half // count))
        return cls(frames, count, -(-half // count), layout)

    @property
    def frames_per_half(self) -> int:
        """With the overlap: at least half of the frames."""
        return self.num_chunks * self.chunk_size

    @property
    def chunks(self) -> Int[Array, "num_chunks"]:
        """Their numbers, from the outermost frames on."""
        return jnp.arange(self.num_chunks, dtype=jnp.int32)

    @property
    def offsets(self) -> Int[Array, "chunk_size"]:
        """Of the frames of a chunk, from its first one."""
        return jnp.arange(self.chunk_size, dtype=jnp.int32)


def _starts(plan: ChunkPlan, table: Array, index: Int[Array, ""]) -> tuple[Array, Array]:
    """The first row of a chunk, of the graph and of its image; a short table holds one chunk."""
    rows = table.shape[plan.layout.frames]
    early = index * plan.chunk_size if rows > 2 * plan.chunk_size else jnp.zeros_like(index)
    return early, rows - plan.chunk_size - early


def write_rows(plan: ChunkPlan, table: Array, early: Array, later: Array, index: Array) -> Array:
    axis = table.ndim + plan.layout.frames
    for part, start in zip((early, later), _starts(plan, table, index), strict=True):
        table = lax.dynamic_update_slice_in_dim(
            table, part, start, axis, allow_negative_indices=False
        )
    return table


def write_chunk(
    plan: ChunkPlan, table: Array, parts: Array, index: Array, *, has_labels: bool
) -> Array:
    """Writes `[2, B, chunk_size, M]`; the image's last frame (and label) comes first."""
    layout = plan.layout
    axes = (layout.frames, layout.labels) if has_labels else (layout.frames,)
    later = reverse(parts[1], *axes)
    return write_rows(plan, table, parts[0], later, index)


def read_chunk(plan: ChunkPlan, table: Array, index: Array) -> Float[Array, "2 B chunk_size M"]:
    axis = table.ndim + plan.layout.frames
    early, later = (
        lax.dynamic_slice_in_dim(table, start, plan.chunk_size, axis, allow_negative_indices=False)
        for start in _starts(plan, table, index)
    )
    return jnp.stack([early, reverse(later, plan.layout.frames)])


def frames_in_order(plan: ChunkPlan, table: Array) -> Float[Array, "B T M"]:
    """The rows that count, one for each frame."""
    if 2 * plan.frames_per_half > plan.frames:
        axis, later = table.ndim + plan.layout.frames, plan.frames // 2
        end = 2 * plan.frames_per_half
        parts = [
            lax.slice_in_dim(table, 0, plan.frames - later, axis=axis),
            lax.slice_in_dim(table, end - later, end, axis=axis),
        ]
        table = jnp.concatenate(parts, axis=axis)
    return plan.layout.from_layout(table, 2)
