"""What the Pallas kernels would cost a TPU: the bundles of their schedules; nothing is timed.

    python -m benchmarks.kernel_schedules --targets v5e,v6e --shapes char,bpe1k

XLA estimates no cycles for a kernel, but the compiler writes down its schedule: bundles of
instructions, each of which a core issues in one cycle unless it waits for memory. A kernel is a
grid of programs, in each of which loops go over the frames of a block, several frames in a turn.
So its bundles are those of a turn of every loop, times the turns, with what a program does beside
them, times the programs. Vector registers that did not suffice show as spills.

A process tells libtpu where to write schedules before it compiles anything, and libtpu then writes
those of everything that is compiled. So the kernels are compiled in a process of their own.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.ahead_of_time import TARGETS, compile_for, stay_on_the_cpu
from benchmarks.programs import Sizes, kernel_programs
from benchmarks.shapes import GROUPS, SHAPES
from benchmarks.timing import names_from, table
from jaxctc._core.kernels.tpu_layout import Layout

ROOT = Path(__file__).parents[1]


class Schedule(NamedTuple):
    """Of one kernel."""

    kernel: str
    """As `pallas_call` names it."""
    turns: tuple[int, ...]
    """Bundles of a turn of each loop over frames."""
    rest: int
    """Bundles of a program of the grid beside these loops; copies of blocks count once."""
    spills: int
    """Of vector registers, in the loops over frames."""

    def bundles_per_frame(self, layout: Layout) -> float:
        """Of all loops over frames together."""
        return sum(self.turns) / layout.normalize_every

    def bundles(self, layout: Layout) -> int:
        """Of the whole kernel."""
        turns = layout.block // layout.normalize_every
        programs = -(-layout.rows // layout.tile) * layout.blocks
        return programs * (self.rest + turns * sum(self.turns))


def schedules(target: str, program: str, sizes: Sizes) -> list[Schedule]:
    """Of the kernels of one of `kernel_programs`, for a kind of TPU; by their names."""
    with tempfile.TemporaryDirectory() as folder:
        flags = {
            "xla_jf_dump_to": folder,
            "xla_jf_dump_llo_text": "true",
            "xla_jf_dump_llo_pass_label_regex": "final_bundles",
        }
        environment = {
            **os.environ,
            "LIBTPU_INIT_ARGS": " ".join(f"--{name}={value}" for name, value in flags.items()),
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",  # this process may have loaded it
        }
        command = [sys.executable, "-m", "benchmarks.kernel_schedules", "--compile", target]
        command += [program, *map(str, sizes)]
        subprocess.run(command, check=True, env=environment, cwd=ROOT, capture_output=True)
        texts = {
            path.name.split("-")[1].split(".")[0]: path.read_text()
            for path in sorted(Path(folder).glob("*-ctc_*-final_bundles.txt"))
            if "schedule-analysis" not in path.name
        }
    return [schedule_of(kernel, text) for kernel, text in sorted(texts.items())]


_BUNDLE = re.compile(r"\s*(0x[0-9a-f]+|0)\s+(LB|LH|LE|PB|PF|CT)?[^:]*:\s*(>*)\s*\{(.*)\}")
_BACK = "sbr.rel (!"
_DELAY = 5
"""Bundles that are issued after a branch, before it is taken."""
_PRODUCT = re.compile(r"= vmul\.f32 ")
_SPILL = re.compile(r"v(ld|st) .*_spill")


class _Loop(NamedTuple):
    depth: int
    bundles: int
    products: int
    spills: int


def schedule_of(kernel: str, text: str) -> Schedule:
    """Read from the text of a kernel's last schedule."""
    loops = list(_loops(text))
    (grid,) = (loop for loop in loops if loop.depth == 1)
    # The others copy blocks.
    over_frames = [loop for loop in loops if loop.depth > 1 and loop.products]
    turns = tuple(loop.bundles for loop in over_frames)
    return Schedule(
        kernel, turns, grid.bundles - sum(turns), sum(loop.spills for loop in over_frames)
    )


def _loops(text: str) -> Iterator[_Loop]:
    """In the order of the text; the loop over the programs of the grid has depth 1."""
    found = map(_BUNDLE.match, text.splitlines())
    bundles = [
        (int(match.group(1), 16), match.group(2), len(match.group(3)), match.group(4))
        for match in found
        if match
    ]
    for first, (start, kind, depth, _) in enumerate(bundles):
        if kind != "LB":
            continue
        # An inner loop has no other branch back; the last one in the text is the grid's.
        back = [place for place in range(first, len(bundles)) if _BACK in bundles[place][3]]
        last = back[-1] if depth == 1 else back[0]
        operations = _operations(text for *_, text in bundles[first : last + 1])
        yield _Loop(
            depth,
            bundles[last][0] - start + 1 + _DELAY,
            sum(bool(_PRODUCT.search(each)) for each in operations),
            sum(bool(_SPILL.search(each)) for each in operations),
        )


def _operations(bundles: Iterable[str]) -> list[str]:
    return [operation.strip() for bundle in bundles for operation in bundle.split(";;")]


def layout(sizes: Sizes) -> Layout:
    """How the kernels lay such a batch out."""
    return Layout.of(sizes.batch, sizes.frames, sizes.labels)


def bundles_of(target: str, program: str, sizes: Sizes) -> int:
    """Of all kernels of a program."""
    found = schedules(target, program, sizes)
    return sum(schedule.bundles(layout(sizes)) for schedule in found)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a table, or compiles for the process that asks for it."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["--compile"]:
        target, name, *sizes = given[1:]
        stay_on_the_cpu()
        program = kernel_programs(Sizes(*map(int, sizes)))[name]
        compile_for(target, program.function, program.arguments)
        return
    arguments = _parser().parse_args(given)
    rows = []
    for target in arguments.targets:
        for shape in arguments.shapes:
            sizes = Sizes(*SHAPES[shape].sizes)
            own = layout(sizes)
            for found in schedules(target, "ctc_loss (pallas), gradient", sizes):
                per_frame = " + ".join(f"{turn / own.normalize_every:.0f}" for turn in found.turns)
                milliseconds = found.bundles(own) / (TARGETS[target].gigahertz or 1) / 1e6
                row = [f"{target}, {shape}", found.kernel, f"{own.lanes} × {own.tile}", per_frame]
                row += [f"{found.rest}", f"{found.spills}", f"{milliseconds:.3g} ms"]
                rows.append(row)
    header = ["target, shape", "kernel", "lanes × rows", "bundles a frame", "beside, a block"]
    print(table([*header, "spills", "estimate"], rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    tpus = [name for name, target in TARGETS.items() if target.platform == "tpu"]
    for option, meanings, default in (
        ("--targets", {name: [name] for name in tpus}, ["v5e"]),
        ("--shapes", GROUPS | {name: [name] for name in SHAPES}, GROUPS["design"]),
    ):
        text = f"with commas between: {', '.join(meanings)} (default: {','.join(default)})"
        parser.add_argument(option, type=names_from(meanings), default=default, help=text)
    return parser


if __name__ == "__main__":
    main()
