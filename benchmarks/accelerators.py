"""What do TPUs and GPUs make of it? Compiled ahead of time, beside optax; nothing is timed.

    python -m benchmarks.accelerators                                        # losses, all shapes
    python -m benchmarks.accelerators --programs all --shapes char,bpe1k
    python -m benchmarks.accelerators --programs sharded --shapes char --targets v5e
    python -m benchmarks.accelerators --programs kernels    # implementation="pallas"

A TPU's milliseconds are the compiler's estimate of its cycles; of kernels, for which it makes none,
they are the bundles of their schedules (`benchmarks.kernel_schedules`). A GPU's launches are
kernels that the host starts, 2 to 4 µs each. What is counted, and what to install, is said in
`benchmarks.ahead_of_time`. `--json` also writes every figure, with all loops, to a file;
`tests/test_ahead_of_time.py` holds every program to what such a file, kept beside it, says.
"""

import argparse
import importlib.metadata
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

import jaxctc
from benchmarks import kernel_schedules
from benchmarks.ahead_of_time import (
    TARGETS,
    Cost,
    cost_for,
    devices,
    is_installed,
    stay_on_the_cpu,
)
from benchmarks.programs import (
    Program,
    Sizes,
    kernel_programs,
    peers,
    programs,
    sharded_programs,
)
from benchmarks.shapes import GROUPS, SHAPES
from benchmarks.timing import file_to_write, names_from, table

LOSSES = ("ctc_loss", "ctc_loss, gradient")
SLICES = {"tpu": "v5e:4x4", "cuda": None}
"""Sixteen TPUs for what is sharded; of GPUs there are eight, however they are named."""
GPUS = 8


class Cell(NamedTuple):
    """One program of one library for one target."""

    target: str
    shape: str
    library: str
    """"jaxctc", "optax", or "sharded" for jaxctc on several devices."""
    program: str
    cost: Cost

    @property
    def milliseconds(self) -> float | None:
        """By the compiler's estimate; None on a GPU, for which it makes none."""
        rate = TARGETS[self.target].gigahertz
        return None if rate is None else (self.cost.cycles + self.cost.bundles) / rate / 1e6


def versions() -> dict[str, str]:
    """Of everything that has a say in what is compiled."""
    names = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "optax")
    others = {name: importlib.metadata.version(name) for name in names}
    return {"jaxctc": jaxctc.__version__} | others


def slice_of(target: str) -> tuple[Any, ...]:
    """The devices that sharded programs are compiled for."""
    platform = TARGETS[target].platform
    return devices(target, SLICES[platform], GPUS)


def programs_of(kind: str, shape: str, target: str) -> dict[tuple[str, str], Program]:
    """By library and name: what the command line calls `--programs`."""
    sizes = Sizes(*SHAPES[shape].sizes)
    if kind == "kernels":
        plain = {name: program for name, program in programs(sizes).items() if name in LOSSES}
        ours = plain | kernel_programs(sizes)
        found = {"optax": peers(sizes), "jaxctc": ours}
    elif kind == "sharded":
        found = {"sharded": sharded_programs(slice_of(target), sizes)}
    else:
        found = {"optax": peers(sizes), "jaxctc": programs(sizes)}
    return {
        (library, name): program
        for library, many in found.items()
        for name, program in many.items()
        if kind != "losses" or name in LOSSES
    }


def _amount(cell: Cell) -> str:
    """Estimated milliseconds on a TPU, launches on a GPU."""
    time = cell.milliseconds
    return f"{cell.cost.launches}" if time is None else f"{time:.3g} ms"


def _name(cell: Cell) -> str:
    return f"optax: {cell.program}" if cell.library == "optax" else cell.program


