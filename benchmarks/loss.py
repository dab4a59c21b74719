"""How fast? Loss and gradient, and loss alone, beside optax and PyTorch in one run.

    python -m benchmarks.loss [SHAPE ...] [--repeats N]

Medians of interleaved calls after warm-up, in milliseconds, with inputs as arguments. On a machine
that does other things, too, ratios say more than times.
"""

import argparse
import importlib.util
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import jaxctc


class Shape(NamedTuple):
    """Examples, frames, labels, classes."""

    batch: int
    frames: int
    labels: int
    classes: int


SHAPES = {
    "char": Shape(64, 400, 60, 32),
    "bpe1k": Shape(32, 1000, 200, 1024),
    "bpe5k": Shape(8, 500, 100, 5000),
    "digits": Shape(128, 64, 12, 12),
    "long": Shape(1, 20000, 4000, 32),
}
Call = Callable[[], object]


def _jax_calls(loss: Callable[..., jax.Array], arguments: tuple[jax.Array, ...]) -> list[Call]:
    both = jax.jit(jax.value_and_grad(lambda *arguments: loss(*arguments).sum()))
    alone = jax.jit(loss)
    return [
        lambda: jax.block_until_ready(both(*arguments)),
        lambda: jax.block_until_ready(alone(*arguments)),
    ]


def _torch_calls(logits: np.ndarray, labels: np.ndarray) -> list[Call]:
    import torch

    scores, targets = torch.tensor(logits, requires_grad=True), torch.tensor(labels)
    frames = torch.full((len(logits),), logits.shape[1])
    places = torch.full((len(logits),), labels.shape[1])

    def loss() -> torch.Tensor:
        log_probs = scores.log_softmax(-1).transpose(0, 1)
        return torch.nn.functional.ctc_loss(log_probs, targets, frames, places, reduction="sum")

    def both() -> None:
        scores.grad = None
        loss().backward()

    def alone() -> None:
        with torch.no_grad():
            loss()

    return [both, alone]


def medians(shape: Shape, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of [loss and gradient, loss alone] for every library at hand."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(shape.batch, shape.frames, shape.classes)).astype(np.float32)
    labels = rng.integers(1, shape.classes, (shape.batch, shape.labels))
    arguments = (
        jnp.asarray(logits),
        jnp.zeros(logits.shape[:2]),
        jnp.asarray(labels, jnp.int32),
        jnp.zeros(labels.shape),
    )
    calls = {
        "jaxctc": _jax_calls(jaxctc.ctc_loss, arguments),
        "optax": _jax_calls(optax.ctc_loss, arguments),
    }
    if importlib.util.find_spec("torch"):
        calls["torch"] = _torch_calls(logits, labels)
    times = {name: [[], []] for name in calls}
    for turn in range(repeats + 1):
        for name, pair in calls.items():
            for kind, call in enumerate(pair):
                start = time.perf_counter()
                call()
                if turn > 0:  # the first one compiles
                    times[name][kind].append(1e3 * (time.perf_counter() - start))
    return {name: [float(np.median(kind)) for kind in pair] for name, pair in times.items()}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shapes", nargs="*", choices=[*SHAPES, []], help="default: all")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()

    names = arguments.shapes or list(SHAPES)
    rows = {name: medians(SHAPES[name], arguments.repeats) for name in tqdm(names, unit="shape")}
    print("| shape (B, T, N, K) | " + " | ".join(rows[names[0]]) + " |")
    print("|---" * (1 + len(rows[names[0]])) + "|")
    for name, row in rows.items():
        ours = row["jaxctc"]
        cells = [
            f"{both:.1f} · {alone:.1f}"
            + ("" if library == "jaxctc" else f" ({both / ours[0]:.1f}× · {alone / ours[1]:.1f}×)")
            for library, (both, alone) in row.items()
        ]
        print(f"| {name} {tuple(SHAPES[name])} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
