"""Compiles programs for TPUs and NVIDIA GPUs that are not here, and counts what they would cost.

    pip install -e '.[aot]'     # libtpu and the CUDA plugin of the installed JAX, some 450 MB

Nothing runs: these are counts and the compiler's own estimates, never times. They rank programs
and find catastrophes; they do not replace a device.

    launches   instructions of the optimised program that run as a kernel of their own, loops
               multiplied out; on a GPU each is a launch, 2 to 4 µs of the host's time
    cycles     the sum of what XLA:TPU estimates for each instruction; none on a GPU. A Pallas
               kernel carries no estimate and counts as 0 (`benchmarks.kernel_schedules` counts its
               bundles), and so do collectives
    loops      every `while` at any depth, inside branches, too, with the number of its turns: None
               where the program does not say it, and then it counts as one turn
    memory     bytes that the program sets aside for temporary values
    equations  of the traced program, before any compiler sees it (`benchmarks.equations`)

`stay_on_the_cpu` comes first, lest JAX look for TPUs where libtpu is. libtpu takes a lock, so one
process at a time can compile for them.
"""

import functools
import importlib.util
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from benchmarks.equations import count_equations


class Target(NamedTuple):
    """A kind of device to compile for."""

    platform: str
    """As JAX names it: "tpu" or "cuda"."""
    topology: str
    """The smallest slice of such TPUs, as libtpu names it; a key of `CARDS`."""
    gigahertz: float | None
    """What turns estimated cycles into estimated seconds; None without such estimates."""


TARGETS = {
    "v4": Target("tpu", "v4:2x2x1", 1.05),
    "v5e": Target("tpu", "v5e:2x2", 1.5),
    "v6e": Target("tpu", "v6e:2x2", 1.75),
    "v5p": Target("tpu", "v5p:2x2x1", 1.75),
    "h100": Target("cuda", "h100", None),
    "a100": Target("cuda", "a100", None),
}
PLUGINS = {"tpu": "libtpu", "cuda": "jax_plugins.xla_cuda12"}

