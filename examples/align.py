"""Finds where in a line of handwriting each digit stands, knowing only which digits there are.

A small network is trained for a minute with the CTC loss, which never sees a position. The
alignment of the right digits to the columns of lines it has not seen is then compared with the
columns where the digits were written. Run it with

    python examples/align.py --output out

CTC alone makes a digit a peak of a frame or two, since blanks explain the rest as well. Label
priors (`ctc_loss(..., label_priors=...)`) take away what the blank gains by being frequent, and the
digits spread over the columns they are on; `--prior-scale 0` shows the difference. They come in
once the network has begun to read: before, there is nothing to spread.

What to try next: `python -m jaxctc align` on the first line, which `--output` keeps as files
(examples/README.md has the command); then the words of a recording, by `train_speech.py` and
`align_speech.py`.
"""

import argparse
import functools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from command_line import OneLine, folder, positive, seed, share
from digit_lines import CLASSES, Lines, Scans, load_scans, make_lines
from flax import nnx
from tqdm import tqdm
from train_digits import NAMES, Reader, new_reader

import jaxctc

matplotlib.use("Agg")  # draws to files, with or without a screen
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WILDCARD = CLASSES
BATCH, TEST_LINES, SHOWN = 32, 512, 3


class Priors(NamedTuple):
    """How frequent each class is in what the network emits, and how much of that to take off."""

    log_probs: jax.Array
    """[K]."""
    scale: jax.Array


@nnx.jit
def train_step(
    model: Reader, optimizer: nnx.Optimizer, lines: Lines, priors: Priors
) -> tuple[jax.Array, Priors]:
    """One update; returns the mean loss, and the priors with this batch's part in them."""

    def mean_loss(model: Reader) -> tuple[jax.Array, jax.Array]:
        logits = model(lines.images)
        losses = jaxctc.ctc_loss(
            logits,
            lines.image_paddings,
            lines.labels,
            lines.label_paddings,
            label_priors=priors.log_probs,
            prior_scale=priors.scale,
        )
        return losses.mean(), logits

    (loss, logits), gradient = nnx.value_and_grad(mean_loss, has_aux=True)(model)
    optimizer.update(model, gradient)
    here = jnp.mean(jax.nn.softmax(logits), axis=(0, 1), where=~lines.image_paddings[..., None])
    mixed = 0.95 * jnp.exp(priors.log_probs) + 0.05 * here
    return loss, priors._replace(log_probs=jnp.log(mixed))


def train(scans: Scans, arguments: argparse.Namespace) -> tuple[Reader, Priors]:
    """A reader, and the priors it was trained with."""
    rng = np.random.default_rng(arguments.seed)
    # Layers look along the line: with fewer of them, a digit cannot be told from far away.
    model, optimizer = new_reader(arguments.seed, arguments.steps, layers=2)
    priors = Priors(jnp.log(jnp.full(CLASSES, 1 / CLASSES)), jnp.zeros(()))
    with tqdm(range(arguments.steps), unit="step", mininterval=0.5) as bar:
        for step in bar:
            share = np.clip((step / arguments.steps - 0.3) / 0.3, 0, 1)
            priors = priors._replace(scale=jnp.float32(arguments.prior_scale * share))
            loss, priors = train_step(model, optimizer, make_lines(scans, BATCH, rng), priors)
            bar.set_postfix(loss=f"{float(loss):.2f}", refresh=False)
    return model, priors


score = nnx.jit(Reader.__call__)


@nnx.jit
def align(
    model: Reader, lines: Lines, priors: Priors
) -> tuple[jaxctc.Alignment, jaxctc.Posteriors]:
    """The best alignment of every line, and the posteriors of all its alignments."""
    align = functools.partial(jaxctc.forced_align, wildcard_id=WILDCARD, wildcard_penalty=0.5)
    weigh = functools.partial(jaxctc.posteriors, wildcard_id=WILDCARD, wildcard_penalty=0.5)
    arguments = model(lines.images), lines.image_paddings, lines.labels, lines.label_paddings
    return (
        align(*arguments, label_priors=priors.log_probs, prior_scale=priors.scale),
        weigh(*arguments, label_priors=priors.log_probs, prior_scale=priors.scale),
    )


