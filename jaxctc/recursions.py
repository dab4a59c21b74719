"""The scans over frames, for any semiring.

This is the only place of the library that loops over the frames of a lattice. Two passes move
through it with the same step (`jaxctc.steps`), mirrored: forward from the first frame,

    alpha_t(s)  the weight of all path beginnings up to frame t that are in state s there,

and backward from the last,

    beta_t(s)   the weight of all path endings from frame t on that are in state s there,

both with the emission of frame t (Graves et al. 2006, section 4.1).

The total meets in the middle: both passes advance in one scan of half the length, and

    total = Σ_s arrived(s) · beta_t(s)

where `arrived` is alpha one step further, before the emission of frame t. Backward is forward for
the mirror image of the lattice, so the two are one pass over a lattice beside its image
(`jaxctc.steps.with_mirror_image`). In the middle they exchange their states and go back, each
through the half whose rows the other has stored: that gives the share of every label in every
frame, arrived(s) · row_t(s) / total, in twice as many steps, with half of what two whole passes
would store, and without dividing by an emission that may be zero.

What follows one path at a time (`jaxctc.paths`) needs no table over frames and labels: there the
forward pass leaves the states at every so many frames, and what lies between is computed again when
the backward sweep comes to it (`sweep`).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from jaxctc.blocks import Blocks
from jaxctc.lattice import Lattice
from jaxctc.padding import lengths_to_paddings
from jaxctc.semirings import LOG, Number, Semiring, share_of
from jaxctc.steps import (
    Frame,
    States,
    advance,
    arrive,
    emit,
    frame_at,
    frame_of,
    passes,
    predecessors,
    virtual_row,
    where,
    with_a_frame,
    with_mirror_image,
)

KEPT = 1 << 26
"""Bytes up to which what was seen at all frames is kept for the way back."""


class Stored(NamedTuple):
    """What shares are made of; blanks only where they may be wildcards."""

    blank: Number | None
    label: Number


class Shares(NamedTuple):
    """Parts of the total, per frame; anything in padded frames and where the total is zero."""

    label: Float[Array, "*B T N"]
    gap: Float[Array, "*B T N+1"] | None
    """Of the wildcards; None without them."""


def total(lattice: Lattice, semiring: Semiring) -> Number:
    """Weight of all paths, in one scan of half as many steps as frames and no stored rows."""
    pair = with_mirror_image(with_a_frame(lattice))
    blocks, labels = Blocks.of(pair), lattice.labels.shape[-1]
    table = blocks.table(pair, labels, of_all=False)
    seen, _ = _to_the_middle(pair, semiring, table)
    return _meet(seen.states, pair, semiring)


def shares(
    lattice: Lattice,
    semiring: Semiring,
    fold: Callable[[Float[Array, "*B F N"]], Float[Array, "*B F M"]] | None = None,
) -> tuple[Number, Shares]:
    """The total, and what each label and each wildcard has of it in every frame.

    What labels have is passed through `fold`, if any, a block of frames at a time. Without it, the
    labels' scores are read once only: they wait where their shares are going to be. The rows of the
    first way are kept if they take no more than `KEPT` bytes; if they take more, only the states in
    front of each block are, and its rows are computed again.
    """
    given, pair = lattice.is_frame.shape[0], with_mirror_image(with_a_frame(lattice))
    blocks = Blocks.of(pair)
    keeps = _bytes_of_rows(pair, semiring) <= KEPT
    rows = _room(blocks.number, pair, semiring) if keeps else None
    table = blocks.table(pair, lattice.labels.shape[-1], of_all=fold is None)
    seen, starts = _to_the_middle(pair, semiring, table, rows, starts=not keeps)
    whole = _meet(seen.states, pair, semiring)
    found = _from_the_middle(pair, semiring, whole, seen, starts, fold)
    return whole, jax.tree.map(lambda part: blocks.in_order(part)[..., :given, :], found)


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
        is_frame = frame.is_frame
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


class _Seen(NamedTuple):
    """What the way to the middle has come to."""

    states: States
    rows: Stored | None
    """What is stored of each frame of both halves, `[number, size, 2, *B, …]`; None for nothing."""
    table: Float[Array, "*B R N"]
    """Of the labels' scores (`jaxctc.blocks`)."""


