"""Reads handwritten dates better than frame by frame: a beam, an n-gram of digits, hot words.

A small network is trained on lines of random digits, and stopped while it still makes mistakes, so
that there is something left to do for a decoder. It is then shown the lines of a register: dates
such as 19690720, in scans that it has not seen. Half of the lines bear one of five dates that are
known to recur in the register; the others bear any date from 1900 to 2099. Four decoders read the
same lines, from the same scores of the network:

- greedy: the most likely class of each column;
- beam: the most likely digits, over all the ways in which they can lie on the columns;
- beam + n-gram: a model of digits knows what a date looks like. It is estimated here from other
  dates than those on the lines, and goes through a file in the ARPA format, as if from elsewhere;
- beam + n-gram + hot words: each of the recurring dates is worth a bonus.

What the models are worth is chosen on validation lines, of other scans and other dates (but for
the recurring ones). Run it with

    python examples/decode.py --output out

What to try next: `--steps 750`, which leaves the decoders less to correct; the n-gram that
`--output` keeps, in an editor: change a probability and read it again by `jaxctc.read_arpa`;
`joint_decoding.py`.
"""

import argparse
import itertools
from collections.abc import Iterable
from datetime import date, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jax
import matplotlib
import numpy as np
from command_line import OneLine, folder, positive, seed
from digit_lines import Lines, load_scans, make_lines, write_lines
from estimate_ngrams import estimate, write_arpa
from flax import nnx
from tqdm import tqdm
from train_digits import NAMES, Reader, new_reader, train_step

import jaxctc

matplotlib.use("Agg")  # draws to files, with or without a screen
import matplotlib.pyplot as plt

BATCH, SHOWN, DRAWN = 32, 3, 2
RECURRING = ["19181111", "19450508", "19690720", "19891109", "20000101"]
DIGITS = "0123456789"
ORDER, SAMPLE = 5, 10_000
"""Of the n-gram model, and how many dates it is estimated from."""
LM_WEIGHTS, LENGTH_BONUSES = (0.25, 0.5, 1.0), (0.0, 1.0, 2.0, 3.0)
HOT_BONUSES = (2.0, 4.0, 6.0, 8.0)


class Texts(NamedTuple):
    """What is written in the register, and the dates that the n-gram model is estimated from."""

    sample: list[str]
    validation: list[str]
    test: list[str]


