"""Text to class ids and back."""

import itertools
import json
import unicodedata
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxctc
from jaxctc import Vocabulary

CHARACTERS = Vocabulary(["-", " ", *"abcdé'"], separator=" ")
BARS = Vocabulary(["<pad>", "<unk>", "|", *"ABE"], separator="|")
PIECES = Vocabulary(["▁ab", "▁", "a", "b", "ca", "▁c", "abc", "<blk>"], blank_id=-1, separator="▁")
PLAIN = Vocabulary(["-", "\n", " ", *"ab"])
BESIDE = Vocabulary(["-", *"abc"], separator="")


def texts_over(signs):
    return st.text(st.sampled_from(signs), max_size=12)


@pytest.mark.parametrize(
    ("vocabulary", "signs"),
    [(CHARACTERS, "abcdé' \t"), (BARS, "ABE \n"), (PIECES, "abc  ")],
    ids=["characters", "bars", "pieces"],
)
def test_round_trip(vocabulary, signs):
    """Up to white space, of which one is left between two words."""

    @given(texts_over(signs.replace("c", "ca" if vocabulary is PIECES else "c")))
    def check(text):
        encoded = vocabulary.encode(text, unknown="drop")
        if encoded.unknown:  # "c" alone within a word has no piece
            return
        assert vocabulary.decode(encoded.labels) == " ".join(text.split())
        assert vocabulary.words(encoded.labels) == text.split() == encoded.words

    check()


@given(texts_over("ab \n"))
def test_without_a_separator_every_character_counts(text):
    encoded = PLAIN.encode(text)
    assert PLAIN.decode(encoded.labels) == text
    assert len(encoded.labels) == len(text)


@given(texts_over("abc \n"))
def test_words_beside_each_other(text):
    """No label stands for white space, and `word_ids` know the words."""
    encoded = BESIDE.encode(text)
    assert encoded.words == text.split()
    assert BESIDE.decode(encoded.labels) == "".join(text.split())
    spelt = [
        BESIDE.decode(encoded.labels[encoded.word_ids == place])
        for place in range(len(encoded.words))
    ]
    assert spelt == encoded.words
    assert (BESIDE.separator_id, BESIDE.marks_words) == (None, False)


@given(texts_over("abc"))
def test_pieces_are_the_fewest(word):
    """Against all ways to cut the word."""
    marked = f"▁{word}"
    best = min(
        (sum(piece not in PIECES.tokens for piece in cut), len(cut))
        for cut in cuts(marked)
        if all(piece in PIECES.tokens or len(piece) == 1 for piece in cut)
    )
    encoded = PIECES.encode(word, unknown="drop")
    if word:
        assert (encoded.unknown.total(), len(encoded.labels)) == (best[0], best[1] - best[0])


def cuts(text):
    for size in range(len(text)):
        for places in itertools.combinations(range(1, len(text)), size):
            edges = [0, *places, len(text)]
            yield [text[a:b] for a, b in itertools.pairwise(edges)]


def test_the_longest_comes_first():
    assert PIECES.decode(PIECES.encode("abca").labels) == "abca"
    assert [PIECES.tokens[i] for i in PIECES.encode("abca").labels] == ["▁ab", "ca"]
    assert [PIECES.tokens[i] for i in PIECES.encode("cabc").labels] == ["▁c", "abc"]


def test_a_batch_is_its_texts_padded():
    texts = ["ab", "", "a b'"]
    batch = CHARACTERS.encode(texts)
    assert batch.labels.shape == (3, 4)
    assert batch.labels.dtype == batch.word_ids.dtype == np.int32
    np.testing.assert_array_equal(batch.label_paddings, batch.labels < 0)
    for row, text in enumerate(texts):
        alone = CHARACTERS.encode(text)
        in_use = ~batch.label_paddings[row]
        np.testing.assert_array_equal(batch.labels[row, in_use], alone.labels)
        np.testing.assert_array_equal(batch.word_ids[row, in_use], alone.word_ids)
        assert batch.words[row] == alone.words
    assert CHARACTERS.decode(batch.labels) == texts
    assert CHARACTERS.words(batch.labels) == [["ab"], [], ["a", "b'"]]
    assert CHARACTERS.encode([]).labels.shape == (0, 0)


