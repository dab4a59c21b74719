import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxctc import ErrorCounts, cer, edit_distance, error_counts, wer
from jaxctc.metrics import levenshtein
from jaxctc.metrics.levenshtein import TokenSequence

SIZE = 7  # one shape for all random pairs, so that each function compiles once

tokens = st.lists(st.integers(-2, 3), max_size=SIZE)
distance_of, counts_of = jax.jit(edit_distance), jax.jit(error_counts)


@jax.jit
def word_counts_of(hyp, hyp_paddings, ref, ref_paddings, ignored):
    return error_counts(hyp, hyp_paddings, ref, ref_paddings, separator=0, ignored_ids=ignored)


@jax.jit
def word_distance_of(hyp, ref):
    return edit_distance(hyp, None, ref, None, separator=0)


@jax.jit
def partners_of(hyp, is_hyp, ref, is_ref):
    sides = TokenSequence(hyp, is_hyp, is_hyp, is_hyp), TokenSequence(ref, is_ref, is_ref, is_ref)
    return levenshtein.distance_and_partners(*sides, by_words=False)


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
    split = tuple(int(count) for count in counts[:3])
    assert split == oracles.edit_counts(hyp, ref)
    assert split in oracles.edit_alignments(hyp, ref)
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


@pytest.mark.parametrize("size", [32, 33, 65])
def test_around_the_ends_of_words_of_bits(size, rng):
    """References of a few words of 32 rows; hypotheses shorter, as long, and longer."""
    hyp, ref = rng.integers(0, 3, (6, 70)), rng.integers(0, 3, (6, size))
    no_hyp = np.arange(70) >= np.array([70, 70, 33, 32, 1, 0])[:, None]
    no_ref = rng.random((6, size)) < np.array([0, 0.05, 0.5, 0, 0, 0.3])[:, None]
    counts = counts_of(hyp, no_hyp, ref, no_ref)
    for row in range(6):
        pair = hyp[row][~no_hyp[row]].tolist(), ref[row][~no_ref[row]].tolist()
        assert counts.errors[row] == oracles.levenshtein(*pair)
        assert tuple(int(count[row]) for count in counts[:3]) == oracles.edit_counts(*pair)


@pytest.mark.smoke
@given(hyp=tokens, ref=tokens, seed=st.integers(0, 2**32 - 1), drops=st.booleans())
def test_words_against_splitting(hyp, ref, seed, drops):
    """Separator 0; rubbish, and with `drops` an ignored token, within words and between them."""
    rng = np.random.default_rng(seed)
    arguments = (*strewn(hyp, rng), *strewn(ref, rng))
    ignored = [3, 99] if drops else [98, 99]
    counts = word_counts_of(*arguments, np.array(ignored))
    pair = [
        oracles.words([token for token in side if token not in ignored], 0) for side in (hyp, ref)
    ]
    assert int(counts.errors) == oracles.levenshtein(*pair)
    assert tuple(int(count) for count in counts[:3]) == oracles.edit_counts(*pair)
    assert int(counts.reference_length) == len(pair[1])


def test_long_words(rng):
    """Words and gaps that run over several words of bits, twice the same text but for one token."""
    text = np.where(rng.random(300) < 0.02, 0, rng.integers(1, 3, 300))
    changed = text.copy()
    changed[150] = 9
    rows = np.stack([text, changed, np.roll(text, 40)])
    distances = word_distance_of(rows, np.stack([text] * 3))
    words = [oracles.words(row.tolist(), 0) for row in rows]
    assert distances.tolist() == [oracles.levenshtein(row, words[0]) for row in words]


def test_words_as_jiwer_splits_them():
    """Several separators in a row, or at the ends, make no words."""
    hyp = np.array([[0, 0, 5, 6, 0, 7, 0], [0, 0, 0, 0, 0, 0, 0], [1, 0, 2, 0, 0, 0, 0]])
    ref = np.array([[5, 6, 0, 0, 7, 8], [0, 0, 0, 0, 0, 0], [1, 2, 0, 0, 0, 0]])
    assert word_distance_of(hyp, ref).tolist() == [1, 0, 2]
    rate, errors, length = jax.jit(lambda *both: wer(both[0], None, both[1], None, separator=0))(
        hyp, ref
    )
    assert (float(rate), int(errors), int(length)) == (1.0, 3, 3)