def losses_table(cells: Sequence[Cell]) -> str:
    """A row for each shape: loss and gradient · loss alone; memory and equations beside them."""
    found = {(cell.shape, cell.library, cell.program): cell for cell in cells}

    def entries(shape: str) -> list[str]:
        ours, theirs = (
            [found[shape, library, name] for name in reversed(LOSSES)]
            for library in ("jaxctc", "optax")
        )
        ratios = [
            (a.milliseconds or a.cost.launches) / (b.milliseconds or b.cost.launches)
            for a, b in zip(ours, theirs, strict=True)
        ]
        columns = [f"{shape} {SHAPES[shape].sizes}"]
        columns += [" · ".join(map(_amount, cells)) for cells in (ours, theirs)]
        columns += [" · ".join(f"{ratio:.2f}" for ratio in ratios)]
        columns += [
            " · ".join(f"{cell.cost.memory / 1e6:.1f}" for cell in cells)
            for cells in (ours, theirs)
        ]
        columns += [" · ".join(f"{cell.cost.equations}" for cell in ours)]
        return columns

    header = ["shape (B, T, N, K)", "jaxctc", "optax", "ratio"]
    header += ["jaxctc, MB", "optax, MB", "jaxctc, equations"]
    return table(header, [entries(shape) for shape in dict.fromkeys(cell.shape for cell in cells)])


def kernels_table(cells: Sequence[Cell]) -> str:
    """A row for each shape: loss and gradient · loss alone, with the kernels and without."""
    found = {(cell.shape, _name(cell)): cell for cell in cells}

    def entries(shape: str) -> list[str]:
        names = ["ctc_loss (pallas)", "ctc_loss", "optax: ctc_loss"]
        kernel, plain, theirs = (
            [found[shape, name + task] for task in (", gradient", "")] for name in names
        )
        rate = TARGETS[kernel[0].target].gigahertz
        of_kernels = [
            f"{cell.cost.bundles / rate / 1e6:.3g}" if rate else f"{len(cell.cost.kernels)}"
            for cell in kernel
        ]
        ratios = [
            (a.milliseconds or a.cost.launches) / (b.milliseconds or b.cost.launches)
            for a, b in zip(kernel, theirs, strict=True)
        ]
        columns = [" · ".join(map(_amount, cells)) for cells in (kernel, plain, theirs)]
        columns[1:1] = [" · ".join(of_kernels)]
        columns += [" · ".join(f"{ratio:.3f}" for ratio in ratios)]
        return [f"{shape} {SHAPES[shape].sizes}", *columns, f"{kernel[0].cost.memory / 1e6:.1f}"]

    header = ["shape (B, T, N, K)", "with kernels", "of which kernels", "plain", "optax"]
    header += ["ratio to optax", "MB"]
    return table(header, [entries(shape) for shape in dict.fromkeys(cell.shape for cell in cells)])


def summary_table(cells: Sequence[Cell]) -> str:
    """A row for each program: what it costs for each target at each shape, and the memory."""
    columns = list(dict.fromkeys((cell.target, cell.shape) for cell in cells))
    found = {(cell.target, cell.shape, _name(cell)): cell for cell in cells}

    def entry(target: str, shape: str, name: str) -> str:
        cell = found[target, shape, name]
        return f"{_amount(cell)} · {cell.cost.memory / 1e6:.1f}"

    rows = [
        [name, *(entry(*column, name) for column in columns)]
        for name in dict.fromkeys(map(_name, cells))
    ]
    return table(["program", *(f"{target}, {shape}" for target, shape in columns)], rows)


def details_table(cells: Sequence[Cell]) -> str:
    """A row for each program: what it costs, and each of its loops as turns × launches."""
    header = ["program", "estimate", "launches", "MB", "equations", "loops", "collectives"]
    header += ["compiled in, s"]
    if all(cell.milliseconds is None for cell in cells):
        header.remove("estimate")

    def row(cell: Cell) -> list[str]:
        cost = cell.cost
        loops = ", ".join(
            f"{'?' if loop.total_turns is None else loop.total_turns} × {loop.launches}"
            for loop in cost.loops
        )
        entries = {
            "program": _name(cell),
            "estimate": "" if cell.milliseconds is None else f"{cell.milliseconds:.3g} ms",
            "launches": f"{cost.launches}",
            "MB": f"{cost.memory / 1e6:.1f}",
            "equations": f"{cost.equations}",
            "loops": loops or "–",
            "collectives": ", ".join(cost.collectives) or "–",
            "compiled in, s": f"{cost.compile_seconds:.1f}",
        }
        return [entries[column] for column in header]

    return table(header, map(row, cells))


