"""Arrows point down only: who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jaxctc

PACKAGE = Path(jaxctc.__file__).parent
MAY_IMPORT = {
    "_checks": set(),
    "buckets": {"_checks"},
    "padding": {"_checks"},
    "semirings": set(),
    "sharding": set(),
    "scores": {"_checks", "semirings", "sharding"},
    "gathers": set(),
    "lattice": {"_checks", "gathers", "padding", "scores", "sharding"},
    "steps": {"lattice", "padding", "semirings"},
    "blocks": {"lattice", "semirings", "steps"},
    "recursions": {"blocks", "lattice", "padding", "semirings", "steps"},
    "paths": {"lattice", "recursions", "scores", "semirings", "steps"},
    "derivatives": {"_checks", "scores", "semirings"},
    "posteriors": {
        "_checks",
        "derivatives",
        "lattice",
        "paths",
        "recursions",
        "scores",
        "semirings",
    },
    "loss": {
        "_checks",
        "derivatives",
        "lattice",
        "posteriors",
        "recursions",
        "scores",
        "semirings",
        "sharding",
    },
    "from_hidden": {"_checks", "loss", "scores", "sharding"},
    "alignment": {"_checks", "derivatives", "lattice", "paths", "scores", "semirings"},
    "automata": set(),
    "language_models": {"_checks", "automata"},
    "arpa": {"_checks", "automata"},
    "prefixes": {"language_models", "scores", "sharding"},
    "beam_search": {
        "_checks",
        "alignment",
        "automata",
        "decoding",
        "language_models",
        "prefixes",
        "scores",
        "sharding",
    },
    "decoding": {"_checks", "lattice", "padding", "scores"},
    "levenshtein": {"sharding"},
    "error_rates": {"_checks", "levenshtein"},
    "error_reports": {"_checks", "error_rates", "levenshtein"},
    "classification": {"_checks", "scores"},
    "objectives": {
        "_checks",
        "beam_search",
        "classification",
        "error_rates",
        "loss",
        "padding",
        "posteriors",
        "scores",
        "semirings",
    },
    "adapters.__init__": set(),
    "adapters.dandelion": {
        "_checks",
        "classification",
        "decoding",
        "error_rates",
        "loss",
        "scores",
    },
    "adapters.keras": {"_checks", "beam_search", "decoding", "loss", "padding", "scores"},
    "adapters.lucid": {"_checks", "adapters.torch"},
    "adapters.optax": {"_checks", "loss", "semirings"},
    "adapters.returnn": {"_checks", "classification", "error_rates", "loss", "padding"},
    "adapters.theano": {"_checks", "loss", "padding"},
    "adapters.torch": {"_checks", "loss", "padding"},
}
MAY_COME_FROM_OUTSIDE = {"jax", "jaxtyping", "numpy", "optax"}


def imports(source):
    """Dotted names of everything that a module imports, at any depth."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


def inner_modules(source):
    """`jaxctc.loss.ctc_loss` is of `loss`, `jaxctc.adapters.torch.reduce` of `adapters.torch`."""
    parts = (name.split(".")[1:] for name in imports(source) if name.startswith("jaxctc."))
    return {".".join(name[: 1 + (name[0] == "adapters")]) for name in parts}


def source_of(module):
    return PACKAGE.joinpath(*module.split(".")).with_suffix(".py").read_text()


def test_every_module_is_listed():
    found = {".".join(p.relative_to(PACKAGE).with_suffix("").parts) for p in PACKAGE.rglob("*.py")}
    assert found == {"__init__", *MAY_IMPORT}


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_imports_point_down(module):
    assert inner_modules(source_of(module)) <= MAY_IMPORT[module]


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_nothing_unexpected_from_outside(module):
    names = set(imports(source_of(module)))
    roots = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"jaxctc"}
    assert roots <= MAY_COME_FROM_OUTSIDE - ({"optax"} if module != "classification" else set())
    allowed = {"jax.experimental.checkify"} if module == "padding" else set()
    unstable = {name for name in names if name.startswith(("jax._src", "jax.experimental"))}
    assert unstable <= allowed


def test_the_arrows_go_round_in_no_circle():
    below = {}

    def reach(module, path=()):
        assert module not in path, f"{module} imports itself by way of {path}"
        if module not in below:
            below[module] = set().union(*(reach(m, (*path, module)) for m in MAY_IMPORT[module]))
        return below[module] | {module}

    for module in MAY_IMPORT:
        reach(module)


def test_a_violation_would_be_seen():
    planted = (
        "def f():\n    from jaxctc.loss import ctc_loss\n    import jaxctc.decoding\n"
        "    from jaxctc.adapters import torch\n"
    )
    assert inner_modules(planted) == {"loss", "decoding", "adapters.torch"}


def test_importing_the_package_runs_nothing_on_a_device():
    program = (
        "import jaxctc, jax._src.xla_bridge as bridge; assert not bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
