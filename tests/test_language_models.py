"""Language models against plain dictionaries, and files that must not be read."""

import functools
import gzip
import itertools
import math
import os
import re
import string
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from jaxprs import dtypes

from jaxctc.arpa import TokenNGrams, WordNGrams, read_arpa
from jaxctc.language_models import CustomModel, LanguageModel, as_language_model, hot_words


@jax.jit
def scores_of(model, tokens):
    """Score of every token of each row, and final score before, between and behind them."""

    def step(state, token):
        score, after = model.score_and_advance(state, token)
        return after, (score, model.final_score(state))

    def one(row):
        state, (scores, finals) = jax.lax.scan(step, model.initial_state, row)
        return scores, jnp.append(finals, model.final_score(state))

    return jax.vmap(one)(tokens)


# What a plain scorer needs: {words: (log10 probability, log10 back-off)}.


def plain_score(grams, context, word, unknown=-100.0):
    """The definition of back-off, in nats; `unknown` for what the model does not know."""
    if (*context, word) in grams:
        return grams[(*context, word)][0] * math.log(10)
    if not context:
        return unknown
    back_off = grams.get(context, (0.0, 0.0))[1] * math.log(10)
    return back_off + plain_score(grams, context[1:], word, unknown)


class PlainHypothesis:
    """A hypothesis under the definition: the context is the words before, all that count."""

    def __init__(self, grams):
        self.grams, self.order = grams, max(map(len, grams))
        self.words = ("<s>",) if ("<s>",) in grams else ()

    def context(self):
        return self.words[max(len(self.words) - self.order + 1, 0) :]

    def score(self, word):
        if (word,) not in self.grams or word in ("<s>", "</s>"):
            word = "<unk>"
        score = plain_score(self.grams, self.context(), word)
        self.words += (word,)
        return score

    def final(self):
        if ("</s>",) not in self.grams:
            return 0.0
        return plain_score(self.grams, self.context(), "</s>")


def plain_scores(grams, rows):
    """As `scores_of`, for rows of words."""
    scores, finals = np.zeros((len(rows), len(rows[0]))), np.zeros((len(rows), len(rows[0]) + 1))
    for row, words in enumerate(rows):
        hypothesis = PlainHypothesis(grams)
        for place, word in enumerate(words):
            finals[row, place] = hypothesis.final()
            scores[row, place] = hypothesis.score(word)
        finals[row, -1] = hypothesis.final()
    return scores, finals


def random_grams(rng, order, words, marks):
    """Every n-gram has its context, but not always its suffixes."""

    def entry():
        return (-float(rng.random() * 3), float(rng.normal()) if rng.random() < 0.8 else 0.0)

    grams = {(word,): entry() for word in (*marks, *words)}
    longest = list(grams)
    for _ in range(order - 1):
        continuations = [word for word in (*marks, *words) if word != "<s>"]
        contexts = [context for context in longest if context[-1] != "</s>"]
        pairs = [(*context, word) for context in contexts for word in continuations]
        kept = [pairs[i] for i in rng.permutation(len(pairs))[: 5 * len(words)]]
        grams |= {gram: entry() for gram in kept}
        longest = kept
    return grams


def arpa(grams, rng, order=None):
    """The file, its lines in any order, its fields parted in any way."""
    order = order or max(map(len, grams))
    by_order = [[gram for gram in grams if len(gram) == n] for n in range(1, order + 1)]
    lines = ["made for a test", "", "\\data\\"]
    lines += [f"ngram {n}={len(part)}" for n, part in enumerate(by_order, 1)]
    for n, part in enumerate(by_order, 1):
        lines += ["", f"\\{n}-grams:"]
        for i in rng.permutation(len(part)):
            log_prob, back_off = grams[part[i]]
            fields = [repr(log_prob), *part[i]]
            if n < order and (back_off or rng.random() < 0.5):
                fields.append(repr(back_off))
            lines.append(rng.choice(["\t", " ", " \t "]).join(fields))
    return "\n".join([*lines, "", "\\end\\", ""])


@pytest.fixture
def read(tmp_path):
    def read(text, *arguments, **options):
        path = tmp_path / "model.arpa"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_arpa(path, *arguments, **options)

    return read


