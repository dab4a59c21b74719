"""Algorithms as they were published, in NumPy: to compare with, and to test against."""

from typing import NamedTuple

import numpy as np


class Rows(NamedTuple):
    """The two rows of a prefix after 0 to T frames, in nats, as in the paper's algorithm 2."""

    label: np.ndarray
    """[…, T + 1], γ(n)"""
    blank: np.ndarray
    """[…, T + 1], γ(b)"""


def published_start(log_probs: np.ndarray, blank: int = 0) -> Rows:
    """Of the empty prefix."""
    only_blanks = np.cumsum(np.concatenate([[0.0], log_probs[:, blank]]))
    return Rows(np.full_like(only_blanks, -np.inf), only_blanks)


def published_step(
    log_probs: np.ndarray, rows: Rows, last: int, tokens: np.ndarray, blank: int = 0
) -> tuple[np.ndarray, Rows]:
    """log p(prefix · token, …) of C tokens, and their rows `[C, T + 1]`.

    Watanabe et al. 2017, "Hybrid CTC/attention architecture for end-to-end speech recognition",
    algorithm 2, written down as it stands there, but with all candidates side by side.
    """
    frames = len(log_probs)
    label, in_blank = (np.full((len(tokens), frames + 1), -np.inf) for _ in Rows._fields)
    score = np.full(len(tokens), -np.inf)
    for frame in range(frames):
        either = np.logaddexp(rows.blank[frame], rows.label[frame])
        before = np.where(tokens == last, rows.blank[frame], either)
        y = log_probs[frame, tokens]
        label[:, frame + 1] = y + np.logaddexp(label[:, frame], before)
        in_blank[:, frame + 1] = log_probs[frame, blank] + np.logaddexp(
            in_blank[:, frame], label[:, frame]
        )
        score = np.logaddexp(score, before + y)
    return score, Rows(label, in_blank)
