"""The CTC graph as arrays: what each frame pays for each state, and which steps exist.

For N labels the graph has N + 1 blank states around N label states,

    blank 0 → label 0 → blank 1 → label 1 → … → label N-1 → blank N,

every state may be repeated, and a blank may be skipped between two labels that differ. Blanks
and labels are kept in two arrays: all blanks of a frame cost the same, and all that a step
needs is the labels shifted by one place.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Shaped

from jaxctc import _checks
from jaxctc.padding import (
    is_emittable,
    is_repeat,
    lengths_to_paddings,
    pack_left,
    paddings_to_lengths,
    scatter_in_order,
)


class Lattice(NamedTuple):
    """One CTC graph per example, frames leading, labels packed to the left.

    The log-probability of a class in a frame is `(score - scale) + offset`. Scores keep what they
    came with, however large; the scale takes that off, and the offset, which is common to all
    paths, is added up beside the recursion.
    """

    blank_scores: Float[Array, "T *B"]
    label_scores: Float[Array, "T *B N"]
    """-inf for padding and for ids that are no label."""
    scales: Float[Array, "T *B"]
    """No score of the frame is larger."""
    offsets: Float[Array, "T *B"]
    """0 in padded frames."""
    labels: Int[Array, "*B N"]
    can_skip: Bool[Array, "*B N"]
    """True where a label may follow the one before it without a blank."""
    is_frame: Bool[Array, "T *B"]
    label_count: Int[Array, "*B"]
    is_broken: Bool[Array, "*B"]
    """True where NaN or +inf stands among the scores of the frames in use."""


def build_lattice(inputs: _checks.CtcInputs, *, blank: int, logits_normalized: bool) -> Lattice:
    """The graphs of a batch.

    Padding is taken off what is left of K classes, not off the logits, which spares a pass over
    them. That is right for values; for JAX to differentiate through here, NaN in padded frames
    has to be gone before (`in_use`), for a select does not stop it in a derivative.
    """
    labels = pack_left(inputs.labels, inputs.is_label)
    count = paddings_to_lengths(~inputs.is_label)
    is_label = is_emittable(labels, inputs.logits.shape[-1], blank)
    is_label &= ~lengths_to_paddings(count, labels.shape[-1])

    blank_scores = widen(inputs.logits[..., blank])
    label_scores = widen(_columns(inputs.logits, labels))
    impossible = jnp.full_like(label_scores, -jnp.inf)
    label_scores = jnp.where(is_label[..., None, :], label_scores, impossible)
    if logits_normalized:
        largest = jnp.maximum(blank_scores, jnp.max(label_scores, axis=-1, initial=-jnp.inf))
        scales = offsets = _finite_scale(largest)  # NaN and +inf pass into it
    else:
        scales, log_sum = normaliser(inputs.logits)  # NaN if any class is NaN or +inf
        offsets = -log_sum
    return Lattice(
        blank_scores=jnp.moveaxis(blank_scores, -1, 0),
        label_scores=jnp.moveaxis(label_scores, -2, 0),
        scales=jnp.moveaxis(scales, -1, 0),
        offsets=jnp.moveaxis(jnp.where(inputs.is_frame, offsets, jnp.zeros_like(offsets)), -1, 0),
        labels=labels,
        can_skip=~is_repeat(labels, count),
        is_frame=jnp.moveaxis(inputs.is_frame, -1, 0),
        label_count=count,
        is_broken=jnp.any(~(offsets < jnp.inf) & inputs.is_frame, axis=-1),
    )


def in_use(logits: Float[Array, "*B T K"], is_frame: Bool[Array, "*B T"]) -> Array:
    """The logits, 0 in padded frames whatever stood there."""
    return jnp.where(is_frame[..., None], logits, jnp.zeros_like(logits))


def widen(scores: Float[Array, "..."]) -> Float[Array, "..."]:
    """In at least float32."""
    return scores if scores.dtype == jnp.float64 else scores.astype(jnp.float32)


def normaliser(
    logits: Float[Array, "*B T K"],
) -> tuple[Float[Array, "*B T"], Float[Array, "*B T"]]:
    """`(c, s)` with `logsumexp(logits) = c + s`, kept apart because the sum would round.

    `c` is the largest logit and `s = log Σ exp(logits - c)`, in [0, log K]. A frame of -inf
    alone has no distribution; (0, 0) leaves its scores at -inf.
    """
    largest = _finite_scale(widen(jnp.max(logits, axis=-1)))
    total = jnp.sum(jnp.exp(widen(logits) - largest[..., None]), axis=-1)
    log_sum = jnp.log(jnp.where(total == 0, jnp.ones_like(total), total))

    # A confident frame's total is 1 and a little, and the little has been rounded away. There the
    # largest class is alone, and the rest can be summed without it. The factor that leaves it out
    # is no select because XLA:CPU reduces several times slower through one, and the barrier keeps
    # it from merging the two sums into one slow loop.
    largest, total = lax.optimization_barrier((largest, total))
    gap = lax.stop_gradient(widen(logits)) - largest[..., None]
    rest = jnp.sum(jnp.exp(gap) * jnp.minimum(gap * -1e30, 1), axis=-1)
    correction = jnp.where(total < 1.5, jnp.log1p(rest) - log_sum, jnp.zeros_like(total))
    return largest, log_sum + lax.stop_gradient(correction)


def _finite_scale(largest: Array) -> Array:
    # Whatever is taken off and put back again has no part in a derivative.
    largest = lax.stop_gradient(largest)
    return jnp.where(largest == -jnp.inf, jnp.zeros_like(largest), largest)


def spread_over_classes(
    shares: Float[Array, "*B T N"], labels: Int[Array, "*B N"], classes: int
) -> Float[Array, "*B T K"]:
    """Adds up what belongs to labels of the same class.

    By a product with a matrix of zeros and ones, in full precision, and not by a scatter, whose
    order of adding is not the same on every run of every device. With more classes than labels
    the matrix first merges the labels of each class, in the place of the first one, and classes
    then look up their place.
    """
    if classes <= labels.shape[-1]:
        columns = jnp.arange(classes, dtype=jnp.int32)
        return _product(shares, labels[..., None] == jnp.expand_dims(columns, range(labels.ndim)))
    merged = _product(shares, labels[..., None] == labels[..., None, :])
    return _look_up(merged, labels, classes)


def _product(shares: Array, matrix: Bool[Array, "*B N M"]) -> Array:
    return jnp.matmul(shares, matrix.astype(shares.dtype), precision=lax.Precision.HIGHEST)


def _look_up(merged: Array, labels: Array, classes: int) -> Array:
    @functools.partial(jnp.vectorize, signature="(t,n),(n)->(t,k)")
    def one(merged, labels):
        nowhere = labels.shape[0]
        place = jnp.full(classes, nowhere, jnp.int32)
        place = place.at[labels].min(jnp.arange(nowhere, dtype=jnp.int32), mode="drop")
        padded = jnp.concatenate([merged, jnp.zeros_like(merged, shape=(len(merged), 1))], axis=1)
        return jnp.take(padded, place, axis=1, mode="clip")

    return one(merged, labels)


@functools.partial(jnp.vectorize, signature="(t,k),(n)->(t,n)")
def _columns(scores, ids):
    # A gather written for one example keeps a sharded batch where it is.
    return jnp.take(scores, ids, axis=1, mode="clip")


class Runs(NamedTuple):
    """The labels that a path of frame labels spells, and where each stands; -1 behind the last."""

    labels: Int[Array, "*B T"]
    lengths: Int[Array, "*B"]
    starts: Int[Array, "*B T"]
    ends: Int[Array, "*B T"]
    owner: Int[Array, "*B T"]
    """For each frame in use, packed to the left, its place in `labels`; T for none."""


def find_runs(path: Int[Array, "*B T"], is_frame: Bool[Array, "*B T"], blank: int) -> Runs:
    """Merges equal neighbours, then drops blanks; padded frames part nothing."""
    frame = jnp.broadcast_to(jnp.arange(path.shape[-1], dtype=jnp.int32), path.shape)
    order = pack_left(frame, is_frame)
    packed = pack_left(path, is_frame, fill=blank)
    edge = jnp.full_like(packed[..., :1], blank)
    before = jnp.concatenate([edge, packed[..., :-1]], axis=-1)
    after = jnp.concatenate([packed[..., 1:], edge], axis=-1)
    is_start = (packed != blank) & (packed != before)
    is_end = (packed != blank) & (packed != after)
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


def collapse(
    frame_labels: Int[ArrayLike, "*B T"],
    logit_paddings: Shaped[ArrayLike, "*B T"] | None = None,
    *,
    blank_id: int = 0,
) -> tuple[Int[Array, "*B T"], Int[Array, "*B"]]:
    """The labels that a path spells: equal neighbours merged, then blanks dropped.

    This is the map ℬ of the paper.

    Args:
      frame_labels: one class id per frame, blanks included; a negative id counts as padding.
      logit_paddings: nonzero where the frame is padded; None pads nothing.
      blank_id: static class id of the blank.

    Returns:
      `(labels, lengths)`: labels packed to the left, -1 behind them, and how many there are.

    Raises:
      ValueError: if `frame_labels` are not integers, the shapes differ, or `blank_id` is not
        a static integer.

    Example:
      >>> labels, length = collapse(jnp.array([3, 3, 0, 3, 1, 0]))
      >>> labels.tolist(), int(length)
      ([3, 3, 1, -1, -1, -1], 3)

    References:
      Graves et al. 2006, "Connectionist temporal classification", section 3.1.
    """
    path = _checks.class_ids("collapse", "frame_labels", frame_labels)
    padded = _checks.paddings("collapse", "logit_paddings", logit_paddings, path.shape)
    blank = _checks.static_int("collapse", "blank_id", blank_id)
    runs = find_runs(path, ~padded & (path >= 0), blank)
    return runs.labels, runs.lengths
