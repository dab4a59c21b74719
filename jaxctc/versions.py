"""The version, and what a report of a mistake should say about the rest."""

import os
import platform
from collections.abc import Iterator
from importlib import metadata
from typing import TextIO

import jax

from jaxctc._core import checks

__version__ = "0.2.0"

_PACKAGES = (
    "jax",
    "jaxlib",
    "numpy",
    "optax",
    "jaxtyping",
    "libtpu",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
    "flax",
    "matplotlib",
    "tqdm",
)
"""The dependencies, what drives a TPU or a GPU, and what the extras bring."""
_SWITCHES = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_numpy_dtype_promotion",
    "jax_numpy_rank_promotion",
    "jax_debug_nans",
    "jax_debug_infs",
    "jax_enable_checks",
    "jax_disable_jit",
    "jax_check_tracer_leaks",
    "jax_threefry_partitionable",
)
_VARIABLES = ("JAX_PLATFORMS", "XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAXCTC_PALLAS_INTERPRET")


def show_versions(*, file: TextIO | None = None) -> None:
    """Prints what a report of a mistake should begin with.

    These are versions, the platform and its devices, JAX's switches that change results or errors,
    and the variables that choose platforms and compilers. JAX looks for devices, if it has not yet;
    where it finds none, its own message is printed. Nothing names the machine or its user, unless
    one of the variables does: read them before you publish them.

    Args:
      file: what has a method `write`, such as an open file; None is the standard output.

    Raises:
      ValueError: if `file` has no such method.

    Example:
      >>> import io
      >>> report = io.StringIO()
      >>> show_versions(file=report)
      >>> [line.split()[0] for line in report.getvalue().splitlines()][:3]
      ['jaxctc', 'Python', 'jax']
    """
    if file is not None and not callable(getattr(file, "write", None)):
        remedy = "Pass an open file."
        checks.fail("show_versions", "file", "have a method write", type(file).__name__, remedy)
    for name, value in _facts():
        print(f"{name:<29} {value}", file=file)


def _facts() -> Iterator[tuple[str, str]]:
    yield "jaxctc", __version__
    yield "Python", f"{platform.python_version()} ({platform.python_implementation()})"
    for package in _PACKAGES:
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            yield package, "not installed"
    yield "system", f"{platform.system()}, {platform.machine()}, {os.cpu_count()} CPU cores"
    yield from _devices()
    for switch in _SWITCHES:
        yield switch, str(getattr(jax.config, switch, "not in this JAX"))
    for variable in _VARIABLES:
        yield variable, repr(os.environ[variable]) if variable in os.environ else "not set"


def _devices() -> Iterator[tuple[str, str]]:
    try:
        devices = jax.devices()
    except RuntimeError as error:  # the reason why there are none may be all that is wrong
        yield "devices", f"none: {' '.join(str(error).split())}"
        return
    kinds = [device.device_kind for device in devices]
    counts = ", ".join(f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds))
    yield "platform", f"{devices[0].platform} ({jax.process_count()} processes)"
    yield "devices", counts
