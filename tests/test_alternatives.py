"""Labels that may each be any of several classes, against the sum over all choices of them."""

import functools
import itertools
from typing import NamedTuple

import jax
import numpy as np
import oracles
import pytest
from alternatives import compiled
from oracles import assert_close

FRAMES, LABELS, WIDTH, CLASSES = 7, 3, 3, 3


class Truth(NamedTuple):
    """Of one example, from every choice and every path that spells it."""

    loss: float
    best_loss: float
    blank: np.ndarray
    """[T]"""
    label: np.ndarray
    """[T, N, A]"""
    taken: np.ndarray
    """[N, A]"""


class Spelt(NamedTuple):
    """Of one choice."""

    loss: float
    best_loss: float
    blank: np.ndarray
    label: np.ndarray


def spelt(log_probs, ids, blank, label_loop):
    paths = oracles.alignments(log_probs, ids, blank, label_loop=label_loop)
    best = max([path.weight for path in paths], default=-np.inf)
    return Spelt(
        oracles.loss(paths), 0.0 - best, *oracles.posteriors(paths, len(log_probs), len(ids))
    )


def choices(labels, weights):
    """Every choice: its places `(n, a)`, its ids, and what they weigh together."""
    given = [n for n in range(len(labels)) if (labels[n] != -1).any()]
    rows = [
        [(n, a) for a in range(labels.shape[1]) if labels[n, a] != -1 and weights[n, a] > -np.inf]
        for n in given
    ]
    for places in itertools.product(*rows):
        yield (
            places,
            tuple(int(labels[place]) for place in places),
            sum(float(weights[place]) for place in places),
        )


def truth_of(log_probs, labels, weights, blank=0, label_loop=True, spelt=spelt):
    """`Truth` of one example; `spelt` may remember what it is asked for again."""
    found = []
    for places, ids, paid in choices(labels, weights):
        if blank not in ids and all(0 <= k < log_probs.shape[1] for k in ids):
            found.append((places, paid, spelt(log_probs, ids, blank, label_loop)))
    loss = 0.0 - np.logaddexp.reduce([paid - own.loss for _, paid, own in found], initial=-np.inf)
    best = min([own.best_loss - paid for _, paid, own in found], default=np.inf)
    occupied = np.zeros((len(log_probs), *labels.shape))
    in_blank, taken = np.zeros(len(log_probs)), np.zeros(labels.shape)
    for places, paid, own in found:
        if own.loss == np.inf:
            continue
        share = np.exp(paid - own.loss + loss)
        in_blank += share * own.blank
        for column, (n, a) in enumerate(places):
            occupied[:, n, a] += share * own.label[:, column]
            taken[n, a] += share
    return Truth(loss, best, in_blank, occupied, taken)


def by_class(truth, labels, classes, blank):
    """Occupancies of classes, `[T, K]`."""
    found = np.zeros((len(truth.blank), classes))
    found[:, blank] = truth.blank
    for n, a in np.argwhere(truth.taken > 0):
        found[:, labels[n, a]] += truth.label[:, n, a]
    return found


class Batch(NamedTuple):
    """Examples side by side, with junk in the padding, which stands anywhere."""

    arguments: tuple[np.ndarray, ...]
    frames: list[np.ndarray]
    """Which are in use."""
    own: np.ndarray
    """The labels, -1 where padded."""
    weights: np.ndarray


def batch_of(examples, logits, rng):
    """Of `(frames, labels [N, A])`."""
    size = len(examples)
    classes = logits.shape[-1]
    rows = np.full((size, FRAMES, CLASSES), np.nan, np.float32)
    labels = rng.integers(-3, 5, (size, LABELS, WIDTH)).astype(np.int32)
    no_label = np.ones((size, LABELS), bool)
    weights = np.full(labels.shape, np.nan, np.float32)
    own = np.full_like(labels, -1)
    used = []
    for row, (frames, ids) in enumerate(examples):
        used.append(np.sort(rng.permutation(FRAMES)[:frames]))
        rows[row, used[-1]] = -np.inf
        rows[row, used[-1], :classes] = logits[:frames]
        places = np.sort(rng.permutation(LABELS)[: len(ids)])
        own[row, places, : ids.shape[1]] = ids
        labels[row, places] = own[row, places]
        no_label[row, places] = False
        exists = own[row] != -1
        weights[row, exists] = rng.normal(size=exists.sum())
        weights[row, exists & (rng.random(exists.shape) < 0.08)] = -np.inf
    no_frame = np.ones((size, FRAMES), bool)
    for row, frames in enumerate(used):
        no_frame[row, frames] = False
    return Batch((rows, no_frame, labels, no_label, weights), used, own, weights)