ALPHABET = [None, "a", "b", "c", "<unk>", "<s>", "nowhere", "ü"]
TOKENS = [*range(-1, 9), 2**31 - 1, -(2**31)]


def name_of(token):
    return (ALPHABET[token] if 0 <= token < len(ALPHABET) else None) or "<unk>"


ALL_MARKS = ("<s>", "</s>", "<unk>")


@pytest.mark.parametrize(
    ("order", "marks"),
    [*((order, ALL_MARKS) for order in range(1, 6)), (1, ()), (3, ("<s>",)), (4, ALL_MARKS[1:])],
    ids=str,
)
def test_token_ngrams(read, order, marks):
    rng = np.random.default_rng(order)
    grams = random_grams(rng, order, ["a", "b", "c", "ü", "unheard"], marks)
    model = read(arpa(grams, rng), ALPHABET)
    assert isinstance(model, TokenNGrams)
    known = rng.choice([1, 2, 3, 7], size=(150, 8))
    tokens = np.where(rng.random((150, 8)) < 0.8, known, rng.choice(TOKENS, size=(150, 8)))
    expected = plain_scores(grams, [[name_of(t) for t in row] for row in tokens.tolist()])
    scores = scores_of(model, tokens.astype(np.int32))
    for found, truth in zip(scores, expected, strict=True):
        np.testing.assert_allclose(found, truth, rtol=1e-5, atol=1e-5)


@pytest.mark.smoke
def test_token_ngrams_by_hand(read):
    text = "\\data\\\nngram 1=4\nngram 2=1\n\\1-grams:\n-9 <s> -1\n-2 </s>\n-.5 a -.25\n-3 <unk>\n"
    model = read(text + "\\2-grams:\n-.125 <s> a\n\\end\\", ["-", "a", "b"])
    scores, finals = scores_of(model, np.array([[1, 2], [2, 1]], np.int32))
    expected = np.array([[-0.125, -3.25], [-4.0, -0.5]]) * math.log(10)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    expected = np.array([[-3.0, -2.25, -2.0], [-3.0, -2.0, -2.25]]) * math.log(10)
    np.testing.assert_allclose(finals, expected, rtol=1e-6)


def spelt_words(tokens, names, separator):
    """The words of a sequence, the last of which may be unfinished or empty."""
    words = [""]
    for token in tokens:
        if token == separator:
            words.append("")
        else:
            words[-1] += names[token] if 0 <= token < len(names) and names[token] else "\0"
    return words


def plain_word_scores(grams, rows, names, separator):
    scores, finals = np.zeros((len(rows), len(rows[0]))), np.zeros((len(rows), len(rows[0]) + 1))
    for row, tokens in enumerate(rows):
        for end in range(len(tokens) + 1):
            *ended, last = spelt_words(tokens[:end], names, separator)
            hypothesis = PlainHypothesis(grams)
            each = [hypothesis.score(word) if word else 0.0 for word in ended]
            if end and tokens[end - 1] == separator:
                scores[row, end - 1] = each[-1]
            finals[row, end] = (hypothesis.score(last) if last else 0.0) + hypothesis.final()
    return scores, finals


SPELLINGS = {
    "letters": ([None, "|", "a", "b", "c"], ["a", "ab", "abc", "ba", "cab", "aé", "||", "<s>"]),
    # Many ways to spell one word, two ids of one name, pieces that begin no word, the blank's name.
    "pieces": (["b", "a", "ab", "bc", "c", "abc", "a", "", "ü"], ["abc", "abab", "bcü", "c", "ca"]),
    "one to one": ([None, "<space>", "one", "two"], ["one", "two", "onetwo", "<unk>"]),
}


@pytest.mark.parametrize(
    ("spelling", "order", "marks"),
    [*((name, 3, ALL_MARKS) for name in SPELLINGS), ("letters", 1, ()), ("pieces", 2, ())],
    ids=str,
)
def test_word_ngrams(read, spelling, order, marks):
    names, words = SPELLINGS[spelling]
    separator = names.index("") if "" in names else 1
    rng = np.random.default_rng(order)
    grams = random_grams(rng, order, [word for word in words if word not in marks], marks)
    model = read(arpa(grams, rng), names, separator=separator - len(names))
    assert isinstance(model, WordNGrams)
    tokens = rng.choice(len(names), size=(150, 12))
    tokens = np.where(rng.random(tokens.shape) < 0.25, separator, tokens)
    tokens = np.where(rng.random(tokens.shape) < 0.02, rng.choice(TOKENS), tokens)
    expected = plain_word_scores(grams, tokens.tolist(), names, separator)
    for found, truth in zip(scores_of(model, tokens.astype(np.int32)), expected, strict=True):
        np.testing.assert_allclose(found, truth, rtol=1e-5, atol=1e-5)


