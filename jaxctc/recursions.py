"""The scans over frames, for any semiring.

This is the only place of the library that loops over the frames of a lattice. Two passes move
through it with the same step (`jaxctc.steps`), mirrored: forward from the first frame,

    alpha_t(s)  the weight of all path beginnings up to frame t that are in state s there,

and backward from the last,

    beta_t(s)   the weight of all path endings from frame t on that are in state s there,

both with the emission of frame t, y_t(s) (Graves et al. 2006, section 4.1).

The total meets in the middle: both passes advance in one scan of half the length, and

    total = Σ_s arrived(s) · beta_t(s)

where `arrived` is alpha one step further, before the emission of frame t. Backward is forward for
the mirror image of the lattice, so the two are one pass over a lattice beside its image
(`jaxctc.blocks.pair_of`). In the middle they exchange their states and go back, each through the
half that the other has come through. Of that only the states in front of every block of frames are
kept; the rest is computed again, a block at a time, and gives the share of every label in every
frame,

    alpha_t(s) · beta_t(s) / (y_t(s) · total)

(section 4.2), which is 0 where the emission is.

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

from jaxctc.blocks import Blocks, axes_of, pair_of
from jaxctc.lattice import Lattice, sum_by_class
from jaxctc.padding import lengths_to_paddings
from jaxctc.semirings import LOG, Number, Semiring, share_of
from jaxctc.steps import (
    Axes,
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
)


class Stored(NamedTuple):
    """What shares are made of; blanks only where they may be wildcards."""

    blank: Number | None
    label: Number


class Shares(NamedTuple):
    """Parts of the total, per frame; 0 in padded frames and where the total is zero."""

    label: Float[Array, "*B T N"]
    gap: Float[Array, "*B T N+1"] | None
    """Of the wildcards; None without them."""


def total(lattice: Lattice, semiring: Semiring) -> Number:
    """Weight of all paths, in one scan of half as many steps as frames and no stored rows."""
    pair = pair_of(lattice)
    return _meet(_to_the_middle(pair, semiring).states, pair, semiring)


def shares(
    lattice: Lattice, semiring: Semiring, classes: int | None = None
) -> tuple[Number, Shares]:
    """The total, and what each label and each wildcard has of it in every frame.

    If it is told how many classes there are, labels of a class are summed: a block of frames at a
    time, or, where a table of so few labels is small, at the end. Without sums by block the labels'
    scores are read once only; they wait where their shares are going to be.
    """
    pair = pair_of(lattice)
    at_once = None if axes_of(pair).examples_last else classes
    way = _to_the_middle(pair, semiring, keeps_scores=at_once is None, starts=True)
    whole = _meet(way.states, pair, semiring)
    found = _from_the_middle(pair, semiring, whole, way, at_once)

    frames, labels = lattice.is_frame.shape[0], lattice.labels.shape[-1]
    found = jax.tree.map(lambda part: part[..., :frames, :], found)
    if found.gap is not None:
        found = found._replace(gap=found.gap[..., : labels + 1])
    if at_once is not None:
        return whole, found
    label = found.label[..., :labels]
    if classes is not None:
        label = sum_by_class(label, lattice.labels, classes)
    return whole, found._replace(label=label)


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


class _Way(NamedTuple):
    """What the way to the middle leaves."""

    states: States
    table: Float[Array, "*B R N"]
    """Of the labels' scores (`jaxctc.blocks`)."""
    starts: States | None
    """The states in front of each block."""


def _to_the_middle(
    pair: Lattice, semiring: Semiring, *, keeps_scores: bool = False, starts: bool = False
) -> _Way:
    """Both halves up to where they meet.

    The table of scores is that of all blocks or of the last one; the starts are kept if asked for.
    """
    blocks = Blocks.of(pair)

    def block(carry, index):
        states, room, table = carry
        table, scores = blocks.scores(pair, table, index)
        frames = blocks.emissions(pair, index, scores, semiring)
        after, room = _through(states, frames, room, pair, semiring)
        return (_tidy(after, semiring), room, table), states if starts else None

    first = _first_states(pair, semiring)
    table = blocks.table(pair, pair.labels.shape[-1], of_all=keeps_scores)
    carry = first, _room(2, first, pair), table
    (states, _, table), before = lax.scan(block, carry, blocks.indices)
    return _Way(states, table, before)


def _from_the_middle(
    pair: Lattice, semiring: Semiring, whole: Number, way: _Way, classes: int | None
) -> Shares:
    """Each half back through what the other has seen, which is computed again block by block.

    Tables of the shares, by class if it is told how many there are.
    """
    blocks, labels = Blocks.of(pair), pair.labels.shape[-1]

    def block(carry, given):
        states, ahead, behind, table, found = carry
        index, start = given
        if classes is None:
            scores = blocks.get(found.label, index)  # they wait where the shares go
        else:
            table, scores = blocks.scores(pair, table, index)
        frames = blocks.emissions(pair, index, scores, semiring)
        _, ahead = _through(start, frames, ahead, pair, semiring)
        states, behind = _through(states, frames, behind, pair, semiring, back=True)
        parts = _shares(ahead, behind, frames, whole, pair, semiring)
        if classes is None:
            parts = parts._replace(label=_unmirrored(parts.label, blocks.axes))
        else:
            parts = parts._replace(label=sum_by_class(parts.label, pair.labels, classes))
        if parts.gap is not None:
            parts = parts._replace(gap=_unmirrored(parts.gap, blocks.axes))
        found = jax.tree.map(lambda many, part: blocks.put(many, part, index), found, parts)
        return (_tidy(states, semiring), ahead, behind, table, found), None

    if classes is None:
        label, table = way.table, None
    else:
        label, table = blocks.table(pair, classes), way.table
    gap = None if pair.wildcards is None else blocks.table(pair, labels + 1)
    room = _room(blocks.size + 1, way.states, pair)
    middle = _exchange(way.states, blocks.axes), room, room, table, Shares(label, gap)
    (*_, found), _ = lax.scan(block, middle, (blocks.indices, way.starts), reverse=True)
    return jax.tree.map(blocks.in_order, found)