def every_example(classes, blank, rng):
    """T ≤ 5 frames, all labels of up to three alternatives, and some that are no labels."""
    ids = [-1, *(k for k in range(classes) if k != blank)]
    for count, width in [(0, 1), (1, 3), (2, 2), (3, 1), (2, 3), (3, 2)]:
        tables = np.array(list(itertools.product(ids, repeat=count * width)), np.int32)
        for table in tables.reshape(len(tables), count, width):
            some = range(6) if len(tables) < 100 else rng.integers(0, 6, 2)
            yield from ((int(frames), table) for frames in some)
    for _ in range(300):
        table = rng.choice(np.array([-1, -7, 0, 1, 2, 3, 10**6], np.int32), (3, 3))
        yield int(rng.integers(1, 6)), table


@functools.cache
def every(classes, blank, label_loop):
    rng = np.random.default_rng(classes)
    logits = rng.normal(size=(5, classes)).astype(np.float32) * 2
    examples = list(every_example(classes, blank, rng))
    batch = batch_of(examples, logits, rng)

    @functools.cache
    def known(frames, ids):
        return spelt(oracles.log_softmax(logits[:frames]), ids, blank, label_loop)

    truths = [
        truth_of(
            logits[:frames].astype(np.float64),
            own,
            weights,
            blank,
            label_loop,
            lambda log_probs, ids, *_: known(len(log_probs), ids),
        )
        for (frames, _), own, weights in zip(examples, batch.own, batch.weights, strict=True)
    ]
    return batch, truths, oracles.log_softmax(logits)


def check_every(classes, blank, label_loop, dtype):
    batch, truths, log_probs = every(classes, blank, label_loop)
    arguments = [
        part.astype(dtype) if part.dtype == np.float32 else part for part in batch.arguments
    ]
    found = jax.device_get(compiled(*arguments, blank_id=blank, label_loop=label_loop))
    assert found.loss.dtype == dtype
    feasible = np.array([truth.loss < np.inf for truth in truths])
    assert 0 < feasible.sum() < len(truths)
    assert_close(found.loss, [truth.loss for truth in truths])
    assert_close(found.best_loss, [truth.best_loss for truth in truths])
    assert_close(found.aligned.score, [0.0 - truth.best_loss for truth in truths])

    size = len(truths)
    in_blank, label = np.zeros((size, FRAMES)), np.zeros((size, FRAMES, LABELS, WIDTH))
    gradient = np.zeros((size, FRAMES, CLASSES))
    for row, (truth, used, own) in enumerate(zip(truths, batch.frames, batch.own, strict=True)):
        in_blank[row, used], label[row, used] = truth.blank, truth.label
        if feasible[row]:
            occupied = by_class(truth, own, classes, blank)
            gradient[row, used, :classes] = np.exp(log_probs[: len(used)]) - occupied
    assert_close(found.posteriors.blank, in_blank)
    assert_close(found.posteriors.label, label)
    assert_close(found.gradients[0], gradient)
    assert not found.gradients[0][~feasible].any()
    assert_close(found.gradients[1], [-truth.taken for truth in truths])
    check_paths(found.aligned, found.by_best, batch, feasible, blank, label_loop)


def check_paths(aligned, by_best, batch, feasible, blank, label_loop):
    """The frames' labels are those of the choice, which the gradient of the best path agrees to."""
    chosen = np.arange(WIDTH) == aligned.alternatives[..., None]
    np.testing.assert_array_equal(by_best[1], -chosen.astype(by_best[1].dtype))
    for row in np.flatnonzero(feasible):
        own, which = batch.own[row], aligned.alternatives[row]
        given = np.flatnonzero((own != -1).any(axis=-1))
        ids = aligned.frame_labels[row][batch.frames[row]]
        assert (which[given] >= 0).all()
        spelt = oracles.collapse(ids.tolist(), blank, label_loop=label_loop)
        assert spelt == tuple(own[given, which[given]])
        starts, ends = aligned.starts[row], aligned.ends[row]
        for n in given:
            assert (aligned.frame_labels[row, [starts[n], ends[n]]] == own[n, which[n]]).all()
        assert (np.diff(starts[given]) > 0).all()
        assert (starts[given[1:]] > ends[given[:-1]]).all()
    nothing = aligned.starts == -1
    for part in (aligned.ends, aligned.confidences, aligned.alternatives):
        np.testing.assert_array_equal(part == -1, nothing)
    assert (aligned.frame_labels[~feasible] == -1).all()


TOPOLOGIES = [
    (3, 0, True),
    pytest.param(3, 2, True, marks=pytest.mark.slow),
    pytest.param(2, 1, True, marks=pytest.mark.slow),
    pytest.param(3, 0, False, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("classes", "blank", "label_loop"), TOPOLOGIES)
def test_every_choice(classes, blank, label_loop):
    check_every(classes, blank, label_loop, np.float32)


@pytest.mark.parametrize(("classes", "blank", "label_loop"), TOPOLOGIES)
def test_every_choice_in_float64(x64, classes, blank, label_loop):
    check_every(classes, blank, label_loop, np.float64)
