"""What a user installs: the dependencies, the version, what an import costs."""

import os
import platform
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from test_imports import MAY_COME_FROM_OUTSIDE

import jaxctc

ROOT = Path(__file__).parents[1]


def in_a_fresh_process(program, **variables):
    return subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | variables,
    ).stdout


def test_dependencies_are_what_is_imported():
    """No more, and no less: and jaxlib, which jax is made of."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {name.split(">=")[0] for name in project["dependencies"]}
    assert named == MAY_COME_FROM_OUTSIDE | {"jaxlib"}


def test_the_changelog_knows_this_version():
    assert f"\n## {jaxctc.__version__} " in (ROOT / "CHANGELOG.md").read_text()


def test_the_citation_is_of_this_version():
    assert f"\nversion: {jaxctc.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_show_versions():
    """What is installed and set here, line by line; no path of this machine."""
    program = (
        "import jax, jaxctc\n"
        "jax.config.update('jax_enable_x64', True)\n"
        "jax.config.update('jax_compilation_cache_dir', 'a secret place')\n"
        "jaxctc.show_versions()"
    )
    printed = in_a_fresh_process(
        program, JAX_PLATFORMS="cpu", XLA_FLAGS="--xla_cpu_enable_fast_math=false"
    )
    found = dict(re.split(r"\s+", line, maxsplit=1) for line in printed.splitlines())
    for package in ("jax", "jaxlib", "numpy", "optax", "jaxtyping"):
        assert found[package] == metadata.version(package)
    assert found["jaxctc"] == jaxctc.__version__
    assert found["Python"].startswith(platform.python_version())
    assert found["platform"] == "cpu (1 processes)"
    assert found["devices"] == "1 × cpu"
    assert found["jax_enable_x64"] == "True"
    assert found["XLA_FLAGS"] == "'--xla_cpu_enable_fast_math=false'"
    assert found["JAXCTC_PALLAS_INTERPRET"] == "not set"
    assert not re.search(f"secret|{re.escape(platform.node())}|{re.escape(str(ROOT))}", printed)


def test_show_versions_where_there_is_no_device():
    """The reason is in the report, and the rest of it, too."""
    printed = in_a_fresh_process("import jaxctc; jaxctc.show_versions()", JAX_PLATFORMS="none")
    assert re.search(r"^devices +none: .*none", printed, re.MULTILINE)
    assert "jax_enable_x64 " in printed


def test_show_versions_wants_a_file():
    with pytest.raises(ValueError, match=r"^show_versions: file must have a method write; got str"):
        jaxctc.show_versions(file="report.txt")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("path", [".github/workflows/ci.yml", ".github/ISSUE_TEMPLATE/report.yml"])
def test_what_github_reads(path):
    """It runs what CI runs, and a report begins with the versions."""
    text = (ROOT / path).read_text()
    assert (".ci/run" if "workflows" in path else "jaxctc.show_versions()") in text
    yaml = pytest.importorskip("yaml", reason="needs the extra `docs`")
    assert {"name"} < set(yaml.safe_load(text))


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
