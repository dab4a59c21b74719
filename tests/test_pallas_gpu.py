"""The kernel for GPUs: layouts that the shared tests of all implementations do not meet.

On a GPU it runs, elsewhere it is emulated. `plgpu.InterpretGPUParams`, which newer versions of JAX
have, emulates a GPU's memories and threads, too, and is slow.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import mosaic_gpu as plgpu
from test_pallas_tpu import assert_like_the_reference, problem_of, ragged

import jaxctc
from jaxctc._core.kernels import dispatch, pallas_gpu
from jaxctc._core.kernels.gpu_layout import Layout

Memories: Any = getattr(plgpu, "InterpretGPUParams", None)
check = functools.partial(assert_like_the_reference, module=pallas_gpu)


class TestLayout:
    @pytest.mark.parametrize(
        ("labels", "columns", "block"),
        [(0, 1, 8), (126, 1, 8), (127, 2, 4), (254, 2, 4), (300, 3, 2), (2046, 16, 2)],
    )
    def test_a_place_on_either_side_of_the_labels(self, labels, columns, block):
        layout = Layout.of(3, 100, labels)
        assert (layout.columns, layout.block) == (columns, block)

    @pytest.mark.parametrize("frames", [1, 15, 16, 17, 1000])
    def test_both_sides_have_as_many_blocks(self, frames):
        layout = Layout.of(2, frames, 5)
        assert layout.filled == 2 * layout.blocks * layout.block
        assert frames <= layout.filled < frames + 2 * layout.block


@pytest.mark.parametrize(
    ("batch", "frames", "labels"),
    [
        pytest.param(11, 23, 5, id="ragged"),
        pytest.param(3, 1, 0, id="nothing to say"),
        pytest.param(0, 4, 2, id="nobody"),
        pytest.param(2, 300, 140, id="two columns", marks=pytest.mark.slow),
        pytest.param(2, 20, 126, id="a full column", marks=pytest.mark.slow),
        pytest.param(2, 20, 127, id="one label more", marks=pytest.mark.slow),
        pytest.param(1, 900, 400, id="four columns", marks=pytest.mark.slow),
    ],
)
def test_like_the_reference(batch, frames, labels):
    total = check(problem_of(ragged(1, batch, frames, labels)))
    assert np.isfinite(total).any() or batch == 0


def test_labels_on_both_sides_of_every_seam():
    """With all labels in use, so that paths cross from column to column, thread to thread."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 300, 5)).astype(np.float32)
    problem = problem_of((logits, None, rng.integers(1, 5, (2, 140)), None))
    assert np.isfinite(check(problem, by_column=True)).all()


@pytest.mark.parametrize("by_column", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_label_loops_may_be_missing(by_column):
    problem = problem_of(ragged(2, 9, 12, 4), label_loop=False)
    assert np.isfinite(check(problem, label_loop=False, by_column=by_column)).any()


@pytest.mark.slow
def test_whole_blocks_of_padding():
    """At either end, and in the middle, where the sides meet."""
    logits, padded, *rest = ragged(2, 9, 64, 4)
    padded = np.zeros_like(padded)
    padded[:, :9] = padded[:, 50:] = padded[::2, 20:44] = True
    assert np.isfinite(check(problem_of((np.nan_to_num(logits), padded, *rest)))).any()


@pytest.mark.slow
def test_bfloat16():
    check(problem_of(ragged(3, 9, 12, 4, dtype=jnp.bfloat16)))


def test_scores_of_any_size():
    """A frame may score what float32 barely holds, in any of its parts."""
    logits, *rest = ragged(4, 9, 12, 4)
    sign = np.where(np.arange(12) % 2, 1, -1)[None, :, None]
    check(problem_of(((1e30 * sign).astype(np.float32) * logits, *rest)))
    check(problem_of((logits - 1e30, *rest), logits_normalized=True))


@pytest.mark.slow
@pytest.mark.parametrize("odd", [np.nan, np.inf, np.finfo(np.float32).max])
def test_classes_that_no_label_reads_count_for_nothing(odd):
    """Where logits are log-probabilities."""
    logits, *rest = ragged(6, 9, 12, 4)
    with_odd = jnp.pad(logits, ((0, 0), (0, 0), (0, 1)), constant_values=odd)
    problem = problem_of((with_odd, *rest), logits_normalized=True)
    assert np.isfinite(check(problem, by_column=True)).any()


@pytest.mark.slow
def test_integers_of_64_bits(x64):
    check(problem_of(ragged(5, 9, 12, 4)))


@settings(max_examples=12)
@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(1, 12))
def test_random_batches(seed, frames, labels):
    """Filled up to one shape, so that one program serves them all."""
    logits, padded, ids, no_label = ragged(seed, 10, 20, 12)
    padded |= np.arange(20) >= frames
    no_label |= np.arange(12) >= labels
    check(problem_of((logits, padded, ids, no_label)))


@pytest.mark.slow
@pytest.mark.skipif(Memories is None, reason="this JAX cannot emulate a GPU's memories")
@pytest.mark.parametrize(("batch", "frames", "labels"), [(2, 9, 3), (1, 10, 130)])
def test_memories(batch, frames, labels):
    """No races, no reads out of bounds, nothing read that was not written."""
    interpret = Memories(detect_races=True, uninitialized_memory="nan")
    check(problem_of(ragged(1, batch, frames, labels)), interpret=interpret)


@pytest.mark.slow
def test_same_bits_twice():
    problem = problem_of(ragged(1, 11, 23, 5))
    solve = jax.jit(
        functools.partial(
            pallas_gpu.log_total_and_occupancies,
            label_loop=True,
            by_column=False,
            interpret=jax.default_backend() != "gpu",
        )
    )
    jax.tree.map(np.testing.assert_array_equal, solve(problem), solve(problem))


class TestRefused:
    @pytest.fixture(autouse=True)
    def _emulated(self, monkeypatch):
        monkeypatch.setenv(dispatch.INTERPRET, "gpu")

    def test_wildcards(self):
        loss = functools.partial(jaxctc.ctc_loss, implementation="pallas", wildcard_id=6)
        message = r"got pallas\..* The GPU kernel knows no wildcards\."
        with pytest.raises(ValueError, match=message):
            loss(jnp.zeros((2, 4, 6)), None, jnp.ones((2, 3), jnp.int32), None)

    @pytest.mark.skipif(jax.default_backend() == "tpu", reason="a TPU takes more labels")
    def test_labels_that_another_platform_would_take(self):
        """So it is refused not when it is traced, but when it is lowered for a GPU."""
        loss = jax.jit(functools.partial(jaxctc.ctc_loss, implementation="pallas"))
        labels = jax.ShapeDtypeStruct((2, 4095), jnp.int32)
        traced = loss.trace(jnp.zeros((2, 4, 6)), None, labels, None)
        message = r"got pallas\. The GPU kernel takes 4094 labels, not 4095\."
        with pytest.raises(ValueError, match=message):
            traced.lower()
