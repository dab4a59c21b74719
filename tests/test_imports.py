"""Arrows point down only: who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jaxctc

PACKAGE = Path(jaxctc.__file__).parent
KERNELS_MAY_IMPORT = {
    "_core.classes",
    "_core.normalizer",
    "_core.problem",
    "_core.recursion",
    "_core.semirings",
}
"""No kernel knows of emissions, derivatives or another kernel."""
MAY_IMPORT = {
    # The core, from the bottom up.
    "_core.__init__": set(),
    "_core.foreign": set(),
    "_core.checks": {"_core.foreign"},
    "_core.lean": set(),
    "_core.ragged": set(),
    "_core.semirings": set(),
    "_core.sharding": set(),
    "_core.explicit_axes": set(),
    "_core.classes": set(),
    "_core.normalizer": {"_core.sharding"},
    "_core.rounds": {"_core.semirings"},
    "_core.frame_sums": {"_core.normalizer", "_core.semirings"},
    "_core.problem": {"_core.classes", "_core.normalizer"},
    "_core.frames": {"_core.problem", "_core.semirings"},
    "_core.recursion": {"_core.frames", "_core.problem", "_core.semirings"},
    "_core.alternatives": {
        "_core.frames",
        "_core.normalizer",
        "_core.problem",
        "_core.recursion",
        "_core.semirings",
    },
    "_core.kernels.reference": KERNELS_MAY_IMPORT,
    "_core.kernels.chunk_tables": {"_core.semirings"},
    "_core.kernels.mirrored": KERNELS_MAY_IMPORT | {"_core.kernels.chunk_tables"},
    "_core.kernels.xla_blocked": KERNELS_MAY_IMPORT
    | {"_core.kernels.chunk_tables", "_core.kernels.mirrored"},
    "_core.kernels.tpu_layout": {
        "_core.classes",
        "_core.problem",
        "_core.recursion",
        "_core.semirings",
    },
    "_core.kernels.pallas_batch": {"_core.problem"},
    "_core.kernels.pallas_tpu": KERNELS_MAY_IMPORT
    | {"_core.kernels.pallas_batch", "_core.kernels.tpu_layout"},
    "_core.kernels.gpu_layout": {"_core.problem", "_core.recursion", "_core.semirings"},
    "_core.kernels.pallas_gpu": KERNELS_MAY_IMPORT
    | {"_core.kernels.gpu_layout", "_core.kernels.pallas_batch"},
    # It chooses between kernels when a program is lowered.
    "_core.kernels.dispatch": {
        "_core.checks",
        "_core.kernels.pallas_gpu",
        "_core.kernels.pallas_tpu",
        "_core.kernels.xla_blocked",
        "_core.problem",
        "_core.sharding",
    },
    "_core.kernels.__init__": {
        "_core.kernels.dispatch",
        "_core.kernels.reference",
        "_core.kernels.xla_blocked",
        "_core.problem",
    },
    "_core.emissions": {
        "_core.checks",
        "_core.classes",
        "_core.kernels.__init__",
        "_core.normalizer",
        "_core.problem",
        "_core.ragged",
        "_core.semirings",
        "_core.sharding",
    },
    "_core.occupancies": {
        "_core.alternatives",
        "_core.classes",
        "_core.emissions",
        "_core.kernels.__init__",
        "_core.problem",
        "_core.recursion",
        "_core.semirings",
    },
    "_core.paths": {
        "_core.alternatives",
        "_core.emissions",
        "_core.frames",
        "_core.problem",
        "_core.recursion",
        "_core.semirings",
    },
    "_core.derivatives": {
        "_core.alternatives",
        "_core.classes",
        "_core.emissions",
        "_core.kernels.__init__",
        "_core.normalizer",
        "_core.occupancies",
        "_core.recursion",
        "_core.semirings",
        "_core.sharding",
    },
    "_core.changes": {
        "_core.frames",
        "_core.normalizer",
        "_core.problem",
        "_core.recursion",
        "_core.semirings",
    },
    # Public topics.
    "padding": {"_core.checks", "_core.explicit_axes", "_core.ragged"},
    "batching": {"_core.checks"},
    "posteriors": {
        "_core.checks",
        "_core.derivatives",
        "_core.emissions",
        "_core.explicit_axes",
        "_core.kernels.__init__",
        "_core.occupancies",
        "_core.paths",
        "_core.recursion",
        "_core.semirings",
    },
    "loss": {
        "_core.checks",
        "_core.derivatives",
        "_core.emissions",
        "_core.explicit_axes",
        "posteriors",
    },
    "from_hidden": {
        "_core.checks",
        "_core.derivatives",
        "_core.emissions",
        "_core.explicit_axes",
        "_core.kernels.__init__",
        "_core.normalizer",
        "_core.sharding",
        "loss",
    },
    "alignment": {
        "_core.checks",
        "_core.derivatives",
        "_core.emissions",
        "_core.explicit_axes",
        "_core.frames",
        "_core.lean",
        "_core.normalizer",
        "_core.occupancies",
        "_core.paths",
        "_core.problem",
        "_core.semirings",
    },
    "substitutions": {
        "_core.changes",
        "_core.classes",
        "_core.derivatives",
        "_core.emissions",
        "_core.explicit_axes",
        "_core.normalizer",
        "_core.semirings",
    },
    "prefix_scores": {
        "_core.checks",
        "_core.classes",
        "_core.derivatives",
        "_core.frame_sums",
        "_core.normalizer",
        "_core.rounds",
        "_core.semirings",
    },
    "frame_losses": {"_core.checks", "_core.explicit_axes", "_core.normalizer"},
    # Error rates.
    "metrics.__init__": set(),
    "metrics.levenshtein": {"_core.sharding"},
    "metrics.error_rates": {"_core.checks", "_core.explicit_axes", "metrics.levenshtein"},
    "metrics.error_reports": {"_core.checks", "metrics.error_rates", "metrics.levenshtein"},
    # Decoding, and what is trained by it.
    "decoding.__init__": set(),
    "decoding.greedy": {
        "_core.checks",
        "_core.explicit_axes",
        "_core.lean",
        "_core.normalizer",
        "_core.ragged",
    },
    "decoding.automata": set(),
    "decoding.language_models": {"_core.checks", "decoding.automata"},
    "decoding.memory": {"_core.checks"},
    "decoding.ngram_models": {"decoding.automata"},
    "decoding.arpa": {
        "_core.checks",
        "decoding.automata",
        "decoding.memory",
        "decoding.ngram_models",
    },
    "decoding.likely_tokens": set(),
    "decoding.words": {
        "_core.checks",
        "decoding.language_models",
        "decoding.lexicon",
        "decoding.ngram_models",
        "text",
    },
    "decoding.histories": {"_core.sharding", "decoding.prefixes"},
    "decoding.ragged_search": {
        "_core.normalizer",
        "alignment",
        "decoding.beam_search",
        "decoding.fusion",
        "decoding.histories",
        "decoding.likely_tokens",
        "decoding.prefixes",
    },
    "decoding.spellings": {"_core.checks", "text"},
    "decoding.spelt_words": {"_core.checks", "decoding.spellings", "text"},
    "decoding.lexicon": {"_core.checks", "decoding.automata", "decoding.spellings", "text"},
    "decoding.fusion": {"_core.checks", "decoding.language_models", "decoding.lexicon"},
    "decoding.prefixes": {"_core.checks", "_core.normalizer", "_core.sharding", "decoding.fusion"},
    "decoding.beam_search": {
        "_core.checks",
        "_core.normalizer",
        "_core.sharding",
        "alignment",
        "decoding.fusion",
        "decoding.greedy",
        "decoding.histories",
        "decoding.language_models",
        "decoding.lexicon",
        "decoding.prefixes",
    },
    "objectives": {
        "_core.checks",
        "_core.explicit_axes",
        "_core.normalizer",
        "_core.semirings",
        "decoding.beam_search",
        "frame_losses",
        "loss",
        "metrics.error_rates",
        "padding",
        "posteriors",
    },
    "purpose": {
        "_core.checks",
        "_core.derivatives",
        "_core.explicit_axes",
        "frame_losses",
        "posteriors",
    },
    # Text, words and seconds.
    "text": {"_core.checks"},
    "spans": {
        "_core.checks",
        "_core.explicit_axes",
        "_core.ragged",
        "alignment",
        "decoding.greedy",
    },
    "subtitles": {"_core.checks", "spans"},
    "plot": {"_core.checks", "alignment", "metrics.error_rates", "posteriors", "spans"},
    "versions": {"_core.checks"},
    "command_line": {"decoding.memory", "subtitles"},
    "__main__": {
        "_core.checks",
        "alignment",
        "command_line",
        "decoding.arpa",
        "decoding.beam_search",
        "decoding.language_models",
        "decoding.lexicon",
        "padding",
        "spans",
        "subtitles",
        "text",
    },
    # Nobody imports these.
    "adapters.__init__": set(),
    "adapters.dandelion": {
        "_core.checks",
        "_core.normalizer",
        "adapters.frame_objectives",
        "decoding.greedy",
        "frame_losses",
        "loss",
        "metrics.error_rates",
    },
    "adapters.frame_objectives": {"_core.checks", "_core.explicit_axes", "frame_losses"},
    "adapters.keras": {
        "_core.checks",
        "_core.explicit_axes",
        "_core.normalizer",
        "decoding.beam_search",
        "decoding.greedy",
        "loss",
        "padding",
    },
    "adapters.lucid": {"_core.checks", "adapters.torch"},
    "adapters.optax": {"_core.checks", "_core.semirings", "loss"},
    "adapters.pyctcdecode.__init__": {
        "adapters.pyctcdecode.alphabet",
        "adapters.pyctcdecode.constants",
        "adapters.pyctcdecode.decoder",
        "adapters.pyctcdecode.language_model",
        "decoding.memory",
    },
    "adapters.pyctcdecode.alphabet": {"_core.checks", "text"},
    "adapters.pyctcdecode.constants": set(),
    "adapters.pyctcdecode.inputs": {"_core.checks"},
    "adapters.pyctcdecode.language_model": {
        "_core.checks",
        "adapters.pyctcdecode.alphabet",
        "adapters.pyctcdecode.constants",
        "adapters.pyctcdecode.inputs",
        "decoding.arpa",
        "decoding.lexicon",
        "decoding.memory",
        "decoding.ngram_models",
        "decoding.words",
        "text",
    },
    "adapters.pyctcdecode.decoder": {
        "_core.checks",
        "adapters.pyctcdecode.alphabet",
        "adapters.pyctcdecode.constants",
        "adapters.pyctcdecode.inputs",
        "adapters.pyctcdecode.language_model",
        "decoding.arpa",
        "decoding.likely_tokens",
        "decoding.memory",
        "decoding.ngram_models",
        "decoding.ragged_search",
        "decoding.words",
        "text",
    },
    "adapters.returnn": {"_core.checks", "frame_losses", "loss", "metrics.error_rates", "padding"},
    "adapters.theano": {"_core.checks", "loss", "padding"},
    "adapters.torchaudio": {"_core.checks", "_core.explicit_axes", "alignment", "padding"},
    "adapters.torch": {
        "_core.checks",
        "_core.explicit_axes",
        "_core.foreign",
        "loss",
        "padding",
    },
}
USE_OPTAX = {"adapters.frame_objectives", "frame_losses"}
UNSTABLE = {
    "padding": {"jax.experimental.checkify"},
    "_core.kernels.pallas_tpu": {"jax.experimental.pallas", "jax.experimental.pallas.tpu"},
    "_core.kernels.pallas_gpu": {
        "jax.experimental.mosaic.gpu",
        "jax.experimental.mosaic.gpu.utils",
        "jax.experimental.pallas",
        "jax.experimental.pallas.mosaic_gpu",
    },
}
"""What may change or go with any version of JAX, and who may use it."""
MAY_COME_FROM_OUTSIDE = {"jax", "jaxtyping", "numpy", "optax"}
MAY_BE_MISSING = {"__main__": {"tqdm"}, "plot": {"matplotlib"}}
"""Imported when called, and no dependency."""


def imports(source):
    """Dotted names of everything that a module imports, at any depth."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


