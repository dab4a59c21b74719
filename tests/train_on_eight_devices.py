"""The training step of the examples on meshes of several shapes: the same training on all.

Run by test_sharding.py, on eight devices that are the CPU in truth.
"""

import chex
import jax
import numpy as np
import pytest
from scripts import EXAMPLES

import jaxctc

STEPS = 3
ALONE = {"data": 1, "model": 1}
MESHES = {
    "examples": ({"data": 8, "model": 1}, {}),
    "examples and classes, in parts": ({"data": 4, "model": 2}, {"microbatches": 2}),
    "classes on four devices, layers computed again": ({"data": 2, "model": 4}, {"remat": True}),
    "no logits": ({"data": 2, "model": 2}, {"head": "hidden"}),
    "kernels": ({"data": 4, "model": 2}, {"implementation": "pallas"}),
    "kernels, no logits": (
        {"data": 4, "model": 1},
        {"implementation": "pallas", "head": "hidden"},
    ),
}


@pytest.fixture(scope="module")
def examples():
    """The modules of the step and of its data."""
    with (
        pytest.MonkeyPatch.context() as patch,
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
    ):
        patch.syspath_prepend(EXAMPLES)
        yield (
            pytest.importorskip("sharded_step", reason="needs the extra `examples`"),
            pytest.importorskip("digit_lines", reason="needs the extra `examples`"),
        )


def trainer_on(examples, shape, **options):
    step, digits = examples
    plan = step.Plan(
        size="digits",
        features=digits.HEIGHT,
        classes=digits.CLASSES,
        head="sharded",
        implementation=None,
        microbatches=1,
        dtype="float32",
        remat=False,
        steps=STEPS,
        learning_rate=3e-3,
    )
    assert step.complaint(plan, shape, shape["data"] * shape["model"], 16) is None
    devices = jax.devices()[: shape["data"] * shape["model"]]
    return step.Trainer(plan._replace(**options), step.mesh_of(shape, devices))


def batch(examples, seed):
    """Sixteen lines, of which one is there to fill the batch up."""
    _, digits = examples
    lines = digits.make_lines(digits.load_scans("train"), 16, np.random.default_rng(seed))
    added = np.arange(16) == 5
    return jaxctc.PaddedBatch(*lines[:4], added)


def trained(examples, trainer):
    """Losses, what the optimizer knows, and the errors of the last batch."""
    learned, losses = trainer.fresh(0), []
    for step in range(STEPS):
        there = jax.device_put(batch(examples, step), trainer.batch_sharding)
        learned, loss = trainer.step(learned, there)
        losses.append(loss)
    counts = trainer.count_errors(
        learned, jax.device_put(batch(examples, 0), trainer.batch_sharding)
    )
    return jax.device_get((losses, learned, counts))


@pytest.fixture(scope="module")
def alone(examples):
    return trained(examples, trainer_on(examples, ALONE))


@pytest.mark.parametrize("name", MESHES)
def test_the_same_training_on_any_mesh(examples, alone, name, monkeypatch):
    monkeypatch.setenv("JAXCTC_PALLAS_INTERPRET", "tpu")
    shape, options = MESHES[name]
    losses, learned, counts = trained(examples, trainer_on(examples, shape, **options))
    chex.assert_trees_all_close(losses, alone[0], rtol=1e-4)
    # Adam divides by the root of a mean square: what is near 0 there can be anywhere.
    (model, _), (expected, _) = ([*part.values()] for part in (learned, alone[1]))
    chex.assert_trees_all_close(model, expected, rtol=1e-2, atol=1e-4)
    assert int(counts.reference_length) == int(alone[2].reference_length) > 0


def test_no_frame_sees_padding(examples):
    """A line has the same loss in a longer bucket."""
    trainer = trainer_on(examples, ALONE)
    whole = batch(examples, 0)
    longest = int((~whole.frame_paddings).sum(axis=1).max())
    assert longest < whole.frames.shape[1]
    tight = whole._replace(
        frames=whole.frames[:, :longest], frame_paddings=whole.frame_paddings[:, :longest]
    )
    losses = [trainer.step(trainer.fresh(0), part)[1] for part in (whole, tight)]
    chex.assert_trees_all_close(*losses, rtol=1e-5)