def test_gzip_whatever_the_name(read, rng):
    grams = random_grams(rng, 3, ["a", "b"], ALL_MARKS)
    text = arpa(grams, rng).encode()
    plain, zipped = read(text, ALPHABET), read(gzip.compress(text), ALPHABET)
    windows = read(text.replace(b"\n", b"\r\n"), ALPHABET)
    assert jax.tree.structure(plain) == jax.tree.structure(zipped)
    jax.tree.map(np.testing.assert_array_equal, plain, zipped)
    jax.tree.map(np.testing.assert_array_equal, plain, windows)


def test_sections_may_be_empty_and_probabilities_zero(read, rng):
    grams = {("a",): (-1.0, -0.5), ("b",): (-math.inf, 0.0), ("c",): (-1e300, 0.0)}
    model = read(arpa(grams, rng, order=3), ALPHABET)
    scores, finals = scores_of(model, np.array([[1, 2, 1, 3]], np.int32))
    expected, _ = plain_scores(grams, [["a", "b", "a", "b"]])
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    np.testing.assert_array_equal(finals, 0)


def test_unknown_log_prob(read, rng):
    grams = {("a",): (-1.0, -0.5), ("a", "a"): (-0.25, 0.0)}
    model = read(arpa(grams, rng), ALPHABET, unknown_log_prob=-7.0)
    scores, _ = scores_of(model, np.array([[1, 2, 2]], np.int32))
    np.testing.assert_allclose(scores[0], [-math.log(10), -7 - math.log(10) / 2, -7], rtol=1e-6)
    closed = read(arpa(grams, rng), ALPHABET, unknown_log_prob=-math.inf)
    np.testing.assert_array_equal(scores_of(closed, np.array([[2]], np.int32))[0], -math.inf)
    with_unknown = read(
        arpa(grams | {("<unk>",): (-2.0, 0.0)}, rng), ALPHABET, unknown_log_prob=-7.0
    )
    found = scores_of(with_unknown, np.array([[2]], np.int32))[0]
    np.testing.assert_allclose(found, -2 * math.log(10), rtol=1e-6)


GOOD = r"""
\data\
ngram 1=4
ngram 2=3
ngram 3=1

\1-grams:
-9 <s> -0.1
-2 </s>
-0.5 a -0.25
-3 b 0.5

\2-grams:
-1 <s> a -.1
-1 a b
-1 b </s>

\3-grams:
-1 <s> a b

\end\
"""


def changed(line, new):
    lines = GOOD.split("\n")
    lines[line - 1 : line] = [] if new is None else [new]
    return "\n".join(lines)


