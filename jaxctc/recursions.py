"""The scans over frames, for any semiring.

This is the only place of the library that loops over the frames of a lattice. Two passes move
through it with the same step (`jaxctc.steps`), mirrored: forward from the first frame,

    alpha_t(s)  the weight of all path beginnings up to frame t that are in state s there,

and backward from the last,

    beta_t(s)   the weight of all path endings from frame t on that are in state s there,

both with the emission of frame t (Graves et al. 2006, section 4.1).

The total meets in the middle: both passes advance in one scan of half the length, and

    total = Σ_s arrived(s) · beta_t(s)

where `arrived` is alpha one step further, before the emission of frame t. Going on in the same
way, each pass through the half that the other has stored, gives the share of every label in every
frame, arrived(s) · beta_t(s) / total, in twice as many steps, with half of what two whole passes
would store, and without dividing by an emission that may be zero.

What follows one path at a time (`jaxctc.paths`) needs no table over frames and labels: there the
forward pass leaves the states at every so many frames, and what lies between is computed again when
the backward sweep comes to it (`sweep`).
"""

import enum
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from jaxctc.lattice import Lattice
from jaxctc.padding import lengths_to_paddings
from jaxctc.semirings import LOG, UNTIDY, Number, Semiring
from jaxctc.steps import (
    Frame,
    States,
    advance,
    arrive,
    emit,
    frame_at,
    frame_of,
    frames_at,
    passes,
    predecessors,
    virtual_row,
    where,
    with_a_frame,
)

KEPT = 1 << 26
"""Bytes up to which rows are kept for the way back."""


class Stored(NamedTuple):
    """What shares are made of; blanks only where they may be wildcards."""

    blank: Number | None
    label: Number


class Shares(NamedTuple):
    """Parts of the total, per frame; anything in padded frames and where the total is zero."""

    label: Float[Array, "T *B N"]
    gap: Float[Array, "T *B N+1"] | None
    """Of the wildcards; None without them."""


def total(lattice: Lattice, semiring: Semiring) -> Number:
    """Weight of all paths, in one scan of half as many steps as frames and no stored rows."""
    lattice = with_a_frame(lattice)
    (front, back), _ = _to_the_middle(lattice, semiring, _Keep.NOTHING)
    return _meet(front, back, lattice, semiring)


def shares(
    lattice: Lattice,
    semiring: Semiring,
    fold: Callable[[Float[Array, "F *B N"]], Float[Array, "F *B M"]] | None = None,
) -> tuple[Number, Shares]:
    """The total, and what each label and each wildcard has of it in every frame.

    What labels have is passed through `fold`, if any, a block of frames at a time. The rows of
    the first half are kept if they take no more than `KEPT` bytes; if they take more, only the
    states in front of each block are, and its rows are computed again.
    """
    given, lattice = lattice.is_frame.shape[0], with_a_frame(lattice)
    blocks, fold = _Blocks.of(lattice), fold or (lambda labels: labels)
    keep = _Keep.ROWS if _bytes_of_rows(lattice, semiring) <= KEPT else _Keep.STARTS
    (front, back), stored = _to_the_middle(lattice, semiring, keep)
    whole = _meet(front, back, lattice, semiring)
    wide = jax.tree.map(lambda part: part[..., None], whole)

    def block(carry, stored):
        sides, found = carry
        index, kept = stored
        mirror = blocks.number - 1 - index
        early = frames_at(lattice, blocks.frames(index), semiring)
        later = frames_at(lattice, blocks.frames(mirror), semiring)
        if keep is _Keep.STARTS:
            _, kept = _through(kept, early, later, lattice, semiring)
        sides, there, here = _shares_of_blocks(sides, kept, early, later, wide, lattice, semiring)
        for part, place in ((there, index), (here, mirror)):
            found = blocks.put(found, part._replace(label=fold(part.label)), place)
        return (_tidy(sides, semiring), found), None

    def empty(width: int) -> Array:
        shape = (blocks.number * blocks.size, *lattice.label_count.shape, width)
        return jnp.zeros_like(lattice.label_count, lattice.scales.dtype, shape)

    labels = lattice.labels.shape[-1]
    found = Shares(
        empty(jax.eval_shape(fold, empty(labels)).shape[-1]),
        None if lattice.wildcards is None else empty(labels + 1),
    )
    (_, found), _ = lax.scan(block, ((front, back), found), (blocks.half, stored), reverse=True)
    return whole, jax.tree.map(lambda part: part[:given], found)


