import itertools

import jax
import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxctc import collapse, segment_means


@given(
    path=st.lists(st.integers(0, 3), min_size=7, max_size=7),
    padded=st.lists(st.booleans(), min_size=7, max_size=7),
    blank=st.integers(0, 3),
)
def test_collapse(path, padded, blank):
    labels, length = collapse(np.array(path), np.array(padded), blank_id=blank)
    in_use = [label for label, skip in zip(path, padded, strict=True) if not skip]
    expected = oracles.collapse(in_use, blank)
    assert int(length) == len(expected)
    assert labels.tolist() == [*expected, *[-1] * (7 - len(expected))]


@pytest.mark.parametrize(
    ("path", "labels"),
    [
        ([], []),
        ([0, 0], []),
        ([1, 1, 0, 1], [1, 1]),
        ([1, 1, 0, 2, 2, 2, 3, 0, 0, 4], [1, 2, 3, 4]),  # praxis' table
        ([-1, 2, -1, 2, 0, -1], [2]),  # what an aligner leaves in padded frames
    ],
    ids=str,
)
def test_collapse_by_hand(path, labels):
    got, length = collapse(np.array(path, np.int32))
    assert got[: int(length)].tolist() == labels


def test_collapse_in_a_batch():
    labels, lengths = collapse(np.array([[[1, 1, 0]], [[0, 2, 1]]]))
    assert labels.tolist() == [[[1, -1, -1]], [[2, 1, -1]]]
    assert lengths.tolist() == [[1], [2]]


@given(
    path=st.lists(st.integers(0, 3), min_size=7, max_size=7),
    padded=st.lists(st.booleans(), min_size=7, max_size=7),
    drop=st.sampled_from([None, 0, 2]),
)
def test_segment_means(path, padded, drop):
    hidden = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)
    hidden[padded] = np.nan
    means, length = segment_means(hidden, np.array(path), np.array(padded), drop_id=drop)
    in_use = [frame for frame in range(7) if not padded[frame]]
    runs = itertools.groupby(in_use, key=lambda frame: path[frame])
    expected = [hidden[list(frames)].mean(axis=0) for label, frames in runs if label != drop]
    assert int(length) == len(expected)
    np.testing.assert_allclose(means[: len(expected)], np.reshape(expected, (-1, 2)), rtol=1e-6)
    np.testing.assert_array_equal(means[len(expected) :], 0)


def test_segment_means_move_with_their_frames():
    """Each frame has its share of the mean that it is in; -1 is in none."""
    hidden, path = np.ones((2, 5, 1), np.float32), np.array([[1, 1, 0, 1, -1], [2, 2, 2, 2, 3]])
    slopes = jax.grad(lambda hidden: segment_means(hidden, path)[0].sum())(hidden)
    np.testing.assert_allclose(slopes[..., 0], [[0.5, 0.5, 1, 1, 0], [0.25] * 4 + [1]])


def test_segment_means_of_nothing():
    means, lengths = segment_means(np.zeros((2, 0, 3), np.float32), np.zeros((2, 0), np.int32))
    assert means.shape == (2, 0, 3)
    assert lengths.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("labels", "options", "line"),
    [
        (np.zeros(4, int), {}, "frame_labels must have shape \\(3,\\), one per frame of hidden"),
        (np.zeros(3), {}, "frame_labels must be integers"),
        (np.zeros(3, int), {"drop_id": 0.5}, "drop_id must be a static integer"),
    ],
)
def test_segment_means_of_what_does_not_fit(labels, options, line):
    with pytest.raises(ValueError, match=f"segment_means: {line}"):
        segment_means(np.zeros((3, 2), np.float32), labels, **options)
