"""Trains a small network to read lines of handwritten digits with the CTC loss.

The network sees the columns of an image and emits, for each, scores over the blank and the ten
digits. Nothing tells it which column shows which digit: `jaxctc.ctc_loss` sums over all the ways
the digits of a line can lie on its columns. Run it with

    python examples/train_digits.py --output out
"""

import argparse
import functools
import sys
import time
from pathlib import Path
from typing import NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
from digit_lines import CLASSES, HEIGHT, Lines, load_scans, make_lines
from flax import nnx
from tqdm import tqdm

import jaxctc


class Reader(nnx.Module):
    """Columns of an image in, class scores per column out: a stack of residual convolutions."""

    def __init__(self, features: int, layers: int, *, rngs: nnx.Rngs) -> None:
        """Makes the layers; each looks two columns further to both sides."""
        self.embed = nnx.Conv(HEIGHT, features, kernel_size=5, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(features, rngs=rngs) for _ in range(layers)])
        self.convs = nnx.List(
            [nnx.Conv(features, features, kernel_size=5, rngs=rngs) for _ in range(layers)]
        )
        self.norm = nnx.LayerNorm(features, rngs=rngs)
        self.head = nnx.Linear(features, CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits [B, T, K] for images [B, T, HEIGHT]."""
        hidden = self.embed(images)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            hidden += conv(nnx.gelu(norm(hidden)))
        return self.head(nnx.gelu(self.norm(hidden)))


@nnx.jit
def train_step(model: Reader, optimizer: nnx.Optimizer, lines: Lines) -> jax.Array:
    """One update; returns the mean loss of the batch in nats per line."""

    def mean_loss(model: Reader) -> jax.Array:
        logits = model(lines.images)
        losses = jaxctc.ctc_loss(logits, lines.image_paddings, lines.labels, lines.label_paddings)
        return losses.mean()

    loss, gradient = nnx.value_and_grad(mean_loss)(model)
    optimizer.update(model, gradient)
    return loss


@nnx.jit
def count_errors(model: Reader, batches: Lines) -> jaxctc.ErrorCounts:
    """Decodes `[batches, B, …]` lines and adds up their errors, all of it on the device."""

    def add(counts: jaxctc.ErrorCounts, lines: Lines) -> tuple[jaxctc.ErrorCounts, None]:
        best = jaxctc.greedy_decode(model(lines.images), lines.image_paddings)
        errors = jaxctc.error_counts(
            best.labels,
            jaxctc.label_paddings_from(best.labels),
            lines.labels,
            lines.label_paddings,
        )
        return counts + errors.sum(), None

    none = jaxctc.ErrorCounts(*(jnp.zeros((), jnp.int32) for _ in range(4)))
    return jax.lax.scan(add, none, batches)[0]


class Curves(NamedTuple):
    """What happened during training."""

    losses: list[float]
    """One per step."""
    cer_steps: list[int]
    cers: list[float]
    """On the validation lines."""
