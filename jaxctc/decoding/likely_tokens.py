"""Frames reduced to their likely tokens, before a search. All of it is NumPy's, for the host."""

from collections.abc import Sequence
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
    log_probs: Float[np.ndarray, "N K"],
    lengths: Sequence[int],
    min_log_prob: float,
    *,
    blank_id: int,
) -> list[LikelyFrames]:
    """Leaves each frame the tokens that are likely, and merges frames that have but one.

    Where one token alone is likely, in several frames on end, every path goes through all of
    them with that token. One frame with the sum of their log-probabilities has the same paths
    before and after it with the same probabilities, so a search finds the same sequences with
    the same scores. A model that is sure of itself leaves few frames to search.

    Args:
      log_probs: log-probabilities, in nats, of all utterances one after the other: their number
        then hardly matters to the time.
      lengths: frames of each utterance.
      min_log_prob: a token is likely from here on; the best one of a frame always is.
      blank_id: class id of the blank.

    Returns:
      `LikelyFrames` of each utterance.

    Example:
      >>> log_probs = np.log([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9], [0.1, 0.9]])
      >>> (frames,) = likely_frames(log_probs, [4], np.log(0.4), blank_id=0)
      >>> np.exp(frames.log_probs).round(2).tolist(), frames.first.tolist(), frames.last.tolist()
      ([[0.9, 0.0], [0.5, 0.5], [0.0, 0.81]], [0, 1, 2], [0, 1, 3])
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    starts = ends - lengths
    places = np.arange(len(log_probs))
    best = log_probs.argmax(axis=1)
    is_likely = log_probs >= min_log_prob
    is_likely[places, best] = True
    counts = np.count_nonzero(is_likely, axis=1)
    is_first = np.ones(len(log_probs), bool)
    is_first[1:] = (counts[1:] > 1) | (counts[:-1] > 1) | (best[1:] != best[:-1])
    is_first[starts[starts < len(log_probs)]] = True
    first = np.flatnonzero(is_first)
    merged = np.where(is_likely, log_probs, -np.inf)
    if len(first) < len(log_probs):
        merged = np.add.reduceat(merged, first, axis=0)
    last = np.append(first[1:], len(log_probs))[: len(first)] - 1
    others = counts - is_likely[:, blank_id]
    bounds = np.searchsorted(first, [starts, ends])
    return [
        LikelyFrames(
            merged[begin:end],
            first[begin:end] - start,
            last[begin:end] - start,
            max(1, int(others[start:stop].max(initial=0))),
        )
        for start, stop, begin, end in zip(starts, ends, *bounds, strict=True)
    ]
