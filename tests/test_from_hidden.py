"""The loss from hidden values against the loss of the logits that are never made."""

import functools

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from jaxprs import dtypes

from jaxctc import ctc_loss, ctc_loss_from_hidden


def layer(rng, batch, frames, width, classes):
    hidden = rng.normal(size=(*batch, frames, width)).astype(np.float32)
    kernel = rng.normal(size=(width, classes)).astype(np.float32)
    return hidden, kernel, rng.normal(size=classes).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("loss", "options"))
def loss_and_gradients(loss, layer, rest, weights, options):
    """Losses, and the gradients of their weighted sum."""

    def total(layer):
        losses = loss(*layer, *rest, **dict(options))
        return jnp.vdot(
            weights, jnp.where(losses == jnp.inf, jnp.zeros_like(losses), losses)
        ), losses

    gradients, losses = jax.grad(total, has_aux=True)(layer)
    return losses, gradients


def from_logits(hidden, kernel, bias, *rest, **options):
    logits = jnp.matmul(hidden, kernel, precision="highest")
    return ctc_loss(logits + jnp.expand_dims(bias, range(logits.ndim - 1)), *rest, **options)


@pytest.mark.parametrize(
    ("batch", "block_size"),
    [
        *(pytest.param((3,), size, marks=pytest.mark.slow) for size in (1, 4, 11, 100)),
        *[((3,), 5), ((), 4), ((2, 2), 4)],
    ],
    ids=str,
)
def test_it_is_the_loss_of_the_logits(batch, block_size, rng):
    """Blocks that divide the classes and that do not; repeats, padding, labels that do not fit."""
    arguments = layer(rng, batch, 8, 6, 11)
    labels = rng.integers(0, 10, (*batch, 4))
    labels[..., 1] = labels[..., 0]
    rest = rng.random((*batch, 8)) < 0.2, labels, rng.random((*batch, 4)) < 0.3
    weights = rng.normal(size=batch).astype(np.float32)
    options = (("blank_id", 10),)
    blocks = (*options, ("block_size", block_size))
    ours = loss_and_gradients(ctc_loss_from_hidden, arguments, rest, weights, blocks)
    theirs = loss_and_gradients(from_logits, arguments, rest, weights, options)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        (("blank_id", -1),),
        (("label_loop", False),),
        pytest.param((("blank_id", 0),), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_options_are_those_of_the_loss(options, rng):
    arguments = layer(rng, (4,), 7, 5, 9)
    rest = None, rng.integers(1, 8, (4, 3)), None
    ours = loss_and_gradients(ctc_loss_from_hidden, arguments, rest, jnp.ones(4), options)
    theirs = loss_and_gradients(from_logits, arguments, rest, jnp.ones(4), options)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
def test_every_awkward_case(dtype):
    """The identity for a kernel makes hidden values logits. It cannot make them infinite."""
    batch = cases.BATCHES[0]
    logits, no_frame, labels, no_label = cases.batch_of(batch)
    classes = logits.shape[-1]
    is_finite = np.isfinite(logits).all(axis=(1, 2)) | np.array([c.kind == "nan" for c in batch])
    arguments = jnp.asarray(logits, dtype), jnp.eye(classes, dtype=dtype), jnp.zeros(classes, dtype)
    rest = no_frame, labels, no_label

    @jax.jit
    def pulled_back(hidden):
        both = [
            jax.vjp(lambda x, f=f: f(x, *arguments[1:], *rest), hidden)
            for f in (ctc_loss_from_hidden, from_logits)
        ]
        return [(loss, *pullback(jnp.ones_like(loss))) for loss, pullback in both]

    ours, theirs = pulled_back(arguments[0])
    assert (ours[0].dtype, ours[1].dtype) == (jnp.float32, dtype)
    for number in np.flatnonzero(is_finite):
        name = batch[number].name
        # Log-probabilities are rounded here, and at -2e5 nats by hundredths.
        least = 1e-2 if dtype == jnp.bfloat16 or name == "gaps beyond 1e5" else 1e-5
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(
                one[number].astype(jnp.float32), other[number].astype(jnp.float32),
                rtol=1e-5, atol=least, err_msg=name,
            )  # fmt: skip
        assert ours[0][number] >= 0 or np.isnan(ours[0][number]), name


@pytest.mark.parametrize(("frames", "places"), [(0, 2), (0, 0), (3, 0)])
def test_nothing_to_say_or_to_say_it_in(frames, places, rng):
    arguments = layer(rng, (2,), frames, 3, 5)
    rest = None, np.ones((2, places), np.int32), None
    ours = loss_and_gradients(ctc_loss_from_hidden, arguments, rest, jnp.ones(2), ())
    theirs = loss_and_gradients(from_logits, arguments, rest, jnp.ones(2), ())
    chex.assert_trees_all_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_masked_classes(rng):
    """By a bias of -inf, a whole block of them, the first; and then all of them."""
    hidden, kernel, bias = layer(rng, (), 4, 3, 8)
    rest = None, np.array([6, 7]), None
    for masked in (slice(0, 4), slice(None)):
        bias[masked] = -np.inf
        options = (("blank_id", 5),)
        blocks = (*options, ("block_size", 4))
        ours = loss_and_gradients(ctc_loss_from_hidden, (hidden, kernel, bias), rest, 1.0, blocks)
        theirs = loss_and_gradients(from_logits, (hidden, kernel, bias), rest, 1.0, options)
        chex.assert_trees_all_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert ours[0] == np.inf


def test_infeasible_pairs_cost_what_they_are_said_to():
    arguments = jnp.zeros((2, 3)), jnp.eye(3), None, None, jnp.array([1, 1]), None
    assert ctc_loss_from_hidden(*arguments) == np.inf
    assert ctc_loss_from_hidden(*arguments, zero_infinity=True) == 0
    assert ctc_loss_from_hidden(*arguments, log_epsilon=-1e5) == np.float32(1e5)
    for weight in (0, 1):
        gradient = jax.grad(lambda x: ctc_loss_from_hidden(x, *arguments[1:]))(
            jnp.full((2, 3), weight, jnp.float32)
        )
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.usefixtures("x64")
def test_float64_against_differences(rng):
    hidden, kernel, bias = (part.astype(np.float64) for part in layer(rng, (2,), 5, 3, 7))
    rest = None, np.array([[1, 1], [2, 6]]), None

    @jax.jit
    def total(layer):
        hidden, kernel, bias = layer
        return jnp.sum(ctc_loss_from_hidden(hidden, kernel, bias, *rest, block_size=3))

    point = hidden, kernel, bias
    check_grads(total, (point,), order=1, modes=["rev"], rtol=1e-7, atol=1e-7, eps=1e-6)


def test_no_logits_in_memory():
    """8 × 500 frames, 32768 classes: a tenth of what the loss of the logits sets aside."""
    layer = [(8, 500, 512), (512, 32768), (32768,)]
    layer = tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in layer)
    rest = [((8, 500), "f4"), ((8, 100), "i4"), ((8, 100), "f4")]
    rest = [jax.ShapeDtypeStruct(*shape) for shape in rest]

    def temporaries(loss):
        def total(layer, *rest):
            return jnp.sum(loss(*layer, *rest))

        both = jax.jit(jax.value_and_grad(total))
        memory = both.lower(layer, *rest).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    assert temporaries(ctc_loss_from_hidden) < temporaries(from_logits) / 10