def draw_texts(lines: int, rng: np.random.Generator) -> Texts:
    """Dates for three purposes; none but the recurring ones serves two."""
    first, end = date(1900, 1, 1), date(2100, 1, 1)
    days = (first + timedelta(day) for day in range((end - first).days))
    others = rng.permutation(sorted({f"{day:%Y%m%d}" for day in days} - set(RECURRING))).tolist()
    recurring = rng.choice(RECURRING, (2, lines // 2)).tolist()
    edges = np.cumsum([0, SAMPLE, lines - lines // 2, lines - lines // 2])
    sample, validation, test = (others[start:end] for start, end in itertools.pairwise(edges))
    pages = (rng.permutation(recurring[0] + validation), rng.permutation(recurring[1] + test))
    return Texts(sample, *(page.tolist() for page in pages))


def date_model(texts: Iterable[str], output: Path | None) -> jaxctc.TokenNGrams:
    """An n-gram model of dates, by way of a file, which stays if there is a folder for it."""
    with TemporaryDirectory() as temporary:
        path = (output or Path(temporary)) / "dates.arpa"
        write_arpa(estimate(texts, DIGITS, ORDER), path)
        return jaxctc.read_arpa(path, NAMES)


def train(arguments: argparse.Namespace) -> Reader:
    """A reader of random digits, which knows nothing of dates."""
    scans, rng = load_scans("train"), np.random.default_rng(arguments.seed)
    model, optimizer = new_reader(arguments.seed, arguments.steps)
    with tqdm(range(arguments.steps), unit="step", mininterval=0.5) as bar:
        for _ in bar:
            loss = train_step(model, optimizer, make_lines(scans, BATCH, rng))
            bar.set_postfix(loss=f"{float(loss):.2f}", refresh=False)
    return model


class Page(NamedTuple):
    """Lines, and what the network makes of them."""

    lines: Lines
    logits: jax.Array
    """[B, T, K]."""


score = nnx.jit(Reader.__call__)


def new_page(model: Reader, split: str, texts: list[str]) -> Page:
    """The texts, written with scans of the split: the same lines on every run."""
    lines = write_lines(load_scans(split), texts, np.random.default_rng(7))
    return Page(lines, score(model, lines.images))


class Reading(NamedTuple):
    """What a decoder has read, and how wrong it is."""

    labels: jax.Array
    """[B, L], -1 after the last."""
    counts: jaxctc.ErrorCounts
    """Of each line."""


@jax.jit
def read_greedily(page: Page) -> Reading:
    """Each column for itself."""
    return _reading(jaxctc.greedy_decode(page.logits, page.lines.image_paddings).labels, page)


@jax.jit
def read_by_beam(page: Page, **guide: Any) -> Reading:
    """A prefix beam search, with whatever models and weights are given."""
    found = jaxctc.prefix_beam_search(page.logits, page.lines.image_paddings, **guide)
    return _reading(found.labels[:, 0], page)


def _reading(labels: jax.Array, page: Page) -> Reading:
    lines, no_label = page.lines, jaxctc.label_paddings_from(labels)
    counts = jaxctc.error_counts(labels, no_label, lines.labels, lines.label_paddings)
    return Reading(labels, counts)


def error_rate(reading: Reading) -> float:
    """The CER over all lines."""
    return float(reading.counts.sum().rate)


def tune(page: Page, model: jaxctc.TokenNGrams) -> tuple[dict[str, Any], dict[str, Any]]:
    """What to give the beam: the model with the best of the weights, and hot words besides."""
    guides = [
        {"language_model": model, "lm_weight": weight, "length_bonus": bonus}
        for weight in LM_WEIGHTS
        for bonus in LENGTH_BONUSES
    ]
    cers = np.array([error_rate(read_by_beam(page, **guide)) for guide in guides])
    print("validation CER, n-gram weight down, length bonus across")
    print_row("", LENGTH_BONUSES, "8.2f")
    for weight, row in zip(LM_WEIGHTS, cers.reshape(len(LM_WEIGHTS), -1), strict=True):
        print_row(f"{weight:.2f}", row, "8.4f")
    best = guides[int(cers.argmin())]

    words = [[NAMES.index(digit) for digit in text] for text in RECURRING]
    guides = [best | {"hot_words": jaxctc.hot_words(words, bonus)} for bonus in HOT_BONUSES]
    cers = np.array([error_rate(read_by_beam(page, **guide)) for guide in guides])
    print("validation CER with the best of these, hot-word bonus across")
    print_row("", HOT_BONUSES, "8.2f")
    print_row("", cers, "8.4f")
    return best, guides[int(cers.argmin())]


def print_row(title: str, numbers: Iterable[float], form: str) -> None:
    """One row of a table of numbers."""
    print(f"{title:>6}" + "".join(f"{number:{form}}" for number in numbers))


def report(page: Page, readings: dict[str, Reading], is_recurring: np.ndarray) -> None:
    """How well each decoder has read, and what the last one has made worse and left wrong."""
    total = f"lines right (of {len(is_recurring)})"
    print(f"\n{'test lines':<26}{'CER':>7}  {total}  recurring dates  other dates")
    for name, reading in readings.items():
        is_right = np.asarray(reading.counts.errors == 0)
        right = is_right.sum(), (is_right & is_recurring).sum(), (is_right & ~is_recurring).sum()
        columns = f"{right[0]:>{len(total)}}  {right[1]:>15}  {right[2]:>11}"
        print(f"{name:<26}{error_rate(reading):>7.4f}  {columns}")

    first, *_, last = (np.asarray(reading.counts.errors > 0) for reading in readings.values())
    print(
        f"\nwrong by the last decoder: {(last & ~first).sum()} lines that the first had right, and "
        f"{(last & first).sum()} others, of which the worst are"
    )
    print(worst_lines(page, list(readings.values())[-1].labels, last & first))


def worst_lines(page: Page, labels: jax.Array, is_chosen: np.ndarray) -> str:
    """What was written and what was read, for a few of the chosen lines."""
    lines, labels = page.lines, labels[is_chosen]
    return jaxctc.format_errors(
        labels,
        jaxctc.label_paddings_from(labels),
        lines.labels[is_chosen],
        lines.label_paddings[is_chosen],
        names=NAMES,
        most=SHOWN,
    )


def draw(page: Page, readings: dict[str, Reading], path: Path) -> None:
    """Error rates, and a few lines of each kind: by which decoder first read right, if by any."""
    is_right = np.stack([reading.counts.errors == 0 for reading in readings.values()])
    first = np.where(is_right.any(axis=0), is_right.argmax(axis=0), len(is_right))
    kinds = [np.flatnonzero(first == kind)[:DRAWN] for kind in range(len(is_right) + 1)]
    chosen = np.concatenate(kinds)

    height = 0.5 + 0.55 * len(chosen)
    figure = plt.figure(figsize=(13, 3 + height), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[3, height], squeeze=False)[:, 0]
    counts = {name: reading.counts for name, reading in readings.items()}
    jaxctc.plot_error_rates(counts, ax=top.subplots())
    rows = bottom.subplots(len(chosen), 2, width_ratios=[2, 3], squeeze=False)
    for line, (image, texts) in zip(chosen, rows, strict=True):
        width = int((~page.lines.image_paddings[line]).sum())
        image.imshow(page.lines.images[line, :width].T, cmap="gray_r", vmin=0, vmax=1)
        image.set_anchor("W")
        texts.text(0, 0.5, _text(page.lines.labels[line]), family="monospace", va="center")
        for place, reading in enumerate(readings.values()):
            color = "seagreen" if is_right[place, line] else "firebrick"
            text = _text(np.asarray(reading.labels[line]))
            texts.text((place + 1) / 5, 0.5, text, color=color, family="monospace", va="center")
        for axes in (image, texts):
            axes.set_axis_off()
    for place, name in enumerate(["written", *readings]):
        rows[0, 1].text(place / 5, 1.1, name, va="bottom")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _text(labels: np.ndarray) -> str:
    return "".join(NAMES[label] for label in labels if label > 0)


def main() -> None:
    """Trains, estimates, tunes, reads the test lines and prints what came of it."""
    parser = OneLine(__doc__)
    parser.add_argument("--steps", type=positive, default=450, help="updates (default: 450)")
    parser.add_argument("--lines", type=positive, default=384, help="to test (default: 384)")
    parser.add_argument("--seed", type=seed, default=0, help="of model and training (default: 0)")
    parser.add_argument("--output", type=folder, help="for picture and n-grams (default: none)")
    arguments = parser.parse_args()

    texts = draw_texts(arguments.lines, np.random.default_rng(7))
    model = date_model(texts.sample, arguments.output)
    reader = train(arguments)
    with_model, with_hot_words = tune(new_page(reader, "validation", texts.validation), model)
    test = new_page(reader, "test", texts.test)
    readings = {
        "greedy": read_greedily(test),
        "beam": read_by_beam(test),
        "beam + n-gram": read_by_beam(test, **with_model),
        "beam + n-gram + hot words": read_by_beam(test, **with_hot_words),
    }
    report(test, readings, np.isin(texts.test, RECURRING))
    if arguments.output is not None:
        path = arguments.output / "decode.png"
        draw(test, readings, path)
        print(f"picture: {path}")


if __name__ == "__main__":
    main()
