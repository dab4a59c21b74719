"""The aligner of torchaudio: `torchaudio.functional.forced_align` and `merge_tokens`."""

import dataclasses
import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from jaxctc import alignment
from jaxctc._core import checks
from jaxctc._core.explicit_axes import over_explicit_axes
from jaxctc.padding import lengths_to_paddings, required_frames


@over_explicit_axes
def forced_align(
    log_probs: Float[ArrayLike, "B T C"],
    targets: Int[ArrayLike, "B L"],
    input_lengths: Int[ArrayLike, "B"] | None = None,
    target_lengths: Int[ArrayLike, "B"] | None = None,
    blank: int = 0,
) -> tuple[Int[Array, "B T"], Float[Array, "B T"]]:
    """The most likely path that spells `targets`: its class in each frame, and that one's score.

    As `jaxctc.forced_align`, with torchaudio's arguments, and for any batch size; torchaudio takes
    one example. Paths differ only where several are equally likely.

    Args:
      log_probs: log-probabilities, which are taken as they are.
      targets: class ids.
      input_lengths: frames in use; None is T of them. A longer length uses all.
      target_lengths: labels in use; None is L of them.
      blank: static class id of the blank; a negative one, unlike there, counts from the last.

    Returns:
      `(paths, scores)`: class ids in the dtype of `targets`, and `log_probs` at them. Frames that
      are not in use have the blank and score 0, so that `merge_tokens` leaves them out.

    Raises:
      ValueError: if shapes disagree, targets or lengths are not integers, or `blank` is no class;
        and, where targets and lengths are known (not within `jit`), if a label in use is the
        blank or no class, or an example has more labels, repetitions counted twice, than frames.
        Within `jit` such an example has -1 for its path, and scores -inf.

    Example:
      >>> log_probs = jnp.log(jnp.array([[[0.8, 0.2], [0.1, 0.9], [0.6, 0.4]]]))
      >>> paths, scores = forced_align(log_probs, jnp.array([[1]]))
      >>> paths.tolist(), [f"{p:.1f}" for p in jnp.exp(scores[0])]
      ([[0, 1, 0]], ['0.8', '0.9', '0.6'])
    """
    function = "adapters.torchaudio.forced_align"
    scores = checks.as_array(function, "log_probs", log_probs)
    if scores.ndim != 3:
        remedy = (
            "Of one example, log_probs[None] and targets[None] have it." if scores.ndim == 2 else ""
        )
        checks.fail(function, "log_probs", "have shape (B, T, C)", scores.shape, remedy)
    scores = checks.class_scores(function, "log_probs", scores)
    batch, frames, classes = scores.shape
    dtype = checks.as_array(function, "targets", targets).dtype
    labels = checks.class_ids(function, "targets", targets)
    if labels.ndim != 2 or labels.shape[0] != batch:
        requirement = f"have shape (B, L) with B = {batch}, as in log_probs"
        checks.fail(function, "targets", requirement, labels.shape)
    blank = checks.class_id(function, "blank", blank, classes)
    is_padded = _paddings(function, "input_lengths", input_lengths, (batch, frames))
    no_label = _paddings(function, "target_lengths", target_lengths, labels.shape)
    if not any(isinstance(array, Tracer) for array in (labels, is_padded, no_label)):
        _check_targets(function, labels, no_label, is_padded, blank, classes)

    best = alignment.forced_align(
        scores, is_padded, labels, no_label, blank_id=blank, logits_normalized=True
    )
    is_aligned = (best.frame_labels >= 0) | is_padded
    path = jnp.where(is_padded, jnp.asarray(blank, jnp.int32), best.frame_labels)
    place = jnp.maximum(path, 0)[..., None]
    at_path = jnp.take_along_axis(scores, place, axis=-1)[..., 0]
    at_path = jnp.where(is_padded, jnp.zeros_like(at_path), at_path)
    at_path = jnp.where(is_aligned, at_path, jnp.full_like(at_path, -jnp.inf))
    return path.astype(dtype), at_path


@dataclasses.dataclass
class TokenSpan:
    """A label with the frames it takes; `len` counts them."""

    token: int
    """The class id."""
    start: int
    """First frame."""
    end: int
    """The frame after the last."""
    score: float
    """Mean of the scores of its frames."""

    def __len__(self) -> int:
        """How many frames it takes."""
        return self.end - self.start


def merge_tokens(
    tokens: Int[ArrayLike, "T"], scores: Float[ArrayLike, "T"], blank: int = 0
) -> list[TokenSpan]:
    """The labels of a path, with their frames. For the host, of one example.

    Args:
      tokens: a path, of `forced_align`.
      scores: the scores of its frames.
      blank: class id of the blank.

    Returns:
      A `TokenSpan` for each run of frames of one class, in order, blanks and frames without any
      (-1) left out.

    Raises:
      ValueError: if the two are not one-dimensional, of one length, or `tokens` are no integers.

    Example:
      >>> merge_tokens(np.array([0, 3, 3, 0, 3]), np.array([-9.0, -1.0, -2.0, -9.0, -4.0]))
      ... # doctest: +NORMALIZE_WHITESPACE
      [TokenSpan(token=3, start=1, end=3, score=-1.5),
       TokenSpan(token=3, start=4, end=5, score=-4.0)]
    """
    function = "adapters.torchaudio.merge_tokens"
    path = np.asarray(checks.class_ids(function, "tokens", tokens))
    values = np.asarray(checks.as_array(function, "scores", scores))
    for name, array in (("tokens", path), ("scores", values)):
        if array.ndim != 1:
            checks.fail(function, name, "have shape (T,)", array.shape, "Pass one example.")
    if len(path) != len(values):
        checks.fail(
            function, "scores", f"have a number for each of {len(path)} tokens", len(values)
        )
    bounds = np.flatnonzero(np.diff(path, prepend=-2, append=-2)).tolist()
    return [
        TokenSpan(int(path[start]), start, end, float(values[start:end].mean()))
        for start, end in itertools.pairwise(bounds)
        if path[start] not in (blank, -1)
    ]


def _paddings(function: str, argument: str, lengths: Any, shape: tuple[int, ...]) -> Array:
    if lengths is None:
        return jnp.zeros(shape, bool)
    counts = checks.lengths(function, argument, lengths, shape[:1], shape[1])
    return lengths_to_paddings(counts, shape[1])


def _check_targets(
    function: str, labels: Array, no_label: Array, is_padded: Array, blank: int, classes: int
) -> None:
    """Refuses what cannot be aligned, as torchaudio does."""
    in_use = ~np.asarray(no_label)
    for row, (ids, used) in enumerate(zip(np.asarray(labels), in_use, strict=True)):
        ids = ids[used]
        if (ids == blank).any():
            checks.fail(function, f"targets[{row}]", f"not hold the blank, {blank}", ids.tolist())
        if ids.size and not 0 <= ids.min() <= ids.max() < classes:
            checks.fail(function, f"targets[{row}]", f"lie in [0, {classes})", ids.tolist())
    needed = np.asarray(required_frames(labels, no_label))
    frames = np.sum(~np.asarray(is_padded), axis=1)
    short = np.flatnonzero(needed > frames)
    if short.size:
        row = int(short[0])
        requirement = f"have at least the {needed[row]} frames that targets[{row}] need"
        checks.fail(function, f"log_probs[{row}]", requirement, f"{frames[row]}")