@pytest.mark.usefixtures("x64")
def test_no_64_bit_values_in_what_is_left_of_the_blocks(rng):
    labels = np.array([1, 3], np.int32)

    def loss(hidden, kernel, bias):
        return ctc_loss_from_hidden(hidden, kernel, bias, None, labels, None, block_size=2)

    both = jax.value_and_grad(loss, argnums=(0, 1, 2))
    found = dtypes(jax.make_jaxpr(both)(*layer(rng, (), 4, 3, 5)).jaxpr)
    assert not {dtype for dtype in found if dtype.endswith("64")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": np.zeros(3)}, r"kernel must have shape \[D, K\]; got \(3,\)"),
        ({"kernel": np.zeros((4, 5))}, r"hidden must have shape \[\*B, T, D\] with D = 4"),
        ({"bias": np.zeros(4)}, r"bias must have shape \[K\] with K = 5; got \(4,\)"),
        ({"block_size": 0}, "block_size must"),
        ({"blank_id": 5}, "blank_id must"),
        ({"hidden": np.zeros(3)}, "hidden must"),
        ({"labels": np.zeros((2, 2), int)}, "labels must .* as in hidden"),
        ({"log_epsilon": "-1e5"}, "log_epsilon must be one real number; got '-1e5'"),
        ({"log_epsilon": [-1e5, -1e5]}, "log_epsilon must be one real number; got a list of 2"),
    ],
)
def test_arguments(change, message):
    arguments = {
        "hidden": np.zeros((6, 3)),
        "kernel": np.zeros((3, 5)),
        "bias": None,
        "logit_paddings": None,
        "labels": np.zeros(2, int),
        "label_paddings": None,
    }
    with pytest.raises(ValueError, match=f"^ctc_loss_from_hidden: {message}"):
        ctc_loss_from_hidden(**(arguments | change))