def test_unknown_characters_raise():
    with pytest.raises(ValueError, match=r"'£' \(2 times\), '5' \(1 times\).*unknown=\"wildcard\""):
        CHARACTERS.encode(["£5", "a £"])
    with pytest.raises(ValueError, match=r"normalize=str.lower makes them known"):
        CHARACTERS.encode("ABBA")
    assert CHARACTERS.encode("ABBA", normalize=str.lower).words == ["ABBA"]


def test_unknown_characters_are_dropped_with_a_count():
    encoded = CHARACTERS.encode("£5 a£b 5", unknown="drop")
    assert CHARACTERS.decode(encoded.labels) == "ab"
    assert encoded.words == ["a£b"]
    assert encoded.unknown == {"£": 2, "5": 2}


def test_unknown_characters_become_wildcards_with_a_count():
    """One for several side by side, none across the border of a word."""
    encoded = CHARACTERS.encode("£5 a££b", unknown="wildcard")
    star = CHARACTERS.wildcard_id
    assert encoded.labels.tolist() == [star, 1, 2, star, 3]
    assert encoded.word_ids.tolist() == [0, -1, 1, 1, 1]
    assert encoded.unknown == {"£": 3, "5": 1}
    assert CHARACTERS.decode(encoded.labels) == "* a*b"


def test_open_ends_belong_to_no_word():
    encoded = CHARACTERS.encode(["a b", ""], open_ends=True)
    star = CHARACTERS.wildcard_id
    assert encoded.labels.tolist() == [[star, 2, 1, 3, star], [star, star, -1, -1, -1]]
    assert encoded.word_ids.tolist() == [[-1, 0, -1, 1, -1], [-1] * 5]


def test_special_tokens_spell_nothing():
    """Nor do the blank and the separator, whose signs in a text are unknown."""
    assert BARS.encode("<unk>|", unknown="drop").unknown.keys() == set("<unk>|")
    assert CHARACTERS.encode("a-b", unknown="drop").unknown == {"-": 1}
    assert BARS.decode([1, 3, 2, 0, 4]) == "<unk>A B"


def test_unicode_is_the_callers():
    """Composed and decomposed are two texts; so are the two cases."""
    decomposed = unicodedata.normalize("NFD", "é")
    assert len(CHARACTERS.encode("é").labels) == 1
    with pytest.raises(ValueError, match="must have a token for every character"):
        CHARACTERS.encode(decomposed)
    composed = CHARACTERS.encode(decomposed, normalize=lambda w: unicodedata.normalize("NFC", w))
    assert composed.labels.tolist() == CHARACTERS.encode("é").labels.tolist()
    assert composed.words == [decomposed]


def test_one_written_word_may_be_several_spoken_ones():
    read = {"4": "d cab"}
    for vocabulary in (CHARACTERS, Vocabulary(["-", "▁d", "▁c", "a", "b"], separator="▁")):
        encoded = vocabulary.encode("4 d", normalize=lambda word: read.get(word, word))
        assert vocabulary.decode(encoded.labels) == "d cab d"
        assert encoded.words == ["4", "d"]
        assert [
            label for label, word in zip(encoded.labels, encoded.word_ids, strict=True) if word == 0
        ] == vocabulary.encode("d cab").labels.tolist()


def test_names_are_for_reports():
    assert CHARACTERS.names == ("–", "␣", *"abcdé'", "*")
    left, right = CHARACTERS.encode(["ab c", "ab d"]).labels
    report = jaxctc.format_errors(left, None, right, None, names=CHARACTERS.names)
    assert "REF  a b ␣ d" in report


def test_words_are_those_of_word_spans():
    """The mark alone is a word, and pieces before the first mark are one."""
    for vocabulary, labels in (
        (PIECES, [2, 1, 0, 3, 5, 1, 4]),
        (CHARACTERS, [1, 1, 2, 3, 1, 4, 1]),
    ):
        hypothesis = jaxctc.greedy_decode(
            9.0 * np.eye(len(vocabulary.tokens))[np.repeat(labels, 2)][::2].astype(np.float32),
            None,
            blank_id=vocabulary.blank_id,
            label_loop=False,
        )
        assert hypothesis.labels.tolist() == labels
        found = jaxctc.word_spans(hypothesis, **vocabulary.word_options)
        assert int(found.counts) == len(vocabulary.words(labels))