def write_json(path: Path, cells: Sequence[Cell]) -> None:
    """Every figure, a line for each program."""
    rows = [
        {
            "target": cell.target,
            "shape": cell.shape,
            "library": cell.library,
            "program": cell.program,
            **cell.cost._replace(loops=[])._asdict(),
            "loops": [
                {"turns": loop.total_turns, "launches": loop.launches, "cycles": loop.cycles}
                for loop in cell.cost.loops
            ],
        }
        for cell in cells
    ]
    lines = ",\n".join(json.dumps(row) for row in rows)
    path.write_text(f'{{"versions": {json.dumps(versions())},\n"programs": [\n{lines}\n]}}\n')


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    arguments = _parser().parse_args(argv)
    stay_on_the_cpu()
    missing = [name for name in arguments.targets if not is_installed(name)]
    if missing:
        raise SystemExit(
            f"benchmarks.accelerators: no compiler for {', '.join(missing)} is installed:"
            " pip install -e '.[aot]'"
        )
    work = [
        (target, shape, library, name, program)
        for target in arguments.targets
        for shape in arguments.shapes
        for (library, name), program in programs_of(arguments.programs, shape, target).items()
    ]
    cells: list[Cell] = []
    for target, shape, library, name, program in (bar := tqdm(work, unit="program")):
        bar.set_description(f"{target} {shape}")
        cost = cost_for(target, program.function, program.arguments)
        if "(pallas)" in name and TARGETS[target].platform == "tpu":
            found = kernel_schedules.bundles_of(target, name, Sizes(*SHAPES[shape].sizes))
            cost = cost._replace(bundles=found)
        cells.append(Cell(target, shape, library, name, cost))
        if arguments.json:  # after each, so that a run cut short leaves something
            write_json(arguments.json, cells)
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    if arguments.programs not in ("losses", "kernels"):
        print(f"\nestimate or launches · temporary MB\n\n{summary_table(cells)}")
    for target in arguments.targets:
        own = [cell for cell in cells if cell.target == target]
        if arguments.programs == "losses":
            print(f"\n{target}: loss and gradient · loss alone\n\n{losses_table(own)}")
            continue
        if arguments.programs == "kernels":
            print(f"\n{target}: loss and gradient · loss alone\n\n{kernels_table(own)}")
            continue
        for shape in arguments.shapes:
            of_shape = [cell for cell in own if cell.shape == shape]
            print(f"\n{target}, {shape} {SHAPES[shape].sizes}\n\n{details_table(of_shape)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])

    def names(option: str, meanings: dict[str, list[str]], default: list[str]) -> None:
        known: Callable[[str], list[str]] = names_from(meanings)
        text = f"with commas between: {', '.join(meanings)} (default: {','.join(default)})"
        parser.add_argument(option, type=known, default=default, help=text)

    names("--targets", {name: [name] for name in TARGETS}, ["v5e", "h100"])
    names("--shapes", GROUPS | {name: [name] for name in SHAPES}, GROUPS["design"])
    parser.add_argument(
        "--programs",
        choices=["losses", "all", "kernels", "sharded"],
        default="losses",
        help="the losses beside optax; every function; the kernel of the TPU; or several devices"
        " (default: losses)",
    )
    parser.add_argument("--json", type=file_to_write, help="also write all figures to this file")
    return parser


if __name__ == "__main__":
    main()
