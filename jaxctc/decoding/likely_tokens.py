"""Frames reduced to their likely tokens, before a search. All of it is NumPy's, for the host."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class LikelyFrames(NamedTuple):
    """The frames of one utterance, of which some stand for several."""

    log_probs: Float[np.ndarray, "T K"]
    """Log-probability of each token, in nats; -inf for those that are not likely."""
    first: Int[np.ndarray, "T"]
    """First of the frames that each one stands for."""
    last: Int[np.ndarray, "T"]
    """Last of them, itself included."""
    most: int
    """The most tokens that are likely in one frame, the blank not counted; at least 1."""


def likely_frames(
    log_probs: Float[np.ndarray, "T K"], min_log_prob: float, *, blank_id: int
) -> LikelyFrames:
    """Leaves each frame the tokens that are likely, and merges frames that have but one.

    Where one token alone is likely, in several frames on end, every path goes through all of
    them with that token. One frame with the sum of their log-probabilities has the same paths
    before and after it with the same probabilities, so a search finds the same sequences with
    the same scores. A model that is sure of itself leaves few frames to search.

    Args:
      log_probs: log-probabilities, in nats.
      min_log_prob: a token is likely from here on; the best one of a frame always is.
      blank_id: class id of the blank.

    Returns:
      `LikelyFrames`.

    Example:
      >>> log_probs = np.log([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9], [0.1, 0.9]])
      >>> frames = likely_frames(log_probs, np.log(0.4), blank_id=0)
      >>> np.exp(frames.log_probs).round(2).tolist(), frames.first.tolist(), frames.last.tolist()
      ([[0.9, 0.0], [0.5, 0.5], [0.0, 0.81]], [0, 1, 2], [0, 1, 3])
    """
    length = len(log_probs)
    best = log_probs.argmax(axis=1) if length else np.zeros(0, np.int64)
    is_likely = log_probs >= min_log_prob
    is_likely[np.arange(length), best] = True
    is_alone = is_likely.sum(axis=1) == 1
    goes_on = is_alone[1:] & is_alone[:-1] & (best[1:] == best[:-1])
    first = np.flatnonzero(np.concatenate([np.ones(min(length, 1), bool), ~goes_on]))
    last = np.append(first[1:], length)[: len(first)] - 1
    likely = np.where(is_likely, log_probs, -np.inf)
    merged = np.add.reduceat(likely, first, axis=0) if length else likely
    is_likely[:, blank_id] = False
    return LikelyFrames(merged, first, last, max(1, int(is_likely.sum(axis=1).max(initial=0))))
