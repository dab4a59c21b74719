"""The recursion as it is written down: its passes agree, whatever they compute in.

What it computes is tested against enumeration: `test_kernels.py`, `test_posteriors.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxprs import scans
from oracles import assert_close

from jaxctc import ctc_loss_with_forward_probs
from jaxctc._core import frames as walks
from jaxctc._core.emissions import build_lattice, prepare_inputs
from jaxctc._core.recursion import Alpha, entropy, label_occupancies, rows, total
from jaxctc._core.semirings import LOG, MAX, WIDE


def problem_of(*arguments):
    config, inputs = prepare_inputs("test", *arguments, blank_id=0, logits_normalized=False)
    return build_lattice(inputs, config).problem


@jax.jit
def forward_middle_backward(*arguments):
    """Log totals of alpha alone, of both where they meet, and of beta alone."""
    problem = problem_of(*arguments)
    options = {"semiring": WIDE, "label_loop": True}

    count = problem.label_count[..., None]
    alpha, beta = (
        Alpha(*map(WIDE.decode, rows(problem, backward=way, **options))) for way in (False, True)
    )
    last, first = (
        jax.tree.map(lambda part: part[-1], alpha),
        jax.tree.map(lambda part: part[0], beta),
    )

    def at(part, index):
        return jnp.take_along_axis(part, index, axis=-1)[..., 0]

    # A graph without labels has one end, the blank.
    def both(row, blank, label):
        found = at(row.label, jnp.maximum(label, 0))
        none = count[..., 0] == 0
        return jnp.logaddexp(at(row.blank, blank), jnp.where(none, -jnp.inf, found))

    zero = jnp.zeros_like(count)
    middle = WIDE.decode(total(problem, **options))
    return both(last, count, count - 1), middle, both(first, zero, zero)


def random_batch(seed, scale, frames=25):
    """Frames and labels of different numbers, padded anywhere."""
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(2, frames, 5)) * scale).astype(np.float32)
    labels = rng.integers(1, 5, (2, 6))
    return logits, rng.random((2, frames)) < 0.3, labels, rng.random((2, 6)) < 0.3


cases = {"seed": st.integers(0, 2**32 - 1), "scale": st.sampled_from([0.1, 1, 10, 100])}


@given(**cases)
def test_both_passes_and_the_middle_agree(seed, scale):
    logits, no_frame, labels, no_label = random_batch(seed, scale)
    forward, middle, backward = forward_middle_backward(logits, no_frame, labels, no_label)
    np.testing.assert_allclose(forward, middle, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(backward, middle, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("semiring", [LOG, MAX, WIDE], ids=["LOG", "MAX", "WIDE"])
@pytest.mark.parametrize("frames", [1, 2, 8, 17, 33, 70, 82])
def test_the_total_of_all_semirings_is_the_same_from_either_pass(
    semiring, frames, rng, monkeypatch
):
    """Frames of which chunks overlap, and of which they do not."""
    monkeypatch.setattr(walks, "CHUNK_NUMBERS", 0)
    logits = jnp.asarray(rng.normal(size=(2, frames, 5)), jnp.float32)

    @jax.jit
    def both(logits):
        problem = problem_of(logits, None, np.array([[1, 1, 2], [4, 3, 2]]), None)
        weight, *_ = label_occupancies(problem, semiring, label_loop=True)
        in_the_middle = total(problem, semiring, label_loop=True)
        return semiring.decode(weight), semiring.decode(in_the_middle)

    np.testing.assert_allclose(*both(logits), rtol=1e-6)


@pytest.mark.parametrize("frames", [1, 16, pytest.param(41, marks=pytest.mark.smoke), 97])
@pytest.mark.parametrize("interval", [1, 7, 16, 50])
def test_checkpoints_change_nothing(frames, interval, rng, monkeypatch):
    logits = jnp.asarray(rng.normal(size=(2, frames, 5)), jnp.float32)
    labels = np.array([[1, 1, 2], [4, 3, 2]])

    def found():
        problem = problem_of(logits, None, labels, None)
        weight, label, _ = label_occupancies(problem, WIDE, label_loop=True)
        return WIDE.decode(weight), label

    plain = jax.jit(lambda: found())()
    monkeypatch.setattr(walks, "CHUNK_NUMBERS", 0)
    monkeypatch.setattr("jaxctc._core.recursion.checkpoint_interval", lambda *_: interval)
    for ours, true in zip(jax.jit(lambda: found())(), plain, strict=True):
        np.testing.assert_allclose(ours, true, rtol=1e-6, atol=1e-7)


def test_memory_grows_with_the_root_of_what_does_not_fit():
    assert walks.checkpoint_interval(400, 1 << 10) == 400
    assert walks.checkpoint_interval(10_000, 1 << 20) == 200


def test_emissions_are_made_chunk_by_chunk(monkeypatch):
    monkeypatch.setattr(walks, "CHUNK_NUMBERS", 0)
    arguments = jnp.zeros((2, 70, 4)), None, jnp.ones((2, 3), jnp.int32), None
    traced = jax.make_jaxpr(lambda *a: entropy(problem_of(*a), WIDE, label_loop=True))(*arguments)
    assert [scan.params["length"] for scan in scans(traced.jaxpr)] == [5, 14]
    traced = jax.make_jaxpr(lambda *a: entropy(problem_of(*a), LOG, label_loop=True))(*arguments)
    assert [scan.params["length"] for scan in scans(traced.jaxpr)] == [70]


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
    assert_close(in_label[:, 0], np.log(t), rtol=1e-5)
    with np.errstate(divide="ignore"):
        assert_close(in_blank[:, 1], np.log(t * (t - 1) / 2), rtol=1e-5)
    np.testing.assert_array_equal(in_blank[:, 0], 0)
    assert_close(loss, -np.log(frames * (frames + 1) / 2), rtol=1e-5)