BAD_FILES = {
    "nothing": ("", 1, r"be there, as none so far is \end\; got the end of the file"),
    "no text at all": (bytes(range(256)) * 9, 11, "be there"),
    "no data": (changed(2, "data"), 22, "be there"),
    "no counts": (changed(3, r"\1-grams:"), 3, "be ngram 1=(a number)"),
    "another order": (changed(4, "ngram 3=3"), 4, "be ngram 2=(a number); got 'ngram 3=3'"),
    "the order again": (changed(4, "ngram 1=4"), 4, "be ngram 2=(a number)"),
    "no count": (changed(4, "ngram 2=three"), 4, "be ngram 2=(a number)"),
    "a negative count": (changed(4, "ngram 2=-3"), 4, "be ngram 2=(a number)"),
    "an endless count": (changed(4, "ngram 2=" + "9" * 5000), 4, "be ngram 2=(a number)"),
    "too many": (changed(4, "ngram 2=2147483647"), 4, "leave it at 2147483646 n-grams"),
    "no section": (changed(7, r"\2-grams:"), 7, r"be \1-grams:; got '\\2-grams:'"),
    "a section left out": (changed(13, "-1 <s> a"), 13, r"be \2-grams:"),
    "a section too many": (changed(21, "\\4-grams:\n"), 21, r"be \end\; got '\\4-grams:'"),
    "one less than declared": (changed(11, None), 11, "have number 4 of 4 1-grams, as declared"),
    "one more than declared": (changed(12, "-1 c"), 12, "end the 1-grams, of which 4 are declared"),
    "a blank line within": (changed(9, ""), 9, "have number 2 of 4 1-grams"),
    "too few fields": (changed(15, "-1 a"), 15, "have a log-probability, 2 words and perhaps a"),
    "too many fields": (changed(15, "-1 a b -1 b"), 15, "have a log-probability, 2 words and"),
    "a last back-off": (
        changed(19, "-1 <s> a b -1"),
        19,
        "have a log-probability, 3 words and no back-off",
    ),
    "no number": (changed(10, "a a -0.25"), 10, "have a log-probability in [-inf, 0]; got 'a a"),
    "NaN": (changed(10, "nan a -0.25"), 10, "have a log-probability in [-inf, 0]"),
    "a probability above 1": (changed(10, "0.5 a -0.25"), 10, "have a log-probability in"),
    "no back-off": (changed(10, "-0.5 a b"), 10, "have a back-off in [-1e+30, 1e+30]"),
    "an infinite back-off": (changed(10, "-0.5 a -inf"), 10, "have a back-off in [-1e+30, 1e+30]"),
    "a NaN back-off": (changed(10, "-0.5 a nan"), 10, "have a back-off in [-1e+30, 1e+30]"),
    "a word twice": (changed(11, "-3 a 0.5"), 11, "have another 1-gram than all lines before"),
    "a pair twice": (changed(16, "-2 a b"), 16, "have another 2-gram than all lines before"),
    "no such word": (changed(15, "-1 a x"), 15, "have words that are 1-grams; got '-1 a x'"),
    "no such context": (changed(19, "-1 b b b"), 19, "have first words that are a 2-gram"),
    "no UTF-8": (changed(10, "-0.5 ä").encode("latin1"), 10, r"be UTF-8; got '-0.5 \\xe4'"),
    "a long line": (changed(10, "-0.5 " + "a" * 70000), 10, "have at most 65536 bytes"),
    "no end": (changed(21, None), 21, "be there, as none so far is"),
    "text behind the end": (GOOD + "\n\nmore", 24, r"be empty, behind \end\; got 'more'"),
    "gzip cut off": (gzip.compress(GOOD.encode())[:-20], None, "be part of a sound gzip file"),
    "gzip with an end": (
        gzip.compress(GOOD.encode()) + b"more",
        22,
        "be part of a sound gzip file",
    ),
    "gzip garbled": (b"\x1f\x8bgarbled" * 9, 1, "be part of a sound gzip file"),
}


def test_the_file_that_is_not_bad(read):
    model = read(GOOD, ALPHABET)
    scores, finals = scores_of(model, np.array([[1, 2]], np.int32))
    np.testing.assert_allclose(scores[0], [-math.log(10)] * 2, rtol=1e-6)
    np.testing.assert_allclose(finals[0, -1], -math.log(10), rtol=1e-6)


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_refused(read, tmp_path, name):
    text, line, requirement = BAD_FILES[name]
    with pytest.raises(ValueError, match=r"^read_arpa: line") as error:
        read(text, ALPHABET)
    number = r"\d+" if line is None else line
    start = rf"read_arpa: line {number} of {re.escape(str(tmp_path))}/model.arpa must "
    assert re.match(start + re.escape(requirement), str(error.value)), error.value


