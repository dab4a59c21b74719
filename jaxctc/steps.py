"""One frame of the recursion, for any semiring: from the states of a frame to those of the next.

Two passes move through a lattice with the same step, mirrored: forward from the first frame and
backward from the last (`Pass`). A virtual row before the first frame holds weight one in blank 0,
one behind the last in the blank after the last label in use; one step from there leads to the
states where paths may start or end, so the outermost frames are frames like any other and a pair
without frames needs no case of its own. A padded frame leaves the states as they are.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from jaxctc.lattice import Lattice, frame_scores
from jaxctc.padding import lengths_to_paddings
from jaxctc.semirings import Number, Semiring, share_of


class States(NamedTuple):
    """One number per state of the lattice."""

    blank: Number
    """[*B, N+1]"""
    label: Number
    """[*B, N]"""


class Frame(NamedTuple):
    """What a frame multiplies the states by."""

    blank: Number
    """Emission of the blanks, [*B, 1]; [*B, N+1] where some are wildcards' gaps."""
    label: Number
    """Emission of each label, [*B, N]."""
    absorbed: Float[Array, "*B 1"]
    """Share of a gap's emission that is its wildcard's."""
    is_frame: Bool[Array, "*B 1"]


class Axes(NamedTuple):
    """Which axis of states and emissions lies innermost: that of the labels, `[*B, N]` and
    `[*B, F, N]`, or the last one of the batch, with all others before it."""

    examples_last: bool = False

    @property
    def labels(self) -> int:
        """The axis of the labels, counted from the last one."""
        return -2 if self.examples_last else -1

    @property
    def frames(self) -> int:
        """The axis of the frames, likewise."""
        return self.labels - 1

    def arranged(self, part: Array, behind: int) -> Array:
        """An array that comes with so many axes behind those of the batch."""
        return jnp.moveaxis(part, -1 - behind, -1) if self.examples_last else part

    def restored(self, part: Array, behind: int) -> Array:
        """The same, the other way round."""
        return jnp.moveaxis(part, -1, -1 - behind) if self.examples_last else part


LABELS_LAST = Axes()


class Pass(NamedTuple):
    """What differs between the two directions."""

    pad: tuple[int, int]
    """Puts beside each blank the label that a path enters it from."""
    near: slice
    """For each label, the blank that a path enters it from; with `pad`, the label next to it."""
    itself: slice
    """With `pad`, the label itself."""
    can_skip: Bool[Array, "*B N"]
    """Whether the label may be entered from the next one, too."""
    label_loop: bool
    """Whether it may be entered from itself."""
    axes: Axes


def with_a_frame(lattice: Lattice) -> Lattice:
    """Gives an input without frames a padded one: the steps have to index something."""
    if lattice.is_frame.shape[0] > 0:
        return lattice

    def row(part: Array) -> Array:
        return jnp.zeros_like(part, shape=(1, *part.shape[1:]))

    wildcards = lattice.wildcards
    if wildcards is not None:
        wildcards = wildcards._replace(scores=row(wildcards.scores))
    scores = lattice.scores
    return lattice._replace(
        scores=jnp.zeros_like(scores, shape=(*scores.shape[:-2], 1, scores.shape[-1])),
        blank_scores=row(lattice.blank_scores),
        scales=row(lattice.scales),
        offsets=row(lattice.offsets),
        is_frame=row(lattice.is_frame),
        wildcards=wildcards,
    )


def passes(lattice: Lattice, axes: Axes = LABELS_LAST) -> tuple[Pass, Pass]:
    """Forward and backward."""
    nothing = jnp.zeros_like(lattice.can_skip[..., :1])
    after = jnp.concatenate([lattice.can_skip[..., 1:], nothing], axis=-1)
    after = after[..., : lattice.can_skip.shape[-1]]  # without labels, nothing to skip either
    before, after = (axes.arranged(part, 1) for part in (lattice.can_skip, after))
    all_but_last, all_but_first = slice(None, -1), slice(1, None)
    return (
        Pass((1, 0), all_but_last, all_but_first, before, lattice.label_loop, axes),
        Pass((0, 1), all_but_first, all_but_last, after, lattice.label_loop, axes),
    )


