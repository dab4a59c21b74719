"""The recursion as two Pallas kernels for TPUs, whose states never leave the chip.

    forward    alpha over all frames; leaves the states before every block of frames, and the last
               ones, of which the total is made
    backward   from the last block to the first: alpha of the block once more, from the states
               before it; then beta through it and, in every frame, the occupancies of the labels

The grid is (tiles of rows, blocks of frames), frames innermost, and states are carried in VMEM from
one block to the next. `tpu_layout` says what lies where. In it a step is the same both ways, but
for the direction in which labels move by one lane: the label that a path enters a blank from comes
to lie beside that blank, and beside the label that may be entered from it, too. What a step leaves
in lanes without a label is never read elsewhere, because such a label emits nothing.

Numbers are WIDE ones, by the functions of `semirings`, which Mosaic compiles as they are.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Float

from jaxctc._core.kernels.pallas_batch import with_an_example
from jaxctc._core.kernels.tpu_layout import (
    IN_COMMON,
    Graph,
    Layout,
    by_label,
    columns_of_lanes,
    frames_in_lanes,
    graph_in_lanes,
    inverse,
    most_labels,
    total_of,
    weight_one_beside,
)
from jaxctc._core.kernels.tpu_layout import (
    by_column as sum_by_column,
)
from jaxctc._core.problem import Problem
from jaxctc._core.recursion import Alpha
from jaxctc._core.semirings import WIDE, Wide, power_of_two

Interpret = Any
"""False for a TPU; True or `pltpu.InterpretParams` to run the kernel on a CPU."""

EMULATED_NORMALIZE_EVERY: int | None = 1
"""XLA:CPU would take long to compile many frames in a row."""


class Plan(NamedTuple):
    """Static."""

    layout: Layout
    label_loop: bool
    interpret: Interpret = False


class Frame(NamedTuple):
    """What a frame emits, in WIDE."""

    blank: Wide
    """[R, 1]"""
    label: Wide
    """[R, P]"""
    is_frame: Array
    """[R, 1]"""


def unsupported(problem: Problem, *, label_loop: bool) -> str | None:
    """What needs other numbers, or more memory."""
    del label_loop
    if problem.frame_max.dtype == jnp.float64:
        return "The TPU kernel computes in float32, not in float64."
    if problem.wildcards is not None:
        return "The TPU kernel knows no wildcards."
    if problem.bias is not None:
        return "The TPU kernel knows no label_bias."
    labels = problem.is_label.shape[-1]
    if labels > most_labels():
        return f"{most_labels()} labels fit the memory of a TPU core, not {labels}."
    return None


def log_total(
    problem: Problem, *, label_loop: bool, interpret: Interpret = False
) -> Float[Array, "*B"]:
    """By the forward kernel alone."""

    def solve(problem: Problem) -> Array:
        plan = _plan(problem, label_loop, interpret)
        frames = frames_in_lanes(problem, columns_of_lanes(problem, plan.layout), plan.layout)
        graph = graph_in_lanes(problem, label_loop, plan.layout)
        _, last = _forward(frames, graph, problem, plan, keep=False)
        return WIDE.decode(total_of(last, problem, plan.layout))

    return with_an_example(solve, problem)


def log_total_and_occupancies(
    problem: Problem, *, label_loop: bool, by_column: bool, interpret: Interpret = False
) -> tuple[Float[Array, "*B"], Float[Array, "*B T N"], None]:
    """By both kernels."""

    def solve(problem: Problem) -> tuple[Array, Array]:
        plan = _plan(problem, label_loop, interpret)
        layout = plan.layout
        columns = columns_of_lanes(problem, layout)
        frames = frames_in_lanes(problem, columns, layout)
        graph = graph_in_lanes(problem, label_loop, layout)
        before, last = _forward(frames, graph, problem, plan, keep=True)
        total = total_of(last, problem, layout)
        occupancies = _backward(frames, graph, before, inverse(total, layout), problem, plan)
        if by_column:
            found = sum_by_column(occupancies, columns, problem.scores.shape[-1], layout)
        else:
            found = by_label(occupancies, layout)
        return WIDE.decode(total), found

    return *with_an_example(solve, problem), None


def _plan(problem: Problem, label_loop: bool, interpret: Interpret) -> Plan:
    (batch, frames), labels = problem.is_frame.shape, problem.is_label.shape[-1]
    layout = Layout.of(batch, frames, labels, EMULATED_NORMALIZE_EVERY if interpret else None)
    return Plan(layout, label_loop, interpret)


# One frame, for a tile [R, P].


def _frame(row: Array, graph: Graph, exists: Array) -> Frame:
    """Of the last three lanes: frame_max, the same unless the frame is padded, the blank."""
    frame_max = row[:, -3:-2]
    both = WIDE.encode(row, frame_max)
    blank = jax.tree.map(lambda part: part[:, -1:], both)
    is_frame = (row[:, -2:-1] == frame_max) & exists
    return Frame(blank, WIDE.mask(graph.is_label, both), is_frame)


def _neighbours(label: Array, layout: Layout, *, backward: bool) -> Array:
    """Beside each lane the label before it or, backward, after it; across rows of an example."""
    rows, lanes = label.shape
    near = pltpu.roll(label, lanes - 1 if backward else 1, 1)
    if layout.fold == 1:
        return near
    row = lax.broadcasted_iota(jnp.int32, label.shape, 0) % layout.fold
    lane = lax.broadcasted_iota(jnp.int32, label.shape, 1)
    other_row = pltpu.roll(label, rows - 1 if backward else 1, 0)
    if backward:
        is_seam = (lane == layout.width - 1) & (row < layout.fold - 1)
        across = pltpu.roll(other_row, layout.width - 1, 1)
    else:
        is_seam = (lane == 0) & (row > 0)
        across = pltpu.roll(other_row, IN_COMMON + 1, 1)
    return jnp.where(is_seam, across, near)


def _transition(alpha: Alpha, graph: Graph, plan: Plan, *, backward: bool) -> Alpha:
    """The weight of all ways into each state: `recursion.transition` in this layout."""
    beside = jax.tree.map(
        functools.partial(_neighbours, layout=plan.layout, backward=backward), alpha.label
    )
    skipped = WIDE.mask(graph.can_skip_back if backward else graph.can_skip, beside)
    itself = (alpha.label,) if plan.label_loop else ()
    return Alpha(WIDE.plus(alpha.blank, beside), WIDE.plus(*itself, alpha.blank, skipped))


def _apply_emission(before: Alpha, arrived: Alpha, y: Frame) -> Alpha:
    """`arrived` times y_t(s), not normalized; what was before in a padded frame."""
    emitted = Alpha(WIDE.times(arrived.blank, y.blank), WIDE.times(arrived.label, y.label))
    return jax.tree.map(lambda new, old: jnp.where(y.is_frame, new, old), emitted, before)


def _occupancy(alpha: Wide, beta: Wide, inverse: Wide) -> Array:
    """`alpha · beta / total` without a division; 0 where the total is zero."""
    both = WIDE.times(alpha, beta)
    exponent = jnp.minimum(both.exponent + inverse.exponent, 127)
    return both.mantissa * inverse.mantissa * power_of_two(exponent)


# One block of frames.


def _over_frames(
    step: Callable[[Alpha, Frame, Array], Alpha],
    alpha: Alpha,
    frames: Any,
    graph: Graph,
    block: Array,
    plan: Plan,
    *,
    backward: bool = False,
) -> Alpha:
    """`step(alpha, y, place)` for all places of a block, normalized now and then."""
    layout = plan.layout
    every = layout.normalize_every
    stretches, places = layout.block // every, range(every)

    def stretch(index: Array, alpha: Alpha) -> Alpha:
        first = (stretches - 1 - index if backward else index) * every
        for place in reversed(places) if backward else places:
            exists = block * layout.block + first + place < layout.frames
            y = _frame(frames[first + place], graph, exists)
            alpha = step(alpha, y, first + place)
        return Alpha(*map(WIDE.normalize, alpha))

    return lax.fori_loop(0, stretches, stretch, alpha)


def _get(refs: Any, at: Any = ...) -> Any:
    return jax.tree.map(lambda ref: ref[at], refs)


def _put(refs: Any, values: Any, at: Any = ...) -> None:
    def one(ref: Any, value: Array) -> None:
        ref[at] = value

    jax.tree.map(one, refs, values)


def _start_in_first_block(states: Alpha, start: Alpha) -> None:
    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        _put(states, _get(start))


def _read(graph: Graph) -> Graph:
    return jax.tree.map(lambda ref: ref[...] > 0, graph)


def _forward_kernel(plan, frames, graph, start, before, last, states):
    _start_in_first_block(states, start)
    graph, alpha = _read(graph), _get(states)
    if before is not None:
        _put(before, alpha, 0)

    def step(alpha: Alpha, y: Frame, place: Array) -> Alpha:
        del place
        return _apply_emission(alpha, _transition(alpha, graph, plan, backward=False), y)

    alpha = _over_frames(step, alpha, frames, graph, pl.program_id(1), plan)
    _put(states, alpha)
    _put(last, alpha)


def _backward_kernel(plan, frames, graph, before, start, inverse, occupancies, states, history):
    _start_in_first_block(states, start)
    graph, inverse = _read(graph), _get(inverse)
    block = plan.layout.blocks - 1 - pl.program_id(1)

    def forward(alpha: Alpha, y: Frame, place: Array) -> Alpha:
        alpha = _apply_emission(alpha, _transition(alpha, graph, plan, backward=False), y)
        _put(history, alpha.label, place)
        return alpha

    def backward(beta: Alpha, y: Frame, place: Array) -> Alpha:
        arrived = _transition(beta, graph, plan, backward=True)
        occupancy = _occupancy(_get(history, place), arrived.label, inverse)
        occupancies[place] = jnp.where(y.is_frame, occupancy, 0)
        return _apply_emission(beta, arrived, y)

    _over_frames(forward, _get(before, 0), frames, graph, block, plan)
    beta = _over_frames(backward, _get(states), frames, graph, block, plan, backward=True)
    _put(states, beta)


# All frames.


def _wide(make: Callable[[Any], Any]) -> Any:
    return Wide(make(jnp.float32), make(jnp.int32))


def _alpha(make: Callable[[Any], Any]) -> Any:
    return Alpha(_wide(make), _wide(make))


def _result(shape: tuple[int, ...], dtype: Any, like: Array) -> jax.ShapeDtypeStruct:
    """Varies over the axes of a mesh that `like` varies over, as `jax.shard_map` asks."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(like).manual_axis_type)


