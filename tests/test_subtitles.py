"""Subtitle files, read back by other libraries."""

import itertools
import json
import math
import os
import re
import stat
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxctc import Span, format_spans, write_spans
from jaxctc.subtitles import FORMATS

AWKWARD = [
    Span(
        'He said "no" & <b>left</b>\n\n--> now',
        0.0,
        1.5,
        0.25,
        (Span("He", 0.0, 0.4, 0.9), Span("said", 0.5, 0.5, 0.8), Span('"no"', 0.5, 1.5, 0.25)),
    ),
    Span("", 1.5, 1.6),
    Span(" \n ", 1.6, 1.7),
    Span("two\r\nlines\u2028and more", 2.0, 3.0004),
    Span("zero", 3.0004, 3.0004),
    Span("late", 25 * 3600.0, 100 * 3600 + 61.2345, 1.0),
]
CUES = [
    (0, 1500, 'He said "no" & <b>left</b>\n--> now'),
    (2000, 3000, "two\nlines\nand more"),
    (3000, 3001, "zero"),
    (90_000_000, 360_061_234, "late"),
]


def read_srt(path):
    pysrt = pytest.importorskip("pysrt", reason="needs the extra `test`")
    for cue in pysrt.open(os.fspath(path), encoding="utf-8", error_handling=pysrt.ERROR_RAISE):
        yield cue.start.ordinal, cue.end.ordinal, cue.text


def read_vtt(path):
    webvtt = pytest.importorskip("webvtt", reason="needs the extra `test`")
    for cue in webvtt.read(path):
        times = (stamp.hours * 3600 + stamp.minutes * 60 + stamp.seconds for stamp in stamps(cue))
        start, end = (
            1000 * time + stamp.milliseconds for time, stamp in zip(times, stamps(cue), strict=True)
        )
        text = cue.raw_text  # which it leaves escaped
        for sign, escaped in (("<", "&lt;"), (">", "&gt;"), ("&", "&amp;")):
            text = text.replace(escaped, sign)
        yield start, end, text


def stamps(cue):
    return cue.start_time, cue.end_time


def tiers_of(path):
    textgrid = pytest.importorskip("praatio.textgrid", reason="needs the extra `test`")
    grid = textgrid.openTextgrid(os.fspath(path), includeEmptyIntervals=True)
    return grid, {tier.name: [tuple(entry) for entry in tier.entries] for tier in grid.tiers}


def read_ctm(path):
    return [line.split(" ") for line in path.read_text().splitlines()]


def test_srt(tmp_path):
    """It knows no escape for an arrow."""
    write_spans(tmp_path / "a.srt", AWKWARD)
    truth = [(start, end, text.replace("-->", "→")) for start, end, text in CUES]
    assert list(read_srt(tmp_path / "a.srt")) == truth


def test_vtt(tmp_path):
    write_spans(tmp_path / "a.vtt", AWKWARD)
    assert list(read_vtt(tmp_path / "a.vtt")) == CUES


def test_textgrid(tmp_path):
    """Intervals cover the whole recording, in order, with the quotes as they were."""
    write_spans(tmp_path / "a.TextGrid", AWKWARD, duration=400_000.0)
    grid, tiers = tiers_of(tmp_path / "a.TextGrid")
    assert (grid.minTimestamp, grid.maxTimestamp) == (0, 400_000)
    assert list(tiers) == ["lines", "words"]
    for entries in tiers.values():
        assert entries[0][0] == 0
        assert entries[-1][1] == 400_000
        for before, after in itertools.pairwise(entries):
            assert before[1] == after[0]
    spoken = [entry for entry in tiers["lines"] if entry[2].strip()]
    assert spoken == [
        (0, 1.5, 'He said "no" & <b>left</b>  --> now'),
        (2.0, 3.0, "two lines and more"),
        (3.0, 3.001, "zero"),
        (90_000, 360_061.234, "late"),
    ]
    words = [entry for entry in tiers["words"] if entry[2]]
    assert words == [(0, 0.4, "He"), (0.5, 0.501, "said"), (0.501, 1.5, '"no"')]


def test_ctm(tmp_path):
    """By fields: no word has a space, and empty ones are none."""
    write_spans(tmp_path / "my talk.ctm", AWKWARD)
    assert read_ctm(tmp_path / "my talk.ctm") == [
        ["my_talk", "1", "0.000", "0.400", "He", "0.900"],
        ["my_talk", "1", "0.500", "0.000", "said", "0.800"],
        ["my_talk", "1", "0.500", "1.000", '"no"', "0.250"],
        ["my_talk", "1", "2.000", "1.000", "two_lines_and_more"],
        ["my_talk", "1", "3.000", "0.000", "zero"],
        ["my_talk", "1", "90000.000", "270061.234", "late", "1.000"],
    ]


