"""All that the library says of labels that may each be any of several classes, compiled once."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxctc import ctc_loss, forced_align, posteriors

STATIC = ("blank_id", "logits_normalized", "label_loop", "checkpoint_every")


def everything(logits, no_frame, labels, no_label, weights, **options):
    """All that the library says of a batch."""
    arguments = logits, no_frame, labels, no_label

    def losses(logits, weights, **more):
        found = ctc_loss(logits, *arguments[1:], label_log_weights=weights, **options, **more)
        return jnp.sum(jnp.where(found < jnp.inf, found, jnp.zeros_like(found))), found

    best = functools.partial(losses, max_approx=True)
    (_, loss), gradients = jax.value_and_grad(losses, (0, 1), has_aux=True)(logits, weights)
    (_, best_loss), by_best = jax.value_and_grad(best, (0, 1), has_aux=True)(logits, weights)
    return Everything(
        loss,
        gradients,
        best_loss,
        by_best,
        posteriors(*arguments, label_log_weights=weights, **options),
        forced_align(*arguments, label_log_weights=weights, **options),
    )


class Everything(NamedTuple):
    loss: Any
    gradients: Any
    best_loss: Any
    by_best: Any
    posteriors: Any
    aligned: Any


compiled = jax.jit(everything, static_argnames=STATIC)
