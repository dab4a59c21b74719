"""Frame-wise losses: against definitions in float64, optax and torch; finite at every edge."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest

import jaxctc
from jaxctc import binary_cross_entropy, cross_entropy
from jaxctc.adapters import frame_objectives
from jaxctc.adapters.frame_objectives import (
    binary_accuracy,
    binary_hinge_loss,
    categorical_accuracy,
    multiclass_hinge_loss,
    squared_error,
)
from jaxctc.frame_losses import EstimatedType

TYPES: list[EstimatedType] = ["logits", "log-probs", "probs"]
every_type = pytest.mark.parametrize("kind", TYPES)


def estimates(rng, shape, kind):
    """Scores of a kind, and the log-probabilities that they stand for."""
    logits = rng.normal(size=shape).astype(np.float32) * 2
    log_probs = oracles.log_softmax(logits)
    return {
        "logits": logits,
        "log-probs": log_probs.astype(np.float32),
        "probs": np.exp(log_probs).astype(np.float32),
    }[kind], log_probs


class TestCrossEntropy:
    @every_type
    def test_ids(self, rng, kind):
        estimated, log_probs = estimates(rng, (2, 3, 5), kind)
        target = rng.integers(0, 5, (2, 3))
        loss = cross_entropy(estimated, target, estimated_type=kind)
        oracles.assert_close(loss, -np.take_along_axis(log_probs, target[..., None], -1)[..., 0])

    @every_type
    @pytest.mark.parametrize("axis", [0, 1, -1])
    def test_weights_along_any_axis(self, rng, kind, axis):
        estimated, log_probs = estimates(rng, (2, 3, 5), kind)
        target = rng.dirichlet(np.ones(5), (2, 3)).astype(np.float32)
        moved = [np.moveaxis(part, -1, axis) for part in (estimated, target)]
        loss = cross_entropy(*moved, axis=axis, estimated_type=kind)
        oracles.assert_close(loss, -(target * log_probs).sum(-1))

    @every_type
    @pytest.mark.parametrize("sparse", [True, False])
    def test_class_weight_and_smoothing(self, rng, kind, sparse):
        """As torch defines them: weights factor the smoothed target."""
        estimated, log_probs = estimates(rng, (7, 5), kind)
        ids, weight = rng.integers(0, 5, 7), rng.uniform(size=5).astype(np.float32)
        one_hot = np.eye(5, dtype=np.float32)[ids]
        options = {"class_weight": weight, "label_smoothing": 0.3, "estimated_type": kind}
        loss = cross_entropy(estimated, ids if sparse else one_hot, **options)
        target = weight * (0.7 * one_hot + 0.3 / 5)
        oracles.assert_close(loss, -(target * log_probs).sum(-1))

    def test_torch(self, rng):
        torch = pytest.importorskip("torch", reason="needs the extra `compare`")
        logits, target = rng.normal(size=(2, 5, 3)), rng.integers(0, 5, (2, 3))
        target[0, 1], weight = -100, rng.uniform(size=5)
        theirs = torch.nn.functional.cross_entropy(
            torch.tensor(logits),
            torch.tensor(target),
            torch.tensor(weight),
            label_smoothing=0.2,
            ignore_index=-100,
            reduction="none",
        )
        options = {"class_weight": weight, "label_smoothing": 0.2, "ignore_id": -100}
        oracles.assert_close(cross_entropy(logits, target, axis=1, **options), theirs.numpy())

    @pytest.mark.smoke
    def test_optax(self, rng):
        """Bit for bit, values and gradients."""
        logits, ids = rng.normal(size=(4, 5)).astype(np.float32), rng.integers(0, 5, 4)
        dense = rng.dirichlet(np.ones(5), 4).astype(np.float32)
        for ours, theirs, target in (
            (cross_entropy, optax.softmax_cross_entropy_with_integer_labels, ids),
            (cross_entropy, optax.softmax_cross_entropy, dense),
            (binary_cross_entropy, optax.sigmoid_binary_cross_entropy, (dense > 0.2) * 1.0),
            (squared_error, optax.squared_error, dense),
        ):
            target = jnp.asarray(target, jnp.int32 if target is ids else jnp.float32)
            for of in (lambda f: f, lambda f: jax.grad(lambda *a: jnp.sum(f(*a)))):
                with jax.numpy_dtype_promotion("standard"):
                    expected = of(theirs)(jnp.asarray(logits), target)
                np.testing.assert_array_equal(of(ours)(logits, target), expected)

    @every_type
    def test_what_is_ignored_costs_nothing(self, rng, kind):
        estimated, _ = estimates(rng, (4, 5), kind)
        padded = np.array([0, 1, 0, 0])
        target = np.array([1, 2, 9, 3])
        options = {"ignore_id": 9, "estimated_type": kind, "label_smoothing": 0.1}

        @jax.jit
        @jax.value_and_grad
        def total(estimated):
            return jnp.sum(cross_entropy(estimated, target, paddings=padded, **options))

        clean, gradient = total(estimated)
        junk = estimated.copy()
        junk[1:3] = [[np.nan, np.inf, -np.inf, 0, 1], [np.nan] * 5]
        junk, junk_gradient = total(junk)
        assert clean == junk
        np.testing.assert_array_equal(junk_gradient, gradient)
        np.testing.assert_array_equal(gradient[1:3], 0)

    @every_type
    def test_junk_in_padded_weights(self, kind):
        estimated = jnp.full((2, 3), np.float32(0.3))
        target = jnp.array([[0, 1, 0], [np.nan, np.inf, 2]])
        options = {"paddings": [0, 1], "estimated_type": kind}
        gradient = jax.grad(lambda x: jnp.sum(cross_entropy(x, target, **options)))(estimated)
        chex.assert_tree_all_finite(gradient)
        np.testing.assert_array_equal(gradient[1], 0)

    @every_type
    @pytest.mark.parametrize("smoothing", [0.0, 0.2])
    @pytest.mark.parametrize("sparse", [True, False])
    def test_saturated_probabilities(self, kind, smoothing, sparse):
        """A sure right, a sure wrong and a half-sure answer; an impossible frame."""
        probs = np.array([[1, 0, 0], [1, 0, 0], [0.5, 0.5, 0], [0, 0, 0]], np.float32)
        with np.errstate(divide="ignore"):
            estimated = probs if kind == "probs" else np.log(probs)
        ids = np.array([0, 1, 0, 0], np.int32)
        target = ids if sparse else np.eye(3, dtype=np.float32)[ids]

        def losses(estimated):
            options = {"estimated_type": kind, "label_smoothing": smoothing}
            return cross_entropy(estimated, target, **options)

        keep = 1 - smoothing
        expected = [0, keep * 1e5, np.log(2), keep * 1e5]
        np.testing.assert_allclose(losses(estimated), expected, rtol=1e-6, atol=1e-7)
        gradient = jax.grad(lambda x: jnp.sum(losses(x)))(estimated)
        chex.assert_tree_all_finite(gradient)
        np.testing.assert_array_equal(np.asarray(gradient)[probs == 0], 0)

    @every_type
    def test_ids_that_are_no_class(self, rng, kind):
        estimated, _ = estimates(rng, (3, 5), kind)
        target = np.array([5, -1, 1000])

        @jax.jit
        def losses(estimated):
            return cross_entropy(estimated, target, estimated_type=kind, log_epsilon=-7.0)

        np.testing.assert_array_equal(losses(estimated), 7)
        np.testing.assert_array_equal(jax.grad(lambda x: losses(x).sum())(estimated), 0)

    @every_type
    def test_weights_of_what_is_impossible(self, kind):
        """An id that is no class has no class's weight; a class without weight costs nothing."""
        probs, ids = np.array([0, 0.25, 0.75], np.float32), np.array([3, -1, 0, 1])
        with np.errstate(divide="ignore"):
            estimated = np.tile(probs if kind == "probs" else np.log(probs), (4, 1))
        weight = np.array([0.0, 2.0, 1.0])
        options = {"estimated_type": kind, "class_weight": weight}
        loss = cross_entropy(estimated, ids, **options)
        np.testing.assert_allclose(loss, [1e5, 1e5, 0, 2 * np.log(4)], rtol=1e-6)
        loss = cross_entropy(estimated, ids, log_epsilon=-np.inf, **options)
        np.testing.assert_allclose(loss, [np.inf, np.inf, 0, 2 * np.log(4)], rtol=1e-6)
        gradient = jax.grad(lambda x: cross_entropy(x, ids, **options).sum())(estimated)
        np.testing.assert_array_equal(gradient[:3], 0)

    def test_log_epsilon_may_be_infinite(self):
        loss = cross_entropy(
            jnp.array([-np.inf, 0.0, 0.0]), jnp.array([0.0, 0.5, 0.5]), log_epsilon=-np.inf
        )
        np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)
        assert cross_entropy(jnp.array([-np.inf, 0.0]), 0, log_epsilon=-np.inf) == np.inf

    def test_clipped_probabilities(self):
        probs = jnp.array([[1.0, 0.0], [0.0, 1.0]])
        loss = cross_entropy(probs, jnp.array([0, 0]), estimated_type="probs", eps=1e-3)
        np.testing.assert_allclose(loss, [-np.log1p(-1e-3), -np.log(1e-3)], rtol=1e-4)

    def test_nan_is_not_hidden(self):
        for kind in TYPES:
            loss = cross_entropy(
                np.array([[np.nan, 0.5], [0.5, 0.5]]), np.array([1, 0]), estimated_type=kind
            )
            assert np.isfinite(loss[1])
            assert np.isnan(loss[0]) or kind != "logits"  # the others read one class alone
            assert np.isnan(cross_entropy(np.array([np.nan, 0.5]), 0, estimated_type=kind))
            assert not np.isfinite(cross_entropy(np.array([np.inf, 0.5]), 0, estimated_type=kind))
        assert not np.isfinite(cross_entropy(np.array([np.inf, 0.5]), 1))

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
    def test_narrow_floats(self, rng, dtype):
        ids = np.array([1, 2])
        logits = jnp.asarray(rng.normal(size=(2, 300)), dtype)
        loss, gradient = jax.value_and_grad(lambda x: cross_entropy(x, ids).sum())(logits)
        wide = cross_entropy(logits.astype(jnp.float32), ids).sum()
        assert (loss.dtype, gradient.dtype) == (jnp.float32, dtype)
        np.testing.assert_array_equal(loss, wide)

    @pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3)])
    def test_empty_batches(self, shape):
        @jax.jit
        def per_class_and_per_example(logits, ids):
            def total(logits, target):
                return cross_entropy(logits, target).sum()

            per_class = [jax.grad(total)(logits, target) for target in (ids, logits)]
            per_example = [
                cross_entropy(logits, target, label_smoothing=0.1) for target in (ids, logits)
            ]
            per_class += [binary_cross_entropy(logits, logits)]
            per_example += [multiclass_hinge_loss(logits, ids), categorical_accuracy(logits, ids)]
            return per_class, per_example

        logits, ids = np.zeros(shape, np.float32), np.zeros(shape[:-1], np.int32)
        per_class, per_example = per_class_and_per_example(logits, ids)
        assert {part.shape for part in per_class} == {shape}
        assert {part.shape for part in per_example} == {shape[:-1]}


