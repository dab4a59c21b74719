"""Trains a small network to read lines of handwritten digits with the CTC loss.

The network sees the columns of an image and emits, for each, scores over the blank and the ten
digits. Nothing tells it which column shows which digit: `jaxctc.ctc_loss` sums over all the ways
in which the digits of a line can lie on its columns. Run it with

    python examples/train_digits.py --output out

What to try next: `--steps 2000`, and see whether the worst lines get better; `decode.py`, where a
beam and a language model correct what the network gets wrong; `align.py`, which finds where each
digit stands.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from command_line import OneLine, folder, positive, seed
from digit_lines import CLASSES, HEIGHT, Lines, Scans, load_scans, make_lines
from flax import nnx
from tqdm import tqdm

import jaxctc

matplotlib.use("Agg")  # draws to files, with or without a screen
import matplotlib.pyplot as plt

EVALUATE_EVERY = 50
VALIDATION_BATCHES, TEST_BATCHES, EVALUATION_BATCH = 2, 8, 64
SHOWN = 4
NAMES = ["blank", *"0123456789"]


class Reader(nnx.Module):
    """Columns of an image in, class scores per column out."""

    def __init__(self, *, features: int = 64, layers: int = 3, rngs: nnx.Rngs) -> None:
        """Two convolutions over the image, then `layers` along the line alone."""
        self.strokes = nnx.Conv(1, 16, kernel_size=(3, 3), rngs=rngs)
        self.shapes = nnx.Conv(16, 32, kernel_size=(3, 3), strides=(1, 2), rngs=rngs)
        self.columns = nnx.Linear(32 * (HEIGHT // 2), features, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(features, rngs=rngs) for _ in range(layers)])
        self.context = nnx.List(
            [nnx.Conv(features, features, kernel_size=5, rngs=rngs) for _ in range(layers)]
        )
        self.norm = nnx.LayerNorm(features, rngs=rngs)
        self.classes = nnx.Linear(features, CLASSES, rngs=rngs)

    def __call__(self, images: jax.typing.ArrayLike) -> jax.Array:
        """Logits `[*B, T, K]` for images `[*B, T, HEIGHT]`."""
        return self.classes(self.hidden(images))

    def hidden(self, images: jax.typing.ArrayLike) -> jax.Array:
        """What the logits are made of, `[*B, T, features]`."""
        pixels = nnx.relu(self.strokes(jnp.asarray(images)[..., None]))
        pixels = nnx.relu(self.shapes(pixels))
        hidden = self.columns(pixels.reshape(*pixels.shape[:-2], -1))
        for norm, conv in zip(self.norms, self.context, strict=True):
            hidden += conv(nnx.gelu(norm(hidden)))
        return nnx.gelu(self.norm(hidden))


@nnx.jit
def train_step(model: Reader, optimizer: nnx.Optimizer, lines: Lines) -> jax.Array:
    """One update; returns the mean loss of the batch, in nats per line."""

    def mean_loss(model: Reader) -> jax.Array:
        logits = model(lines.images)
        losses = jaxctc.ctc_loss(logits, lines.image_paddings, lines.labels, lines.label_paddings)
        return losses.mean()

    loss, gradient = nnx.value_and_grad(mean_loss)(model)
    optimizer.update(model, gradient)
    return loss


class CharacterErrorRate(nnx.Metric):
    """Adds up error counts on the device; divides once, when asked."""

    def __init__(self) -> None:
        """Nothing has been counted."""
        self.counts = nnx.metrics.MetricState(jaxctc.ErrorCounts.zero())

    def reset(self) -> None:
        """Forgets what has been counted."""
        self.counts.set_value(jaxctc.ErrorCounts.zero())

    def update(self, **kwargs: jaxctc.ErrorCounts) -> None:
        """Adds the counts of a batch, given as `counts`."""
        self.counts.set_value(self.counts.get_value() + kwargs["counts"].sum())

    def compute(self) -> jax.Array:
        """Errors per digit."""
        return self.counts.get_value().rate


@nnx.jit
def count_errors(model: Reader, rate: CharacterErrorRate, lines: Lines) -> None:
    """Decodes a batch of lines and counts its errors, all of it on the device."""
    best = jaxctc.greedy_decode(model(lines.images), lines.image_paddings)
    no_label = jaxctc.label_paddings_from(best.labels)
    counts = jaxctc.error_counts(best.labels, no_label, lines.labels, lines.label_paddings)
    rate.update(counts=counts)


def evaluate(model: Reader, batches: Lines) -> CharacterErrorRate:
    """The errors in `[batches, B, …]` lines."""
    rate = CharacterErrorRate()
    for batch in range(len(batches.images)):
        count_errors(model, rate, Lines(*(part[batch] for part in batches)))
    return rate


@nnx.jit
def read(model: Reader, lines: Lines) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Class probabilities [B, T, K], decoded labels [B, T] and errors [B] of `[B, …]` lines."""
    logits = model(lines.images)
    decoded = jaxctc.greedy_decode(logits, lines.image_paddings).labels
    no_label = jaxctc.label_paddings_from(decoded)
    errors = jaxctc.edit_distance(decoded, no_label, lines.labels, lines.label_paddings)
    return jax.nn.softmax(logits), decoded, errors


