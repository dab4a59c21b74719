"""The scan itself; what it computes is tested through the loss, against enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jaxprs import scans
from oracles import assert_close

from jaxctc import _checks, ctc_loss, ctc_loss_with_forward_probs
from jaxctc.lattice import build_lattice
from jaxctc.recursions import forward, forward_rows
from jaxctc.semirings import LOG, MAX


def test_loss_alone_is_one_scan_without_stored_rows():
    arguments = (jnp.zeros((2, 9, 4)), None, jnp.ones((2, 3), jnp.int32), None)
    (scan,) = scans(jax.make_jaxpr(ctc_loss)(*arguments).jaxpr)
    assert scan.params["length"] == 9
    assert len(scan.outvars) == scan.params["num_carry"]


def test_rows_cost_one_scan_too():
    arguments = (jnp.zeros((2, 9, 4)), None, jnp.ones((2, 3), jnp.int32), None)
    assert len(scans(jax.make_jaxpr(ctc_loss_with_forward_probs)(*arguments).jaxpr)) == 1


@pytest.mark.parametrize("semiring", [LOG, MAX], ids=["LOG", "MAX"])
def test_rows_end_in_the_total(semiring, rng):
    logits = jnp.asarray(rng.normal(size=(2, 8, 5)), jnp.float32)
    inputs = _checks.ctc_inputs("test", logits, None, np.array([[1, 1, 2], [4, 3, 2]]), None)
    lattice = build_lattice(inputs, blank_id=0, logits_normalized=False)
    total, rows = forward_rows(lattice, semiring)
    np.testing.assert_array_equal(total, forward(lattice, semiring))
    ends = semiring.plus(rows.blank[-1, :, -1], rows.label[-1, :, -1])
    np.testing.assert_array_equal(total, ends)


def test_forward_and_backward_enumerations_agree(rng):
    """The oracle against itself: Σ_s α_t(s) β_t(s) / y_t(s) is the total, at every frame."""
    log_probs, labels = oracles.log_softmax(rng.normal(size=(5, 3))), (1, 1)
    alpha, beta = oracles.forward_rows(log_probs, labels), oracles.backward_rows(log_probs, labels)
    emission = log_probs[:, [0]], log_probs[:, list(labels)]
    joint = np.concatenate([a + b - e for a, b, e in zip(alpha, beta, emission, strict=True)], 1)
    total = -oracles.enumerate_paths(log_probs, labels).loss
    np.testing.assert_allclose(np.logaddexp.reduce(joint, axis=1), total, rtol=1e-12)


def test_long_narrow_rows_are_stored_right():
    """Scan rows of a few bytes, many of them (jax issue 40101), and shifts that must not alias
    (openxla/xla issue 49176): with uniform scores every row is a count of paths."""
    frames = 2000
    loss, in_blank, in_label = jax.jit(
        lambda scores: ctc_loss_with_forward_probs(
            scores, None, jnp.array([1]), None, logits_normalized=True
        )
    )(jnp.zeros((frames, 2)))
    t = np.arange(1, frames + 1, dtype=np.float64)
    assert_close(in_label[:, 0], np.log(t), rtol=1e-4)
    with np.errstate(divide="ignore"):
        assert_close(in_blank[:, 1], np.log(t * (t - 1) / 2), rtol=1e-4)
    np.testing.assert_array_equal(in_blank[:, 0], 0)
    assert_close(loss, -np.log(frames * (frames + 1) / 2), rtol=1e-4)
