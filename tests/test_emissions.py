import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import assert_close

import jaxctc
from jaxctc._core import normalizer as normalizers
from jaxctc._core.classes import classes_innermost
from jaxctc._core.normalizer import normalizer

ctc_loss = jax.jit(jaxctc.ctc_loss, static_argnames="wildcard_id")
forced_align = jax.jit(jaxctc.forced_align)


def test_normalizer_of_a_large_offset_is_exact(rng):
    logits = np.round(rng.normal(size=(5, 7)) * 64).astype(np.float32) / 64
    largest, log_sum = normalizer(jnp.asarray(logits), 0)
    far, far_log_sum = normalizer(jnp.asarray(logits + np.float32(1e4)), 0)
    np.testing.assert_array_equal(far, largest + 1e4)
    np.testing.assert_array_equal(far_log_sum, log_sum)


def test_normalizer_of_nothing_possible():
    largest, log_sum = normalizer(jnp.full((2, 3), -jnp.inf), 0)
    np.testing.assert_array_equal((largest, log_sum), 0)


@pytest.mark.parametrize("scale", [1, 30])
@pytest.mark.parametrize("classes", [2, 1000])
def test_the_normalizer_is_the_same_in_one_read_and_in_two(classes, scale, rng):
    """On a CPU the one, elsewhere the other; what a sure blank leaves keeps its last bits."""
    logits = scale * rng.normal(size=(3, 50, classes)).astype(np.float32)
    logits[rng.random(logits.shape) < 0.2] = -np.inf
    logits[0, 0], logits[0, 1, 1], logits[0, 2, -1], logits[1, 0, 0] = -np.inf, np.nan, np.inf, 40
    reads = (normalizers._in_two_reads, normalizers._in_one_read)
    two, one = (jax.jit(read)(logits, jnp.int32(0)) for read in reads)
    np.testing.assert_array_equal(np.isnan(one[1]).nonzero(), ([0, 0], [1, 2]))
    np.testing.assert_allclose(one[1], two[1], rtol=3e-6)
    np.testing.assert_array_equal(one[0][1:], two[0][1:])


def test_priors_of_all_and_of_each(rng):
    """[K] is for every example what [*B, K] is for each; a scale of 0 is none at all."""
    logits = rng.normal(size=(2, 3, 6, 4)).astype(np.float32)
    labels = rng.integers(1, 4, (2, 3, 2))
    priors = np.log(rng.dirichlet(np.ones(4))).astype(np.float32)
    each = np.broadcast_to(priors, (2, 3, 4)) + np.float32(0)
    plain = ctc_loss(logits, None, labels, None)
    for given in (priors, each):
        off = ctc_loss(logits, None, labels, None, label_priors=given, prior_scale=0.0)
        assert_close(off, np.asarray(plain))
    same = [
        ctc_loss(logits, None, labels, None, label_priors=given, prior_scale=1.0)
        for given in (priors, each)
    ]
    np.testing.assert_array_equal(same[0], same[1])
    uniform = np.full(4, -np.log(4), np.float32)
    even = ctc_loss(logits, None, labels, None, label_priors=uniform, prior_scale=1.0)
    assert_close(even, np.asarray(plain) - 6 * np.log(4), rtol=1e-5)


def test_priors_take_labels_off_their_peaks():
    """A label one frame long under a blank-happy model, longer where the blank's prior counts."""
    logits = np.log([[0.6, 0.4], [0.1, 0.9], [0.6, 0.4]]).astype(np.float32)
    priors = np.log([0.8, 0.2]).astype(np.float32)
    alone = forced_align(logits, None, np.array([1]), None)
    spread = forced_align(logits, None, np.array([1]), None, label_priors=priors)
    assert alone.frame_labels.tolist() == [0, 1, 0]
    assert spread.frame_labels.tolist() == [1, 1, 1]


def test_a_class_without_prior_is_as_one_with_an_infinite_score():
    priors = jnp.array([0.0, -jnp.inf, 0.0])
    arguments = jnp.zeros((3, 3)), None
    assert np.isnan(ctc_loss(*arguments, jnp.array([1]), None, label_priors=priors))
    assert np.isfinite(ctc_loss(*arguments, jnp.array([2]), None, label_priors=priors))


def test_a_class_without_prior_at_every_scale(rng):
    """At 0 it is as all others; else losses that it has no part in do not see it, nor do slopes."""
    logits = rng.normal(size=(6, 4)).astype(np.float32)
    finite = np.log(rng.dirichlet(np.ones(4))).astype(np.float32)

    @jax.jit
    def loss_and_slope(priors, scale):
        def loss(scale):
            return jaxctc.ctc_loss(
                logits, None, jnp.array([1, 3]), None, label_priors=priors, prior_scale=scale
            )

        return jax.value_and_grad(loss)(scale)

    infinite = np.where(np.arange(4) == 2, -np.inf, finite).astype(np.float32)
    with jax.debug_nans(True):
        for scale in (0.0, 0.3, -1.0):
            found = loss_and_slope(infinite, np.float32(scale))
            assert_close(found, np.asarray(loss_and_slope(finite, np.float32(scale))))
        used = np.where(np.arange(4) == 1, -np.inf, finite).astype(np.float32)
        loss, slope = loss_and_slope(used, np.float32(0))
        assert_close(loss, np.asarray(ctc_loss(logits, None, jnp.array([1, 3]), None)))
        assert np.isfinite(slope)
    steps = [loss_and_slope(finite, np.float32(0.3 + step))[0] for step in (-1e-2, 1e-2)]
    slope = loss_and_slope(finite, np.float32(0.3))[1]
    np.testing.assert_allclose(slope, (steps[1] - steps[0]) / 2e-2, rtol=1e-3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_logits_with_options(dtype, rng):
    logits = jnp.asarray(rng.normal(size=(5, 4))).astype(dtype)
    options = {"label_priors": jnp.zeros(4), "wildcard_id": 4, "wildcard_penalty": 1}
    arguments = None, jnp.array([1, 4, 2]), None
    loss = ctc_loss(logits, *arguments, **options)
    wide = ctc_loss(logits.astype(jnp.float32), *arguments, **options)
    assert loss.dtype == jnp.float32
    assert_close(loss, np.asarray(wide))


@pytest.mark.parametrize("classes", [127, 128])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("frames", [0, 4])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_scores_are_the_same_with_classes_innermost(dtype, frames, shape, classes, pretend, rng):
    """On a TPU, and mapped over, too; infinities and NaN stay where they are."""
    scores = rng.normal(size=(*shape, frames, classes))
    scores[..., :1, :2] = -np.inf, np.nan
    scores = jnp.asarray(scores, dtype)
    pretend("tpu")
    mapped = jax.vmap(classes_innermost, in_axes=-1, out_axes=-1)(scores[..., None])
    for found in (classes_innermost(scores), mapped[..., 0]):
        assert found.dtype == dtype
        # NumPy does not tell that one NaN of bfloat16 is as another.
        np.testing.assert_array_equal(found.astype(jnp.float32), scores.astype(jnp.float32))
    gradient = jax.grad(lambda scores: jnp.sum(classes_innermost(scores) * 2))(scores)
    np.testing.assert_array_equal(gradient, jnp.full_like(scores, 2))
