"""The schedule that XLA:CPU runs fastest, in plain operations that run everywhere: WIDE, chunked.

Both passes of forward-backward advance in one loop, alpha over the graph and beta as alpha of its
mirror image beside it, and meet in the middle (`recursion.total`). For occupancies they then
exchange their states and go on, each through the half of the frames that the other has come
through. Of that half only the states before every chunk of frames were kept; the rest is computed
again, a chunk at a time.

    first half    alpha →                        ← beta
                  |chunk|chunk|chunk|  middle  |chunk|chunk|chunk|
    second half   ← beta, over alpha again       alpha, over beta again →

A CPU takes the two passes through a chunk in turn, alpha forward and beta backward. A TPU or a GPU,
where every operation costs about the same however wide it is, takes all of a chunk's four passes
side by side, all forward, those from the other half in their own order of frames and labels.

Emissions are made for a chunk at once, which keeps them in the cache and several cores busy, as one
frame would not. After a chunk, numbers have to be normalized. If chunks do not divide the frames,
the halves overlap in the middle: a shared frame counts for the half whose start is nearer and is
padding for the other.

Processors compute in vectors along the minor-most axis: that of the labels or, for many examples
with few labels, that of the examples (`Layout`).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from jaxctc._core.classes import sum_by_class
from jaxctc._core.kernels.chunk_tables import Layout, frames_in_order, read_chunk, write_chunk
from jaxctc._core.kernels.mirrored import (
    Chunk,
    Pair,
    allocate,
    emissions,
    frame_of,
    gather_label_scores,
    swap_halves,
)
from jaxctc._core.lean import put_one, reverse, select, take_one
from jaxctc._core.problem import Problem
from jaxctc._core.recursion import (
    Alpha,
    Transitions,
    neighbours,
    predecessors,
    sum_of_products,
    transition,
    without_edge,
)
from jaxctc._core.semirings import WIDE, Number

FEW_CHUNKS = 2
"""In so many, what rounding does to a total is not worth another one for each."""


def unsupported(problem: Problem, *, label_loop: bool) -> str | None:
    """Why this schedule cannot solve a problem; None if it can."""
    del label_loop
    return "has no float64" if problem.frame_max.dtype == jnp.float64 else None


def log_total(problem: Problem, *, label_loop: bool) -> Float[Array, "B"]:
    """One pass over half of the frames; nothing is stored."""
    pair = Pair.of(problem, label_loop)
    met = _run_first_half(pair).alpha
    return WIDE.decode(jax.tree.map(lambda part: part[0], _totals_at_middle(met, pair)))


def log_total_and_occupancies(
    problem: Problem, *, label_loop: bool, by_column: bool
) -> tuple[Float[Array, "B"], Float[Array, "B T N"], Float[Array, "B T N+1"] | None]:
    """By column, labels are summed a chunk at a time, where that saves a table of all labels.

    Otherwise the labels' scores are read only once: they wait where the occupancies will stand.
    """
    pair = Pair.of(problem, label_loop)
    columns = problem.scores.shape[-1]
    if not by_column or columns > problem.is_label.shape[-1] or pair.plan.layout.batch_minor:
        columns = None
    half = _run_first_half(pair, keeps_scores=columns is None, keeps_checkpoints=True)
    totals = _totals_at_middle(half.alpha, pair)
    log_total = WIDE.decode(jax.tree.map(lambda part: part[0], totals))
    second_half = functools.partial(_run_second_half, pair, totals, half, columns)
    # Labels read in reverse cost XLA:CPU its vectors; every step costs a TPU or a GPU a launch.
    label, gap = lax.platform_dependent(
        cpu=functools.partial(second_half, side_by_side=False),
        default=functools.partial(second_half, side_by_side=True),
    )

    labels = problem.is_label.shape[-1]
    if gap is not None:
        gap = gap[..., : labels + 1]
    if columns is None:
        label = label[..., :labels]
        if by_column:
            label = sum_by_class(label, problem.columns, problem.scores.shape[-1])
    return log_total, label, gap


# The passes.


class _FirstHalf(NamedTuple):
    """What the passes leave when they meet."""

    alpha: Alpha
    table: Float[Array, "B R N"]
    """Scores of the labels, of all chunks or of the last one."""
    checkpoints: Alpha | None
    """The states before each chunk."""


class _History(NamedTuple):
    """`history[t]` holds the states before frame t of a chunk, the last one those after it."""

    blank: Number | None
    """Only where wildcards need it."""
    label: Number


def _run_first_half(
    pair: Pair, *, keeps_scores: bool = False, keeps_checkpoints: bool = False
) -> _FirstHalf:
    """Both passes up to where they meet."""
    plan, labels = pair.plan, pair.problem.is_label.shape[-1]

    def chunk(carry, index):
        alpha, table = carry
        table, scores = gather_label_scores(pair, table, index)
        y = emissions(pair, index, scores)
        after = _scan_chunk(pair, alpha, y)
        return (_normalize(after), table), alpha if keeps_checkpoints else None

    table = allocate(pair, labels, num_chunks=plan.num_chunks if keeps_scores else 1)
    (alpha, table), checkpoints = lax.scan(chunk, (pair.start, table), plan.chunks)
    return _FirstHalf(alpha, table, checkpoints)


def _run_second_half(
    pair: Pair,
    totals: Number,
    half: _FirstHalf,
    columns: int | None,
    *,
    side_by_side: bool,
) -> tuple[Array, Array | None]:
    """Each pass goes on through the other's frames, whose states are computed again by chunks.

    Tables of the occupancies of labels (by column, if it is told how many there are) and of gaps.
    """
    plan, labels = pair.plan, pair.problem.is_label.shape[-1]
    layout = plan.layout
    record = _record_side_by_side if side_by_side else _record_in_turn
    possible = WIDE.decode(totals)[:, :, None, None] > -jnp.inf
    possible = layout.to_layout(possible, 2)
    totals = totals if plan.num_chunks <= FEW_CHUNKS else None

    def chunk(carry, given):
        alpha, history, table, label, gap = carry
        index, checkpoint = given
        if columns is None:
            scores = read_chunk(plan, label, index)  # they wait where the occupancies go
        else:
            table, scores = gather_label_scores(pair, table, index)
        y = emissions(pair, index, scores)
        alpha, history, found = record(pair, checkpoint, alpha, y, history, totals)
        counts = y.is_frame & possible
        of_label = _occupancy(found.alphas.label, found.betas.label, y.label, found.total, layout)
        of_label = select(counts, of_label, 0)
        if columns is not None:
            of_label = sum_by_class(of_label, pair.columns, columns)
        label = write_chunk(plan, label, of_label, index, has_labels=columns is None)
        if gap is not None:
            of_gap = _occupancy(
                found.alphas.blank, found.betas.blank, y.blanks, found.total, layout
            )
            gap = write_chunk(plan, gap, select(counts, of_gap, 0), index, has_labels=True)
        return (alpha, history, table, label, gap), None

    if columns is None:
        label, table = half.table, None
    else:
        label, table = allocate(pair, columns, num_chunks=plan.num_chunks), half.table
    gap = None
    if pair.wildcards is not None:
        gap = allocate(pair, labels + 1, num_chunks=plan.num_chunks)
    if side_by_side:
        start, history = half.alpha, _history_buffer(pair, half.alpha, 4)
    else:
        start = swap_halves(half.alpha, layout)
        history = (_history_buffer(pair, start, 2),) * 2
    carry = start, history, table, label, gap
    given = plan.chunks, half.checkpoints
    (*_, label, gap), _ = lax.scan(chunk, carry, given, reverse=True)
    label = frames_in_order(plan, label)
    return label, None if gap is None else frames_in_order(plan, gap)


def _recorded(pair: Pair, alpha: Alpha) -> _History:
    return _History(None if pair.wildcards is None else alpha.blank, alpha.label)


def _history_buffer(pair: Pair, alpha: Alpha, passes: int) -> _History:
    """A carry and not a scan output, because XLA fills outputs with zeros before every scan."""
    boundaries = pair.plan.chunk_size + 1
    return jax.tree.map(
        lambda part: lax.full_like(part, 0, shape=(boundaries, passes, *part.shape[1:])),
        _recorded(pair, alpha),
    )


class _Found(NamedTuple):
    """What both passes have in a chunk."""

    alphas: _History
    """With y_t, `[chunk_size, 2, …]`."""
    betas: _History
    """Likewise, in the order of the frames and labels of `alphas`."""
    total: Number
    """`[2, B]`, beside the chunk unless there are few: alpha and beta have drifted from what they
    were in the middle by the rounding of every frame since, and as much as their product has, this
    total has."""


def _scan_chunk(pair: Pair, alpha: Alpha, y: Chunk) -> Alpha:
    """Scans the frames of a chunk, towards the middle.

    The frames are counted here: a TPU reads what a scan hands out from an array, for as much as it
    adds all states.
    """

    def step(carry, _):
        offset, alpha = carry
        frame = frame_of(y, offset, pair.plan.layout)
        return (offset + 1, _forward_step(alpha, frame, pair.forward)), None

    start = jnp.asarray(0, jnp.int32), alpha
    return lax.scan(step, start, None, length=pair.plan.chunk_size)[0][1]


def _record_in_turn(
    pair: Pair,
    again: Alpha,
    onward: Alpha,
    y: Chunk,
    history: tuple[_History, _History],
    totals: Number | None,
) -> tuple[Alpha, tuple[_History, _History], _Found]:
    """First the passes that came this way before, then, backward, those that come from the other
    half; their labels are in the order of this one.
    """
    back = pair.forward._replace(
        can_skip=swap_halves(pair.forward.can_skip, pair.plan.layout), backward=True
    )
    _, alphas = _record_chunk(pair, pair.forward, again, y, history[0])
    onward, betas = _record_chunk(pair, back, onward, y, history[1])
    onward = _normalize(onward)
    found = _Found(
        jax.tree.map(lambda part: part[1:], alphas),
        jax.tree.map(lambda part: part[:-1], betas),
        totals or _totals(again, onward, pair),
    )
    return onward, (alphas, betas), found


def _record_side_by_side(
    pair: Pair, again: Alpha, onward: Alpha, y: Chunk, history: _History, totals: Number | None
) -> tuple[Alpha, _History, _Found]:
    """All four passes at once, all forward: those from the other half read the chunk from its end,
    and the labels, as they always did, in the order of their own.
    """
    layout = pair.plan.layout

    def beside(first: Any, second: Any) -> Any:
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), first, second)

    move = pair.forward._replace(can_skip=beside(pair.forward.can_skip, pair.forward.can_skip))
    turned = jax.tree.map(lambda part: reverse(part, 0, layout.frames, layout.labels), y)
    after, history = _record_chunk(pair, move, beside(again, onward), beside(y, turned), history)
    onward = _normalize(jax.tree.map(lambda part: part[2:], after))
    found = _Found(
        jax.tree.map(lambda part: part[1:, :2], history),
        jax.tree.map(lambda part: reverse(part[1:, 2:], 0, 1, layout.labels), history),
        totals or _totals(again, swap_halves(onward, layout), pair),
    )
    return onward, history, found


def _record_chunk(
    pair: Pair, move: Transitions, alpha: Alpha, y: Chunk, history: _History
) -> tuple[Alpha, _History]:
    """Scans the frames of a chunk, forward or backward, and records the states between them.

    The labels are read from the history and written there, and not carried, because XLA:CPU copies
    what a loop carries from one turn to the next and does not change in its place.
    """
    plan, back = pair.plan, move.backward

    def record(alpha, history, boundary):
        now = _recorded(pair, alpha)
        return jax.tree.map(lambda many, one: put_one(many, one, boundary, 0), history, now)

    def labels(history, boundary):
        return jax.tree.map(lambda many: take_one(many, boundary, 0), history.label)

    def step(carry, offset):
        blank, history = carry
        before, after = (offset + 1, offset) if back else (offset, offset + 1)
        frame = frame_of(y, offset, plan.layout)
        alpha = _forward_step(Alpha(blank, labels(history, before)), frame, move)
        return lax.optimization_barrier((alpha.blank, record(alpha, history, after))), None

    ends = [jnp.asarray(end, jnp.int32) for end in (0, plan.chunk_size)]
    first, last = reversed(ends) if back else ends
    carry = alpha.blank, record(alpha, history, first)
    (blank, history), _ = lax.scan(step, carry, plan.offsets, reverse=back)
    return Alpha(blank, labels(history, last)), history


def _forward_step(alpha: Alpha, y: Chunk, move: Transitions) -> Alpha:
    """`recursion.forward_step`, not normalized.

    Labels are read from the copy that shifts them, so that what they become can be written where
    they were.
    """
    beside = _made_once_on_cpu(neighbours(alpha.label, move, WIDE))
    alpha = Alpha(alpha.blank, without_edge(beside, move, first=not move.backward))
    blank, label = predecessors(alpha, beside, move, WIDE)
    emitted = Alpha(WIDE.times(WIDE.plus(*blank), y.blanks), WIDE.times(WIDE.plus(*label), y.label))
    return jax.tree.map(functools.partial(select, y.is_frame), emitted, alpha)


def _made_once_on_cpu(number: Number) -> Number:
    """What is read at several places.

    XLA:CPU would decide at each entry of each of them which side of the seam it is on. On a TPU
    a barrier costs an eighth of the loss, by the compiler's estimate.
    """
    return lax.platform_dependent(
        number, cpu=lax.optimization_barrier, default=lambda number: number
    )


def _normalize(alpha: Alpha) -> Alpha:
    return lax.optimization_barrier(Alpha(*map(WIDE.normalize, alpha)))


def _totals_at_middle(met: Alpha, pair: Pair) -> Number:
    return _totals(met, swap_halves(met, pair.plan.layout), pair)


def _totals(alpha: Alpha, beta: Alpha, pair: Pair) -> Number:
    """The total between two frames, `[2, B]`: once through the graph, once through its image."""
    sides = transition(alpha, pair.forward, WIDE), beta
    arrived, beta = jax.tree.map(lambda part: pair.plan.layout.from_layout(part, 1), sides)
    return sum_of_products(arrived, beta, WIDE)


def _occupancy(
    alphas: Number, betas: Number, emission: Number, total: Number, layout: Layout
) -> Float[Array, "2 B chunk_size N"]:
    """alpha_t(s) · beta_t(s) / (y_t(s) · total), laid out; both passes have y_t, so one is divided
    by it.
    """

    def frames_inside(part: Array) -> Array:
        return jnp.moveaxis(part, 0, layout.frames)

    alpha, beta = jax.tree.map(frames_inside, (alphas, betas))
    total = jax.tree.map(lambda part: layout.to_layout(part[..., None, None], 2), total)
    return WIDE.occupancy(alpha, WIDE.divide(beta, emission), total)