def _to_the_middle(
    pair: Lattice,
    semiring: Semiring,
    table: Float[Array, "*B R N"],
    rows: Stored | None = None,
    *,
    starts: bool = False,
) -> tuple[_Seen, States | None]:
    """Both halves up to where they meet; if asked for, the states in front of each block."""
    blocks = Blocks.of(pair)

    def block(seen, index):
        table, scores = blocks.scores(pair, seen.table, index)
        frames = blocks.emissions(pair, index, scores, semiring)
        states, rows = _through(seen.states, frames, seen.rows, index, pair, semiring)
        return _Seen(_tidy(states, semiring), rows, table), seen.states if starts else None

    first = _Seen(_first_states(pair, semiring), rows, table)
    return lax.scan(block, first, blocks.indices)


def _from_the_middle(
    pair: Lattice,
    semiring: Semiring,
    whole: Number,
    seen: _Seen,
    starts: States | None,
    fold: Callable[[Array], Array] | None,
) -> Shares:
    """Each half back through what the other has seen; tables of the shares, folded or not."""
    blocks, labels = Blocks.of(pair), pair.labels.shape[-1]

    def block(carry, given):
        states, room, parts, table, found = carry
        index, start, rows = given
        if fold is None:
            scores = blocks.get(found.label, index)  # they wait where the shares go
        else:
            table, scores = blocks.scores(pair, table, index)
        frames = blocks.emissions(pair, index, scores, semiring)
        if rows is None:
            _, room = _through(start, frames, room, jnp.zeros_like(index), pair, semiring)
            rows = jax.tree.map(lambda part: part[0], room)
        states, parts = _back_through(states, frames, rows, parts, whole, pair, semiring)
        label, gap = _unmirrored(parts.label), found.gap
        label = blocks.put(found.label, label if fold is None else map(fold, label), index)
        if gap is not None and parts.gap is not None:
            gap = blocks.put(gap, _unmirrored(parts.gap), index)
        return (_tidy(states, semiring), room, parts, table, Shares(label, gap)), None

    label, table = seen.table, None
    if fold is not None:
        label, table = blocks.table(pair, jax.eval_shape(fold, label).shape[-1]), label
    gap = None if pair.wildcards is None else blocks.table(pair, labels + 1)
    room = _room(1, pair, semiring) if seen.rows is None else None
    parts = _room_for_shares(blocks.size, pair, semiring)
    middle = _exchange(seen.states), room, parts, table, Shares(label, gap)
    (*_, found), _ = lax.scan(block, middle, (blocks.indices, starts, seen.rows), reverse=True)
    return found


# What a scan stacks is filled with zeros before it, and for a scan within another at each of its
# turns. So what is to be written is made here, once, and handed on.


def _room(blocks: int, pair: Lattice, semiring: Semiring) -> Stored:
    """For the rows of so many blocks."""
    size = Blocks.of(pair).size
    return jax.tree.map(
        lambda part: jnp.broadcast_to(jnp.zeros_like(part), (blocks, size, *part.shape)),
        _stored(_first_states(pair, semiring), pair),
    )


def _room_for_shares(frames: int, pair: Lattice, semiring: Semiring) -> Shares:
    def room(number: Number) -> Array:
        like = jnp.zeros_like(jax.tree.leaves(number)[0], pair.scales.dtype)[..., None, :]
        return jnp.broadcast_to(like, (*like.shape[:-2], frames, like.shape[-1]))

    row = _stored(_first_states(pair, semiring), pair)
    return Shares(room(row.label), None if row.blank is None else room(row.blank))