class TestBinary:
    @every_type
    def test_cross_entropy(self, rng, kind):
        logits = rng.normal(size=(4, 3)).astype(np.float32)
        target = rng.uniform(size=(4, 3)).astype(np.float32)
        p = 1 / (1 + np.exp(-logits.astype(np.float64)))
        estimated = {"logits": logits, "probs": p, "log-probs": np.log(p)}[kind]
        loss = binary_cross_entropy(estimated.astype(np.float32), target, estimated_type=kind)
        oracles.assert_close(loss, -target * np.log(p) - (1 - target) * np.log1p(-p))

    @every_type
    @pytest.mark.parametrize("loss_of", [binary_cross_entropy, binary_hinge_loss])
    def test_saturated(self, kind, loss_of):
        estimated = {
            "logits": [np.inf, np.inf, -np.inf, -np.inf],
            "probs": [1.0, 1.0, 0.0, 0.0],
            "log-probs": [0.0, 0.0, -np.inf, -np.inf],
        }[kind]
        if kind == "logits" and loss_of is binary_hinge_loss:
            pytest.skip("a score has no saturation")
        target = np.array([1, 0, 1, 0])

        def losses(estimated):
            return loss_of(estimated, target, estimated_type=kind)

        np.testing.assert_allclose(losses(estimated), [0, 1e5, 1e5, 0], rtol=2e-5)
        gradient = jax.grad(lambda x: losses(x).sum())(np.array(estimated, np.float32))
        chex.assert_tree_all_finite(gradient)

    def test_small_probabilities_are_exact(self):
        loss = binary_cross_entropy(
            np.array([1e-10, -1e-10]), np.array([0, 1]), estimated_type="probs"
        )
        np.testing.assert_allclose(loss[0], 1e-10, rtol=1e-6)
        loss = binary_cross_entropy(np.array([-1e-10]), np.array([0]), estimated_type="log-probs")
        np.testing.assert_allclose(loss, -np.log(1e-10), rtol=1e-6)

    @every_type
    def test_padding(self, kind):
        estimated, target = jnp.array([-0.1, np.nan, np.inf]), jnp.array([1.0, np.nan, np.inf])
        if kind == "probs":
            estimated = jnp.abs(estimated)
        options = {"paddings": [0, 1, 1], "estimated_type": kind}
        loss, gradient = jax.value_and_grad(
            lambda x: binary_cross_entropy(x, target, **options).sum()
        )(estimated)
        assert np.isfinite(loss)
        chex.assert_tree_all_finite(gradient)
        np.testing.assert_array_equal(gradient[1:], 0)

    @pytest.mark.parametrize("margin", [1.0, 0.3, 0.0])
    def test_hinge(self, rng, margin):
        scores, target = rng.normal(size=8).astype(np.float32), rng.integers(0, 2, 8)
        loss = binary_hinge_loss(scores, target, margin=margin)
        oracles.assert_close(loss, np.maximum(0, margin - (2 * target - 1) * scores))
        if margin == 1:
            signs = (2 * target - 1).astype(np.float32)
            np.testing.assert_array_equal(loss, optax.hinge_loss(scores, signs))
        probs = 1 / (1 + np.exp(-scores.astype(np.float64)))
        of_probs = binary_hinge_loss(probs, target, margin=margin, estimated_type="probs")
        np.testing.assert_allclose(of_probs, loss, atol=1e-5)

    def test_accuracy(self):
        estimated, target = np.array([0.2, 0.7, 0.5, np.nan]), np.array([0, 0, 1, 0])
        assert binary_accuracy(estimated, target).tolist() == [True, False, True, False]
        assert binary_accuracy(estimated, target, threshold=0.8).tolist() == [
            True,
            True,
            False,
            False,
        ]