def new_reader(seed: int, steps: int, *, layers: int = 3) -> tuple[Reader, nnx.Optimizer]:
    """A reader that knows nothing yet, and what will train it in so many steps."""
    model = Reader(layers=layers, rngs=nnx.Rngs(seed))
    schedule = optax.warmup_cosine_decay_schedule(0, 5e-3, max(1, steps // 10), steps + 1, 5e-5)
    return model, nnx.Optimizer(model, optax.adamw(schedule, weight_decay=0.05), wrt=nnx.Param)


class Curves(NamedTuple):
    """What training looked like."""

    losses: list[float]
    """Nats per line, one per step."""
    cer_steps: list[int]
    cers: list[float]
    """On the validation lines, after each of `cer_steps`."""


def train(scans: Scans, validation: Lines, arguments: argparse.Namespace) -> tuple[Reader, Curves]:
    """Trains a new reader on an endless supply of lines."""
    rng = np.random.default_rng(arguments.seed)
    model, optimizer = new_reader(arguments.seed, arguments.steps)
    curves = Curves([], [], [])
    with tqdm(range(1, arguments.steps + 1), unit="step", mininterval=0.5) as bar:
        bar.set_postfix_str("compiling …")
        for step in bar:
            lines = make_lines(scans, arguments.batch_size, rng)
            curves.losses.append(float(train_step(model, optimizer, lines)))
            if step % EVALUATE_EVERY == 0 or step == arguments.steps:
                curves.cer_steps.append(step)
                curves.cers.append(float(evaluate(model, validation).compute()))
            cer = f"{curves.cers[-1]:.3f}" if curves.cers else "…"
            loss = f"{np.mean(curves.losses[-20:]):.2f}"
            bar.set_postfix(loss=loss, CER=cer, refresh=False)
    return model, curves


def evaluation_lines(split: str, batches: int) -> Lines:
    """The same lines on every run, whatever the seed of the training."""
    lines = make_lines(load_scans(split), batches * EVALUATION_BATCH, np.random.default_rng(7))
    return Lines(*(part.reshape(batches, EVALUATION_BATCH, *part.shape[1:]) for part in lines))


def shown_lines(errors: np.ndarray) -> list[int]:
    """The first lines, and of the others the one with most errors."""
    first = list(range(SHOWN - 1))
    return [*first, len(first) + int(errors[len(first) :].argmax())]


def draw(model: Reader, curves: Curves, lines: Lines, path: Path) -> None:
    """The curves; the first lines, and of the others the worst, with what the network saw."""
    probabilities, decoded, errors = map(np.asarray, read(model, lines))
    chosen = shown_lines(errors)

    figure = plt.figure(figsize=(12, 3 + 2.6 * SHOWN), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[3, 2.6 * SHOWN], squeeze=False)[:, 0]
    left, right = top.subplots(1, 2)
    left.semilogy(np.arange(1, len(curves.losses) + 1), curves.losses, linewidth=0.8)
    left.set(title="training loss", xlabel="step", ylabel="nats per line")
    right.plot(curves.cer_steps, curves.cers, marker=".")
    right.set(title="validation CER", xlabel="step", ylim=(0, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)

    rows = bottom.subplots(2 * SHOWN, 1, height_ratios=[1, 2.2] * SHOWN)
    for line, image, heat in zip(chosen, rows[::2], rows[1::2], strict=True):
        width = int((~lines.image_paddings[line]).sum())
        truth, guess = _text(lines.labels[line]), _text(decoded[line])
        verdict = "right" if truth == guess else f"errors: {errors[line]}"
        image.imshow(lines.images[line, :width].T, cmap="gray_r", aspect="auto", vmin=0, vmax=1)
        title = f"true {truth}   decoded {guess}   ({verdict})"
        image.set_title(title, loc="left", family="monospace")
        image.set_axis_off()
        jaxctc.plot_posteriors(
            probabilities[line], lines.image_paddings[line], names=NAMES, ax=heat
        )
        heat.set_xlabel("")
    rows[-1].set_xlabel("frame (image column); brightness: probability of the class")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def worst_lines(model: Reader, lines: Lines) -> str:
    """What was written and what was read, for a few lines that went wrong."""
    _, decoded, _ = read(model, lines)
    no_label = jaxctc.label_paddings_from(decoded)
    return jaxctc.format_errors(
        decoded, no_label, lines.labels, lines.label_paddings, names=NAMES, most=SHOWN
    )


def _text(labels: np.ndarray) -> str:
    return "".join(str(label - 1) for label in labels if label > 0)


def main() -> None:
    """Trains, tests, draws, and prints the test CER."""
    parser = OneLine(__doc__)
    parser.add_argument("--steps", type=positive, default=750, help="updates (default: 750)")
    parser.add_argument("--seed", type=seed, default=0, help="of model and lines (default: 0)")
    parser.add_argument("--batch-size", type=positive, default=32, help="lines (default: 32)")
    parser.add_argument("--output", type=folder, help="folder for the picture (default: none)")
    arguments = parser.parse_args()

    validation = evaluation_lines("validation", VALIDATION_BATCHES)
    test = evaluation_lines("test", TEST_BATCHES)
    model, curves = train(load_scans("train"), validation, arguments)
    if arguments.output is not None:
        path = arguments.output / "digits.png"
        draw(model, curves, Lines(*(part[0] for part in test)), path)
        print(f"picture: {path}")
    rate = evaluate(model, test)
    print(worst_lines(model, Lines(*(part[0] for part in test))))
    counts = rate.counts.get_value()
    print(
        f"{int(counts.substitutions)} substitutions, {int(counts.insertions)} insertions and "
        f"{int(counts.deletions)} deletions in {int(counts.reference_length)} digits"
    )
    print(f"test CER: {float(rate.compute()):.4f}")


if __name__ == "__main__":
    main()
