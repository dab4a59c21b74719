"""Trains a conformer with the CTC loss on many devices: TPU slices, GPU nodes, or the cores here.

    python examples/train_sharded.py --checkpoints out/sharded

on all devices of this process (with JAX_NUM_CPU_DEVICES=2, a CPU is two). `--mesh data=8,model=2`
splits the batch over eight groups of two devices, which share the matrices and the classes.
`--size`, `--head`, `--microbatches`, `--dtype`, `--remat` and `--implementation` say what is
computed and how. `conformer.py` is the network, `sharded_step.py` the step. What is learned from
stands here: lines of handwritten digits, in buckets of static shapes. Put your own data in the
place of `share_of_lines`.

Before you rent machines, ask what would run on them:

    python examples/train_sharded.py --size large --compile-for v5e:16x16 --vocabulary 1024

compiles the step for them, wherever you are (see `compile_for.py`).

Each process writes only those lines that its own devices learn from. A line depends on the seed,
the step and its place in the batch, and on nothing else, so the training is the same, up to
rounding, on any mesh. Checkpoints hold parameters, optimizer and step: a run that was killed goes
on from the last one when it is started again, and ends with the parameters it would have had, on
CPUs to the bit. Several processes, on one machine or on many that share the folder, are started
with

    --coordinator HOST:PORT --processes 2 --process 0

or 1, where the address is one of process 0. What is not given comes from the environment, from
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; under Slurm, Open MPI and their like
`--coordinator` is enough. When a process dies, the others stop within two minutes (JAX's patience
with its heartbeat), and all are to be started again.

What to try next: your own features and labels in `share_of_lines`, with buckets by their lengths
(docs/scaling.md); `--compile-for` with their numbers first.
"""

import argparse
import functools
import math
import operator
import os
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from command_line import OneLine, folder, positive, rate, seed
from conformer import MODEL, SIZES
from digit_lines import CLASSES, HEIGHT, MAX_DIGITS, WIDTH, Scans, load_scans, make_lines
from jax.sharding import NamedSharding
from sharded_step import DATA, HEADS, Plan, Trainer, complaint, mesh_of
from tqdm import tqdm

import jaxctc

BUCKETS = (64, WIDTH)
"""Columns that the lines of a batch are filled up to."""
EVALUATE_EVERY = 50
VALIDATION_LINES, TEST_LINES, EVALUATION_BATCH = 128, 512, 64


def line_in(
    scans: Scans, rng: np.random.Generator, bucket: int | None = None
) -> tuple[jaxctc.PaddedBatch, int]:
    """A random line, and its bucket; of those in a given bucket, where there is one."""
    while True:
        line = make_lines(scans, 1, rng)
        width = int((~line.image_paddings).sum())
        found = next(columns for columns in BUCKETS if width <= columns)
        if bucket in (None, found):
            images, no_column = line.images[:, :found], line.image_paddings[:, :found]
            truth = line.labels, line.label_paddings
            return jaxctc.PaddedBatch(images, no_column, *truth, np.zeros(1, bool)), found


def share_of_lines(
    scans: Scans, step: int, arguments: argparse.Namespace, spread: NamedSharding
) -> jaxctc.PaddedBatch:
    """The batch of a step, spread over all devices; this process writes its own lines only.

    The bucket is that of a random line, so that buckets, and lines, are as frequent as without.
    """
    batch = arguments.batch_size
    _, bucket = line_in(scans, np.random.default_rng([arguments.seed, step]))
    parts = [
        part
        for device, (part,) in spread.devices_indices_map((batch,)).items()
        if device.process_index == jax.process_index()
    ]
    places = sorted({place for part in parts for place in range(batch)[part]})
    rngs = (np.random.default_rng([arguments.seed, step, place]) for place in places)
    columns = zip(*(line_in(scans, rng, bucket)[0] for rng in rngs), strict=True)
    return jaxctc.PaddedBatch(
        *(
            jax.make_array_from_process_local_data(
                spread, np.concatenate(column), (batch, *column[0].shape[1:])
            )
            for column in columns
        )
    )


