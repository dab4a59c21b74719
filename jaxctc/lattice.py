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
    """One CTC graph per example, frames leading, labels packed to the left."""

    blank_scores: Float[Array, "T *B"]
    """Log-probability of the blank."""
    label_scores: Float[Array, "T *B N"]
    """Log-probability of each label; -inf for padding and for ids that are no label."""
    can_skip: Bool[Array, "*B N"]
    """True where a label may follow the one before it without a blank."""
    is_frame: Bool[Array, "T *B"]
    label_count: Int[Array, "*B"]
    is_broken: Bool[Array, "*B"]
    """True where NaN or +inf stands among the scores of the frames in use."""


def build_lattice(inputs: _checks.CtcInputs, *, blank_id: int, logits_normalized: bool) -> Lattice:
    """The graphs of a batch; `blank_id` already checked, counted from the first class."""
    labels = pack_left(inputs.labels, inputs.is_label)
    count = paddings_to_lengths(~inputs.is_label)
    is_label = is_emittable(labels, inputs.logits.shape[-1], blank_id)
    is_label &= ~lengths_to_paddings(count, labels.shape[-1])

    logits = in_use(inputs.logits, inputs.is_frame)
    blank_scores = logits[..., blank_id]
    label_scores = _columns(logits, labels)
    if not logits_normalized:
        # Two subtractions, the large one first: adding 1e4 to every logit changes nothing.
        largest, log_sum = normaliser(logits)
        blank_scores = (blank_scores - largest) - log_sum
        label_scores = (label_scores - largest[..., None]) - log_sum[..., None]
    impossible = jnp.full_like(label_scores, -jnp.inf)
    label_scores = jnp.where(is_label[..., None, :], label_scores, impossible)

    # Written so that NaN counts as well: it is not less than infinity.
    fits = jnp.all(label_scores < jnp.inf, axis=-1) & (blank_scores < jnp.inf)
    return Lattice(
        blank_scores=jnp.moveaxis(blank_scores, -1, 0),
        label_scores=jnp.moveaxis(label_scores, -2, 0),
        can_skip=~is_repeat(labels, count),
        is_frame=jnp.moveaxis(inputs.is_frame, -1, 0),
        label_count=count,
        is_broken=jnp.any(~fits & inputs.is_frame, axis=-1),
    )


def in_use(logits: Float[Array, "*B T K"], is_frame: Bool[Array, "*B T"]) -> Array:
    """Scores in at least float32, 0 in padded frames whatever stood there."""
    logits = jnp.where(is_frame[..., None], logits, jnp.zeros_like(logits))
    return logits if logits.dtype == jnp.float64 else logits.astype(jnp.float32)


def normaliser(
    logits: Float[Array, "*B T K"],
) -> tuple[Float[Array, "*B T"], Float[Array, "*B T"]]:
    """`(c, s)` with `logsumexp(logits) = c + s`, kept apart because the sum would round.

    `c` is the largest logit and `s = log Σ exp(logits - c)`, in [0, log K]. A frame of -inf
    alone has no distribution; (0, 0) leaves its scores at -inf.
    """
    largest = lax.stop_gradient(jnp.max(logits, axis=-1))
    largest = jnp.where(largest == -jnp.inf, jnp.zeros_like(largest), largest)
    total = jnp.sum(jnp.exp(logits - largest[..., None]), axis=-1)
    return largest, jnp.log(jnp.where(total == 0, jnp.ones_like(total), total))


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