def _room(slots: int, states: States, pair: Lattice) -> Stored:
    """For what is stored of so many frames.

    Made once and handed on: what a scan stacks is filled with zeros before it, and for a scan
    within another at each of its turns.
    """
    return jax.tree.map(
        lambda part: jnp.broadcast_to(jnp.zeros_like(part), (slots, *part.shape)),
        _stored(states, pair),
    )


def _first_states(pair: Lattice, semiring: Semiring) -> States:
    count = pair.label_count
    last = jnp.full_like(count, pair.columns.shape[-1])
    first = virtual_row(jnp.stack([jnp.zeros_like(count), last - count]), pair, semiring)
    return jax.tree.map(lambda part: axes_of(pair).arranged(part, 1), first)


def _through(
    states: States,
    frames: Frame,
    room: Stored,
    pair: Lattice,
    semiring: Semiring,
    *,
    back: bool = False,
) -> tuple[States, Stored]:
    """One block further to the middle, or back from it, and what is stored on the way.

    The labels between one frame and the next are in a slot of the room: of all frames, one behind
    the other, or of two, in turn. They are read and written there because XLA:CPU copies what a
    loop carries from one turn to the next and does not change in its place.
    """
    blocks = Blocks.of(pair)
    direction, size = passes(pair, blocks.axes)[int(back)], blocks.size
    slots = jax.tree.leaves(room)[0].shape[0]

    def slot(seam):
        return seam if slots > size else lax.rem(seam, jnp.full_like(seam, slots))

    def left(states, room, seam):
        return jax.tree.map(
            lambda many, one: lax.dynamic_update_index_in_dim(many, one, slot(seam), 0),
            room,
            _stored(states, pair),
        )

    def labels(room, seam):
        return jax.tree.map(
            lambda many: lax.dynamic_index_in_dim(many, slot(seam), 0, keepdims=False), room.label
        )

    def step(carry, place):
        blank, room = carry
        before, behind = (place + 1, place) if back else (place, place + 1)
        frame = frame_of(frames, place, blocks.axes)
        states = advance(States(blank, labels(room, before)), direction, frame, semiring)
        return lax.optimization_barrier((states.blank, left(states, room, behind))), None

    seams = jnp.zeros_like(blocks.places[0]), jnp.full_like(blocks.places[0], size)
    first, last = reversed(seams) if back else seams
    carry = states.blank, left(states, room, first)
    (blank, room), _ = lax.scan(step, carry, blocks.places, reverse=back)
    return States(blank, labels(room, last)), room


def _shares(
    ahead: Stored, behind: Stored, frames: Frame, whole: Number, pair: Lattice, semiring: Semiring
) -> Shares:
    """What each label and gap has in the frames of a block, by what is stored on both ways.

    Both have the emission of the frame, so it is taken off one.
    """
    axes = axes_of(pair)
    whole = jax.tree.map(lambda part: axes.arranged(part[None, ..., None, None], 2), whole)
    counts = frames.is_frame & (semiring.decode(whole) > -jnp.inf)

    def rows(number: Number, places: slice) -> Number:
        return jax.tree.map(lambda part: jnp.moveaxis(part[places], 0, axes.frames), number)

    def share(here: Number, there: Number, emission: Number) -> Array:
        here, there = rows(here, slice(1, None)), rows(there, slice(None, -1))
        found = semiring.share(here, semiring.over(there, emission), whole)
        return jnp.where(counts, found, jnp.zeros_like(found))

    label = share(ahead.label, behind.label, frames.label)
    if pair.wildcards is None:
        return Shares(label, None)
    gap = share(ahead.blank, behind.blank, frames.blank) * frames.absorbed
    in_gap = axes.arranged(pair.wildcards.in_gap[..., None, :], 2)
    return Shares(label, jnp.where(in_gap, gap, jnp.zeros_like(gap)))


def _unmirrored(parts: Float[Array, "2 *B size N"], axes: Axes) -> Float[Array, "2 *B size N"]:
    """Labels of both in the order of the lattice."""
    return jnp.stack([parts[0], jnp.flip(parts[1], axes.labels)])


def _tidy(states: States, semiring: Semiring) -> States:
    return lax.optimization_barrier(States(*map(semiring.tidy, states)))


def _exchange(states: States, axes: Axes) -> States:
    """Each half gets the states of the other, in its own order."""
    return jax.tree.map(lambda part: jnp.flip(jnp.flip(part, 0), axes.labels), states)


def _meet(states: States, pair: Lattice, semiring: Semiring) -> Number:
    axes = axes_of(pair)
    sides = arrive(states, passes(pair, axes)[0], semiring), _exchange(states, axes)
    here, there = jax.tree.map(lambda part: axes.restored(part[0], 1), sides)
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
