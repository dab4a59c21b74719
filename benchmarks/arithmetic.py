"""What does the arithmetic look like? The figures of docs/arithmetic.md, from the library's rows.

    python -m benchmarks.arithmetic [--frames 5000] [--labels 700] [--output docs/figures]

Three figures: two passes that meet in the middle; one weight as mantissa and exponent, frame by
frame; and how far the weights of a log domain and of WIDE numbers are off, both in float32, from
those in float64. The last two are of random logits, those of "×1" in `benchmarks.accuracy`.
"""

import argparse
import functools
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from benchmarks.accuracy import Problem, problem
from jaxctc._core import recursion
from jaxctc._core.emissions import build_lattice, prepare_inputs
from jaxctc._core.semirings import LOG, SMALLEST, WIDE, Semiring

SMALLEST_FLOAT = -149
"""Float32 has nothing between 2 to this power and zero."""


@functools.partial(jax.jit, static_argnums=(0, 1))
def _rows(semiring: Semiring, backward: bool, given: Problem) -> recursion.Alpha:
    config, inputs = prepare_inputs(
        "arithmetic", given.logits, None, given.labels, None, blank_id=0, logits_normalized=False
    )
    problem = build_lattice(inputs, config).problem
    return recursion.rows(problem, semiring, label_loop=True, backward=backward)


def rows(semiring: Semiring, given: Problem, *, backward: bool = False) -> tuple[np.ndarray, ...]:
    """The arrays that the numbers consist of, each [T, S], states in the order of the lattice."""
    blank, label = jax.device_get(_rows(semiring, backward, given))

    def interleaved(blank: np.ndarray, label: np.ndarray) -> np.ndarray:
        states = np.empty((len(blank), blank.shape[1] + label.shape[1]), blank.dtype)
        states[:, ::2], states[:, 1::2] = blank, label
        return states

    return tuple(map(interleaved, jax.tree.leaves(blank), jax.tree.leaves(label)))


def in_nats(number: tuple[np.ndarray, ...]) -> np.ndarray:
    """Logarithms in float64, so that nothing is lost on the way out."""
    if len(number) == 1:
        return number[0].astype(np.float64)
    mantissa, exponent = number
    logs = np.log(mantissa.astype(np.float64)) + exponent * np.log(2)
    return np.where(exponent > SMALLEST, logs, -np.inf)


def log_sum(logs: np.ndarray) -> np.ndarray:
    """Over the states of each frame."""
    largest = logs.max(axis=-1)
    return largest + np.log(np.exp(logs - largest[..., None]).sum(axis=-1))


def draw_meeting(path: Path) -> float:
    """Both passes up to the middle, then shares. Returns how far totals of frames differ, nats."""
    frames, names = 24, [*"-a-b-b-c-"]
    logits = np.random.default_rng(4).normal(size=(frames, 4)).astype(np.float32)
    logits[np.arange(frames), np.repeat([0, 1, 0, 2, 0, 2, 3, 0], 3)] += 2
    given = Problem(logits, np.array([1, 2, 2, 3]))
    alpha, beta = (in_nats(rows(WIDE, given, backward=backward)) for backward in (False, True))
    classes = ["-abc".index(name) for name in names]
    emission = (logits - logits.max(axis=-1, keepdims=True))[:, classes]
    through = alpha + beta - emission  # both passes include the emission of the frame
    totals = log_sum(through)

    figure, (passes, shares) = plt.subplots(2, 1, figsize=(6.4, 5.2), sharex=True)
    halves = np.where(np.arange(frames)[:, None] < frames // 2, alpha, beta)
    shown = np.ma.masked_invalid(halves - halves.max(axis=-1, keepdims=True)).T / np.log(10)
    image = passes.imshow(shown, aspect="auto", cmap="Blues", vmin=-6)
    figure.colorbar(image, ax=passes, label="log₁₀ of the weight,\nlargest of the frame = 0")
    passes.set_title("alpha →  from the first frame          from the last frame  ← beta")
    image = shares.imshow(np.exp(through - totals[:, None]).T, aspect="auto", cmap="Oranges")
    figure.colorbar(image, ax=shares, label="share of the total")
    shares.set_title("alpha · beta / total: how likely each state is in each frame")
    shares.set_xlabel("frame")
    for axes in (passes, shares):
        axes.axvline(frames / 2 - 0.5, color="black", lw=1, ls=":")
        axes.set_yticks(range(len(names)), names)
        axes.set_ylabel("state")
    _save(figure, path)
    return float(np.ptp(totals))


def draw_wide(path: Path, given: Problem) -> int:
    """The weight of the likeliest state. Returns the first frame where float32 has zero for it."""
    wide = rows(WIDE, given)
    likeliest = in_nats(wide).argmax(axis=-1)[:, None]
    mantissa, exponent = (np.take_along_axis(part, likeliest, axis=-1)[:, 0] for part in wide)

    figure, (high, low) = plt.subplots(2, 1, figsize=(6.4, 4.2), sharex=True)
    high.plot(exponent, lw=1)
    high.axhspan(exponent.min(), SMALLEST_FLOAT, color="black", alpha=0.08, lw=0)
    high.text(0, 0.9 * exponent.min(), "float32 alone is zero here", va="bottom")
    high.set_ylabel("exponent e")
    low.plot(mantissa, ".", ms=2)
    low.set(ylabel="mantissa m", ylim=(0.95, 2.05), xlabel="frame")
    high.set_title("alpha of the likeliest state = m · 2ᵉ")
    _save(figure, path)
    return int(np.argmax(exponent < SMALLEST_FLOAT))


def draw_errors(path: Path, given: Problem) -> dict[str, float]:
    """How far the sum over states is off in every frame. Returns the largest error of each."""

    def sums(semiring: Semiring, given: Problem) -> np.ndarray:
        return log_sum(in_nats(rows(semiring, given)))

    with jax.enable_x64(True):
        truth = sums(LOG, Problem(given.logits.astype(np.float64), given.labels))
    figure, axes = plt.subplots(figsize=(6.4, 3.6))
    frames, largest = np.arange(1, len(truth) + 1), {}
    for semiring, name, color in ((LOG, "log domain", "tab:orange"), (WIDE, "WIDE", "tab:blue")):
        off = np.abs(sums(semiring, given) - truth)
        largest[name] = float(off.max())
        axes.plot(frames, off, color=color, lw=1, label=f"{name}, float32")
    half = np.spacing(np.abs(truth).astype(np.float32)) / 2
    axes.plot(frames, half, "k--", lw=1, label="half the gap between float32 numbers there")
    axes.set(xscale="log", yscale="log", xlabel="frame", ylabel="error of log Σ alpha, nats")
    axes.legend()
    _save(figure, path)
    return largest


def _save(figure: Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Draws, and prints what the figures show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frames", type=int, default=5000)
    parser.add_argument("--labels", type=int, default=700)
    parser.add_argument("--output", type=Path, default=Path("docs/figures"))
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    plt.rcParams |= {"font.size": 9, "axes.titlesize": 9}

    differ = draw_meeting(options.output / "meeting.png")
    print(f"totals of all 24 meeting points differ by {differ:.1e} nats")
    given = problem("×1", options.frames, options.labels)
    start = Problem(given.logits[:300], given.labels[:60])
    print(f"float32 alone is zero from frame {draw_wide(options.output / 'wide.png', start)} on")
    for name, error in draw_errors(options.output / "errors.png", given).items():
        print(f"{name}: off by up to {error:.1e} nats")


if __name__ == "__main__":
    main()
