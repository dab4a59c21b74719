"""Pictures of posteriors, alignments and error rates, in an `Axes` of Matplotlib.

Matplotlib is imported when a function is called, and is no dependency: the extra `plot` brings it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Shaped

from jaxctc._core import checks
from jaxctc.alignment import Alignment
from jaxctc.metrics.error_rates import ErrorCounts
from jaxctc.posteriors import Posteriors
from jaxctc.spans import Span

_MOST_NAMES = 60
"""Rows up to which each has its name."""


def plot_posteriors(
    posteriors: Posteriors | Float[ArrayLike, "T K"],
    logit_paddings: Shaped[ArrayLike, "T"] | None = None,
    labels: Int[ArrayLike, "N"] | None = None,
    label_paddings: Shaped[ArrayLike, "N"] | None = None,
    *,
    names: Sequence[str] | None = None,
    ax: Any = None,
    frame_seconds: float | None = None,
    offset: float = 0.0,
) -> Any:
    """Draws how likely each class or label is in each frame: a row each, brighter is likelier.

    Args:
      posteriors: of one example: what `posteriors` returns, the blank in the first row and each
        label in one of its own; or probabilities of all classes `[T, K]`, a row for each.
      logit_paddings: nonzero where padded; such frames are left out, wherever they are.
      labels: class ids of the labels; of use with `Posteriors`, and required there for names.
      label_paddings: nonzero where padded; such labels get no row.
      names: what to call the ids 0, 1, …, such as `Vocabulary.names`; None writes numbers.
      ax: an `Axes` of Matplotlib to draw in; None takes the current one.
      frame_seconds: seconds from one frame to the next; None counts frames.
      offset: seconds at which the first frame begins.

    Returns:
      The `Axes`.

    Raises:
      ValueError: if shapes disagree or there is a batch axis, or `frame_seconds` is not positive.
      ImportError: without Matplotlib.

    Example:
      >>> from matplotlib.figure import Figure
      >>> ax = plot_posteriors(np.eye(3)[[0, 1, 1, 2]], names="–ab", ax=Figure().subplots())
      >>> [label.get_text() for label in ax.get_yticklabels()], ax.get_xlabel()
      (['–', 'a', 'b'], 'frame')
    """
    function = "plot_posteriors"
    ax, time = _axes(function, ax), _time(function, frame_seconds, offset)
    if isinstance(posteriors, Posteriors):
        table, rows = _label_rows(function, posteriors, labels, label_paddings, names)
    else:
        table = _numbers(function, "posteriors", posteriors, 2, "[T, K]")
        rows = [_name(names, place) for place in range(table.shape[1])]
    table = table[_in_use(function, "logit_paddings", logit_paddings, len(table))]
    _draw_table(ax, table, time)
    _name_rows(ax, rows)
    _label_time(ax, time)
    return ax


def plot_alignment(
    alignment: Alignment,
    labels: Int[ArrayLike, "N"],
    label_paddings: Shaped[ArrayLike, "N"] | None = None,
    *,
    posteriors: Posteriors | None = None,
    signal: Shaped[ArrayLike, "S"] | Shaped[ArrayLike, "S F"] | None = None,
    words: Sequence[Span] = (),
    names: Sequence[str] | None = None,
    ax: Any = None,
    frame_seconds: float | None = None,
    offset: float = 0.0,
) -> Any:
    """Draws the best alignment as a path through the labels, with what was heard or seen above.

    Args:
      alignment: of one example, by `forced_align`.
      labels: what was aligned.
      label_paddings: nonzero where padded; such labels get no row.
      posteriors: of the same example; drawn under the path.
      signal: what the frames in use were made of, drawn above the path in an `Axes` of its own,
        over the same time, with the frames of each label in colour: a waveform, or an image or
        features, a row of the array for each column of the picture.
      words: spans to show below the path: of `timed_spans` with the same `frame_seconds` and
        `offset`, or with `frame_seconds=1` where frames are counted.
      names, ax, frame_seconds, offset: as of `plot_posteriors`.

    Returns:
      The `Axes` of the path; that of the signal is the first of its `child_axes`. Labels
      without frames are not on the path; there is none where labels cannot be aligned.

    Raises:
      ValueError: if shapes disagree or there is a batch axis, or `frame_seconds` is not positive.
      ImportError: without Matplotlib.

    Example:
      >>> from jaxctc import forced_align
      >>> from matplotlib.figure import Figure
      >>> labels = np.array([2, 1])
      >>> best = forced_align(9.0 * np.eye(3)[[0, 2, 2, 0, 1]], None, labels, None)
      >>> ax = plot_alignment(best, labels, names="–ab", ax=Figure().subplots())
      >>> ax.lines[0].get_ydata().tolist()
      [0, 1, 1, 0, 2]
    """
    function = "plot_alignment"
    ax, time = _axes(function, ax), _time(function, frame_seconds, offset)
    frame_labels = _numbers(function, "alignment.frame_labels", alignment.frame_labels, 1, "[T]")
    ids = _numbers(function, "labels", labels, 1, "[N]")
    if ids.shape != np.shape(alignment.starts):
        requirement = f"have shape {np.shape(alignment.starts)}, as in alignment"
        checks.fail(function, "labels", requirement, ids.shape)
    shown = np.flatnonzero(_in_use(function, "label_paddings", label_paddings, len(ids)))
    starts, ends = (np.asarray(part)[shown] for part in (alignment.starts, alignment.ends))
    used = np.flatnonzero(frame_labels >= 0)
    frames = int(used[-1]) + 1 if used.size else len(frame_labels)
    rows = [_name(names, place) for place in ids[shown].tolist()]
    if posteriors is not None:
        table, _ = _label_rows(function, posteriors, labels, label_paddings, names)
        _draw_table(ax, table[:frames], time)
    path = np.zeros(frames, np.int64)
    for row, (start, end) in enumerate(zip(starts, ends, strict=True), 1):
        if start >= 0:
            path[start : end + 1] = row
    style = {"color": "black" if posteriors is None else "white", "linewidth": 1.2}
    ax.step(time.edges(np.arange(frames) + 0.5), path, where="mid", **style)
    _name_rows(ax, ["blank", *rows])
    ax.set_ylim(len(rows) + 0.5, -0.5)
    ax.set_xlim(time.edges(0), time.edges(max(frames, 1)))
    _label_time(ax, time)
    _draw_words(ax, words, time, len(rows) + 0.5)
    if signal is not None:
        _draw_signal(function, ax, signal, time, frames, zip(rows, starts, ends, strict=True))
    return ax


def plot_error_rates(counts: Mapping[str, ErrorCounts], *, ax: Any = None) -> Any:
    """Draws error rates as bars, each made of substitutions, insertions and deletions.

    Args:
      counts: what `error_counts` returns, under the name of each bar; those of a batch are
        added up.
      ax: an `Axes` of Matplotlib to draw in; None takes the current one.

    Returns:
      The `Axes`, the first bar on top, with the rate at the end of each.

    Raises:
      ValueError: if there are no counts, or something else than counts.
      ImportError: without Matplotlib.

    Example:
      >>> from jaxctc import error_counts
      >>> from matplotlib.figure import Figure
      >>> counts = error_counts([1, 2, 3], None, [1, 3, 3, 2], None)
      >>> ax = plot_error_rates({"greedy": counts}, ax=Figure().subplots())
      >>> [text.get_text().strip() for text in ax.texts]
      ['50.0 %']
    """
    function = "plot_error_rates"
    if not isinstance(counts, Mapping) or not all(
        isinstance(c, ErrorCounts) for c in counts.values()
    ):
        checks.fail(function, "counts", "map names to ErrorCounts", type(counts).__name__)
    if not counts:
        checks.fail(function, "counts", "have one bar or more", "none")
    ax = _axes(function, ax)
    totals = np.array([[np.sum(part) for part in count] for count in counts.values()], np.float64)
    percent = 100 * totals[:, :3] / np.maximum(totals[:, 3:], 1)
    places, before = np.arange(len(counts)), np.zeros(len(counts))
    for kind, share in zip(("substitutions", "insertions", "deletions"), percent.T, strict=True):
        ax.barh(places, share, left=before, label=kind)
        before = before + share
    for place, rate in zip(places, before, strict=True):
        ax.text(rate, place, f" {rate:.1f} %", va="center")
    ax.set_yticks(places, list(counts))
    ax.invert_yaxis()
    ax.set_xlim(0, max(1.15 * before.max(), 1e-9))
    ax.set_xlabel("errors per 100 reference units")
    ax.legend(frameon=False)
    return ax


class _Time(NamedTuple):
    """The horizontal axis."""

    unit: str
    step: float
    origin: float
    """Where the first frame begins."""

    def edges(self, frame: Any) -> Any:
        """Where a frame begins."""
        return self.origin + self.step * frame


def _time(function: str, frame_seconds: float | None, offset: float) -> _Time:
    if frame_seconds is None:
        return _Time("frame", 1.0, -0.5)  # the middle of a frame is at its number
    if not 0 < frame_seconds < math.inf:
        requirement = "be a positive number of seconds"
        checks.fail(function, "frame_seconds", requirement, frame_seconds)
    return _Time("seconds", float(frame_seconds), float(offset))


def _axes(function: str, ax: Any) -> Any:
    """The axes that were given, or the current ones."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        remedy = "The extra plot has it: pip install 'jaxctc[plot]'."
        message = checks.message(function, "Matplotlib", "be installed", "no such module", remedy)
        raise ImportError(message) from error
    return plt.gca() if ax is None else ax


