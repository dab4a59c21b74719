"""The recursion as two Pallas kernels for GPUs, whose states stay in registers.

    forward    alpha of every side (`gpu_layout`), from its first frame to the middle; leaves the
               last states and, where occupancies are asked for, the labels of every frame
    backward   beta of every side, from the middle, where it is what the other side has left, to the
               first frame; in every frame it gives the occupancies of the labels

One program, of 128 threads, takes one side through all its frames. A thread holds neighbouring
states, as numbers `[128]` of which it has one each: a list of V, the *columns*. All that a step
needs of another thread is the label next to the thread's own: one number, which goes through shared
memory, and one barrier in every frame, however many labels there are. Nothing is added up across
threads or programs, so the same inputs give the same bits.

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
    layout_of,
    meet,
    sides_of,
    starts,
)
from jaxctc._core.kernels.pallas_batch import with_an_example
from jaxctc._core.problem import Problem
from jaxctc._core.recursion import Alpha
from jaxctc._core.semirings import WIDE, ZERO, Wide, power_of_two

Interpret = Any
"""False for a GPU; True, or `plgpu.InterpretGPUParams` where JAX has them, to run on a CPU."""

EMULATED_BLOCK: int | None = 2
"""XLA:CPU would take long to compile many frames in a row."""
MOST_LABELS = 2047
"""Beyond, states no longer fit the registers of the threads."""


class Plan(NamedTuple):
    """Static."""

    layout: Layout
    label_loop: bool
    interpret: Interpret


class Frame(NamedTuple):
    """What the kernels read of a frame."""

    scores: list[Array]
    """A column each, [128]."""
    frame_max: Array
    blank: Wide
    """Numbers of one frame, not arrays; see `Sides`."""


def unsupported(problem: Problem, *, label_loop: bool) -> str | None:
    """What needs other numbers, or more registers."""
    del label_loop
    if problem.frame_max.dtype == jnp.float64:
        return "The GPU kernel computes in float32, not in float64."
    if problem.wildcards is not None:
        return "The GPU kernel knows no wildcards."
    labels = problem.is_label.shape[-1]
    if labels > MOST_LABELS:
        return f"{MOST_LABELS} labels fit the registers of a GPU's threads, not {labels}."
    return None


def log_total(
    problem: Problem, *, label_loop: bool, interpret: Interpret = False
) -> Float[Array, "*B"]:
    """By the forward kernel alone."""

    def solve(problem: Problem) -> Array:
        plan = _plan(problem, label_loop, interpret)
        sides = sides_of(problem, label_loop, plan.layout)
        last, _ = _forward(sides, starts(problem, plan.layout), plan, keep=False)
        return WIDE.decode(meet(last, problem, label_loop, plan.layout)[0])

    return with_an_example(solve, problem)


def log_total_and_occupancies(
    problem: Problem, *, label_loop: bool, by_column: bool, interpret: Interpret = False
) -> tuple[Float[Array, "*B"], Float[Array, "*B T N"], None]:
    """By both kernels."""

    def solve(problem: Problem) -> tuple[Array, Array]:
        plan = _plan(problem, label_loop, interpret)
        sides = sides_of(problem, label_loop, plan.layout)
        last, history = _forward(sides, starts(problem, plan.layout), plan, keep=True)
        total, others = meet(last, problem, label_loop, plan.layout)
        found = _backward(sides, history, others, inverse(total), plan)
        found = by_label(found, total, problem, plan.layout)
        if by_column:
            found = sum_by_class(found, problem.columns, problem.scores.shape[-1])
        return WIDE.decode(total), found

    return *with_an_example(solve, problem), None


def _plan(problem: Problem, label_loop: bool, interpret: Interpret) -> Plan:
    layout = layout_of(problem, EMULATED_BLOCK if interpret else None)
    return Plan(layout, label_loop, interpret)


# One frame. States are lists of columns.


def _emissions(frame: Frame) -> Alpha:
    """y_t of all blanks, which is one number, and of the labels."""
    return Alpha(frame.blank, [WIDE.encode(score, frame.frame_max) for score in frame.scores])


def _arrive(alpha: Alpha, can_skip: list[Array], shift: Callable[[Wide], Wide], plan: Plan) -> Alpha:
    """`recursion.transition`: the weight of all ways into each state, one frame further."""
    beside = [shift(alpha.label[-1]), *alpha.label[:-1]]
    skipped = map(WIDE.mask, can_skip, beside)
    itself = [alpha.label] if plan.label_loop else []
    return Alpha(
        list(map(WIDE.plus, alpha.blank, beside)),
        list(map(WIDE.plus, *itself, alpha.blank, skipped)),
    )


def _arrive_back(
    beta: Alpha, can_skip: list[Array], shift: Callable[[Wide], Wide], plan: Plan
) -> Alpha:
    """The same backward, by transitions that are those of the way forward.

    A blank leads to the label beside it. A label leads to what comes after that: the next blank and
    the next label, if it may skip that blank. Their sum is what neighbours need of each other.
    """
    after = map(WIDE.plus, beta.blank, map(WIDE.mask, can_skip, beta.label))
    first, *others = after
    after = [*others, shift(first)]
    itself = [beta.label] if plan.label_loop else []
    return Alpha(
        list(map(WIDE.plus, beta.blank, beta.label)), list(map(WIDE.plus, *itself, after))
    )


def _apply_emission(before: Alpha, arrived: Alpha, y: Alpha) -> Alpha:
    """`arrived` times y_t(s), not normalized; what was before in a padded frame."""
    emitted = Alpha(
        [WIDE.times(blank, y.blank) for blank in arrived.blank],
        list(map(WIDE.times, arrived.label, y.label)),
    )
    is_frame = jnp.broadcast_to(y.blank.mantissa > 0, THREADS)
    return jax.tree.map(lambda new, old: lax.select(is_frame, new, old), emitted, before)


def _occupancy(alpha: Wide, beta: Wide, inverse: Wide) -> Array:
    """`alpha · beta / total` without a division; 0 where the total is zero."""
    both = WIDE.times(WIDE.times(alpha, beta), inverse)
    return both.mantissa * power_of_two(jnp.minimum(both.exponent, 127))


def _normalize(alpha: Alpha) -> Alpha:
    return Alpha(*(list(map(WIDE.normalize, column)) for column in alpha))


# One side.


def _get(refs: Any, index: tuple[Any, ...], plan: Plan) -> Any:
    """The columns at an index, of each array of a tree."""
    leaves, structure = jax.tree.flatten(refs)
    columns = ([ref[*index, v] for ref in leaves] for v in range(plan.layout.columns))
    return [jax.tree.unflatten(structure, column) for column in columns]


def _put(refs: Any, index: tuple[Any, ...], columns: list[Any]) -> None:
    for v, column in enumerate(columns):
        for ref, part in zip(jax.tree.leaves(refs), jax.tree.leaves(column), strict=True):
            ref[*index, v] = part


def _read_block(sides: Sides, program: Array, block: Array, plan: Plan) -> list[Frame]:
    def frame(place: int) -> Frame:
        at = program, block * plan.layout.block + place
        blank = Wide(*(ref[at] for ref in sides.blank))
        return Frame(_get(sides.scores, at, plan), sides.frame_max[at], blank)

    return list(map(frame, range(plan.layout.block)))


def _shifts(edge: Wide, plan: Plan, *, backward: bool) -> list[Callable[[Wide], Wide]]:
    """Functions that hand each thread the number of the thread before or, backward, after it.

    One for frames at even places and one for those at odd ones, each with its own shared memory:
    one barrier parts writing from reading, and the one of the next frame reading from writing. The
    thread at the edge reads zero.
    """
    to, at = (0, 1) if backward else (1, 0)

    def barrier() -> None:
        if plan.interpret is False:
            # Not `plgpu.commit_smem`: that waits for loads on their way, too.
            plgpu.inline_mgpu()(lambda _: mosaic.warpgroup_barrier())()

    def shift(slot: int, number: Wide) -> Wide:
        for ref, part in zip(edge, number, strict=True):
            ref[slot, pl.ds(to, THREADS)] = part
        barrier()
        return Wide(*(ref[slot, pl.ds(at, THREADS)] for ref in edge))

    for slot in range(2):
        edge.mantissa[slot, pl.ds(at, THREADS)] = jnp.ones(THREADS, jnp.float32)
        edge.exponent[slot, pl.ds(at, THREADS)] = jnp.full(THREADS, ZERO, jnp.int32)
    barrier()
    return [functools.partial(shift, slot) for slot in range(2)]


def _forward_kernel(plan, program, inputs, outputs, edge):
    sides, start = inputs
    last, history = outputs
    shifts = _shifts(edge, plan, backward=False)
    can_skip = [column != 0 for column in _get(sides.can_skip, (program,), plan)]
    block_size = plan.layout.block
    final = plan.layout.half // block_size - 1

    def block(index, carry):
        alpha, frames = carry
        ahead = _read_block(sides, program, jnp.minimum(index + 1, final), plan)
        for place, frame in enumerate(frames):
            arrived = _arrive(alpha, can_skip, shifts[place % 2], plan)
            alpha = _apply_emission(alpha, arrived, _emissions(frame))
            if history is not None:
                _put(history, (program, index * block_size + place), alpha.label)
        return _normalize(alpha), ahead

    alpha = Alpha(*(_get(part, (program,), plan) for part in start))
    begin = alpha, _read_block(sides, program, jnp.int32(0), plan)
    alpha, _ = lax.fori_loop(0, sides.blocks[program], block, begin)
    for refs, columns in zip(last, alpha, strict=True):
        _put(refs, (program,), columns)


def _backward_kernel(plan, program, inputs, outputs, edge):
    sides, history, others, inverse = inputs
    shifts = _shifts(edge, plan, backward=True)
    can_skip = [column != 0 for column in _get(sides.can_skip, (program,), plan)]
    inverse = Wide(*(ref[program] for ref in inverse))
    block_size, blocks = plan.layout.block, sides.blocks[program]

    def read(index):
        alphas = [
            _get(history, (program, index * block_size + place), plan)
            for place in range(block_size)
        ]
        return _read_block(sides, program, index, plan), alphas

    def block(turn, carry):
        beta, (frames, alphas) = carry
        index = blocks - 1 - turn
        ahead = read(jnp.maximum(index - 1, 0))
        for place in reversed(range(block_size)):
            arrived = _arrive_back(beta, can_skip, shifts[place % 2], plan)
            found = [
                _occupancy(*pair, inverse) for pair in zip(alphas[place], arrived.label, strict=True)
            ]
            _put(outputs, (program, index * block_size + place), found)
            beta = _apply_emission(beta, arrived, _emissions(frames[place]))
        return _normalize(beta), ahead

    beta = Alpha(*(_get(part, (program,), plan) for part in others))
    lax.fori_loop(0, blocks, block, (beta, read(jnp.maximum(blocks - 1, 0))))


# All sides.


def _forward(sides: Sides, start: Alpha, plan: Plan, *, keep: bool) -> tuple[Alpha, Wide | None]:
    """The last states of each side and, if they are to be kept, the labels of all frames."""
    last = jax.tree.map(lambda part: jax.ShapeDtypeStruct(part.shape, part.dtype), start)
    shape = sides.scores.shape
    history = Wide(*(jax.ShapeDtypeStruct(shape, dtype) for dtype in (jnp.float32, jnp.int32)))
    outputs = last, history if keep else None
    return _call(_forward_kernel, "ctc_forward", plan, (sides, start), outputs)


def _backward(
    sides: Sides, history: Wide, others: Alpha, inverse: Wide, plan: Plan
) -> Float[Array, "P H V 128"]:
    """Occupancies of the labels; anything in padded frames."""
    inputs = sides, history, others, inverse
    outputs = jax.ShapeDtypeStruct(sides.scores.shape, jnp.float32)
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
