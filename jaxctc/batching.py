"""Ragged batches in few shapes, so that XLA compiles few programs. All of it runs in NumPy."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Shaped

from jaxctc._core import checks


class PaddedBatch(NamedTuple):
    """A ragged batch in the shape of its bucket, still on the host."""

    frames: Shaped[np.ndarray, "B T ..."]
    """The frames, 0 after them, in the dtype they came in."""
    frame_paddings: Bool[np.ndarray, "B T"]
    """True after the frames of an example."""
    labels: Int[np.ndarray, "B N"]
    """The labels in int32, 0 after them; an id that int32 cannot hold has become no class."""
    label_paddings: Bool[np.ndarray, "B N"]
    """True after the labels of an example."""
    example_paddings: Bool[np.ndarray, "B"]
    """True for an example that was added to fill the batch."""

    @property
    def frame_waste(self) -> float:
        """Share of padded frames, of examples that were added too; 0 of no frames at all."""
        return _share(self.frame_paddings)

    @property
    def label_waste(self) -> float:
        """Share of padded labels, of examples that were added too; 0 of no labels at all."""
        return _share(self.label_paddings)


def pad_to_bucket(
    frames: Sequence[Shaped[np.ndarray, "_ ..."]],
    labels: Sequence[Int[np.ndarray, "_"] | Sequence[int]],
    buckets: Sequence[tuple[int, int]],
    *,
    batch_size: int | None = None,
) -> PaddedBatch:
    """A ragged batch, padded to the smallest bucket that holds all of it.

    Whatever the lengths, a jitted function meets at most as many shapes as there are buckets, and
    is compiled at most so many times. Little is wasted if the examples of a batch are of like
    length. It is for the host, before the data go to a device.

    Args:
      frames: one array `[t, ...]` per example: features, samples, columns of an image or logits,
        with the same axes after the first.
      labels: one sequence of class ids per example.
      buckets: the sizes `(T, N)` to choose from; the fewest frames win, then the fewest labels.
      batch_size: how many examples to fill the batch up to, so that the last batch of a data set
        has the shape of the others; None adds none. What is added has no frames and no labels:
        its `ctc_loss` is 0, and `reduce_loss(..., example_paddings=...)` leaves it out of a mean.

    Returns:
      `PaddedBatch`, arrays of NumPy.

    Raises:
      ValueError: if there is not one sequence of labels for each of at least one array of frames;
        if their axes after the first differ, labels are not integers in one row, some example
        fits into no bucket, or there are more examples than `batch_size`.

    Example:
      The longest has 3 frames, so (2, 2) is too small:

      >>> frames, labels = [np.ones((3, 8)), np.ones((1, 8))], [[5, 2], [4]]
      >>> batch = pad_to_bucket(frames, labels, [(2, 2), (4, 2), (8, 4)])
      >>> batch.frames.shape, batch.labels.tolist()
      ((2, 4, 8), [[5, 2], [4, 0]])
      >>> batch.frame_waste, batch.label_waste
      (0.5, 0.25)
    """
    inputs = [
        checks.host_array(
            "pad_to_bucket", f"frames of example {example}", part, "be an array of NumPy"
        )
        for example, part in enumerate(frames)
    ]
    ids = [_class_ids(example, part) for example, part in enumerate(labels)]
    _check_examples(inputs, ids)
    size = len(inputs)
    if batch_size is not None:
        size = checks.count("pad_to_bucket", "batch_size", batch_size)
        if size < len(inputs):
            checks.fail("pad_to_bucket", "frames", f"be at most {size} examples", len(inputs))
    num_frames, num_labels = _smallest_bucket(list(map(len, inputs)), list(map(len, ids)), buckets)
    padded_frames, frame_paddings = _stack(inputs, size, num_frames)
    padded_labels, label_paddings = _stack(ids, size, num_labels)
    is_added = np.arange(size) >= len(inputs)
    return PaddedBatch(padded_frames, frame_paddings, padded_labels, label_paddings, is_added)


def _class_ids(example: int, labels: Int[np.ndarray, "_"] | Sequence[int]) -> Int[np.ndarray, "_"]:
    """Ids as int32; below 0 and from the largest int32 on, where no class is, they end there."""
    argument, requirement = f"labels of example {example}", "be integers in a row"
    ids = checks.host_array("pad_to_bucket", argument, labels, requirement)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        got = f"an array of {ids.dtype}{list(ids.shape)}"
        remedy = "Map strings to ids." if ids.dtype.kind == "U" else ""
        checks.fail("pad_to_bucket", argument, requirement, got, remedy)
    return np.clip(ids.astype(np.int64), -1, np.iinfo(np.int32).max).astype(np.int32)


def _check_examples(frames: list[np.ndarray], labels: list[np.ndarray]) -> None:
    function = "pad_to_bucket"
    if not frames:
        checks.fail(function, "frames", "have at least one example", "none")
    if len(labels) != len(frames):
        requirement = f"have one sequence for each of the {len(frames)} examples"
        checks.fail(function, "labels", requirement, len(labels))
    for example, part in enumerate(frames):
        if part.ndim < 1 or part.shape[1:] != frames[0].shape[1:]:
            requirement = f"have shape [t, ...] with the axes {frames[0].shape[1:]} of example 0"
            checks.fail(function, f"frames of example {example}", requirement, part.shape)


def _smallest_bucket(
    num_frames: list[int], num_labels: list[int], buckets: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """Fewest frames first; that is where the work is."""
    requirement = "be pairs of integers (T, N)"
    sizes = checks.host_array("pad_to_bucket", "buckets", buckets, requirement)
    if sizes.ndim != 2 or sizes.shape[1] != 2 or sizes.dtype.kind not in "iu":
        checks.fail("pad_to_bucket", "buckets", requirement, buckets)
    most = max(num_frames), max(num_labels)
    large_enough = sizes[(sizes >= most).all(axis=1)].tolist()
    if not large_enough:
        longest = num_frames.index(most[0]), num_labels.index(most[1])
        requirement = (
            f"have one for the {most[0]} frames of example {longest[0]} "
            f"and the {most[1]} labels of example {longest[1]}"
        )
        remedy = "Add a larger one, or leave these examples out."
        checks.fail("pad_to_bucket", "buckets", requirement, buckets, remedy)
    return tuple(min(large_enough))


def _stack(
    parts: list[np.ndarray], size: int, length: int
) -> tuple[Shaped[np.ndarray, "B L ..."], Bool[np.ndarray, "B L"]]:
    """The parts stacked, filled up with zeros, and where those zeros are."""
    stacked = np.zeros((size, length, *parts[0].shape[1:]), np.result_type(*parts))
    paddings = np.ones((size, length), bool)
    for row, part in enumerate(parts):
        stacked[row, : len(part)] = part
        paddings[row, : len(part)] = False
    return stacked, paddings


def _share(paddings: Bool[np.ndarray, "B L"]) -> float:
    return float(paddings.mean()) if paddings.size else 0.0
