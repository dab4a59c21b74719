"""What holds for every adapter: documented, annotated, and nothing else needed to import it."""

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys

import pytest

from jaxctc import adapters

MODULES = [module.name for module in pkgutil.iter_modules(adapters.__path__)]
FUNCTIONS = {
    f"{name}.{function}": value
    for name in MODULES
    for function, value in vars(importlib.import_module(f"jaxctc.adapters.{name}")).items()
    if inspect.isfunction(value)
    and value.__module__ == f"jaxctc.adapters.{name}"
    and not function.startswith("_")
    and function not in ("per_example", "reduce")  # what lucid builds on
}


def test_none_is_missing():
    assert MODULES == ["dandelion", "keras", "lucid", "optax", "returnn", "theano", "torch"]
    assert len([name for name in FUNCTIONS if name.startswith("dandelion.")]) == 11


@pytest.mark.parametrize("name", FUNCTIONS)
def test_documented_and_annotated(name):
    function, text = FUNCTIONS[name], inspect.getdoc(FUNCTIONS[name])
    assert text is not None
    for section in ("Args:", "Returns:", "Raises:", "Example:"):
        assert re.search(rf"^{section}$", text, re.MULTILINE), section
    signature = inspect.signature(function)
    assert signature.return_annotation is not signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not parameter.empty, parameter
        assert re.search(rf"^  (\w+, )*{parameter.name}(, \w+)*: ", text, re.MULTILINE), parameter


@pytest.mark.parametrize("name", FUNCTIONS)
def test_ragged_arguments_are_refused_by_name(name):
    """In our words, whichever of the arguments is looked at first."""
    parameters = inspect.signature(FUNCTIONS[name]).parameters.values()
    ragged = {p.name: [[1, 2], [1]] for p in parameters if p.default is p.empty}
    with pytest.raises(
        ValueError, match=r"\w: \w+ must be one array of numbers; got a list of 2\."
    ):
        FUNCTIONS[name](**ragged)


def test_no_other_library_is_imported():
    names = ", ".join(f"jaxctc.adapters.{name}" for name in MODULES)
    program = (
        f"import sys, {names}; bad = {{'torch', 'keras', 'theano', 'lucid', 'tensorflow'}}; "
        "assert not bad & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
