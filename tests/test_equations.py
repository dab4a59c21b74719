"""The traced loss stays small: time to compile follows it."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from benchmarks.equations import count_equations
from benchmarks.shapes import GROUPS, SHAPES
from jaxctc import ctc_loss


def loss_and_gradient(logits, *rest):
    return jax.value_and_grad(lambda logits: ctc_loss(logits, *rest).sum())(logits)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@pytest.mark.parametrize("shape", GROUPS["design"])
def test_loss_and_gradient_are_small_programs(shape, platform):
    batch, frames, labels, classes = SHAPES[shape].sizes
    arguments = (
        jax.ShapeDtypeStruct((batch, frames, classes), jnp.float32),
        jax.ShapeDtypeStruct((batch, frames), jnp.float32),
        jax.ShapeDtypeStruct((batch, labels), jnp.int32),
        jax.ShapeDtypeStruct((batch, labels), jnp.float32),
    )
    assert count_equations(ctc_loss, arguments, platform) <= 500
    # A CPU takes a chunk's passes in turn, which are two loops for one.
    most = 1000 if platform == "cpu" else 950
    assert count_equations(loss_and_gradient, arguments, platform) <= most


def test_inner_programs_count_once_and_branches_of_other_platforms_not_at_all():
    def program(x):
        x = lax.scan(lambda x, _: (x * x + x, None), x, length=7)[0]
        return lax.platform_dependent(x, tpu=lambda x: x + 1, default=lambda x: (x + 1) * x - x)

    scan, body, choice = 1, 2, 2  # which platform, and what is done there
    assert count_equations(program, (1.0,), "tpu") == scan + body + choice + 1
    assert count_equations(program, (1.0,), "cpu") == scan + body + choice + 3