def _numbers(function: str, argument: str, values: Any, rank: int, shape: str) -> np.ndarray:
    array = checks.host_array(function, argument, values, f"be an array {shape}")
    if array.ndim != rank:
        remedy = "Take one example of a batch." if array.ndim > rank else ""
        checks.fail(function, argument, f"have shape {shape}", array.shape, remedy)
    return array


def _in_use(function: str, argument: str, paddings: Any, size: int) -> np.ndarray:
    return ~np.asarray(checks.paddings(function, argument, paddings, (size,)))


def _label_rows(
    function: str, posteriors: Posteriors, labels: Any, label_paddings: Any, names: Any
) -> tuple[np.ndarray, list[str]]:
    """A column for the blank and for each label in use, and their names."""
    label = _numbers(function, "posteriors.label", posteriors.label, 2, "[T, N]")
    count = label.shape[1]
    in_use = _in_use(function, "label_paddings", label_paddings, count)
    ids = np.arange(count) if labels is None else _numbers(function, "labels", labels, 1, "[N]")
    if len(ids) != count:
        checks.fail(function, "labels", f"have shape {(count,)}, as posteriors", ids.shape)
    rows = [_name(None if labels is None else names, place) for place in ids[in_use].tolist()]
    table = np.column_stack([np.asarray(posteriors.blank), label[:, in_use]])
    return table, ["blank", *rows]


