"""Single paths through the graph: the best one, random ones, and what lies along one.

A path is a state per frame, counted 0 for blank 0, 1 for label 0, 2 for blank 1, and so on. So what
leads to a state is the state itself, the one before it or, for labels, the one before that: a
back-pointer is a number of steps, 0 or 1 for a blank (one bit), 0, 1 or 2 for a label (two bits).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int, Shaped, UInt8

from jaxctc._core.alternatives import best_states
from jaxctc._core.emissions import Config, Lattice
from jaxctc._core.frames import Emissions, checkpoint_interval, checkpointed_scan, frames_of
from jaxctc._core.problem import Problem, Wildcards, expected_size, wildcard_share
from jaxctc._core.recursion import (
    Alpha,
    Transitions,
    apply_emission,
    initial,
    neighbours,
    occupancies,
    predecessors,
    transition,
    transitions,
)
from jaxctc._core.semirings import MAX, Number, Semiring, ratio


class Paths(NamedTuple):
    """`S` paths per example."""

    states: Int[Array, "*B S T"]
    absorbed: Bool[Array, "*B S T"]
    """True where a wildcard, and not the blank, emits the frame."""


def best_path(
    problem: Problem,
    *,
    label_loop: bool,
    checkpoint_every: int | None = None,
    band: int | None = None,
) -> tuple[Paths, Bool[Array, "*B"]]:
    """One path of the largest weight (Viterbi), and whether there is any.

    Of equally good ways into a state the one from the state itself is taken, then the one from
    the blank. At every frame the best state is brought to 0, so that rounding does not grow with
    the length of the input.
    """
    if problem.alternatives is not None:
        states, found = best_states(
            problem,
            problem.alternatives,
            label_loop=label_loop,
            checkpoint_every=checkpoint_every,
        )
        states = states[..., None, :]
        return Paths(states, jnp.zeros_like(states, bool)), found
    frames, labels = problem.is_frame.shape[-1], problem.is_label.shape[-1]
    window = _Window.around_the_diagonal(problem, labels if band is None else band)
    move = transitions(problem, label_loop)

    def forward(alpha: Alpha, given: tuple[Emissions, None]) -> tuple[Alpha, Array]:
        alpha, y, here = window.shift(alpha, given[0], move)
        ways = predecessors(alpha, neighbours(alpha.label, here, MAX), here, MAX)
        blank, label = ways
        skips = label[2] > jnp.maximum(label[0], label[1])
        moves = skips | (label[1] > label[0])
        arrived = Alpha(*(MAX.plus(*terms) for terms in ways))
        alpha = apply_emission(alpha, arrived, y, MAX)
        return _best_at_zero(alpha), _pack(blank[1] > blank[0], moves, skips)

    def backward(states: Array, given: tuple[Emissions, Array]) -> tuple[Array, Array]:
        y, pointers = given
        steps = _steps(pointers, states - 2 * window.start(y.frame)[..., None])
        steps = jnp.where(y.is_frame, steps, jnp.zeros_like(steps))
        return states - steps, states

    def ends(last: Alpha) -> tuple[Array, Array]:
        place = (problem.label_count - window.start(frames - 1))[..., None]
        return _number_at(last, 2 * place, MAX), _number_at(last, 2 * place - 1, MAX)

    def start_backward(last: Alpha) -> Array:
        blank, label = ends(last)
        return 2 * problem.label_count[..., None] - (label > blank).astype(jnp.int32)

    every = checkpoint_every or _interval(problem, 3 * (labels // 8 + 1))
    last, states = checkpointed_scan(
        forward,
        backward,
        window.first(initial(problem, MAX)),
        start_backward,
        frames_of(problem, MAX, in_chunks=True),
        frames,
        interval=every,
    )
    found = jnp.maximum(*ends(last))[..., 0] > -jnp.inf
    absorbed = jnp.zeros_like(states, bool)
    if problem.wildcards is not None:
        is_better = problem.wildcards.scores > problem.blank_scores - problem.frame_max
        absorbed = _frames_leading(is_better) & _is_gap(problem.wildcards, states)
    return _frames_last(Paths(states, absorbed)), found


def sample_paths(
    key: Array, problem: Problem, semiring: Semiring, *, label_loop: bool, num_samples: int
) -> Paths:
    """Independent paths, each with the probability of its part of the total.

    Backward through alpha: the last state is drawn by the weights of the states where paths may
    end, each earlier one by the weights of those that lead to the one just drawn.
    """
    move = transitions(problem, label_loop)
    for_end, for_frames = jax.random.split(key)
    count = problem.label_count

    def forward(alpha: Alpha, given: tuple[Emissions, None]) -> tuple[Alpha, Alpha]:
        arrived = transition(alpha, move, semiring)
        return apply_emission(alpha, arrived, given[0], semiring), alpha

    def draw(key: Array, states: Array, before: Alpha) -> Array:
        """Where a path came from, in steps: 0, 1 or 2."""
        in_label, no_state = states & 1 == 1, jnp.full_like(states, -1)
        may_skip = _at(problem.can_skip, states >> 1) & in_label
        itself = states if label_loop else jnp.where(in_label, no_state, states)
        origins = (itself, states - 1, jnp.where(may_skip, states - 2, no_state))
        weights = [_number_at(before, origin, semiring) for origin in origins]
        total = semiring.plus(*weights)
        parts = jnp.stack([ratio(weight, total, semiring) for weight in weights], axis=-1)
        return jax.random.categorical(key, jnp.log(parts)).astype(jnp.int32)

    def backward(states: Array, given: tuple[Emissions, Alpha]) -> tuple[Array, Any]:
        y, before = given
        for_origin, for_wildcard = jax.random.split(jax.random.fold_in(for_frames, y.frame))
        steps = draw(for_origin, states, before)
        chance = None
        if problem.wildcards is not None:
            chance = jax.random.uniform(for_wildcard, states.shape, problem.frame_max.dtype)
        return states - jnp.where(y.is_frame, steps, jnp.zeros_like(steps)), (states, chance)

    def start_backward(last: Alpha) -> Array:
        end = jnp.broadcast_to(2 * count[..., None], (*count.shape, num_samples))
        return end - draw(for_end, end, last)

    frames, labels = problem.is_frame.shape[-1], problem.is_label.shape[-1]
    _, (states, chance) = checkpointed_scan(
        forward,
        backward,
        initial(problem, semiring),
        start_backward,
        frames_of(problem, semiring),
        frames,
        interval=_interval(problem, 16 * labels),
    )
    absorbed = jnp.zeros_like(states, bool)
    if problem.wildcards is not None:
        share = _frames_leading(wildcard_share(problem, problem.wildcards))
        absorbed = (chance < share) & _is_gap(problem.wildcards, states)
    return _frames_last(Paths(states, absorbed))


def frame_classes(lattice: Lattice, config: Config, paths: Paths) -> Int[Array, "*B S T"]:
    """The class that each frame of a path emits; the wildcard's id where one absorbs it."""

    @functools.partial(jnp.vectorize, signature="(n),(s,t)->(s,t)")
    def label_at(labels: Array, places: Array) -> Array:
        labels = jnp.concatenate([labels, jnp.zeros_like(labels, shape=(1,))])
        return jnp.take(labels, places, mode="clip")

    states = paths.states
    blank = jnp.full_like(states, config.blank)
    classes = jnp.where(states & 1 == 1, label_at(lattice.labels, states >> 1), blank)
    if config.wildcard is None:
        return classes
    return jnp.where(paths.absorbed, jnp.full_like(classes, config.wildcard), classes)


