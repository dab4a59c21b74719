import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxctc import ErrorCounts, cer, edit_distance, error_counts

SIZE = 7  # one shape for all random pairs, so that each function compiles once

tokens = st.lists(st.integers(-2, 3), max_size=SIZE)
distance_of, counts_of = jax.jit(edit_distance), jax.jit(error_counts)


def ids(*tokens):
    return np.array(tokens, np.int32)


def strewn(sequence, rng):
    """The tokens at random places among rubbish: ids and paddings of shape [SIZE]."""
    ids, paddings = rng.integers(-2, 4, SIZE), np.ones(SIZE)
    places = np.sort(rng.choice(SIZE, len(sequence), replace=False))
    ids[places], paddings[places] = sequence, 0
    return ids, paddings


@pytest.mark.smoke
@given(hyp=tokens, ref=tokens, seed=st.integers(0, 2**32 - 1))
def test_against_the_textbook_and_every_alignment(hyp, ref, seed):
    rng = np.random.default_rng(seed)
    arguments = (*strewn(hyp, rng), *strewn(ref, rng))
    distance, counts = int(distance_of(*arguments)), counts_of(*arguments)
    assert distance == oracles.levenshtein(hyp, ref) == int(counts.errors)
    fewest = {split for split in oracles.edit_alignments(hyp, ref) if sum(split) == distance}
    assert tuple(int(count) for count in counts[:3]) == min(fewest)
    assert int(counts.reference_length) == len(ref)


@given(a=tokens, b=tokens, c=tokens)
def test_is_a_metric(a, b, c):
    rng = np.random.default_rng(0)
    sides = [strewn(side, rng) for side in (a, b, c)]

    def distance(i, j):
        return int(distance_of(*sides[i], *sides[j]))

    assert distance(0, 1) == distance(1, 0)
    assert (distance(0, 1) == 0) == (a == b)
    assert distance(0, 2) <= distance(0, 1) + distance(1, 2)


def test_longer_random_sequences(rng):
    hyp, ref = rng.integers(0, 9, (5, 80)), rng.integers(0, 9, (5, 60))
    hyp_lengths, ref_lengths = rng.integers(0, 81, 5), rng.integers(0, 61, 5)
    distances = edit_distance(
        hyp, np.arange(80) >= hyp_lengths[:, None], ref, np.arange(60) >= ref_lengths[:, None]
    )
    for row, distance in enumerate(distances):
        pair = hyp[row, : hyp_lengths[row]].tolist(), ref[row, : ref_lengths[row]].tolist()
        assert distance == oracles.levenshtein(*pair)


@pytest.mark.parametrize(
    ("hyp", "ref", "split"),
    [
        ([], [], (0, 0, 0)),
        ([1, 2], [], (0, 2, 0)),
        ([], [1], (0, 0, 1)),
        ([1, 2, 3], [1, 2, 3], (0, 0, 0)),
        ([1, 1, 2, 2], [1, 3], (1, 2, 0)),
        ([2, 3], [1, 2], (0, 1, 1)),  # and not two substitutions: most correct tokens
    ],
    ids=str,
)
def test_by_hand(hyp, ref, split):
    counts = error_counts(ids(*hyp), None, ids(*ref), None)
    assert tuple(int(count) for count in counts) == (*split, len(ref))


def test_empty_references_as_in_jiwer():
    """No errors in nothing: 0. Otherwise each inserted token counts as one whole error."""
    assert float(error_counts(ids(), None, ids(), None).rate) == 0
    assert float(error_counts(ids(1, 2), None, ids(), None).rate) == 2
    assert float(cer(ids(1, 2), None, ids(), None).rate) == 2
    assert float(error_counts(ids(), None, ids(1), None).rate) == 1


def test_counts_add_up_before_they_divide():
    hyp, ref = jnp.array([[1, 2, 3], [1, 1, 1]]), jnp.array([[1, 2, 3], [1, 2, 0]])
    ref_paddings = jnp.array([[0, 0, 0], [0, 0, 1]])
    counts = error_counts(hyp, None, ref, ref_paddings)
    both = counts.sum()
    assert [int(count) for count in both] == [1, 1, 0, 5]
    assert float(both.rate) == pytest.approx(2 / 5)
    again = ErrorCounts(*(count[0] for count in counts)) + ErrorCounts(
        *(count[1] for count in counts)
    )
    assert [int(count) for count in again] == [int(count) for count in both]
    rate, errors, length = cer(hyp, None, ref, ref_paddings)
    assert (float(rate), int(errors), int(length)) == (pytest.approx(0.4), 2, 5)


def test_counts_are_a_carry_of_a_scan():
    hyp, ref = jnp.array([[1, 2], [3, 3]]), jnp.array([[1, 2], [3, 4]])

    def add(counts, pair):
        return counts + error_counts(pair[0], None, pair[1], None), None

    none = ErrorCounts(*(jnp.zeros((), jnp.int32) for _ in range(4)))
    counts, _ = jax.lax.scan(add, none, (hyp, ref))
    assert [int(count) for count in counts] == [1, 0, 0, 4]


def test_large_and_mixed_ids():
    assert edit_distance(np.array([2**20, -5]), None, np.array([2**20, -4]), None) == 1
    assert edit_distance(np.array([200, 7], np.uint8), None, np.array([200, 7]), None) == 0


@pytest.mark.parametrize("batch", [(), (0,), (3,), (2, 0), (2, 3)], ids=str)
def test_any_number_of_batch_axes(batch, rng):
    hyp, ref = rng.integers(0, 3, (*batch, 6)), rng.integers(0, 3, (*batch, 4))
    distance = distance_of(hyp, None, ref, None)
    assert distance.shape == batch
    assert distance.dtype == jnp.int32
    for index in np.ndindex(*batch):
        assert distance[index] == oracles.levenshtein(hyp[index].tolist(), ref[index].tolist())


def test_too_long_for_counts():
    with pytest.raises(ValueError, match="edit_distance gives the sum"):
        jax.eval_shape(
            functools.partial(error_counts, hyp_paddings=None, ref_paddings=None),
            hyp=jnp.zeros(30_000, jnp.int32),
            ref=jnp.zeros(3_000, jnp.int32),
        )