def _name(names: Sequence[str] | None, place: int) -> str:
    return names[place] if names is not None and 0 <= place < len(names) else str(place)


def _draw_table(ax: Any, table: np.ndarray, time: _Time) -> None:
    frames, rows = table.shape
    extent = (time.edges(0), time.edges(max(frames, 1)), rows - 0.5, -0.5)
    image = table.T.astype(np.float64) if frames else np.zeros((rows, 1))
    ax.imshow(image, aspect="auto", vmin=0, vmax=1, extent=extent, interpolation="nearest")


def _name_rows(ax: Any, rows: list[str]) -> None:
    """A name for each row or, if there are too many, for some."""
    step = -(-len(rows) // _MOST_NAMES)
    size = 10 if len(rows) <= 16 else 7
    ax.set_yticks(range(0, len(rows), step), rows[::step], fontsize=size)


def _label_time(ax: Any, time: _Time) -> None:
    ax.set_xlabel(time.unit)


def _draw_words(ax: Any, words: Sequence[Span], time: _Time, bottom: float) -> None:
    """A row of words below the path, each over its time."""
    if not words:
        return
    shift = time.origin if time.unit == "frame" else 0.0
    for place, word in enumerate(words):
        start, end = word.start + shift, word.end + shift
        box = {"color": f"C{place % 10}", "alpha": 0.35, "linewidth": 0}
        ax.fill_between([start, end], bottom, bottom + 1, **box)
        middle = (start + end) / 2
        ax.text(middle, bottom + 0.5, word.text, ha="center", va="center", clip_on=True)
    ax.set_ylim(bottom + 1, -0.5)


def _draw_signal(
    function: str,
    ax: Any,
    signal: Any,
    time: _Time,
    frames: int,
    labels: Iterator[tuple[str, int, int]],
) -> None:
    """What was heard or seen, above, with the frames of each label in a colour."""
    array = np.asarray(signal)
    if array.ndim not in (1, 2) or not array.size:
        checks.fail(function, "signal", "have shape [S] or [S, F]", array.shape)
    bottom, top = ax.get_ylim()
    room = 0.45 * (top - bottom)  # within the given axes, so that any layout has it
    ax.set_ylim(bottom, top + room)
    share = room / (top + room - bottom)
    above = ax.inset_axes([0, 1 - share, 1, share], sharex=ax)
    left, right = time.edges(0), time.edges(max(frames, 1))
    if array.ndim == 1:
        middles = left + (right - left) * (np.arange(len(array)) + 0.5) / len(array)
        above.plot(middles, array, color="black", linewidth=0.5)
    else:
        height = array.shape[1]
        extent = (left, right, height - 0.5, -0.5)
        above.imshow(array.T.astype(np.float64), aspect="auto", cmap="gray_r", extent=extent)
    for place, (name, start, end) in enumerate(labels):
        if start < 0:
            continue
        edges = time.edges(start), time.edges(end + 1)
        above.axvspan(*edges, color=f"C{place % 10}", alpha=0.35, linewidth=0)
        above.annotate(
            name,
            (sum(edges) / 2, 0.98),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="top",
        )
    bottom, top = above.get_ylim()
    above.set_ylim(bottom, top + 0.25 * (top - bottom))  # room for the names
    above.set_axis_off()
    ax.set_xlim(left, right)
