"""What TPUs and GPUs would run, compiled for them without one: loops, costs, memory, exchanges.

Every program of `benchmarks.programs` is compiled for a TPU v5e and an H100, and held to
`ahead_of_time.json`, which is written by

    python -m benchmarks.accelerators --programs all --shapes char,bpe1k \\
        --json tests/ahead_of_time.json

Estimates hold for the versions of the compilers that stand there; with others, only loops, dtypes
and exchanges are checked. libtpu takes a lock, so all tests for TPUs are in one class, which one
worker runs.
"""

import contextlib
import functools
import inspect
import json
import operator
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding
from scripts import EXAMPLES

import jaxctc
from benchmarks import ahead_of_time, kernel_schedules
from benchmarks.accelerators import programs_of, slice_of, versions
from benchmarks.programs import (
    Sizes,
    ctc_shapes,
    kernel_programs,
    mean_and_gradient,
    programs,
)
from benchmarks.shapes import SHAPES
from jaxctc._core.kernels.gpu_layout import Layout

IS_INSTALLED = all(map(ahead_of_time.is_installed, ("v5e", "h100")))
pytestmark = [
    pytest.mark.ahead_of_time,
    pytest.mark.skipif(not IS_INSTALLED, reason="needs the extra `aot`"),
]

RECORD = json.loads(Path(__file__).with_name("ahead_of_time.json").read_text())
RECORDED = {
    (row["target"], row["shape"], row["library"], row["program"]): row for row in RECORD["programs"]
}
COMPILERS = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin")

EVERY_PROGRAM = sorted(programs(Sizes(*SHAPES["char"].sizes)))
AT_THE_LARGER_SHAPE = [
    "alignment_entropy, gradient",
    "ctc_loss",
    "ctc_loss (wildcard, priors), gradient",
    "ctc_loss, Hessian product",
    "ctc_loss, gradient",
    "ctc_loss_from_hidden, gradient",
    "forced_align",
    "mwer_loss, gradient",
    "posteriors",
    "prefix_beam_search",
    "prefix_scores",
    "sample_alignments",
    "substitution_scores",
]
"""One of each recursion; the others are made of them."""
EVERY_PROGRAM_AND_SHAPE = [
    *((name, "char") for name in EVERY_PROGRAM),
    *((name, "bpe1k") for name in AT_THE_LARGER_SHAPE),
]
EVERY_KERNEL_PROGRAM = {
    "ctc_loss (pallas)": 1,
    "ctc_loss (pallas), gradient": 2,
    "posteriors (pallas)": 2,
}
"""With the number of kernels."""
GRADIENT = "ctc_loss (pallas), gradient"
BUNDLES_PER_FRAME = {
    ("v5e", "char"): (130, 64),
    ("v5e", "bpe1k"): (174, 83),
    ("v6e", "char"): (132, 66),
    ("v4", "char"): (170, 82),
}
"""Backward, of its two loops together, and forward; for 8 examples in 128 or 256 lanes."""
SPILLS_PER_FRAME = {key: 0 for key in BUNDLES_PER_FRAME} | {
    ("v5e", "bpe1k"): 6,
    ("v4", "char"): 40,
}
"""Moves of vector registers to memory and back, among so many bundles."""
KERNEL_MEMORY = {
    ("char", "ctc_loss (pallas)"): 14e6,
    ("char", "ctc_loss (pallas), gradient"): 54e6,
    ("char", "posteriors (pallas)"): 53e6,
    ("bpe1k", "ctc_loss (pallas)"): 34e6,
    ("bpe1k", "ctc_loss (pallas), gradient"): 101e6,
    ("bpe1k", "posteriors (pallas)"): 132e6,
}
"""Bytes that an H100 sets aside, nearly all of it for scores, states and occupancies of labels."""
INSTRUCTIONS_PER_FRAME = {"char": (112, 130), "bpe1k": (200, 232)}
"""Forward and backward, of the threads of an H100; for one or two labels in each thread."""
EVERY_SHARDED_PROGRAM = [
    "ctc_loss, gradient of the mean",
    "ctc_loss (vocab_axis_name), gradient of the mean",
    "error_counts",
    "forced_align",
    "greedy_decode",
    "posteriors",
]
ALL_REDUCES = {
    "ctc_loss, gradient of the mean": 1,
    # The largest logit; the sums of exponentials, with the scores of blank and labels; the mean.
    "ctc_loss (vocab_axis_name), gradient of the mean": 3,
}
"""Everything that devices exchange: the caller's own mean, and what spread classes need."""
# Chosen per platform when a program is lowered, so looked at on more kinds of TPU and GPU.
TUNED = ("ctc_loss", "ctc_loss, gradient", "ctc_loss, Hessian product")
SLACK = 1.05
MEGABYTE = 2**20


