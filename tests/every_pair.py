"""All small pairs of frames and labels, side by side in one padded batch, and the truth of each."""

import functools
import itertools
from typing import NamedTuple

import numpy as np
import oracles
import pytest

every_topology = pytest.mark.parametrize(
    ("classes", "blank"), [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]
)
# For what takes long to compile: the blank at either end.
some_topologies = pytest.mark.parametrize(("classes", "blank"), [(2, 0), (3, 2)])


def every_sequence(classes, blank, longest):
    """All label sequences up to a length, as padded ids."""
    labels = [k for k in range(classes) if k != blank]
    for count in range(longest + 1):
        yield from itertools.product(labels, repeat=count)


def padded(sequences, width):
    ids = np.full((len(sequences), width), -1, np.int32)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
    return ids, ids < 0


LONGEST = 5
MOST_CLASSES = 3
MOST_PAIRS = sum(2 ** (frames + 2) - 1 for frames in range(LONGEST + 1))


class Every(NamedTuple):
    """All pairs of T ≤ 5 frames and a label sequence, one too long included, as one batch.

    The arguments are of one shape, so that each blank compiles once: classes that do not exist are
    impossible, and what stands behind the last pair repeats it.
    """

    arguments: tuple[np.ndarray, ...]
    log_probs: list[np.ndarray]
    labels: list[tuple[int, ...]]
    truths: list[oracles.Truth]


@functools.cache
def every_pair(classes, blank):
    logits = np.random.default_rng(classes).normal(size=(LONGEST, classes)).astype(np.float32) * 2
    pairs = [
        (frames, labels)
        for frames in range(LONGEST + 1)
        for labels in every_sequence(classes, blank, frames + 1)
    ]
    labels = [labels for _, labels in pairs]
    log_probs = [oracles.log_softmax(logits[:frames]) for frames, _ in pairs]
    truths = [oracles.enumerate_paths(*pair, blank) for pair in zip(log_probs, labels, strict=True)]
    logit_paddings = np.arange(LONGEST) >= np.array([frames for frames, _ in pairs])[:, None]
    batch = np.where(logit_paddings[..., None], np.float32(np.nan), logits)
    no_class = ((0, 0), (0, 0), (0, MOST_CLASSES - classes))
    batch = np.pad(batch, no_class, constant_values=-np.inf)
    arguments = batch, logit_paddings, *padded(labels, LONGEST + 1)
    rows = np.minimum(np.arange(MOST_PAIRS), len(pairs) - 1)
    return Every(tuple(part[rows] for part in arguments), log_probs, labels, truths)


def at_all_frames(rows, fill=0):
    """Stacks `[frames, …]` arrays of different lengths."""
    out = np.full((len(rows), LONGEST, *rows[0].shape[1:]), fill, np.float64)
    for row, values in zip(out, rows, strict=True):
        row[: len(values)] = values
    return out