def rows(lattice: Lattice, semiring: Semiring, *, backward: bool) -> States:
    """The states of every frame, stacked `[T, *B, …]`, from one of the two passes.

    A padded frame repeats the row that the pass came from. States beyond the labels in use are
    zero.
    """
    given, lattice = lattice.is_frame.shape[0], with_a_frame(lattice)
    direction = passes(lattice)[int(backward)]

    def step(states: States, index: Int[Array, ""]) -> tuple[States, States]:
        arrived = arrive(states, direction, semiring)
        states = emit(states, arrived, frame_at(lattice, index, semiring), semiring)
        return states, states

    count = lattice.label_count
    edge = virtual_row(count if backward else jnp.zeros_like(count), lattice, semiring)
    frames = jnp.arange(lattice.is_frame.shape[0], dtype=jnp.int32)
    _, stacked = lax.scan(step, edge, frames, reverse=backward)
    stacked = jax.tree.map(lambda part: part[:given], stacked)
    labels = lattice.labels.shape[-1]
    return States(
        where(lengths_to_paddings(count + 1, labels + 1)[None], semiring.zero, stacked.blank),
        where(lengths_to_paddings(count, labels)[None], semiring.zero, stacked.label),
    )


def entropy(lattice: Lattice, semiring: Semiring) -> Float[Array, "*B"]:
    """Entropy of the paths, each with its share of the total, in nats; 0 if there are none.

    Along with every state goes the entropy of the path beginnings that end there. A step mixes
    those of the states it comes from, and adds how undecided it is between them (Hernando, Crespi
    and Cybenko 2005, "Efficient computation of the hidden Markov model entropy", section III):
    a sum of terms that are not negative, which a difference of two large numbers is not.
    """
    lattice = with_a_frame(lattice)
    forward, _ = passes(lattice)

    def arrive_with(states: States, doubts: States) -> tuple[States, States]:
        ways = predecessors(states, forward, semiring)
        behind = predecessors(doubts, forward, LOG._replace(zero=0.0))
        arrived = [semiring.plus(*terms) for terms in ways]
        mixed = map(functools.partial(_mixed, semiring), ways, arrived, behind)
        return States(*arrived), States(*mixed)

    def step(carry: tuple[States, States], index: Array) -> tuple[tuple[States, States], None]:
        states, doubts = carry
        frame = frame_at(lattice, index, semiring)
        arrived, mixed = arrive_with(states, doubts)
        if lattice.wildcards is not None:
            either = _surprise(frame.absorbed) + _surprise(1 - frame.absorbed)
            either = jnp.where(lattice.wildcards.in_gap, either, jnp.zeros_like(mixed.blank))
            mixed = mixed._replace(blank=mixed.blank + either)
        is_frame = frame.is_frame[..., None]
        doubts = jax.tree.map(lambda new, old: jnp.where(is_frame, new, old), mixed, doubts)
        return (emit(states, arrived, frame, semiring), doubts), None

    start = virtual_row(jnp.zeros_like(lattice.label_count), lattice, semiring)
    shape, dtype = lattice.can_skip.shape, lattice.scales.dtype
    none = States(
        jnp.zeros_like(lattice.label_count, dtype, (*shape[:-1], shape[-1] + 1)),
        jnp.zeros_like(lattice.label_count, dtype, shape),
    )
    frames = jnp.arange(lattice.is_frame.shape[0], dtype=jnp.int32)
    last, _ = lax.scan(step, (start, none), frames)
    arrived, mixed = arrive_with(*last)
    here = lattice.label_count[..., None]

    def at_the_end(part: Array) -> Array:
        return jnp.take_along_axis(part, here, axis=-1)[..., 0]

    impossible = semiring.decode(jax.tree.map(at_the_end, arrived.blank)) == -jnp.inf
    found = at_the_end(mixed.blank)
    return jnp.where(impossible, jnp.zeros_like(found), found)


