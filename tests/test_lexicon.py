"""Lexicons against the words written out: what they allow and cost, and what a beam finds."""

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
WORDS = [
    ["ab"],
    ["b", "ab", "abb"],
    ["bab", "b", "ab", "abab"],
    ["a", "ab", "aba", "bb", "b"],
    ["a", "abb", "bab"],  # after "ab", joined: two words are under way, and none is over
    ["aba", "bb"],  # "b" goes on where "a" is no word, and begins another elsewhere
]
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
        [unknown_words(vocabulary, words, row[:end]) for end in range(len(row) + 1)] for row in rows
    ]
    return np.where(np.array(counts) == 0, 0.0, unknown_score * np.maximum(counts, 1))


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
@pytest.mark.parametrize(
    ("kind", "unknown_score"),
    [*itertools.product(VOCABULARIES, [-math.inf]), ("between", -1.5), ("marked", -1.5)],
)
def test_all_strings_against_the_words(kind, words, unknown_score):
    """Exactly, however tokens spell them; separators may stand anywhere."""
    vocabulary = VOCABULARIES[kind]
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
@pytest.mark.parametrize("words", WORDS[2:5], ids=" ".join)
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
        spoken = [str(vocabulary.tokens[label]) for label in labels]
        if level == "words":
            spoken = filter(None, "".join(spoken).split("|"))
        hypothesis = PlainHypothesis(grams)
        worth = sum(hypothesis.score(word) for word in spoken) + hypothesis.final()
        occurrences = sum(labels[i : i + 2] == (2, 3) for i in range(len(labels)))
        truth[labels] += weight * worth + 1.5 * occurrences
    assert_is_every_one(best, truth, rtol=2e-6)


def _read(path, vocabulary, separator):
    if separator is None:
        return read_arpa(path, vocabulary.tokens)
    return read_arpa(path, vocabulary.tokens, separator=separator)


@pytest.fixture(scope="module")
def guides(tmp_path_factory):
    """Word n-grams, hot words, and a lexicon: one that forbids, or unigrams with a price."""
    vocabulary, rng = SMALL["between"], np.random.default_rng(8)
    path = tmp_path_factory.mktemp("guides") / "model"
    grams = random_grams(rng, 3, ["ab", "b", "a", "ba"], ["<s>", "</s>", "<unk>"])
    path.write_text(arpa(grams, rng))
    shared = {
        "language_model": read_arpa(path, vocabulary.tokens, separator=1),
        "hot_words": hot_words([[2, 3], [3]], [1.5, -0.5]),
    }
    return {
        name: shared | {"lexicon": build_lexicon(["ab", "b", "abba"], vocabulary, unknown_score=u)}
        for name, u in (("lexicon", -math.inf), ("unigrams", -4.0))
    }


step = jax.jit(beam_step)
finish = jax.jit(beam_finish, static_argnames="num_hypotheses")


@pytest.mark.parametrize("name", ["lexicon", "unigrams"])
@given(seed=SEEDS, cuts=st.lists(st.integers(0, 12), max_size=4))
def test_chunks_make_no_difference(name, seed, cuts, guides):
    """Bit by bit, with all three models, however 12 frames are cut."""
    models, rng = guides[name], np.random.default_rng(seed)
    logits = rng.normal(size=(2, 12, 4)).astype(np.float32) * 3
    rest = {"lm_weight": 0.8, "length_bonus": 0.3}
    state = beam_init(8, batch=(2,), beam_width=6, **models)
    for start, end in itertools.pairwise([0, *sorted(cuts), 12]):
        outside = (np.arange(12) < start) | (np.arange(12) >= end)
        state = step(state, logits, np.broadcast_to(outside, (2, 12)), **rest, **models)
    pieces = finish(state, num_hypotheses=4, lm_weight=0.8, **models)
    whole = search(logits, None, beam_width=6, num_hypotheses=4, max_length=8, **rest, **models)
    chex.assert_trees_all_equal(pieces[:3], whole[:3])


