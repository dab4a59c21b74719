"""How long, and with how much memory? Forced alignment of hours of audio.

    python -m benchmarks.alignment [--frames 360000] [--labels 5000] [--classes 32]

The logits are those of a model that is fairly sure of a random path. Each call runs once, after
compilation; "memory" is what XLA sets aside for temporary values, inputs and outputs, and the last
line is the most that the whole process ever held.
"""

import argparse
import functools
import resource
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import jaxctc


def make_inputs(
    frames: int, labels: int, classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, labels, and the frame at which each label begins."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, classes, labels).astype(np.int32)
    starts = np.sort(rng.choice(frames // 2, labels, replace=False)) * 2  # one blank between
    path = np.zeros(frames, np.int32)
    for label, start, end in zip(ids, starts, np.append(starts[1:], frames) - 1, strict=True):
        path[start : min(end, start + rng.integers(1, 8))] = label
    logits = rng.normal(size=(frames, classes)).astype(np.float32)
    logits[np.arange(frames), path] += 4
    return logits, ids, starts


def measure(call: Callable, *arguments: jax.Array) -> tuple[float, float, jaxctc.Alignment]:
    """Seconds, megabytes and the result."""
    compiled = jax.jit(call).lower(*arguments).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    held = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    start = time.perf_counter()
    result = jax.block_until_ready(compiled(*arguments))
    return time.perf_counter() - start, held / 1e6, result


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frames", type=int, default=360_000)
    parser.add_argument("--labels", type=int, default=5_000)
    parser.add_argument("--classes", type=int, default=32)
    arguments = parser.parse_args()
    logits, labels, truth = make_inputs(arguments.frames, arguments.labels, arguments.classes)

    def align(logits: jax.Array, labels: jax.Array, **options: Any) -> jaxctc.Alignment:
        return jaxctc.forced_align(logits, None, labels, None, **options)

    def spans_alone(call: Callable) -> Callable:
        # Under jit, what is not asked for is not computed.
        return lambda *inputs: call(*inputs)._replace(confidences=jnp.zeros(0))

    calls = {
        "all": align,
        "spans": spans_alone(align),
        "spans, all pointers kept": spans_alone(
            functools.partial(align, checkpoint_every=arguments.frames)
        ),
    }
    inputs = jnp.asarray(logits), jnp.asarray(labels)
    print("| what | seconds | memory, MB | score | labels starting within 2 frames |")
    print("|---|---|---|---|---|")
    for name, call in tqdm(calls.items(), unit="call"):
        seconds, megabytes, best = measure(call, *inputs)
        near = np.mean(np.abs(np.asarray(best.starts) - truth) <= 2)
        tqdm.write(f"| {name} | {seconds:.1f} | {megabytes:.0f} | {best.score:.2f} | {near:.4f} |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(f"most held by the process: {peak:.0f} MB")


if __name__ == "__main__":
    main()
