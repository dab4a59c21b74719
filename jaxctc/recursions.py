"""The frame step and the scans over it, for any semiring.

This is the only place of the library that loops over the frames of a lattice. Two passes move
through it with the same step, mirrored: forward from the first frame,

    alpha_t(s)  the weight of all path beginnings up to frame t that are in state s there,

and backward from the last,

    beta_t(s)   the weight of all path endings from frame t on that are in state s there,

both with the emission of frame t (Graves et al. 2006, section 4.1). A virtual row before the first
frame holds weight one in blank 0, one behind the last in the blank after the last label in use;
one step from there leads to the states where paths may start or end, so the outermost frames are
frames like any other and a pair without frames needs no case of its own. A padded frame leaves
the states as they are.

The total meets in the middle: both passes advance in one scan of half the length, and

    total = Σ_s arrived(s) · beta_t(s)

where `arrived` is alpha one step further, before the emission of frame t. Going on in the same
way, each pass through the half that the other has stored, gives the share of every label in every
frame, arrived(s) · beta_t(s) / total, in twice as many steps, with half of what two whole passes
would store, and without dividing by an emission that may be zero.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from jaxctc.lattice import Lattice
from jaxctc.padding import lengths_to_paddings
from jaxctc.semirings import Number, Semiring


class States(NamedTuple):
    """One number per state of the lattice."""

    blank: Number
    """[*B, N+1]"""
    label: Number
    """[*B, N]"""


class _Frame(NamedTuple):
    blank: Number
    """Emission of every blank, [*B, 1]."""
    label: Number
    """Emission of each label, [*B, N]."""
    is_frame: Bool[Array, "*B"]


class _Pass(NamedTuple):
    """What differs between the two directions."""

    pad: tuple[int, int]
    """Puts beside each blank the label that a path enters it from."""
    near: slice
    """For each label, the blank that a path enters it from."""
    can_skip: Bool[Array, "*B N"]
    """Whether the label may be entered from the next one, too."""


def total(lattice: Lattice, semiring: Semiring) -> Number:
    """Weight of all paths, in one scan of half as many steps as frames and no stored rows."""
    lattice = _with_a_frame(lattice)
    front, back, _ = _to_the_middle(lattice, semiring, keep_rows=False)
    return _meet(front, back, lattice, semiring)


def label_shares(lattice: Lattice, semiring: Semiring) -> tuple[Number, Float[Array, "T *B N"]]:
    """The total, and each label's share of it in every frame; anything in padded frames."""
    given, lattice = lattice.is_frame.shape[0], _with_a_frame(lattice)
    front, back, rows = _to_the_middle(lattice, semiring, keep_rows=True)
    whole = _meet(front, back, lattice, semiring)
    wide = jax.tree.map(lambda part: part[..., None], whole)
    forward, backward = _passes(lattice)
    frames = lattice.is_frame.shape[0]

    def step(carry, stored):
        front, back, shares = carry
        index, (front_label, back_label) = stored
        mirror = frames - 1 - index
        # The middle frame of an odd number is written twice; the second one is right.
        arrived = _arrive(front, forward, semiring)
        share = semiring.share(arrived.label, back_label, wide)
        shares = lax.dynamic_update_index_in_dim(shares, share, mirror, 0)
        frame = _frame(lattice, mirror, semiring, mirror > index)
        front = _emit(front, arrived, frame, semiring)
        arrived = _arrive(back, backward, semiring)
        share = semiring.share(front_label, arrived.label, wide)
        shares = lax.dynamic_update_index_in_dim(shares, share, index, 0)
        back = _emit(back, arrived, _frame(lattice, index, semiring), semiring)
        return (front, back, shares), None

    shares = jnp.zeros_like(lattice.label_scores)
    half = jnp.arange((frames + 1) // 2, dtype=jnp.int32)
    (_, _, shares), _ = lax.scan(step, (front, back, shares), (half, rows), reverse=True)
    return whole, shares[:given]


def forward_rows(lattice: Lattice, semiring: Semiring) -> States:
    """The states after every frame, stacked `[T, *B, …]`.

    A padded frame repeats the row before it. States beyond the labels in use are zero.
    """
    given, lattice = lattice.is_frame.shape[0], _with_a_frame(lattice)
    forward, _ = _passes(lattice)

    def step(states: States, index: Int[Array, ""]) -> tuple[States, States]:
        arrived = _arrive(states, forward, semiring)
        states = _emit(states, arrived, _frame(lattice, index, semiring), semiring)
        return states, states

    first = jnp.zeros_like(lattice.label_count)
    frames = jnp.arange(lattice.is_frame.shape[0], dtype=jnp.int32)
    _, rows = lax.scan(step, _virtual(first, lattice, semiring), frames)
    rows = jax.tree.map(lambda part: part[:given], rows)
    labels, count = lattice.can_skip.shape[-1], lattice.label_count
    return States(
        _where(lengths_to_paddings(count + 1, labels + 1)[None], semiring.zero, rows.blank),
        _where(lengths_to_paddings(count, labels)[None], semiring.zero, rows.label),
    )


def _to_the_middle(
    lattice: Lattice, semiring: Semiring, *, keep_rows: bool
) -> tuple[States, States, tuple[Number, Number] | None]:
    """Both passes up to where they meet, and the rows of labels they leave behind.

    Step i takes frame i forward and frame T - 1 - i backward; the middle frame of an odd number
    belongs to the forward pass.
    """
    forward, backward = _passes(lattice)
    frames = lattice.is_frame.shape[0]

    def step(sides, index):
        front, back = sides
        mirror = frames - 1 - index
        frame = _frame(lattice, index, semiring)
        front = _emit(front, _arrive(front, forward, semiring), frame, semiring)
        frame = _frame(lattice, mirror, semiring, mirror > index)
        back = _emit(back, _arrive(back, backward, semiring), frame, semiring)
        return (front, back), (front.label, back.label) if keep_rows else None

    first = jnp.zeros_like(lattice.label_count)
    ends = (_virtual(first, lattice, semiring), _virtual(lattice.label_count, lattice, semiring))
    half = jnp.arange((frames + 1) // 2, dtype=jnp.int32)
    (front, back), rows = lax.scan(step, ends, half)
    return front, back, rows


def _meet(front: States, back: States, lattice: Lattice, semiring: Semiring) -> Number:
    arrived = _arrive(front, _passes(lattice)[0], semiring)
    joint = jax.tree.map(
        lambda *parts: jnp.concatenate(parts, axis=-1),
        semiring.times(arrived.blank, back.blank),
        semiring.times(arrived.label, back.label),
    )
    return semiring.sum(joint)


def _with_a_frame(lattice: Lattice) -> Lattice:
    """Gives an input without frames a padded one: the steps have to index something."""
    if lattice.is_frame.shape[0] > 0:
        return lattice
    rows = ("blank_scores", "label_scores", "scales", "offsets", "is_frame")
    return lattice._replace(
        **{
            name: jnp.zeros_like(part, shape=(1, *part.shape[1:]))
            for name, part in lattice._asdict().items()
            if name in rows
        }
    )


def _passes(lattice: Lattice) -> tuple[_Pass, _Pass]:
    nothing = jnp.zeros_like(lattice.can_skip[..., :1])
    after = jnp.concatenate([lattice.can_skip[..., 1:], nothing], axis=-1)
    after = after[..., : lattice.can_skip.shape[-1]]  # without labels, nothing to skip either
    return (
        _Pass((1, 0), slice(None, -1), lattice.can_skip),
        _Pass((0, 1), slice(1, None), after),
    )


def _virtual(place: Int[Array, "*B"], lattice: Lattice, semiring: Semiring) -> States:
    """Weight one in one blank of each example."""
    labels, dtype = lattice.can_skip.shape[-1], lattice.label_scores.dtype
    label = _full(semiring.zero, lattice.can_skip.shape, dtype)
    blank = _full(semiring.zero, (*place.shape, labels + 1), dtype)
    here = ~lengths_to_paddings(place + 1, labels + 1) & lengths_to_paddings(place, labels + 1)
    return States(_where(here, semiring.one, blank), label)


def _frame(
    lattice: Lattice, index: Int[Array, ""], semiring: Semiring, counts: Array | None = None
) -> _Frame:
    """One frame's emissions. Indexed here and not by the scan, whose slices would be copies."""

    def at(rows: Array) -> Array:
        return lax.dynamic_index_in_dim(rows, index, 0, keepdims=False)

    scale = at(lattice.scales)[..., None]
    is_frame = at(lattice.is_frame)
    return _Frame(
        semiring.encode(at(lattice.blank_scores)[..., None], scale),
        semiring.encode(at(lattice.label_scores), scale),
        is_frame if counts is None else is_frame & counts,
    )


def _arrive(states: States, direction: _Pass, semiring: Semiring) -> States:
    """The states one step further, before the emission of the frame."""
    beside = _pad(states.label, direction.pad, semiring)
    near = jax.tree.map(lambda part: part[..., direction.near], (states.blank, beside))
    skipped = _where(~direction.can_skip, semiring.zero, near[1])
    return States(
        semiring.plus(states.blank, beside), semiring.plus(states.label, near[0], skipped)
    )


def _emit(states: States, arrived: States, frame: _Frame, semiring: Semiring) -> States:
    """The states of a frame; a padded one keeps those before it.

    XLA:CPU gives every array a loop of its own, and in it computes anew whatever the array is made
    of. The barriers have it computed once: what arrives, for mantissa and exponent alike, and the
    result, for the next step and for the stored row.
    """
    arrived = lax.optimization_barrier(arrived)
    emitted = States(
        semiring.times(arrived.blank, frame.blank), semiring.times(arrived.label, frame.label)
    )
    is_frame = frame.is_frame[..., None]
    kept = jax.tree.map(lambda new, old: jnp.where(is_frame, new, old), emitted, states)
    return lax.optimization_barrier(kept)


def _pad(number: Number, pad: tuple[int, int], semiring: Semiring) -> Number:
    """Not by `.at[].set`, which XLA:CPU can miscompile (openxla/xla#49176)."""

    def one(part: Array, zero: float | int) -> Array:
        edges = [jnp.full((*part.shape[:-1], width), zero, part.dtype) for width in pad]
        return jnp.concatenate([edges[0], part, edges[1]], axis=-1)

    return jax.tree.map(one, number, semiring.zero)


def _where(condition: Array, constant: Number, number: Number) -> Number:
    """A constant of the semiring where the condition holds."""
    return jax.tree.map(
        lambda part, value: jnp.where(condition, jnp.asarray(value, part.dtype), part),
        number,
        constant,
    )


def _full(constant: Number, shape: tuple[int, ...], dtype: jnp.dtype) -> Number:
    """A constant of the semiring as an array: integers are exponents, the rest is `dtype`."""
    return jax.tree.map(
        lambda value: jnp.full(shape, value, jnp.int32 if isinstance(value, int) else dtype),
        constant,
    )
