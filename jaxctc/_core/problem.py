"""What a CTC graph is, as arrays: the seam between the library and the kernels.

For N labels the graph has N + 1 blank states around N label states,

    blank 0 → label 0 → blank 1 → label 1 → … → label N-1 → blank N.

A path starts in blank 0 or label 0 and ends in the last blank or the last label. In every frame it
stays in its state, moves to the next one, or moves from a label to the next label, which skips a
blank, if the two labels differ. (Without label loops a path never stays in a label, and any blank
may be skipped.) Blanks and labels are kept in two arrays: all blanks of a frame score the same,
and all that a step needs is the labels shifted by one.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from jaxctc._core.classes import read_frames
from jaxctc._core.lean import select
from jaxctc._core.normalizer import at_least_float32


class Wildcards(NamedTuple):
    """Labels that absorb frames. They are no states: they widen what some blanks emit.

    A wildcard stands in the gap between two labels, where a blank is, and may absorb nothing. So
    every frame in which a path is in that blank has the weight blank ⊕ wildcard, and no step of the
    recursion has to know of it. `wildcard_share` parts the two afterwards.
    """

    scores: Float[Array, "*B T"]
    """Score of a frame that a wildcard absorbs, less `frame_max`."""
    in_gap: Bool[Array, "*B N+1"]
    """True for a blank beside which a wildcard stands."""


class Alternatives(NamedTuple):
    """Several classes for each label, of which a path takes one: see `alternatives`."""

    log_weights: Float[Array, "*B N A"]
    """What a path pays on entering, less the largest of the label; -inf for what is no label."""
    can_skip: Bool[Array, "*B N A A"]
    """True where a path may enter the first alternative from the second, which is one of the label
    before, without a blank."""
    log_scale: Float[Array, "*B"]
    """The sum of what was taken off the weights, in nats."""


class Bias(NamedTuple):
    """What is added to scores, never more than 0."""

    label: Float[Array, "*B T N"]
    blank: Float[Array, "*B T"]
    """Less than 0 where a label's would have been more: all states are then brought down alike."""


class Problem(NamedTuple):
    """One graph per example, and what its states score in every frame; T is at least 1.

    Arrays only, so that it crosses `jit`, `vmap` and `custom_jvp`. A state with score x in frame t
    emits with weight exp(x - frame_max[t]) or, with a bias, exp(bias) times as much. The logarithm
    of the normaliser is common to all paths and is added up beside the recursion.
    """

    scores: Float[Array, "*B T M"]
    """Scores of all classes, as the caller gave them. Where classes are sharded, those of the blank
    and of the labels alone, the same on all devices."""
    columns: Int[Array, "*B N"]
    """Which column of the scores is the label's; any column for what is no label."""
    frame_max: Float[Array, "*B T"]
    """No state scores more than this in the frame."""
    blank_scores: Float[Array, "*B T"]
    wildcards: Wildcards | None
    bias: Bias | None
    is_label: Bool[Array, "*B N"]
    """Labels are packed to the left. False after the last one, and for ids that are no label."""
    can_skip: Bool[Array, "*B N"]
    """True where a path may enter the label from the label before it, without a blank."""
    is_frame: Bool[Array, "*B T"]
    """False in padded frames, which leave a path where it is."""
    label_count: Int[Array, "*B"]
    alternatives: Alternatives | None = None
    """With A for each label, those of all labels stand in one row, N times A, wherever labels do,
    and `can_skip` means nothing. No kernel knows them."""


ANY_BATCH = 32


def expected_size(part: Array) -> int:
    """How many numbers there are, for a schedule to reckon with.

    A program exported for a batch of any size is laid out for `ANY_BATCH` examples.
    """
    return math.prod(size if isinstance(size, int) else ANY_BATCH for size in part.shape)


def label_scores(problem: Problem, first: Int[Array, ""], count: int) -> Float[Array, "*B F N"]:
    """Scores of the labels in `count` frames from the first one on; -inf for what is no label."""
    scores = read_frames(problem.scores, [first], problem.columns[..., None, :], count)
    return mask_labels(at_least_float32(scores[..., 0, :, :]), problem.is_label)


def mask_labels(
    scores: Float[Array, "*B F N"], is_label: Bool[Array, "*B N"]
) -> Float[Array, "*B F N"]:
    """The scores, -inf for what is no label."""
    return select(is_label[..., None, :], scores, -jnp.inf)


def wildcard_share(problem: Problem, wildcards: Wildcards) -> Float[Array, "*B T"]:
    """The part of blank ⊕ wildcard that is the wildcard's, in [0, 1]."""
    possible = wildcards.scores > -jnp.inf
    scores = select(possible, wildcards.scores, 0)
    share = lax.logistic(scores - (problem.blank_scores - problem.frame_max))
    return select(possible, share, 0)
