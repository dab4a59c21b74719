"""Frames reduced to their likely tokens, before a search. All of it runs in NumPy, on the host."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

LONGEST_RUN = 4
"""Labels that one step of a search appends; a longer run takes several steps."""


class Steps(NamedTuple):
    """The frames of one utterance as steps of a search.

    A step is one frame to search and then a run of frames that leave no choice.
    """

    log_probs: Float[np.ndarray, "S K"]
    """Log-probability of each token in the frame to search; -inf for those that are not likely."""
    run_labels: Int[np.ndarray, "S R"]
    """The labels of the run, -1 after the last."""
    run_last: Int[np.ndarray, "S"]
    """The last token of the run; -1 where there is no run."""
    run_log_prob: Float[np.ndarray, "S"]
    """The log-probability of the run."""


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
    steps: Steps
    """The same for a search."""


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

    Nor is there a choice in such a frame if the one before it is one, too: after that, all paths
    stand at its token, and now all of them go on to this one. After any other frame, only the
    blank leaves no choice: it adds nothing to any path.

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
    starts = ends - np.asarray(lengths, np.int64)
    total, classes = log_probs.shape
    is_likely = ~(log_probs < min_log_prob)  # NaN, too, which no other token may hide
    counts = _sums(is_likely)
    (empty,) = np.nonzero(counts == 0)
    is_likely[empty, log_probs[empty].argmax(axis=1)] = True
    counts[empty] = 1
    likely = np.append(np.flatnonzero(is_likely), 0)
    best = (likely % classes)[np.cumsum(counts) - counts]  # of several, the first one
    is_begin = np.zeros(total, bool)
    is_begin[starts[starts < total]] = True
    is_first = is_begin | (counts > 1)
    is_first[1:] |= (counts[:-1] > 1) | (best[1:] != best[:-1])
    (first,) = np.nonzero(is_first)
    last = np.append(first[1:], total)[: len(first)] - 1
    sums = log_probs[np.arange(total), best]
    sums = np.add.reduceat(sums, first) if total else sums
    merged = log_probs[first]
    merged[~is_likely[first]] = -np.inf
    (alone,) = np.nonzero(counts[first] == 1)
    merged[alone, best[first][alone]] = sums[alone]
    others = counts - is_likely[:, blank_id]
    steps, step_of = _steps(merged, best[first], counts[first] == 1, is_begin[first], blank_id)
    frame_bounds = np.searchsorted(first, [starts, ends])
    step_bounds = np.append(step_of, len(steps.run_last))[frame_bounds]
    return [
        LikelyFrames(
            merged[begin:end],
            first[begin:end] - start,
            last[begin:end] - start,
            max(1, int(others[start:stop].max(initial=0))),
            Steps(*(part[step:step_end] for part in steps)),
        )
        for start, stop, begin, end, step, step_end in zip(
            starts, ends, *frame_bounds, *step_bounds, strict=True
        )
    ]


def _sums(is_so: Bool[np.ndarray, "N K"]) -> Int[np.ndarray, "N"]:
    """How many there are in each row: by a product, which NumPy is fast at."""
    ones = np.ones(is_so.shape[1], np.float32)
    return (is_so.astype(np.float32) @ ones).astype(np.int64)


def _steps(
    log_probs: Float[np.ndarray, "F K"],
    best: Int[np.ndarray, "F"],
    is_alone: Bool[np.ndarray, "F"],
    is_begin: Bool[np.ndarray, "F"],
    blank_id: int,
) -> tuple[Steps, Int[np.ndarray, "F"]]:
    """The steps of all utterances, which begin at `is_begin`, and the step of each frame."""
    frames = np.arange(len(best))
    is_label = best != blank_id
    goes_on = is_alone & ~is_begin
    goes_on[1:] &= is_alone[:-1] | ~is_label[1:]
    # The labels of a run, counted from 0: every so many, one is searched instead.
    labels = np.cumsum(goes_on & is_label)
    before = np.maximum.accumulate(np.where(goes_on, 0, labels))
    goes_on &= ~is_label | ((labels - before) % (LONGEST_RUN + 1) > 0)
    (first,) = np.nonzero(~goes_on)
    step_of = np.cumsum(~goes_on) - 1
    last = np.append(first[1:], len(best))[: len(first)] - 1
    in_run = np.where(goes_on, log_probs[frames, best], 0)
    run_labels = np.full((len(first), LONGEST_RUN), -1, np.int32)
    (added,) = np.nonzero(goes_on & is_label)
    count = np.cumsum(goes_on & is_label)
    run_labels[step_of[added], (count - count[first][step_of])[added] - 1] = best[added]
    steps = Steps(
        log_probs=log_probs[first],
        run_labels=run_labels,
        run_last=np.where(last > first, best[last], -1).astype(np.int32),
        run_log_prob=np.add.reduceat(in_run, first) if len(first) else in_run,
    )
    return steps, step_of
