"""Single paths through the lattice: the best one, random ones, and what lies along one.

A path is a state per frame, counted 0 for blank 0, 1 for label 0, 2 for blank 1, and so on. So what
leads to a state is the state itself, the one before it or, for labels, the one before that: a
back-pointer is a number of steps, 0 or 1 for a blank (one bit), 0, 1 or 2 for a label (two bits).

The loops are `recursions.sweep`; here stands what happens in one frame.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int, Shaped, UInt8

from jaxctc.lattice import Lattice, Wildcards
from jaxctc.recursions import sweep
from jaxctc.scores import Reading
from jaxctc.semirings import MAX, Number, Semiring, share_of
from jaxctc.steps import (
    States,
    arrive,
    emit,
    frame_at,
    passes,
    predecessors,
    virtual_row,
    with_a_frame,
)

KEPT = 1 << 26
"""Bytes up to which what was seen at all frames is kept for the way back."""


class Paths(NamedTuple):
    """`S` paths per example."""

    states: Int[Array, "*B S T"]
    absorbed: Bool[Array, "*B S T"]
    """True where a wildcard, and not the blank, emits the frame."""


def best_path(
    lattice: Lattice, *, checkpoint_every: int | None = None, band: int | None = None
) -> tuple[Paths, Bool[Array, "*B"]]:
    """One path of the largest weight, and whether there is any.

    Of equally good ways into a state the one from the state itself is taken, then the one from
    the blank. At every frame the best state is brought to 0, so that rounding does not grow with
    the length of the input.
    """
    given, lattice = lattice.is_frame.shape[0], with_a_frame(lattice)
    frames, labels = lattice.is_frame.shape[0], lattice.labels.shape[-1]
    window = _Window.around_the_diagonal(lattice, labels if band is None else band)

    def step(states: States, index: Array) -> tuple[States, UInt8[Array, "*B 3 bytes"]]:
        here, states = window.lattice_at(index), window.states_at(index, states)
        blank, label = predecessors(states, passes(here)[0], MAX)
        skips = label[2] > jnp.maximum(label[0], label[1])
        moves = skips | (label[1] > label[0])
        arrived = States(MAX.plus(*blank), MAX.plus(*label))
        states = emit(states, arrived, frame_at(here, index, MAX), MAX)
        return _best_at_zero(states), _pack(blank[1] > blank[0], moves, skips)

    def visit(states: Array, pointers: Array, index: Array) -> tuple[Array, Array]:
        steps = _steps(pointers, states - 2 * window.start(index)[..., None])
        steps = jnp.where(_is_frame(lattice, index)[..., None], steps, jnp.zeros_like(steps))
        return states - steps, states

    def ends(last: States) -> tuple[Array, Array]:
        place = (lattice.label_count - window.start(frames - 1))[..., None]
        return _number_at(last, 2 * place), _number_at(last, 2 * place - 1)

    def turn(last: States) -> Array:
        blank, label = ends(last)
        return 2 * lattice.label_count[..., None] - (label > blank).astype(jnp.int32)

    checkpoint_every = checkpoint_every or _stretch(lattice, 3 * (labels // 8 + 1))
    first = virtual_row(jnp.zeros_like(lattice.label_count), window.lattice_at(0), MAX)
    last, states = sweep(step, visit, first, turn, frames=frames, checkpoint_every=checkpoint_every)
    found = jnp.maximum(*ends(last))[..., 0] > -jnp.inf
    if lattice.wildcards is None:
        absorbed = jnp.zeros_like(states, bool)
    else:
        is_better = lattice.wildcards.scores > lattice.blank_scores
        absorbed = is_better[..., None] & _is_gap(lattice.wildcards, states)
    return _over_frames(Paths(states, absorbed), given), found


def sample_paths(key: Array, lattice: Lattice, semiring: Semiring, *, num_samples: int) -> Paths:
    """Independent paths, each with the probability of its share of the total.

    Backward through the forward rows: the last state is drawn by the weights of the states where
    paths may end, each earlier one by the weights of those that lead to the one just drawn.
    """
    given, lattice = lattice.is_frame.shape[0], with_a_frame(lattice)
    frames = lattice.is_frame.shape[0]
    forward, _ = passes(lattice)

    def step(states: States, index: Array) -> tuple[States, States]:
        arrived = arrive(states, forward, semiring)
        return emit(states, arrived, frame_at(lattice, index, semiring), semiring), states

    def draw(key: Array, states: Array, before: States) -> Array:
        """Where a path came from, in steps: 0, 1 or 2."""
        in_label, no_state = states & 1 == 1, jnp.full_like(states, -1)
        may_skip = _at(lattice.can_skip, states >> 1) & in_label
        itself = states if lattice.label_loop else jnp.where(in_label, no_state, states)
        origins = (itself, states - 1, jnp.where(may_skip, states - 2, no_state))
        weights = [_number_at(before, origin, semiring) for origin in origins]
        whole = semiring.plus(*weights)
        shares = jnp.stack([share_of(weight, whole, semiring) for weight in weights], axis=-1)
        chances = jnp.log(shares) + jax.random.gumbel(key, shares.shape, shares.dtype)
        return lax.argmax(chances, chances.ndim - 1, jnp.int32)

    def visit(states: Array, before: States, index: Array) -> tuple[Array, Paths]:
        for_origin, for_wildcard = jax.random.split(jax.random.fold_in(for_frames, index))
        steps = draw(for_origin, states, before)
        steps = jnp.where(_is_frame(lattice, index)[..., None], steps, jnp.zeros_like(steps))
        absorbed = jnp.zeros_like(states, bool)
        if lattice.wildcards is not None:
            share = frame_at(lattice, index, semiring).absorbed
            chance = jax.random.uniform(for_wildcard, states.shape, share.dtype)
            absorbed = (chance < share) & _is_gap(lattice.wildcards, states)
        return states - steps, Paths(states, absorbed)

    def turn(last: States) -> Array:
        end = jnp.broadcast_to(2 * count[..., None], (*count.shape, num_samples))
        return end - draw(for_end, end, last)

    for_end, for_frames = jax.random.split(key)
    count = lattice.label_count
    first = virtual_row(jnp.zeros_like(count), lattice, semiring)
    every = _stretch(lattice, 16 * lattice.labels.shape[-1])
    _, paths = sweep(step, visit, first, turn, frames=frames, checkpoint_every=every)
    return _over_frames(paths, given)


def frame_classes(lattice: Lattice, reading: Reading, paths: Paths) -> Int[Array, "*B S T"]:
    """The class that each frame of a path emits."""

    @functools.partial(jnp.vectorize, signature="(n),(s,t)->(s,t)")
    def label_at(labels: Array, places: Array) -> Array:
        labels = jnp.concatenate([labels, jnp.zeros_like(labels, shape=(1,))])
        return jnp.take(labels, places, mode="clip")

    states = paths.states
    blank = jnp.full_like(states, reading.blank)
    classes = jnp.where(states & 1 == 1, label_at(lattice.labels, states >> 1), blank)
    if reading.wildcard is None:
        return classes
    return jnp.where(paths.absorbed, jnp.full_like(classes, reading.wildcard), classes)


def frame_ids(
    lattice: Lattice,
    reading: Reading,
    paths: Paths,
    found: Bool[Array, "*B"],
    wildcard_id: int | None,
) -> Int[Array, "*B S T"]:
    """Paths `[*B, S, T]` as class ids; -1 in padded frames and where nothing was found."""
    ids = frame_classes(lattice, reading, paths)
    if wildcard_id is not None:
        ids = jnp.where(ids == reading.wildcard, jnp.full_like(ids, wildcard_id), ids)
    found &= ~lattice.is_broken
    counts = jnp.moveaxis(lattice.is_frame, 0, -1) & found[..., None]
    return jnp.where(counts[..., None, :], ids, jnp.full_like(ids, -1))


def shares_along(
    lattice: Lattice, semiring: Semiring, places: Int[Array, "T *B"]
) -> Float[Array, "T *B"]:
    """Of the total, the share of the label or wildcard at a place of its own in every frame.

    Places are those of `Lattice.places`; the share of nothing is 0. Anything in padded frames and
    where the total is zero.
    """
    given, lattice = lattice.is_frame.shape[0], with_a_frame(lattice)
    frames, labels = lattice.is_frame.shape[0], lattice.labels.shape[-1]
    if given == 0:
        return jnp.zeros(places.shape, lattice.scales.dtype)
    forward, backward = passes(lattice)

    def step(states: States, index: Array) -> tuple[States, States]:
        arrived = arrive(states, forward, semiring)
        return emit(states, arrived, frame_at(lattice, index, semiring), semiring), arrived

    def visit(carry: tuple, arrived: States, index: Array) -> tuple[tuple, Array]:
        back, whole = carry
        frame = frame_at(lattice, index, semiring)
        back = emit(back, arrive(back, backward, semiring), frame, semiring)
        place = lax.dynamic_index_in_dim(places, index, 0, keepdims=False)[..., None]
        in_gap = place >= labels
        states = jnp.where(in_gap, 2 * (place - labels), 2 * place + 1)
        states = jnp.where(place <= 2 * labels, states, jnp.full_like(states, -1))
        front, back_here = (_number_at(side, states, semiring) for side in (arrived, back))
        share = semiring.share(front, back_here, whole)
        share *= jnp.where(in_gap, frame.absorbed, jnp.ones_like(share))
        return (back, whole), share[..., 0]

    def turn(last: States) -> tuple[States, Number]:
        end = 2 * lattice.label_count[..., None]
        ends = (_number_at(last, state, semiring) for state in (end, end - 1))
        return virtual_row(lattice.label_count, lattice, semiring), semiring.plus(*ends)

    first = virtual_row(jnp.zeros_like(lattice.label_count), lattice, semiring)
    every = _stretch(lattice, 16 * labels)
    _, along = sweep(step, visit, first, turn, frames=frames, checkpoint_every=every)
    return along


class _Window(NamedTuple):
    """The part of a lattice near its diagonal: at every frame, so many labels.

    The diagonal runs from the first label in the first frame in use to the last in the last.
    """

    lattice: Lattice
    starts: Int[Array, "T *B"] | None
    """First label of each window; None if the window holds all labels."""
    width: int

    @classmethod
    def around_the_diagonal(cls, lattice: Lattice, band: int) -> "_Window":
        """`band` labels on either side."""
        labels, width = lattice.labels.shape[-1], 2 * band + 1
        if width >= labels:
            return cls(lattice, None, labels)
        count = lattice.label_count
        frame = jnp.cumsum(lattice.is_frame, axis=0, dtype=jnp.int32)
        slope = count.astype(jnp.float32) / jnp.maximum(frame[-1], 1).astype(jnp.float32)
        middle = jnp.maximum(frame - 1, 0).astype(jnp.float32) * slope[None]
        last = jnp.maximum(count - width, 0)[None]
        starts = jnp.minimum(jnp.maximum(middle.astype(jnp.int32) - band, 0), last)
        return cls(lattice, starts, width)

    def start(self, index: Int[Array, ""] | int) -> Int[Array, "*B"]:
        """First label of the window at a frame."""
        if self.starts is None:
            return jnp.zeros_like(self.lattice.label_count)
        return lax.dynamic_index_in_dim(self.starts, index, 0, keepdims=False)

    def lattice_at(self, index: Int[Array, ""] | int) -> Lattice:
        """The lattice with the labels of the window alone."""
        if self.starts is None:
            return self.lattice
        here, start, width = self.lattice, self.start(index), self.width
        wildcards = here.wildcards
        if wildcards is not None:
            in_gap = _slice(wildcards.in_gap, start, width + 1)
            wildcards = wildcards._replace(in_gap=in_gap)
        return here._replace(
            columns=_slice(here.columns, start, width),
            labels=_slice(here.labels, start, width),
            is_label=_slice(here.is_label, start, width),
            can_skip=_slice(here.can_skip, start, width),
            wildcards=wildcards,
        )

    def states_at(self, index: Int[Array, ""], states: States) -> States:
        """The states of the frame before, in the places of this window."""
        if self.starts is None:
            return states
        ahead = self.start(index) - self.start(jnp.maximum(index - 1, 0))

        def moved(row: Array) -> Array:
            beyond = jnp.full_like(row, MAX.zero)
            row_and_more = jnp.concatenate([row, beyond], axis=-1)
            return _slice(row_and_more, jnp.minimum(ahead, row.shape[-1]), row.shape[-1])

        return jax.tree.map(moved, states)


def _over_frames(paths: Paths, frames: int) -> Paths:
    """Rows `[T, *B, S]` of a sweep with the frames at the end."""
    return Paths(*(jnp.moveaxis(part[:frames], 0, -1) for part in paths))


def _stretch(lattice: Lattice, bytes_per_frame: int) -> int:
    """How many frames to keep things of: all, or so many that memory grows with their root."""
    frames = lattice.is_frame.shape[0]
    table = frames * bytes_per_frame * lattice.label_count.size
    return frames if table <= KEPT else 2 * math.isqrt(frames)


def _is_frame(lattice: Lattice, index: Int[Array, ""]) -> Bool[Array, "*B"]:
    is_frame = lax.dynamic_index_in_dim(lattice.is_frame, index, 0, keepdims=False)
    return is_frame & (index < lattice.is_frame.shape[0])


def _is_gap(wildcards: Wildcards, states: Int[Array, "... S"]) -> Bool[Array, "... S"]:
    """Whether a state is the blank of a gap with a wildcard."""
    in_gap = wildcards.in_gap
    in_gap = jnp.expand_dims(in_gap, range(states.ndim - in_gap.ndim))
    return (states & 1 == 0) & _at(in_gap, states >> 1)


def _best_at_zero(states: States) -> States:
    best = jnp.maximum(
        jnp.max(states.blank, axis=-1), jnp.max(states.label, axis=-1, initial=-jnp.inf)
    )
    best = jnp.where(best == -jnp.inf, jnp.zeros_like(best), best)
    return jax.tree.map(lambda part: part - best[..., None], states)


def _pack(blank: Array, moves: Array, skips: Array) -> UInt8[Array, "*B 3 bytes"]:
    nothing = jnp.zeros_like(blank[..., :1])
    moves, skips = (jnp.concatenate([bits, nothing], axis=-1) for bits in (moves, skips))
    bits = jnp.stack([blank, moves, skips], axis=-2)
    *shape, width = bits.shape
    room = jnp.zeros_like(bits, shape=(*shape, -width % 8))
    bits = jnp.concatenate([bits, room], axis=-1).reshape(*shape, -(-width // 8), 8)
    bits = bits.astype(jnp.uint8) << lax.broadcasted_iota(jnp.uint8, bits.shape, bits.ndim - 1)
    return jnp.sum(bits, axis=-1, dtype=jnp.uint8)


def _steps(pointers: UInt8[Array, "*B 3 bytes"], states: Int[Array, "*B S"]) -> Int[Array, "*B S"]:
    place = states >> 1

    def bit(plane: int) -> Array:
        byte = _at(pointers[..., plane, :], place >> 3)
        return (byte.astype(jnp.int32) >> (place & 7)) & 1

    return jnp.where(states & 1 == 0, bit(0), bit(1) + bit(2))


def _number_at(states: States, state: Int[Array, "*B S"], semiring: Semiring = MAX) -> Number:
    """The number of a state; zero for those before the first."""

    def one(blank: Array, label: Array, zero: float | int) -> Array:
        nothing = jnp.full_like(blank[..., :1], zero)
        label = jnp.concatenate([label, nothing], axis=-1)
        place = state >> 1
        found = jnp.where(state & 1 == 0, _at(blank, place), _at(label, place))
        return jnp.where(state >= 0, found, jnp.full_like(found, zero))

    return jax.tree.map(one, states.blank, states.label, semiring.zero)


@functools.partial(jnp.vectorize, signature="(n),(s)->(s)")
def _at(row: Shaped[Array, "n"], places: Int[Array, "s"]) -> Shaped[Array, "s"]:
    # Not empty: a gather needs something to clip to.
    row = jnp.concatenate([row, jnp.zeros_like(row, shape=(1,))])
    return row.at[places].get(mode="clip")


def _slice(
    row: Shaped[Array, "*B n"], start: Int[Array, "*B"], width: int
) -> Shaped[Array, "*B w"]:
    return jnp.vectorize(
        lambda row, start: lax.dynamic_slice_in_dim(row, start, width), signature="(n),()->(w)"
    )(row, start)
