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


def collapse(path, blank=0, *, label_loop=True):
    """Equal neighbours merged, then blanks dropped."""
    merged = (key for key, _ in itertools.groupby(path)) if label_loop else path
    return tuple(key for key in merged if key != blank)


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


def sequences(log_probs, blank=0):
    """Log-probability of every label sequence that some path spells."""
    log_probs = np.where(np.isnan(log_probs), -np.inf, log_probs)  # a frame of -inf, normalised
    spellings = paths_by_spelling(*log_probs.shape, blank)
    frames = np.arange(len(log_probs))
    return {
        labels: float(_log_sum(log_probs[frames, np.array(paths, int)].sum(axis=-1)))
        for labels, paths in spellings.items()
    }


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


class Path(NamedTuple):
    """One alignment of given labels."""

    classes: tuple[int | None, ...]
    """Per frame; the wildcard's id where it absorbs."""
    places: tuple[int, ...]
    """Per frame, which of the given labels (or wildcards) it belongs to; -1 for blanks."""
    weight: float
    """Log-probability."""


def alignments(log_probs, labels, blank=0, wildcard=None, penalty=0.0, *, label_loop=True):
    """Every `Path` that spells the labels, those of probability 0 left out.

    Where a wildcard stands among the labels, a frame between its neighbours may be absorbed, which
    is a class of its own with the probability of all others but the blank, less the penalty.
    """
    log_probs = np.asarray(log_probs, np.float64)
    frames, classes = log_probs.shape
    labels = [int(label) for label in labels]
    own = [place for place, label in enumerate(labels) if label != wildcard]
    gaps = {}
    for place, label in enumerate(labels):
        if label == wildcard:
            gaps.setdefault(sum(label != wildcard for label in labels[:place]), place)
    symbols, star = range(classes), classes
    if gaps:
        others = [_log_sum(np.delete(row, blank)) - penalty for row in log_probs]
        log_probs = np.column_stack([log_probs, np.reshape(others, frames)])
        symbols = range(classes + 1)
    found = []
    for path in itertools.product(symbols, repeat=frames):
        as_blanks = [blank if symbol == star else symbol for symbol in path]
        weight = _log_weight(log_probs, path)
        spelt = collapse(as_blanks, blank, label_loop=label_loop)
        if spelt != tuple(labels[place] for place in own) or weight == -np.inf:
            continue
        count, places = 0, []
        for before, symbol, own_class in zip(
            [blank, *as_blanks][:frames], path, as_blanks, strict=True
        ):
            count += own_class != blank and not (label_loop and own_class == before)
            places.append(
                gaps.get(count) if symbol == star else own[count - 1] if symbol != blank else -1
            )
        if None not in places:
            ids = tuple(wildcard if symbol == star else symbol for symbol in path)
            found.append(Path(ids, tuple(places), weight))
    return found


def loss(paths):
    """Of alignments, in nats."""
    return 0.0 - _log_sum(np.array([path.weight for path in paths]))


def posteriors(paths, frames, count):
    """`(blank [T], label [T, N])` of alignments, 0 of none."""
    blank, label = np.zeros(frames), np.zeros((frames, count))
    total = _log_sum(np.array([path.weight for path in paths]))
    for path in paths:
        for frame, place in enumerate(path.places):
            row, column = (blank, frame) if place < 0 else (label[frame], place)
            row[column] += np.exp(path.weight - total)
    return blank, label


def entropy(paths):
    """Of the distribution over alignments, in nats; 0 of none."""
    weights = np.array([path.weight for path in paths])
    if not len(weights):
        return 0.0
    share = np.exp(weights - _log_sum(weights))
    return float(-np.sum(share * np.log(share, where=share > 0, out=np.zeros_like(share))))


def backward_rows(log_probs, labels, blank=0):
    """log β: `(blank [T, N+1], label [T, N])`, frame t included; path endings, enumerated."""
    labels = tuple(int(label) for label in labels)
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


def edit_counts(hyp, ref):
    """`(substitutions, insertions, deletions)` by the rule that `error_counts` documents."""
    insertions = deletions = substitutions = 0
    while hyp and ref and hyp[-1] == ref[-1]:
        hyp, ref = hyp[:-1], ref[:-1]
    while hyp and ref:
        here = levenshtein(hyp, ref)
        if levenshtein(hyp, ref[:-1]) == here - 1:
            ref, deletions = ref[:-1], deletions + 1
        elif levenshtein(hyp[:-1], ref) == levenshtein(hyp[:-1], ref[:-1]) - 1:
            hyp, insertions = hyp[:-1], insertions + 1
        else:
            substitutions += hyp[-1] != ref[-1]
            hyp, ref = hyp[:-1], ref[:-1]
    return int(substitutions), insertions + len(hyp), deletions + len(ref)


def words(tokens, separator):
    """What `str.split` does with a separator, for ids."""
    found = [()]
    for token in tokens:
        found = [*found, ()] if token == separator else [*found[:-1], (*found[-1], token)]
    return [word for word in found if word]


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