class TestMulticlassHinge:
    @pytest.mark.parametrize("margin", [1.0, 0.3, -0.5])
    @pytest.mark.parametrize("sparse", [True, False])
    def test_definition(self, rng, margin, sparse):
        scores, ids = rng.normal(size=(6, 4)).astype(np.float32), rng.integers(0, 4, 6)
        own = scores[np.arange(6), ids]
        rivals = np.where(np.arange(4) == ids[:, None], -np.inf, scores).max(axis=1)
        target = ids if sparse else np.eye(4, dtype=np.float32)[ids]
        loss = multiclass_hinge_loss(scores, target, margin=margin)
        oracles.assert_close(loss, np.maximum(0, rivals - own + margin))
        if margin == 1 and sparse:
            with jax.numpy_dtype_promotion("standard"):
                theirs = optax.losses.multiclass_hinge_loss(scores, ids)
            np.testing.assert_allclose(loss, theirs, rtol=1e-6)

    def test_edges(self):
        scores = np.array([[0, -np.inf, -np.inf], [-np.inf, 0, 0], [0, 0, 0]], np.float32)

        @jax.jit
        def losses(scores):
            return multiclass_hinge_loss(scores, np.array([0, 0, 3]))

        np.testing.assert_array_equal(losses(scores), [0, 1e5, 1e5])
        np.testing.assert_array_equal(jax.grad(lambda x: losses(x).sum())(scores), 0)
        assert multiclass_hinge_loss(jnp.zeros((1, 1)), jnp.array([0])).tolist() == [0]

    def test_gradient(self):
        gradient = jax.grad(multiclass_hinge_loss)(jnp.array([0.0, 0.5, 0.2]), 0)
        np.testing.assert_array_equal(gradient, [-1, 1, 0])