def _bytes_of_rows(pair: Lattice, semiring: Semiring) -> int:
    rows = jax.eval_shape(lambda: _room(Blocks.of(pair).number, pair, semiring))
    return sum(part.size * part.dtype.itemsize for part in jax.tree.leaves(rows))


def _first_states(pair: Lattice, semiring: Semiring) -> States:
    count = pair.label_count
    last = jnp.full_like(count, pair.columns.shape[-1])
    return virtual_row(jnp.stack([jnp.zeros_like(count), last - count]), pair, semiring)


def _through(
    states: States,
    frames: Frame,
    rows: Stored | None,
    index: Int[Array, ""],
    pair: Lattice,
    semiring: Semiring,
) -> tuple[States, Stored | None]:
    """One block further to the middle, and its rows written, if there is room for them."""
    forward, _ = passes(pair)

    def step(carry, place):
        states, rows = carry
        states = advance(states, forward, frame_of(frames, place), semiring)

        def written(part: Array, row: Array) -> Array:
            start = (index, place, *[jnp.zeros_like(place)] * row.ndim)
            return lax.dynamic_update_slice(part, row[None, None], start)

        if rows is not None:
            rows = jax.tree.map(written, rows, _stored(states, pair))
        return (states, rows), None

    return lax.scan(step, (states, rows), Blocks.of(pair).places)[0]


def _back_through(
    states: States,
    frames: Frame,
    rows: Stored,
    parts: Shares,
    whole: Number,
    pair: Lattice,
    semiring: Semiring,
) -> tuple[States, Shares]:
    """One block further from the middle, and what the paths that come along have there."""
    _, backward = passes(pair)
    whole = jax.tree.map(lambda part: part[None, ..., None], whole)

    def step(carry, given):
        states, parts = carry
        place, row = given
        frame = frame_of(frames, place)
        arrived = arrive(states, backward, semiring)
        part = _share(row, _stored(arrived, pair), whole, frame, pair, semiring)
        parts = jax.tree.map(
            lambda many, one: lax.dynamic_update_index_in_dim(many, one, place, -2), parts, part
        )
        return (emit(states, arrived, frame, semiring, tidy=False), parts), None

    return lax.scan(step, (states, parts), (Blocks.of(pair).places, rows), reverse=True)[0]


def _unmirrored(parts: Float[Array, "2 *B size N"]) -> tuple[Array, Array]:
    """Frames and labels of both in the order of the lattice."""
    early, later = parts
    return early, jnp.flip(later, (-2, -1))


def _tidy(states: States, semiring: Semiring) -> States:
    return lax.optimization_barrier(States(*map(semiring.tidy, states)))


def _exchange(states: States) -> States:
    """Each half gets the states of the other, in its own order."""
    return jax.tree.map(lambda part: jnp.flip(part, (0, -1)), states)


def _meet(states: States, pair: Lattice, semiring: Semiring) -> Number:
    here, there = (
        jax.tree.map(lambda part: part[0], side)
        for side in (arrive(states, passes(pair)[0], semiring), _exchange(states))
    )
    joint = jax.tree.map(
        lambda *parts: jnp.concatenate(parts, axis=-1),
        semiring.times(here.blank, there.blank),
        semiring.times(here.label, there.label),
    )
    return semiring.sum(joint)


def _mixed(
    semiring: Semiring, ways: tuple[Number, ...], arrived: Number, behind: tuple[Array, ...]
) -> Array:
    shares = [share_of(way, arrived, semiring) for way in ways]
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
    row: Stored, arrived: Stored, whole: Number, frame: Frame, pair: Lattice, semiring: Semiring
) -> Shares:
    label = semiring.share(row.label, arrived.label, whole)
    if pair.wildcards is None:
        return Shares(label, None)
    gap = semiring.share(row.blank, arrived.blank, whole) * frame.absorbed
    return Shares(label, jnp.where(pair.wildcards.in_gap, gap, jnp.zeros_like(gap)))