def test_classes_and_ignored_ids():
    """The map: 1 and 2 are one class, 3 is dropped; ids beyond it stay what they are."""
    hyp, ref, fold = ids(1, 3, 2, 7, 4), ids(2, 2, 7, 3), np.array([0, 1, 1, -1])

    @jax.jit
    def distances(hyp, ref):
        distance = functools.partial(edit_distance, hyp, None, ref, None)
        return (
            distance(),
            distance(class_map=fold),
            distance(class_map=fold, ignored_ids=[4]),
            distance(ignored_ids=[]),
            # An id that is ignored does not become its class, nor its class ignored.
            edit_distance(ids(1), None, ids(), None, class_map=[0, 2], ignored_ids=[2]),
            # Separators are found before the map.
            edit_distance(ids(3, 0, 3), None, ids(), None, separator=0, class_map=[3]),
        ), cer(hyp, None, ref, None, class_map=fold)

    found, (rate, errors, length) = distances(hyp, ref)
    assert [int(distance) for distance in found] == [3, 1, 0, 3, 1, 2]
    assert (float(rate), int(errors), int(length)) == (pytest.approx(1 / 3), 1, 3)


def test_dropping_all_tokens_of_a_word_drops_the_word():
    hyp, ref = ids(5, 0, 9, 0, 6), ids(5, 0, 6)
    assert int(edit_distance(hyp, None, ref, None, separator=0, ignored_ids=[9])) == 0


@given(hyp=tokens, ref=tokens)
def test_partners_are_an_alignment(hyp, ref):
    """Partners rise, and what is left over or differs are the errors."""
    rng = np.random.default_rng(0)
    (a, no_a), (b, no_b) = strewn(hyp, rng), strewn(ref, rng)
    distance, partners = map(np.asarray, partners_of(a, no_a == 0, b, no_b == 0))
    at = np.flatnonzero(partners >= 0)
    assert (np.diff(partners[at]) > 0).all()
    assert not no_a[at].any()
    assert not no_b[partners[at]].any()
    wrong = (a[at] != b[partners[at]]).sum()
    assert distance == wrong + len(hyp) + len(ref) - 2 * at.size


@pytest.mark.parametrize(
    ("hyp", "ref", "split"),
    [
        ([], [], (0, 0, 0)),
        ([], [1] * 40, (0, 0, 40)),
        ([1, 2], [], (0, 2, 0)),
        ([], [1], (0, 0, 1)),
        ([1, 2, 3], [1, 2, 3], (0, 0, 0)),
        ([1, 1, 2, 2], [1, 3], (1, 2, 0)),
        ([1], [1, 1], (0, 0, 1)),
        ([2, 3], [1, 2], (2, 0, 0)),  # as good as an insertion and a deletion
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

    counts, _ = jax.lax.scan(add, ErrorCounts.zero(), (hyp, ref))
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


def test_large_ids_are_not_rounded_or_wrapped():
    large = np.array([2**31 - 1, -(2**31)], np.int32)
    assert edit_distance(large, None, large[::-1].copy(), None) == 2
    assert edit_distance(ids(300), None, np.array([44], np.uint8), None) == 1
    assert edit_distance(np.array([2**32 - 1], np.uint32), None, ids(), None) == 1


@pytest.mark.usefixtures("x64")
def test_ids_of_64_bits():
    wide = np.array([2**40, 2**40 + 1], np.int64)
    assert edit_distance(wide, None, wide[::-1].copy(), None) == 2
    assert edit_distance(wide, None, np.array([0, 1], np.int32), None) == 2


def test_counts_of_devices_add_up():
    """By `psum` over a named axis, and only then are they divided."""
    hyp, ref = jnp.array([[1, 2], [3, 3]]), jnp.array([[1, 2], [3, 4]])
    total = jax.vmap(
        lambda hyp, ref: jax.lax.psum(error_counts(hyp, None, ref, None), "devices"),
        axis_name="devices",
    )(hyp, ref)
    assert [int(count[0]) for count in total] == [1, 0, 0, 4]
    assert float(total.rate[1]) == 0.25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"separator": 0.5}, "edit_distance: separator must be a static integer; got 0.5"),
        ({"class_map": [[1]]}, r"edit_distance: class_map must have one axis; got \(1, 1\)"),
        ({"ignored_ids": 3}, r"edit_distance: ignored_ids must have shape \[\*B, N\]; got \(\)"),
        (
            {"ignored_ids": [0.5]},
            "edit_distance: ignored_ids must be integers; got an array of float32",
        ),
    ],
)
def test_errors_say_what_to_do(options: Any, message):
    with pytest.raises(ValueError, match=message):
        edit_distance(ids(1), None, ids(2), None, **options)
