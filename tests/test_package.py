"""What a user installs: the dependencies, the version, what an import costs."""

import subprocess
import sys
import tomllib
from pathlib import Path

from test_imports import MAY_COME_FROM_OUTSIDE

import jaxctc

ROOT = Path(__file__).parents[1]


def in_a_fresh_process(program):
    return subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout


def test_dependencies_are_what_is_imported():
    """No more, and no less: and jaxlib, which jax is made of."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {name.split(">=")[0] for name in project["dependencies"]}
    assert named == MAY_COME_FROM_OUTSIDE | {"jaxlib"}


def test_the_changelog_knows_this_version():
    assert f"\n## {jaxctc.__version__} " in (ROOT / "CHANGELOG.md").read_text()


def test_optax_is_imported_by_those_who_call_it():
    """It would take as long as all the rest. Under a trace, its import must leave nothing there."""
    program = (
        "import sys, jax, jax.numpy as jnp, jaxctc\n"
        "assert not {'optax', 'matplotlib', 'tqdm'} & set(sys.modules)\n"
        "first, second = (\n"
        "    jax.make_jaxpr(jaxctc.cross_entropy)(jnp.zeros((2, 3)), jnp.array([0, 1]))\n"
        "    for _ in range(2)\n"
        ")\n"
        "assert 'optax' in sys.modules\n"
        "assert str(first) == str(second)\n"
        "print('same')"
    )
    assert in_a_fresh_process(program) == "same\n"
