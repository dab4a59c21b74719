"""Strictness for the whole suite: no silent promotion of dtypes or ranks, repeatable examples."""

import functools
import gc
import os
import sys
from pathlib import Path

# Most of the time of the suite goes into compiling, as a user's program is compiled. What took a
# tenth of a second stays for the next run, for the other workers and for programs that tests start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from jax import lax

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


MAPS = Path("/proc/self/maps")
MANY_MAPS = 30_000


@pytest.fixture(autouse=True, scope="module")
def _forgets_programs():
    """Every compiled program takes some maps of memory, of which Linux grants a process 65530.

    Where there are none left, XLA ends the process.
    """
    yield
    if MAPS.exists() and len(MAPS.read_text().splitlines()) > MANY_MAPS:
        jax.clear_caches()
        gc.collect()


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


@pytest.fixture
def pretend(monkeypatch):
    """`pretend(platform)`: what is traced from now on has the branches of that platform."""

    def choose(platform, *arguments, **branches):
        return branches.get(platform, branches["default"])(*arguments)

    def pretend(platform):
        monkeypatch.setattr(lax, "platform_dependent", functools.partial(choose, platform))

    return pretend


@pytest.fixture
def refusal(monkeypatch, capsys):
    """What an example says of arguments that it does not take, in this process, which is faster."""

    def of(name, *arguments):
        example = pytest.importorskip(name, reason="needs the extra `examples`")
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        with pytest.raises(SystemExit, match=r"^2$"):
            example.main()
        return capsys.readouterr().err

    return of
