"""How does the cost grow? T, N, B and K doubled in turn, with exponents fitted to the medians.

    python -m benchmarks.scaling [--octaves 4] [--base octaves] [--repeats N] [--png FILE]

Each axis starts from the same base shape, a batch as `benchmarks.shapes` makes them. The exponent
is the slope of a straight line through the logarithms of sizes and medians: 1 where the cost is in
proportion to the size, 0 where the size does not matter. All sizes take turns in every round, so
the whole of them sees the same machine.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from benchmarks.peers import PEERS
from benchmarks.shapes import SHAPES, Shape, make_batch
from benchmarks.timing import (
    TASKS,
    Timing,
    add_common_options,
    in_words,
    machine,
    measure,
    names_from,
    positive,
    table,
)

AXES = {"T": "frames", "N": "labels", "B": "batch", "K": "classes"}
Case = tuple[str, Shape]
"""A key of `TASKS`, and a shape."""


class Line(NamedTuple):
    """The cost of one task along one axis."""

    axis: str
    """A key of `AXES`."""
    task: str
    """A key of `TASKS`."""
    sizes: list[int]
    quartiles: list[tuple[float, float, float]]
    """Lower, median and upper, in milliseconds, for each size."""
    exponent: float
    constant: float
    """Fitted: median = constant · size ** exponent."""

    @property
    def medians(self) -> list[float]:
        """Milliseconds."""
        return [median for _, median, _ in self.quartiles]


def along(axis: str, base: Shape, octaves: int) -> list[Shape]:
    """The base and its doublings."""
    field = AXES[axis]
    return [base._replace(**{field: getattr(base, field) << k}) for k in range(octaves + 1)]


def time_all(cases: Sequence[Case], repeats: int) -> dict[Case, Timing]:
    """Every task on every shape, each compiled once."""
    with tqdm(total=len(cases) * (repeats + 2), unit="turn") as bar:
        calls = {}
        for task, shape in cases:
            batch = jax.device_put(make_batch(shape))
            calls[task, shape] = PEERS["jaxctc"].prepare(batch, task).call
            bar.update()
        return measure(calls, repeats, np.inf, bar.update)


def fit(axis: str, task: str, shapes: Sequence[Shape], timings: dict[Case, Timing]) -> Line:
    """A straight line through logarithms."""
    sizes = [getattr(shape, AXES[axis]) for shape in shapes]
    quartiles = [timings[task, shape].quartiles for shape in shapes]
    medians = [median for _, median, _ in quartiles]
    exponent, constant = np.polyfit(np.log(sizes), np.log(medians), 1)
    return Line(axis, task, sizes, quartiles, float(exponent), float(np.exp(constant)))


def exponents(lines: Sequence[Line]) -> str:
    """The table: a row for each axis, all medians and the exponent for each task."""
    tasks = dict.fromkeys(line.task for line in lines)
    columns = [column for task in tasks for column in (f"{TASKS[task]}, ms", "exponent")]
    rows = []
    for axis in dict.fromkeys(line.axis for line in lines):
        own = [line for line in lines if line.axis == axis]
        row = [f"{axis} = {', '.join(str(size) for size in own[0].sizes)}"]
        for line in own:
            row += [", ".join(f"{median:.2f}" for median in line.medians), f"{line.exponent:.2f}"]
        rows.append(row)
    return table(["axis", *columns], rows)


def draw(lines: Sequence[Line], path: Path) -> None:
    """A panel for each axis: medians with quartiles, and the line fitted to them."""
    from matplotlib.figure import Figure  # where nothing is drawn it need not be installed

    names = list(dict.fromkeys(line.axis for line in lines))
    figure = Figure(figsize=(3.4 * len(names), 3.6), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for line in lines:
        axes, sizes = panels[names.index(line.axis)], np.array(line.sizes)
        lower, median, upper = np.array(line.quartiles).T
        label = f"{TASKS[line.task]}: {line.axis}^{line.exponent:.2f}"
        dots = axes.errorbar(sizes, median, [median - lower, upper - median], fmt="o", label=label)
        color = dots.lines[0].get_color()
        axes.plot(sizes, line.constant * sizes**line.exponent, color=color, linewidth=1)
        axes.set(xscale="log", yscale="log", xlabel=line.axis)
        axes.set_xticks(sizes, line.sizes)
        axes.set_xticks([], minor=True)
        axes.legend(fontsize="small")
    panels[0].set_ylabel("ms")
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", choices=list(SHAPES), default="octaves", help="default: octaves")
    parser.add_argument("--octaves", type=positive, default=4, help="doublings (default: 4)")
    parser.add_argument(
        "--axes",
        type=names_from({axis: [axis] for axis in AXES}),
        default=list(AXES),
        help=f"with commas between: {', '.join(AXES)} (default: all of them)",
    )
    add_common_options(parser)
    arguments = parser.parse_args(argv)
    base, octaves = SHAPES[arguments.base], arguments.octaves
    if "N" in arguments.axes and 2 * base.labels << octaves > base.frames:
        parser.error(
            f"--octaves: must leave two frames to a label; got {octaves} from {base.sizes}"
        )

    where = machine([])
    shapes = {axis: along(axis, base, octaves) for axis in arguments.axes}
    # The base is on every axis, and timed once.
    cases = dict.fromkeys(
        (task, shape) for task in arguments.tasks for axis in shapes for shape in shapes[axis]
    )
    timings = time_all(list(cases), arguments.repeats)
    lines = [fit(axis, task, shapes[axis], timings) for axis in shapes for task in arguments.tasks]

    print(in_words(where), f"From (B, T, N, K) = {base.sizes}:", exponents(lines), sep="\n\n")
    if arguments.json:
        rows = [line._asdict() for line in lines]
        figures = {"machine": where, "base": base.sizes, "lines": rows}
        arguments.json.write_text(json.dumps(figures, indent=1))
    if arguments.png:
        draw(lines, arguments.png)


if __name__ == "__main__":
    main()
