"""The graph whose labels may each be any of several classes: its total, occupancies and best path.

Every alternative of a label is a state of its own, (n, a), with a weight w(n, a) that a path pays
once, on entering it. So a path says which alternatives it took, and the total is the sum over all
choices of the total of the labels chosen, times their weights. In the terms of `recursion`, one
frame further a path has come

    to blank n     from itself, and from every alternative of label n-1
    to (n, a)      from itself; and, times w(n, a), from blank n, and from every (n-1, a') that is
                   another class than (n, a)

The last are a table of A times A between two labels. Alternatives of the same class are two choices
whose weights add. States of labels lie along one axis, `[*B, N·A]`, as in `Problem`: so emissions
and sums over states are those of `recursion`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from jaxctc._core.frames import (
    Emissions,
    checkpoint_interval,
    checkpointed_passes,
    checkpointed_scan,
    frames_of,
    scan_frames,
)
from jaxctc._core.lean import broadcast, select
from jaxctc._core.normalizer import safe_max
from jaxctc._core.problem import Alternatives, Problem, expected_size
from jaxctc._core.recursion import (
    Alpha,
    Transitions,
    apply_emission,
    initial,
    neighbours,
    sum_of_products,
    without_edge,
)
from jaxctc._core.semirings import MAX, Number, Semiring


class _Graph(NamedTuple):
    """What a step has to know of the states."""

    move: Transitions
    """Labels along axis -2. `can_skip` `[*B, N, A, A]` is about a state and those next to it."""
    weights: Number
    """[*B, N, A]"""


def _graphs(
    alternatives: Alternatives, semiring: Semiring, label_loop: bool
) -> tuple[_Graph, _Graph]:
    """That of alpha and that of beta."""
    can_skip = alternatives.can_skip
    leads_to = jnp.swapaxes(can_skip, -1, -2)
    never = jnp.zeros_like(leads_to[..., :1, :, :])
    leads_to = jnp.concatenate([leads_to[..., 1:, :, :], never], axis=-3)
    log_weights = alternatives.log_weights
    weights = semiring.encode(log_weights, jnp.zeros_like(log_weights))
    forward = Transitions(can_skip, label_loop, backward=False, axis=-2)
    backward = Transitions(leads_to[..., : can_skip.shape[-3], :, :], label_loop, True, axis=-2)
    return _Graph(forward, weights), _Graph(backward, weights)


def _arrived(states: Alpha, graph: _Graph, semiring: Semiring) -> tuple[Alpha, Number]:
    """The weight of all ways into each state, one frame further, and that of entering each label.

    Alpha pays the weight of the label that a path comes to, beta of the one that it comes from.
    """
    move, weights = graph
    own = jax.tree.map(lambda part, weight: part.reshape(weight.shape), states.label, weights)
    beside = neighbours(semiring.times(weights, own) if move.backward else own, move, semiring)
    blank = semiring.plus(states.blank, semiring.sum(beside))

    expanded = jax.tree.map(lambda part: part[..., None], states.blank)
    passed, skipped = (without_edge(part, move, first=move.backward) for part in (expanded, beside))
    skipped = jax.tree.map(lambda part: broadcast(part[..., None, :], move.can_skip.shape), skipped)
    skipped = semiring.sum(semiring.mask(move.can_skip, skipped))
    passed = jax.tree.map(lambda part, like: broadcast(part, like.shape), passed, skipped)
    entering = semiring.plus(passed, skipped)
    if not move.backward:
        entering = semiring.times(weights, entering)
    label = semiring.plus(own, entering) if move.label_loop else entering
    label, entering = (
        jax.tree.map(lambda part, flat: part.reshape(flat.shape), number, states.label)
        for number in (label, entering)
    )
    return Alpha(blank, label), entering


def _initial(
    problem: Problem, alternatives: Alternatives, semiring: Semiring, *, backward: bool = False
) -> Alpha:
    """Weight one in blank 0 or, backward, in the blank after the last label."""
    *_, labels, number = alternatives.log_weights.shape
    # As many labels as there are, all of weight zero, and then as many of them as alternatives.
    by_label = problem._replace(is_label=problem.is_label[..., :labels])
    blank, label = initial(by_label, semiring, backward=backward)
    return Alpha(blank, jax.tree.map(lambda part: jnp.repeat(part, number, axis=-1), label))


def log_total(
    problem: Problem, alternatives: Alternatives, semiring: Semiring, *, label_loop: bool
) -> Float[Array, "*B"]:
    """Log of the weight of all paths of all choices, in nats; -inf where there is none."""
    forward, _ = _graphs(alternatives, semiring, label_loop)

    def step(alpha: Alpha, given: tuple[Emissions, None]) -> tuple[Alpha, None]:
        arrived, _ = _arrived(alpha, forward, semiring)
        return apply_emission(alpha, arrived, given[0], semiring), None

    frames = problem.is_frame.shape[-1]
    start = _initial(problem, alternatives, semiring)
    last, _ = scan_frames(step, start, frames_of(problem, semiring), frames)
    return _log_total_at_end(problem, alternatives, last, forward, semiring)


def _log_total_at_end(
    problem: Problem,
    alternatives: Alternatives,
    last: Alpha,
    forward: _Graph,
    semiring: Semiring,
) -> Float[Array, "*B"]:
    arrived, _ = _arrived(last, forward, semiring)
    ends = _initial(problem, alternatives, semiring, backward=True)
    return semiring.decode(sum_of_products(arrived, ends, semiring)) + alternatives.log_scale


def log_total_and_occupancies(
    problem: Problem, alternatives: Alternatives, semiring: Semiring, *, label_loop: bool
) -> tuple[Float[Array, "*B"], Float[Array, "*B T L"], Float[Array, "*B L"]]:
    """The same; the occupancy of every alternative; and how likely it is that it was taken.

    That is how often a path enters it: the sum over frames of entering_t · beta_t / total. The
    total of a frame is summed in that frame, over all its states, so that what rounding has done
    to alpha and beta by then cancels out. 0 where nothing stands, and where the total is zero.
    """
    forward, backward = _graphs(alternatives, semiring, label_loop)

    def ahead(alpha: Alpha, given: tuple[Emissions, None]) -> tuple[Alpha, Any]:
        arrived, entering = _arrived(alpha, forward, semiring)
        return apply_emission(alpha, arrived, given[0], semiring), (arrived, entering)

    def back(carry: tuple[Alpha, Array], given: tuple[Emissions, Any]) -> tuple[Any, Array]:
        beta, taken = carry
        y, (arrived, entering) = given
        beta = apply_emission(beta, _arrived(beta, backward, semiring)[0], y, semiring)
        total = sum_of_products(arrived, beta, semiring)
        total = jax.tree.map(lambda part: part[..., None], total)
        counts = y.is_frame & (semiring.decode(total) > -jnp.inf)

        def occupancy(number: Number) -> Array:
            return select(counts, semiring.occupancy(number, beta.label, total), 0)

        return (beta, taken + occupancy(entering)), occupancy(arrived.label)

    def start_backward(alpha: Alpha) -> tuple[Alpha, Array]:
        del alpha
        nothing = jnp.zeros_like(problem.is_label, problem.frame_max.dtype)
        return _initial(problem, alternatives, semiring, backward=True), nothing

    frames, states = problem.is_frame.shape[-1], _states(problem)
    last, (_, taken), occupancies = checkpointed_passes(
        ahead,
        back,
        _initial(problem, alternatives, semiring),
        start_backward,
        frames_of(problem, semiring),
        frames,
        interval=checkpoint_interval(frames, 24 * states),
    )
    found = _log_total_at_end(problem, alternatives, last, forward, semiring)
    return found, jnp.moveaxis(occupancies, 0, -2), taken


def _states(problem: Problem) -> int:
    """Of all examples."""
    return expected_size(problem.is_label) + expected_size(problem.label_count)


def best_states(
    problem: Problem,
    alternatives: Alternatives,
    *,
    label_loop: bool,
    checkpoint_every: int | None = None,
) -> tuple[Int[Array, "*B T"], Bool[Array, "*B"]]:
    """The states of one path of the largest weight (Viterbi), and whether there is any.

    State 2 p + 1 is place p of the labels, `[N·A]`; an even one is a blank. Of equally good ways
    into a state the one from the state itself is taken, then the one from the blank, then the one
    from the first alternative. Instead of pointers, alpha is kept, and asked again on the way back.
    """
    graph, _ = _graphs(alternatives, MAX, label_loop)

    def forward(alpha: Alpha, given: tuple[Emissions, None]) -> tuple[Alpha, Alpha]:
        arrived, _ = _arrived(alpha, graph, MAX)
        new = apply_emission(alpha, arrived, given[0], MAX)
        best = safe_max(MAX.sum(jnp.concatenate(new, axis=-1)))
        return jax.tree.map(lambda part: part - best[..., None], new), alpha

    def origin(alpha: Alpha, state: Array) -> Array:
        parts = alternatives.log_weights, alternatives.can_skip, state
        return _origin(alpha.blank, alpha.label, *parts, label_loop=label_loop)

    def backward(state: Array, given: tuple[Emissions, Alpha]) -> tuple[Array, Array]:
        y, before = given
        return select(y.is_frame[..., 0], origin(before, state), state), state

    def start_backward(last: Alpha) -> Array:
        # A path comes to the last blank, from itself or the last label, without another frame.
        return origin(last, 2 * problem.label_count)

    frames, states = problem.is_frame.shape[-1], _states(problem)
    last, path = checkpointed_scan(
        forward,
        backward,
        _initial(problem, alternatives, MAX),
        start_backward,
        frames_of(problem, MAX, in_chunks=True),
        frames,
        interval=checkpoint_every or checkpoint_interval(frames, 8 * states),
    )
    found = _log_total_at_end(problem, alternatives, last, graph, MAX) > -jnp.inf
    return jnp.moveaxis(path, 0, -1), found


def _origin(
    blank: Float[Array, "*B N+1"],
    label: Float[Array, "*B L"],
    log_weights: Float[Array, "*B N A"],
    can_skip: Bool[Array, "*B N A A"],
    state: Int[Array, "*B"],
    *,
    label_loop: bool,
) -> Int[Array, "*B"]:
    """The state that the best way into a state comes from."""
    number = log_weights.shape[-1]

    @functools.partial(jnp.vectorize, signature="(m),(l),(n,a),(n,a,b),()->()")
    def one(blank: Array, label: Array, weights: Array, can_skip: Array, state: Array) -> Array:
        # With a label in front that no path is in, the one before each exists.
        label = label.reshape(weights.shape)
        label, weights = (_with_first(part, -jnp.inf) for part in (label, weights))
        can_skip = _with_first(can_skip, False)
        in_label, place = state & 1 == 1, state >> 1
        n = select(in_label, place // number, place)
        a = select(in_label, place % number, 0)
        own, weight, may_skip = (_at(part, n + 1)[a] for part in (label, weights, can_skip))
        skipped = _at(label, n)
        skipped = select(may_skip | ~in_label, skipped, -jnp.inf)
        weight = select(in_label, weight, 0)
        stays = select(in_label, own if label_loop else lax.full_like(own, -jnp.inf), blank[n])
        passes = select(in_label, weight + blank[n], -jnp.inf)
        way = jnp.argmax(jnp.concatenate([jnp.stack([stays, passes]), weight + skipped]))
        way = way.astype(jnp.int32)
        entered = select(way == 1, 2 * n, 2 * ((n - 1) * number + way - 2) + 1)
        return select(way == 0, state, entered)

    return one(blank, label, log_weights, can_skip, state)


def _with_first(rows: Array, fill: float | bool) -> Array:
    return jnp.concatenate([jnp.full_like(rows[:1], fill, shape=(1, *rows.shape[1:])), rows])


def _at(rows: Array, index: Int[Array, ""]) -> Array:
    return rows.at[index].get(mode="clip")