def frame_ids(
    lattice: Lattice, config: Config, paths: Paths, found: Bool[Array, "*B"]
) -> Int[Array, "*B S T"]:
    """Paths `[*B, S, T]` as class ids; -1 in padded frames and where nothing was found."""
    ids = frame_classes(lattice, config, paths)
    counts = lattice.problem.is_frame & (found & ~lattice.has_nan)[..., None]
    return jnp.where(counts[..., None, :], ids, jnp.full_like(ids, -1))


def occupancies_along(
    lattice: Lattice,
    semiring: Semiring,
    places: Int[Array, "*B T"],
    *,
    label_loop: bool,
) -> Float[Array, "*B T"]:
    """The occupancy of the label or wildcard at a place of its own in every frame.

    Places are those of `emissions.in_given_order`. The occupancy of no place is 0, and 0 in padded
    frames and where the total is zero.
    """
    problem = lattice.problem
    labels = problem.is_label.shape[-1]
    in_gap = places >= labels
    states = jnp.where(in_gap, 2 * (places - labels), 2 * places + 1)
    states = jnp.where(places <= 2 * labels, states, jnp.full_like(states, -1))

    def select(alpha: Alpha, frame: Array) -> tuple[Number]:
        state = lax.dynamic_index_in_dim(states, frame, -1)
        return (_number_at(alpha, state, semiring),)

    bytes_per_frame = 8 * expected_size(problem.label_count)
    _, (along,) = occupancies(
        problem, semiring, select, label_loop=label_loop, bytes_per_frame=bytes_per_frame
    )
    along = jnp.moveaxis(along[..., 0], 0, -1)
    if problem.wildcards is None:
        return along
    share = wildcard_share(problem, problem.wildcards)
    return along * jnp.where(in_gap, share, jnp.ones_like(share))


