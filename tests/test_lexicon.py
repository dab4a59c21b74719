"""Lexicons against the words written out: what they allow, what they cost, and what a beam finds."""

import functools
import itertools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ngrams import PlainHypothesis, arpa, random_grams, scores_of
from oracles import assert_close

from jaxctc import (
    Lexicon,
    Vocabulary,
    beam_finish,
    beam_init,
    beam_step,
    build_lexicon,
    hot_words,
    prefix_beam_search,
    read_arpa,
    read_lexicon,
)

BETWEEN = Vocabulary(["-", "|", "a", "b", "ab"], separator="|")
MARKED = Vocabulary(["-", "▁", "▁a", "b", "ab"], separator="▁")
JOINED = Vocabulary(["-", "c", "a", "b", "ab"])
VOCABULARIES = {"between": BETWEEN, "marked": MARKED, "joined": JOINED}
WORDS = [["ab"], ["b", "ab", "abb"], ["bab", "b", "ab", "abab"], ["a", "ab", "aba", "bb", "b"]]
SEEDS = st.integers(0, 2**32 - 1)


def is_made_of(names, words):
    """Whether some words are these tokens in a row, put together."""
    if not names:
        return True
    beginnings = ("".join(names[:end]) for end in range(1, len(names) + 1))
    return any(
        beginning in words and is_made_of(names[end:], words)
        for end, beginning in enumerate(beginnings, 1)
    )


def unknown_words(vocabulary, words, ids):
    """How many words of a hypothesis are not in the list, by what its text is."""
    names = [vocabulary.tokens[k] for k in ids]
    if vocabulary.separator is None:
        return 0 if is_made_of(names, words) else math.inf
    first, *others = "".join(names).split(vocabulary.separator)
    if vocabulary.marks_words:
        return (first != "") + sum(word not in words for word in others)
    return sum(word not in words for word in (first, *others) if word)


def totals_of(model, rows):
    """What each beginning of each row is worth if it ends there."""
    scores, finals = scores_of(model, np.array(rows, np.int32))
    return np.cumsum(np.pad(scores, ((0, 0), (1, 0))), axis=1) + finals


def expected_totals(vocabulary, words, rows, unknown_score):
    counts = [
        [unknown_words(vocabulary, words, row[:end]) for end in range(len(row) + 1)]
        for row in rows
    ]
    return np.where(np.array(counts) == 0, 0.0, unknown_score * np.maximum(counts, 1))


@pytest.mark.parametrize("unknown_score", [-math.inf, -1.5])
@pytest.mark.parametrize("words", WORDS, ids=" ".join)
@pytest.mark.parametrize("kind", VOCABULARIES)
def test_all_strings_against_the_words(kind, words, unknown_score):
    """Exactly, however tokens spell them; separators may stand anywhere."""
    vocabulary = VOCABULARIES[kind]
    if kind == "joined" and unknown_score > -math.inf:
        pytest.skip("nothing says where an unknown word ends")
    model = build_lexicon(words, vocabulary, unknown="drop", unknown_score=unknown_score)
    rows = list(itertools.product(range(1, 5), repeat=6))
    expected = expected_totals(vocabulary, words, rows, unknown_score)
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(totals_of(model, rows), expected)


@pytest.mark.parametrize("unknown_score", [-math.inf, -2.0])
def test_spellings_of_their_own(unknown_score):
    """The tokens of a spelling and no others, whatever they are called."""
    spellings = [[2, 3], [4, 3, 3], [4], [2, 2, 4]]
    model = build_lexicon(spellings, BETWEEN, unknown_score=unknown_score)
    rows = list(itertools.product(range(1, 5), repeat=6))
    known = {"".join(map(str, spelling)) for spelling in spellings}
    digits = Vocabulary(["-", "|", "2", "3", "4"], separator="|")
    expected = expected_totals(digits, known, rows, unknown_score)
    np.testing.assert_array_equal(totals_of(model, rows), expected)


def test_more_classes_than_bits(rng):
    """Rows of three numbers; words that share a beginning, and tokens at the ends of a number."""
    names = [chr(0x4E00 + k) for k in range(70)]
    vocabulary = Vocabulary(["-", *names[1:-1], " "], separator=" ")
    letters = [1, 2, 31, 32, 33, 63, 64, 68]
    words = {tuple(rng.choice(letters, rng.integers(1, 5)).tolist()) for _ in range(300)}
    model = build_lexicon(sorted(words), vocabulary)
    assert model.tokens.shape[1] == 3
    rows = [rng.choice(letters, 4) for _ in range(500)] + [
        np.pad(word, (0, 4 - len(word)), constant_values=69) for word in words
    ]
    totals = totals_of(model, rows)
    for row, total in zip(np.array(rows).tolist(), totals, strict=True):
        for end in range(5):
            word = tuple(token for token in row[:end] if token != 69)
            assert (total[end] == 0) == (not word or word in words)
    beginnings = {word[:end] for word in words for end in range(len(word) + 1)}
    assert model.row.shape[0] == len(beginnings) + 1
    assert model.tokens.shape[0] < len(beginnings), "states share rows"