def sweep(
    step: Callable[[Any, Array], tuple[Any, Any]],
    visit: Callable[[Any, Any, Array], tuple[Any, Any]],
    first: Any,
    turn: Callable[[Any], Any],
    *,
    frames: int,
    checkpoint_every: int,
) -> Any:
    """Goes forward over the frames and back over what the forward pass has seen.

    `step(states, index)` returns the next states and what `visit` is to know of this frame; `turn`
    makes the first value of `visit`'s carry from the last states; `visit(carry, seen, index)`
    returns the next carry and an output. Past the last frame, indices go on up to a multiple of
    `checkpoint_every`, and both have to take them for padded frames.

    The states at every `checkpoint_every`-th frame are kept, and what was seen in one such stretch:
    what lies between is computed again when the way back comes to it. With a single stretch
    nothing is.

    Returns:
      The last states and the outputs of `visit`, frames leading.
    """
    stretches = -(-frames // checkpoint_every)

    def indices(stretch: Array | int) -> Array:
        return stretch * checkpoint_every + jnp.arange(checkpoint_every, dtype=jnp.int32)

    def there(states: Any, stretch: Array | int) -> tuple[Any, Any]:
        return lax.scan(step, states, indices(stretch))

    def back(carry: Any, seen: Any, stretch: Array | int) -> tuple[Any, Any]:
        return lax.scan(
            lambda at, now: visit(at, *now), carry, (seen, indices(stretch)), reverse=True
        )

    if stretches == 1:
        last, seen = there(first, 0)
        _, outputs = back(turn(last), seen, 0)
        return last, jax.tree.map(lambda part: part[:frames], outputs)

    every = jnp.arange(stretches, dtype=jnp.int32)
    last, starts = lax.scan(lambda at, stretch: (there(at, stretch)[0], at), first, every)

    def again(carry: Any, kept: tuple[Any, Array]) -> tuple[Any, Any]:
        start, stretch = kept
        _, seen = there(start, stretch)
        return back(carry, seen, stretch)

    _, outputs = lax.scan(again, turn(last), (starts, every), reverse=True)
    return last, jax.tree.map(
        lambda part: part.reshape(stretches * checkpoint_every, *part.shape[2:])[:frames], outputs
    )


class _Blocks(NamedTuple):
    """Frames in an even number of blocks of one size, the last of them padded.

    Emissions are computed a block at a time, which keeps them in the cache and several cores
    busy, as one frame would not. It takes a block for a number to need tidying.
    """

    number: int
    size: int

    @classmethod
    def of(cls, lattice: Lattice) -> "_Blocks":
        """Of no more than `UNTIDY` frames."""
        frames = lattice.is_frame.shape[0]
        number = 2 * -(-frames // (2 * UNTIDY))
        return cls(number, -(-frames // number))

    @property
    def half(self) -> Int[Array, "half"]:
        """Indices of the blocks of the first half."""
        return jnp.arange(self.number // 2, dtype=jnp.int32)

    @property
    def places(self) -> Int[Array, "size"]:
        """Indices of the frames of a block."""
        return jnp.arange(self.size, dtype=jnp.int32)

    def frames(self, index: Int[Array, ""]) -> Int[Array, "size"]:
        """Of one block; those of the last may lie behind the last frame."""
        return index * self.size + self.places

    def put(self, rows: Shares, block: Shares, index: Int[Array, ""]) -> Shares:
        """Writes the rows of a block in their place."""
        start = index * self.size
        return jax.tree.map(
            lambda part, new: lax.dynamic_update_slice_in_dim(part, new, start, 0), rows, block
        )


class _Keep(enum.Enum):
    """What the way to the middle leaves behind."""

    NOTHING = enum.auto()
    STARTS = enum.auto()
    ROWS = enum.auto()


def _to_the_middle(
    lattice: Lattice, semiring: Semiring, keep: _Keep
) -> tuple[tuple[States, States], Any]:
    """Both passes up to where they meet, and what is kept of each block.

    Step i takes block i forward and the block as far from the end backward.
    """
    blocks = _Blocks.of(lattice)

    def block(sides, index):
        early = frames_at(lattice, blocks.frames(index), semiring)
        later = frames_at(lattice, blocks.frames(blocks.number - 1 - index), semiring)
        after, rows = _through(sides, early, later, lattice, semiring)
        kept = {_Keep.NOTHING: None, _Keep.STARTS: sides, _Keep.ROWS: rows}[keep]
        return _tidy(after, semiring), kept

    return lax.scan(block, _first_states(lattice, semiring), blocks.half)


def _bytes_of_rows(lattice: Lattice, semiring: Semiring) -> int:
    front, _ = jax.eval_shape(lambda: _first_states(lattice, semiring))
    row = jax.tree.leaves(_stored(front, lattice))
    return lattice.is_frame.shape[0] * sum(part.size * part.dtype.itemsize for part in row)


def _first_states(lattice: Lattice, semiring: Semiring) -> tuple[States, States]:
    first = jnp.zeros_like(lattice.label_count)
    return (
        virtual_row(first, lattice, semiring),
        virtual_row(lattice.label_count, lattice, semiring),
    )


def _through(
    sides: tuple[States, States], early: Frame, later: Frame, lattice: Lattice, semiring: Semiring
) -> tuple[tuple[States, States], tuple[Stored, Stored]]:
    """One block forward, one backward; the rows of both, in the order of the steps."""
    forward, backward = passes(lattice)
    blocks = _Blocks.of(lattice)

    def step(sides, place):
        front, back = sides
        front = advance(front, forward, frame_of(early, place), semiring)
        back = advance(back, backward, frame_of(later, blocks.size - 1 - place), semiring)
        return (front, back), (_stored(front, lattice), _stored(back, lattice))

    return lax.scan(step, sides, blocks.places)


def _shares_of_blocks(
    sides: tuple[States, States],
    kept: tuple[Stored, Stored],
    early: Frame,
    later: Frame,
    whole: Number,
    lattice: Lattice,
    semiring: Semiring,
) -> tuple[tuple[States, States], Shares, Shares]:
    """The later block forward, the early one backward, and what the paths of each have there."""
    forward, backward = passes(lattice)
    blocks = _Blocks.of(lattice)

    def step(sides, stored):
        front, back = sides
        place, (front_row, back_row) = stored
        frame = frame_of(later, blocks.size - 1 - place)
        arrived = arrive(front, forward, semiring)
        here = _share(_stored(arrived, lattice), back_row, whole, frame, lattice, semiring)
        front = emit(front, arrived, frame, semiring, tidy=False)
        frame = frame_of(early, place)
        arrived = arrive(back, backward, semiring)
        there = _share(front_row, _stored(arrived, lattice), whole, frame, lattice, semiring)
        back = emit(back, arrived, frame, semiring, tidy=False)
        return (front, back), (here, there)

    # The rows come in the order of their steps; the last step is next to the first one here.
    sides, (here, there) = lax.scan(step, sides, (blocks.places, kept), reverse=True)
    return sides, there, jax.tree.map(lambda part: jnp.flip(part, 0), here)


def _tidy(sides: tuple[States, States], semiring: Semiring) -> tuple[States, States]:
    front, back = (States(*map(semiring.tidy, states)) for states in sides)
    return lax.optimization_barrier((front, back))


def _meet(front: States, back: States, lattice: Lattice, semiring: Semiring) -> Number:
    arrived = arrive(front, passes(lattice)[0], semiring)
    joint = jax.tree.map(
        lambda *parts: jnp.concatenate(parts, axis=-1),
        semiring.times(arrived.blank, back.blank),
        semiring.times(arrived.label, back.label),
    )
    return semiring.sum(joint)


def _mixed(
    semiring: Semiring, ways: tuple[Number, ...], arrived: Number, behind: tuple[Array, ...]
) -> Array:
    one = jax.tree.map(jnp.full_like, arrived, semiring.one)
    shares = [semiring.share(way, one, arrived) for way in ways]
    terms = (share * doubt + _surprise(share) for share, doubt in zip(shares, behind, strict=True))
    return functools.reduce(jnp.add, terms)


def _surprise(share: Array) -> Array:
    """-p log p, 0 for 0."""
    is_any = share > 0
    return jnp.where(
        is_any,
        -share * jnp.log(jnp.where(is_any, share, jnp.ones_like(share))),
        jnp.zeros_like(share),
    )


def _stored(states: States, lattice: Lattice) -> Stored:
    return Stored(None if lattice.wildcards is None else states.blank, states.label)


def _share(
    front: Stored, back: Stored, whole: Number, frame: Frame, lattice: Lattice, semiring: Semiring
) -> Shares:
    label = semiring.share(front.label, back.label, whole)
    if lattice.wildcards is None:
        return Shares(label, None)
    gap = semiring.share(front.blank, back.blank, whole) * frame.absorbed
    return Shares(label, jnp.where(lattice.wildcards.in_gap, gap, jnp.zeros_like(gap)))
