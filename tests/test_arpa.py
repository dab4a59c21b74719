"""Files of n-grams against plain dictionaries, and files that must not be read."""

import gzip
import math
import re
import string
import tracemalloc

import chex
import numpy as np
import pytest
from ngrams import (
    ALPHABET,
    GOOD,
    TOKENS,
    PlainHypothesis,
    arpa,
    plain_score,
    plain_scores,
    random_grams,
    scores_of,
)

from jaxctc.decoding.arpa import TokenNGrams, WordNGrams, read_arpa, read_ngrams, word_ngrams
from jaxctc.decoding.memory import Memory


@pytest.fixture
def read(tmp_path):
    def read(text, *arguments, **options):
        path = tmp_path / "model.arpa"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_arpa(path, *arguments, **options)

    return read


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
    chex.assert_trees_all_equal(plain, zipped, windows)


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
    "an underscore": (changed(10, "-0_5 a -0.25"), 10, "have a log-probability in [-inf, 0]; got"),
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
    "text after the end": (GOOD + "\n\nmore", 24, r"be empty, after \end\; got 'more'"),
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
        (["a", "b"], {"separator": "c"}, "separator must begin some token; got 'c'"),
        (["a", "b"], {"separator": 1.0}, "separator must be a static integer"),
        (["a"], {"unknown_log_prob": math.nan}, "unknown_log_prob must be a number below inf"),
        (["a"], {"unknown_log_prob": math.inf}, "unknown_log_prob must be a number below inf"),
        (["a"], {"max_bytes": 1e9}, "max_bytes must be a static integer"),
    ],
    ids=str,
)
def test_arguments_of_read_arpa(read, tokens, options, message):
    with pytest.raises(ValueError, match=f"^read_arpa: {message}"):
        read(GOOD, tokens, **options)


def peak_of(call):
    """Bytes that Python and NumPy hold at most meanwhile."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("words", "pairs", "length"),
    [(4000, 0, 3), (300, 5000, 3), (40, 0, 2000)],
    ids=["words", "pairs", "long words"],
)
@pytest.mark.parametrize("is_spelt", [False, True])
def test_the_memory_that_reading_takes(tmp_path, rng, words, pairs, length, is_spelt):
    """It is what was counted before, or less, but for what any file takes."""
    letters = rng.choice(list(string.ascii_lowercase), size=(words, length))
    known = sorted({"".join(row) for row in letters})
    grams = {(word,): (-1.0, 0.0) for word in known}
    grams |= {tuple(pair): (-1.0, 0.0) for pair in rng.choice(known, size=(pairs, 2)).tolist()}
    path = tmp_path / "model.arpa"
    path.write_text(arpa(grams, rng))
    names = [b"", *(letter.encode() for letter in string.ascii_lowercase)]
    memory = Memory(str(path), 2**40)

    def read():
        ngrams = read_ngrams(path, memory)
        if is_spelt:
            word_ngrams(ngrams, names, np.arange(len(names)) == 0, -100.0, memory)
        else:
            ngrams.automaton(-100.0)

    peak = peak_of(read)
    assert peak - 200_000 < memory.taken < 3 * peak
    if is_spelt:
        tokens = [name.decode() for name in names]
        read_arpa(path, tokens, separator=0, max_bytes=memory.taken)
        with pytest.raises(ValueError, match=rf"max_bytes must be at least {memory.taken} to read"):
            read_arpa(path, tokens, separator=0, max_bytes=memory.taken - 1)


def test_a_file_that_asks_for_much_memory(read):
    """A few bytes must not make gigabytes of themselves."""

    def refused(text, requirement, **options):
        with pytest.raises(ValueError, match=f"^read_arpa: max_bytes must be {requirement}"):
            read(text, ["a", "|"], **options)

    much = "at least 10000002000 to read the 20000004 n-grams of .*; got 4294967296. Pass more if"
    assert peak_of(lambda: refused(changed(3, "ngram 1=20000000"), much)) < 1e6
    words = [f"{place}{'a' * 9000}" for place in range(100)]
    text = arpa(
        {("a" * 5000 + word,): (-1.0, 0.0) for word in [*words, ""]}, np.random.default_rng()
    )
    text = gzip.compress(text.encode())
    assert len(text) < 30_000
    assert peak_of(lambda: refused(text, "at least .* to read the words of", max_bytes=10**6)) < 2e6
    limit = {"max_bytes": 10**7, "separator": 1}
    assert peak_of(lambda: refused(text, "at least .* to read the spellings of", **limit)) < 1.5e7


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_arpa(tmp_path / "none", ["a"])


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
    assert model.spelling.probes < 10
    assert model.ngrams.probes < 10


def test_a_mark_that_begins_words(read):
    """As a separator between words, which is what its next word's first token stands for."""
    text = (
        "\\data\\\nngram 1=5\nngram 2=2\n\n\\1-grams:\n-1.0 <unk>\n-99 <s> -0.3\n-0.8 </s>\n"
        "-0.5 a -0.2\n-0.9 ab -0.4\n\n\\2-grams:\n-0.2 <s> ab\n-0.6 ab a\n\n\\end\\\n"
    )
    between = read(text, ["", "a", "b", "|"], separator=3)
    marked = read(text, ["", "▁a", "b", "▁", "a"], separator="▁")
    for one, other in (
        ((1, 2, 3, 1), (1, 2, 1)),  # ab a
        ((1, 2, 3, 1), (3, 4, 2, 1)),  # ▁ alone
        ((2, 3, 1), (3, 2, 1)),  # b, which is unknown
        ((), ()),
    ):
        worth = []
        for model, tokens in ((between, one), (marked, other)):
            total, state = 0.0, model.initial_state
            for token in tokens:
                score, state = model.score_and_advance(state, token)
                total += float(score)
            worth.append(total + float(model.final_score(state)))
        assert worth[0] == pytest.approx(worth[1], rel=1e-6)