def test_no_part_of_a_file_is_read(read):
    """Cut anywhere, or with any line left out or repeated."""
    whole = GOOD.rstrip().encode()
    lines = whole.split(b"\n")
    parts = [whole[:end] for end in range(len(whole))]
    for place, line in enumerate(lines):
        if line:
            parts.append(b"\n".join(lines[:place] + lines[place + 1 :]))
            parts.append(b"\n".join([*lines[:place], line, *lines[place:]]))
    for part in parts:
        with pytest.raises(ValueError, match=r"^read_arpa: line \d+ of "):
            read(part, ALPHABET)
    zipped = gzip.compress(whole)
    for end in range(18, len(zipped)):
        with pytest.raises(ValueError, match=r"line \d+ of .* must be part of a sound gzip file"):
            read(zipped[:end], ALPHABET)


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        ({"a": 0}, {}, "tokens must be a sequence of strings; got dict. They are the names"),
        (["a", 1], {}, "tokens must be a sequence of strings; got list"),
        (["x", None], {}, "tokens must name words of the file; got none that do. Words that tok"),
        (["x", "|"], {"separator": 1}, "tokens must name words of the file; got none that do."),
        (["a", "b"], {"separator": 2}, r"separator must be a class id in \[-2, 2\); got 2"),
        (["a", "b"], {"separator": "b"}, "separator must be a static integer"),
        (["a"], {"unknown_log_prob": math.nan}, "unknown_log_prob must be a number below inf"),
        (["a"], {"unknown_log_prob": math.inf}, "unknown_log_prob must be a number below inf"),
    ],
    ids=str,
)
def test_arguments_of_read_arpa(read, tokens, options, message):
    with pytest.raises(ValueError, match=f"^read_arpa: {message}"):
        read(GOOD, tokens, **options)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_arpa(tmp_path / "none", ["a"])


def occurrences(tokens, word):
    return sum(tokens[i : i + len(word)] == word for i in range(len(tokens) - len(word) + 1))


WORD_LISTS = [
    ["abc"],
    ["aa"],
    ["aaaa", "aa"],
    ["abab", "ab", "b"],
    ["ab", "abc", "bc", "c"],
    ["ab", "ab", "ba"],
    ["cabab", "abac", "bab", "baa"],
    [],
]


@pytest.mark.parametrize("words", WORD_LISTS, ids=lambda words: " ".join(words) or "none")
def test_hot_words_earn_a_bonus_for_each_occurrence(words):
    """Whatever has been paid in advance, exactly, over all strings."""
    rng = np.random.default_rng(len(words))
    bonuses = (rng.integers(-512, 2048, len(words)) / 256).tolist()
    ids = [["abc".index(letter) for letter in word] for word in words]
    model = hot_words(ids, bonuses)
    rows = list(itertools.product(range(4), repeat=6))
    scores, finals = scores_of(model, np.array(rows, np.int32))
    totals = np.cumsum(np.pad(scores, ((0, 0), (1, 0))), axis=1) + finals
    expected = [
        [
            sum(b * occurrences(row[:end], tuple(w)) for w, b in zip(ids, bonuses, strict=True))
            for end in range(7)
        ]
        for row in rows
    ]
    np.testing.assert_array_equal(totals, expected)
    np.testing.assert_array_less(finals, 1e-9, "a refund, never a second bonus")


def test_hot_words_are_paid_in_advance():
    model = hot_words([[1, 2, 3, 4], [2, 3]], [4.0, 6.0])
    scores, finals = scores_of(model, np.array([[1, 2, 3, 4], [1, 2, 2, 9]], np.int32))
    # The share of `2 3` is larger than that of the longer word that is under way, too.
    np.testing.assert_array_equal(scores, [[1, 2, 6, 1], [1, 2, 0, -3]])
    np.testing.assert_array_equal(finals, [[0, -1, -3, -3, 0], [0, -1, -3, -3, 0]])
    one, each = hot_words([[1, 2], [3]], 1), hot_words([[1, 2], [3]], np.ones(2, np.float32))
    jax.tree.map(np.testing.assert_array_equal, one, each)


def test_hot_words_of_any_bonus_leave_nothing_behind(rng):
    words = [rng.integers(0, 5, rng.integers(1, 6)).tolist() for _ in range(40)]
    bonuses = rng.normal(size=40) * 5
    tokens = rng.integers(0, 6, (50, 30)).astype(np.int32)
    scores, finals = scores_of(hot_words(words, bonuses), tokens)
    expected = [
        sum(b * occurrences(row, w) for w, b in zip(words, bonuses, strict=True))
        for row in tokens.tolist()
    ]
    np.testing.assert_allclose(np.sum(scores, axis=1) + finals[:, -1], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "bonus", "message"),
    [
        ([[1], []], 1.0, r"words must be lists of token ids, from 0 on; got \[\]"),
        ([[1, -1]], 1.0, r"words must be lists of token ids, from 0 on; got \[1, -1\]"),
        ([[2**31]], 1.0, "words must be lists of token ids, from 0 on"),
        (["ab"], 1.0, "a token of words must be a static integer; got 'a' of type str"),
        ([[1]], [1.0, 2.0], r"bonus must be a finite number, or one for each of 1 words; got \[1"),
        ([[1]], math.nan, "bonus must be a finite number, or one for each of 1 words; got nan"),
        ([[1]], [math.inf], "bonus must be a finite number, or one for each of 1 words"),
    ],
    ids=str,
)
def test_arguments_of_hot_words(words, bonus, message):
    with pytest.raises(ValueError, match=f"^hot_words: {message}"):
        hot_words(words, bonus)


