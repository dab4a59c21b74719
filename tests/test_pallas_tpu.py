"""The kernel for TPUs: layouts that the shared tests of all implementations do not meet.

On a TPU it runs, elsewhere it is emulated.

`pltpu.InterpretParams` emulates a TPU's memories, too: it tells reads out of bounds and races from
what is sound, and fills what nobody wrote with NaN. It is slow, and the plain emulation is not.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

import jaxctc
from jaxctc._core.emissions import build_lattice, prepare_inputs
from jaxctc._core.kernels import pallas_tpu, reference, tpu_layout

MEMORIES = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")


def problem_of(arguments, **options):
    options = {"blank_id": 0, "logits_normalized": False, **options}
    config, inputs = prepare_inputs("test", *arguments, **options)
    return build_lattice(inputs, config).problem


def ragged(seed, batch, frames, labels, classes=7, dtype=np.float32):
    """Padding anywhere, repeats, examples that are infeasible or empty; -inf, and padded NaN."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(batch, frames, classes)).astype(np.float32)
    padded = rng.random((batch, frames)) < rng.choice(
        [0.0, 0.2, 1.0], (batch, 1), p=[0.6, 0.3, 0.1]
    )
    ids = rng.integers(1, classes, (batch, labels))
    ids[::2, 1::2] = ids[::2, ::2][:, : ids[::2, 1::2].shape[1]]
    most = rng.integers(0, min(labels, frames // 2) + 1, (batch, 1))
    logits[::3][rng.random(logits[::3].shape) < 0.05] = -np.inf
    logits[padded] = np.nan
    logits = jnp.asarray(logits, dtype)
    return (
        logits,
        padded,
        ids,
        np.arange(labels) >= np.where(rng.random((batch, 1)) < 0.1, labels, most),
    )


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def solved(problem, label_loop, by_column, interpret, module):
    """By both kernels of a module, by the first one alone, and by the reference."""
    options = {"label_loop": label_loop, "by_column": by_column}
    return (
        module.log_total_and_occupancies(problem, **options, interpret=interpret)[:2],
        module.log_total(problem, label_loop=label_loop, interpret=interpret),
        reference.log_total_and_occupancies(problem, **options)[:2],
    )


def assert_like_the_reference(
    problem,
    *,
    label_loop=True,
    by_column=False,
    interpret: pallas_tpu.Interpret = None,
    module=pallas_tpu,
):
    if interpret is None:
        interpret = jax.default_backend() != module.__name__.rpartition("_")[2]
    ours, alone, (total, occupancies) = solved(problem, label_loop, by_column, interpret, module)
    np.testing.assert_array_equal(alone, ours[0])
    np.testing.assert_allclose(alone, total, rtol=5e-7, atol=1e-6)
    feasible = np.isfinite(total)[:, None, None]
    np.testing.assert_allclose(ours[1], np.where(feasible, occupancies, 0), atol=3e-6)
    return total


class TestLayout:
    def test_many_examples_take_a_row_each(self):
        layout = tpu_layout.Layout.of(64, 400, 60)
        assert (layout.fold, layout.lanes, layout.tile, layout.rows) == (1, 128, 8, 64)

    def test_few_examples_take_several(self):
        layout = tpu_layout.Layout.of(1, 300, 140)
        assert (layout.fold, layout.lanes, layout.tile) == (2, 128, 2)
        assert tpu_layout.Layout.of(1, 20, 900).fold == 8

    def test_no_more_rows_than_labels_fill(self):
        assert tpu_layout.Layout.of(1, 20, 3).fold == 1

    def test_labels_that_fit_no_row_take_several(self):
        assert tpu_layout.Layout.of(64, 20, 5000).fold == 1
        layout = tpu_layout.Layout.of(64, 20, 20000)
        assert (layout.fold, layout.lanes) == (4, 5120)

    @pytest.mark.parametrize("labels", [1, 124, 125, 126, 2000, 7164, 57319])
    @pytest.mark.parametrize("batch", [1, 3, 8, 40])
    def test_it_fits(self, batch, labels):
        layout = tpu_layout.Layout.of(batch, 1000, labels)
        rows = tpu_layout.ROWS_PER_FRAME * layout.block + tpu_layout.ROWS_KEPT
        assert 4 * 8 * layout.lanes * rows <= tpu_layout.MEMORY
        assert layout.fold * layout.width > labels
        assert 8 % layout.fold == 0
        assert layout.block % layout.normalize_every == 0
        assert layout.block * layout.blocks >= 1000 > layout.block * (layout.blocks - 1)


@pytest.mark.parametrize(
    ("batch", "frames", "labels"),
    [
        pytest.param(11, 23, 5, id="a partial tile"),
        pytest.param(1, 300, 140, id="two rows, partial blocks"),
        pytest.param(3, 30, 128, id="two rows of three examples", marks=pytest.mark.slow),
        pytest.param(3, 1, 0, id="nothing to say"),
        pytest.param(0, 4, 2, id="nobody"),
        pytest.param(2, 20, 124, id="a full row"),
        pytest.param(2, 20, 125, id="one label more", marks=pytest.mark.slow),
        pytest.param(1, 2100, 1000, id="eight rows", marks=pytest.mark.slow),
    ],
)
def test_like_the_reference(batch, frames, labels):
    total = assert_like_the_reference(problem_of(ragged(1, batch, frames, labels)))
    assert np.isfinite(total).any() or batch == 0


def test_labels_on_both_sides_of_every_seam():
    """Of eight rows, with all labels in use, so that paths cross from row to row."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1, 2100, 5)).astype(np.float32)
    problem = problem_of((logits, None, rng.integers(1, 5, (1, 999)), None))
    assert tpu_layout.Layout.of(1, 2100, 999).fold == 8
    assert np.isfinite(assert_like_the_reference(problem, by_column=True)).all()


@pytest.mark.parametrize("by_column", [False, True])
def test_label_loops_may_be_missing(by_column):
    problem = problem_of(ragged(2, 9, 12, 4), label_loop=False)
    total = assert_like_the_reference(problem, label_loop=False, by_column=by_column)
    assert np.isfinite(total).any()


def test_bfloat16():
    assert_like_the_reference(problem_of(ragged(3, 9, 12, 4, dtype=jnp.bfloat16)))


def test_scores_of_any_size():
    """A frame may score what float32 barely holds, in any of its parts."""
    logits, *rest = ragged(4, 9, 12, 4)
    sign = np.where(np.arange(12) % 2, 1, -1)[None, :, None]
    assert_like_the_reference(problem_of(((1e30 * sign).astype(np.float32) * logits, *rest)))
    assert_like_the_reference(problem_of((logits - 1e30, *rest), logits_normalized=True))


@pytest.mark.parametrize("odd", [np.nan, np.inf, np.finfo(np.float32).max])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_classes_that_no_label_reads_count_for_nothing(odd, dtype):
    """Where logits are log-probabilities; in a product with zeros they would make NaN."""
    logits, *rest = ragged(6, 9, 12, 4, dtype=dtype)
    with_odd = jnp.pad(logits, ((0, 0), (0, 0), (0, 1)), constant_values=odd)
    problem = problem_of((with_odd, *rest), logits_normalized=True)
    total = assert_like_the_reference(problem, by_column=True)
    assert np.isfinite(total).any()


def test_integers_of_64_bits(x64):
    assert_like_the_reference(problem_of(ragged(5, 9, 12, 4)))


@settings(max_examples=12)
@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(1, 12))
def test_random_batches(seed, frames, labels):
    """At most 12 frames, filled up to one shape, so that one program serves them all."""
    logits, padded, ids, no_label = ragged(seed, 10, 20, 12)
    padded |= np.arange(20) >= frames
    no_label |= np.arange(12) >= labels
    assert_like_the_reference(problem_of((logits, padded, ids, no_label)))


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "frames", "labels"), [(11, 23, 5), (1, 140, 130), (3, 1, 0)])
def test_memories(batch, frames, labels, monkeypatch):
    """No races, no reads out of bounds, nothing read that was not written."""
    # As a TPU would run it, with several frames between two normalizations.
    monkeypatch.setattr(pallas_tpu, "EMULATED_NORMALIZE_EVERY", None)
    problem = problem_of(ragged(1, batch, frames, labels))
    assert_like_the_reference(problem, interpret=MEMORIES)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"wildcard_id": 6}, "The TPU kernel knows no wildcards."),
        ({}, "57319 labels fit the memory of a TPU core, not 57320."),
    ],
)
def test_refused(options, reason):
    labels = jax.ShapeDtypeStruct((2, 3 if options else 57320), jnp.int32)
    call = functools.partial(jaxctc.ctc_loss, implementation="pallas", **options)
    message = f'ctc_loss: implementation must be None or "xla" here; got pallas. {reason}'
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            lambda logits, labels: call(logits, None, labels, None), jnp.zeros((2, 4, 6)), labels
        )
