"""How right are float32 losses and gradients? Against float64, at four lengths.

    python -m benchmarks.accuracy [--json FILE] [--longest T]

Each cell: relative error of the loss · largest absolute error of the gradient with respect to the
logits. The truth is PyTorch's CTC loss in float64, or jaxctc's where PyTorch is not installed.
Random logits are normal with standard deviation 1, 5 or 20. "peaked" are those of a trained model:
unit noise, and in each frame a margin of 8 for the class of one alignment. "sure" has a margin of
12, and a loss so small that its absolute error is what counts; the table gives it in brackets.
"""

import argparse
import gc
import importlib.util
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import jaxctc
from benchmarks.timing import table

SIZES = [(100, 20), (1000, 150), (5000, 700), (20000, 4000)]
CLASSES = 32
KINDS = ["×1", "×5", "×20", "peaked", "sure"]
MARGINS = {"peaked": 8, "sure": 12}


class Problem(NamedTuple):
    """One example: logits [T, K] and labels [N]."""

    logits: np.ndarray
    labels: np.ndarray


Solution = tuple[float, np.ndarray]
"""Loss and gradient."""


def problem(kind: str, frames: int, places: int) -> Problem:
    """The same numbers on every run."""
    rng = np.random.default_rng([KINDS.index(kind), frames])
    labels = rng.integers(1, CLASSES, places)
    logits = rng.normal(size=(frames, CLASSES)).astype(np.float32)
    if kind in MARGINS:
        path = np.zeros(frames, int)
        path[np.sort(rng.choice(frames // 2, places, replace=False)) * 2] = labels
        logits[np.arange(frames), path] += MARGINS[kind]
    else:
        logits *= np.float32(kind[1:])
    return Problem(logits, labels)


def _jax(loss: Callable[..., jax.Array]) -> Callable[[Problem], Solution]:
    @jax.jit
    def batch_of_one(logits, labels):
        return jax.value_and_grad(lambda logits: loss(logits[None], labels[None]).sum())(logits)

    def solve(given: Problem) -> Solution:
        value, gradient = batch_of_one(given.logits, given.labels)
        return float(value), np.asarray(gradient, np.float64)

    return solve


def _jaxctc(logits, labels):
    return jaxctc.ctc_loss(logits, None, labels, None)


def _optax(logits, labels):
    no_padding = jnp.zeros(logits.shape[:2]), jnp.zeros(labels.shape)
    return optax.ctc_loss(logits, no_padding[0], labels, no_padding[1])


def _keras(logits, labels):
    import keras

    label_lengths, frames = jnp.full(1, labels.shape[1]), jnp.full(1, logits.shape[1])
    return jnp.asarray(keras.ops.ctc_loss(labels, logits, label_lengths, frames))


def _torch(double: bool) -> Callable[[Problem], Solution]:
    def solve(given: Problem) -> Solution:
        import torch

        dtype = torch.float64 if double else torch.float32
        logits = torch.tensor(given.logits, dtype=dtype, requires_grad=True)
        loss = torch.nn.functional.ctc_loss(
            logits.log_softmax(-1)[:, None],
            torch.tensor(given.labels)[None],
            torch.tensor([len(given.logits)]),
            torch.tensor([len(given.labels)]),
            reduction="sum",
        )
        loss.backward()
        assert logits.grad is not None
        return loss.item(), logits.grad.double().numpy()

    return solve


def in_double(given: Problem) -> Solution:
    """Ours in float64, on the CPU."""
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        return _jax(_jaxctc)(Problem(given.logits.astype(np.float64), given.labels))


def contestants() -> dict[str, Callable[[Problem], Solution]]:
    """Every library at hand, ours first."""
    solvers = {"jaxctc": _jax(_jaxctc), "optax": _jax(_optax)}
    if importlib.util.find_spec("torch"):
        solvers["torch"] = _torch(double=False)
    if importlib.util.find_spec("keras"):
        os.environ["KERAS_BACKEND"] = "jax"
        solvers["keras"] = _jax(_keras)
    return solvers


def errors(
    kind: str,
    size: tuple[int, int],
    solvers: Mapping[str, Callable[[Problem], Solution]],
    truth: Callable[[Problem], Solution],
) -> dict[str, Any]:
    """One row: absolute errors of loss and gradient, by library."""
    frames, places = size
    given = problem(kind, frames, places)
    loss, gradient = truth(given)
    row = {"T": frames, "N": places, "logits": kind, "loss": loss, "errors": {}}
    for name, solve in solvers.items():
        value, slope = solve(given)
        row["errors"][name] = (abs(value - loss), float(abs(slope - gradient).max()))
        jax.clear_caches()
        gc.collect()
    return row


def errors_table(figures: Sequence[Mapping[str, Any]]) -> str:
    """The rows in markdown."""
    names = list(figures[0]["errors"])

    def cells(row: Mapping[str, Any]) -> list[str]:
        return [
            f"{row['T']}, {row['N']}",
            row["logits"],
            f"{row['loss']:.4g}",
            *(
                f"[{wrong:.0e}] · {slope:.0e}"
                if row["logits"] == "sure"
                else f"{wrong / row['loss']:.0e} · {slope:.0e}"
                for wrong, slope in row["errors"].values()
            ),
        ]

    return table(["T, N", "logits", "loss", *names], map(cells, figures))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--longest", type=int, default=SIZES[-1][0], help="stop at this T")
    arguments = parser.parse_args()

    solvers = contestants()
    truth = _torch(double=True) if "torch" in solvers else in_double
    sizes = [size for size in SIZES if size[0] <= arguments.longest]
    cells = [(size, kind) for size in sizes for kind in KINDS]
    figures = [errors(kind, size, solvers, truth) for size, kind in tqdm(cells, unit="cell")]
    print(errors_table(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
