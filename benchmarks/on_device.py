"""What is true of jaxctc on this GPU or TPU: values, accuracy, times. In less than eight minutes.

    python -m benchmarks.on_device [--minutes 8] [--output out]

Three steps on JAX's default device, as far as the time goes:

    tests      of values: the contract, published numbers, every path enumerated (at most half of
               the time, in a process of their own, which has the device to itself)
    accuracy   float32 losses and gradients against our own in float64 on the CPU, beside optax's
    times      of the loss and its gradient, plain and by the kernel of this platform, where it has
               one, beside optax and, where it is installed, PyTorch, on a GPU with cuDNN's
               kernels, too; of the other functions alone

What they found is written after each step, to one JSON and one Markdown file that name the device,
its driver and all versions, and can be committed as they are. What there was no time for is listed
there, too.
"""

import argparse
import datetime
import functools
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxctc
from benchmarks import accuracy
from benchmarks.loss import Plan, details, summary, time_shape
from benchmarks.peers import CUDNN, KERNEL
from benchmarks.shapes import GROUPS, SHAPES, make_batch
from benchmarks.timing import in_words, machine, measure, names_from, positive, table

ROOT = Path(__file__).parents[1]
EVEN = "even"
"""The shape that cuDNN's loss takes."""
SUITES = [
    "tests/test_published_numbers.py",
    "tests/test_loss.py",
    "tests/test_posteriors.py",
    "tests/test_alignment.py",
    "tests/test_recursion.py",
    "tests/test_kernels.py",
    "tests/test_xla_blocked.py",
    "tests/test_pallas_tpu.py",
    "tests/test_pallas_gpu.py",
    "tests/test_derivatives.py",
    "tests/test_decoding.py",
    "tests/test_error_rates.py",
    "tests/test_beam_search.py",
]
"""Tests whose truth is a number, the most telling first: they are run until time is up."""
ACCURACY = [(kind, size) for size in accuracy.SIZES[:3] for kind in ("×1", "×20", "peaked")]


class Clock(NamedTuple):
    """When the time is up."""

    end: float

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()


def run_tests(suites: Sequence[str], seconds: float) -> dict[str, Any]:
    """Counts, and the names of what failed; of the suites that ended within the time.

    Failures are recorded and not judged: tolerances are those of a CPU, and a TPU has no float64.
    """
    clock = Clock(time.monotonic() + seconds)
    found: dict[str, Any] = {"passed": 0, "skipped": 0, "failed": [], "not done": []}
    for suite in suites:
        report = _report_of(suite, clock.left)
        if report is None:
            found["not done"].append(suite)
            continue
        for case in report.iter("testcase"):
            kinds = {child.tag for child in case}
            if kinds & {"failure", "error"}:
                found["failed"].append(f"{case.get('classname')}::{case.get('name')}")
            else:
                found["skipped" if "skipped" in kinds else "passed"] += 1
    return found | {"seconds": round(seconds - clock.left)}


def _report_of(suite: str, seconds: float) -> ElementTree.Element | None:
    """What pytest reports of a suite; None if there was no time for it."""
    if seconds <= 0:
        return None
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]
        command += [f"--junitxml={report}", suite]
        try:
            subprocess.run(command, cwd=ROOT, timeout=seconds, capture_output=True, check=False)
        except subprocess.TimeoutExpired:
            return None
        return ElementTree.parse(report).getroot() if report.exists() else None


def measure_accuracy(clock: Clock) -> dict[str, Any]:
    """Rows of `benchmarks.accuracy`, as many as there is time for."""
    everyone = accuracy.contestants()
    solvers = {name: everyone[name] for name in ("jaxctc", "optax")}
    rows, left = [], list(ACCURACY)
    while left and clock.left > 0:
        rows.append(accuracy.errors(*left.pop(0), solvers, accuracy.in_double))
    return {"rows": rows, "not done": [f"{kind} at {size}" for kind, size in left]}


def time_losses(shapes: Sequence[str], plan: Plan, clock: Clock) -> dict[str, Any]:
    """Cells of `benchmarks.loss`, for as many shapes as there is time for."""
    cells, left = [], list(shapes)
    while left and clock.left > 0:
        shape, libraries = left.pop(0), list(plan.libraries)
        if shape == EVEN and "torch" in libraries and jax.default_backend() == "gpu":
            libraries.append(CUDNN)
        cells += time_shape(shape, plan._replace(libraries=libraries), lambda: None)
    return {"cells": cells, "not done": left}


def time_functions(shape: str, repeats: int, clock: Clock) -> dict[str, Any]:
    """Quartiles in milliseconds of what has no counterpart elsewhere."""
    batch = jax.device_put(make_batch(SHAPES[shape]))
    frames, labels = batch[:2], batch[2:]
    calls = {
        "posteriors": (jaxctc.posteriors, batch),
        "forced_align": (jaxctc.forced_align, batch),
        "alignment_entropy": (jaxctc.alignment_entropy, batch),
        "greedy_decode": (jaxctc.greedy_decode, frames),
        "prefix_beam_search, 16 wide": (jaxctc.prefix_beam_search, frames),
        "error_counts": (jaxctc.error_counts, (*labels, *labels)),
    }
    rows, left = {}, list(calls)
    while left and clock.left > 0:
        function, arguments = calls[name := left.pop(0)]
        call = _waiting(jax.jit(function), arguments)
        rows[name] = measure({name: call}, repeats, 30, lambda: None)[name].quartiles
    return {"shape": shape, "rows": rows, "not done": left}