def test_the_best_after_each_chunk(rng):
    """It is that of the frames so far, with or without a word that is not over yet."""
    lexicon = build_lexicon(["ab", "b", "abba"], SMALL["between"])
    models: dict[str, Any] = {"lexicon": lexicon}
    open_ended: dict[str, Any] = {"lexicon": lexicon._replace(unfinished_score=jnp.zeros(()))}
    path = np.array([2, 0, 3, 3, 1, 0, 2, 3, 0, 3, 2])  # ab | abba
    logits = (rng.normal(size=(11, 4)) + 7 * np.eye(4)[path]).astype(np.float32)
    state = beam_init(11, **models)
    texts, partial = [], []
    for start, end in ((0, 1), (1, 4), (4, 4), (4, 7), (7, 10), (10, 11)):
        outside = (np.arange(11) < start) | (np.arange(11) >= end)
        state = step(state, logits, outside, **models)
        for kind, found in ((models, texts), (open_ended, partial)):
            early = finish(state, **kind)
            sooner = search(logits, np.arange(11) >= end, max_length=11, **kind)
            np.testing.assert_array_equal(early.labels, sooner.labels)
            np.testing.assert_array_equal(early.scores, sooner.scores)
            found.append(SMALL["between"].decode(early.labels[0]))
    assert partial == ["a", "ab", "ab", "ab a", "ab abb", "ab abba"]
    # A word that is not over is none: there, the best is one that is over.
    assert texts[1] == texts[2] == "ab"
    assert texts[-1] == "ab abba"
    assert "a" not in texts[0].split()


def test_nothing_is_left_where_no_word_fits():
    """As after impossible frames: no labels, and a score of -inf."""
    lexicon = build_lexicon(["ba"], SMALL["between"])
    log_probs = np.log(np.array([[0.0, 0.0, 1.0, 0.0]] * 3, np.float32) + 1e-30)
    log_probs = np.where(log_probs < -60, -np.inf, log_probs)
    best = search(log_probs, None, lexicon=lexicon, num_hypotheses=2)
    assert (np.asarray(best.scores) == -np.inf).all()
    assert (np.asarray(best.labels) == -1).all()
    assert np.asarray(best.lengths).tolist() == [0, 0]


def test_another_lexicon_of_these_shapes_is_not_compiled_again():
    chex.clear_trace_counter()
    logits = np.zeros((3, 4), np.float32)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def best(logits, lexicon):
        return prefix_beam_search(logits, None, lexicon=lexicon).labels

    for words, unknown_score in ((["ab"], -math.inf), (["ba"], -math.inf), (["ba"], -1.0)):
        best(logits, build_lexicon(words, SMALL["between"], unknown_score=unknown_score))


# Files, and what is wrong with them.


def test_a_file_of_words(tmp_path):
    """Empty lines, white space around words, and the mark that some editors put first."""
    path = tmp_path / "words"
    path.write_text("ab\r\n\n  b \nabba", encoding="utf-8-sig")
    expected = build_lexicon(["ab", "b", "abba"], BETWEEN)
    chex.assert_trees_all_equal(read_lexicon(path, BETWEEN), expected)


def test_a_file_of_words_and_spellings(tmp_path):
    """With the separator at the end, as in flashlight's files, or without."""
    path = tmp_path / "lexicon"
    path.write_text("bee b |\nbee\tb  b |\nabb ab b\n")
    expected = build_lexicon([[3], [3, 3], [4, 3]], BETWEEN)
    chex.assert_trees_all_equal(read_lexicon(str(path), BETWEEN), expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "FILE must have words; got none."),
        ("\n \n", "FILE must have words; got none."),
        (
            "ab\nb\n\nab\n",
            "line 4 of FILE must differ from all lines before; got 'ab' again, of line 1.",
        ),
        (
            "x a b\ny b\nx a  b\n",
            "line 3 of FILE must differ from all lines before; got 'x a b' again, of line 1.",
        ),
        (
            "ab\naxb\nb\n",
            "FILE must have tokens that spell each word; got 1 of 3 without, 'axb' (line 2 of "
            'FILE). unknown="drop" leaves them out.',
        ),
        (
            "AB\nA\n",
            "FILE must have tokens that spell each word; got 2 of 2 without, 'AB' (line 1 of "
            "FILE), 'A' (line 2 of FILE). In lower case they have tokens: see normalize.",
        ),
        (
            "w\nx\ny\nz\n",
            "FILE must have tokens that spell each word; got 4 of 4 without, 'w' (line 1 of "
            "FILE), 'x' (line 2 of FILE), 'y' (line 3 of FILE), ….",
        ),
        (
            "New York\nab\n",
            "line 1 of FILE must have tokens after the word; got 'York'. A line is a word, or a "
            "word and the tokens that spell it.",
        ),
        (
            "ab\nb a b\n",
            "line 2 of FILE must be one word; got 'b a b'. Spellings stand on every line or on "
            "none, and on line 1 stands none.",
        ),
        (
            "b a b\nab\n",
            "line 2 of FILE must have a spelling after its word; got 'ab'. Spellings stand on "
            "every line or on none, and on line 1 stands one.",
        ),
        ("a a | b |\n", "line 1 of FILE must be spelt without the separator; got '|' in it."),
        ("a a -\n", "line 1 of FILE must be spelt without the blank; got '-' in it."),
        ("a |\n", "line 1 of FILE must be class ids in [0, 5), some of them; got []."),
    ],
    ids=range(13),
)
def test_files_with_mistakes(text, message, tmp_path):
    path = tmp_path / "words.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"^read_lexicon: ") as raised:
        read_lexicon(path, BETWEEN)
    assert str(raised.value) == f"read_lexicon: {message}".replace("FILE", str(path))


