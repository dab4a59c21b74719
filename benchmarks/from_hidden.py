"""What does it save not to make the logits? Loss and gradient of a last layer, with and without.

    python -m benchmarks.from_hidden [--sizes 8,500,100,32768,512] [--repeats 3] ...

`ctc_loss_from_hidden` beside `ctc_loss` of `hidden @ kernel + bias`, both differentiated with
respect to all three: medians of calls in turn, the memory that XLA sets aside for temporary values
(beside arguments and results), and how far the gradients are apart.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import jaxctc
from benchmarks.timing import in_words, machine, measure, positive, table

WITHOUT, WITH = "ctc_loss_from_hidden", "ctc_loss of the logits"


def of_the_logits(hidden: Any, kernel: Any, bias: Any, *rest: Any) -> jax.Array:
    """What `ctc_loss_from_hidden` computes, the usual way."""
    return jaxctc.ctc_loss(hidden @ kernel + bias[None, None], *rest)


def make_inputs(sizes: Sequence[int]) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """A layer whose logits are about as large as those of a model that has learnt something."""
    batch, frames, labels, classes, width = sizes
    rng = np.random.default_rng(0)
    layer = (
        rng.standard_normal((batch, frames, width), np.float32),
        rng.standard_normal((width, classes), np.float32) * np.float32(3 / np.sqrt(width)),
        rng.standard_normal(classes, np.float32),
    )
    padded = np.zeros((batch, frames), np.float32), np.zeros((batch, labels), np.float32)
    return layer, (padded[0], rng.integers(1, classes, (batch, labels), np.int32), padded[1])


def compiled(loss: Callable[..., jax.Array], layer: Any, rest: Any) -> Any:
    """Its sum and the gradients of that."""

    def total(layer: Any, *rest: Any) -> jax.Array:
        return jnp.sum(loss(*layer, *rest))

    return jax.jit(jax.value_and_grad(total)).lower(layer, *rest).compile()


def main(arguments: list[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", default="8,500,100,32768,512", help="B,T,N,K,D")
    parser.add_argument("--repeats", type=positive, default=3, help="rounds (default: 3)")
    parser.add_argument("--budget", type=float, default=300.0, help="seconds for each")
    options = parser.parse_args(arguments)
    sizes = [positive(size) for size in options.sizes.split(",")]
    if len(sizes) != 5:
        parser.error(f"argument --sizes: must be five numbers, B,T,N,K,D; got {options.sizes!r}")
    layer, rest = jax.device_put(make_inputs(sizes))
    losses = {WITHOUT: jaxctc.ctc_loss_from_hidden, WITH: of_the_logits}
    programs = {name: compiled(loss, layer, rest) for name, loss in losses.items()}
    apart = distance(*(program(layer, *rest)[1] for program in programs.values()))
    calls = {
        name: lambda program=program: jax.block_until_ready(program(layer, *rest))
        for name, program in programs.items()
    }
    with tqdm(total=(options.repeats + 1) * len(calls), disable=None) as bar:
        timings = measure(calls, options.repeats, options.budget, bar.update)
    rows = []
    for name, program in programs.items():
        _, median, _ = timings[name].quartiles
        ratio = median / timings[WITH].quartiles[1]
        memory = program.memory_analysis().temp_size_in_bytes / 1e6
        rows.append([name, f"{median:.0f}", f"{ratio:.2f}", f"{memory:.0f}"])
    print(in_words(machine(["optax"])))
    print(f"\n(B, T, N, K, D) = {tuple(sizes)}\n")
    print(table(["loss + gradient", "ms", "× the second", "temporary MB"], rows))
    print(f"\nLargest difference of the gradients, relative to their largest entry: {apart:.1e}")


def distance(left: Any, right: Any) -> float:
    """Between two trees of arrays: the largest over the arrays."""
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return max(float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))) for a, b in pairs)


if __name__ == "__main__":
    main()
