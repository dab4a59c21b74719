"""Walks over the frames of a problem: reads their emissions, a chunk at a time, and scans them.

Emissions are made for a chunk of frames at once, which is one gather where frame by frame it would
be many, and not for all frames, which would be a table of the size of T times N.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Int

from jaxctc._core.problem import Problem, expected_size, label_scores
from jaxctc._core.semirings import WIDE, Number, Semiring, weighed

CHUNK_FRAMES = 16
"""Frames whose emissions are made at once, at least,"""
CHUNK_NUMBERS = 1 << 17
"""and more while the labels of all have no more emissions than this."""
MAX_RESIDENT_BYTES = 1 << 26
"""What a backward pass needs from all frames is kept up to this size, else only checkpoints."""


class Emissions(NamedTuple):
    """y_t of one frame or, with an axis in front, of several."""

    blank: Number
    """[*B, 1], the same for all blanks; [*B, N+1] where wildcards stand beside some."""
    label: Number
    """[*B, N]"""
    is_frame: Bool[Array, "*B 1"]
    frame: Int[Array, ""]
    """Which frame it is."""


def emissions(
    problem: Problem, first: Int[Array, ""] | int, count: int, semiring: Semiring
) -> Emissions:
    """y_t of `count` frames from the first one on, frames leading."""
    first = jnp.asarray(first, jnp.int32)

    def rows(part: Array) -> Array:
        part = lax.dynamic_slice_in_dim(part, first, count, axis=-1)
        return jnp.moveaxis(part, -1, 0)[..., None]

    frame_max = rows(problem.frame_max)
    blank = semiring.encode(rows(problem.blank_scores), frame_max)
    if problem.wildcards is not None:
        in_gap = problem.wildcards.in_gap[None]
        wildcard = semiring.encode(rows(problem.wildcards.scores), jnp.zeros_like(frame_max))
        either = semiring.plus(blank, wildcard)
        blank = jax.tree.map(lambda a, b: jnp.where(in_gap, a, b), either, blank)
    scores = jnp.moveaxis(label_scores(problem, first, count), -2, 0)
    label = semiring.encode(scores, frame_max)
    if problem.bias is not None:
        blank = weighed(blank, rows(problem.bias.blank), semiring)
        of_label = lax.dynamic_slice_in_dim(problem.bias.label, first, count, axis=-2)
        label = weighed(label, jnp.moveaxis(of_label, -2, 0), semiring)
    return Emissions(
        blank,
        label,
        rows(problem.is_frame),
        first + jnp.arange(count, dtype=jnp.int32),
    )


class Frames(NamedTuple):
    """How to get at the emissions of some frames."""

    read: Callable[[Array, int], Emissions]
    """Of a first frame and a static number of frames, as of `emissions`."""
    at_once: int
    """How many frames to read at once."""


def frames_of(problem: Problem, semiring: Semiring, *, in_chunks: bool | None = None) -> Frames:
    """Those of a problem, by default in chunks in WIDE alone.

    Other semirings are there for JAX to differentiate, which keeps something of every frame in any
    case, and of scans within scans twice.
    """
    at_once = problem.is_frame.shape[-1]
    if semiring is WIDE if in_chunks is None else in_chunks:
        at_once = max(CHUNK_FRAMES, CHUNK_NUMBERS // max(expected_size(problem.is_label), 1))
    return Frames(functools.partial(emissions, problem, semiring=semiring), at_once)


def scan_frames(
    step: Callable[[Any, Any], tuple[Any, Any]],
    carry: Any,
    frames: Frames,
    count: int,
    *,
    first: Array | int = 0,
    new: Array | int = 0,
    seen: Any = None,
    backward: bool = False,
) -> tuple[Any, Any]:
    """`lax.scan` of `step(carry, (y, seen))` over `count` frames from the first one on.

    Their emissions are made chunk by chunk. `seen` is anything else with an axis of `count` frames
    in front. Frames before `new` are padded.

    Returns:
      The last carry and what the steps returned, frames leading.
    """
    plan = _Chunks.of(count, frames.at_once)

    def chunk(carry: Any, given: Any) -> tuple[Any, Any]:
        index, seen = given
        y = frames.read(first + plan.begin(index), plan.size)
        is_new = (y.frame >= first + index * plan.size) & (y.frame >= new)
        is_new = jnp.expand_dims(is_new, range(1, y.is_frame.ndim))
        y = y._replace(is_frame=y.is_frame & is_new)
        return lax.scan(step, carry, (y, seen), reverse=backward)

    return plan.scan(chunk, carry, seen, backward=backward)


def checkpointed_scan(
    forward: Callable[[Any, Any], tuple[Any, Any]],
    backward: Callable[[Any, Any], tuple[Any, Any]],
    start: Any,
    start_backward: Callable[[Any], Any],
    frames: Frames,
    count: int,
    *,
    interval: int,
) -> tuple[Any, Any]:
    """The last alpha and the outputs of `checkpointed_passes`."""
    last, _, outputs = checkpointed_passes(
        forward, backward, start, start_backward, frames, count, interval=interval
    )
    return last, outputs


def checkpointed_passes(
    forward: Callable[[Any, Any], tuple[Any, Any]],
    backward: Callable[[Any, Any], tuple[Any, Any]],
    start: Any,
    start_backward: Callable[[Any], Any],
    frames: Frames,
    count: int,
    *,
    interval: int,
) -> tuple[Any, Any, Any]:
    """Goes forward over all frames, and back over what the forward pass has seen.

    `forward(alpha, (y, None))` returns the next alpha and what `backward` is to know of this
    frame; `start_backward` makes the first carry of the backward pass from the last alpha;
    `backward(carry, (y, seen))` returns the next carry and an output.

    Alpha is kept at every `interval`-th frame at most (a checkpoint), and what was seen in one such
    stretch: it is computed again when the backward pass comes to it. With a single stretch all of
    it is kept and nothing computed twice.

    Returns:
      The last alpha, the last carry of the backward pass and the outputs, frames leading.
    """
    plan = _Chunks.of(count, interval)

    def there(alpha: Any, index: Array | int) -> tuple[Any, Any]:
        place = {"first": plan.begin(index), "new": index * plan.size}
        return scan_frames(forward, alpha, frames, plan.size, **place)

    def back(carry: Any, seen: Any, index: Array | int) -> tuple[Any, Any]:
        place = {"first": plan.begin(index), "new": index * plan.size}
        return scan_frames(backward, carry, frames, plan.size, **place, seen=seen, backward=True)

    if plan.number == 1:
        last, seen = there(start, 0)
        return last, *back(start_backward(last), seen, 0)

    indices = jnp.arange(plan.number, dtype=jnp.int32)
    last, checkpoints = lax.scan(
        lambda alpha, index: (there(alpha, index)[0], alpha), start, indices
    )

    def again(carry: Any, given: tuple[Any, Array]) -> tuple[Any, Any]:
        alpha, index = given
        return back(carry, there(alpha, index)[1], index)

    carry, outputs = lax.scan(again, start_backward(last), (checkpoints, indices), reverse=True)
    return last, carry, jax.tree.map(plan.in_order, outputs)


def checkpoint_interval(frames: int, bytes_per_frame: int) -> int:
    """All frames, if what is seen of them fits, or so many that memory grows with their root."""
    fits = frames * bytes_per_frame <= MAX_RESIDENT_BYTES
    return frames if fits else 2 * math.isqrt(frames)


class _Chunks(NamedTuple):
    """Cuts so many frames into chunks of equal size.

    If no good size divides them, the last chunk overlaps the one before it. A frame in the overlap
    belongs to the earlier chunk, and the stacked rows of all chunks have to be copied.
    """

    total: int
    number: int
    size: int

    @classmethod
    def of(cls, count: int, most: int) -> "_Chunks":
        fewest = -(-count // most)
        dividing = (number for number in range(fewest, 2 * fewest + 1) if count % number == 0)
        number = next(dividing, fewest)
        return cls(count, number, -(-count // number))

    def begin(self, index: Array | int) -> Array:
        """The first frame of a chunk."""
        last = jnp.asarray(self.total - self.size, jnp.int32)
        return jnp.minimum(jnp.asarray(index * self.size, jnp.int32), last)

    def scan(self, chunk: Any, carry: Any, seen: Any, *, backward: bool) -> tuple[Any, Any]:
        """`chunk(carry, (index, seen of its frames))` for all chunks; outputs frames leading."""
        if self.number == 1:
            return chunk(carry, (0, seen))
        indices = jnp.arange(self.number, dtype=jnp.int32)
        given = indices, jax.tree.map(self.cut, seen)
        carry, outputs = lax.scan(chunk, carry, given, reverse=backward)
        return carry, jax.tree.map(self.in_order, outputs)

    def cut(self, rows: Array) -> Array:
        """`[total, …]` to `[number, size, …]`."""
        if self.number * self.size == self.total:
            return rows.reshape(self.number, self.size, *rows.shape[1:])
        whole = (self.number - 1) * self.size
        chunks = rows[:whole].reshape(self.number - 1, self.size, *rows.shape[1:])
        return jnp.concatenate([chunks, rows[None, self.total - self.size :]])

    def in_order(self, chunks: Array) -> Array:
        """`[number, size, …]` to `[total, …]`."""
        twice = self.number * self.size - self.total
        rows = chunks.reshape(self.number * self.size, *chunks.shape[2:])
        if twice == 0:
            return rows
        whole = (self.number - 1) * self.size
        return jnp.concatenate([rows[:whole], rows[whole + twice :]])
