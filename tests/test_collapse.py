import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxctc import collapse


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
