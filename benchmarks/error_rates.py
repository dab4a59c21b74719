"""How fast are error rates? Beside rapidfuzz, jiwer and torchmetrics in one run.

    python -m benchmarks.error_rates [--repeats N]

Medians of interleaved calls after warm-up, in microseconds per pair. Random letters, so that
nothing can be cut short; all distances are compared before anything is timed. rapidfuzz runs on
one thread, with its fastest call for strings; torchmetrics, in Python, is timed once.
"""

import argparse
import string
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import jaxctc

SHAPES = {"256 pairs of 200 × 200": (256, 200), "4096 pairs of 30 × 30": (4096, 30)}
LETTERS = np.array(list(string.ascii_lowercase + " "))
SPACE = 26


def _calls(pairs: int, length: int) -> dict[str, Callable[[], np.ndarray]]:
    """For every library and task a call that returns the errors, of each pair or of all."""
    import jiwer
    import rapidfuzz
    from torchmetrics.functional import text

    rng = np.random.default_rng(0)
    ids = np.minimum(rng.integers(0, 30, (2, pairs, length)), SPACE).astype(np.int32)
    hyps, refs = (["".join(LETTERS[row]) for row in side] for side in ids)
    paddings = jnp.zeros((pairs, length))
    arguments = (jnp.asarray(ids[0]), paddings, jnp.asarray(ids[1]), paddings)
    distance, counts = jax.jit(jaxctc.edit_distance), jax.jit(jaxctc.error_counts)
    in_words = jax.jit(jaxctc.error_counts, static_argnames="separator")
    scorer = rapidfuzz.distance.Levenshtein.distance
    whole = jiwer.ReduceToListOfListOfChars()
    transforms = {"reference_transform": whole, "hypothesis_transform": whole}

    def operations(result: jiwer.CharacterOutput | jiwer.WordOutput) -> np.ndarray:
        return np.array(result.substitutions + result.insertions + result.deletions)

    return {
        "edit_distance": lambda: np.asarray(distance(*arguments)),
        "rapidfuzz": lambda: rapidfuzz.process.cpdist(
            hyps, refs, scorer=scorer, workers=1, dtype=np.int32
        ),
        "error_counts": lambda: np.asarray(counts(*arguments).errors),
        "jiwer, characters": lambda: operations(jiwer.process_characters(refs, hyps, **transforms)),
        "torchmetrics, characters": lambda: np.array(
            text.char_error_rate(hyps, refs) * pairs * length
        ),
        "error_counts, words": lambda: np.asarray(in_words(*arguments, separator=SPACE).errors),
        "jiwer, words": lambda: operations(jiwer.process_words(refs, hyps)),
    }


def _check(calls: dict[str, Callable[[], np.ndarray]]) -> None:
    np.testing.assert_array_equal(calls["edit_distance"](), calls["rapidfuzz"]())
    np.testing.assert_array_equal(calls["error_counts"](), calls["edit_distance"]())
    for theirs in ("jiwer, characters", "torchmetrics, characters"):
        np.testing.assert_allclose(calls["edit_distance"]().sum(), calls[theirs](), rtol=1e-6)
    np.testing.assert_array_equal(calls["error_counts, words"]().sum(), calls["jiwer, words"]())


def medians(pairs: int, length: int, repeats: int) -> dict[str, float]:
    """Microseconds per pair."""
    calls = _calls(pairs, length)
    _check(calls)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats):
        for name, call in calls.items():
            if turn == 0 or not name.startswith("torchmetrics"):
                start = time.perf_counter()
                call()
                times[name].append(1e6 * (time.perf_counter() - start) / pairs)
    return {name: float(np.median(spent)) for name, spent in times.items()}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    columns = {name: medians(*shape, repeats) for name, shape in SHAPES.items()}
    print("| µs per pair | " + " | ".join(columns) + " |")
    print("|---" * (1 + len(columns)) + "|")
    for name in next(iter(columns.values())):
        cells = [f"{column[name]:.3g}" for column in columns.values()]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
