"""How benchmarks measure and report: calls in turn, their quartiles, the machine, tables."""

import argparse
import importlib
import os
import platform
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

SHORT = 1.0
"""Seconds below which a call notices what ran before it."""
TASKS = {"grad": "loss + gradient", "loss": "loss alone"}
Key = TypeVar("Key")
Call = Callable[[], Sequence[Any]]
"""Waits for what it computes and returns it, the loss first."""


class Timing(NamedTuple):
    """What was seen of one call."""

    loss: float
    """What it returned."""
    times: list[float]
    """Milliseconds, in the order of the rounds."""
    is_warm: bool
    """False where the first call took all the time there was, and is the only one."""

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """Lower quartile, median, upper quartile, in milliseconds."""
        lower, median, upper = np.percentile(self.times, [25, 50, 75])
        return float(lower), float(median), float(upper)


def measure(
    calls: Mapping[Key, Call], repeats: int, budget: float, tick: Callable[[], object]
) -> dict[Key, Timing]:
    """Each call once to warm up, then rounds of all of them, so that all see the same machine.

    Args:
      calls: what to time, by any name.
      repeats: number of rounds.
      budget: seconds after which a call sits out the rounds that are left.
      tick: called after each turn, taken or not.
    """
    rng = random.Random(0)
    first = {}
    for key, call in calls.items():
        first[key] = _timed(call)
        tick()
    spent = {key: seconds for key, (seconds, _) in first.items()}
    times: dict[Key, list[float]] = {key: [] for key in calls}
    for _ in range(repeats):
        # In an order drawn anew, so that nobody always comes after the same one.
        for key in rng.sample(list(calls), len(calls)):
            if spent[key] < budget:
                seconds, _ = _timed(calls[key])
                spent[key] += seconds
                if seconds < SHORT:
                    # As in training, where a step follows its like: not what another library has
                    # left in the caches, nor its threads, still spinning.
                    seconds, _ = _timed(calls[key])
                    spent[key] += seconds
                times[key].append(1e3 * seconds)
            tick()
    return {
        key: Timing(loss, times[key] or [1e3 * seconds], bool(times[key]))
        for key, (seconds, loss) in first.items()
    }


def _timed(call: Call) -> tuple[float, float]:
    """Seconds and the loss; the rest of what was computed is freed before the next call."""
    start = time.perf_counter()
    computed = call()
    return time.perf_counter() - start, float(computed[0])


def machine(libraries: Iterable[str]) -> dict[str, Any]:
    """What the figures were taken on, and with which versions."""
    names = dict.fromkeys(["jaxctc", "jax", "jaxlib", "numpy", *libraries])
    return {
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: importlib.import_module(name).__version__ for name in names},
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")  # platform.processor() is empty on most Linux systems
    lines = information.read_text().splitlines() if information.exists() else []
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def in_words(where: Mapping[str, Any]) -> str:
    """A line above a table."""
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    return (
        f"{where['device']}; {where['processor']}, {where['cores']} cores, load"
        f" {where['load']:.1f} at the start; Python {where['python']}, {versions}"
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In markdown."""
    head, *body = ("| " + " | ".join(line) + " |" for line in [header, *rows])
    return "\n".join([head, "|---" * len(header) + "|", *body])


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """What to measure, how often, and where to write to."""
    tasks = {"both": list(TASKS), **{task: [task] for task in TASKS}}
    parser.add_argument(
        "--task",
        dest="tasks",
        type=names_from(tasks),
        default=list(TASKS),
        help="both, grad (loss and gradient) or loss (alone); default: both",
    )
    parser.add_argument("--repeats", type=positive, default=15, help="rounds (default: 15)")
    parser.add_argument("--json", type=file_to_write, help="also write all figures to this file")
    parser.add_argument("--png", type=file_to_write, help="also draw them")


def positive(text: str) -> int:
    """An argument that counts something."""
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"must be a positive integer; got {text!r}")
    return int(text)


def file_to_write(text: str) -> Path:
    """Whether there can be such a file is found out before anything is measured."""
    path = Path(text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        raise argparse.ArgumentTypeError(f"must be in a folder; got {text!r}") from None
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"must be a file, not a folder; got {text!r}")
    return path


def names_from(meanings: Mapping[str, Sequence[str]]) -> Callable[[str], list[str]]:
    """An argument that lists names with commas between; one of them may stand for several."""

    def parse(text: str) -> list[str]:
        for name in text.split(","):
            if name not in meanings:
                known = ", ".join(meanings)
                raise argparse.ArgumentTypeError(f"must be among {known}; got {name!r}")
        return list(dict.fromkeys(one for name in text.split(",") for one in meanings[name]))

    return parse
