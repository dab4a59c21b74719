"""The graph beside its mirror image, and what its frames emit, a chunk at a time.

What `xla_blocked` lays out before its passes: a step forward through the image is one backward
through the graph, so both passes are one.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int, Shaped

from jaxctc._core.classes import read_frames
from jaxctc._core.kernels.chunk_tables import (
    VECTOR,
    ChunkPlan,
    Layout,
    choose_layout,
    read_chunk,
    write_rows,
)
from jaxctc._core.lean import broadcast, reverse, select, take_one
from jaxctc._core.normalizer import at_least_float32
from jaxctc._core.problem import Bias, Problem, Wildcards, expected_size, mask_labels
from jaxctc._core.recursion import Alpha, Transitions, start_blank, transitions, weight_one_in
from jaxctc._core.semirings import WIDE, Number, weighed


class Pair(NamedTuple):
    """The graph beside its mirror image, whose labels are reversed.

    A step forward through the image is one backward through the graph. Frames are neither copied
    nor reversed: whoever reads some says which for either of the two.
    """

    problem: Problem
    columns: Int[Array, "2 B N"]
    is_label: Bool[Array, "2 B N"]
    wildcards: Wildcards | None
    """Those of `problem`, with `in_gap` as `[2, B, N+1]`."""
    forward: Transitions
    """As `[2, …]`, laid out: towards the middle, in the first half."""
    start: Alpha
    plan: ChunkPlan

    @classmethod
    def of(cls, problem: Problem, label_loop: bool) -> "Pair":
        """Of a problem, laid out, with labels that fill vectors."""
        labels = problem.is_label.shape[-1]
        layout = choose_layout(expected_size(problem.label_count), labels)
        if labels > 0 and not layout.batch_minor:
            problem = _fill_up_vectors(problem)
        forward, backward = (
            transitions(problem, label_loop, backward=way) for way in (False, True)
        )

        can_skip = _stack_reversed(forward.can_skip, backward.can_skip)
        starts = _stack_reversed(*(start_blank(problem, backward=way) for way in (False, True)))
        starts = layout.to_layout(starts, 1)
        wildcards = problem.wildcards
        if wildcards is not None:
            in_gap = _stack_reversed(wildcards.in_gap, wildcards.in_gap)
            wildcards = wildcards._replace(in_gap=in_gap)
        return cls(
            problem=problem,
            columns=_stack_reversed(problem.columns, problem.columns),
            is_label=_stack_reversed(problem.is_label, problem.is_label),
            wildcards=wildcards,
            forward=forward._replace(can_skip=layout.to_layout(can_skip, 1), axis=layout.labels),
            start=weight_one_in(starts, problem, WIDE, layout.labels),
            plan=ChunkPlan.of(problem.is_frame.shape[-1], layout),
        )


def _stack_reversed(part: Array, mirrored: Array) -> Array:
    return jnp.stack([part, reverse(mirrored, -1)])


def _fill_up_vectors(problem: Problem) -> Problem:
    """Labels filled up with padding.

    XLA:CPU computes rows of labels in vectors, but one by one what is left over at the end of each
    row, and everything in rows of less than sixteen.
    """
    labels = problem.is_label.shape[-1]
    more = max(2 * VECTOR, -(-labels // VECTOR) * VECTOR) - labels

    def filled(part: Array) -> Array:
        nothing = lax.full_like(part, 0, shape=())
        return lax.pad(part, nothing, [(0, 0, 0)] * (part.ndim - 1) + [(0, more, 0)])

    wildcards = problem.wildcards
    if wildcards is not None:
        wildcards = wildcards._replace(in_gap=filled(wildcards.in_gap))
    bias = problem.bias
    if bias is not None:
        bias = bias._replace(label=filled(bias.label))
    return problem._replace(
        columns=filled(problem.columns),
        is_label=filled(problem.is_label),
        can_skip=filled(problem.can_skip),
        wildcards=wildcards,
        bias=bias,
    )


def swap_halves(alpha: Any, layout: Layout) -> Any:
    """Each half gets what the other has, in its own order of labels."""
    return jax.tree.map(lambda part: reverse(part, 0, layout.labels), alpha)


def allocate(pair: Pair, width: int, *, num_chunks: int) -> Float[Array, "B R width"]:
    """A table (`chunk_tables`) with rows for so many chunks of both halves, laid out."""
    # Made of an array of the batch, it lies on the devices that the batch lies on.
    zero = lax.full_like(pair.problem.frame_max[:, :1, None], 0)
    rows = 2 * num_chunks * pair.plan.chunk_size
    return pair.plan.layout.to_layout(broadcast(zero, (zero.shape[0], rows, width)), 2)


class Chunk(NamedTuple):
    """What the frames of a chunk emit, laid out, `[2, B, chunk_size, …]`, or what one does."""

    blank: Number
    """[…, 1], the same for all blanks. A mantissa below 0 marks a padded frame: an array less to
    read in every frame, which costs a TPU as much as an addition of all states."""
    label: Number
    either: Number | None = None
    """[…, 1], of blanks beside which a wildcard stands; without the mark of padded frames. Not one
    table of all blanks: XLA:TPU would lay out states as it lays out what is one number for each
    example and frame, which takes twice as long."""
    in_gap: Bool[Array, "2 B 1 N+1"] | None = None
    """Which blanks these are."""

    @property
    def is_frame(self) -> Bool[Array, "..."]:
        """False in padded frames, and in those of an overlap that count for the other half."""
        return self.blank.mantissa > 0

    @property
    def blanks(self) -> Number:
        """Of each blank, `[…, N+1]`, or of all."""
        if self.in_gap is None:
            return self.blank
        choose = functools.partial(jnp.where, self.in_gap)
        return jax.tree.map(choose, self.either, self.blank)


def gather_label_scores(pair: Pair, table: Array, index: Array) -> tuple[Array, Array]:
    """Reads what the labels score in a chunk; the same scores are left in the table.

    The gather leaves the frames of a label side by side. Read straight from it, XLA:CPU would
    compute emissions one by one; rows of the table it computes in vectors.
    """
    plan = pair.plan
    early = index * plan.chunk_size
    first = [early, plan.frames - plan.chunk_size - early]
    columns = jnp.moveaxis(pair.columns, 0, -2)
    scores = jnp.moveaxis(read_frames(pair.problem.scores, first, columns, plan.chunk_size), -3, 0)
    # XLA:CPU would not vectorise what it computes along with a gather.
    scores = at_least_float32(lax.optimization_barrier(scores))
    early, later = plan.layout.to_layout(mask_labels(scores, pair.is_label), 2)
    table = write_rows(plan, table, early, later, index)
    return table, read_chunk(plan, table, index)


def emissions(pair: Pair, index: Array, scores: Float[Array, "2 B chunk_size N"]) -> Chunk:
    """y_t of the frames of a chunk, by what the labels score there."""
    problem, plan = pair.problem, pair.plan
    early = index * plan.chunk_size + plan.offsets
    frames = jnp.stack([early, plan.frames - 1 - early])
    twice = 2 * early
    is_nearer = jnp.stack([twice < plan.frames, twice < plan.frames - 1])

    def at(rows: Shaped[Array, "B T"]) -> Array:
        found = rows.T.at[frames].get(mode="promise_in_bounds", wrap_negative_indices=False)
        return plan.layout.to_layout(jnp.moveaxis(found, 2, 1)[..., None], 2)

    frame_max = at(problem.frame_max)
    blank = WIDE.encode(at(problem.blank_scores), frame_max)
    label = WIDE.encode(scores, frame_max)
    either, in_gap = None, None
    if pair.wildcards is not None:
        wildcard = WIDE.encode(at(pair.wildcards.scores), jnp.zeros_like(frame_max))
        either = WIDE.plus(blank, wildcard)
        in_gap = plan.layout.to_layout(pair.wildcards.in_gap[..., None, :], 2)
    if problem.bias is not None:
        blank = weighed(blank, at(problem.bias.blank), WIDE)
        label = weighed(label, _label_bias(pair, problem.bias, index), WIDE)
    counts = at(problem.is_frame) & plan.layout.to_layout(is_nearer[:, None, :, None], 2)
    blank = blank._replace(mantissa=select(counts, blank.mantissa, -1))
    return lax.optimization_barrier(Chunk(blank, label, either))._replace(in_gap=in_gap)


def _label_bias(pair: Pair, bias: Bias, index: Int[Array, ""]) -> Float[Array, "2 B chunk_size N"]:
    """Of a chunk, laid out; the image reads frames and labels from the end."""
    plan = pair.plan
    early = index * plan.chunk_size
    parts = [
        lax.dynamic_slice_in_dim(
            bias.label, first, plan.chunk_size, -2, allow_negative_indices=False
        )
        for first in (early, plan.frames - plan.chunk_size - early)
    ]
    return plan.layout.to_layout(jnp.stack([parts[0], reverse(parts[1], -2, -1)]), 2)


def frame_of(chunk: Chunk, offset: Int[Array, ""], layout: Layout) -> Chunk:
    """What one frame emits. Indexed here and not by the scan, whose slices would be copies."""

    def at(part: Array) -> Array:
        return take_one(part, offset, layout.frames)

    in_gap = chunk.in_gap
    if in_gap is not None:
        in_gap = lax.squeeze(in_gap, [in_gap.ndim + layout.frames])
    return jax.tree.map(at, chunk._replace(in_gap=None))._replace(in_gap=in_gap)