def _waiting(function: Callable[..., Any], arguments: Sequence[Any]) -> Callable[[], list[Any]]:
    def call() -> list[Any]:
        leaves = jax.block_until_ready(jax.tree.leaves(function(*arguments)))
        return [leaves[0].ravel()[0], *leaves]

    return call


def has_kernel() -> bool:
    """Whether `implementation="pallas"` is more than a refusal here."""
    loss = functools.partial(jaxctc.ctc_loss, implementation="pallas")
    try:
        jax.jit(loss).lower(jnp.zeros((2, 3)), None, jnp.array([1]), None)
    except ValueError:
        return False
    return True


def device() -> dict[str, Any]:
    """What is measured: the device, what drives it, and which code."""
    first = jax.devices()[0]
    libraries = [name for name in ("optax", "torch") if importlib.util.find_spec(name)]
    return machine(libraries) | {
        "devices": jax.device_count(),
        "platform version": first.client.platform_version,
        "driver": _said_by(
            "nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"
        ),
        "commit": _said_by("git", "rev-parse", "HEAD"),
        "date": datetime.date.today().isoformat(),
    }


def _said_by(*command: str) -> str | None:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def in_markdown(record: dict[str, Any], plan: Plan) -> str:
    """The record as a page."""
    where = record["device"]
    parts = [
        f"# jaxctc on {where['device']}",
        f"Timed on {where['devices']} × {where['device']} ({where['backend']}) on {where['date']},"
        f" by `python -m benchmarks.on_device`. {in_words(where)}.",
        f"Platform: {where['platform version']}. Driver: {where['driver']}."
        f" Commit: {where['commit']}.",
    ]
    tests = record["tests"]
    parts += [
        "## Tests of values",
        f"{tests['passed']} passed, {tests['skipped']} skipped, {len(tests['failed'])} failed, in"
        f" {tests['seconds']} s.",
        *(f"- failed: {name}" for name in tests["failed"]),
    ]
    if record["accuracy"]["rows"]:
        parts += [
            "## Accuracy: relative error of the loss · largest absolute error of the gradient",
            accuracy.errors_table(record["accuracy"]["rows"]),
        ]
    if cells := record["losses"]["cells"]:
        parts += ["## Milliseconds: loss and gradient · loss alone", summary(cells, plan)]
        parts += [details(cells)]
    if rows := record["functions"]["rows"]:
        entries = [
            [name, f"{middle:.2f}", f"{lower:.2f} to {upper:.2f}"]
            for name, (lower, middle, upper) in rows.items()
        ]
        parts += [f"## Other functions, at {record['functions']['shape']}"]
        parts += [table(["function", "ms", "quartiles"], entries)]
    not_done = [f"- {what}" for step in STEPS for what in record[step]["not done"]]
    if not_done:
        parts += ["## What there was no time for", "\n".join(not_done)]
    return "\n\n".join(parts) + "\n"


STEPS = ("tests", "accuracy", "losses", "functions")


def write(record: dict[str, Any], plan: Plan, folder: Path) -> Path:
    """Both files, named after the device; returns the second."""
    where = record["device"]
    name = f"on_device_{where['backend']}_{where['device']}".lower().replace(" ", "-")
    page = folder / f"{name}.md"
    folder.mkdir(parents=True, exist_ok=True)
    losses = record["losses"] | {"cells": [cell._asdict() for cell in record["losses"]["cells"]]}
    text = json.dumps(record | {"losses": losses}, indent=1)
    page.with_suffix(".json").write_text(text + "\n")
    page.write_text(in_markdown(record, plan))
    return page


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the steps, and prints the page."""
    arguments = _parser().parse_args(argv)
    clock = Clock(time.monotonic() + 60 * arguments.minutes)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    print("tests …", file=sys.stderr)
    tests = run_tests(arguments.suites, clock.left / 2)  # before this process takes the device
    libraries = [name for name in ("jaxctc", "optax", "torch") if importlib.util.find_spec(name)]
    if has_kernel():
        libraries.insert(1, KERNEL)
    plan = Plan(["floor", *libraries], ["grad", "loss"], arguments.repeats, budget=20)
    record: dict[str, Any] = {"device": device(), "tests": tests}
    record |= {
        "accuracy": {"rows": [], "not done": ["accuracy"]},
        "losses": {"cells": [], "not done": list(arguments.shapes)},
        "functions": {"shape": arguments.shapes[0], "rows": {}, "not done": ["functions"]},
    }
    page = write(record, plan, arguments.output)
    for step, run in {
        "accuracy": lambda: measure_accuracy(Clock(clock.end - 2 * clock.left / 3)),
        "losses": lambda: time_losses(arguments.shapes, plan, Clock(clock.end - clock.left / 4)),
        "functions": lambda: time_functions(arguments.shapes[0], arguments.repeats, clock),
    }.items():
        print(f"{step} …", file=sys.stderr)
        record[step] = run()
        page = write(record, plan, arguments.output)
    print(page.read_text())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    shapes = GROUPS | {name: [name] for name in SHAPES}
    suites = {suite: [suite] for suite in SUITES}
    parser.add_argument("--minutes", type=float, default=8, help="for everything (default: 8)")
    parser.add_argument("--output", type=Path, default=Path("out"), help="a folder (default: out)")
    parser.add_argument(
        "--shapes",
        type=names_from(shapes),
        default=[*GROUPS["design"], EVEN],
        help=f"with commas between: {', '.join(shapes)} (default: design,{EVEN})",
    )
    parser.add_argument(
        "--suites",
        type=names_from(suites),
        default=SUITES,
        help="with commas between, some of the tests (default: all that there is time for)",
    )
    parser.add_argument("--repeats", type=positive, default=10, help="rounds (default: 10)")
    return parser


if __name__ == "__main__":
    main()
