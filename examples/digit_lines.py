"""Lines of handwritten digits: real scans, set side by side.

The scans are the 1797 8 × 8 images of `sklearn.datasets.load_digits` (Alpaydin & Kaynak 1998, part
of the UCI archive), which come with scikit-learn. Each is trimmed to its ink and belongs to one of
three disjoint sets, so no scan a model is tested on was seen in training. A line holds 3 to 10 of
them, with gaps from one column of overlap to four columns of paper, a slant of its own, strokes of
its own darkness, digits that do not keep to the base line, and noise.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits

HEIGHT = 10
"""Rows of a line image: the 8 of a scan and room to move by one up or down."""
MAX_DIGITS = 10
WIDTH = 96
"""Columns of a line image, and so frames. Ten wide digits fit if they stand close."""
CLASSES = 11
"""The blank, class 0, and the digits: digit d is class d + 1."""

_SIZES = {"train": 1347, "validation": 100, "test": 350}
_SPLIT_SEED = 20


class Lines(NamedTuple):
    """A batch of line images and what is written on them."""

    images: np.ndarray
    """[B, WIDTH, HEIGHT], column by column; ink is 1, paper 0, noise on both."""
    image_paddings: np.ndarray
    """[B, WIDTH], True after the end of the line."""
    labels: np.ndarray
    """[B, MAX_DIGITS], digit + 1; 0 where padded."""
    label_paddings: np.ndarray
    """[B, MAX_DIGITS]."""
    starts: np.ndarray
    """[B, MAX_DIGITS], the first column of each digit; -1 where padded."""
    ends: np.ndarray
    """[B, MAX_DIGITS], the last column of each digit, itself included; -1 where padded."""


class Scans(NamedTuple):
    """Trimmed digit images and the digits they show."""

    images: list[np.ndarray]
    """Each [8, 3 to 8], ink in [0, 1]."""
    digits: np.ndarray


def load_scans(split: str) -> Scans:
    """The scans of "train", "validation" or "test"; no scan is in two of them."""
    pixels, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(digits))
    edges = np.cumsum([0, *_SIZES.values()])
    place = list(_SIZES).index(split)
    chosen = order[edges[place] : edges[place + 1]]
    return Scans([_trim(scan.reshape(8, 8) / 16) for scan in pixels[chosen]], digits[chosen])


def make_lines(scans: Scans, count: int, rng: np.random.Generator) -> Lines:
    """Writes `count` random lines."""
    lengths = rng.integers(3, MAX_DIGITS + 1, count)
    choices = (rng.integers(len(scans.images), size=length) for length in lengths)
    return _lines(scans, choices, lengths, rng)


def write_lines(scans: Scans, texts: Sequence[str], rng: np.random.Generator) -> Lines:
    """Writes the given strings of 1 to MAX_DIGITS digits, each digit by any of its scans."""
    of_digit = [np.flatnonzero(scans.digits == digit) for digit in range(10)]
    choices = (np.array([rng.choice(of_digit[int(sign)]) for sign in text]) for text in texts)
    return _lines(scans, choices, np.array([len(text) for text in texts]), rng)


def _lines(
    scans: Scans, choices: Iterable[np.ndarray], lengths: np.ndarray, rng: np.random.Generator
) -> Lines:
    """Writes lines of the chosen scans, each choice made just before its line is written."""
    count = len(lengths)
    images = np.zeros((count, HEIGHT, WIDTH), np.float32)
    widths = np.empty(count, np.int64)
    labels = np.zeros((count, MAX_DIGITS), np.int32)
    starts, ends = np.full((2, count, MAX_DIGITS), -1, np.int32)
    for line, (chosen, length) in enumerate(zip(choices, lengths, strict=True)):
        columns = _write([scans.images[index] for index in chosen], images[line], rng)
        starts[line, :length], ends[line, :length], widths[line] = columns
        labels[line, :length] = scans.digits[chosen] + 1
    images *= rng.uniform(0.7, 1.0, (count, 1, 1)).astype(np.float32)
    images += 0.08 * rng.standard_normal(images.shape, np.float32)
    return Lines(
        np.swapaxes(images, 1, 2),
        np.arange(WIDTH) >= widths[:, None],
        labels,
        np.arange(MAX_DIGITS) >= lengths[:, None],
        starts,
        ends,
    )


def _trim(image: np.ndarray) -> np.ndarray:
    inked = np.flatnonzero(image.max(axis=0) > 0.2)
    return image[:, inked[0] : inked[-1] + 1]


def _write(
    digits: list[np.ndarray], paper: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, int]:
    """Sets the digits on the paper; first and last column of each, and where the line ends."""
    # Rows lean from the middle one by up to one column; the margins take that up.
    slant, margin = rng.uniform(-0.25, 0.25), 2
    lean = np.round(slant * np.arange(4, 4 - HEIGHT, -1)).astype(int)
    tops = rng.integers(0, HEIGHT - 8 + 1, len(digits))
    # The first gap is the space before the first digit; later ones may be an overlap.
    gaps = np.concatenate([rng.integers(0, 4, 1), rng.integers(-1, 5, len(digits) - 1)])
    widths = np.array([digit.shape[1] for digit in digits])
    while margin + gaps.sum() + widths.sum() + margin > WIDTH:
        gaps[np.argmax(gaps)] -= 1
    starts = margin + np.cumsum(gaps) + np.cumsum(widths) - widths
    first, last = np.empty((2, len(digits)), np.int32)
    for index, (digit, top, start) in enumerate(zip(digits, tops, starts, strict=True)):
        rows = np.arange(top, top + 8)[:, None]
        columns = start + lean[rows] + np.arange(digit.shape[1])
        paper[rows, columns] = np.maximum(paper[rows, columns], digit)
        first[index], last[index] = columns.min(), columns.max()
    end = int(starts[-1] + widths[-1])
    return first, last, min(end + margin + int(rng.integers(0, 4)), WIDTH)