def test_files_that_are_no_text(tmp_path):
    (tmp_path / "words").write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match=r"words must be text in UTF-8; got .* 0xe9"):
        read_lexicon(tmp_path / "words", BETWEEN)
    with pytest.raises(FileNotFoundError):
        read_lexicon(tmp_path / "none", BETWEEN)


def test_words_without_tokens_can_be_dropped():
    words = ["ab", "axb", "b"]
    dropped = build_lexicon([*words, "ab" * 501], BETWEEN, unknown="drop")
    chex.assert_trees_all_equal(dropped, build_lexicon(["ab", "b"], BETWEEN))
    with pytest.raises(ValueError, match="words must have tokens that spell each word; got 1 of 1"):
        build_lexicon(["x"], BETWEEN, unknown="drop")


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        ([], {}, "words must have words; got none"),
        ("ab", {}, "words must be a list of words; got str. One word alone is a list of one."),
        (["ab", ""], {}, r"words\[1\] must be a word, not empty and without white space; got ''"),
        (
            ["a", "ab" * 501],
            {},
            r"words\[1\] must have at most 1000 characters; got 1002. unknown=\"drop\" leaves it",
        ),
        (["a b"], {}, r"words\[0\] must be a word, not empty and without white space; got 'a b'"),
        (["a", [2]], {}, r"words\[0\] must be class ids in .*; got 'a'. Words are strings, all of"),
        ([[2], 3], {}, r"words\[1\] must be class ids in \[0, 5\), some of them; got 3"),
        ([[5]], {}, r"words\[0\] must be class ids in \[0, 5\), some of them; got \[5\]"),
        ([[2.0]], {}, r"words\[0\] must be a static integer; got 2.0"),
        ([[2, 0]], {}, r"words\[0\] must be spelt without the blank; got '-' in it"),
        (
            [[2, 3], [4, 3]],
            {"vocabulary": MARKED},
            r"words\[1\] must begin with a token that begins with '▁'; got 'ab'",
        ),
        (["a"], {"unknown": "keep"}, "unknown must be one of 'raise', 'drop'; got 'keep'"),
        (["a"], {"unknown_score": 0.0}, "unknown_score must be a number below 0; got 0.0"),
        (["a"], {"unknown_score": math.nan}, "unknown_score must be a number below 0; got nan"),
        (["a"], {"vocabulary": ["-", "a"]}, "vocabulary must be a jaxctc.Vocabulary; got list"),
        (
            ["a"],
            {"vocabulary": JOINED, "unknown_score": -1.0},
            "unknown_score must be -inf without a separator; got -1.0. Nothing says where",
        ),
    ],
    ids=str,
)
def test_arguments_of_build_lexicon(words: Any, options: Any, message):
    options = {"vocabulary": BETWEEN} | options
    with pytest.raises(ValueError, match=f"^build_lexicon: {message}"):
        build_lexicon(words, **options)


def test_the_beam_takes_lexicons_alone():
    frame = np.zeros((1, 4), np.float32)
    words: Any = ["ab"]
    with pytest.raises(
        ValueError, match=r"lexicon must be a jaxctc.Lexicon; got a list. From a list"
    ):
        prefix_beam_search(frame, None, lexicon=words)
    lexicon = build_lexicon(words, SMALL["between"])
    assert isinstance(lexicon, Lexicon)
    with pytest.raises(ValueError, match="beam_step: state must come from calls with the same"):
        beam_step(beam_init(3), frame, None, lexicon=lexicon)
    with pytest.raises(ValueError, match="beam_finish: state must come from calls with the same"):
        beam_finish(beam_init(3, lexicon=lexicon))
