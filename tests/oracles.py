"""Truths to test against: every path written out, in float64, in plain Python and NumPy.

Nothing here knows a recursion. A path is a class id per frame; K ** T of them are enumerated
and sorted by what they spell. Slow, and right.
"""

import collections
import functools
import itertools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np


def collapse(path, blank=0):
    """Equal neighbours merged, then blanks dropped."""
    return tuple(key for key, _ in itertools.groupby(path) if key != blank)


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    with np.errstate(all="ignore"):
        top = logits.max(axis=-1, keepdims=True)
        return logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))


class Truth(NamedTuple):
    """Everything that the paths over one example say about one label sequence."""

    loss: float
    occupancies: np.ndarray
    """[T, K]: share of the paths' probability that is in class k at frame t; 0 if infeasible."""
    best_loss: float
    best_paths: list[tuple[int, ...]]
    """All paths of the largest probability."""


@functools.cache
def paths_by_spelling(frames, classes, blank):
    """Every path, under the labels that it spells."""
    spellings = collections.defaultdict(list)
    for path in itertools.product(range(classes), repeat=frames):
        spellings[collapse(path, blank)].append(path)
    return spellings


def enumerate_paths(log_probs, labels, blank=0):
    """`Truth` of one example from all its paths."""
    frames, classes = log_probs.shape
    paths = paths_by_spelling(frames, classes, blank).get(tuple(map(int, labels)), [])
    weights = np.array([_log_weight(log_probs, path) for path in paths])
    total = _log_sum(weights)
    occupancies = np.zeros((frames, classes))
    if total > -np.inf:
        for path, weight in zip(paths, weights, strict=True):
            occupancies[range(frames), path] += np.exp(weight - total)
    best = weights.max() if len(weights) else -np.inf
    best_paths = [path for path, weight in zip(paths, weights, strict=True) if weight == best]
    return Truth(0.0 - total, occupancies, 0.0 - best, best_paths if best > -np.inf else [])


def forward_rows(log_probs, labels, blank=0):
    """log α: `(blank [T, N+1], label [T, N])`, by enumerating path beginnings."""
    frames, classes = log_probs.shape
    labels = tuple(int(label) for label in labels)
    in_blank = np.full((frames, len(labels) + 1), -np.inf)
    in_label = np.full((frames, len(labels)), -np.inf)
    for frame in range(frames):
        for count in range(len(labels) + 1):
            for path in paths_by_spelling(frame + 1, classes, blank).get(labels[:count], []):
                ends_blank = path[-1] == blank
                rows, place = (in_blank, count) if ends_blank else (in_label, count - 1)
                weight = _log_weight(log_probs, path)
                rows[frame, place] = np.logaddexp(rows[frame, place], weight)
    return in_blank, in_label


def backward_rows(log_probs, labels, blank=0):
    """log β: `(blank [T, N+1], label [T, N])`, frame t included; path endings, enumerated."""
    labels = tuple(labels)
    in_blank, in_label = forward_rows(log_probs[::-1], labels[::-1], blank)
    return in_blank[::-1, ::-1], in_label[::-1, ::-1]


def edit_alignments(hyp, ref):
    """All `(substitutions, insertions, deletions)` that some alignment of the two costs."""
    if not hyp or not ref:
        return {(0, len(hyp), len(ref))}
    counts = {(s, i + 1, d) for s, i, d in edit_alignments(hyp[1:], ref)}
    counts |= {(s, i, d + 1) for s, i, d in edit_alignments(hyp, ref[1:])}
    wrong = int(hyp[0] != ref[0])
    return counts | {(s + wrong, i, d) for s, i, d in edit_alignments(hyp[1:], ref[1:])}


def levenshtein(hyp, ref):
    """The textbook table (Wagner & Fischer 1974)."""
    row = list(range(len(ref) + 1))
    for i, token in enumerate(hyp, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(ref, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (token != other))
    return row[-1]


def _log_weight(log_probs, path):
    return sum((log_probs[frame, k] for frame, k in enumerate(path)), start=0.0)


def _log_sum(weights):
    if not len(weights) or weights.max() == -np.inf:
        return -np.inf
    return weights.max() + np.log(np.exp(weights - weights.max()).sum())


def assert_close(actual, truth, *, rtol=None, err_msg=""):
    """Close at the precision of `actual`; infinities and NaN exactly where they belong."""
    actual = np.asarray(actual)
    epsilon = float(jnp.finfo(actual.dtype).eps)
    rtol = rtol or 32 * epsilon
    actual = actual.astype(np.float64)
    np.testing.assert_allclose(actual, truth, rtol=rtol, atol=rtol, err_msg=err_msg)