def evaluation_batches(split: str, lines: int, trainer: Trainer) -> list[jaxctc.PaddedBatch]:
    """The same lines on every run, whatever the seed of the training, in batches on the mesh."""
    size = -(-EVALUATION_BATCH // trainer.mesh.shape[DATA]) * trainer.mesh.shape[DATA]
    written = make_lines(load_scans(split), lines, np.random.default_rng(7))
    used = [~paddings for paddings in (written.image_paddings, written.label_paddings)]
    images = [image[frames] for image, frames in zip(written.images, used[0], strict=True)]
    labels = [ids[there] for ids, there in zip(written.labels, used[1], strict=True)]
    spread = trainer.batch_sharding

    def placed(part: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(part.shape, spread, lambda place: part[place])

    return [
        jax.tree.map(
            placed,
            jaxctc.pad_to_bucket(
                images[start : start + size],
                labels[start : start + size],
                [(WIDTH, MAX_DIGITS)],
                batch_size=size,
            ),
        )
        for start in range(0, lines, size)
    ]


def error_rate(trainer: Trainer, learned: Any, batches: list[jaxctc.PaddedBatch]) -> float:
    """Errors per digit, of the best paths."""
    # One batch at a time: programs of several CPU devices that wait for each other in the threads
    # of one pool may wait forever.
    counts = [jax.block_until_ready(trainer.count_errors(learned, batch)) for batch in batches]
    return float(functools.reduce(operator.add, counts).rate)


def train(manager: ocp.CheckpointManager, trainer: Trainer, arguments: argparse.Namespace) -> Any:
    """Trains from the last checkpoint on, or from nothing; parameters and optimizer."""
    done = manager.latest_step() or 0
    if done:
        learned = manager.restore(done, args=ocp.args.StandardRestore(trainer.learned))
    else:
        learned = trainer.fresh(arguments.seed)

    scans = load_scans("train")
    validation = evaluation_batches("validation", VALIDATION_LINES, trainer)
    losses, cer = [], "…"
    steps = range(done + 1, arguments.steps + 1)
    quiet = jax.process_index() != 0
    counter = {"initial": done, "total": arguments.steps, "unit": "step", "mininterval": 0.5}
    with tqdm(steps, disable=quiet, **counter) as bar:
        for step in bar:
            lines = share_of_lines(scans, step, arguments, trainer.batch_sharding)
            learned, loss = trainer.step(learned, lines)
            losses.append(float(loss))
            if step % arguments.save_every == 0 or step == arguments.steps:
                manager.save(step, args=ocp.args.StandardSave(learned))
            if step % EVALUATE_EVERY == 0 or step == arguments.steps:
                cer = f"{error_rate(trainer, learned, validation):.3f}"
            bar.set_postfix(loss=f"{np.mean(losses[-20:]):.2f}", CER=cer, refresh=False)
    return learned


def join(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Makes this process one of several, if any of the flags or variables says so."""
    several = arguments.coordinator, arguments.processes, arguments.process
    if several == (None, None, None):
        return
    try:
        jax.distributed.initialize(*several)
    except ValueError as error:
        parser.error(f"--coordinator, --processes, --process: {error}")


def mesh_shape(text: str) -> dict[str, int]:
    """The value of `--mesh`."""
    sizes = {axis: size for axis, _, size in (part.partition("=") for part in text.split(","))}
    if sizes.keys() != {DATA, MODEL} or not all(
        size.isdecimal() and int(size) for size in sizes.values()
    ):
        requirement = f"must be like '{DATA}=8,{MODEL}=2'"
        raise argparse.ArgumentTypeError(f"{requirement}; got {text!r}")
    return {axis: int(sizes[axis]) for axis in (DATA, MODEL)}


def options() -> OneLine:
    """What the command line takes."""
    parser = OneLine(__doc__)
    parser.add_argument("--steps", type=positive, default=900, help="updates (default: 900)")
    parser.add_argument("--seed", type=seed, default=0, help="of model and lines (default: 0)")
    parser.add_argument("--batch-size", type=positive, help="over all devices (default: 32)")
    parser.add_argument("--checkpoints", type=folder, help="folder to go on from")
    parser.add_argument("--save-every", type=positive, default=50, help="steps (default: 50)")
    parser.add_argument(
        "--learning-rate", type=rate, help="the highest (default: 0.04 / sqrt(width))"
    )

    what = parser.add_argument_group("what is computed, and where")
    what.add_argument("--mesh", type=mesh_shape, help="data=8,model=2 (default: all along data)")
    what.add_argument(
        "--size", choices=SIZES, default="digits", help="of the conformer (default: digits)"
    )
    what.add_argument(
        "--head", choices=HEADS, default="sharded", help="see sharded_step.py (default: sharded)"
    )
    what.add_argument(
        "--microbatches", type=positive, default=1, help="one after the other (default: 1)"
    )
    what.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        help="of activations (default: bfloat16, but float32 on a CPU)",
    )
    what.add_argument(
        "--remat",
        action=argparse.BooleanOptionalAction,
        help="compute layers anew on the way back (default: for base and large)",
    )
    what.add_argument(
        "--implementation", choices=("xla", "pallas"), help="of the loss (default: jaxctc's choice)"
    )

    elsewhere = parser.add_argument_group("machines that are not there")
    elsewhere.add_argument("--compile-for", metavar="MACHINES", help="v5e:16x16, h100x8, ...")
    for flag, default, meaning in (
        ("--features", 80, "of a frame"),
        ("--frames", 1600, "of the bucket, before some are left out"),
        ("--labels", 100, "of the bucket"),
        ("--vocabulary", 1024, "classes, the blank included"),
    ):
        elsewhere.add_argument(
            flag, type=positive, default=default, help=f"{meaning} (default: {default})"
        )

    several = parser.add_argument_group("several processes")
    for flag, kind, variable, meaning in (
        ("--coordinator", str, "JAX_COORDINATOR_ADDRESS", "host and port of process 0"),
        ("--processes", positive, "JAX_NUM_PROCESSES", "how many there are"),
        ("--process", seed, "JAX_PROCESS_ID", "which one this is, from 0 on"),
    ):
        several.add_argument(flag, type=kind, default=os.environ.get(variable), help=meaning)
    return parser


def plan_of(arguments: argparse.Namespace, features: int, classes: int, platform: str) -> Plan:
    """The step that the options describe, with what they leave open."""
    by_platform = "float32" if platform == "cpu" else "bfloat16"
    by_size = arguments.size in ("base", "large")
    return Plan(
        size=arguments.size,
        features=features,
        classes=classes,
        head=arguments.head,
        implementation=arguments.implementation,
        microbatches=arguments.microbatches,
        dtype=arguments.dtype or by_platform,
        remat=by_size if arguments.remat is None else arguments.remat,
        steps=arguments.steps,
        # The paper has 0.05, for wider models.
        learning_rate=arguments.learning_rate or 0.04 / math.sqrt(SIZES[arguments.size].width),
    )


def compile_elsewhere(parser: OneLine, arguments: argparse.Namespace) -> None:
    """Prints what the step would cost on machines that are not there; refuses what does not fit."""
    import compile_for  # which finds compilers, and keeps JAX from looking for their devices

    try:
        machines = compile_for.machines_of(arguments.compile_for)
    except argparse.ArgumentTypeError as error:
        parser.error(f"argument --compile-for: {error}")
    devices = len(machines.devices)
    shape = arguments.mesh or {DATA: devices, MODEL: 1}
    batch = arguments.batch_size or 16 * shape[DATA]
    plan = plan_of(arguments, arguments.features, arguments.vocabulary, "elsewhere")
    bucket = compile_for.Bucket(batch, arguments.frames, arguments.labels)
    wrong = complaint(plan, shape, devices, batch)
    if wrong:
        parser.error(wrong)
    refusal = compile_for.answer(plan, shape, machines, bucket)
    if refusal:
        requirement = f"must be machines that the step fits, which {refusal}"
        parser.error(f"argument --compile-for: {requirement}; got '{arguments.compile_for}'")


def main() -> None:
    """Trains from the last checkpoint on, and prints the test CER."""
    parser = options()
    arguments = parser.parse_args()
    if arguments.compile_for is not None:
        return compile_elsewhere(parser, arguments)
    arguments.batch_size = arguments.batch_size or 32
    if arguments.checkpoints is None:
        parser.error("the following arguments are required: --checkpoints")
    join(parser, arguments)
    devices = jax.device_count()
    shape = arguments.mesh or {DATA: devices, MODEL: 1}
    plan = plan_of(arguments, HEIGHT, CLASSES, jax.default_backend())
    arguments.learning_rate = plan.learning_rate
    wrong = complaint(plan, shape, devices, arguments.batch_size)
    if wrong:
        parser.error(wrong)

    names = ("steps", "seed", "batch_size", "size", "learning_rate")
    settings = {name: getattr(arguments, name) for name in names}
    path, kept = arguments.checkpoints.absolute(), ocp.CheckpointManagerOptions(max_to_keep=2)
    with ocp.CheckpointManager(path, options=kept, metadata=settings) as manager:
        begun = manager.metadata().custom_metadata
        if begun != settings:
            parser.error(f"argument --checkpoints: must be of this run, {settings}; got {begun}")
        trainer = Trainer(plan, mesh_of(shape, jax.devices()))
        learned = train(manager, trainer, arguments)
    cer = error_rate(trainer, learned, evaluation_batches("test", TEST_LINES, trainer))
    if jax.process_index() == 0:
        print(f"test CER: {cer:.4f}")


if __name__ == "__main__":
    main()
