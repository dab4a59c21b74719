"""How fast? Loss and gradient, and loss alone, beside every other library at hand, in one run.

    python -m benchmarks.loss [--shapes char,models] [--peers jaxctc,torch] [--task loss] ...

Batches of different lengths, given as arguments; see `benchmarks.shapes`. Two tables. The first
has medians in milliseconds, loss and gradient · loss alone, and in brackets how many times ours.
The second has a row for each of them: quartiles; how much of the time the floor explains, a pass
over the logits and, for a gradient, a softmax of them, measured alongside (`benchmarks.peers`);
the megabytes that XLA sets aside for temporary values and results; and the seconds it compiles.

All calls of a shape take turns, each after one of its like. One that has had `--budget` seconds
sits out the rest; where the first already took longer, it is the only one, and the row says so.
On a machine that does other things, too, ratios say more than times. JAX computes on its default
device, PyTorch on a GPU where JAX does.
"""

import argparse
import importlib.util
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from tqdm import tqdm

from benchmarks.peers import PEERS, Prepared, try_out
from benchmarks.shapes import GROUPS, SHAPES, make_batch
from benchmarks.timing import (
    TASKS,
    Timing,
    add_common_options,
    in_words,
    machine,
    measure,
    names_from,
    table,
)

OURS, FLOOR = "jaxctc", "floor"
AGREEMENT = 1e-3
"""Relative difference of losses beyond which a time means nothing."""


class Cell(NamedTuple):
    """What is known of one library, doing one task on one shape; None where it is not known."""

    shape: str
    sizes: tuple[int, int, int, int]
    """B, T, N, K."""
    task: str
    """A key of `TASKS`."""
    library: str
    """A key of `PEERS`, the floor included."""
    device: str | None
    times: list[float]
    """Milliseconds of all calls that count."""
    quartiles: tuple[float, float, float] | None
    """Of these: lower, median, upper."""
    ratio: float | None
    """The median by ours."""
    floor: float | None
    """The floor's median by this one."""
    megabytes: float | None
    """As of `Prepared`."""
    compile_seconds: float | None
    """As of `Prepared`."""
    note: str
    """What to know before believing it."""

    @property
    def median(self) -> float | None:
        """Milliseconds."""
        return self.quartiles and self.quartiles[1]


class Plan(NamedTuple):
    """What the command line asks for."""

    libraries: list[str]
    """Keys of `PEERS`, the floor first."""
    tasks: list[str]
    """Keys of `TASKS`."""
    repeats: int
    budget: float
    """Seconds for each call."""


def time_shape(name: str, plan: Plan, tick: Callable[[], object]) -> list[Cell]:
    """Every library and task on one shape."""
    shape = SHAPES[name]
    batch = jax.device_put(make_batch(shape))
    prepared: dict[tuple[str, str], Prepared] = {}
    refused: dict[tuple[str, str], str] = {}
    for task in plan.tasks:
        for library in plan.libraries:
            peer = PEERS[library]
            reason = try_out(library, shape, task, plan.budget) if peer.is_tried_first else None
            if reason is None:
                jax.clear_caches()  # nothing traced for others makes this one compile faster
                prepared[task, library] = peer.prepare(batch, task)
            else:
                refused[task, library] = reason
            tick()
    calls = {key: ready.call for key, ready in prepared.items()}
    timings = measure(calls, plan.repeats, plan.budget, tick)
    return [
        _cell(name, task, library, prepared[task, library], timings, plan.repeats)
        if (task, library) in prepared
        else _empty_cell(name, task, library, refused[task, library])
        for task in plan.tasks
        for library in plan.libraries
    ]


def _empty_cell(shape: str, task: str, library: str, note: str) -> Cell:
    sizes = SHAPES[shape].sizes
    return Cell(shape, sizes, task, library, None, [], None, None, None, None, None, note)


def _cell(
    shape: str,
    task: str,
    library: str,
    prepared: Prepared,
    timings: Mapping[tuple[str, str], Timing],
    repeats: int,
) -> Cell:
    own, ours = timings[task, library], timings.get((task, OURS))
    _, median, _ = own.quartiles
    notes = []
    if not own.is_warm:
        notes.append("one call, cold")
    elif len(own.times) < repeats:
        notes.append(f"{len(own.times)} of {repeats} calls")
    if ours and library != FLOOR and not math.isclose(own.loss, ours.loss, rel_tol=AGREEMENT):
        notes.append(f"another loss: {own.loss:.6g}, ours {ours.loss:.6g}")
    return Cell(
        shape,
        SHAPES[shape].sizes,
        task,
        library,
        prepared.device,
        own.times,
        own.quartiles,
        median / ours.quartiles[1] if ours else None,
        timings[task, FLOOR].quartiles[1] / median,
        prepared.megabytes,
        prepared.compile_seconds,
        "; ".join(notes),
    )


def _shown(value: float | None, form: str = "{:.1f}") -> str:
    return "–" if value is None else form.format(value)


