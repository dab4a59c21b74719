"""An alignment of hypothesis and reference for a person to read."""

import math
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import starmap
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Int, Shaped

from jaxctc._core import checks
from jaxctc.metrics import error_rates, levenshtein
from jaxctc.metrics.levenshtein import TokenSequence


def format_errors(
    hyp: Int[ArrayLike, "*B L"],
    hyp_paddings: Shaped[ArrayLike, "*B L"] | None,
    ref: Int[ArrayLike, "*B M"],
    ref_paddings: Shaped[ArrayLike, "*B M"] | None,
    *,
    names: Sequence[str] | None = None,
    most: int = 10,
    width: int = 100,
    separator: int | None = None,
    class_map: Int[ArrayLike, "K"] | Sequence[int] | None = None,
    ignored_ids: Int[ArrayLike, "I"] | Sequence[int] | None = None,
) -> str:
    """The worst examples of a batch, reference above hypothesis, with every error marked.

    S marks a substitution, I an insertion, D a deletion; the counts are those of `error_counts`.
    It looks at values, so it is for the host.

    Args:
      hyp, hyp_paddings, ref, ref_paddings: as of `edit_distance`.
      names: what to print for the ids 0, 1, …; None, and ids beyond it, print numbers.
      most: how many examples to print, those with the most errors first; examples without
        errors are never printed.
      width: columns to fill before a line is broken.
      separator, class_map, ignored_ids: as of `edit_distance`. Names are those of the ids as
        they come; tokens that are dropped are not printed.

    Returns:
      The text, without a newline at its end; "" if there is no error at all.

    Raises:
      ValueError: as `edit_distance`; also if `names` is one string, `most` is negative or
        `width` is less than 20.

    Example:
      >>> hyp, ref = [[2, 9, 4, 5]], [[2, 3, 4, 5, 5]]
      >>> print(format_errors(hyp, None, ref, None, names="a b c d e f g h i j".split()))
      example 0: 2 errors in 5 tokens (1 substitution, 0 insertions, 1 deletion)
      REF  c d e f f
      HYP  c j e * f
             S   D
    """
    if isinstance(names, str):
        remedy = f"list({names[:9]!r}) has one name per character."
        checks.fail("format_errors", "names", "be a sequence of strings", "one string", remedy)
    most = checks.count("format_errors", "most", most)
    width = checks.count("format_errors", "width", width, least=20)
    options = error_rates.Units(separator, class_map, ignored_ids)
    given = {"hyp": hyp, "hyp_paddings": hyp_paddings, "ref": ref, "ref_paddings": ref_paddings}
    hyp, hyp_paddings, ref, ref_paddings = starmap(_on_the_host, given.items())
    sides = error_rates.units("format_errors", hyp, hyp_paddings, ref, ref_paddings, options)
    by_words = separator is not None
    found = levenshtein.distance_and_partners(*sides, by_words=by_words)
    distances, partners = jax.device_get(found)
    partners = partners.reshape(distances.size, partners.shape[-1])
    hyps, refs = _units(hyp, sides[0], names), _units(ref, sides[1], names)
    paragraphs = []
    for row in np.argsort(-distances.ravel(), kind="stable")[:most]:
        if distances.ravel()[row] > 0:
            columns = list(_columns(hyps[row], refs[row], partners[row]))
            place = ", ".join(str(axis) for axis in np.unravel_index(row, distances.shape))
            title = f"example {place}: " if place else ""
            title += _summary(columns, "token" if separator is None else "word")
            paragraphs.append("\n".join([title, *_lines(columns, width)]))
    return "\n\n".join(paragraphs)


def _on_the_host(argument: str, values: Any) -> Any:
    """What devices have, brought here; all else as it is."""
    if not isinstance(values, Array):
        return values
    return checks.host_array("format_errors", argument, values, "be an array")


class _Unit(NamedTuple):
    """A token or a word on the host."""

    end: int
    """The place of its last token."""
    classes: tuple[int, ...]
    """What is compared."""
    text: str


class _Column(NamedTuple):
    """One step of an alignment, as it is printed."""

    ref: str
    hyp: str
    mark: str


def _units(ids: ArrayLike, side: TokenSequence, names: Sequence[str] | None) -> list[list[_Unit]]:
    """The units of every example, in their order."""
    *batch, length = side.tokens.shape
    shape = (math.prod(batch), length)
    parts = (part.reshape(shape) for part in jax.device_get(side))
    rows = zip(*parts, strict=True)
    written = np.asarray(ids).reshape(shape)
    return [
        list(_units_of(row, TokenSequence(*side), names))
        for row, side in zip(written, rows, strict=True)
    ]


def _units_of(ids: np.ndarray, side: TokenSequence, names: Sequence[str] | None) -> Iterator[_Unit]:
    classes, text = (), ""
    for place in map(int, np.flatnonzero(side.used)):
        token = int(ids[place])
        name = names[token] if names is not None and 0 <= token < len(names) else str(token)
        begun = ((), "") if side.firsts[place] else (classes, text)
        classes, text = (*begun[0], int(side.tokens[place])), begun[1] + name
        if side.lasts[place]:
            yield _Unit(place, classes, text)


def _columns(hyp: list[_Unit], ref: list[_Unit], partners: np.ndarray) -> Iterator[_Column]:
    """The alignment from its start: partners together, and stars for what is missing."""
    references = iter(ref)
    for unit in hyp:
        if partners[unit.end] < 0:
            yield _Column(_stars(unit), unit.text, "I")
            continue
        for other in references:
            if other.end == partners[unit.end]:
                yield _Column(other.text, unit.text, "" if other.classes == unit.classes else "S")
                break
            yield _Column(other.text, _stars(other), "D")
    for other in references:
        yield _Column(other.text, _stars(other), "D")


def _stars(unit: _Unit) -> str:
    return "*" * max(1, _cells(unit.text))


def _summary(columns: list[_Column], unit: str) -> str:
    marks = [column.mark for column in columns]
    counts = [
        _number(marks.count(mark), name)
        for mark, name in (("S", "substitution"), ("I", "insertion"), ("D", "deletion"))
    ]
    errors = _number(sum(mark != "" for mark in marks), "error")
    length = _number(len(marks) - marks.count("I"), unit)
    return f"{errors} in {length} ({', '.join(counts)})"


def _number(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def _lines(columns: list[_Column], width: int) -> Iterator[str]:
    """REF, HYP and the marks, in as many pieces as the width demands."""
    piece: list[_Column] = []
    filled = len("REF ")
    for column in columns:
        cells = 1 + max(_cells(text) for text in column)
        if piece and filled + cells > width:
            yield from _piece(piece)
            piece, filled = [], len("REF ")
        piece.append(column)
        filled += cells
    yield from _piece(piece)


def _piece(columns: list[_Column]) -> Iterator[str]:
    widths = [max(_cells(text) for text in column) for column in columns]
    for title, texts in zip(("REF", "HYP", "   "), zip(*columns, strict=True), strict=True):
        cells = (
            text + " " * (size - _cells(text)) for text, size in zip(texts, widths, strict=True)
        )
        line = f"{title}  {' '.join(cells)}".rstrip()
        if line:  # a piece without errors has no third line
            yield line


def _cells(text: str) -> int:
    """Columns of a terminal that the text takes."""
    return sum(
        0 if unicodedata.combining(sign) else 2 if unicodedata.east_asian_width(sign) in "WF" else 1
        for sign in text
    )
