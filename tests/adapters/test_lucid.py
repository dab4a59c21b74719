"""Against what lucid documents; the library itself is not to be had here."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jaxctc.adapters import torch
from jaxctc.adapters.lucid import ctc_loss

TARGETS = np.array([[1, 2], [2, 2], [1, 0], [2, 1], [1, 1]])
INPUT_LENGTHS, TARGET_LENGTHS = np.array([4, 4, 3, 3, 2]), np.array([2, 2, 1, 0, 2])
INFEASIBLE = np.arange(5) == 4
STATIC = ("blank", "reduction", "zero_infinity")
jitted = jax.jit(ctc_loss, static_argnames=STATIC)


@pytest.fixture
def log_probs(rng):
    return oracles.log_softmax(rng.normal(size=(4, 5, 3)) * 2).astype(np.float32)


def true_losses(log_probs, blank=0):
    examples = zip(
        np.moveaxis(log_probs, 1, 0), TARGETS, INPUT_LENGTHS, TARGET_LENGTHS, strict=True
    )
    return np.array([
        oracles.enumerate_paths(scores[:frames].astype(np.float64), labels[:count], blank).loss
        for scores, labels, frames, count in examples
    ])  # fmt: skip


def test_each_example(log_probs):
    losses = jitted(log_probs, TARGETS, INPUT_LENGTHS, TARGET_LENGTHS, reduction="none")
    oracles.assert_close(losses, true_losses(log_probs))
    np.testing.assert_array_equal(np.isinf(losses), INFEASIBLE)


def test_mean_and_sum_of_the_losses_as_they_are(log_probs):
    arguments = log_probs, TARGETS, INPUT_LENGTHS, TARGET_LENGTHS
    losses = np.where(INFEASIBLE, 0, true_losses(log_probs))
    oracles.assert_close(jitted(*arguments, zero_infinity=True), losses.mean())
    oracles.assert_close(jitted(*arguments, reduction="sum", zero_infinity=True), losses.sum())
    per_label = jax.jit(torch.ctc_loss, static_argnames=STATIC)(*arguments, zero_infinity=True)
    oracles.assert_close(per_label, (losses / np.maximum(TARGET_LENGTHS, 1)).mean())


def test_lists(log_probs):
    """Of all losses, the mean is infinite."""
    lists = [part.tolist() for part in (log_probs, TARGETS, INPUT_LENGTHS, TARGET_LENGTHS)]
    found = jax.jit(lambda: ctc_loss(*lists))()
    assert found == jitted(log_probs, TARGETS, INPUT_LENGTHS, TARGET_LENGTHS) == np.inf


def test_gradient(log_probs):
    """Minus the occupancies, which lucid does not have; 0 where nothing fits."""
    arguments = TARGETS, INPUT_LENGTHS, TARGET_LENGTHS
    gradient = jax.jit(jax.grad(lambda scores: ctc_loss(scores, *arguments, zero_infinity=True)))(
        log_probs
    )
    expected = np.zeros(log_probs.shape)
    for row, (labels, frames, count) in enumerate(zip(*arguments, strict=True)):
        scores = log_probs[:frames, row].astype(np.float64)
        expected[:frames, row] = -oracles.enumerate_paths(scores, labels[:count]).occupancies / 5
    oracles.assert_close(gradient, expected)


def test_concatenated_targets_and_the_blank_last(log_probs):
    row = np.concatenate([row[:n] for row, n in zip(TARGETS, TARGET_LENGTHS, strict=True)])
    lengths = {"input_lengths": INPUT_LENGTHS.tolist(), "target_lengths": TARGET_LENGTHS.tolist()}
    last_first = np.roll(log_probs, 1, axis=-1)

    @jax.jit
    def losses(log_probs, targets):
        return ctc_loss(log_probs, targets, **lengths, blank=2, reduction="none")

    oracles.assert_close(losses(log_probs, row - 1), true_losses(last_first))


ERRORS = {
    "no batch": ({"log_probs": jnp.zeros((4, 3))}, r"log_probs must have shape \(T, N, C\); got"),
    "targets": ({"targets": TARGETS[None]}, "targets must have shape"),
    "lengths": ({"input_lengths": 4}, "input_lengths must be integers of shape"),
    "blank": ({"blank": 3}, "blank must be a class id"),
    "reduction": ({"reduction": "max"}, "reduction must be"),
}


@pytest.mark.parametrize(("bad", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(bad, message):
    arguments = {
        "log_probs": jnp.zeros((4, 5, 3)),
        "targets": TARGETS,
        "input_lengths": INPUT_LENGTHS,
        "target_lengths": TARGET_LENGTHS,
    }
    with pytest.raises(ValueError, match=f"^adapters.lucid.ctc_loss: {message}"):
        jax.eval_shape(lambda: ctc_loss(**arguments | bad))
