"""Totals of graphs in which one label is another one, or missing, or one more has been put in.

A changed label c has a state of its own between what comes before it, whose alpha does not depend
on c, and what comes after it, whose beta does not either. Every path goes through that state, so

    ending_t(c)   = y_t(c) · (ending_{t+1}(c) + leaving_{t+1}(c))
    total(c)      = Σ_t entering_{t-1}(c) · ending_t(c)

where `ending` is beta of the changed state; `entering` is alpha of the blank and of the label
before it, `leaving` beta of the blank and of the label after it, each label only if it differs from
c. So one pass of alpha and one of beta serve all places and classes at once.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Int

from jaxctc._core.frames import Emissions, checkpoint_interval, checkpointed_passes, frames_of
from jaxctc._core.lean import broadcast, select, take_one
from jaxctc._core.normalizer import at_least_float32
from jaxctc._core.problem import Problem, expected_size
from jaxctc._core.recursion import (
    Alpha,
    Transitions,
    forward_step,
    initial,
    neighbours,
    transitions,
    without_edge,
)
from jaxctc._core.semirings import Number, Semiring

MAX_NUMBERS = 1 << 18
"""How many changes are made at once, of all classes together, unless fewer than"""
LEAST_CLASSES = 128
"""so many classes would be."""


class _Beside(NamedTuple):
    """The two states next to a changed one, on one side of it."""

    blank: Number
    """[*B, P]"""
    label: Number
    """[*B, P]"""


class _Neighbours(NamedTuple):
    """Whether a class is that of the label before or after a place, `[*B, P, C]`."""

    before: Bool[Array, "*B P C"]
    after: Bool[Array, "*B P C"]


def changed_totals(
    problem: Problem,
    labels: Int[Array, "*B N"],
    semiring: Semiring,
    *,
    label_loop: bool,
    insert: bool,
) -> Number:
    """Totals with each class in the place of each label or, to insert, in front of it.

    No score may be above `frame_max`, whatever its class. Classes come in chunks, for each of which
    alpha and beta are computed again: so there are never more than `MAX_NUMBERS` changes in hand,
    or `LEAST_CLASSES` for each place, beside the result.

    Returns:
      `[*B, N, K + 1]`, the label left out in the last column, or `[*B, N + 1, K]`. The blank's
      column means nothing.
    """
    classes, places = problem.scores.shape[-1], labels.shape[-1] + int(insert)
    most = MAX_NUMBERS // max(places * expected_size(problem.label_count), 1)
    number = -(-classes // max(most, LEAST_CLASSES))
    size = -(-classes // number)
    change = functools.partial(
        _changes, problem, labels, semiring, size, label_loop=label_loop, insert=insert
    )
    # For whoever differentiates: one chunk at a time keeps what it needs of all frames.
    starts = jnp.minimum(jnp.arange(number, dtype=jnp.int32) * size, classes - size)
    totals, missing = lax.map(jax.checkpoint(change, prevent_cse=False), starts)

    def side_by_side(chunks: Array) -> Array:
        *whole, last = (chunks[index] for index in range(number))
        return jnp.concatenate([*whole, last[..., number * size - classes :]], axis=-1)

    totals = jax.tree.map(side_by_side, totals)
    if insert:
        return totals
    return jax.tree.map(
        lambda row, one: jnp.concatenate([row, one[0][..., None]], axis=-1), totals, missing
    )


def _changes(
    problem: Problem,
    labels: Int[Array, "*B N"],
    semiring: Semiring,
    size: int,
    start: Int[Array, ""],
    *,
    label_loop: bool,
    insert: bool,
) -> tuple[Number, Number]:
    """Those of `size` classes from the start on, `[*B, P, size]`; without the label, `[*B, P]`."""
    forward, backward = (transitions(problem, label_loop, backward=way) for way in (False, True))
    same, unlike = _equal_neighbours(labels, start, size, label_loop=label_loop, insert=insert)
    scores = lax.dynamic_slice_in_dim(problem.scores, start, size, axis=-1)

    def beside(states: Alpha, move: Transitions) -> _Beside:
        """In front of every place or, backward, after it: a label's own blank is passed over."""
        both = _Beside(states.blank, neighbours(states.label, move, semiring))
        if insert:
            return both
        return _Beside(*(without_edge(part, move, first=move.backward) for part in both))

    def ways(states: _Beside, is_same: Array) -> Number:
        """Blank and label together or, next to an equal label, the blank alone, `[*B, P, C]`."""
        either = semiring.plus(states.blank, states.label)
        return jax.tree.map(
            lambda alone, both: select(
                is_same,
                broadcast(alone[..., None], is_same.shape),
                broadcast(both[..., None], is_same.shape),
            ),
            states.blank,
            either,
        )

    def emission(y: Emissions) -> Number:
        row = at_least_float32(take_one(scores, y.frame, -2))[..., None, :]
        top = take_one(problem.frame_max, y.frame, -1)[..., None, None]
        return semiring.encode(row, broadcast(top, row.shape))

    def ahead(alpha: Alpha, given: tuple[Emissions, None]) -> tuple[Alpha, Alpha]:
        return forward_step(alpha, given[0], forward, semiring), alpha

    def back(carry: Any, given: tuple[Emissions, Alpha]) -> tuple[Any, None]:
        beta, ending, totals, missing = carry
        y, before = given
        entering, leaving = beside(before, forward), ways(beside(beta, backward), same.after)
        arriving = semiring.plus(ending, leaving) if label_loop else leaving
        row = jax.tree.map(lambda part: broadcast(part, same.after.shape), emission(y))
        here = semiring.normalize(semiring.times(arriving, row))
        through = semiring.times(ways(entering, same.before), here)
        more = semiring.normalize(semiring.plus(totals, through))
        beta = forward_step(beta, y, backward, semiring)
        past = semiring.times(skipping(entering), beside(beta, backward).label)
        past = semiring.normalize(semiring.plus(missing, past))
        return (beta, *kept(y, (here, more, past), (ending, totals, missing))), None

    def kept(y: Emissions, new: tuple[Number, ...], old: tuple[Number, ...]) -> tuple[Number, ...]:
        def one(new: Array, old: Array) -> Array:
            counts = jnp.expand_dims(y.is_frame[..., 0], range(y.is_frame.ndim - 1, new.ndim))
            return select(counts, new, old)

        return jax.tree.map(one, new, old)

    def skipping(entering: _Beside) -> Number:
        """Ways from before a label to after it, past it."""
        return semiring.plus(entering.blank, semiring.mask(unlike, entering.label))

    def start_backward(alpha: Alpha) -> Any:
        beta = initial(problem, semiring, backward=True)
        entering = beside(alpha, forward)
        nothing = jax.tree.map(
            lambda part, zero: lax.full_like(part, zero, shape=same.after.shape),
            entering.blank,
            semiring.zero,
        )
        # Without the last label, a path ends in what came before it.
        place = jnp.arange(labels.shape[-1] + int(insert), dtype=jnp.int32)
        place = jnp.expand_dims(place, range(labels.ndim - 1))
        is_last = place == problem.label_count[..., None] - 1
        ended = semiring.normalize(semiring.plus(entering.blank, entering.label))
        return beta, nothing, nothing, semiring.mask(is_last, ended)

    frames = problem.is_frame.shape[-1]
    states = 2 * labels.shape[-1] + 1
    _, (_, _, totals, missing), _ = checkpointed_passes(
        ahead,
        back,
        initial(problem, semiring),
        start_backward,
        frames_of(problem, semiring),
        frames,
        interval=checkpoint_interval(frames, 8 * states * expected_size(problem.label_count)),
    )
    return totals, missing


def _equal_neighbours(
    labels: Int[Array, "*B N"],
    start: Int[Array, ""],
    size: int,
    *,
    label_loop: bool,
    insert: bool,
) -> tuple[_Neighbours, Bool[Array, "*B P"]]:
    """Which classes a path may not reach, or leave, without a blank; and where labels next to a
    label differ from each other.

    Without loops, two frames of a class are two labels, and nothing needs a blank.
    """
    nothing = lax.full_like(labels, -1, shape=(*labels.shape[:-1], 1))
    before = jnp.concatenate([nothing, labels], axis=-1)
    after = jnp.concatenate([labels, nothing], axis=-1)
    if not insert:
        before, after = before[..., :-1], after[..., 1:]
    ids = jnp.expand_dims(start + jnp.arange(size, dtype=jnp.int32), range(labels.ndim))

    def is_same(beside: Array) -> Array:
        return (beside[..., None] == ids) & label_loop

    return _Neighbours(is_same(before), is_same(after)), (before != after) | (not label_loop)
