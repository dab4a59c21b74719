"""Every awkward input, once. All public functions meet them (see each test module).

A case is one example. Its truth comes from `oracles.enumerate_paths` on what is in use, so a
case states its expectation only as a kind: "finite", "infeasible" or "nan".
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import oracles

F, P = False, True  # in use, padded


class Case(NamedTuple):
    """One example and what is to come out of it."""

    name: str
    kind: str
    logits: np.ndarray
    logit_paddings: np.ndarray | None
    labels: np.ndarray
    label_paddings: np.ndarray | None
    blank_id: int = 0

    @property
    def arguments(self):
        return self.logits, self.logit_paddings, self.labels, self.label_paddings

    @property
    def frames_in_use(self):
        keep = np.ones(len(self.logits), bool)
        return keep if self.logit_paddings is None else ~np.asarray(self.logit_paddings, bool)

    @property
    def labels_in_use(self):
        keep = np.ones(len(self.labels), bool)
        return keep if self.label_paddings is None else ~np.asarray(self.label_paddings, bool)

    @property
    def blank(self):
        return self.blank_id % self.logits.shape[-1]

    def truth(self, *, logits_normalized=False):
        """From the paths over the frames and labels in use, in float64."""
        scores = self.scores(logits_normalized=logits_normalized)
        return oracles.enumerate_paths(scores, self.labels[self.labels_in_use], self.blank)

    def alignments(self):
        """All of them, over the frames and labels in use."""
        return oracles.alignments(self.scores(), self.labels[self.labels_in_use], self.blank)

    def scores(self, *, logits_normalized=False):
        """Log-probabilities of the frames in use."""
        scores = self.logits[self.frames_in_use].astype(np.float64)
        if not logits_normalized:
            scores = oracles.log_softmax(scores)
            # A frame without any possible class has no distribution, and no path.
            scores = np.where(np.isneginf(self.logits[self.frames_in_use]), -np.inf, scores)
        return scores


def _logits(frames=5, classes=4, seed=0):
    return np.random.default_rng(seed).normal(size=(frames, classes)).astype(np.float32)


def _with(place, value, frames=5):
    logits = _logits(frames)
    logits[place] = value
    return logits


def _sure(gap):
    return np.array([[0, gap], [0, gap]], np.float32)


def _ids(*labels):
    return np.array(labels, np.int32)


_LAST_TWO = np.array([F, F, F, P, P])

CASES = [
    Case("ordinary", "finite", _logits(), None, _ids(1, 2), None),
    Case("repeat", "finite", _logits(), None, _ids(1, 1), None),
    Case("all labels equal", "finite", _logits(), None, _ids(2, 2, 2), None),
    Case("empty labels", "finite", _logits(), None, _ids(), None),
    Case("all labels padded", "finite", _logits(), None, _ids(1, 2), np.array([P, P])),
    Case("no frames", "infeasible", _logits(0), None, _ids(1), None),
    Case("all frames padded", "infeasible", _logits(), np.full(5, P), _ids(1), None),
    Case("no frames, no labels", "finite", _logits(0), None, _ids(), None),
    Case("nothing in use", "finite", _logits(), np.full(5, P), _ids(1), np.array([P])),
    Case("one frame", "finite", _logits(1), None, _ids(3), None),
    Case("exact fit", "finite", _logits(), None, _ids(1, 2, 3, 2, 1), None),
    Case("exact fit with repeats", "finite", _logits(), None, _ids(1, 1, 2, 3), None),
    Case("one frame too few", "infeasible", _logits(), None, _ids(1, 2, 3, 2, 1, 2), None),
    Case("repeats do not fit", "infeasible", _logits(), None, _ids(1, 1, 2, 2), None),
    Case("padded frames", "finite", _logits(), _LAST_TWO, _ids(1, 2), None),
    Case("too few frames in use", "infeasible", _logits(), _LAST_TWO, _ids(1, 1, 2), None),
    Case("left padding", "finite", _logits(), _LAST_TWO[::-1], _ids(1, 2), None),
    Case(
        "padding between equal labels",
        "finite",
        _logits(),
        np.array([F, F, P, F, P]),
        _ids(1, 1),
        None,
    ),
    Case("label padding in front", "finite", _logits(), None, _ids(3, 1, 2), np.array([P, F, F])),
    Case("label padding between", "finite", _logits(), None, _ids(1, 3, 1), np.array([F, P, F])),
    Case(
        "junk in padding",
        "finite",
        _with(np.s_[3:], [[np.nan] * 4, [np.inf, -np.inf, np.nan, 1e30]]),
        _LAST_TWO,
        _ids(1, 2, -7, 10**6, 0),
        np.array([F, F, P, P, P]),
    ),
    Case("blank last", "finite", _logits(), None, _ids(0, 1), None, -1),
    Case("blank last, repeat", "finite", _logits(), None, _ids(0, 0), None, -1),
    Case("one class, no labels", "finite", _logits(5, 1), None, _ids(), None),
    Case("one class, a label", "infeasible", _logits(5, 1), None, _ids(1), None),
    Case("unused class at -inf", "finite", _with(np.s_[:, 3], -np.inf), None, _ids(1, 2), None),
    Case("blank at -inf", "finite", _with(np.s_[:, 0], -np.inf, 3), None, _ids(1, 2), None),
    Case("needed class at -inf", "infeasible", _with(np.s_[:, 2], -np.inf), None, _ids(1, 2), None),
    Case("frame of -inf alone", "infeasible", _with(2, -np.inf), None, _ids(1, 2), None),
    Case("NaN", "nan", _with((2, 1), np.nan), None, _ids(1, 2), None),
    Case("NaN in an unreachable state", "nan", _with((0, 2), np.nan), None, _ids(1, 2), None),
    Case("NaN where labels do not fit", "nan", _with((0, 1), np.nan, 1), None, _ids(1, 2), None),
    Case("+inf", "nan", _with((2, 1), np.inf), None, _ids(1, 2), None),
    Case("label is the blank", "infeasible", _logits(), None, _ids(1, 0), None),
    Case("label is K", "infeasible", _logits(), None, _ids(1, 4), None),
    Case("label is negative", "infeasible", _logits(), None, _ids(-1, 2), None),
    # Multiples of 1/64, which an offset of 1e4 leaves exact.
    Case("large offset", "finite", np.round(_logits() * 64) / 64 + 1e4, None, _ids(1, 2), None),
    Case("gaps beyond 1e5", "finite", _with(np.s_[:, 1], -2e5), None, _ids(1, 2), None),
    Case("confident", "finite", _sure(17), None, _ids(1), None),
    Case("confident and wrong", "finite", _sure(-40), None, _ids(1), None),
]

IDS = [case.name for case in CASES]
# Cases that share a blank also share a batch, which compiles once.
BATCHES = {
    blank_id: [case for case in CASES if case.blank_id == blank_id]
    for blank_id in sorted({case.blank_id for case in CASES})
}
# Cases whose arrays have shapes of their own worth tracing: where there is nothing, or one thing.
EDGES = [case for case in CASES if 0 in (*case.logits.shape, *case.labels.shape)]
NARROW = [jnp.bfloat16, jnp.float16]
_OWN_SHAPE = {"ordinary", "one class, no labels", "one class, a label", *(e.name for e in EDGES)}


def alone(case):
    """A case as the first four arguments without batch axes.

    Few have their own shapes and absent paddings; the others are padded alike, and compile once.
    """
    if case.name in _OWN_SHAPE:
        return case.arguments
    logits, logit_paddings, labels, label_paddings = batch_of([case, _LARGEST])
    return logits[0], logit_paddings[0], labels[0], label_paddings[0]


_LARGEST = max(CASES, key=lambda case: len(case.labels))


def batch_of(cases):
    """Cases side by side in one padded batch: the first four arguments of every function.

    Logits of unused classes are -inf, which leaves the distribution as it is.
    """
    frames = max(len(case.logits) for case in cases)
    classes = max(case.logits.shape[-1] for case in cases)
    places = max(len(case.labels) for case in cases)
    logits = np.full((len(cases), frames, classes), -np.inf, np.float32)
    logit_paddings = np.full((len(cases), frames), P)
    labels = np.full((len(cases), places), -1, np.int32)
    label_paddings = np.full((len(cases), places), P)
    for row, case in enumerate(cases):
        shape = case.logits.shape
        logits[row, : shape[0], : shape[1]] = case.logits
        logit_paddings[row, : shape[0]] = ~case.frames_in_use
        labels[row, : len(case.labels)] = case.labels
        label_paddings[row, : len(case.labels)] = ~case.labels_in_use
    return logits, logit_paddings, labels, label_paddings