@functools.cache
def small_models():
    """One of each kind, and tokens for it; the file is written to a pipe, which cannot seek."""
    models: dict[str, LanguageModel] = {"hot words": hot_words([[1, 2, 1], [2, 2]], 1.5)}
    for name, options in (("tokens", {}), ("words", {"separator": 2})):
        read_end, write_end = os.pipe()
        with open(write_end, "w") as file:
            file.write(GOOD)
        models[name] = read_arpa(f"/dev/fd/{read_end}", ALPHABET, **options)
        os.close(read_end)
    count = (jnp.zeros(3), lambda state, token: (-state[0], state + jnp.where(token > 1, 0.5, 0.0)))
    models["custom"] = as_language_model(count)
    return models


KINDS = ["hot words", "tokens", "words", "custom"]
STRINGS = np.array(list(itertools.product([1, 2, 3], repeat=3)), np.int32)


@pytest.mark.parametrize("kind", KINDS)
def test_eager_is_jit_is_vmap(kind):
    model = small_models()[kind]
    assert isinstance(model, LanguageModel)
    scores, finals = scores_of(model, STRINGS)
    state = model.initial_state
    for place, token in enumerate(STRINGS[4].tolist()):
        np.testing.assert_allclose(model.final_score(state), finals[4, place], rtol=1e-6)
        score, state = model.score_and_advance(state, token)
        np.testing.assert_allclose(score, scores[4, place], rtol=1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", KINDS[:3])
def test_nothing_in_64_bits(kind):
    model = small_models()[kind]
    state, token = model.initial_state, np.int32(1)
    for call in (model.score_and_advance, lambda state, _: model.final_score(state)):
        jaxpr = jax.make_jaxpr(call)(state, token).jaxpr
        assert not {dtype for dtype in dtypes(jaxpr) if dtype.endswith("64")}
    narrow, wide = (
        jax.eval_shape(model.score_and_advance, state, dtype(1)) for dtype in (np.int32, np.int64)
    )
    assert narrow == wide


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_an_argument(kind):
    """Another of the same shapes is not compiled again."""
    traces = []

    @jax.jit
    def first_score(model):
        traces.append(kind)
        return model.score_and_advance(model.initial_state, jnp.int32(1))[0]

    model = small_models()[kind]
    first_score(model)
    first_score(jax.tree.map(jnp.copy, model))
    assert traces == [kind]


def test_models_of_one_shape_can_be_stacked():
    models = [hot_words([[1, 2]], bonus) for bonus in (1.0, 3.0)]
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *models)
    scores, _ = jax.vmap(scores_of, in_axes=(0, None))(stacked, np.array([[1, 2]], np.int32))
    np.testing.assert_array_equal(scores[:, 0], [[0.5, 0.5], [1.5, 1.5]])


@pytest.mark.parametrize("kind", KINDS[:3])
def test_no_loop_that_data_ends(kind):
    text = str(jax.make_jaxpr(scores_of)(small_models()[kind], STRINGS))
    assert "while" not in text
    assert "callback" not in text
    assert "dot_general" not in text


def test_hypotheses_on_many_devices():
    """The model on each, the hypotheses shared out: nothing is exchanged."""
    program = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxctc.language_models import hot_words
