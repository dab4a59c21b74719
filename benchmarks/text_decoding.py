"""How fast does a batch become text? `adapters.pyctcdecode` beside pyctcdecode, in one run.

    pip install --no-deps pyctcdecode pygtrie && pip install kenlm
    python -m benchmarks.text_decoding [--beam-width W ...] [--repeats N]

`decode_batch` of 16 utterances, with pyctcdecode's own defaults but for the beam width; medians in
milliseconds per batch after a warm-up, both in turn. "unsure": the task of `benchmarks.decoding`,
whose scores are noise in a fifth of the frames; "sure": real log-probabilities, those that
pyctcdecode brings along for its own tests, cut to different lengths; so are its 2-grams, which
know few of the words that are said.
"""

import argparse
import functools
import importlib
import json
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.decoding import make_task
from jaxctc.adapters import pyctcdecode as ours

BATCH = 16


def tasks(folder: Path) -> dict[str, tuple[list[str], list[np.ndarray], str | None]]:
    """Labels, logits and a language model by name."""
    task = make_task(28, folder)
    unsure = list(task.logits)
    found = {
        "unsure": (task.names, unsure, None),
        "unsure, 3-grams": (task.names, unsure, str(task.word_model)),
    }
    package = Path(str(importlib.import_module("pyctcdecode").__file__)).parent
    file = package / "tests" / "sample_data" / "libri_logits.json"
    if file.exists():
        logits = np.array(json.loads(file.read_text()), np.float32)
        labels = [" ", *map(chr, range(ord("a"), ord("z") + 1)), "'", ""]
        sure = [logits[: 300 + 4 * k] for k in range(BATCH)]
        found["sure"] = (labels, sure, None)
        found["sure, 2-grams"] = (labels, sure, str(file.with_name("bugs_bunny_kenlm.arpa")))
    return found


def medians(calls: list[Callable[[], Any]], repeats: int) -> list[float]:
    """Milliseconds of each call, the calls in turn."""
    spent = np.zeros((repeats, len(calls)))
    for row in spent:
        for place, call in enumerate(calls):
            start = time.perf_counter()
            call()
            row[place] = 1e3 * (time.perf_counter() - start)
    return np.median(spent, axis=0).tolist()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--beam-width", type=int, nargs="*", default=[16, 100])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # pyctcdecode's, of small word lists
    theirs = importlib.import_module("pyctcdecode")

    print("| task | beam width | jaxctc, ms | pyctcdecode, ms | ratio | first call, s |")
    print("|---" * 6 + "|")
    with tempfile.TemporaryDirectory() as folder:
        for name, (labels, logits, model) in tasks(Path(folder)).items():
            decoders = [module.build_ctcdecoder(labels, model) for module in (ours, theirs)]
            for width in arguments.beam_width:
                options = {"pool": None, "logits_list": logits, "beam_width": width}
                calls = [functools.partial(each.decode_batch, **options) for each in decoders]
                start = time.perf_counter()
                calls[0]()
                first = time.perf_counter() - start
                mine, other = medians(calls, arguments.repeats)
                cells = [name, width, f"{mine:.1f}", f"{other:.1f}", f"{other / mine:.1f}×"]
                print("| " + " | ".join(map(str, [*cells, f"{first:.1f}"])) + " |")


if __name__ == "__main__":
    main()