def test_json(tmp_path):
    """Nothing is lost but what is below a microsecond."""
    write_spans(tmp_path / "a.json", AWKWARD)

    def span(value):
        return Span(**value | {"parts": tuple(map(span, value.get("parts", ())))})

    text = (tmp_path / "a.json").read_text()
    assert [span(value) for value in json.loads(text)["spans"]] == AWKWARD
    rounded = format_spans([Span("ä", 0.1 + 0.2, 0.6)], "json")
    assert '"text": "ä"' in rounded
    assert '"start": 0.3,' in rounded


texts = st.text(
    st.sampled_from("ab 1\n\r\t\"'&<>-:,;→é\u2028\u0085\x0b#%{}\\/"), max_size=8
) | st.sampled_from(["-->", "1\n00:00:01,000 --> 00:00:02,000\nx", "NOTE x", "WEBVTT", '"', "&lt;"])


@st.composite
def lines(draw):
    spans, time = [], 0
    for _ in range(draw(st.integers(0, 5))):
        start = time + draw(st.integers(0, 3000))
        time = start + draw(st.integers(0, 100_000_000))
        spans.append(Span(draw(texts), start / 1000, time / 1000, None))
    return spans


@given(lines())
def test_any_text_stays_in_its_cue(tmp_path_factory, spans):
    """As many cues as texts, at their times, with their words."""
    folder = tmp_path_factory.mktemp("subtitles")
    said = [span for span in spans if span.text.strip()]
    for format, read in (("srt", read_srt), ("vtt", read_vtt)):
        write_spans(folder / f"a.{format}", spans)
        found = list(read(folder / f"a.{format}")) if said or format == "srt" else []
        assert [round(span.start * 1000) for span in said] == [cue[0] for cue in found]
        for span, (start, end, text) in zip(said, found, strict=True):
            assert end == max(round(span.end * 1000), start + 1)
            truth = span.text.replace("-->", "→") if format == "srt" else span.text
            assert text.split() == truth.split()


@given(lines())
def test_any_text_stays_in_its_interval(tmp_path_factory, spans):
    path = tmp_path_factory.mktemp("subtitles") / "a.textgrid"
    write_spans(path, spans)
    _, tiers = tiers_of(path)
    found = [entry[2].split() for entry in next(iter(tiers.values()))]
    assert [words for words in found if words] == [s.text.split() for s in spans if s.text.split()]


def test_a_textgrid_of_words_has_words(tmp_path):
    write_spans(tmp_path / "a.textgrid", [Span("to", 0.0, 0.5), Span("be", 0.5, 1.0)])
    assert list(tiers_of(tmp_path / "a.textgrid")[1]) == ["words"]


def test_nothing_is_a_file_too(tmp_path):
    assert format_spans([], "srt") == ""
    assert format_spans([], "vtt") == "WEBVTT\n"
    assert format_spans([], "ctm") == ""
    assert json.loads(format_spans([], "json")) == {"spans": []}
    write_spans(tmp_path / "a.textgrid", [], duration=2.0)
    assert tiers_of(tmp_path / "a.textgrid")[1] == {"lines": [(0, 2, "")]}


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.srt"
    write_spans(path, AWKWARD[:1])
    before = path.read_text()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_spans(path, AWKWARD)
    assert path.read_text() == before
    assert os.listdir(tmp_path) == ["a.srt"]


def test_permissions_are_the_usual_ones(tmp_path):
    """Not those of a temporary file; and those of the file that is replaced."""
    path, other = tmp_path / "a.srt", tmp_path / "b"
    other.touch()
    write_spans(path, AWKWARD)
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)
    path.chmod(0o600)
    write_spans(path, AWKWARD)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("times", [(-1.0, 1.0), (2.0, 1.0), (0.0, math.inf), (math.nan, 1.0)])
@pytest.mark.parametrize("format", FORMATS)
def test_times_must_be_times(format, times):
    requirement = r"spans must have times from 0 on, each ending no earlier than it starts; got"
    with pytest.raises(ValueError, match=requirement):
        format_spans([Span("a", *times)], format)
    with pytest.raises(ValueError, match=requirement):
        format_spans([Span("a", 0.0, 1.0, None, (Span("b", *times),))], format)


def test_what_is_no_span_is_named(tmp_path):
    one, nowhere = Span("be", 0.0, 1.0), cast(Any, [])
    with pytest.raises(
        ValueError, match=r"path must be the name of a file; got list\. The path co"
    ):
        write_spans(nowhere, [one])
    for wrong, name in [
        ([[one]], "list"),
        (one, "Span"),
        (np.ones(1), "ndarray"),
        (["be"], "str"),
    ]:
        with pytest.raises(ValueError, match=f"be a sequence of jaxctc.Span; got {name}. timed_sp"):
            write_spans(tmp_path / "a.srt", cast(Any, wrong))


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"path must end with .srt, .vtt.*got '.*a.txt'"):
        write_spans(tmp_path / "a.txt", [])
    with pytest.raises(ValueError, match=re.escape("format must be one of 'srt'")):
        format_spans([], "ass")
    with pytest.raises(ValueError, match="write_spans: format must be one of"):
        write_spans(tmp_path / "a.srt", [], format="ass")
    assert not list(tmp_path.iterdir())