mesh = jax.make_mesh((4,), ("b",))
everywhere, shared = NamedSharding(mesh, P()), NamedSharding(mesh, P("b"))
model = hot_words([[1, 2], [2, 1, 2]], 2.0)
step = lambda model, states, tokens: jax.vmap(model.score_and_advance)(states, tokens)
arguments = model, jnp.arange(8, dtype=jnp.int32) % 4, jnp.int32([1, 2] * 4)
plain = step(*arguments)
step = jax.jit(step, in_shardings=(everywhere, shared, shared), out_shardings=shared)
text = step.lower(*arguments).compile().as_text()
assert not any(word in text for word in ("all-", "collective", "reduce-scatter")), text
jax.tree.map(np.testing.assert_array_equal, plain, step(*arguments))
"""
    flags = "--xla_force_host_platform_device_count=4"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


class TestCustomModels:
    def test_parameters_by_partial(self):
        """A recurrent model, with arrays of its own and a vector for a state."""

        def advance(weights, state, token):
            state = jnp.tanh(weights * state + token.astype(jnp.float32))
            return -jnp.sum(jnp.abs(state)), state

        def first(state):
            return state[0]

        models = [
            as_language_model((jnp.ones(2), Partial(advance, jnp.float32(weight)), first))
            for weight in (0.5, 2.0)
        ]
        for model, weight in zip(models, (0.5, 2.0), strict=True):
            scores, finals = scores_of(model, np.array([[0]], np.int32))
            np.testing.assert_allclose(scores, [[-2 * math.tanh(weight)]], rtol=1e-6)
            np.testing.assert_allclose(finals, [[1, math.tanh(weight)]], rtol=1e-6)
        assert jax.tree.structure(models[0]) == jax.tree.structure(models[1])

    def test_nothing_at_the_end_unless_given(self):
        model = as_language_model((jnp.int32(0), lambda n, token: (jnp.float32(-1), n + 1)))
        assert model.final_score(model.initial_state) == 0

    def test_a_model_stays_as_it_is(self):
        for kind in KINDS[:3]:
            assert as_language_model(small_models()[kind]) is small_models()[kind]
        custom = as_language_model(CustomModel(0, lambda n, token: (jnp.float32(0), n + token)))
        again = as_language_model(custom)
        jax.tree.map(np.testing.assert_array_equal, custom, again)
        assert jax.tree.structure(custom) == jax.tree.structure(again)

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            (3, r"language_model must be a model, or a tuple \(initial_state, .*got int"),
            ((0,), "language_model must be a model, or a tuple .*got a tuple of 1"),
            ((0, 1), "language_model must be a model, or a tuple .*got a tuple of 2"),
            ((0, lambda s, t: s), r"score_and_advance must return a tuple \(log_prob, state\)"),
            ((0, lambda s, t: (t, s)), "score_and_advance must score with a floating number"),
            ((0, lambda s, t: (jnp.zeros(2), s)), "score_and_advance must score with a scalar"),
            ((0, lambda s, t: ((), s)), "score_and_advance must score with a scalar"),
            ((0, lambda s, t: (jnp.zeros(()), 1.0)), "score_and_advance must return a state like"),
            ((0, lambda s, t: (jnp.zeros(()), (s,))), "score_and_advance must return a state like"),
            (
                (jnp.zeros(2), lambda s, t: (s[0], s[:1])),
                "score_and_advance must return a state like",
            ),
            (
                (0, lambda s, t: (jnp.zeros(()), s), lambda s: s),
                "final_score must score with a floating number; got int32",
            ),
        ],
        ids=range(11),
    )
    def test_errors(self, model, message):
        with pytest.raises(ValueError, match=f"^beam: {message}"):
            as_language_model(model, function="beam")


def test_a_large_vocabulary(read):
    """Many words, some beginnings of others; buckets stay small."""
    rng = np.random.default_rng(5)
    letters = np.array(list(string.ascii_lowercase))
    words = {"".join(rng.choice(letters, rng.integers(1, 8))) for _ in range(3000)}
    grams = {(word,): (-float(rng.random()), 0.0) for word in sorted(words)}
    model = read(arpa(grams, rng), [" ", *letters.tolist()], separator=0)
    asked = [*sorted(words)[::10], *("".join(rng.choice(letters, 4)) for _ in range(50))]
    tokens = np.array([[ord(c) - 96 for c in word] + [0] * (8 - len(word)) for word in asked])
    scores, _ = scores_of(model, tokens.astype(np.int32))
    expected = [plain_score(grams, (), word) for word in asked]
    np.testing.assert_allclose(np.sum(scores, axis=1), expected, rtol=1e-6)
    assert model.spelling.probes.size < 10
    assert model.ngrams.probes.size < 10
