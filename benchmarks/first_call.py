"""How long does the first call of a shape take? With and without programs kept on disk.

    python -m benchmarks.first_call [--calls NAME …] [--repeats N]

Seconds, medians over processes of their own, from the call to its result; importing JAX and making
the arguments are not in it. "XLA" is the part in which it compiles; in the rest, Python runs the
function for JAX to trace. "kept" is a process that finds the programs of an earlier one in
`JAX_COMPILATION_CACHE_DIR`. The last column is a later call of the same shape, in milliseconds.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import jaxctc
from benchmarks.timing import in_words, machine, positive, table

B, T, N, K = 8, 200, 30, 32


def _calls() -> dict[str, Callable[[], Any]]:
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(B, T, K)), jnp.float32)
    labels = jnp.asarray(rng.integers(1, K, (B, N)), jnp.int32)
    batch = logits, jnp.zeros((B, T)), labels, jnp.zeros((B, N))
    pair = labels, jnp.zeros((B, N)), labels[::-1], jnp.zeros((B, N))

    def mean(logits: jax.Array) -> jax.Array:
        return jaxctc.reduce_loss(jaxctc.ctc_loss(logits, *batch[1:])).mean

    step = jax.jit(jax.value_and_grad(mean))
    return {
        "ctc_loss": lambda: jaxctc.ctc_loss(*batch),
        "value_and_grad, jitted": lambda: step(logits),
        "greedy_decode": lambda: jaxctc.greedy_decode(*batch[:2]),
        "prefix_beam_search": lambda: jaxctc.prefix_beam_search(*batch[:2]),
        "forced_align": lambda: jaxctc.forced_align(*batch),
        "posteriors": lambda: jaxctc.posteriors(*batch),
        "error_counts": lambda: jaxctc.error_counts(*pair),
        "wer": lambda: jaxctc.wer(*pair, separator=1),
        "cross_entropy": lambda: jaxctc.cross_entropy(logits, jnp.zeros((B, T), jnp.int32)),
        "lengths_to_paddings": lambda: jaxctc.lengths_to_paddings(jnp.arange(B), T),
    }


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def _measure_here(name: str) -> dict[str, float]:
    """Of one call, in this process, which has not compiled anything of it."""
    compiling: list[float] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiling.append(duration_secs)

    call = _calls()[name]
    jax.monitoring.register_event_duration_secs_listener(listen)
    return {"first": _seconds(call), "xla": sum(compiling), "later": 1e3 * _seconds(call)}


def _measure(name: str, folder: str | None) -> dict[str, float]:
    """In a process of its own, with its programs kept in a folder or nowhere."""
    settings = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment = os.environ | settings | {"JAX_COMPILATION_CACHE_DIR": folder or ""}
    command = [sys.executable, "-m", "benchmarks.first_call", "--here", name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main(given: list[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(_calls())
    parser.add_argument("--calls", nargs="+", choices=names, default=names)
    parser.add_argument("--repeats", type=positive, default=3, help="processes each (default: 3)")
    parser.add_argument("--here", choices=names, help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    if arguments.here:
        print(json.dumps(_measure_here(arguments.here)))
        return

    rows = []
    for name in tqdm(arguments.calls, unit="call"):
        with tempfile.TemporaryDirectory() as folder:
            _measure(name, folder)
            cold = [_measure(name, None) for _ in range(arguments.repeats)]
            kept = [_measure(name, folder) for _ in range(arguments.repeats)]
        columns = [(cold, "first"), (cold, "xla"), (kept, "first"), (cold, "later")]
        medians = [np.median([run[part] for run in runs]) for runs, part in columns]
        rows.append([name, *(f"{median:.2f}" for median in medians)])
    print(in_words(machine([])), f"B = {B}, T = {T}, N = {N}, K = {K}.", sep="\n\n", end="\n\n")
    print(table(["call", "first, s", "XLA, s", "first, kept, s", "later, ms"], rows))


if __name__ == "__main__":
    main()