def _by_key(cells: Sequence[Cell]) -> dict[tuple[str, str, str], Cell]:
    return {(cell.shape, cell.library, cell.task): cell for cell in cells}


def summary(cells: Sequence[Cell], plan: Plan) -> str:
    """The first table: a row for each shape, a column for each library."""
    found = _by_key(cells)
    libraries = [library for library in plan.libraries if library != FLOOR]

    def entry(shape: str, library: str) -> str:
        own = [found[shape, library, task] for task in plan.tasks]
        medians = " · ".join(_shown(cell.median) for cell in own)
        ratios = " · ".join(_shown(cell.ratio, "{:.1f}×") for cell in own)
        return medians if library == OURS else f"{medians} ({ratios})"

    rows = [
        [f"{shape} {SHAPES[shape].sizes}", *(entry(shape, library) for library in libraries)]
        for shape in dict.fromkeys(cell.shape for cell in cells)
    ]
    return table(["shape (B, T, N, K)", *libraries], rows)


def details(cells: Sequence[Cell]) -> str:
    """The second table: a row for each cell."""
    header = ["shape", "task", "library", "ms", "quartiles", "× ours", "floor", "MB", "compile, s"]
    rows = [
        [
            cell.shape,
            TASKS[cell.task],
            f"{cell.library} ({cell.device})" if cell.device else cell.library,
            _shown(cell.median, "{:.2f}"),
            "{:.2f} to {:.2f}".format(*cell.quartiles[::2]) if cell.quartiles else "–",
            _shown(cell.ratio, "{:.2f}"),
            _shown(cell.floor, "{:.0%}"),
            _shown(cell.megabytes),
            _shown(cell.compile_seconds),
            cell.note,
        ]
        for cell in cells
    ]
    return table([*header, "note"], rows)


def draw(cells: Sequence[Cell], plan: Plan, path: Path) -> None:
    """How many times ours: a group of bars for each shape, a panel for each task."""
    from matplotlib.figure import Figure  # where nothing is drawn it need not be installed

    found = _by_key(cells)
    shapes = list(dict.fromkeys(cell.shape for cell in cells))
    libraries = [library for library in plan.libraries if library not in (OURS, FLOOR)]
    size = (2 + 1.2 * len(shapes), 3.2 * len(plan.tasks))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(plan.tasks), squeeze=False)[:, 0]
    width = 0.8 / max(len(libraries), 1)
    for axes, task in zip(panels, plan.tasks, strict=True):
        for place, library in enumerate(libraries):
            ratios = [found[shape, library, task].ratio for shape in shapes]
            middles = [
                group + width * (place - (len(libraries) - 1) / 2) for group in range(len(shapes))
            ]
            heights = [(ratio or math.nan) - 1 for ratio in ratios]  # up or down from ours
            bars = axes.bar(middles, heights, 0.9 * width, bottom=1, label=library)
            axes.bar_label(bars, [_shown(ratio) for ratio in ratios], fontsize="x-small")
        axes.axhline(1, color="black", linewidth=1, label=OURS)
        axes.set(yscale="log", title=TASKS[task], ylabel="times ours")
        axes.set_xticks(range(len(shapes)), shapes)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    single = {name: [name] for name in SHAPES}
    libraries = [name for name in PEERS if name != FLOOR and importlib.util.find_spec(name)]
    parser.add_argument(
        "--shapes",
        type=names_from(GROUPS | single),
        default=GROUPS["design"],
        help=f"with commas between: {', '.join(GROUPS | single)} (default: design)",
    )
    parser.add_argument(
        "--peers",
        type=names_from({name: [name] for name in libraries}),
        default=libraries,
        help=f"with commas between: {', '.join(libraries)} (default: all of them)",
    )
    parser.add_argument(
        "--budget", type=float, default=60, help="seconds for each call (default: 60)"
    )
    add_common_options(parser)
    arguments = parser.parse_args(argv)

    libraries = [FLOOR, *arguments.peers]
    plan = Plan(libraries, arguments.tasks, arguments.repeats, arguments.budget)
    where = machine(arguments.peers)
    turns = len(plan.libraries) * len(plan.tasks) * (plan.repeats + 2)
    cells: list[Cell] = []
    with tqdm(total=turns * len(arguments.shapes), unit="turn") as bar:
        for done, name in enumerate(arguments.shapes, 1):
            bar.set_description(name)
            cells += time_shape(name, plan, bar.update)
            bar.update(done * turns - bar.n)  # what was refused had no turns
            if arguments.json:  # after each shape, so that a run cut short leaves something
                rows = [cell._asdict() for cell in cells]
                figures = {"machine": where, "plan": plan._asdict(), "cells": rows}
                arguments.json.write_text(json.dumps(figures, indent=1))

    print(in_words(where), summary(cells, plan), details(cells), sep="\n\n")
    if arguments.png:
        draw(cells, plan, arguments.png)


if __name__ == "__main__":
    main()