@pytest.fixture(autouse=True, scope="module")
def _on_the_cpu():
    ahead_of_time.stay_on_the_cpu()


def is_same_compiler():
    """Whether the budgets are those of the compilers that are installed."""
    return all(versions()[name] == RECORD["versions"][name] for name in COMPILERS)


def faults(cost, most_turns):
    """What no program may have, in words."""
    found = ["double precision"] if cost.has_f64 else []
    found += [f"a call of the host: {name}" for name in cost.kernels if "callback" in name]
    for loop in cost.loops:
        if loop.total_turns is None:
            found.append(f"a loop of unknown length, of {loop.source}")
        elif loop.total_turns > most_turns:
            found.append(f"a loop of {loop.total_turns} turns, of {loop.source}")
    return found


def assert_within(cost, recorded):
    """No dearer than it was."""
    assert cost.launches <= SLACK * recorded["launches"]
    assert cost.cycles <= SLACK * recorded["cycles"]
    assert cost.memory <= SLACK * recorded["memory"] + MEGABYTE


def check(target, shape, name):
    """Compiles one of our programs, and holds it to its budget."""
    program = programs_of("all", shape, target)["jaxctc", name]
    cost = ahead_of_time.cost_for(target, program.function, program.arguments)
    assert not faults(cost, program.most_turns)
    assert not cost.collectives
    if is_same_compiler() and (target, shape, "jaxctc", name) in RECORDED:
        assert_within(cost, RECORDED[target, shape, "jaxctc", name])
    jax.clear_caches()


def check_sharded(target, name):
    """Compiles it for many devices: nothing is exchanged but what the caller asks for."""
    program = programs_of("sharded", "char", target)["sharded", name]
    cost = ahead_of_time.cost_for(target, program.function, program.arguments)
    assert not faults(cost, program.most_turns)
    assert cost.collectives == ["all-reduce"] * ALL_REDUCES.get(name, 0)
    jax.clear_caches()


def column_gather(scores, columns):
    """Reads one label in several frames at a time: what XLA:TPU made a loop of in 0.1.0."""

    def one(scores, columns):
        starts = jnp.stack([jnp.zeros_like(columns), columns], axis=-1)
        column = lax.GatherDimensionNumbers((1,), (1,), (0, 1))
        return lax.gather(scores, starts, column, (20, 1), mode="promise_in_bounds")

    return jax.vmap(one)(scores, columns)


def unknown_length(scores, columns):
    """A loop that data ends, whatever else its condition says."""
    return lax.while_loop(
        lambda carry: (jnp.sum(carry[1]) > 0) & (carry[0] < 7),
        lambda carry: (carry[0] + 1, carry[1] / 2),
        (columns[0, 0], scores),
    )


def cost_of_planted(target, function):
    arguments = (
        jax.ShapeDtypeStruct((64, 400, 32), jnp.float32),
        jax.ShapeDtypeStruct((64, 60), jnp.int32),
    )
    return ahead_of_time.cost_for(target, function, arguments)


@pytest.fixture
def compile_for(monkeypatch):
    """The module of the examples that compiles their training step."""
    monkeypatch.syspath_prepend(EXAMPLES)
    # It broadcasts and promotes as users' programs do.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield pytest.importorskip("compile_for", reason="needs the extra `examples`")


