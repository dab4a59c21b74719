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
    calling_conventions = ["keras", "lucid", "optax", "pyctcdecode", "returnn"]
    calling_conventions += ["theano", "torch", "torchaudio"]
    assert ["dandelion", "frame_objectives", *calling_conventions] == MODULES
    assert len([name for name in FUNCTIONS if name.startswith("dandelion.")]) == 11


# Their arguments are described once, at the head of the module.
FRAME_WISE = {
    f"dandelion.{name}"
    for name in (
        "binary_accuracy",
        "binary_crossentropy",
        "binary_hinge_loss",
        "categorical_accuracy",
        "categorical_crossentropy",
        "categorical_crossentropy_log",
        "multiclass_hinge_loss",
        "squared_error",
    )
}


@pytest.mark.parametrize("name", sorted(FRAME_WISE))
def test_short_ones_have_an_example(name):
    text, signature = inspect.getdoc(FUNCTIONS[name]), inspect.signature(FUNCTIONS[name])
    assert text is not None
    assert ">>> " in text
    assert signature.empty not in {p.annotation for p in signature.parameters.values()}
    assert signature.return_annotation is not signature.empty


@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - FRAME_WISE))
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


@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - {"pyctcdecode.build_ctcdecoder"}))
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
        "bad |= {'pyctcdecode', 'torchaudio'}; "
        "assert not bad & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
