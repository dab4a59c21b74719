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


class Pass(NamedTuple):
    """What differs between the two directions."""

    pad: tuple[int, int]
    """Puts beside each blank the label that a path enters it from."""
    near: slice
    """For each label, the blank that a path enters it from."""
    can_skip: Bool[Array, "*B N"]
    """Whether the label may be entered from the next one, too."""
    label_loop: bool
    """Whether it may be entered from itself."""


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


def passes(lattice: Lattice) -> tuple[Pass, Pass]:
    """Forward and backward."""
    nothing = jnp.zeros_like(lattice.can_skip[..., :1])
    after = jnp.concatenate([lattice.can_skip[..., 1:], nothing], axis=-1)
    after = after[..., : lattice.can_skip.shape[-1]]  # without labels, nothing to skip either
    return (
        Pass((1, 0), slice(None, -1), lattice.can_skip, lattice.label_loop),
        Pass((0, 1), slice(1, None), after, lattice.label_loop),
    )


def with_mirror_image(lattice: Lattice) -> Lattice:
    """A lattice beside itself with its labels in reverse: what belongs to labels is stacked.

    A step forward through the image is one backward through the lattice, so that one step goes both
    ways. Frames are neither copied nor reversed; whoever asks for some says which for each.
    """

    wildcards = lattice.wildcards
    if wildcards is not None:
        in_gap = _beside(wildcards.in_gap, wildcards.in_gap)
        wildcards = wildcards._replace(in_gap=in_gap)
    forward, backward = passes(lattice)
    return lattice._replace(
        columns=_beside(lattice.columns, lattice.columns),
        is_label=_beside(lattice.is_label, lattice.is_label),
        can_skip=_beside(forward.can_skip, backward.can_skip),
        wildcards=wildcards,
    )


def _beside(part: Array, mirrored: Array) -> Array:
    return jnp.stack([part, jnp.flip(mirrored, -1)])


def virtual_row(place: Int[Array, "*B"], lattice: Lattice, semiring: Semiring) -> States:
    """Weight one in one blank of each example."""
    labels, dtype = lattice.can_skip.shape[-1], lattice.scales.dtype
    label = _full(semiring.zero, place, lattice.can_skip.shape, dtype)
    blank = _full(semiring.zero, place, (*place.shape, labels + 1), dtype)
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
) -> Frame:
    """The emissions of some frames, an axis of them before that of the labels.

    With an axis of two where the lattice has its mirror image beside it. Frames that do not count
    are padded.
    """

    def at(rows: Array) -> Array:
        found = rows.at[frames].get(mode="promise_in_bounds")
        return jnp.moveaxis(found, frames.ndim - 1, -1)[..., None]

    scale = at(lattice.scales)
    blank = semiring.encode(at(lattice.blank_scores), scale)
    label = semiring.encode(scores, scale)
    absorbed, wildcards = jnp.zeros_like(scale), lattice.wildcards
    if wildcards is not None:
        wildcard = semiring.encode(at(wildcards.scores), scale)
        either = semiring.plus(blank, wildcard)
        absorbed = share_of(wildcard, either, semiring)
        in_gap = wildcards.in_gap[..., None, :]
        blank = jax.tree.map(lambda two, one: jnp.where(in_gap, two, one), either, blank)
    batch = range(frames.ndim - 1, frames.ndim + lattice.is_frame.ndim - 2)
    is_frame = at(lattice.is_frame) & jnp.expand_dims(counts, batch)[..., None]
    return lax.optimization_barrier(Frame(blank, label, absorbed, is_frame))


def frame_of(block: Frame, place: Int[Array, ""]) -> Frame:
    """Indexed here and not by the scan, whose slices would be copies."""
    return jax.tree.map(
        lambda part: lax.dynamic_index_in_dim(part, place, -2, keepdims=False), block
    )


def predecessors(
    states: States, direction: Pass, semiring: Semiring
) -> tuple[tuple[Number, ...], tuple[Number, ...]]:
    """Where a path into each blank and into each label can come from, the state itself first.

    In the order blank 0, label 0, blank 1, … that is no step back, one, and for labels two.
    """
    # Read at two places below: XLA:CPU would decide at each entry which side of the seam it is on.
    beside = lax.optimization_barrier(_pad(states.label, direction.pad, semiring))
    near = jax.tree.map(lambda part: part[..., direction.near], (states.blank, beside))
    skipped = where(~direction.can_skip, semiring.zero, near[1])
    itself = states.label
    if not direction.label_loop:
        itself = jax.tree.map(jnp.full_like, itself, semiring.zero)
    return (states.blank, beside), (itself, near[0], skipped)


def arrive(states: States, direction: Pass, semiring: Semiring) -> States:
    """The states one step further, before the emission of the frame."""
    blank, label = predecessors(states, direction, semiring)
    return States(semiring.plus(*blank), semiring.plus(*label))


def emit(
    states: States, arrived: States, frame: Frame, semiring: Semiring, *, tidy: bool = True
) -> States:
    """The states of a frame; a padded one keeps those before it.

    XLA:CPU gives every array a loop of its own, and in it computes anew whatever the array is made
    of. The barrier has the result computed once, for the next step and for the stored row.
    """
    emitted = States(
        semiring.times(arrived.blank, frame.blank), semiring.times(arrived.label, frame.label)
    )
    if tidy:
        emitted = States(*map(semiring.tidy, lax.optimization_barrier(emitted)))
    is_frame = frame.is_frame
    kept = jax.tree.map(lambda new, old: jnp.where(is_frame, new, old), emitted, states)
    return lax.optimization_barrier(kept)


def advance(states: States, direction: Pass, frame: Frame, semiring: Semiring) -> States:
    """One frame on, for `UNTIDY` frames at most before the states are tidied."""
    return emit(states, arrive(states, direction, semiring), frame, semiring, tidy=False)


def _pad(number: Number, pad: tuple[int, int], semiring: Semiring) -> Number:
    """Not by `.at[].set`, which XLA:CPU can miscompile (openxla/xla#49176)."""

    def one(part: Array, zero: float | int) -> Array:
        edges = [jnp.full((*part.shape[:-1], width), zero, part.dtype) for width in pad]
        return jnp.concatenate([edges[0], part, edges[1]], axis=-1)

    return jax.tree.map(one, number, semiring.zero)


def where(condition: Array, constant: Number, number: Number) -> Number:
    """A constant of the semiring where the condition holds."""
    return jax.tree.map(
        lambda part, value: jnp.where(condition, jnp.asarray(value, part.dtype), part),
        number,
        constant,
    )


def _full(constant: Number, like: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Number:
    """A constant of the semiring as an array: integers are exponents, the rest is `dtype`.

    It is on the devices that `like` is on.
    """

    def one(value: float | int) -> Array:
        return jnp.full_like(like, value, jnp.int32 if isinstance(value, int) else dtype, shape)

    return jax.tree.map(one, constant)
