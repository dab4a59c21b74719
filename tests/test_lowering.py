"""What would run on a GPU or a TPU, as StableHLO: lowered here, where there is neither."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.extend.mlir import ir
from jax.interpreters.mlir import make_ir_context

from jaxctc import ctc_loss, error_counts, forced_align, greedy_decode, prefix_beam_search


def gradient(logits, *rest):
    return jax.grad(lambda logits: jnp.sum(ctc_loss(logits, *rest)))(logits)


def errors(logits, padded, *reference):
    decoded = greedy_decode(logits, padded).labels
    return error_counts(decoded, decoded < 0, *reference)


FUNCTIONS = {
    "ctc_loss": ctc_loss,
    "gradient": gradient,
    "forced_align": forced_align,
    "prefix_beam_search": lambda logits, padded, *_: prefix_beam_search(
        logits, padded, num_hypotheses=2
    ),
    "error_counts": errors,
}
# Fewer classes than labels; and so much that nothing is kept which can be computed again.
SIZES = {"small": (4, 300, 16, 20), "large": (64, 3000, 1000, 400)}


def shapes(examples, frames, classes, labels):
    """Of the first four arguments of every function."""
    return (
        jax.ShapeDtypeStruct((examples, frames, classes), jnp.float32),
        jax.ShapeDtypeStruct((examples, frames), jnp.bool_),
        jax.ShapeDtypeStruct((examples, labels), jnp.int32),
        jax.ShapeDtypeStruct((examples, labels), jnp.bool_),
    )


def operations(parent):
    """All, at any depth."""
    for region in parent.regions:
        for block in region:
            for operation in block:
                yield operation.operation
                yield from operations(operation.operation)


def lowered(function, platform, arguments):
    """The program that would be sent to such a machine."""
    exported = jax.export.export(jax.jit(function), platforms=[platform])(*arguments)
    with make_ir_context():
        return ir.Module.parse(exported.mlir_module())


def made_by(value):
    """Name of an operation; None for what a block is given."""
    return getattr(value.owner, "name", None)


def place(value):
    """Among what a block is given."""
    return ir.BlockArgument(value).arg_number


def is_static(value):
    """Whether it is a constant, or the size of an array, be it converted."""
    if made_by(value) == "stablehlo.convert":
        return is_static(value.owner.operands[0])
    return made_by(value) in ("stablehlo.constant", "stablehlo.get_dimension_size")


def is_counted(loop):
    """Whether it ends when something that grows by a constant has reached a constant."""
    condition, body = (region.blocks[0].operations for region in loop.regions)
    (goes_on,) = condition[len(condition) - 1].operands
    if made_by(goes_on) != "stablehlo.compare":
        return False
    counter, limit = goes_on.owner.operands
    if made_by(counter) is not None or not is_static(limit):
        return False
    grown = body[len(body) - 1].operands[place(counter)]
    if made_by(grown) != "stablehlo.add":
        return False
    before, step = grown.owner.operands
    return made_by(before) is None and place(before) == place(counter) and is_static(step)


def faults(module):
    """What a device would stumble over, and how many loops there are."""
    found = list(operations(module.operation))
    loops = [operation for operation in found if operation.name == "stablehlo.while"]
    return {
        "double precision": "f64" in str(module),
        "a call to something else": any("custom_call" in each.name for each in found),
        "a loop that data ends": not all(map(is_counted, loops)),
    }, len(loops)


NONE = {
    "double precision": False,
    "a call to something else": False,
    "a loop that data ends": False,
}


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_nothing_to_stumble_over(name, size, platform):
    found, loops = faults(lowered(FUNCTIONS[name], platform, shapes(*SIZES[size])))
    assert loops
    assert found == NONE


def test_a_fault_would_be_seen():
    """But for calls into the host, which are not exported at all."""

    def planted(values):
        part = jnp.linalg.eigvalsh(jnp.outer(values, values))
        return lax.while_loop(lambda rest: jnp.sum(rest) > 0, lambda rest: rest - part, values)

    with jax.enable_x64(True):
        found, _ = faults(lowered(planted, "cpu", [jax.ShapeDtypeStruct((3,), jnp.float64)]))
    assert all(found.values())