def check_training(compile_for, machines, shape, kernel):
    """Devices exchange what the step says they do, to the byte, and kernels run as they are."""
    width, layers, *_ = compile_for.SIZES["digits"]
    batch, frames, labels, classes = 16, 64, 10, 40
    plan = compile_for.Plan(
        "digits", 16, classes, "sharded", "pallas", 1, "bfloat16", False, 1000, 1e-3
    )
    devices = compile_for.machines_of(machines)
    bucket = compile_for.Bucket(batch * shape["data"], 2 * frames, labels)
    report = compile_for.report_on(plan, shape, devices, bucket)
    assert [name for name in report.kernels if name == kernel] == [kernel] * 2
    assert {each.operation for each in report.exchanges} == {"all-reduce"}
    found = {shape["data"]: 0, shape["model"]: 0}
    for each in report.exchanges:
        found[each.devices] += each.size * each.times
    hidden, scores = 2 * batch * frames * width, 4 * batch * frames
    norms = 4 * 13  # of the gradients of what is spread
    assert found == {
        # Gradients, the sum of the losses, and their number.
        shape["data"]: report.parameters + 8,
        # Four of a layer on the way there, four on the way back, and the head. In every frame a
        # maximum, two sums, and N + 1 scores.
        shape["model"]: (8 * layers + 1) * hidden + (labels + 4) * scores + norms,
    }
    assert report.optimizer >= 2 * report.parameters
    assert compile_for.excess(report, devices) is None
    room = compile_for.MEMORY[devices.target]
    assert compile_for.excess(report._replace(temporaries=int(room)), devices) is not None
    return report


class TestTpu:
    def test_training(self, compile_for):
        report = check_training(compile_for, "v5e:4x4", {"data": 8, "model": 2}, "tpu_custom_call")
        assert 0 < report.loss_cycles < report.cycles

    def test_a_training_that_does_not_fit(self, compile_for):
        device = jax.sharding.SingleDeviceSharding(ahead_of_time.devices("v5e")[0])
        large = jax.ShapeDtypeStruct((5 * 2**30,), jnp.float32, sharding=device)
        lowered = jax.jit(jnp.sin).trace(large).lower(lowering_platforms=("tpu",))
        with pytest.raises(compile_for.DoesNotFit, match=r"^needs \S+G of \S+G bytes per device$"):
            compile_for.fitting(lowered)

    @pytest.mark.parametrize(("name", "shape"), EVERY_PROGRAM_AND_SHAPE)
    def test_every_program(self, name, shape):
        check("v5e", shape, name)

    @pytest.mark.parametrize("name", TUNED)
    @pytest.mark.parametrize("target", ["v6e", "v5p"])
    def test_other_kinds(self, target, name):
        check(target, "char", name)

    @pytest.mark.parametrize("shape", ["char", "bpe1k", "bpe5k", "digits", "long"])
    def test_no_dearer_than_optax(self, shape):
        """The gradient costs at most 1.2 times as many estimated cycles, and no more memory."""
        found = programs_of("losses", shape, "v5e")
        ours, theirs = (
            ahead_of_time.cost_for("v5e", program.function, program.arguments)
            for program in (found[library, TUNED[1]] for library in ("jaxctc", "optax"))
        )
        assert ours.cycles <= 1.2 * theirs.cycles
        # A megabyte, because small arrays of optax's are counted elsewhere, not with temporaries.
        assert ours.memory <= 1.02 * theirs.memory + MEGABYTE

    @pytest.mark.parametrize(
        ("target", "shape"), [("v5e", "char"), ("v5e", "bpe1k"), ("v6e", "char"), ("v5p", "char")]
    )
    @pytest.mark.parametrize("name", EVERY_KERNEL_PROGRAM)
    def test_kernels(self, name, target, shape):
        """Mosaic takes the kernels, no loop is left outside of them, and little else."""
        program = programs_of("kernels", shape, target)["jaxctc", name]
        cost = ahead_of_time.cost_for(target, program.function, program.arguments)
        # XLA:TPU calls its way of putting arrays together a custom call, too.
        kernels = [kernel for kernel in cost.kernels if kernel != "ConcatBitcast"]
        assert kernels == ["tpu_custom_call"] * EVERY_KERNEL_PROGRAM[name]
        assert not faults(cost, program.most_turns)
        if is_same_compiler() and (target, name) == ("v5e", GRADIENT):
            milliseconds = {"char": 0.21, "bpe1k": 2.5}[shape]
            assert cost.cycles / 1.5e6 <= milliseconds
            assert cost.memory <= MEGABYTE
        jax.clear_caches()

    @pytest.mark.parametrize(("target", "shape"), BUNDLES_PER_FRAME)
    def test_schedules(self, target, shape):
        """Bundles a frame, of both kernels; and vector registers suffice for 128 lanes of v5e."""
        sizes = Sizes(*SHAPES[shape].sizes)
        found = kernel_schedules.schedules(target, GRADIENT, sizes)
        assert [schedule.kernel for schedule in found] == ["ctc_backward", "ctc_forward"]
        if is_same_compiler():
            layout = kernel_schedules.layout(sizes)
            frames = [schedule.bundles_per_frame(layout) for schedule in found]
            budget = BUNDLES_PER_FRAME[target, shape]
            assert all(map(operator.le, frames, budget))
            spills = sum(schedule.spills for schedule in found)
            assert spills <= layout.normalize_every * SPILLS_PER_FRAME[target, shape]

    @pytest.mark.parametrize("name", EVERY_SHARDED_PROGRAM)
    def test_sharded(self, name):
        check_sharded("v5e", name)

    def test_a_fault_would_be_seen(self):
        (fault,) = faults(cost_of_planted("v5e", column_gather), 400)
        assert fault.startswith("a loop of 3840 turns, of ")
        (fault,) = faults(cost_of_planted("v5e", unknown_length), 400)
        assert fault.startswith("a loop of unknown length, of ")