def _call(kernel: Callable[..., None], name: str, plan: Plan, **more: Any) -> Callable[..., Any]:
    layout = plan.layout
    return pl.pallas_call(
        functools.partial(kernel, plan),
        grid=(-(-layout.rows // layout.tile), layout.blocks),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=plan.interpret,
        name=name,
        **more,
    )


def _specs(layout: Layout, block_at: Callable[[Any], Any]) -> tuple[Any, ...]:
    """Of a tile of rows; of a block of frames of it; of what is kept before such a block."""
    tile, lanes = layout.tile, layout.lanes
    return (
        pl.BlockSpec((tile, lanes), lambda i, j: (i, 0)),
        pl.BlockSpec((layout.block, tile, lanes), lambda i, j: (block_at(j), i, 0)),
        pl.BlockSpec((1, tile, lanes), lambda i, j: (block_at(j), i, 0)),
    )


def _forward(
    frames: Array, graph: Graph, problem: Problem, plan: Plan, *, keep: bool
) -> tuple[Any, Alpha]:
    """The states before each block, if they are to be kept, and the last ones."""
    layout = plan.layout
    row, many, one = _specs(layout, lambda j: j)
    rows = layout.rows, layout.lanes
    last = _alpha(lambda dtype: _result(rows, dtype, frames))
    before = _alpha(lambda dtype: _result((layout.blocks, *rows), dtype, frames))
    return _call(
        _forward_kernel,
        "ctc_forward",
        plan,
        in_specs=[many, Graph(row, row, row), _alpha(lambda _: row)],
        out_specs=(_alpha(lambda _: one) if keep else None, _alpha(lambda _: row)),
        out_shape=(before if keep else None, last),
        scratch_shapes=[_alpha(lambda dtype: pltpu.VMEM((layout.tile, layout.lanes), dtype))],
    )(frames, graph, weight_one_beside(problem.label_count * 0, layout))


def _backward(
    frames: Array, graph: Graph, before: Alpha, inverse: Wide, problem: Problem, plan: Plan
) -> Float[Array, "T R P"]:
    """Occupancies of the labels, 0 in padded frames."""
    layout = plan.layout
    row, many, one = _specs(layout, lambda j: layout.blocks - 1 - j)
    block = layout.block, layout.tile, layout.lanes
    states = _alpha(lambda _: row)
    return _call(
        _backward_kernel,
        "ctc_backward",
        plan,
        in_specs=[many, Graph(row, row, row), _alpha(lambda _: one), states, Wide(row, row)],
        out_specs=many,
        out_shape=_result((layout.frames, layout.rows, layout.lanes), jnp.float32, frames),
        scratch_shapes=[
            _alpha(lambda dtype: pltpu.VMEM(block[1:], dtype)),
            _wide(lambda dtype: pltpu.VMEM(block, dtype)),
        ],
    )(frames, graph, before, weight_one_beside(problem.label_count - 1, layout), inverse)