def test_what_is_no_class_is_in_no_word():
    for unknown_score in (-math.inf, -1.0):
        model = build_lexicon(["a"], BETWEEN, unknown_score=unknown_score)
        for token in (-1, 5, 37, 2**31 - 1, -(2**31)):
            score, state = model.score_and_advance(model.initial_state, token)
            assert float(score) == unknown_score
            assert state == model.lost_state
    joined = build_lexicon(["a"], JOINED)  # it has no separator, and no -1 for one
    assert joined.score_and_advance(joined.initial_state, -1)[0] == -jnp.inf


def test_an_unknown_word_is_paid_as_soon_as_it_is_one():
    model = build_lexicon(["ab", "b"], BETWEEN, unknown_score=-3.0)
    rows = np.array([[2, 2, 2, 1], [2, 1, 3, 1], [2, 3, 1, 2]], np.int32)
    scores, finals = scores_of(model, rows)
    np.testing.assert_array_equal(scores, [[0, -3, 0, 0], [0, -3, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(finals[:, 1:], [[-3, 0, 0, 0], [-3, 0, 0, 0], [-3, 0, 0, -3]])


def test_words_that_are_normalised():
    words = ["Ab", "b", "B"]  # two of them become one
    plain, changed = (
        build_lexicon(["ab", "b"], BETWEEN),
        build_lexicon(words, BETWEEN, normalize=str.lower),
    )
    chex.assert_trees_all_equal(plain, changed)


# In the beam.

FRAMES, EVERY = 5, 256
SMALL = {
    "between": Vocabulary(["-", "|", "a", "b"], separator="|"),
    "marked": Vocabulary(["-", "▁a", "b", "▁"], separator="▁"),
    "joined": Vocabulary(["-", "a", "b", "ab"]),
}
search = jax.jit(prefix_beam_search, static_argnames=("beam_width", "num_hypotheses", "max_length"))
search_all = functools.partial(search, beam_width=EVERY, num_hypotheses=EVERY)


def assert_is_every_one(best, truth, rtol):
    """Exactly the sequences that are possible, with their scores, best first."""
    truth = {labels: score for labels, score in truth.items() if score > -np.inf}
    is_used = np.asarray(best.scores) > -np.inf
    rows = np.asarray(best.labels)[is_used].tolist()
    found = [tuple(label for label in row if label >= 0) for row in rows]
    assert len(set(found)) == len(found)
    assert set(found) == set(truth)
    scores = np.asarray(best.scores)[is_used]
    assert_close(scores, [truth[labels] for labels in found], rtol=rtol)
    assert (np.diff(scores) <= 0).all()


def truth_of(logits, vocabulary, words, unknown_score=-math.inf):
    """Every label sequence with what its paths and its words are worth."""
    truth = oracles.sequences(oracles.log_softmax(logits))
    counts = {labels: unknown_words(vocabulary, words, labels) for labels in truth}
    return {
        labels: score + (unknown_score * counts[labels] if counts[labels] else 0.0)
        for labels, score in truth.items()
    }


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("words", WORDS[1:], ids=" ".join)
@pytest.mark.parametrize("kind", SMALL)
def test_a_beam_against_every_path_of_words(kind, words):
    """In float64: the sequences that words make up, all of them, and nothing else."""
    lexicon = build_lexicon(words, SMALL[kind], unknown="drop")
    for seed in range(5):
        rng = np.random.default_rng(seed)
        logits = rng.normal(size=(FRAMES, 4)) * rng.choice([1, 5])
        best = search_all(logits, None, lexicon=lexicon)
        assert best.scores.dtype == jnp.float64
        assert_is_every_one(best, truth_of(logits, SMALL[kind], words), rtol=1e-12)


@pytest.mark.parametrize("unknown_score", [-math.inf, -2.5])
@pytest.mark.parametrize("level", ["tokens", "words"])
def test_a_beam_beside_n_grams_and_hot_words(level, unknown_score, tmp_path, rng):
    """All three, against dictionaries that know the definition of each."""
    vocabulary, words, weight = SMALL["between"], ["ab", "b", "ba"], 0.7
    names = ["a", "b", "|"] if level == "tokens" else ["ab", "b", "a"]
    grams = random_grams(rng, 2, names, ["<s>", "</s>", "<unk>"])
    (tmp_path / "model").write_text(arpa(grams, rng))
    separator = None if level == "tokens" else vocabulary.separator_id
    options: dict[str, Any] = {"language_model": _read(tmp_path / "model", vocabulary, separator)}
    options |= {"lm_weight": weight, "hot_words": hot_words([[2, 3]], 1.5)}
    logits = rng.normal(size=(FRAMES, 4)).astype(np.float32)
    lexicon = build_lexicon(words, vocabulary, unknown_score=unknown_score)
    best = search_all(logits, None, lexicon=lexicon, **options)

    truth = truth_of(logits, vocabulary, set(words), unknown_score)
    for labels in truth:
        text = [vocabulary.tokens[label] for label in labels]
        spoken = text if level == "tokens" else filter(None, "".join(text).split("|"))
        hypothesis = PlainHypothesis(grams)
        worth = sum(hypothesis.score(word) for word in spoken) + hypothesis.final()
        occurrences = sum(labels[i : i + 2] == (2, 3) for i in range(len(labels)))
        truth[labels] += weight * worth + 1.5 * occurrences
    assert_is_every_one(best, truth, rtol=2e-6)


def _read(path, vocabulary, separator):
    if separator is None:
        return read_arpa(path, vocabulary.tokens)
    return read_arpa(path, vocabulary.tokens, separator=separator)