def virtual_row(place: Int[Array, "*B"], lattice: Lattice, semiring: Semiring) -> States:
    """Weight one in one blank of each example."""
    labels, dtype = lattice.can_skip.shape[-1], lattice.scales.dtype
    label = _full(semiring.zero, place, labels, dtype)
    blank = _full(semiring.zero, place, labels + 1, dtype)
    here = ~lengths_to_paddings(place + 1, labels + 1) & lengths_to_paddings(place, labels + 1)
    return States(where(here, semiring.one, blank), label)


def frame_at(lattice: Lattice, index: Int[Array, ""], semiring: Semiring) -> Frame:
    """One frame's emissions; behind the last frame, those of a padded one."""
    last = lattice.is_frame.shape[0] - 1
    within = jnp.minimum(index, jnp.asarray(last, index.dtype))
    scores = frame_scores(lattice, within, 1)
    block = frames_at(lattice, within[None], index[None] <= last, scores, semiring)
    return frame_of(block, jnp.zeros_like(within))


def frames_at(
    lattice: Lattice,
    frames: Int[Array, "*D F"],
    counts: Bool[Array, "*D F"],
    scores: Float[Array, "... F N"],
    semiring: Semiring,
    axes: Axes = LABELS_LAST,
) -> Frame:
    """The emissions of some frames, an axis of them before that of the labels.

    With an axis of two where the lattice has its mirror image beside it. Frames that do not count
    are padded.
    """

    def at(rows: Array) -> Array:
        found = rows.at[frames].get(mode="promise_in_bounds")
        return axes.arranged(jnp.moveaxis(found, frames.ndim - 1, -1)[..., None], 2)

    scale = at(lattice.scales)
    blank = semiring.encode(at(lattice.blank_scores), scale)
    label = semiring.encode(scores, scale)
    absorbed, wildcards = jnp.zeros_like(scale), lattice.wildcards
    if wildcards is not None:
        wildcard = semiring.encode(at(wildcards.scores), scale)
        either = semiring.plus(blank, wildcard)
        absorbed = share_of(wildcard, either, semiring)
        in_gap = axes.arranged(wildcards.in_gap[..., None, :], 2)
        blank = jax.tree.map(lambda two, one: jnp.where(in_gap, two, one), either, blank)
    batch = range(frames.ndim - 1, frames.ndim + lattice.is_frame.ndim - 2)
    counts = axes.arranged(jnp.expand_dims(counts, batch)[..., None], 2)
    is_frame = at(lattice.is_frame) & counts
    return lax.optimization_barrier(Frame(blank, label, absorbed, is_frame))


def frame_of(block: Frame, place: Int[Array, ""], axes: Axes = LABELS_LAST) -> Frame:
    """Indexed here and not by the scan, whose slices would be copies."""

    def at(part: Array) -> Array:
        return lax.dynamic_index_in_dim(part, place, part.ndim + axes.frames, keepdims=False)

    return jax.tree.map(at, block)


def predecessors(
    states: States, direction: Pass, semiring: Semiring
) -> tuple[tuple[Number, ...], tuple[Number, ...]]:
    """Where a path into each blank and into each label can come from, the state itself first.

    In the order blank 0, label 0, blank 1, … that is no step back, one, and for labels two.
    """
    return _ways(*_beside_blanks(states, direction, semiring), direction, semiring)


def arrive(states: States, direction: Pass, semiring: Semiring) -> States:
    """The states one step further, before the emission of the frame."""
    return _arrived(*_beside_blanks(states, direction, semiring), direction, semiring)


def emit(states: States, arrived: States, frame: Frame, semiring: Semiring) -> States:
    """The states of a frame, tidied; a padded one keeps those before it.

    XLA:CPU gives every array a loop of its own, and in it computes anew whatever the array is made
    of. The barriers have the results computed once, for the next step and for the stored row.
    """
    emitted = lax.optimization_barrier(_times(arrived, frame, semiring))
    emitted = States(*map(semiring.tidy, emitted))
    return lax.optimization_barrier(_kept(states, emitted, frame))