# What XLA:GPU asks of a device, from the makers' data sheets.
CARDS = {
    "h100": {
        "name": "NVIDIA H100 80GB HBM3",
        "capability": 9,
        "cores": 132,
        "fpus": 128,
        "bandwidth": 3352320000000,
        "l2": 52428800,
        "clock": 1.98,
        "shared": 233472,
        "shared_optin": 232448,
    },
    "a100": {
        "name": "NVIDIA A100-SXM4-80GB",
        "capability": 8,
        "cores": 108,
        "fpus": 64,
        "bandwidth": 2039040000000,
        "l2": 41943040,
        "clock": 1.41,
        "shared": 167936,
        "shared_optin": 166912,
    },
}
_CARD = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {shared_optin}
  core_count: {cores} fpus_per_core: {fpus} clock_rate_ghz: {clock}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: {bandwidth} l2_cache_size: {l2} device_memory_size: 84942979072
  cuda_compute_capability {{ major: {capability} }}
  driver_version: "13.0.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0"
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }} device_description_str: "{name}"
"""


class Loop(NamedTuple):
    """A `while` of the optimised program."""

    depth: int
    """0 for one that lies in no other."""
    turns: int | None
    """None where the program does not say how many."""
    total_turns: int | None
    """In all turns of the loops around it; None where one of these numbers is not known."""
    launches: int
    """In one turn."""
    cycles: int
    """In one turn, estimated."""
    source: str
    """The operation of the library that it came from."""


class Exchange(NamedTuple):
    """One operation by which devices exchange values."""

    operation: str
    size: int
    """Bytes of its result, on one device."""
    times: int | None
    """In a run of the program; None where that is not known."""
    devices: int
    """That take part in it together; 0 where the program does not say."""
    source: str
    """The operation of the program that it came from."""


class Cost(NamedTuple):
    """What a compiled program would cost: see the head of this module."""

    launches: int
    cycles: int
    loops: list[Loop]
    kernels: list[str]
    """Targets of custom calls, in the order of the text."""
    collectives: list[str]
    """Likewise, what devices exchange."""
    has_f64: bool
    memory: int = 0
    """Bytes; 0 where only the text was given."""
    compile_seconds: float = 0.0
    equations: int = 0
    """Of the traced program; 0 where only the text was given."""
    bundles: int = 0
    """Of the Pallas kernels in it, by `benchmarks.kernel_schedules`; 0 where nobody asked."""


def stay_on_the_cpu() -> None:
    """Keeps JAX, and libtpu, from looking for devices; before JAX computes anything."""
    jax.config.update("jax_platforms", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")


def is_installed(target: str) -> bool:
    """Whether the compiler for a key of `TARGETS` is there."""
    try:
        return importlib.util.find_spec(PLUGINS[TARGETS[target].platform]) is not None
    except ModuleNotFoundError:
        return False


@functools.cache
def devices(target: str, topology: str | None = None, number: int = 1) -> tuple[Any, ...]:
    """The devices of a slice of TPUs, or so many GPUs of a kind."""
    platform, smallest, _ = TARGETS[target]
    if platform == "tpu":
        name = topology or smallest
        return tuple(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    shape = f"1x1x{number}"
    return tuple(
        topologies.get_topology_desc(
            platform="cuda",
            topology_name=shape,
            topology=shape,
            target_config=_CARD.format(**CARDS[smallest]),
        ).devices
    )


def compile_for(target: str, function: Callable[..., Any], arguments: Any) -> tuple[Any, float]:
    """The program that one such device would run, and the seconds that it took to compile.

    Arguments are arrays or `jax.ShapeDtypeStruct`, whose sharding, where they have one, stands.
    """
    single = SingleDeviceSharding(devices(target)[0])

    def placed(part: Any) -> jax.ShapeDtypeStruct:
        sharding = getattr(part, "sharding", None)
        is_struct = isinstance(part, jax.ShapeDtypeStruct)
        return jax.ShapeDtypeStruct(
            part.shape, part.dtype, sharding=(sharding if is_struct else None) or single
        )

    platform = TARGETS[target].platform
    start = time.perf_counter()
    lowered = (
        jax.jit(function)
        .trace(*jax.tree.map(placed, arguments))
        .lower(lowering_platforms=(platform,))
    )
    return lowered.compile(), time.perf_counter() - start


def cost_for(target: str, function: Callable[..., Any], arguments: Any) -> Cost:
    """Compiled and counted."""
    program, seconds = compile_for(target, function, arguments)
    return cost_of(program.as_text())._replace(
        memory=program.memory_analysis().temp_size_in_bytes,
        compile_seconds=seconds,
        equations=count_equations(function, arguments, TARGETS[target].platform),
    )


# What XLA runs as a kernel of its own when it stands outside a fusion.
_KERNELS = frozenset(
    {
        "add",
        "all-gather",
        "all-reduce",
        "and",
        "broadcast",
        "collective-permute",
        "compare",
        "concatenate",
        "convert",
        "convolution",
        "copy",
        "copy-start",
        "custom-call",
        "divide",
        "dot",
        "dynamic-slice",
        "dynamic-update-slice",
        "exponential",
        "fusion",
        "gather",
        "iota",
        "log",
        "maximum",
        "minimum",
        "multiply",
        "negate",
        "or",
        "pad",
        "reduce",
        "reduce-scatter",
        "reduce-window",
        "reshape",
        "reverse",
        "rng-bit-generator",
        "scatter",
        "select",
        "slice",
        "sort",
        "subtract",
        "transpose",
    }
)
_COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{\s*$")
_OPCODE = re.compile(r"(?:^(?:ROOT )?%[\w.\-]+ = (?:\(.*?\)|[^ ]+) |[\]})] )([a-z][\w\-]*)\(")
_ESTIMATE = re.compile(r'"estimated_cycles":"(\d+)"')
_KNOWN_TURNS = re.compile(r'known_trip_count[^0-9]*"?n"?[^0-9]*([0-9]+)')
# All that a loop's condition may consist of where the number of turns can be read off it.
_OF_A_COUNTER = {"parameter", "get-tuple-element", "compare", "constant", "fusion"}


def cost_of(text: str) -> Cost:
    """Counts what is in the text of an optimised program."""
    program = _Program(text)
    launches, cycles = program.walk(program.entry, 0, 1)
    return Cost(
        launches,
        cycles,
        program.loops,
        program.kernels,
        program.collectives,
        re.search(r"\bf64\[", text) is not None,
    )


def exchanges_of(text: str) -> list[Exchange]:
    """What devices exchange in the text of an optimised program, in its order."""
    program = _Program(text)
    program.walk(program.entry, 0, 1)
    return program.exchanges


def bytes_moved(text: str) -> int:
    """What the kernels of an optimised program without loops read and write, in bytes.

    All operands and results of each, for what one kernel leaves goes through memory to the next. Of
    an operand of which a kernel takes slices, or gathers, only what it takes: 4 bytes of a number,
    where memory gives 32.
    """
    program = _Program(text)
    shapes, moved = {}, 0
    for line in program.computations[program.entry]:
        name, shape, operands = _instruction(line)
        shapes[name] = shape
        if _opcode(line) in _KERNELS:
            taken = dict(_taken(program, line))
            whole = [_size(shapes[operand]) for operand in operands]
            moved += _size(shape)
            moved += sum(min(size, taken.get(place, size)) for place, size in enumerate(whole))
    return moved


def _taken(program: "_Program", line: str) -> Iterator[tuple[int, int]]:
    """The operands of a fusion that it only takes parts of, and the bytes of these."""
    called = re.search(r"\bcalls=%?([\w.\-]+)", line)
    body = program.computations[called.group(1)] if called else []
    for own in body:
        place = re.search(r"\bparameter\((\d+)\)", own)
        if place:
            name = _instruction(own)[0]
            uses = [use for use in body if name in _instruction(use)[2]]
            if all(
                _opcode(use) in ("dynamic-slice", "gather", "slice")
                and _instruction(use)[2][0] == name
                for use in uses
            ):
                yield int(place.group(1)), sum(_size(_instruction(use)[1]) for use in uses)


def _instruction(line: str) -> tuple[str, str, list[str]]:
    """Its name, its shape and its operands."""
    found = re.match(r"(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) [a-z][\w\-]*\((.*?)\)", line)
    if not found:
        return "", "", []
    name, shape, operands = found.groups()
    return name, shape, re.findall(r"%([\w.\-]+)", operands)


def _size(shape: str) -> int:
    """Bytes of an array, or of all in a tuple."""
    return sum(
        math.prod(map(int, filter(None, sizes.split(",")))) * (int(bits or 8) // 8)
        for bits, sizes in re.findall(r"\b(?:pred|[a-z]+?(\d+))\[([\d,]*)\]", shape)
    )


def cycles_within(text: str, scope: str) -> int:
    """Estimated cycles of what was traced within a `jax.named_scope`, derivatives included.

    A fusion counts as what its root came from.
    """
    program = _Program(text, scope)
    return program.walk(program.entry, 0, 1)[1]


class _Program:
    """The computations of a program by their names, and what a walk through them finds.

    With a scope, what was not traced within it has no cycles.
    """

    def __init__(self, text: str, scope: str = "") -> None:
        self.scope = scope
        self.exchanges: list[Exchange] = []
        self.computations: dict[str, list[str]] = {}
        self.loops: list[Loop] = []
        self.kernels: list[str] = []
        self.collectives: list[str] = []
        current: list[str] | None = None
        for line in text.splitlines():
            head = None if line.startswith(" ") else _COMPUTATION.match(line)
            if head:
                current = self.computations[head.group(2)] = []
                if head.group(1):
                    self.entry = head.group(2)
            elif line.startswith("}"):
                current = None
            elif current is not None and line.startswith("  "):
                current.append(line.strip())

    def walk(self, name: str, depth: int, entered: int | None) -> tuple[int, int]:
        """Launches and cycles of one computation, everything that it calls included.

        `entered` is how often the loops around it come here; None where that is not known.
        """
        launches = cycles = 0
        for line in self.computations[name]:
            opcode = _opcode(line)
            if opcode == "while":
                more = self._loop(line, depth, entered)
            elif opcode == "conditional":  # the dearest branch; the loops of all are noted
                branches = [self.walk(branch, depth, entered) for branch in _branches(line)]
                more = max(branches, default=(0, 0))
            elif opcode in ("call", "async-start"):
                (called,) = re.findall(r"(?:to_apply|calls)=%?([\w.\-]+)", line)
                more = self.walk(called, depth, entered)
            else:
                estimate = _ESTIMATE.search(line)
                cycles_here = int(estimate.group(1)) if estimate else 0
                more = int(opcode in _KERNELS), cycles_here * (self.scope in _source(line))
                self._note(opcode, line, entered)
            launches, cycles = launches + more[0], cycles + more[1]
        return launches, cycles

    def _note(self, opcode: str, line: str, entered: int | None) -> None:
        if opcode == "custom-call":
            self.kernels += re.findall(r'custom_call_target="([^"]*)"', line)
        if opcode.removesuffix("-start") in _COLLECTIVES:
            self.collectives.append(opcode.removesuffix("-start"))
            self.exchanges.append(
                Exchange(
                    opcode.removesuffix("-start"),
                    _bytes(line.partition(f" {opcode}(")[0]),
                    entered,
                    _group(line),
                    _source(line),
                )
            )

    def _loop(self, line: str, depth: int, entered: int | None) -> tuple[int, int]:
        (condition,) = re.findall(r"\bcondition=%?([\w.\-]+)", line)
        (body,) = re.findall(r"\bbody=%?([\w.\-]+)", line)
        known = _KNOWN_TURNS.search(line)
        turns = int(known.group(1)) if known else self._turns(condition)
        total = None if turns is None or entered is None else turns * entered
        launches, cycles = self.walk(body, depth + 1, total)
        self.loops.append(Loop(depth, turns, total, launches, cycles, _source(line)))
        return (turns or 1) * launches, (turns or 1) * cycles

    def _turns(self, condition: str) -> int | None:
        """What the counter is compared with, if the condition is nothing but that comparison.

        JAX's counters begin at 0 and grow by 1.
        """
        lines = list(self._flat(condition))
        opcodes = [_opcode(line) for line in lines]
        limits = [limit for line in lines for limit in re.findall(r"constant\((\d+)\)", line)]
        is_counted = set(opcodes) <= _OF_A_COUNTER and opcodes.count("compare") == 1
        return int(limits[0]) if is_counted and len(limits) == 1 else None

    def _flat(self, computation: str) -> Iterator[str]:
        """The lines of a computation, and of the fusions in it."""
        for line in self.computations[computation]:
            yield line
            for called in re.findall(r"\bcalls=%?([\w.\-]+)", line):
                yield from self._flat(called)


def _opcode(line: str) -> str:
    found = _OPCODE.search(line)
    return found.group(1) if found else ""


def _source(line: str) -> str:
    found = re.search(r'op_name="([^"]*)"', line)
    return found.group(1) if found else ""


def _bytes(shapes: str) -> int:
    """Of all arrays whose types are written there."""
    arrays = re.findall(r"\b([a-z]+?)(\d+)?(?:e\d\w*)?\[([\d,]*)\]", shapes)
    bits = (
        int(width or 8) * math.prod(int(size) for size in shape.split(",") if size)
        for _, width, shape in arrays
    )
    return sum(bits) // 8


def _group(line: str) -> int:
    """Devices of a group, in any of the three ways in which XLA writes groups."""
    if first := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(first.group(1).split(","))
    if shape := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(shape.group(1))
    if axes := re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{((?:'\w+',? ?)+)\}", line):
        sizes = dict(re.findall(r"('\w+')=(\d+)", axes.group(1)))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'\w+'", axes.group(2)))
    return 0


def _branches(line: str) -> list[str]:
    names = re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", line)
    for group in re.findall(r"branch_computations=\{([^}]*)\}", line):
        names += [name.strip().lstrip("%") for name in group.split(",")]
    return names