class TestGpu:
    def test_training(self, compile_for):
        check_training(compile_for, "h100x8", {"data": 4, "model": 2}, "mosaic_gpu_v2")

    @pytest.mark.parametrize(("name", "shape"), EVERY_PROGRAM_AND_SHAPE)
    def test_every_program(self, name, shape):
        check("h100", shape, name)

    @pytest.mark.parametrize("name", TUNED)
    def test_other_kinds(self, name):
        check("a100", "char", name)

    @pytest.mark.parametrize("shape", ["char", "bpe1k", "bpe5k", "digits", "long"])
    def test_no_dearer_than_optax(self, shape):
        """The gradient starts at most 0.45 times as many kernels, and takes no more memory."""
        found = programs_of("losses", shape, "h100")
        ours, theirs = (
            ahead_of_time.cost_for("h100", program.function, program.arguments)
            for program in (found[library, TUNED[1]] for library in ("jaxctc", "optax"))
        )
        assert ours.launches <= 0.45 * theirs.launches
        assert ours.memory <= theirs.memory

    @pytest.mark.parametrize("shape", ["char", "bpe1k"])
    @pytest.mark.parametrize("name", EVERY_KERNEL_PROGRAM)
    def test_kernels(self, name, shape):
        """Mosaic GPU takes the kernels; no loop is left outside of them, and few launches."""
        cost = self.cost_of_kernel(name, Sizes(*SHAPES[shape].sizes))
        assert cost.kernels == ["mosaic_gpu_v2"] * EVERY_KERNEL_PROGRAM[name]
        assert not faults(cost, 0)
        assert cost.launches <= 40
        assert cost.memory <= KERNEL_MEMORY[shape, name] + MEGABYTE
        jax.clear_caches()

    def test_bytes(self):
        """Of the gradient at bpe1k, where reading the logits twice and writing it take 393 MB."""
        program = kernel_programs(Sizes(*SHAPES["bpe1k"].sizes))[GRADIENT]
        compiled, _ = ahead_of_time.compile_for("h100", program.function, program.arguments)
        assert ahead_of_time.bytes_moved(compiled.as_text()) <= 0.9e9

    def test_launches_do_not_grow_with_the_frames(self):
        sizes = Sizes(*SHAPES["char"].sizes)._replace(batch=2, frames=100_000)
        assert self.cost_of_kernel("ctc_loss (pallas), gradient", sizes).launches <= 40

    @staticmethod
    def cost_of_kernel(name, sizes, target="h100"):
        program = kernel_programs(sizes)[name]
        return ahead_of_time.cost_for(target, program.function, program.arguments)

    @pytest.mark.parametrize(("labels", "most"), [(60, 160), (1534, 255)])
    def test_registers(self, labels, most):
        """Of a thread, by ptxas: no number leaves them for memory."""
        said = self.said_by_mosaic("PTXAS", Sizes(2, 4 * labels, labels, 64))
        registers = [int(number) for number in re.findall(r"Used (\d+) registers", said)]
        spilled = re.findall(r"(\d+) bytes spill", said)
        assert len(registers) == 2
        assert max(registers) <= most
        assert spilled == ["0"] * 4

    @pytest.mark.parametrize("shape", INSTRUCTIONS_PER_FRAME)
    def test_instructions(self, shape):
        """Of a thread in a frame, by the loops of both kernels before ptxas sees them."""
        sizes = Sizes(*SHAPES[shape].sizes)
        kernels = self.said_by_mosaic("PTX", sizes).split(".visible .entry ")[1:]
        loop = re.compile(r"(?s)\n(\$L\w+):\n(.*?)bra\s+\1;")
        bodies = [body for kernel in kernels for _, body in loop.findall(kernel)]
        instructions = [len(re.findall(r"(?m)^\t[@a-z].*;", body)) for body in bodies]
        assert len(instructions) == 2
        frames = [many / Layout.of(*sizes[:3]).block for many in instructions]
        assert all(map(operator.le, frames, INSTRUCTIONS_PER_FRAME[shape])), frames

    @staticmethod
    def said_by_mosaic(what, sizes):
        """What Mosaic prints of both kernels in a process that is told to; forward first."""
        program = (
            "from benchmarks import ahead_of_time, programs\n"
            "ahead_of_time.stay_on_the_cpu()\n"
            f"program = programs.kernel_programs(programs.{sizes!r})['posteriors (pallas)']\n"
            "ahead_of_time.compile_for('h100', program.function, program.arguments)"
        )
        environment = os.environ | {f"MOSAIC_GPU_DUMP_{what}": "1"}
        environment["JAX_ENABLE_COMPILATION_CACHE"] = "0"
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=Path(__file__).parents[1],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout + done.stderr

    def test_older_cards_are_refused(self):
        """Their compiler would not fail but end the process."""
        message = (
            r"got pallas\. The GPU kernel needs compute capability 9\.0; NVIDIA A100.* has 8\.0"
        )
        with pytest.raises(ValueError, match=message):
            self.cost_of_kernel("ctc_loss (pallas)", Sizes(*SHAPES["char"].sizes), "a100")

    @pytest.mark.parametrize("is_manual", [True, False])
    def test_kernels_of_many_devices(self, is_manual):
        """The batch stays where it is: all that is exchanged is the caller's own mean."""
        gpus = slice_of("h100")
        mesh = Mesh(np.array(gpus), ("batch",))
        sizes = Sizes(8 * len(gpus), 100, 20, 32)
        place = NamedSharding(mesh, jax.P("batch"))
        arguments = [
            jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place)
            for shape in ctc_shapes(sizes)
        ]
        loss = functools.partial(jaxctc.ctc_loss, implementation="pallas")
        if is_manual:
            spread = jax.P("batch")
            loss = jax.shard_map(loss, mesh=mesh, in_specs=spread, out_specs=spread)
            seen = contextlib.nullcontext()
        else:
            seen = pytest.warns(UserWarning, match="shard_map")
        with seen:
            cost = ahead_of_time.cost_for("h100", mean_and_gradient(loss), arguments)
        assert cost.collectives == ["all-reduce"]
        assert cost.kernels.count("mosaic_gpu_v2") == 2 * is_manual

    @pytest.mark.parametrize("name", EVERY_SHARDED_PROGRAM)
    def test_sharded(self, name):
        check_sharded("h100", name)

    def test_a_fault_would_be_seen(self):
        (fault,) = faults(cost_of_planted("h100", unknown_length), 400)
        assert fault.startswith("a loop of unknown length, of ")