class _Window(NamedTuple):
    """The part of the graph near its diagonal: at every frame, so many labels.

    The diagonal runs from the first label in the first frame in use to the last in the last.
    """

    starts: Int[Array, "*B T"] | None
    """First label of each window; None if the window holds all labels."""
    width: int
    none: Int[Array, "*B"]
    """Zeros."""

    @classmethod
    def around_the_diagonal(cls, problem: Problem, band: int) -> "_Window":
        """`band` labels on either side."""
        labels, width = problem.is_label.shape[-1], 2 * band + 1
        count = problem.label_count
        if width >= labels:
            return cls(None, labels, jnp.zeros_like(count))
        frame = jnp.cumsum(problem.is_frame, axis=-1, dtype=jnp.int32)
        slope = count.astype(jnp.float32) / jnp.maximum(frame[..., -1], 1).astype(jnp.float32)
        middle = jnp.maximum(frame - 1, 0).astype(jnp.float32) * slope[..., None]
        last = jnp.maximum(count - width, 0)[..., None]
        starts = jnp.minimum(jnp.maximum(middle.astype(jnp.int32) - band, 0), last)
        return cls(starts, width, jnp.zeros_like(count))

    def start(self, frame: Int[Array, ""] | int) -> Int[Array, "*B"]:
        """First label of the window at a frame."""
        if self.starts is None:
            return self.none
        return lax.dynamic_index_in_dim(self.starts, frame, -1, keepdims=False)

    def first(self, alpha: Alpha) -> Alpha:
        """Before the first frame, all of whose windows begin with the first label."""
        if self.starts is None:
            return alpha
        return Alpha(alpha.blank[..., : self.width + 1], alpha.label[..., : self.width])

    def shift(
        self, alpha: Alpha, y: Emissions, move: Transitions
    ) -> tuple[Alpha, Emissions, Transitions]:
        """All brought to the window of this frame: alpha comes in that of the frame before."""
        if self.starts is None:
            return alpha, y, move
        start = self.start(y.frame)
        ahead = start - self.start(jnp.maximum(y.frame - 1, 0))
        ahead = jnp.where(y.is_frame[..., 0], ahead, jnp.zeros_like(ahead))

        def moved(row: Array) -> Array:
            row_and_more = jnp.concatenate([row, jnp.full_like(row, MAX.zero)], axis=-1)
            return _slice(row_and_more, jnp.minimum(ahead, row.shape[-1]), row.shape[-1])

        blank = y.blank
        if blank.shape[-1] > 1:
            blank = _slice(blank, start, self.width + 1)
        y = y._replace(blank=blank, label=_slice(y.label, start, self.width))
        move = move._replace(can_skip=_slice(move.can_skip, start, self.width))
        return jax.tree.map(moved, alpha), y, move


def _frames_leading(values: Shaped[Array, "*B T"]) -> Shaped[Array, "T *B 1"]:
    return jnp.moveaxis(values, -1, 0)[..., None]


def _frames_last(paths: Paths) -> Paths:
    """From rows `[T, *B, S]`."""
    return Paths(*(jnp.moveaxis(part, 0, -1) for part in paths))


def _interval(problem: Problem, bytes_per_frame: int) -> int:
    frames = problem.is_frame.shape[-1]
    return checkpoint_interval(frames, bytes_per_frame * expected_size(problem.label_count))


def _is_gap(wildcards: Wildcards, states: Int[Array, "T *B S"]) -> Bool[Array, "T *B S"]:
    """Whether a state is the blank of a gap with a wildcard."""
    return (states & 1 == 0) & _at(wildcards.in_gap[None], states >> 1)


def _best_at_zero(alpha: Alpha) -> Alpha:
    best = jnp.maximum(
        jnp.max(alpha.blank, axis=-1), jnp.max(alpha.label, axis=-1, initial=-jnp.inf)
    )
    best = jnp.where(best == -jnp.inf, jnp.zeros_like(best), best)
    return jax.tree.map(lambda part: part - best[..., None], alpha)


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


def _number_at(alpha: Alpha, state: Int[Array, "*B S"], semiring: Semiring) -> Number:
    """The number of a state; zero for those before the first."""

    def one(blank: Array, label: Array, zero: float | int) -> Array:
        nothing = jnp.full_like(blank[..., :1], zero)
        label = jnp.concatenate([label, nothing], axis=-1)
        place = state >> 1
        found = jnp.where(state & 1 == 0, _at(blank, place), _at(label, place))
        return jnp.where(state >= 0, found, jnp.full_like(found, zero))

    return jax.tree.map(one, alpha.blank, alpha.label, semiring.zero)


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