class TestCategoricalAccuracy:
    @pytest.mark.parametrize("top_k", [1, 2, 4, 9])
    def test_top_k(self, rng, top_k):
        scores, ids = rng.integers(0, 3, (50, 4)) * 1.0, rng.integers(0, 4, 50)
        _, best = jax.lax.top_k(jnp.asarray(scores, jnp.float32), min(top_k, 4))
        expected = [id in row for id, row in zip(ids.tolist(), best.tolist(), strict=True)]
        assert categorical_accuracy(scores, ids, top_k=top_k).tolist() == expected

    def test_rows_axes_and_edges(self):
        scores = jnp.array([[0.1, 0.9], [0.8, 0.2], [0.7, np.nan]])
        assert categorical_accuracy(scores, scores).tolist() == [True, True, False]
        assert categorical_accuracy(scores.T, np.array([1, 1, 0]), axis=0).tolist() == [
            True,
            False,
            False,
        ]
        assert categorical_accuracy(scores, np.array([2, -1, 2]), top_k=2).tolist() == [False] * 3


IDS = np.array([1, 2, 0])
NO_TYPE: Any = "p"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cross_entropy(jnp.zeros((2, 3)), IDS[:3]), "target must have shape"),
        (lambda: cross_entropy(jnp.zeros((2, 3)), jnp.ones(2) / 2), "target must be integers"),
        (lambda: cross_entropy(jnp.zeros((2, 3)), IDS[:2], estimated_type=NO_TYPE), "'log-probs'"),
        (lambda: cross_entropy(jnp.zeros((2, 3)), IDS[:2], axis=2), "axis must be an axis"),
        (lambda: cross_entropy(jnp.zeros((2, 0)), IDS[:2]), "at least one class"),
        (
            lambda: cross_entropy(jnp.zeros(3), 1, class_weight=jnp.ones(1)),
            "class_weight must have",
        ),
        (lambda: cross_entropy(jnp.zeros(3), jnp.ones(3), ignore_id=1), "pass paddings"),
        (lambda: cross_entropy(jnp.zeros(3), 1, ignore_id=2**31), "ignore_id must be an id in"),
        (
            lambda: cross_entropy(jnp.zeros((2, 3)), IDS[:2], paddings=jnp.zeros(1)),
            "paddings must have",
        ),
        (lambda: cross_entropy(jnp.zeros(3, complex), 1), "estimated must be real"),
        (lambda: squared_error(jnp.zeros(3), jnp.zeros(2)), "shape of estimated"),
        (lambda: categorical_accuracy(jnp.zeros(3), 1, top_k=0), "top_k must be at least 1"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_compiles_once_and_batches(rng):
    """Class weights, smoothing and padding may be traced."""
    logits, ids = rng.normal(size=(3, 4, 5)).astype(np.float32), rng.integers(0, 5, (3, 4))

    @functools.partial(jax.jit)
    def compiled(logits, ids, weight, smoothing, paddings):
        return cross_entropy(
            logits, ids, class_weight=weight, label_smoothing=smoothing, paddings=paddings
        )

    options = (np.ones(5, np.float32), np.float32(0.1))
    whole = compiled(logits, ids, *options, ids == 2)
    rows = jax.vmap(compiled, in_axes=(0, 0, None, None, 0))(logits, ids, *options, ids == 2)
    np.testing.assert_allclose(whole, rows, rtol=1e-6)


@pytest.mark.parametrize("name", jaxctc._MOVED)
def test_what_has_moved_is_still_found_with_a_warning(name):
    with pytest.warns(DeprecationWarning, match=rf"jaxctc\.{name} goes in version 0\.3\. Use "):
        found = getattr(jaxctc, name)
    assert found is getattr(frame_objectives, name)
    assert name not in jaxctc.__all__