def test_a_language_model_knows_the_tokens(tmp_path):
    path = tmp_path / "words.arpa"
    path.write_text("\\data\\\nngram 1=2\n\\1-grams:\n-1 ab\n-2 c\n\\end\\\n")
    vocabulary = CHARACTERS
    assert vocabulary.separator_id is not None
    model = jaxctc.read_arpa(path, vocabulary.tokens, separator=vocabulary.separator_id)
    state, total = model.initial_state, 0.0
    for label in vocabulary.encode("ab c").labels:
        score, state = model.score_and_advance(state, label)
        total += float(score)
    assert total + float(model.final_score(state)) == pytest.approx(-3 * np.log(10), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "content", "tokens"),
    [
        ("plain.txt", "-\n \na\n1\n", ["-", " ", "a", "1"]),
        ("windows.txt", "\ufeff-\r\n \r\na\r\n", ["-", " ", "a"]),
        ("empty blank.txt", "\na\nb", ["", "a", "b"]),
        ("icefall.txt", "<blk> 0\nb 2\n▁a 1\n  3\n", ["<blk>", "▁a", "b", " "]),
        ("sentencepiece.vocab", "<unk>\t0\n▁the\t-3.2\ns\t-4.5\n", ["<unk>", "▁the", "s"]),
        ("object.json", '{"b": 2, "<pad>": 0, "|": 1}', ["<pad>", "|", "b"]),
        ("array.json", '["-", "\\u00e9"]', ["-", "é"]),
    ],
)
def test_files(tmp_path, name, content, tokens):
    path = tmp_path / name
    path.write_bytes(content.encode())
    assert Vocabulary.from_file(path).tokens == tuple(tokens)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"{", "must be a list of tokens"),
        ("a.json", b'{"a": 0, "b": 2}', "2 tokens whose ids are not 0 to 1"),
        ("a.json", b"3", "a int of JSON"),
        ("a.json", b"[" * 10**6, "must be a list of tokens"),
        ("a.json", b"[1, 2]", "must be a sequence of strings"),
        ("a.txt", b"\xff\xfe", "can't decode byte"),
        ("a.txt", b"a\n\nb\n", "must have a name for every class but the blank"),
        ("a.txt", b"a\nb\na\n", "must differ; got 'a' 2 times"),
        ("a.txt", b"", "blank_id must be a class id"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Vocabulary.from_file(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Vocabulary("abc"), r"one string. list\('abc'\)"),
        (lambda tokens=[1, 2]: Vocabulary(tokens), "must be a sequence of strings; got list"),
        (lambda: Vocabulary(["-", "a"], blank_id=2), "blank_id must be a class id in"),
        (lambda: Vocabulary(["-", "a"], separator="|"), "got '|', which none is"),
        (
            lambda: Vocabulary(["-", "a"]).encode("a a"),
            r"got ' ' \(1 times\)\. If nothing .* separator=\"\"\)",
        ),
        (lambda: BESIDE.words([1]), "between words; got ''. Labels do not show where words begin"),
        (lambda: Vocabulary(cast(Any, {"-": 0})), r"got dict\. Those of ids by token are sorted\("),
        (lambda: PLAIN.words([1]), "Vocabulary.words: separator must be"),
        (lambda: PLAIN.word_options, "Vocabulary.word_options: separator must be"),
        (lambda: PLAIN.encode(cast(Any, 3)), "texts must be a string"),
        (
            lambda: PLAIN.encode("a", unknown=cast(Any, "ignore")),
            "unknown must be one of 'raise'",
        ),
        (lambda: PLAIN.decode([6]), "labels must be ids up to 5; got 6. There are 5 tokens"),
        (lambda: PLAIN.decode([0.5]), r"must be class ids \[\*B, N\]; got float64"),
        (lambda: PLAIN.decode(3), r"must have shape \[\*B, N\]"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_vocabulary_is_a_value():
    assert Vocabulary(["-", "a"]) == Vocabulary(("-", "a"), blank_id=-2)
    assert len({Vocabulary(["-", "a"]), Vocabulary(["-", "a"])}) == 1
    assert json.loads(json.dumps(CHARACTERS.tokens)) == list(CHARACTERS.tokens)
