"""Compiles the training step for machines that are not there: does it fit, what would it exchange.

    pip install -e '.[aot]'     # the compilers: libtpu and the CUDA plugin, some 450 MB
    python examples/train_sharded.py --size large --compile-for v5e:4x4 --vocabulary 1024
    python examples/train_sharded.py --size base --compile-for h100x8 --frames 3000 --labels 200

Nothing runs. Bytes and exchanges are those of the compiled program; cycles are the compiler's own
estimate, which counts neither exchanges nor, on a GPU, anything. Programs are read by
`benchmarks/ahead_of_time.py`, so this file works from a copy of the repository only.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from conformer import SIZES, Conformer
from flax import nnx
from sharded_step import CTC, DATA, Plan, Trainer, mesh_of

import jaxctc

sys.path.append(str(Path(__file__).parents[1]))
from benchmarks import ahead_of_time, kernel_schedules
from benchmarks.programs import Sizes

MEMORY = {
    "v4": 32e9,  # cloud.google.com/tpu/docs/v4, "HBM2 capacity and bandwidth"
    "v5e": 16e9,  # cloud.google.com/tpu/docs/v5e, "HBM capacity per chip"
    "v5p": 95e9,  # cloud.google.com/tpu/docs/v5p, likewise
    "v6e": 32e9,  # cloud.google.com/tpu/docs/v6e, likewise
    "h100": 80e9,  # nvidia.com/en-us/data-center/h100, "GPU memory" (SXM)
    "a100": 80e9,  # nvidia.com/en-us/data-center/a100, likewise (80GB SXM); there are some of 40
}
"""Bytes of a chip, as its maker counts them."""


class Machines(NamedTuple):
    """What to compile for."""

    target: str
    """A key of `MEMORY`."""
    devices: tuple[Any, ...]


class Bucket(NamedTuple):
    """The shape of a batch."""

    batch: int
    """Over all devices."""
    frames: int
    labels: int


class Report(NamedTuple):
    """Of one step on one device."""

    parameters: int
    """Bytes, and so for the others, to `program`."""
    optimizer: int
    batch: int
    temporaries: int
    program: int
    exchanges: list[ahead_of_time.Exchange]
    cycles: int
    """Of all but exchanges; 0 on a GPU."""
    loss_cycles: int
    """Of the loss, without the layer that makes its logits unless that belongs to it."""
    launches: int
    kernels: list[str]
    """Targets of custom calls, those of Pallas among them."""

    @property
    def needed(self) -> int:
        """Bytes of it all, while the step runs."""
        return self.parameters + self.optimizer + self.batch + self.temporaries + self.program


class DoesNotFit(Exception):
    """A program asks for more memory than there is, by its compiler."""


def machines_of(text: str) -> Machines:
    """The devices of "v5e:16x16", "h100x8" and the like."""
    found = re.fullmatch(r"(v\w+):\d+(?:x\d+)+|([ah]100)x(\d+)", text)
    target = (found[1] or found[2]) if found else None
    if found is None or target not in MEMORY:
        known = ", ".join(MEMORY)
        requirement = f"must be like 'v5e:16x16' or 'h100x8', of {known}"
        raise argparse.ArgumentTypeError(f"{requirement}; got {text!r}")
    if not ahead_of_time.is_installed(target):
        needs = "needs the compilers: pip install -e '.[aot]'"
        raise argparse.ArgumentTypeError(f"{needs}; got {text!r}")
    ahead_of_time.stay_on_the_cpu()
    try:
        is_tpu = found[1] is not None
        devices = ahead_of_time.devices(target, text if is_tpu else None, int(found[3] or 1))
    except Exception as error:  # whatever libtpu says of a slice that there is not
        raise argparse.ArgumentTypeError(f"must be a slice that exists; got {text!r}") from error
    return Machines(target, devices)


def compiled(
    plan: Plan, shape: dict[str, int], machines: Machines, bucket: Bucket
) -> tuple[Trainer, Any]:
    """What trains, and the program of its step.

    Raises:
      DoesNotFit: if the compiler for TPUs finds no room.
    """
    trainer = Trainer(plan, mesh_of(shape, machines.devices))
    batch, frames, labels = bucket

    def array(dtype: Any, *sizes: int) -> Any:
        return jax.ShapeDtypeStruct((batch, *sizes), dtype, sharding=trainer.batch_sharding)

    examples = jaxctc.PaddedBatch(
        array(np.float32, frames, plan.features),
        array(bool, frames),
        array(np.int32, labels),
        array(bool, labels),
        array(bool),
    )
    platform = ahead_of_time.TARGETS[machines.target].platform
    traced = trainer.step.trace(trainer.learned, examples)
    return trainer, fitting(traced.lower(lowering_platforms=(platform,)))


def fitting(lowered: Any) -> Any:
    """The compiled program.

    Raises:
      DoesNotFit: if the compiler for TPUs finds no room.
    """
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        said = str(error)
        if "RESOURCE_EXHAUSTED" not in said:
            raise
        # "Used 20.1G of 15.7G hbm", or "temporaries (40.0G) exceeds available HBM (15.7G)".
        size = r"\(?([\d.]+[KMG])\b"
        found = re.search(rf"{size} of {size} hbm|{size}\) exceeds .*?{size}", said)
        needed, room = filter(None, found.groups()) if found else ("more", "all")
        raise DoesNotFit(f"needs {needed} of {room} bytes per device") from error


def report_on(plan: Plan, shape: dict[str, int], machines: Machines, bucket: Bucket) -> Report:
    """Compiles a step and reads what it would cost.

    Raises:
      DoesNotFit: as `compiled`.
    """
    trainer, program = compiled(plan, shape, machines, bucket)
    memory, text = program.memory_analysis(), program.as_text()
    model, optimizer = (
        sum(
            leaf.dtype.itemsize * int(np.prod(leaf.sharding.shard_shape(leaf.shape)))
            for leaf in jax.tree.leaves(part)
        )
        for part in (trainer.learned[0], trainer.learned[1])
    )
    cost = ahead_of_time.cost_of(text)
    kernels = 0
    if "tpu_custom_call" in cost.kernels:
        kernels = _kernel_cycles(plan, shape, machines, bucket)
    return Report(
        parameters=model,
        optimizer=optimizer,
        batch=memory.argument_size_in_bytes - model - optimizer,
        # What comes out lies where the old state was, but for what the donation does not cover.
        temporaries=memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
        program=memory.generated_code_size_in_bytes,
        exchanges=ahead_of_time.exchanges_of(text),
        cycles=cost.cycles + kernels,
        loss_cycles=ahead_of_time.cycles_within(text, CTC) + kernels,
        launches=cost.launches,
        kernels=cost.kernels,
    )


def _kernel_cycles(plan: Plan, shape: dict[str, int], machines: Machines, bucket: Bucket) -> int:
    """Of the kernels of the loss, by their schedules: XLA estimates nothing for them."""
    examples = bucket.batch // shape[DATA] // plan.microbatches
    frames = -(-bucket.frames // int(np.prod(SIZES[plan.size].strides)))
    sizes = Sizes(examples, frames, bucket.labels, plan.classes)
    layout = kernel_schedules.layout(sizes)
    if layout.rows <= layout.tile and layout.blocks == 1:
        return 0  # a grid of one program has no loop to tell from those over frames
    name = "ctc_loss (pallas), gradient"
    return plan.microbatches * kernel_schedules.bundles_of(machines.target, name, sizes)


def described(
    plan: Plan, shape: dict[str, int], machines: Machines, bucket: Bucket, report: Report
) -> str:
    """A report in words."""
    model = nnx.eval_shape(
        lambda: Conformer(SIZES[plan.size], plan.features, plan.classes, nnx.Rngs(0))
    )
    weights = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model))) / 1e6
    spread = ",".join(f"{axis}={size}" for axis, size in shape.items())
    rows = [
        f"{plan.size}, {weights:.1f} million parameters, on {len(machines.devices)} x "
        f"{machines.target}, {spread}",
        f"{bucket.batch // shape[DATA]} of {bucket.batch} examples per device along {DATA}, "
        f"{bucket.frames} frames of {plan.features}, {bucket.labels} labels, "
        f"{plan.classes} classes",
        "memory per device, MB",
    ]
    for name in ("parameters", "optimizer", "batch", "temporaries", "program", "needed"):
        rows.append(f"  {name:12} {getattr(report, name) / 1e6:10.1f}")
    rows.append(f"  {'of':12} {MEMORY[machines.target] / 1e6:10.1f}")
    rows.append("exchanged per device and step")
    rows += [f"  {row}" for row in exchange_rows(report.exchanges)] or ["  nothing"]
    gigahertz = ahead_of_time.TARGETS[machines.target].gigahertz
    if gigahertz is None:
        rows.append(f"kernels started per step: {report.launches} (no estimate of their time)")
    else:
        rows.append(f"estimated cycles, without exchanges, and milliseconds at {gigahertz} GHz")
        for name, cycles in (("step", report.cycles), ("loss", report.loss_cycles)):
            time, part = cycles / gigahertz / 1e6, cycles / report.cycles
            rows.append(f"  {name:6} {cycles:14,} {time:10.2f} ms {part:7.1%}")
    return "\n".join(rows)


def exchange_rows(exchanges: list[ahead_of_time.Exchange]) -> list[str]:
    """Operations of a kind together: how many, among how many devices, how much."""
    groups: dict[tuple, list[ahead_of_time.Exchange]] = {}
    for each in exchanges:
        part = "loss" if CTC in each.source else "layers" if each.times != 1 else "step"
        groups.setdefault((part, each.operation, each.devices), []).append(each)
    return [
        f"{part:6} {sum(each.times or 1 for each in group):4} x {operation} among {devices} "
        f"devices, {sum((each.times or 1) * each.size for each in group) / 1e6:.2f} MB"
        for (part, operation, devices), group in groups.items()
    ]


def excess(report: Report, machines: Machines) -> str | None:
    """How much of the memory a step needs, if that is more than there is."""
    room = MEMORY[machines.target]
    if report.needed <= room:
        return None
    return f"needs {report.needed / 1e9:.1f} of {room / 1e9:.0f} GB per device"


def answer(plan: Plan, shape: dict[str, int], machines: Machines, bucket: Bucket) -> str | None:
    """Prints what a step would cost; why it cannot run there, if it does not fit."""
    try:
        report = report_on(plan, shape, machines, bucket)
    except DoesNotFit as error:
        return str(error)
    print(described(plan, shape, machines, bucket, report))
    return excess(report, machines)
