"""Trains the reader of handwritten digits on many devices, in one process or in several.

Network, loss and step are those of `train_digits.py`; the batch is spread over all devices, and XLA
adds up their gradients. Each process writes only those lines that its own devices learn from. A
line depends on the seed, the step and its place in the batch, and on nothing else, so the training
is the same, up to rounding, on any number of devices. Checkpoints hold parameters, optimizer and
step: a run that was killed goes on from the last one when it is started again, and ends with the
parameters it would have had, on CPUs to the bit. Run it with

    python examples/train_sharded.py --checkpoints out/sharded

on all devices of this process (with JAX_NUM_CPU_DEVICES=2, a CPU is two), or once for each of
several processes, on one machine or on many that share the folder, with

    --coordinator HOST:PORT --processes 2 --process 0

or 1, where the address is one of process 0. What is not given comes from the environment, from
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; under Slurm, Open MPI and their like
`--coordinator` is enough. When a process dies, the others stop within two minutes (JAX's patience
with its heartbeat), and all are to be started again.
"""

import argparse
import os

import jax
import numpy as np
import orbax.checkpoint as ocp
from command_line import OneLine, folder, positive, seed
from digit_lines import Lines, Scans, load_scans, make_lines
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tqdm import tqdm
from train_digits import (
    EVALUATE_EVERY,
    TEST_BATCHES,
    VALIDATION_BATCHES,
    Reader,
    evaluate,
    evaluation_lines,
    new_reader,
    train_step,
)


def share_of_lines(
    scans: Scans, step: int, arguments: argparse.Namespace, spread: NamedSharding
) -> Lines:
    """The batch of a step, spread over all devices; this process writes its own lines only."""
    batch = arguments.batch_size
    parts = [
        part
        for device, (part,) in spread.devices_indices_map((batch,)).items()
        if device.process_index == jax.process_index()
    ]
    places = sorted({place for part in parts for place in range(batch)[part]})
    rngs = (np.random.default_rng([arguments.seed, step, place]) for place in places)
    columns = zip(*(make_lines(scans, 1, rng) for rng in rngs), strict=True)
    return Lines(
        *(
            jax.make_array_from_process_local_data(
                spread, np.concatenate(column), (batch, *column[0].shape[1:])
            )
            for column in columns
        )
    )


def train(manager: ocp.CheckpointManager, arguments: argparse.Namespace) -> Reader:
    """Trains a reader from the last checkpoint on, or a new one where there is none."""
    mesh = jax.make_mesh((jax.device_count(),), ("batch",), axis_types=(AxisType.Auto,))
    everywhere, spread = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ([], ["batch"]))
    model, optimizer = new_reader(arguments.seed, arguments.steps)
    learned = jax.device_put(nnx.state((model, optimizer)), everywhere)
    done = manager.latest_step() or 0
    if done:
        learned = manager.restore(done, args=ocp.args.StandardRestore(learned))
    nnx.update((model, optimizer), learned)

    scans, validation = load_scans("train"), evaluation_lines("validation", VALIDATION_BATCHES)
    losses, cer = [], "…"
    steps = range(done + 1, arguments.steps + 1)
    quiet = jax.process_index() != 0
    counter = {"initial": done, "total": arguments.steps, "unit": "step", "mininterval": 0.5}
    with tqdm(steps, disable=quiet, **counter) as bar:
        for step in bar:
            lines = share_of_lines(scans, step, arguments, spread)
            losses.append(float(train_step(model, optimizer, lines)))
            if step % arguments.save_every == 0 or step == arguments.steps:
                learned = nnx.state((model, optimizer))
                manager.save(step, args=ocp.args.StandardSave(learned))
            if step % EVALUATE_EVERY == 0 or step == arguments.steps:
                cer = f"{float(evaluate(model, validation).compute()):.3f}"
            bar.set_postfix(loss=f"{np.mean(losses[-20:]):.2f}", CER=cer, refresh=False)
    return model


def join(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Makes this process one of several, if any of the flags or variables says so."""
    several = arguments.coordinator, arguments.processes, arguments.process
    if several == (None, None, None):
        return
    try:
        jax.distributed.initialize(*several)
    except ValueError as error:
        parser.error(f"--coordinator, --processes, --process: {error}")


def main() -> None:
    """Trains from the last checkpoint on, and prints the test CER."""
    parser = OneLine(__doc__)
    parser.add_argument("--steps", type=positive, default=750, help="updates (default: 750)")
    parser.add_argument("--seed", type=seed, default=0, help="of model and lines (default: 0)")
    parser.add_argument(
        "--batch-size", type=positive, default=32, help="lines, over all devices (default: 32)"
    )
    parser.add_argument("--checkpoints", type=folder, required=True, help="folder to go on from")
    parser.add_argument("--save-every", type=positive, default=50, help="steps (default: 50)")
    for flag, kind, variable, meaning in (
        ("--coordinator", str, "JAX_COORDINATOR_ADDRESS", "host and port of process 0"),
        ("--processes", positive, "JAX_NUM_PROCESSES", "how many there are"),
        ("--process", seed, "JAX_PROCESS_ID", "which one this is, from 0 on"),
    ):
        parser.add_argument(flag, type=kind, default=os.environ.get(variable), help=meaning)
    arguments = parser.parse_args()

    join(parser, arguments)
    if arguments.batch_size % jax.device_count():
        requirement = f"must be a multiple of the {jax.device_count()} devices"
        parser.error(f"argument --batch-size: {requirement}; got '{arguments.batch_size}'")
    settings = {name: getattr(arguments, name) for name in ("steps", "seed", "batch_size")}
    path, options = arguments.checkpoints.absolute(), ocp.CheckpointManagerOptions(max_to_keep=2)
    with ocp.CheckpointManager(path, options=options, metadata=settings) as manager:
        begun = manager.metadata().custom_metadata
        if begun != settings:
            parser.error(f"argument --checkpoints: must be of this run, {settings}; got {begun}")
        model = train(manager, arguments)
    rate = evaluate(model, evaluation_lines("test", TEST_BATCHES))
    if jax.process_index() == 0:
        print(f"test CER: {float(rate.compute()):.4f}")


if __name__ == "__main__":
    main()
