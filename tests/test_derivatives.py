"""Derivatives of every order and in every mode, and what they keep in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxprs import equations

from jaxctc import ctc_loss, ctc_loss_with_forward_probs

LABELS = jnp.array([1, 1])
LOGITS = np.random.default_rng(4).normal(size=(5, 3)).astype(np.float32)
DIRECTION = np.random.default_rng(5).normal(size=(5, 3)).astype(np.float32)


def loss(logits):
    return ctc_loss(logits, None, LABELS, None)


def gradient_differences(logits, step=1e-6):
    """The Hessian, from differences of the gradient in float64."""
    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(loss))
        wide = np.asarray(logits, np.float64)
        out = np.zeros(2 * wide.shape)
        for place in np.ndindex(wide.shape):
            nudge = np.zeros_like(wide)
            nudge[place] = step
            out[place] = (gradient(wide + nudge) - gradient(wide - nudge)) / (2 * step)
    return out


@pytest.fixture(scope="module")
def hessian():
    return gradient_differences(LOGITS)


MODES = {
    # jax.hessian is the jacfwd of a gradient.
    "vmap of hessian": lambda x: jax.vmap(jax.hessian(loss))(x[None])[0],
    "jacrev of grad": jax.jacrev(jax.grad(loss)),
    "jacfwd of jacfwd": jax.jacfwd(jax.jacfwd(loss)),
    "jacrev of jacfwd": jax.jacrev(jax.jacfwd(loss)),
}


@jax.jit
def hessian_times(logits, direction):
    return jax.jvp(jax.grad(loss), (logits,), (direction,))[1]


@pytest.mark.parametrize(
    "mode",
    [pytest.param(mode, marks=pytest.mark.slow if "of jacfwd" in mode else []) for mode in MODES],
)
def test_second_derivatives(mode, hessian):
    """In all mixtures of modes: every row is a product of its own."""
    np.testing.assert_allclose(jax.jit(MODES[mode])(LOGITS), hessian, atol=1e-5)


@pytest.mark.smoke
def test_hessian_vector_product(hessian):
    truth = np.tensordot(hessian, DIRECTION, 2)
    np.testing.assert_allclose(hessian_times(LOGITS, DIRECTION), truth, atol=1e-5)


def test_third_derivative():
    """Along one direction, against differences of the second."""
    step = 1e-2 * DIRECTION
    third = jax.jit(jax.jacfwd(hessian_times))(LOGITS, DIRECTION)
    differences = hessian_times(LOGITS + step, DIRECTION) - hessian_times(LOGITS - step, DIRECTION)
    np.testing.assert_allclose(np.tensordot(third, step, 2), differences / 2, atol=2e-5)


@pytest.mark.parametrize("frames", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_second_derivatives_of_long_inputs(frames):
    """Rows of the Hessian to 1e-4, against float64 differences of the gradient."""
    rng = np.random.default_rng(6)
    logits = rng.normal(size=(frames, 16)).astype(np.float32)
    labels = rng.integers(1, 16, frames // 8).astype(np.int32)

    def gradient(logits):
        return jax.grad(lambda logits: ctc_loss(logits, None, labels, None))(logits)

    row = jax.jit(lambda logits, place: jax.jvp(gradient, (logits,), (place,))[1])
    for frame, k in zip(rng.integers(0, frames, 3), rng.integers(0, 16, 3), strict=True):
        place = np.zeros_like(logits)
        place[frame, k] = 1
        with jax.enable_x64(True):
            wide, step = np.float64(logits), np.float64(place) * 1e-5
            truth = (jax.jit(gradient)(wide + step) - jax.jit(gradient)(wide - step)) / 2e-5
        np.testing.assert_allclose(row(logits, place), truth, atol=1e-4)


SURROUNDINGS = {
    "vmap of grad": lambda x: jax.vmap(jax.grad(loss))(jnp.stack([x, x]))[1],
    "grad of vmap": lambda x: jax.grad(lambda x: jax.vmap(loss)(jnp.stack([x, 2 * x]))[0])(x),
    "value_and_grad": lambda x: jax.value_and_grad(loss)(x)[1],
    "linearize": lambda x: jax.vmap(jax.linearize(loss, x)[1])(
        jnp.eye(x.size, dtype=x.dtype).reshape(-1, *x.shape)
    ).reshape(x.shape),
    "checkpoint": lambda x: jax.grad(jax.checkpoint(loss))(x),
    "scan": lambda x: jax.lax.scan(lambda c, x: (c, jax.grad(loss)(x)), 0, x[None])[1][0],
    "grad of scan": lambda x: jax.grad(
        lambda x: jax.lax.scan(lambda c, x: (c + loss(x), None), jnp.zeros(()), x[None])[0]
    )(x),
    "jacfwd": lambda x: jax.jacfwd(loss)(x),
}  # fmt: skip


@pytest.fixture(scope="module")
def gradient():
    return jax.jit(jax.grad(loss))(LOGITS)


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_gradient_in_every_surrounding(name, gradient):
    np.testing.assert_allclose(jax.jit(SURROUNDINGS[name])(LOGITS), gradient, atol=1e-6)


def test_reverse_mode_keeps_only_the_gradient():
    _, pullback = jax.vjp(jax.jit(loss), jnp.asarray(LOGITS))
    kept = [leaf for leaf in jax.tree.leaves(pullback) if leaf.dtype == jnp.float32 and leaf.ndim]
    assert [leaf.shape for leaf in kept] == [LOGITS.shape]
    _, pullback = jax.vjp(jax.jit(loss), jnp.asarray(LOGITS, jnp.bfloat16))
    (kept,) = [leaf for leaf in jax.tree.leaves(pullback) if leaf.ndim == 2 and leaf.shape[1] > 1]
    assert kept.dtype == jnp.bfloat16


def test_half_an_hour_of_audio_fits():
    """A table of floats over frames and labels would be 800 MB, and there would be several."""
    shapes = [((1, 100_000, 32), "f4"), ((1, 100_000), "f4"), ((1, 2000), "i4"), ((1, 2000), "f4")]
    arguments = (jax.ShapeDtypeStruct(*shape) for shape in shapes)

    def both(logits, *rest):
        return jax.value_and_grad(lambda logits: ctc_loss(logits, *rest).sum())(logits)

    memory = jax.jit(both).lower(*arguments).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 300e6


def test_products_are_in_full_precision():
    """At default precision they would round to bfloat16 on TPU and TF32 on GPU."""
    labels = jnp.ones(6, jnp.int32)
    for classes in (4, 20):  # fewer and more than labels: two ways to spread them over classes
        logits = jnp.zeros((9, classes))
        jaxpr = jax.make_jaxpr(jax.grad(lambda x: ctc_loss(x, None, labels, None)))(logits).jaxpr
        products = [e for e in equations(jaxpr) if e.primitive.name == "dot_general"]
        assert products
        highest = jax.lax.Precision.HIGHEST
        assert {e.params["precision"] for e in products} == {(highest, highest)}


@given(seed=st.integers(0, 2**32 - 1))
def test_derivative_of_the_forward_probabilities(seed):
    """The rows of WIDE carry the derivative of LOG: against float64 differences."""
    rng = np.random.default_rng(seed)
    logits, direction = rng.normal(size=(2, 6, 4)).astype(np.float32)
    labels = np.array([1, 1, 3])
    np.testing.assert_allclose(
        _rows_along(logits, direction, labels), _row_differences(logits, direction, labels),
        atol=1e-4,
    )  # fmt: skip


def _rows(logits, labels):
    """All rows, log 0 as 0 so that they can be subtracted."""
    _, blank, label = ctc_loss_with_forward_probs(logits, None, labels, None, log_epsilon=0.0)
    return jnp.concatenate([blank, label], axis=-1)


@jax.jit
def _rows_along(logits, direction, labels):
    return jax.jvp(lambda x: _rows(x, labels), (logits,), (direction,))[1]


def _row_differences(logits, direction, labels):
    with jax.enable_x64(True):
        wide, step = np.float64(logits), np.float64(direction) * 1e-6
        return (jax.jit(_rows)(wide + step, labels) - jax.jit(_rows)(wide - step, labels)) / 2e-6
