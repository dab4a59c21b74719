"""From scores to label sequences: the result type, the best path, and what a path spells."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Shaped

from jaxctc._core import checks
from jaxctc._core.explicit_axes import over_explicit_axes
from jaxctc._core.lean import select
from jaxctc._core.normalizer import (
    at_least_float32,
    largest_or_nan,
    mask_padding,
    normalizer,
)
from jaxctc._core.ragged import pack_left, scatter_in_order


class Hypotheses(NamedTuple):
    """Decoded label sequences, `L` places each, packed to the left."""

    labels: Int[Array, "*B L"]
    """Class ids, -1 after the last."""
    lengths: Int[Array, "*B"]
    """How many labels there are."""
    scores: Float[Array, "*B"]
    """Log-probability in nats; of what, the decoder says."""
    starts: Int[Array, "*B L"] | None
    """First frame of each label, -1 after the last."""
    ends: Int[Array, "*B L"] | None
    """Last frame of each label, itself included; -1 after the last."""
    confidences: Float[Array, "*B L"] | None
    """In [0, 1], -1 after the last; of what, the decoder says."""


@over_explicit_axes
def greedy_decode(
    logits: Float[ArrayLike, "*B T K"],
    logit_paddings: Shaped[ArrayLike, "*B T"] | None,
    *,
    blank_id: int = 0,
    logits_normalized: bool = False,
    label_loop: bool = True,
) -> Hypotheses:
    """Labels along the single most likely path: the best class of every frame, collapsed.

    Equal neighbours merge before blanks go: `a a - a` spells `a a`. Of equally likely classes
    the lowest id is taken. This need not be the most likely label sequence, which may collect
    its probability from many paths.

    Args:
      logits: scores over classes, the blank included.
      logit_paddings: nonzero where a frame is padded, anywhere; None pads nothing.
      blank_id: static class id of the blank; a negative one counts from the last class.
      logits_normalized: static; True takes `logits` for log-probabilities.
      label_loop: static; False merges nothing, as of `jaxctc.ctc_loss`.

    Returns:
      `Hypotheses` with `L = T`. `scores` is the log-probability of the path (0 without
      frames, NaN if a frame in use holds NaN or +inf), `starts` and `ends` are the frames of
      each label's run, and `confidences` is the largest probability the label has in its run.

    Raises:
      ValueError: if shapes disagree or `blank_id` is not a class.

    Example:
      >>> path = jnp.array([2, 2, 0, 2, 1])
      >>> best = greedy_decode(jax.nn.one_hot(path, 3), None)
      >>> best.labels.tolist(), best.starts.tolist()
      ([2, 2, 1, -1, -1], [0, 3, 4, -1, -1])

    References:
      Graves et al. 2006, "Connectionist temporal classification", section 3.2.
    """
    scores = checks.class_scores("greedy_decode", "logits", logits)
    padded = checks.paddings("greedy_decode", "logit_paddings", logit_paddings, scores.shape[:-1])
    blank = checks.class_id("greedy_decode", "blank_id", blank_id, scores.shape[-1])
    checks.flags("greedy_decode", logits_normalized=logits_normalized, label_loop=label_loop)
    return _greedy(blank, logits_normalized, label_loop, scores, ~padded)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _greedy(
    blank: int,
    logits_normalized: bool,
    label_loop: bool,
    scores: Float[Array, "*B T K"],
    is_frame: Bool[Array, "*B T"],
) -> Hypotheses:
    scores = at_least_float32(mask_padding(scores, is_frame))
    path = lax.argmax(scores, scores.ndim - 1, jnp.int32)
    runs = find_runs(path, is_frame, blank, label_loop)

    best = jnp.max(scores, axis=-1)
    if logits_normalized:
        best = select(largest_or_nan(scores) < jnp.inf, best, jnp.nan)
    else:
        largest, log_sum = normalizer(scores, blank)
        best = (best - largest) - log_sum
    best = pack_left(best, is_frame)
    return Hypotheses(
        labels=runs.labels,
        lengths=runs.lengths,
        scores=jnp.sum(best, axis=-1),
        starts=runs.starts,
        ends=runs.ends,
        confidences=_largest_per_run(jnp.exp(best), runs.owner),
    )


@functools.partial(jnp.vectorize, signature="(t),(t)->(t)")
def _largest_per_run(values, owner):
    # A maximum, unlike a sum, does not depend on the order of the scatter.
    largest = jax.ops.segment_max(values, owner, num_segments=values.shape[0])
    return jnp.where(largest == -jnp.inf, jnp.full_like(largest, -1), largest)


class Runs(NamedTuple):
    """The labels that a path of frame labels spells, and where each stands; -1 after the last."""

    labels: Int[Array, "*B T"]
    lengths: Int[Array, "*B"]
    starts: Int[Array, "*B T"]
    ends: Int[Array, "*B T"]
    owner: Int[Array, "*B T"]
    """For each frame in use, packed to the left, its place in `labels`; T for none."""


def find_runs(
    path: Int[Array, "*B T"], is_frame: Bool[Array, "*B T"], blank: int, label_loop: bool
) -> Runs:
    """Merges equal neighbours, if they may, then drops blanks; padded frames part nothing."""
    frame = jnp.broadcast_to(jnp.arange(path.shape[-1], dtype=jnp.int32), path.shape)
    order = pack_left(frame, is_frame)
    packed = pack_left(path, is_frame, fill=blank)
    edge = jnp.full_like(packed[..., :1], blank)
    before = jnp.concatenate([edge, packed[..., :-1]], axis=-1)
    after = jnp.concatenate([packed[..., 1:], edge], axis=-1)
    is_start = is_end = packed != blank
    if label_loop:
        is_start, is_end = is_start & (packed != before), is_end & (packed != after)
    place = jnp.cumsum(is_start, axis=-1, dtype=jnp.int32) - 1

    nowhere = path.shape[-1]
    owner = jnp.where(packed == blank, jnp.full_like(place, nowhere), place)
    return Runs(
        labels=scatter_in_order(packed, is_start, place, -1),
        lengths=jnp.sum(is_start, axis=-1, dtype=jnp.int32),
        starts=scatter_in_order(order, is_start, place, -1),
        ends=scatter_in_order(order, is_end, place, -1),
        owner=owner,
    )


@over_explicit_axes
def collapse(
    frame_labels: Int[ArrayLike, "*B T"],
    logit_paddings: Shaped[ArrayLike, "*B T"] | None = None,
    *,
    blank_id: int = 0,
    label_loop: bool = True,
) -> tuple[Int[Array, "*B T"], Int[Array, "*B"]]:
    """The labels that a path spells: equal neighbours merged, then blanks dropped.

    This is the map ℬ of the paper.

    Args:
      frame_labels: one class id per frame, blanks included; a negative id counts as padding.
      logit_paddings: nonzero where the frame is padded; None pads nothing.
      blank_id: static class id of the blank, from 0 on: here none counts from the last class.
      label_loop: static; False only drops blanks, as every frame is a label of its own.

    Returns:
      `(labels, lengths)`: labels packed to the left, -1 after them, and how many there are.

    Raises:
      ValueError: if `frame_labels` are not integers, the shapes differ, or `blank_id` is not
        a static id, from 0 on.

    Example:
      >>> labels, length = collapse(jnp.array([3, 3, 0, 3, 1, 0]))
      >>> labels.tolist(), int(length)
      ([3, 3, 1, -1, -1, -1], 3)

    References:
      Graves et al. 2006, "Connectionist temporal classification", section 3.1.
    """
    path = checks.class_ids("collapse", "frame_labels", frame_labels)
    padded = checks.paddings("collapse", "logit_paddings", logit_paddings, path.shape)
    remedy = "How many classes there are is not known here, so none can be counted from the last."
    blank = checks.some_id("collapse", "blank_id", blank_id, least=0, remedy=remedy)
    checks.flags("collapse", label_loop=label_loop)
    runs = find_runs(path, ~padded & (path >= 0), blank, label_loop)
    return runs.labels, runs.lengths


@over_explicit_axes
def segment_means(
    hidden: Float[ArrayLike, "*B T D"],
    frame_labels: Int[ArrayLike, "*B T"],
    logit_paddings: Shaped[ArrayLike, "*B T"] | None = None,
    *,
    drop_id: int | None = None,
) -> tuple[Float[Array, "*B T D"], Int[Array, "*B"]]:
    """The mean of what an encoder gives for neighbouring frames of one class: a CTC compressor.

    Args:
      hidden: what is averaged.
      frame_labels: one class id per frame, of the best path (`argmax` of the logits) or of an
        alignment (`forced_align`, `sample_alignments`); a negative id counts as padding.
      logit_paddings: nonzero where the frame is padded; None pads nothing.
      drop_id: static id of a class whose segments are left out, such as the blank's; None keeps
        all.

    Returns:
      `(means, lengths)`: means packed to the left, 0 after them, in at least float32, and how many
      there are. Differentiable in `hidden`; what stands in padded frames has no influence.

    Raises:
      ValueError: if `hidden` are not real numbers, `frame_labels` not integers, the shapes differ,
        or `drop_id` is not a static id.

    Example:
      >>> hidden = jnp.array([[1.0], [3.0], [5.0], [7.0]])
      >>> means, length = segment_means(hidden, jnp.array([2, 2, 0, 2]))
      >>> means[:, 0].tolist(), int(length)
      ([2.0, 5.0, 7.0, 0.0], 3)

    References:
      Gaido et al. 2021, "CTC-based compression for direct speech translation".
    """
    function = "segment_means"
    values = checks.class_scores(function, "hidden", hidden)
    path = checks.class_ids(function, "frame_labels", frame_labels)
    if path.shape != values.shape[:-1]:
        requirement = f"have shape {values.shape[:-1]}, one per frame of hidden"
        checks.fail(function, "frame_labels", requirement, path.shape)
    padded = checks.paddings(function, "logit_paddings", logit_paddings, path.shape)
    dropped = None if drop_id is None else checks.some_id(function, "drop_id", drop_id)
    is_frame = ~padded & (path >= 0)
    if path.shape[-1] == 0:
        return at_least_float32(values), jnp.zeros(path.shape[:-1], jnp.int32)
    owner, lengths = _segments(path, is_frame, dropped)
    places = jnp.expand_dims(jnp.arange(path.shape[-1], dtype=jnp.int32), range(path.ndim - 1))
    values = at_least_float32(mask_padding(values, is_frame))
    # A product with zeros and ones and not a scatter, which is a loop on a TPU.
    shares = (owner[..., None, :] == places[..., None]).astype(values.dtype)
    sums = jnp.matmul(shares, values, precision=lax.Precision.HIGHEST)
    counts = jnp.maximum(jnp.sum(shares, axis=-1, keepdims=True), 1)
    return sums / counts, lengths


def _segments(
    path: Int[Array, "*B T"], is_frame: Bool[Array, "*B T"], dropped: int | None
) -> tuple[Int[Array, "*B T"], Int[Array, "*B"]]:
    """Which segment each frame belongs to, -1 for none, and how many there are.

    Padded frames part nothing: a frame is compared with the last frame in use before it.
    """
    frame = jnp.expand_dims(jnp.arange(path.shape[-1], dtype=jnp.int32), range(path.ndim - 1))
    frame = jnp.broadcast_to(frame, path.shape)
    nearest = lax.cummax(jnp.where(is_frame, frame, jnp.full_like(frame, -1)), axis=path.ndim - 1)
    nothing = jnp.full_like(nearest[..., :1], -1)
    last = jnp.concatenate([nothing, nearest[..., :-1]], axis=-1)[..., : path.shape[-1]]
    before = jnp.where(
        last >= 0,
        jnp.take_along_axis(path, jnp.maximum(last, 0), axis=-1),
        jnp.full_like(path, -1),
    )
    counts = is_frame if dropped is None else is_frame & (path != dropped)
    is_start = counts & (path != before)
    place = jnp.cumsum(is_start, axis=-1, dtype=jnp.int32) - 1
    return jnp.where(counts, place, jnp.full_like(place, -1)), place[..., -1] + 1
