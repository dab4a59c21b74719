"""What one lattice gives at once, beside what it takes otherwise.

- one step of joint decoding: scores of the next tokens of all hypotheses, and their prefixes with
  one token more, beside the published algorithm, which goes through all frames for every candidate
- all changes of one label, beside a loss for each

    python -m benchmarks.changes_and_prefixes
"""

import argparse
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import jaxctc
from benchmarks.published import Rows, published_start, published_step
from benchmarks.timing import Timing, in_words, machine, measure, positive, table

FRAMES, CLASSES, BEAM, CANDIDATES, WINDOW = 850, 500, 10, 20, 100
"""34 seconds of 40 ms, word pieces, what an attention decoder proposes, and 4 seconds."""
CHANGED_FRAMES, CHANGED_LABELS, CHANGED_CLASSES = 400, 40, 40
"""A sentence of phonemes."""


def make_logits(frames: int, classes: int) -> np.ndarray:
    """As of a model that is sure of most frames, half of which are blanks."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(frames, classes)).astype(np.float32)
    sure = np.where(rng.random(frames) < 0.5, 0, rng.integers(classes, size=frames))
    logits[np.arange(frames), sure] += 10
    return logits


def decoding_steps(repeats: int) -> dict[str, Timing]:
    """One step of the whole beam, by what it scores."""
    logits = make_logits(FRAMES, CLASSES)
    rng = np.random.default_rng(1)
    tokens = rng.integers(1, CLASSES, size=(BEAM, CANDIDATES)).astype(np.int32)
    chosen, parents = jnp.asarray(tokens[:, 0]), jnp.arange(BEAM, dtype=jnp.int32)
    empty = jaxctc.prefix_scores_init(logits, None, beam_width=BEAM)
    state = jaxctc.prefix_scores_select(empty, jnp.asarray(tokens[:, 1]))

    @functools.partial(jax.jit, static_argnames="window")
    def step(
        state: jaxctc.PrefixState, tokens: jax.Array | None, window: int | None = None
    ) -> tuple:
        scores = jaxctc.prefix_scores(state, tokens, window=window)
        after = jaxctc.prefix_scores_select(state, chosen, parents)
        return scores.token[0, -1], scores, after

    log_probs = np.asarray(jax.nn.log_softmax(logits), np.float64)
    start = published_start(log_probs)
    every_row = [published_step(log_probs, start, -1, row[1:2])[1] for row in tokens]
    rows = [Rows(*(part[0] for part in each)) for each in every_row]

    def published() -> tuple:
        found = [
            published_step(log_probs, own, int(row[1]), row)
            for own, row in zip(rows, tokens, strict=True)
        ]
        return found[0][0][-1], found

    candidates = jnp.asarray(tokens)
    calls = {
        f"jaxctc, all {CLASSES} tokens": lambda: jax.block_until_ready(step(state, None)),
        f"jaxctc, {CANDIDATES} tokens": lambda: jax.block_until_ready(step(state, candidates)),
        f"all {CLASSES} tokens, window {WINDOW}": lambda: jax.block_until_ready(
            step(state, None, WINDOW)
        ),
        f"{CANDIDATES} tokens, window {WINDOW}": lambda: jax.block_until_ready(
            step(state, candidates, WINDOW)
        ),
        f"as published, {CANDIDATES} tokens": published,
    }
    with tqdm(total=len(calls) * (repeats + 1), unit="call") as bar:
        return measure(calls, repeats, 30.0, bar.update)


def changes(repeats: int) -> dict[str, Timing]:
    """All changes of one label, and one loss for each of them."""
    logits = jnp.asarray(make_logits(CHANGED_FRAMES, CHANGED_CLASSES))
    rng = np.random.default_rng(1)
    labels = jnp.asarray(rng.integers(1, CHANGED_CLASSES, size=CHANGED_LABELS), jnp.int32)
    places = jnp.repeat(jnp.arange(CHANGED_LABELS, dtype=jnp.int32), CHANGED_CLASSES)
    classes = jnp.tile(jnp.arange(CHANGED_CLASSES, dtype=jnp.int32), CHANGED_LABELS)

    @jax.jit
    def at_once(logits: jax.Array) -> tuple:
        scores = jaxctc.substitution_scores(logits, None, labels, None)
        return scores[0, 1], scores

    @jax.jit
    def one_by_one(logits: jax.Array) -> tuple:
        changed = jax.vmap(lambda place, k: labels.at[place].set(k))(places, classes)
        score = functools.partial(jaxctc.ctc_loss, logits, None)
        scores = -jax.vmap(lambda labels: score(labels, None))(changed)
        return scores[1], scores

    calls = {
        "substitution_scores": lambda: jax.block_until_ready(at_once(logits)),
        f"{CHANGED_LABELS} · {CHANGED_CLASSES} losses": lambda: jax.block_until_ready(
            one_by_one(logits)
        ),
    }
    with tqdm(total=len(calls) * (repeats + 1), unit="call") as bar:
        return measure(calls, repeats, 30.0, bar.update)


def in_rows(timings: dict[str, Timing]) -> str:
    """Quartiles of each, and how many times the first."""
    first = next(iter(timings.values())).quartiles[1]
    rows = []
    for name, timing in timings.items():
        lower, median, upper = timing.quartiles
        figures = f"{median:.2f}", f"{lower:.2f} to {upper:.2f}", f"{median / first:.1f}×"
        rows.append([name, *figures, f"{timing.loss:.4f}"])
    return table(["what", "ms", "quartiles", "times the first", "a value"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=positive, default=15, help="rounds (default: 15)")
    repeats = parser.parse_args(arguments).repeats
    print(in_words(machine([])))
    print(f"\none step, T = {FRAMES}, K = {CLASSES}, {BEAM} hypotheses\n")
    print(in_rows(decoding_steps(repeats)))
    print(f"\nchanges, T = {CHANGED_FRAMES}, N = {CHANGED_LABELS}, K = {CHANGED_CLASSES}\n")
    print(in_rows(changes(repeats)))


if __name__ == "__main__":
    main()