def advance(states: States, direction: Pass, frame: Frame, semiring: Semiring) -> States:
    """One frame on, for `UNTIDY` frames at most before the states are tidied.

    Labels are read from a copy, so that what they become can be written where they were.
    """
    states, beside = _beside_blanks(states, direction, semiring)
    arrived = _arrived(states, beside, direction, semiring)
    return _kept(states, _times(arrived, frame, semiring), frame)


def _beside_blanks(states: States, direction: Pass, semiring: Semiring) -> tuple[States, Number]:
    """The labels, each beside the blank that a path enters from it; and the states, read there."""
    beside = _made_once_on_cpu(_pad(states.label, direction, semiring))
    itself = _cut(beside, direction.itself, direction)
    return States(states.blank, itself), beside


def _made_once_on_cpu(number: Number) -> Number:
    """What is read at several places.

    XLA:CPU would decide at each entry of each of them which side of the seam it is on. On a TPU
    a barrier costs an eighth of the loss, by the compiler's estimate.
    """
    return lax.platform_dependent(
        number, cpu=lax.optimization_barrier, default=lambda number: number
    )


def _ways(
    states: States, beside: Number, direction: Pass, semiring: Semiring
) -> tuple[tuple[Number, ...], tuple[Number, ...]]:
    near = _cut((states.blank, beside), direction.near, direction)
    skipped = where(~direction.can_skip, semiring.zero, near[1])
    itself = states.label
    if not direction.label_loop:
        itself = jax.tree.map(jnp.full_like, itself, semiring.zero)
    return (states.blank, beside), (itself, near[0], skipped)


def _arrived(states: States, beside: Number, direction: Pass, semiring: Semiring) -> States:
    ways = _ways(states, beside, direction, semiring)
    return States(*(semiring.plus(*terms) for terms in ways))


def _times(arrived: States, frame: Frame, semiring: Semiring) -> States:
    return States(
        semiring.times(arrived.blank, frame.blank), semiring.times(arrived.label, frame.label)
    )


def _kept(states: States, emitted: States, frame: Frame) -> States:
    """A padded frame keeps what was before it."""
    is_frame = frame.is_frame
    return jax.tree.map(lambda new, old: jnp.where(is_frame, new, old), emitted, states)


def _pad(number: Number, direction: Pass, semiring: Semiring) -> Number:
    """Not by `.at[].set`, which XLA:CPU can miscompile (openxla/xla#49176)."""
    axis = direction.axes.labels

    def one(part: Array, zero: float | int) -> Array:
        edges = [list(part.shape) for _ in direction.pad]
        for edge, width in zip(edges, direction.pad, strict=True):
            edge[axis] = width
        before, behind = (jnp.full(edge, zero, part.dtype) for edge in edges)
        return jnp.concatenate([before, part, behind], axis=axis)

    return jax.tree.map(one, number, semiring.zero)


def _cut(number: Number, part: slice, direction: Pass) -> Number:
    behind = [slice(None)] * (-1 - direction.axes.labels)
    return jax.tree.map(lambda array: array[(..., part, *behind)], number)


def where(condition: Array, constant: Number, number: Number) -> Number:
    """A constant of the semiring where the condition holds."""
    return jax.tree.map(
        lambda part, value: jnp.where(condition, jnp.asarray(value, part.dtype), part),
        number,
        constant,
    )


def _full(constant: Number, like: Array, states: int, dtype: jnp.dtype) -> Number:
    """A constant of the semiring as an array: integers are exponents, the rest is `dtype`.

    It is on the devices that `like` is on, and spread over them as that is.
    """

    def one(value: float | int) -> Array:
        constant = jnp.full_like(like, value, jnp.int32 if isinstance(value, int) else dtype)
        return jnp.broadcast_to(constant[..., None], (*like.shape, states))

    return jax.tree.map(one, constant)
