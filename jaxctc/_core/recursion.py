"""Forward-backward over the frames of a CTC graph, in any semiring: the mathematics.

Graves et al. 2006, section 4.1. With y_t(s) for what state s emits in frame t,

    alpha_t(s)  is the weight of all path beginnings up to frame t that are in state s there,
    beta_t(s)   is the weight of all path endings from frame t on that are in state s there,

both with y_t(s). One frame of either is a `transition`, from the states of the frame next to it,
times the emission (`forward_step`). The total over all paths is Σ_s alpha_T(s) over the two states
where a path may end, and the part of it that passes through state s in frame t, its occupancy, is

    alpha_t(s) · beta_t(s) / (y_t(s) · total).

Before the first frame, weight one stands in blank 0, and one step from there leads to the two
states where a path may start, so the first frame is like any other. For beta it stands in the blank
after the last label. A padded frame leaves all states as they are.

This file knows no backend: plain scans, which JAX differentiates in the semirings LOG and MAX.
`kernels` hold faster schedules of the same recursion for values alone.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from jaxctc._core.frames import (
    Emissions,
    Frames,
    checkpoint_interval,
    checkpointed_scan,
    emissions,
    frames_of,
    scan_frames,
)
from jaxctc._core.lean import broadcast, reverse, select
from jaxctc._core.problem import Problem, expected_size, wildcard_share
from jaxctc._core.semirings import LOG, Number, Semiring, ratio


class Alpha(NamedTuple):
    """One number per state: alpha or, backward, beta of one frame."""

    blank: Number
    """[*B, N+1]"""
    label: Number
    """[*B, N]"""


class Transitions(NamedTuple):
    """Which states a path may come from: in the frame before or, backward, in the frame after."""

    can_skip: Bool[Array, "*B N"]
    """Whether a path may enter the label from the label next to it, without a blank."""
    label_loop: bool
    """Whether it may stay in a label."""
    backward: bool
    axis: int = -1
    """The axis of the labels."""


def transitions(problem: Problem, label_loop: bool, *, backward: bool = False) -> Transitions:
    """Those of alpha or, backward, of beta, where a label is entered from the one after it."""
    can_skip = problem.can_skip
    if backward:
        never = jnp.zeros_like(can_skip[..., :1])
        can_skip = jnp.concatenate([can_skip[..., 1:], never], axis=-1)[..., : can_skip.shape[-1]]
    return Transitions(can_skip, label_loop, backward)


# One frame.


def neighbours(label: Number, move: Transitions, semiring: Semiring) -> Number:
    """Beside each blank the label that a path enters it from, `[*B, N+1]`; zero for none.

    Forward that is label n - 1 for blank n, backward label n.
    """

    def one(part: Array, zero: float | int) -> Array:
        shape = list(part.shape)
        shape[move.axis] = 1
        edge = lax.full(shape, zero, part.dtype)
        parts = (part, edge) if move.backward else (edge, part)
        # Not by `.at[].set`, which XLA:CPU can miscompile (openxla/xla#49176).
        return jnp.concatenate(parts, axis=move.axis)

    return jax.tree.map(one, label, semiring.zero)


def without_edge(number: Number, move: Transitions, *, first: bool) -> Number:
    """All of `[*B, N+1]` but the first or the last."""
    cut = functools.partial(lax.slice_in_dim, axis=move.axis)
    return jax.tree.map(
        lambda part: cut(part, int(first), part.shape[move.axis] - int(not first)), number
    )


def predecessors(
    alpha: Alpha, beside: Number, move: Transitions, semiring: Semiring
) -> tuple[tuple[Number, ...], tuple[Number, ...]]:
    """The states that a path enters each blank from, and each label from; the state itself first.

    `beside` are its `neighbours`. Forward, in the terms of the paper:

        blank n   alpha(blank n)   alpha(label n-1)
        label n   alpha(label n)   alpha(blank n)     alpha(label n-1) if it may skip that blank
    """
    blank, skipped = (
        without_edge(part, move, first=move.backward) for part in (alpha.blank, beside)
    )
    skipped = semiring.mask(move.can_skip, skipped)
    itself = alpha.label
    if not move.label_loop:
        itself = jax.tree.map(lax.full_like, itself, semiring.zero)
    return (alpha.blank, beside), (itself, blank, skipped)


def transition(alpha: Alpha, move: Transitions, semiring: Semiring) -> Alpha:
    """The weight of all ways into each state, one frame further: equation 6 without y_t(s)."""
    beside = neighbours(alpha.label, move, semiring)
    blank, label = predecessors(alpha, beside, move, semiring)
    return Alpha(semiring.plus(*blank), semiring.plus(*label))


def apply_emission(before: Alpha, arrived: Alpha, y: Emissions, semiring: Semiring) -> Alpha:
    """`arrived` times y_t(s), normalized; what was before in a padded frame."""
    emitted = Alpha(
        semiring.normalize(semiring.times(arrived.blank, y.blank)),
        semiring.normalize(semiring.times(arrived.label, y.label)),
    )
    return jax.tree.map(functools.partial(select, y.is_frame), emitted, before)


def forward_step(alpha: Alpha, y: Emissions, move: Transitions, semiring: Semiring) -> Alpha:
    """alpha_t from alpha_{t-1} or, with backward transitions, beta_t from beta_{t+1}."""
    return apply_emission(alpha, transition(alpha, move, semiring), y, semiring)


def initial(problem: Problem, semiring: Semiring, *, backward: bool = False) -> Alpha:
    """Weight one in blank 0 or, backward, in the blank after the last label."""
    return weight_one_in(start_blank(problem, backward=backward), problem, semiring)


def start_blank(problem: Problem, *, backward: bool = False) -> Bool[Array, "*B blanks"]:
    """The blank that a path comes from: blank 0 or, backward, the one after the last label."""
    count = problem.label_count
    shape = (*count.shape, problem.is_label.shape[-1] + 1)
    place = lax.broadcasted_iota(jnp.int32, shape, count.ndim)
    return place == (count if backward else jnp.zeros_like(count))[..., None]


def weight_one_in(
    blank: Bool[Array, "..."], problem: Problem, semiring: Semiring, axis: int = -1
) -> Alpha:
    """Weight one in some blanks, zero elsewhere; the labels lie along `axis`."""
    shape = list(blank.shape)
    shape[axis] -= 1

    def constant(value: float | int, shape: Sequence[int]) -> Array:
        # Integers are exponents. Made of `blank`, it lies on the devices that that lies on.
        dtype = jnp.int32 if isinstance(value, int) else problem.frame_max.dtype
        return lax.full_like(blank, value, dtype, tuple(shape))

    one = jax.tree.map(lambda value: constant(value, blank.shape), semiring.one)
    label = jax.tree.map(lambda value: constant(value, shape), semiring.zero)
    return Alpha(semiring.mask(blank, one), label)


# All frames.


def rows(
    problem: Problem,
    semiring: Semiring,
    *,
    label_loop: bool,
    backward: bool = False,
    record: Callable[[Number], Any] = lambda number: number,
) -> Alpha:
    """alpha or beta of all frames, `[T, *B, …]`; zero beyond the labels in use.

    `record` says what to keep of a number: all of it, or what `semiring.decode` makes of it.
    """
    move = transitions(problem, label_loop, backward=backward)
    count, labels = problem.label_count[..., None], problem.is_label.shape[-1]

    def is_within(last: Array, states: int) -> Array:
        return lax.broadcasted_iota(jnp.int32, (*count.shape[:-1], states), count.ndim - 1) <= last

    in_use = Alpha(is_within(count, labels + 1), is_within(count - 1, labels))

    def step(alpha: Alpha, given: tuple[Emissions, None]) -> tuple[Alpha, Alpha]:
        alpha = forward_step(alpha, given[0], move, semiring)
        return alpha, Alpha(*map(record, map(semiring.mask, in_use, alpha)))

    start = initial(problem, semiring, backward=backward)
    frames = frames_of(problem, semiring)
    return scan_frames(step, start, frames, problem.is_frame.shape[-1], backward=backward)[1]


def total(
    problem: Problem, semiring: Semiring, *, label_loop: bool, factors: Alpha | None = None
) -> Number:
    """Weight of all paths: Σ_s arrived(s) · beta_t(s), where alpha and beta meet in the middle.

    `arrived` is alpha_{t-1} after a transition, without y_t. Beta is alpha of the graph read from
    its end, frames and labels reversed. So both halves are one scan over the graph beside its
    mirror image, with half as many steps as frames. `factors` `[T, *B, …]` multiply the emissions.
    """
    frames = problem.is_frame.shape[-1]
    forward, backward = (transitions(problem, label_loop, backward=way) for way in (False, True))
    pair = forward._replace(can_skip=_beside(forward.can_skip, backward.can_skip))

    def weighted(first: Array, size: int) -> Emissions:
        y = emissions(problem, first, size, semiring)
        if factors is None:
            return y
        more = jax.tree.map(lambda part: lax.dynamic_slice_in_dim(part, first, size), factors)
        blank, label = map(semiring.times, (y.blank, y.label), more)
        return y._replace(blank=blank, label=label)

    def read(first: Array, size: int) -> Emissions:
        ahead, back = weighted(first, size), weighted(frames - size - first, size)
        back = jax.tree.map(lambda part: reverse(part, 0), back)
        # The middle frame of an odd number counts for alpha alone.
        is_frame = back.is_frame & jnp.expand_dims(
            back.frame >= -(-frames // 2), range(1, back.is_frame.ndim)
        )
        return Emissions(
            jax.tree.map(functools.partial(_beside, axis=1), ahead.blank, back.blank),
            jax.tree.map(functools.partial(_beside, axis=1), ahead.label, back.label),
            jnp.stack([ahead.is_frame, is_frame], axis=1),
            ahead.frame,
        )

    def step(alpha: Alpha, given: tuple[Emissions, None]) -> tuple[Alpha, None]:
        return forward_step(alpha, given[0], pair, semiring), None

    ends = (initial(problem, semiring, backward=way) for way in (False, True))
    pairs = Frames(read, frames_of(problem, semiring).at_once)
    met, _ = scan_frames(step, jax.tree.map(_beside, *ends), pairs, -(-frames // 2))
    arrived = transition(jax.tree.map(lambda part: part[0], met), forward, semiring)
    beta = jax.tree.map(lambda part: reverse(part[1], -1), met)
    return sum_of_products(arrived, beta, semiring)


def sum_of_products(arrived: Alpha, beta: Alpha, semiring: Semiring) -> Number:
    """Σ_s arrived(s) · beta(s) over blanks and labels."""
    products = (semiring.times(a, b) for a, b in zip(arrived, beta, strict=True))
    return semiring.sum(jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=-1), *products))


def occupancies(
    problem: Problem,
    semiring: Semiring,
    pick: Callable[[Alpha, Int[Array, ""]], tuple[Number, ...]],
    *,
    label_loop: bool,
    bytes_per_frame: int,
) -> tuple[Number, tuple[Array, ...]]:
    """The total, and the occupancies of selected states: arrived_t(s) · beta_t(s) / total.

    `arrived_t` is alpha_t without y_t, so nothing is divided by an emission that may be 0.
    `pick(alpha, frame)` picks out what is wanted of alpha and beta alike, with the batch in
    front; it takes `bytes_per_frame` to keep that.

    Returns:
      `(total [*B], occupancies [T, *B, …])`; 0 in padded frames and where the total is zero.
    """
    forward, backward = (transitions(problem, label_loop, backward=way) for way in (False, True))

    def ahead(alpha: Alpha, given: tuple[Emissions, None]) -> tuple[Alpha, Any]:
        y, _ = given
        arrived = transition(alpha, forward, semiring)
        return apply_emission(alpha, arrived, y, semiring), pick(arrived, y.frame)

    def back(carry: Any, given: tuple[Emissions, Any]) -> tuple[Any, Any]:
        beta, total = carry
        y, arrived = given
        beta = forward_step(beta, y, backward, semiring)
        counts = y.is_frame & (semiring.decode(total) > -jnp.inf)

        def occupancy(arrived: Number, beta: Number) -> Array:
            found = semiring.occupancy(arrived, beta, total)
            return select(counts, found, 0)

        return (beta, total), tuple(map(occupancy, arrived, pick(beta, y.frame)))

    def start_backward(alpha: Alpha) -> tuple[Alpha, Number]:
        beta = initial(problem, semiring, backward=True)
        total = sum_of_products(transition(alpha, forward, semiring), beta, semiring)
        return beta, jax.tree.map(lambda part: part[..., None], total)

    frames = problem.is_frame.shape[-1]
    last, found = checkpointed_scan(
        ahead,
        back,
        initial(problem, semiring),
        start_backward,
        frames_of(problem, semiring),
        frames,
        interval=checkpoint_interval(frames, bytes_per_frame),
    )
    return jax.tree.map(lambda part: part[..., 0], start_backward(last)[1]), found


def label_occupancies(
    problem: Problem, semiring: Semiring, *, label_loop: bool
) -> tuple[Number, Float[Array, "*B T N"], Float[Array, "*B T N+1"] | None]:
    """The total, the occupancies of labels and, with wildcards, of each blank."""
    has_wildcards = problem.wildcards is not None

    def pick(alpha: Alpha, frame: Array) -> tuple[Number, ...]:
        del frame
        return (alpha.label, alpha.blank) if has_wildcards else (alpha.label,)

    weight, found = occupancies(
        problem,
        semiring,
        pick,
        label_loop=label_loop,
        bytes_per_frame=8 * expected_size(problem.can_skip) * (1 + has_wildcards),
    )
    label, *blanks = (jnp.moveaxis(part, 0, -2) for part in found)
    return weight, label, blanks[0] if has_wildcards else None


def label_occupancies_by_derivative(
    problem: Problem, *, label_loop: bool
) -> tuple[Float[Array, "*B"], Float[Array, "*B T N"], Float[Array, "*B T N+1"] | None]:
    """The log of the total and occupancies as of `label_occupancies`: ∂ log total / ∂ log y_t(s).

    Equation 15, for whoever differentiates occupancies: half as many steps to differentiate again.
    """
    frames = problem.is_frame.shape[-1]
    ones = jax.tree.map(jnp.zeros_like, initial(problem, LOG))  # in LOG, one is 0
    if problem.wildcards is None:
        ones = ones._replace(blank=ones.blank[..., :1])
    ones = jax.tree.map(lambda part: jnp.broadcast_to(part, (frames, *part.shape)), ones)

    def log_total(factors: Alpha) -> Array:
        return total(problem, LOG, label_loop=label_loop, factors=factors)

    value, pullback = jax.vjp(log_total, ones)
    (found,) = pullback(jnp.ones_like(value))
    blank, label = (jnp.moveaxis(part, 0, -2) for part in found)
    return value, label, None if problem.wildcards is None else blank


def entropy(problem: Problem, semiring: Semiring, *, label_loop: bool) -> Float[Array, "*B"]:
    """Entropy of the paths, each with its part of the total, in nats; 0 if there are none.

    Beside alpha goes, for every state, the entropy of the path beginnings that end there. A
    transition mixes the entropies of the states it comes from, and adds how undecided it is between
    them (Hernando, Crespi and Cybenko 2005, "Efficient computation of the hidden Markov model
    entropy", section III): a sum of terms that are not negative, which a difference of two large
    numbers is not.
    """
    move = transitions(problem, label_loop)
    # Entropies of what does not exist: finite, because they are multiplied by its part, which is 0.
    numbers = LOG._replace(zero=0.0, mask=lambda condition, number: number)

    def transition_of_both(alpha: Alpha, entropies: Alpha) -> tuple[Alpha, Alpha]:
        ways = predecessors(alpha, neighbours(alpha.label, move, semiring), move, semiring)
        arrived = [semiring.plus(*terms) for terms in ways]
        beside = neighbours(entropies.label, move, numbers)
        before = predecessors(entropies, beside, move, numbers)
        return Alpha(*arrived), Alpha(*map(mixed, ways, arrived, before))

    def mixed(ways: tuple[Number, ...], arrived: Number, before: tuple[Array, ...]) -> Array:
        parts = [ratio(way, arrived, semiring) for way in ways]
        terms = (part * h + _entr(part) for part, h in zip(parts, before, strict=True))
        return functools.reduce(jnp.add, terms)

    def step(carry: tuple[Alpha, Alpha], given: tuple[Emissions, Array | None]) -> Any:
        alpha, entropies = carry
        y, wildcard = given
        arrived, found = transition_of_both(alpha, entropies)
        if problem.wildcards is not None and wildcard is not None:
            either = _entr(wildcard) + _entr(1 - wildcard)
            either = select(problem.wildcards.in_gap, broadcast(either, found.blank.shape), 0)
            found = found._replace(blank=found.blank + either)
        entropies = jax.tree.map(functools.partial(select, y.is_frame), found, entropies)
        return (apply_emission(alpha, arrived, y, semiring), entropies), None

    wildcard = None
    if problem.wildcards is not None:
        wildcard = jnp.moveaxis(wildcard_share(problem, problem.wildcards), -1, 0)[..., None]
    start = initial(problem, semiring)
    none = jax.tree.map(jnp.zeros_like, initial(problem, LOG))
    frames = frames_of(problem, semiring)
    (alpha, entropies), _ = scan_frames(
        step, (start, none), frames, problem.is_frame.shape[-1], seen=wildcard
    )
    arrived, found = transition_of_both(alpha, entropies)
    impossible = semiring.decode(take(arrived.blank, problem.label_count)) == -jnp.inf
    return select(~impossible, take(found.blank, problem.label_count), 0)


def take(number: Number, index: Int[Array, "*B"]) -> Number:
    """One number per example, along the last axis."""
    return jax.tree.map(
        lambda part: jnp.take_along_axis(part, index[..., None], axis=-1)[..., 0], number
    )


def _beside(part: Array, reversed_part: Array, axis: int = 0) -> Array:
    """An array beside one of the mirror image, whose labels are reversed."""
    return jnp.stack([part, reverse(reversed_part, -1)], axis=axis)


def _entr(part: Array) -> Array:
    """-p log p, 0 for 0; unlike `jax.scipy.special.entr` with slope 0 there."""
    is_any = part > 0
    return select(is_any, -part * jnp.log(select(is_any, part, 1)), 0)
