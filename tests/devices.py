"""Batches on several devices, and what the devices exchange."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

import jaxctc
from jaxctc import ctc_loss

EXCHANGE = re.compile(
    r" = (\S+|\([^=]*\)) "
    r"(all-gather|all-reduce|all-to-all|collective-broadcast|collective-permute|reduce-scatter)"
    r"(?:-start)?\("
)


def mesh(kind=AxisType.Auto, **axes):
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(kind,) * len(axes))


def exchanged(compiled):
    """Operation and shape of everything that devices exchange."""
    return [
        (operation, tuple(int(size) for size in shape.split(",") if size))
        for shapes, operation in EXCHANGE.findall(compiled.as_text())
        for shape in re.findall(r"\w+\[([\d,]*)\]", shapes)
    ]


def batch(rng, classes, labels=6, examples=8, frames=12):
    """The first four arguments, of examples that end at different places."""
    example = np.arange(examples)[:, None]
    ids = rng.integers(1, classes, (examples, labels)).astype(np.int32)
    ids[:, 1] = ids[:, 0]
    return (
        rng.normal(size=(examples, frames, classes)).astype(np.float32),
        np.arange(frames) >= frames - example % 4,
        ids,
        np.arange(labels) >= example % 5 + 1,
    )


@jax.jit
def step(logits, *rest):
    """What a training step and its evaluation ask for; the only sum over examples is the mean."""

    def mean(logits):
        losses = ctc_loss(logits, *rest)
        return jnp.mean(losses), losses

    (loss, losses), gradient = jax.value_and_grad(mean, has_aux=True)(logits)
    decoded = jaxctc.greedy_decode(logits, rest[0])
    errors = jaxctc.error_counts(decoded.labels, decoded.labels < 0, *rest[1:])
    return loss, gradient, losses, jaxctc.posteriors(logits, *rest), decoded, errors


def mean_and_gradient(losses):
    return jax.value_and_grad(lambda *arguments: jnp.mean(losses(*arguments)))


def assert_equal(ours, theirs):
    chex.assert_trees_all_close(ours, theirs, rtol=2e-6, atol=2e-6)
