"""The recursion as two Pallas kernels for GPUs, whose states stay in registers.

    forward    alpha from the first frame to the middle and, beside it, beta from the last one;
               leaves the last states of both and, where occupancies are asked for, the labels of
               every frame
    backward   each from the middle on, through the frames that the other one has come through; in
               every frame it gives the occupancies of the labels

One program, of 128 threads, takes one side (`gpu_layout`) through all its frames. Its states are
lists of V *columns*, numbers `[128]` of which each thread has one. All that a step needs of another
thread is the label next to the thread's own: one number, which goes through shared memory, and one
barrier in every frame, however many labels there are. Nothing is added up across threads or
programs, so the same inputs give the same bits. What a step leaves in places without a label is
never read elsewhere, because such a label emits nothing.

Numbers are WIDE ones, by the functions of `semirings`, which Mosaic GPU compiles as they are.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.mosaic.gpu import utils as mosaic
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Float

from jaxctc._core.classes import sum_by_class
from jaxctc._core.kernels.gpu_layout import (
    THREADS,
    Layout,
    Sides,
    by_label,
    inverse,
    sides_of,
    total_of,
)
from jaxctc._core.kernels.pallas_batch import with_an_example
from jaxctc._core.problem import Problem
from jaxctc._core.recursion import Alpha
from jaxctc._core.semirings import WIDE, ZERO, Wide, power_of_two

Interpret = Any
"""False for a GPU; True, or `plgpu.InterpretGPUParams` where JAX has them, to run on a CPU."""

EMULATED_BLOCK: int | None = 2
"""XLA:CPU would take long to compile many frames in a row."""
MOST_LABELS = 4094
"""From 1535 on, states no longer all fit the registers; beyond this, to compile takes minutes."""


class Plan(NamedTuple):
    """Static."""

    layout: Layout
    label_loop: bool
    interpret: Interpret


class Side(NamedTuple):
    """Which side a program works on, and which way it goes."""

    program: Array
    """The side."""
    example: Array
    is_back: Array
    """Whether it goes from the last frame to the first."""


class Frame(NamedTuple):
    """What the kernels read of a frame."""

    scores: list[Array]
    """A column each, [128]."""
    frame_max: Array
    blank: Wide
    """Numbers of one frame, not arrays; see `Sides`."""


def unsupported(problem: Problem, *, label_loop: bool) -> str | None:
    """What needs other numbers, or many more registers than there are."""
    del label_loop
    if problem.frame_max.dtype == jnp.float64:
        return "The GPU kernel computes in float32, not in float64."
    if problem.wildcards is not None:
        return "The GPU kernel knows no wildcards."
    if problem.bias is not None:
        return "The GPU kernel knows no label_bias."
    labels = problem.is_label.shape[-1]
    if labels > MOST_LABELS:
        return f"The GPU kernel takes {MOST_LABELS} labels, not {labels}."
    return None


def log_total(
    problem: Problem, *, label_loop: bool, interpret: Interpret = False
) -> Float[Array, "*B"]:
    """By the forward kernel alone."""

    def solve(problem: Problem) -> Array:
        plan = _plan(problem, label_loop, interpret)
        sides = sides_of(problem, label_loop, plan.layout)
        last, _ = _forward(sides, plan, keep=False)
        return WIDE.decode(total_of(last, problem, label_loop, plan.layout))

    return with_an_example(solve, problem)


def log_total_and_occupancies(
    problem: Problem, *, label_loop: bool, by_column: bool, interpret: Interpret = False
) -> tuple[Float[Array, "*B"], Float[Array, "*B T N"], None]:
    """By both kernels."""

    def solve(problem: Problem) -> tuple[Array, Array]:
        plan = _plan(problem, label_loop, interpret)
        sides = sides_of(problem, label_loop, plan.layout)
        last, history = _forward(sides, plan, keep=True)
        total = total_of(last, problem, label_loop, plan.layout)
        found = _backward(sides, history, last, inverse(total), plan)
        found = by_label(found, total, problem, plan.layout)
        if by_column:
            found = sum_by_class(found, problem.columns, problem.scores.shape[-1])
        return WIDE.decode(total), found

    return *with_an_example(solve, problem), None


def _plan(problem: Problem, label_loop: bool, interpret: Interpret) -> Plan:
    (batch, frames), labels = problem.is_frame.shape, problem.is_label.shape[-1]
    layout = Layout.of(batch, frames, labels, EMULATED_BLOCK if interpret else None)
    return Plan(layout, label_loop, interpret)


# One frame. States are lists of columns.


def _emissions(frame: Frame) -> Alpha:
    """y_t of all blanks, which is one number, and of the labels."""
    return Alpha(frame.blank, [WIDE.encode(score, frame.frame_max) for score in frame.scores])


def _where(condition: Array, number: Any, other: Any) -> Any:
    """For one condition, not an array."""
    condition = jnp.broadcast_to(condition, THREADS)
    return jax.tree.map(functools.partial(lax.select, condition), number, other)


def _neighbours(label: list[Wide], is_back: Array, exchange: Callable[[Wide], Wide]) -> list[Wide]:
    """Beside each place the label before it or, for beta, after it."""
    edge = exchange(_where(is_back, label[0], label[-1]))
    return _where(is_back, [*label[1:], edge], [edge, *label[:-1]])


def _transition(alpha: Alpha, beside: list[Wide], can_skip: list[Array], plan: Plan) -> Alpha:
    """The weight of all ways into each state: `recursion.transition` in this layout."""
    skipped = map(WIDE.mask, can_skip, beside)
    itself = [alpha.label] if plan.label_loop else []
    return Alpha(
        list(map(WIDE.plus, alpha.blank, beside)),
        list(map(WIDE.plus, *itself, alpha.blank, skipped)),
    )


def _apply_emission(before: Alpha, arrived: Alpha, y: Alpha) -> Alpha:
    """`arrived` times y_t(s), not normalized; what was before in a padded frame."""
    emitted = Alpha(
        [WIDE.times(blank, y.blank) for blank in arrived.blank],
        list(map(WIDE.times, arrived.label, y.label)),
    )
    return _where(y.blank.mantissa > 0, emitted, before)


def _occupancy(alpha: Wide, beta: Wide, inverse: Wide) -> Array:
    """`alpha · beta / total` without a division; 0 where the total is zero."""
    both = WIDE.times(WIDE.times(alpha, beta), inverse)
    return both.mantissa * power_of_two(jnp.minimum(both.exponent, 127))


def _normalize(alpha: Alpha) -> Alpha:
    return Alpha(*(list(map(WIDE.normalize, columns)) for columns in alpha))


# What a program reads and writes.


def _get(refs: Any, at: tuple[Any, ...], plan: Plan) -> list[Any]:
    """The columns of each array of a tree, as a list of trees."""
    columns = range(plan.layout.columns)
    return [jax.tree.map(lambda ref, v=v: ref[*at, v], refs) for v in columns]


def _put(refs: Any, at: tuple[Any, ...], columns: list[Any]) -> None:
    for v, column in enumerate(columns):
        for ref, part in zip(jax.tree.leaves(refs), jax.tree.leaves(column), strict=True):
            ref[*at, v] = part


def _side(program: Array, plan: Plan) -> Side:
    is_back = program >= plan.layout.batch
    return Side(program, jnp.where(is_back, program - plan.layout.batch, program), is_back)


def _place(side: Side, block: Array, offset: int, plan: Plan) -> tuple[Array, Array]:
    """The example and the frame, of a block counted from the start of its side."""
    step = block * plan.layout.block + offset
    return side.example, jnp.where(side.is_back, plan.layout.filled - 1 - step, step)


def _read_block(sides: Sides, side: Side, block: Array, plan: Plan) -> list[Frame]:
    def frame(offset: int) -> Frame:
        at = _place(side, block, offset, plan)
        blank = Wide(*(ref[at] for ref in sides.blank))
        return Frame(_get(sides.scores, at, plan), sides.frame_max[at], blank)

    return list(map(frame, range(plan.layout.block)))


def _exchanges(edge: Wide, is_back: Array, plan: Plan) -> list[Callable[[Wide], Wide]]:
    """Functions that give each thread the number of the thread before or, for beta, after it.

    One for frames at even places and one for those at odd ones, each with its own shared memory:
    one barrier parts writing from reading, and that of the next frame parts reading from writing
    again. The thread at the edge gets zero.
    """
    to = jnp.where(is_back, 0, 1)

    def barrier() -> None:
        if plan.interpret is False:
            # Not `plgpu.commit_smem`: that waits for loads on their way, too.
            plgpu.inline_mgpu()(lambda _: mosaic.warpgroup_barrier())()

    def exchange(slot: int, number: Wide) -> Wide:
        for ref, part in zip(edge, number, strict=True):
            ref[slot, pl.ds(to, THREADS)] = part
        barrier()
        return Wide(*(ref[slot, pl.ds(1 - to, THREADS)] for ref in edge))

    for slot in range(2):
        edge.mantissa[slot, pl.ds(1 - to, THREADS)] = jnp.ones(THREADS, jnp.float32)
        edge.exponent[slot, pl.ds(1 - to, THREADS)] = jnp.full(THREADS, ZERO, jnp.int32)
    barrier()
    return [functools.partial(exchange, slot) for slot in range(2)]


def _start(place: Array, plan: Plan) -> Alpha:
    """Weight one in the blank at a place, zero elsewhere."""

    def spread(value: Array) -> Array:
        """One number in each thread, as loads have it."""
        if plan.interpret is not False:
            return value
        return plgpu.layout_cast(value, plgpu.Layout.WG_STRIDED((THREADS,), vec_size=1))

    columns = plan.layout.columns
    one = spread(jnp.ones(THREADS, jnp.float32))
    zero = spread(jnp.full(THREADS, ZERO, jnp.int32))
    places = columns * spread(lax.iota(jnp.int32, THREADS))
    blank = [Wide(one, jnp.where(places + v == place, 0, zero)) for v in range(columns)]
    return Alpha(blank, [Wide(one, zero)] * columns)


# The kernels.


def _forward_kernel(plan, program, sides, outputs, edge):
    last, history = outputs
    side = _side(program, plan)
    exchanges = _exchanges(edge, side.is_back, plan)
    can_skip = [column != 0 for column in _get(sides.can_skip, (program,), plan)]

    def block(index, carry):
        alpha, frames = carry
        ahead = _read_block(sides, side, jnp.minimum(index + 1, plan.layout.blocks - 1), plan)
        for offset, frame in enumerate(frames):
            beside = _neighbours(alpha.label, side.is_back, exchanges[offset % 2])
            arrived = _transition(alpha, beside, can_skip, plan)
            alpha = _apply_emission(alpha, arrived, _emissions(frame))
            if history is not None:
                _put(history, _place(side, index, offset, plan), alpha.label)
        return _normalize(alpha), ahead

    first, end = sides.first[program], sides.end[program]
    begin = _start(sides.start[program], plan), _read_block(sides, side, first, plan)
    alpha, _ = lax.fori_loop(first, end, block, begin)
    for refs, columns in zip(last, alpha, strict=True):
        _put(refs, (program,), columns)


def _backward_kernel(plan, program, inputs, occupancies, edge):
    sides, history, last, inverse = inputs
    side = _side(program, plan)
    is_back = ~side.is_back  # it goes the way of the other side
    other = jnp.where(is_back, program + plan.layout.batch, side.example)
    exchanges = _exchanges(edge, is_back, plan)
    can_skip = [column != 0 for column in _get(sides.can_skip, (other,), plan)]
    inverse = Wide(*(ref[side.example] for ref in inverse))

    def read(block):
        places = [_place(side, block, offset, plan) for offset in range(plan.layout.block)]
        alphas = [_get(history, at, plan) for at in places]
        return _read_block(sides, side, block, plan), alphas

    def block(turn, carry):
        beta, (frames, alphas) = carry
        index = first + end - 1 - turn
        ahead = read(jnp.maximum(index - 1, 0))
        for offset in reversed(range(plan.layout.block)):
            beside = _neighbours(beta.label, is_back, exchanges[offset % 2])
            arrived = _transition(beta, beside, can_skip, plan)
            pairs = zip(alphas[offset], arrived.label, strict=True)
            found = [_occupancy(*pair, inverse) for pair in pairs]
            _put(occupancies, _place(side, index, offset, plan), found)
            beta = _apply_emission(beta, arrived, _emissions(frames[offset]))
        return _normalize(beta), ahead

    first, end = sides.first[program], sides.end[program]
    beta = Alpha(*(_get(part, (other,), plan) for part in last))
    lax.fori_loop(first, end, block, (beta, read(jnp.maximum(end - 1, 0))))


# All sides.


def _wide(shape: tuple[int, ...]) -> Any:
    return Wide(*(jax.ShapeDtypeStruct(shape, dtype) for dtype in (jnp.float32, jnp.int32)))  # pyright: ignore[reportArgumentType]


def _forward(sides: Sides, plan: Plan, *, keep: bool) -> tuple[Alpha, Any]:
    """The last states of each side and, if they are to be kept, the labels of all frames."""
    states = sides.can_skip.shape
    outputs = Alpha(_wide(states), _wide(states)), _wide(sides.scores.shape) if keep else None
    return _call(_forward_kernel, "ctc_forward", plan, sides, outputs)


def _backward(
    sides: Sides, history: Wide, last: Alpha, inverse: Wide, plan: Plan
) -> Float[Array, "B T' V 128"]:
    """Occupancies of the labels; anything in padded frames."""
    outputs = jax.ShapeDtypeStruct(sides.scores.shape, jnp.float32)
    inputs = sides, history, last, inverse
    return _call(_backward_kernel, "ctc_backward", plan, inputs, outputs)


def _call(kernel: Callable[..., None], name: str, plan: Plan, inputs: Any, outputs: Any) -> Any:
    """Runs a program for each side. Arrays lie where they are: programs read what they want."""
    given, inputs_structure = jax.tree.flatten(inputs)
    results, outputs_structure = jax.tree.flatten(outputs)
    programs = 2 * plan.layout.batch
    edges = [plgpu.SMEM((2, 2 * THREADS), dtype) for dtype in (jnp.float32, jnp.int32)]

    def run(program: Array, refs: tuple[Any, ...]) -> None:
        read, written = refs[: len(given)], refs[len(given) : -2]
        inputs = jax.tree.unflatten(inputs_structure, read)
        outputs = jax.tree.unflatten(outputs_structure, written)
        kernel(plan, program, inputs, outputs, Wide(*refs[-2:]))

    if plan.interpret is True:
        call = pl.pallas_call(
            lambda *refs: run(pl.program_id(0), refs),
            out_shape=results,
            grid=(programs,),
            scratch_shapes=edges,
            interpret=True,
            name=name,
        )
    else:
        call = plgpu.kernel(
            lambda *refs: run(lax.axis_index("side"), refs),
            out_type=results,
            grid=(programs,),
            grid_names=("side",),
            scratch_types=edges,
            compiler_params=plgpu.CompilerParams(unsafe_no_auto_barriers=True),
            interpret=plan.interpret or None,
            kernel_name=name,
        )
    return jax.tree.unflatten(outputs_structure, call(*given))
