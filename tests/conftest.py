"""Strictness for the whole suite: no silent promotion of dtypes or ranks, repeatable examples."""

import gc
import os
from pathlib import Path

from jaxlib.version import __version_info__ as jaxlib_version

# Most of the time of the suite goes into compiling. `JAX_DISABLE_MOST_OPTIMIZATIONS=0 pytest` has
# XLA optimise all the same, as .ci/run does for the smoke tests.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

# XLA:CPU has two generators of code; the older one compiles in half the time. Later releases do
# not know the flag, and end the process.
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1" and jaxlib_version < (0, 11):
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false"

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# Programs that tests start import the package from here, whichever one is installed.
path = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# What JAX has traced and compiled stays alive to the end, gigabytes of it, and every collection
# walks through it anew.
gc.set_threshold(50_000, 20, 20)

settings.register_profile(
    "jaxctc", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("jaxctc")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def compilations():
    """A list that grows by one with everything that XLA compiles."""
    seen = []

    def listen(event, duration_secs, **kwargs):
        del duration_secs, kwargs
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)
