"""From scores to label sequences: the result type, and the best path."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Shaped

from jaxctc import _checks
from jaxctc.lattice import find_runs
from jaxctc.padding import pack_left
from jaxctc.scores import in_use, normaliser, widen


class Hypotheses(NamedTuple):
    """Decoded label sequences, `L` places each, packed to the left."""

    labels: Int[Array, "*B L"]
    """Class ids, -1 behind the last."""
    lengths: Int[Array, "*B"]
    """How many labels there are."""
    scores: Float[Array, "*B"]
    """Log-probability in nats; of what, the decoder says."""
    starts: Int[Array, "*B L"] | None
    """First frame of each label, -1 behind the last."""
    ends: Int[Array, "*B L"] | None
    """Last frame of each label, itself included; -1 behind the last."""
    confidences: Float[Array, "*B L"] | None
    """In [0, 1], -1 behind the last; of what, the decoder says."""


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
    scores = _checks.class_scores("greedy_decode", "logits", logits)
    padded = _checks.paddings("greedy_decode", "logit_paddings", logit_paddings, scores.shape[:-1])
    blank = _checks.class_id("greedy_decode", "blank_id", blank_id, scores.shape[-1])
    _checks.flags("greedy_decode", logits_normalized=logits_normalized, label_loop=label_loop)
    _checks.not_explicit("greedy_decode", logits=scores, logit_paddings=padded)
    return _greedy(blank, logits_normalized, label_loop, scores, ~padded)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _greedy(
    blank: int,
    logits_normalized: bool,
    label_loop: bool,
    scores: Float[Array, "*B T K"],
    is_frame: Bool[Array, "*B T"],
) -> Hypotheses:
    scores = widen(in_use(scores, is_frame))
    path = lax.argmax(scores, scores.ndim - 1, jnp.int32)
    runs = find_runs(path, is_frame, blank, label_loop)

    best = jnp.max(scores, axis=-1)
    if not logits_normalized:
        largest, log_sum = normaliser(scores, blank)
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
