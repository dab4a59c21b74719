"""What one call to the aligner or sampler cannot show: that all ways to remember are one."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxctc import forced_align, sample_alignments
from jaxctc._core import frames, paths


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(2, 97, 5)).astype(np.float32) * 2
    labels = rng.integers(1, 6, (2, 12))  # 5 is the wildcard
    return logits, rng.random((2, 97)) < 0.1, labels, rng.random((2, 12)) < 0.1


@pytest.mark.parametrize(
    "call",
    [
        lambda *arguments: forced_align(*arguments, wildcard_id=5, wildcard_penalty=1.0),
        lambda *arguments: sample_alignments(
            jax.random.key(3), *arguments, num_samples=4, wildcard_id=5
        ),
    ],
    ids=["forced_align", "sample_alignments"],
)
def test_keeping_all_and_keeping_little_are_one(inputs, call, monkeypatch):
    kept = jax.jit(lambda *arguments: call(*arguments))(*inputs)
    monkeypatch.setattr(frames, "MAX_RESIDENT_BYTES", 0)
    again = jax.jit(lambda *arguments: call(*arguments))(*inputs)
    chex.assert_trees_all_close(kept, again, rtol=2e-6)


def test_pointers_are_three_bits_a_label(rng):
    bits = jnp.asarray(rng.random((2, 20)) < 0.5), *jnp.asarray(rng.random((2, 2, 19)) < 0.5)
    packed = paths._pack(*bits)
    assert packed.shape == (2, 3, 3)
    assert packed.dtype == jnp.uint8
    states = jnp.broadcast_to(jnp.arange(39), (2, 39))
    steps = np.asarray(paths._steps(packed, states))
    np.testing.assert_array_equal(steps[:, ::2], bits[0])
    np.testing.assert_array_equal(steps[:, 1::2], np.add(bits[1], bits[2], dtype=int))
