"""What does a lexicon cost? Memory, time to build it, and the beam with it beside the beam without.

    python -m benchmarks.lexicon [--words FILE] [--count N] [--classes K ...] [--repeats N]

The words are the most frequent of English, by the package wordfreq (`pip install wordfreq`), or
those of a file, one a line; those with other signs than a to z and ' are left out. With 29 classes
the tokens are these letters, and with more also the most frequent pieces of words. 16 utterances
of 500 frames, a beam of 16: words of the list at random, spelt out with blanks between. One label
in ten is heard as another, with the right one second. Milliseconds are medians per utterance of
interleaved calls after warm-up; WER is the word error rate, without the lexicon and with it.
"""

import argparse
import functools
import importlib
import string
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxctc
from benchmarks.timing import measure, positive, table

BATCH, FRAMES, WIDTH = 16, 500, 16
SPACING = 5
"""Frames for each label: blanks, and two of its own."""
LETTERS = string.ascii_lowercase + "'"
HEADER = ("K", "words", "states", "rows", "MB", "built, s", "ms without", "ms with", "WER")


class Task(NamedTuple):
    """What is to be decoded, and what is said there."""

    vocabulary: jaxctc.Vocabulary
    logits: np.ndarray
    texts: list[str]


def frequent_words(count: int) -> list[str]:
    """Of English, the most frequent first; wordfreq is in no extra, so types are not checked."""
    wordfreq: Any = importlib.import_module("wordfreq")
    return wordfreq.top_n_list("en", count)


def make_vocabulary(classes: int, words: Sequence[str]) -> jaxctc.Vocabulary:
    """Letters, and with more classes than they need also pieces of words."""
    if classes == len(LETTERS) + 2:
        return jaxctc.Vocabulary(["", "|", *LETTERS], separator="|")
    counts: defaultdict[str, float] = defaultdict(float)
    for rank, word in enumerate(words[:30_000]):
        marked = f"▁{word}"
        for start in range(len(marked)):
            for end in range(start + 2, min(len(marked), start + 6) + 1):
                counts[marked[start:end]] += (end - start) / (rank + 10)  # Zipf's law
    pieces = sorted(counts, key=lambda piece: -counts[piece])[: classes - len(LETTERS) - 2]
    return jaxctc.Vocabulary(["", "▁", *LETTERS, *pieces], separator="▁")


def make_task(classes: int, words: Sequence[str]) -> Task:
    """Scores for words at random, and the words."""
    rng = np.random.default_rng(0)
    vocabulary = make_vocabulary(classes, words)
    logits = rng.normal(size=(BATCH, FRAMES, classes)).astype(np.float32)
    texts = []
    is_blank = np.arange(FRAMES) % SPACING < SPACING - 2
    for row in logits:
        text: list[str] = []
        labels = np.zeros(0, np.int32)
        while SPACING * len(labels) < FRAMES:
            text.append(str(rng.choice(words)))
            labels = vocabulary.encode(" ".join(text)).labels
        texts.append(" ".join(text[:-1]))  # the last may be cut off
        labels = labels[: FRAMES // SPACING]
        is_right = rng.random(len(labels)) >= 0.1
        heard = np.where(is_right, labels, rng.integers(2, classes, len(labels)))
        row[is_blank, 0] += 8
        row[~is_blank, np.repeat(heard, 2)] += 8
        row[~is_blank, np.repeat(labels, 2)] += np.repeat(np.where(is_right, 0, 7), 2)
    return Task(vocabulary, logits, texts)


def word_error_rate(task: Task, labels: jax.Array) -> float:
    """The last word of the frames, which may be part of one, is left out."""
    found = [words[:-1] for words in task.vocabulary.words(labels)]
    said = [text.split() for text in task.texts]
    ids: dict[str, int] = {}
    size = max(map(len, found + said))
    rows = np.full((2, BATCH, size), -1, np.int32)
    for side, texts in zip(rows, (found, said), strict=True):
        for row, words in zip(side, texts, strict=True):
            row[: len(words)] = [ids.setdefault(word, len(ids)) for word in words]
    counts = jaxctc.error_counts(rows[0], rows[0] < 0, rows[1], rows[1] < 0)
    return float(counts.sum().rate)


def row_of(classes: int, words: Sequence[str], repeats: int) -> list[str]:
    """One row of the table."""
    task = make_task(classes, words)
    start = time.perf_counter()
    lexicon = jaxctc.build_lexicon(words, task.vocabulary)
    seconds = time.perf_counter() - start
    megabytes = sum(leaf.nbytes for leaf in jax.tree.leaves(lexicon)) / 1e6
    logits = jnp.asarray(task.logits)
    search = jax.jit(functools.partial(jaxctc.prefix_beam_search, beam_width=WIDTH, max_length=200))

    def call(lexicon: jaxctc.Lexicon | None) -> tuple[jax.Array, jax.Array]:
        best = jax.block_until_ready(search(logits, None, lexicon=lexicon))
        return best.scores[0, 0], best.labels[:, 0]

    calls = {"without": lambda: call(None), "with": lambda: call(lexicon)}
    timings = measure(calls, repeats, budget=60.0, tick=lambda: None)
    without, beside = (timings[name].quartiles[1] / BATCH for name in calls)
    rates = [word_error_rate(task, one()[1]) for one in calls.values()]
    sizes = [classes, len(words), lexicon.row.shape[0], lexicon.tokens.shape[0]]
    figures = [f"{megabytes:.1f}", f"{seconds:.1f}", f"{without:.2f}"]
    figures += [f"{beside:.2f} ({beside / without:.2f}×)", f"{rates[0]:.2f}, {rates[1]:.2f}"]
    return [*map(str, sizes), *figures]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--words", type=Path, help="a word a line (default: those of wordfreq)")
    parser.add_argument(
        "--count", type=positive, default=100_000, help="how many (default: 100000)"
    )
    parser.add_argument("--classes", type=positive, nargs="*", default=[29, 1024, 5000])
    parser.add_argument("--repeats", type=positive, default=7)
    options = parser.parse_args(arguments)
    found = options.words.read_text().split() if options.words else frequent_words(options.count)
    words = [word for word in found[: options.count] if set(word) <= set(LETTERS)]
    print(table(HEADER, [row_of(classes, words, options.repeats) for classes in options.classes]))


if __name__ == "__main__":
    main()
