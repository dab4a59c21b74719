"""Ragged batches in the shapes of their buckets."""

import chex
import jax
import numpy as np
import pytest

from jaxctc import ctc_loss, pad_to_bucket, reduce_loss

BUCKETS = [(8, 4), (4, 2), (6, 4)]


def ragged(rng, num_frames, num_labels, features=3):
    """Random frames `[t, K]` and labels in [1, K), as many as are asked for."""
    frames = [rng.normal(size=(count, features)).astype(np.float32) for count in num_frames]
    return frames, [rng.integers(1, features, count) for count in num_labels]


def test_everything_is_where_it_was_and_zeros_are_around_it(rng):
    frames, labels = ragged(rng, [5, 0, 3], [2, 3, 0])
    batch = pad_to_bucket(frames, labels, BUCKETS, batch_size=4)
    assert batch.frames.shape == (4, 6, 3)
    assert batch.labels.shape == (4, 4)
    assert [part.dtype for part in batch] == [np.float32, bool, np.int32, bool, bool]
    assert all(isinstance(part, np.ndarray) for part in batch)
    assert (~batch.frame_paddings).sum(axis=1).tolist() == [5, 0, 3, 0]
    assert (~batch.label_paddings).sum(axis=1).tolist() == [2, 3, 0, 0]
    assert batch.example_paddings.tolist() == [False, False, False, True]
    np.testing.assert_array_equal(batch.frames[~batch.frame_paddings], np.concatenate(frames))
    np.testing.assert_array_equal(batch.labels[~batch.label_paddings], np.concatenate(labels))
    assert not batch.frames[batch.frame_paddings].any()
    assert not batch.labels[batch.label_paddings].any()
    assert batch.frame_waste == 16 / 24
    assert batch.label_waste == 11 / 16


@pytest.mark.parametrize(
    ("num_frames", "num_labels", "bucket"),
    [
        ([4, 1], [1, 2], (4, 2)),
        ([5, 1], [1, 2], (6, 4)),
        ([1, 1], [3, 0], (6, 4)),
        ([1, 7], [0, 0], (8, 4)),
        ([0], [0], (4, 2)),
    ],
)
def test_the_smallest_bucket_that_holds_all(rng, num_frames, num_labels, bucket):
    frames, labels = ragged(rng, num_frames, num_labels)
    batch = pad_to_bucket(frames, labels, BUCKETS)
    assert (batch.frames.shape[1], batch.labels.shape[1]) == bucket


def test_ten_batches_in_three_buckets_compile_three_times(rng):
    """And the mean over what is not filler is that of the examples alone."""

    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=3)
    def mean_loss(batch):
        losses = ctc_loss(*batch[:4])
        return losses, reduce_loss(losses, example_paddings=batch.example_paddings).mean

    longest = [4, 6, 8, *rng.integers(1, 9, 7)]
    shapes = set()
    for most in longest:
        count = rng.integers(1, 4)
        num_frames = [most, *rng.integers(1, most + 1, count - 1)]
        batch = pad_to_bucket(
            *ragged(rng, num_frames, rng.integers(0, 3, count)), BUCKETS, batch_size=3
        )
        losses, mean = jax.device_get(mean_loss(batch))
        shapes.add(batch.frames.shape)
        assert not losses[count:].any()
        finite = losses[:count][np.isfinite(losses[:count])]
        np.testing.assert_allclose(mean, finite.mean() if finite.size else 0, rtol=1e-6)
    assert len(shapes) == 3


def test_axes_and_dtypes_stay(rng):
    images = [rng.integers(0, 256, (width, 5, 2), np.uint8) for width in (3, 1)]
    assert pad_to_bucket(images, [[1], []], [(3, 1)]).frames.dtype == np.uint8
    samples = [rng.normal(size=count) for count in (2, 3)]
    batch = pad_to_bucket(samples, [[], []], [(3, 0)])
    assert batch.frames.shape == (2, 3)
    assert batch.labels.shape == (2, 0)
    assert batch.label_waste == 0


def test_no_id_becomes_another_class():
    ids = np.array([3, 2**32 + 1, -(2**32) + 1, -100], np.int64)
    batch = pad_to_bucket([np.zeros((1, 2))], [ids], [(1, 4)])
    assert batch.labels.tolist() == [[3, 2**31 - 1, -1, -1]]


FRAMES, LABELS = [np.zeros((3, 2)), np.zeros((5, 2))], [[1, 2], [1]]
FAULTS = {
    "no example": (([], [], BUCKETS), {}, "frames must have at least one example; got none."),
    "too few labels": (
        (FRAMES, LABELS[:1], BUCKETS),
        {},
        "labels must have one sequence for each of the 2 examples; got 1.",
    ),
    "other features": (
        ([FRAMES[0], np.zeros((5, 3))], LABELS, BUCKETS),
        {},
        "frames of example 1 must have shape [t, ...] with the axes (2,) of example 0; got (5, 3).",
    ),
    "no integers": (
        (FRAMES, [[1], [0.5]], BUCKETS),
        {},
        "labels of example 1 must be integers in a row; got an array of float64[1].",
    ),
    "strings": (
        (FRAMES, [[1], "abc"], BUCKETS),
        {},
        "labels of example 1 must be integers in a row; got an array of <U3[]. Map strings to ids.",
    ),
    "no row": (
        (FRAMES, [[1], [[2]]], BUCKETS),
        {},
        "labels of example 1 must be integers in a row; got an array of int64[1, 1].",
    ),
    "ragged frames": (
        ([[[1.0, 2.0], [1.0]]], LABELS[:1], BUCKETS),
        {},
        "frames of example 0 must be an array of NumPy; got a list of 2.",
    ),
    "ragged labels": (
        (FRAMES[:1], [[[1], [1, 2]]], BUCKETS),
        {},
        "labels of example 0 must be integers in a row; got a list of 2.",
    ),
    "ragged pairs": (
        (FRAMES, LABELS, [(4, 2), (8,)]),
        {},
        "buckets must be pairs of integers (T, N); got a list of 2.",
    ),
    "no pairs": (
        (FRAMES, LABELS, [4, 8]),
        {},
        "buckets must be pairs of integers (T, N); got [4, 8].",
    ),
    "too long": (
        (FRAMES, LABELS, [(4, 2), (5, 1)]),
        {},
        "buckets must have one for the 5 frames of example 1 and the 2 labels of example 0; "
        "got [(4, 2), (5, 1)]. Add a larger one, or leave these examples out.",
    ),
    "too many": (
        (FRAMES, LABELS, BUCKETS),
        {"batch_size": 1},
        "frames must be at most 1 examples; got 2.",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(fault):
    arguments, options, message = FAULTS[fault]
    with pytest.raises(ValueError, match=r"^pad_to_bucket: ") as error:
        pad_to_bucket(*arguments, **options)
    assert str(error.value) == f"pad_to_bucket: {message}"