def test_double_precision_and_calls_would_be_seen():
    text = """
ENTRY %main (x: f64[3]) -> f64[3] {
  %x = f64[3]{0} parameter(0)
  ROOT %call = f64[3]{0} custom-call(%x), custom_call_target="xla_ffi_python_gpu_callback"
}
"""
    assert faults(ahead_of_time.cost_of(text), 0) == [
        "double precision",
        "a call of the host: xla_ffi_python_gpu_callback",
    ]


def test_every_row_is_of_a_program():
    """The record is of today's programs, in both shapes, for both targets."""
    rows = {key for key in RECORDED if key[2] == "jaxctc"}
    assert rows == {
        (target, shape, "jaxctc", name)
        for target in ("v5e", "h100")
        for shape in ("char", "bpe1k")
        for name in EVERY_PROGRAM
    }


def test_every_function_has_a_program():
    """Every public function that can be jitted, value or gradient."""
    arrays = {"beam_init", "build_lexicon", "format_errors", "hot_words", "pad_to_bucket"}
    arrays |= {"read_arpa", "read_lexicon", "read_spellings"}
    files = {"format_spans", "group_spans", "show_versions", "timed_spans", "write_spans"}
    plots = {"plot_alignment", "plot_error_rates", "plot_posteriors"}
    on_the_host = arrays | files | plots
    public = {name for name in jaxctc.__all__ if inspect.isfunction(getattr(jaxctc, name))}
    compiled = {name.split(",")[0].split(" ")[0] for name in EVERY_PROGRAM}
    assert public - on_the_host <= compiled
