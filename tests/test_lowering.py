"""One program for CPU, GPU and TPU at once, as `jax.export` writes it, and that it runs here.

What a compiler makes of it for a TPU or a GPU is the matter of `test_ahead_of_time.py`.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BATCHES, batch_of
from jax.export import SymbolicScope, export, symbolic_shape

import jaxctc
from benchmarks.programs import Sizes, programs
from jaxctc import ctc_loss, error_counts, forced_align, greedy_decode, prefix_beam_search

PLATFORMS = ["cpu", "cuda", "tpu"]


def gradient(logits, *rest):
    return jax.grad(lambda logits: jnp.sum(ctc_loss(logits, *rest, zero_infinity=True)))(logits)


def hessian_product(logits, *rest):
    return jax.jvp(lambda logits: gradient(logits, *rest), (logits,), (jnp.ones_like(logits),))[1]


def errors(logits, padded, *reference):
    decoded = greedy_decode(logits, padded).labels
    return error_counts(decoded, decoded < 0, *reference)


FUNCTIONS = {
    "ctc_loss": ctc_loss,
    "gradient": gradient,
    "Hessian product": hessian_product,
    "forced_align": forced_align,
    "prefix_beam_search": lambda logits, padded, *_: prefix_beam_search(
        logits, padded, num_hypotheses=2
    ),
    "error_counts": errors,
}


BY_NAME = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("ctc_loss", "gradient") else pytest.mark.slow)
        for name in FUNCTIONS
    ],
)


@BY_NAME
def test_one_program_for_all_platforms(name):
    """No double precision, no call of anything else; run here, it gives the same."""
    function, arguments = jax.jit(FUNCTIONS[name]), batch_of(BATCHES[0])
    shapes = [jax.ShapeDtypeStruct(each.shape, each.dtype) for each in arguments]
    program = export(function, platforms=PLATFORMS)(*shapes)
    text = program.mlir_module()
    assert "f64" not in text
    assert "custom_call" not in text
    # XLA may round otherwise where it has a choice of platforms before it.
    chex.assert_trees_all_close(
        program.call(*arguments), function(*arguments), rtol=1e-6, atol=1e-6
    )


BATCH = 19


def for_any_batch(arguments):
    """Shapes of arrays for `BATCH` examples, with an unknown number in its place."""
    (any_batch,) = symbolic_shape("b")

    def shape_of(part):
        shape = [any_batch if size == BATCH else size for size in part.shape]
        return jax.ShapeDtypeStruct(shape, part.dtype)

    return jax.tree.map(shape_of, arguments)


@BY_NAME
def test_a_batch_of_any_size(name):
    """One example, or so many that a loss of its own size has another layout."""
    examples = batch_of(BATCHES[0])

    def batch(size):
        return tuple(np.resize(part, (size, *part.shape[1:])) for part in examples)

    function = jax.jit(FUNCTIONS[name])
    program = export(function)(*for_any_batch(batch(BATCH)))
    for size in (1, 6, 40):
        found, expected = program.call(*batch(size)), function(*batch(size))
        chex.assert_trees_all_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "logits", "labels", "options", "message"),
    [
        (
            jaxctc.ctc_loss,
            "b, t, 7",
            "b, 3",
            {},
            "logits must be of known size, but for batch axes",
        ),
        (jaxctc.posteriors, "b, 9, k", "b, 3", {}, r"logits must .* got \(b, 9, k\). Export one"),
        (jaxctc.forced_align, "b, 9, 7", "b, n", {}, "labels must be of known size"),
        (
            jaxctc.ctc_loss,
            "b, 9, 7",
            "b, 3",
            {"implementation": "pallas"},
            "got pallas. Kernels are made for a batch of known size",
        ),
    ],
)
def test_other_sizes_are_known(function, logits, labels, options, message):
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in zip(
            symbolic_shapes(logits, labels), (np.float32, np.int32), strict=True
        )
    ]

    def program(logits, labels):
        return function(logits, None, labels, None, **options)

    with pytest.raises(ValueError, match=message):
        export(jax.jit(program), platforms=["tpu"])(*shapes)


def symbolic_shapes(*shapes):
    """In one scope, so that a name is one number in all of them."""
    scope = SymbolicScope()
    return [symbolic_shape(shape, scope=scope) for shape in shapes]


PROGRAMS = {
    name: program
    for name, program in programs(Sizes(BATCH, 23, 5, 7)).items()
    if "in a row" not in name  # those lengths are known, and so is their number
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_takes_a_batch_of_any_size(name):
    export(jax.jit(PROGRAMS[name].function))(*for_any_batch(PROGRAMS[name].arguments))


def test_a_fault_would_be_seen():
    with jax.enable_x64(True):
        shape = jax.ShapeDtypeStruct((3, 3), jnp.float64)
        text = export(jax.jit(jnp.linalg.eigvalsh), platforms=["cpu"])(shape).mlir_module()
    assert "f64" in text
    assert "custom_call" in text
