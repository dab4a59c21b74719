"""Spans in the formats that players, editors and scoring tools read: SRT, VTT, TextGrid, CTM, JSON.

Each format has its own idea of what a text may hold, and what does not fit is replaced as its
function says; nothing that is written ends a cue or a field too early.
"""

import html
import json
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxctc._core import checks
from jaxctc.spans import Span

FORMATS = ("srt", "vtt", "textgrid", "ctm", "json")


def format_spans(
    spans: Sequence[Span], format: str, *, duration: float | None = None, recording: str = "audio"
) -> str:
    """The text of a file in one of five formats.

    SRT and VTT have a cue for each span that has text; empty lines within a text, which would end
    the cue, are left out. SRT cannot say "-->" in a text, and gets "→"; VTT escapes `&`, `<` and
    `>`. A TextGrid has a tier "lines" of the spans and, if any have parts, a tier "words" of these;
    spans that are all single words are a tier "words" alone. Line breaks become spaces, and an
    interval that overlaps the one before begins where it ends.
    CTM has a line for each part, and for each span without parts, that has text; white space
    within a text becomes "_". JSON has an object with `spans`, as they are, parts within them.

    Cues and intervals without length get a millisecond, which the formats demand. Times are
    rounded to milliseconds, in JSON to microseconds, and hours go on after 24.

    Args:
      spans: of `timed_spans` or `group_spans`, in the order of their times.
      format: "srt", "vtt", "textgrid", "ctm" or "json".
      duration: seconds of the whole recording, which a TextGrid ends with; None ends it with the
        last span.
      recording: its name, the first field of every line of a CTM file.

    Returns:
      The text, which ends with a newline.

    Raises:
      ValueError: if `spans` are no sequence of `Span`, if the format is none of these, or times
        are not finite numbers from 0 on, or end before they begin.

    Example:
      >>> print(format_spans([Span("To be,", 0.5, 1.25), Span("or not", 1.5, 90000.0)], "srt"))
      1
      00:00:00,500 --> 00:00:01,250
      To be,
      <BLANKLINE>
      2
      00:00:01,500 --> 25:00:00,000
      or not
      <BLANKLINE>

    References:
      W3C, "WebVTT: the web video text tracks format"; Praat manual, "TextGrid file formats"; NIST
      SCTK, "ctm" input format of sclite.
    """
    checks.choice("format_spans", "format", format, FORMATS)
    _check_kind(spans)
    checked = list(spans)
    _check_times(checked)
    if format == "srt":
        return "\n".join(_srt(checked))
    if format == "vtt":
        return "\n".join(["WEBVTT\n", *_vtt(checked)])
    if format == "ctm":
        return "".join(_ctm(checked, "_".join(recording.split()) or "_"))
    if format == "json":
        found = {"spans": [as_object(span) for span in checked]}
        return json.dumps(found, ensure_ascii=False, indent=2) + "\n"
    return "\n".join(_textgrid(checked, duration or 0.0))


def write_spans(
    path: str | os.PathLike[str],
    spans: Sequence[Span],
    *,
    format: str | None = None,
    duration: float | None = None,
    recording: str | None = None,
) -> None:
    """Writes spans to a file, whole or not at all.

    The text goes to a file beside it first, which then takes its place.

    Args:
      path: the file; one that exists is replaced.
      spans: as of `format_spans`.
      format: as there; None takes the one that the name ends with, capitals or not.
      duration: as there.
      recording: as there; None is the name of the file without its ending.

    Raises:
      ValueError: as `format_spans`, or if the name does not end with a format.
      OSError: if the file cannot be written.

    Example:
      >>> from tempfile import TemporaryDirectory
      >>> with TemporaryDirectory() as folder:
      ...     write_spans(f"{folder}/speech.ctm", [Span("be", 0.5, 0.75, 0.9)])
      ...     print(Path(folder, "speech.ctm").read_text(), end="")
      speech 1 0.500 0.250 be 0.900
    """
    if not isinstance(path, str | os.PathLike):
        remedy = "The path comes first, then the spans."
        checks.fail("write_spans", "path", "be the name of a file", type(path).__name__, remedy)
    name = format_of("write_spans", path) if format is None else format
    text = format_spans(
        spans,
        checks.choice("write_spans", "format", name, FORMATS),
        duration=duration,
        recording=Path(path).stem if recording is None else recording,
    )
    write_whole(path, text)