def report(lines: Lines, found: jaxctc.Alignment) -> None:
    """The first line in full, then how far all boundaries are from the truth."""
    names = [NAMES[label] for label in lines.labels[0]]
    print("digit  written in columns  aligned to  confidence")
    for place in range(int((~lines.label_paddings[0]).sum())):
        written = f"{lines.starts[0, place]}–{lines.ends[0, place]}"
        aligned = f"{found.starts[0, place]}–{found.ends[0, place]}"
        print(f"{names[place]:>5}  {written:>18}  {aligned:>10}  {found.confidences[0, place]:.3f}")
    in_use = ~lines.label_paddings
    starts, ends = np.asarray(found.starts), np.asarray(found.ends)
    off = np.abs(np.stack([starts - lines.starts, ends - lines.ends]))[:, in_use]
    middle = ((starts + ends) / 2)[in_use]
    inside = (lines.starts[in_use] <= middle) & (middle <= lines.ends[in_use])
    print(f"{in_use.sum()} digits in {len(in_use)} lines")
    print(f"aligned to a place inside the digit: {inside.mean():.4f}")
    print(f"boundaries within 1 column: {np.mean(off <= 1):.4f}, within 2: {np.mean(off <= 2):.4f}")
    print(f"mean distance of a boundary: {off.mean():.2f} columns")


def draw(lines: Lines, found: jaxctc.Alignment, shares: jaxctc.Posteriors, figure: Figure) -> None:
    """For each line: the image with the frames of each digit, and posteriors with the path."""
    rows = figure.subplots(SHOWN, 1)
    for line, ax in enumerate(rows):
        draw_line(line, lines, found, shares, ax)
        ax.set_xlabel("")
    rows[-1].set_xlabel(
        "frame (image column); brightness: posterior of each digit; white: the best alignment\n"
        "above: frames of each digit in colour, dotted lines where it was written; "
        "in the last line the transcript has * for two digits"
    )


def draw_line(
    line: int, lines: Lines, found: jaxctc.Alignment, shares: jaxctc.Posteriors, ax: Axes
) -> None:
    """One of them, with dotted lines where each digit was written."""
    alignment, posteriors = jax.tree.map(lambda part: part[line], (found, shares))
    jaxctc.plot_alignment(
        alignment,
        lines.labels[line],
        lines.label_paddings[line],
        posteriors=posteriors,
        signal=lines.images[line][~lines.image_paddings[line]],
        names=[*NAMES, "*"],
        ax=ax,
    )
    above, in_use = ax.child_axes[0], ~lines.label_paddings[line]
    assert isinstance(above, Axes)  # of the image
    for edge in (*lines.starts[line, in_use] - 0.5, *lines.ends[line, in_use] + 0.5):
        above.axvline(edge, color="black", linewidth=0.7, linestyle=":")


def with_a_wildcard(lines: Lines, line: int) -> Lines:
    """The same lines, two digits of one replaced by a wildcard: nobody wrote down which."""
    lines = Lines(*(part.copy() for part in lines))
    lines.labels[line, 1], lines.ends[line, 1] = WILDCARD, lines.ends[line, 2]
    for part, nothing in zip(lines[2:], (0, True, -1, -1), strict=True):
        part[line, 2:] = np.append(part[line, 3:], nothing)
    return lines


def save_first_line(model: Reader, lines: Lines, priors: Priors, folder: Path) -> None:
    """What `python -m jaxctc align` needs to find the digits of the first line itself."""
    logits = np.asarray(score(model, lines.images))[0]
    np.save(folder / "line.npy", logits[~lines.image_paddings[0]])
    np.save(folder / "priors.npy", np.asarray(priors.log_probs * priors.scale))
    names = [NAMES[label] for label in lines.labels[0][~lines.label_paddings[0]]]
    (folder / "line.txt").write_text("".join(names))
    (folder / "tokens.txt").write_text("\n".join(NAMES))


def main() -> None:
    """Trains, aligns, prints and draws."""
    parser = OneLine(__doc__)
    parser.add_argument("--steps", type=positive, default=600, help="updates (default: 600)")
    parser.add_argument("--seed", type=seed, default=0, help="of model and lines (default: 0)")
    parser.add_argument("--prior-scale", type=share, default=0.4, help="0 to 1 (default: 0.4)")
    parser.add_argument("--output", type=folder, help="for the picture and a line (default: none)")
    arguments = parser.parse_args()

    model, priors = train(load_scans("train"), arguments)
    lines = make_lines(load_scans("test"), TEST_LINES, np.random.default_rng(7))
    found, _ = align(model, lines, priors)
    report(lines, found)
    if arguments.output is not None:
        shown = with_a_wildcard(lines, SHOWN - 1)
        figure = plt.figure(figsize=(12, 3.2 * SHOWN), layout="constrained")
        aligned = align(model, shown, priors)
        draw(shown, *aligned, figure)
        path = arguments.output / "alignment.png"
        figure.savefig(path, dpi=110)
        figure = plt.figure(figsize=(10, 3.3), layout="constrained")
        draw_line(0, shown, *aligned, figure.subplots())
        figure.savefig(arguments.output / "line.png", dpi=110)
        save_first_line(model, lines, priors, arguments.output)
        print(f"picture: {path}")


if __name__ == "__main__":
    main()