def inner_modules(source):
    """`jaxctc.loss.ctc_loss` is of `loss`, `jaxctc._core.kernels.resolve` of the package there."""
    names = {name.removeprefix("jaxctc.") for name in imports(source) if "jaxctc." in name}
    return set(map(module_of, names))


def module_of(name):
    if name in MAY_IMPORT:
        return name
    if f"{name}.__init__" in MAY_IMPORT:
        return f"{name}.__init__"
    assert "." in name, f"{name} is no module"
    return module_of(name.rpartition(".")[0])


def source_of(module):
    return PACKAGE.joinpath(*module.split(".")).with_suffix(".py").read_text()


def test_every_module_is_listed():
    found = {".".join(p.relative_to(PACKAGE).with_suffix("").parts) for p in PACKAGE.rglob("*.py")}
    assert found == {"__init__", *MAY_IMPORT}


def test_only_their_package_knows_the_kernels():
    for module, below in MAY_IMPORT.items():
        kernels = {name for name in below if name.startswith("_core.kernels.")}
        assert kernels <= {"_core.kernels.__init__"} or module.startswith("_core.kernels.")


def test_the_core_builds_on_nothing_public():
    for module, below in MAY_IMPORT.items():
        if module.startswith("_core."):
            assert all(name.startswith("_core.") for name in below)


def test_a_newcomer_sees_a_handful_of_topics():
    assert sum("." not in module for module in MAY_IMPORT) <= 20


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_imports_point_down(module):
    # What shortens jnp may be used as jnp is.
    assert inner_modules(source_of(module)) - {"_core.lean"} <= MAY_IMPORT[module]


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_nothing_unexpected_from_outside(module):
    names = set(imports(source_of(module)))
    roots = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"jaxctc"}
    known = MAY_COME_FROM_OUTSIDE - ({"optax"} if module not in USE_OPTAX else set())
    assert roots <= known | MAY_BE_MISSING.get(module, set())
    unstable = {name for name in names if name.startswith(("jax._src", "jax.experimental"))}
    assert unstable <= UNSTABLE.get(module, set())


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
    assert inner_modules(planted) == {"loss", "decoding.__init__", "adapters.torch"}


def test_importing_the_package_runs_nothing_on_a_device_and_takes_no_pallas():
    program = (
        "import jaxctc, sys, jax._src.xla_bridge as bridge; "
        "assert not bridge.backends_are_initialized(); "
        "assert 'jax.experimental.pallas' not in sys.modules; "
        "import jaxctc._core.kernels.pallas_tpu; assert 'jax.experimental.pallas' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