def format_of(function: str, path: str | os.PathLike[str]) -> str:
    """The format that the name of a file ends with."""
    ending = Path(path).suffix.removeprefix(".").lower()
    if ending not in FORMATS:
        requirement = f"end with {', '.join(f'.{known}' for known in FORMATS)}"
        checks.fail(function, "path", requirement, repr(os.fspath(path)))
    return ending


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Writes a file in UTF-8 such that nobody ever sees a part of it."""
    target = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with open(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.chmod(temporary, _usual_mode(target))
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def _usual_mode(target: Path) -> int:
    """The permissions of the file that is replaced, or those of any new file."""
    if target.exists():
        return target.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _check_kind(spans: Any) -> None:
    other = type(spans).__name__
    if isinstance(spans, Sequence) and not hasattr(spans, "_fields"):
        other = next((type(span).__name__ for span in spans if not isinstance(span, Span)), "")
    if other:
        remedy = "timed_spans makes them of words or labels; for a batch, write one example."
        checks.fail("format_spans", "spans", "be a sequence of jaxctc.Span", other, remedy)


def _check_times(spans: Sequence[Span]) -> None:
    for span in spans:
        if not 0 <= span.start <= span.end < math.inf:
            requirement = "have times from 0 on, each ending no earlier than it starts"
            got = f"{span.start} to {span.end} for {span.text!r}"
            checks.fail("format_spans", "spans", requirement, got)
        _check_times(span.parts)


def _srt(spans: list[Span]) -> Iterator[str]:
    shown = [(span, text) for span in spans if (text := _lines(span.text))]
    for number, (span, text) in enumerate(shown, 1):
        yield f"{number}\n{_cue_times(span, ',')}\n{text.replace('-->', '→')}\n"


def _vtt(spans: list[Span]) -> Iterator[str]:
    for span in spans:
        if text := _lines(span.text):
            yield f"{_cue_times(span, '.')}\n{html.escape(text, quote=False)}\n"


def _lines(text: str) -> str:
    """The lines that have something in them: an empty one would end the cue."""
    return "\n".join(line for line in text.replace("\0", "\ufffd").splitlines() if line.strip())


def _cue_times(span: Span, point: str) -> str:
    start, end = _milliseconds(span)
    return f"{_clock(start, point)} --> {_clock(end, point)}"


def _milliseconds(span: Span) -> tuple[int, int]:
    start = round(span.start * 1000)
    return start, max(round(span.end * 1000), start + 1)


def _clock(milliseconds: int, point: str) -> str:
    seconds, thousandths = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{point}{thousandths:03}"


def _ctm(spans: Sequence[Span], recording: str) -> Iterator[str]:
    for span in spans:
        if span.parts:
            yield from _ctm(span.parts, recording)
            continue
        if word := "_".join(span.text.split()):
            start, end = (round(time * 1000) for time in (span.start, span.end))
            fields = [recording, "1", f"{start / 1000:.3f}", f"{(end - start) / 1000:.3f}", word]
            if span.confidence is not None:
                fields.append(f"{span.confidence:.3f}")
            yield " ".join(fields) + "\n"


def as_object(span: Span) -> dict[str, object]:
    """A span as JSON has it."""
    found: dict[str, object] = {
        "text": span.text,
        "start": round(float(span.start), 6),
        "end": round(float(span.end), 6),
        "confidence": None if span.confidence is None else round(span.confidence, 6),
    }
    if span.parts:
        found["parts"] = [as_object(part) for part in span.parts]
    return found


def _textgrid(spans: list[Span], duration: float) -> Iterator[str]:
    """The long form, with empty intervals where nothing is said."""
    parts = [part for span in spans for part in span.parts]
    are_words = bool(spans) and not parts and all(len(span.text.split()) < 2 for span in spans)
    tiers = {"words" if are_words else "lines": _intervals(spans)}
    if parts:
        tiers["words"] = _intervals(parts)
    ends = [intervals[-1][1] for intervals in tiers.values() if intervals]
    whole = max([1, round(duration * 1000), *ends])
    yield 'File type = "ooTextFile"\nObject class = "TextGrid"\n'
    yield f"xmin = 0 \nxmax = {_decimal(whole)} \ntiers? <exists> \nsize = {len(tiers)} \nitem []: "
    for number, (name, intervals) in enumerate(tiers.items(), 1):
        filled = list(_without_gaps(intervals, whole))
        yield f'    item [{number}]:\n        class = "IntervalTier" \n        name = "{name}" '
        yield f"        xmin = 0 \n        xmax = {_decimal(whole)} "
        yield f"        intervals: size = {len(filled)} "
        for place, (start, end, text) in enumerate(filled, 1):
            yield f"        intervals [{place}]:"
            yield f"            xmin = {_decimal(start)} \n            xmax = {_decimal(end)} "
            yield f'            text = "{text}" '
    yield ""


def _intervals(spans: Sequence[Span]) -> list[tuple[int, int, str]]:
    """Start and end in milliseconds, each after the one before, and the text in quotes' reach."""
    intervals, free = [], 0
    for span in spans:
        start, end = _milliseconds(span)
        start = max(start, free)
        free = max(end, start + 1)
        intervals.append((start, free, " ".join(span.text.splitlines()).replace('"', '""')))
    return intervals


def _without_gaps(
    intervals: list[tuple[int, int, str]], whole: int
) -> Iterator[tuple[int, int, str]]:
    before = 0
    for start, end, text in [*intervals, (whole, whole, "")]:
        if start > before:
            yield before, start, ""
        if end > start:
            yield start, end, text
        before = end


def _decimal(milliseconds: int) -> str:
    return f"{milliseconds // 1000}.{milliseconds % 1000:03}"
