from typing import Any

import jax
import numpy as np
import pytest

from jaxctc import error_counts, format_errors


def ids(text):
    return np.array([ord(letter) for letter in text], np.int32)


LETTERS = [chr(code) for code in range(50_000)]


def report(hyp, ref, **options: Any):
    return format_errors(ids(hyp), None, ids(ref), None, names=LETTERS, **options)


@pytest.mark.smoke
def test_every_kind_of_error():
    assert report("abxdyf", "abcdefg") == "\n".join(
        [
            "3 errors in 7 tokens (2 substitutions, 0 insertions, 1 deletion)",
            "REF  a b c d e f g",
            "HYP  a b x d y f *",
            "         S   S   D",
        ]
    )


def test_words():
    assert report("a bcd  e", "a bc ef g", separator=ord(" ")) == "\n".join(
        [
            "3 errors in 4 words (2 substitutions, 0 insertions, 1 deletion)",
            "REF  a bc  ef g",
            "HYP  a bcd e  *",
            "       S   S  D",
        ]
    )


def test_one_side_empty():
    assert report("ab", "").splitlines()[1:] == ["REF  * *", "HYP  a b", "     I I"]
    assert report("", "ab").splitlines()[1:] == ["REF  a b", "HYP  * *", "     D D"]
    assert report("", "") == ""


def test_nothing_to_report():
    assert report("same", "same") == ""
    assert format_errors(np.zeros((0, 3), int), None, np.zeros((0, 2), int), None) == ""


def test_wide_and_combining_letters_stay_in_their_columns():
    lines = report("日x", "日本").splitlines()
    assert lines[1:] == ["REF  日 本", "HYP  日 x", "        S"]


def test_the_worst_come_first_and_padding_is_not_printed():
    hyp = np.array([[[1, 2, 3], [1, 1, 1], [4, 5, 6]]])
    ref = np.array([[[1, 2, 4], [2, 2, 2], [4, 5, 6]]])
    no_ref = np.array([[[0, 0, 0], [0, 0, 1], [0, 0, 0]]])
    text = format_errors(hyp, None, ref, no_ref)
    titles = [line.split(":")[0] for line in text.splitlines() if line.startswith("example")]
    assert titles == ["example 0, 1", "example 0, 0"]
    assert "REF  * 2 2\nHYP  1 1 1\n     I S S" in text
    assert format_errors(hyp, None, ref, no_ref, most=1) == text.split("\n\n")[0]


def test_lines_are_broken_where_they_are_full():
    lines = report("a" * 30, "b" + "a" * 29, width=20).splitlines()
    assert max(map(len, lines[1:])) <= 20
    assert "".join(line[4:].replace(" ", "") for line in lines if line[:3] == "REF") == (
        "b" + "a" * 29
    )
    assert [line.strip() for line in lines if not line.startswith(("REF", "HYP"))][1:] == ["S"]


def test_folded_classes_are_no_errors_and_print_as_they_came():
    fold = list(range(128))
    fold[ord("B")] = ord("b")
    assert report("aB", "ab", class_map=fold) == ""
    assert report("aBc", "abd", class_map=fold).splitlines()[1:3] == ["REF  a b d", "HYP  a B c"]
    assert report("a-x", "ay", ignored_ids=ids("-")).splitlines()[2] == "HYP  a x"


def test_marks_are_what_is_counted(rng):
    hyp, ref = rng.integers(0, 3, (20, 12)), rng.integers(0, 3, (20, 12))
    counts = error_counts(hyp, None, ref, None)
    text = format_errors(hyp, None, ref, None, most=20)
    marks = "".join(line for line in text.splitlines() if line.startswith("    "))
    totals = [int(count.sum()) for count in counts[:3]]
    assert [marks.count(mark) for mark in "SID"] == totals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": "abc"}, "names must be a sequence of strings; got one string. list"),
        ({"most": -1}, "most must be at least 0; got -1"),
        ({"width": 5}, "width must be at least 20; got 5"),
    ],
)
def test_errors_say_what_to_do(options, message):
    with pytest.raises(ValueError, match=message):
        format_errors(ids("a"), None, ids("b"), None, **options)


def test_traced_ids_are_refused():
    ids = np.zeros((1, 2), np.int32)
    with pytest.raises(ValueError, match=r"^format_errors: ref must .*call it outside of jit"):
        jax.jit(lambda ref: format_errors(ids, None, ref, None))(ids)
