"""Against its documented definitions in NumPy; Dandelion itself needs Theano, which is gone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jaxctc.adapters import dandelion

FRAMES, CLASSES, SIZE, LONGEST = 5, 3, 3, 2
LENGTHS, LABEL_LENGTHS = np.array([5, 4, 3]), np.array([2, 1, 0])


@jax.jit
def cost_and_gradient(seq, sm, seq_mask, sm_mask):
    def cost(sm):
        return dandelion.ctc_cost_logscale(seq, sm, seq_mask, sm_mask)

    return jax.value_and_grad(cost)(sm)


@pytest.fixture
def batch(rng):
    """Float ids and masks; the blank is the last class."""
    sm = rng.dirichlet(np.ones(CLASSES), (FRAMES, SIZE)).swapaxes(1, 2).astype(np.float32)
    seq = rng.integers(0, CLASSES - 1, (LONGEST, SIZE)).astype(np.float32)
    seq_mask = (np.arange(LONGEST)[:, None] < LABEL_LENGTHS).astype(np.float32)
    return seq, sm, seq_mask, (np.arange(FRAMES)[:, None] < LENGTHS).astype(np.float32)


def rows_of(seq, sm, seq_mask, sm_mask):
    """Logarithms of the scores and labels in use, example by example."""
    for row in range(seq.shape[1]):
        with np.errstate(divide="ignore"):
            scores = np.log(sm[sm_mask[:, row] > 0, :, row].astype(np.float64))
        yield scores, seq[seq_mask[:, row] > 0, row].astype(int)


def mean_cost(*batch):
    return np.mean([oracles.enumerate_paths(*row, CLASSES - 1).loss for row in rows_of(*batch)])


class TestCtcCost:
    def test_mean_over_the_batch(self, batch):
        cost, gradient = cost_and_gradient(*batch)
        np.testing.assert_allclose(cost, mean_cost(*batch), rtol=1e-6)
        for row, (scores, labels) in enumerate(rows_of(*batch)):
            shares = oracles.enumerate_paths(scores, labels, CLASSES - 1).occupancies
            # The gradient is -shares / scores, in which small scores blow rounding up.
            found = -gradient[: LENGTHS[row], :, row] * np.exp(scores) * SIZE
            np.testing.assert_allclose(found, shares, atol=2e-6)
            np.testing.assert_array_equal(gradient[LENGTHS[row] :, :, row], 0)

    def test_frames_in_use_last(self, batch):
        """As align="post" has them: the mask says so."""
        seq, sm, seq_mask, sm_mask = batch
        rolled = np.full_like(sm, np.nan)
        for row, length in enumerate(LENGTHS):
            rolled[FRAMES - length :, :, row] = sm[:length, :, row]
        cost, gradient = cost_and_gradient(seq, rolled, seq_mask, sm_mask[::-1])
        np.testing.assert_allclose(cost, mean_cost(*batch), rtol=1e-6)
        chex.assert_tree_all_finite(gradient)
        arguments = seq, rolled, seq_mask, sm_mask[::-1]
        post = jax.jit(lambda: dandelion.ctc_cost_logscale(*arguments, align="post"))()
        np.testing.assert_allclose(post, cost, rtol=1e-6)

    def test_saturated_scores(self, batch):
        """Probabilities of 0 and 1: exact, with a finite gradient."""
        seq, sm, seq_mask, sm_mask = batch
        sm = np.array(sm)
        sm[0] = np.array([0, 0, 1], np.float32)[:, None]
        cost, gradient = cost_and_gradient(seq, sm, seq_mask, sm_mask)
        np.testing.assert_allclose(cost, mean_cost(seq, sm, seq_mask, sm_mask), rtol=1e-6)
        np.testing.assert_array_equal(gradient[0, :2], 0)
        chex.assert_tree_all_finite(gradient)

    def test_ids_that_are_no_class(self, batch):
        """A fraction, and the blank."""
        seq, *rest = batch
        for wrong in (0.5, CLASSES - 1, np.nan):
            cost, gradient = cost_and_gradient(np.where([[1, 0, 0]], wrong, seq), *rest)
            assert cost == np.inf
            np.testing.assert_array_equal(gradient[..., 0], 0)

    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            ({"align": "left"}, "align must be one of 'pre', 'post'"),
            ({"sm": np.ones((5, 3))}, r"sm must have shape \(T, C\+1, B\)"),
            ({"seq": np.zeros((2, 4))}, "seq must have shape .* B = 3, as in sm"),
            ({"seq": np.zeros(2)}, "seq must have two axes"),
            ({"sm_mask": np.ones((3, 5))}, r"sm_mask must have shape \(5, 3\)"),
            ({"blank_symbol": 3}, "blank_symbol must be a class id"),
        ],
    )
    def test_errors(self, batch, bad, message):
        good = dict(zip(("seq", "sm", "seq_mask", "sm_mask"), batch, strict=True))
        with pytest.raises(ValueError, match=f"^adapters.dandelion.ctc_cost_logscale: {message}"):
            jax.eval_shape(lambda: dandelion.ctc_cost_logscale(**good | bad))


@pytest.mark.smoke
def test_best_path_and_error_rate(batch):
    """Decoded, then compared with the references: all of Dandelion's evaluation."""
    seq, sm, seq_mask, sm_mask = batch
    scores = np.moveaxis(sm, -1, 0)
    labels, mask = jax.jit(dandelion.ctc_best_path_decode)(scores, sm_mask.T)
    assert labels.dtype == mask.dtype == jnp.float32
    errors = length = 0
    for row, (log_probs, reference) in enumerate(rows_of(*batch)):
        spelt = oracles.collapse(log_probs.argmax(axis=-1).tolist(), CLASSES - 1)
        assert labels[mask[:, row] > 0, row].tolist() == list(spelt)
        assert set(labels[mask[:, row] == 0, row].tolist()) <= {-1.0}
        errors += oracles.levenshtein(spelt, tuple(reference))
        length += len(reference)
    rate, total, letters = jax.jit(dandelion.ctc_CER)(labels, seq, mask, seq_mask)
    assert (int(total), int(letters)) == (errors, length)
    np.testing.assert_allclose(rate, errors / length, rtol=1e-6)


def one_hot(ids, width):
    return np.eye(width)[ids]


class TestFrameWise:
    """The formulas of the documentation, on one batch of rows."""

    @pytest.fixture
    def rows(self, rng):
        probs = rng.dirichlet(np.ones(4), 6).astype(np.float32)
        probs[0] = [1, 0, 0, 0]
        return probs, np.array([0, 1, 2, 3, 3, 1]), rng.uniform(size=4).astype(np.float32)

    @pytest.mark.parametrize("eps", [1e-7, 0.01])
    @pytest.mark.parametrize("dense", [False, True])
    @pytest.mark.parametrize("weighted", [False, True])
    def test_categorical_crossentropy(self, rows, eps, dense, weighted):
        probs, ids, weight = rows
        target = one_hot(ids, 4)
        clipped = np.clip(probs.astype(np.float64), eps, 1 - eps)
        factor = weight if weighted else np.ones(4)
        loss = dandelion.categorical_crossentropy(
            probs, target if dense else ids, eps, m=4, class_weight=weight if weighted else None
        )
        expected = -(target * factor * np.log(clipped)).sum(axis=1)
        np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-7)
        log_loss = dandelion.categorical_crossentropy_log(
            np.log(clipped), target if dense else ids, 4, weight if weighted else None
        )
        np.testing.assert_allclose(log_loss, expected, rtol=1e-5, atol=1e-7)

    def test_binary(self, rng):
        p, t = rng.uniform(0.01, 0.99, 6).astype(np.float32), rng.integers(0, 2, 6)
        odds = np.log(p) - np.log1p(-p)
        loss = dandelion.binary_crossentropy(p[:, None], t)  # a column and a vector
        np.testing.assert_allclose(loss[:, 0], -np.log(np.where(t, p, 1 - p)), rtol=1e-5)
        np.testing.assert_allclose(dandelion.squared_error(p, t), (p - t) ** 2, rtol=1e-6)
        for delta in (1, 0.3):
            expected = np.maximum(0, delta - (2 * t - 1) * odds)
            for prediction, target, options in (
                (odds, t, {}),
                (odds, 2 * t - 1, {"binary": False}),
                (p, t, {"log_odds": False}),
            ):
                loss = dandelion.binary_hinge_loss(prediction, target, delta, **options)
                np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-5)
        hits = dandelion.binary_accuracy(p, t, 0.3)
        np.testing.assert_array_equal(hits, (p >= 0.3) == t)

    def test_multiclass(self, rows):
        probs, ids, _ = rows
        own = probs[np.arange(6), ids]
        rest = np.where(one_hot(ids, 4) > 0, -np.inf, probs).max(axis=1)
        for target in (ids, one_hot(ids, 4)):
            for delta in (1, 0.2):
                loss = dandelion.multiclass_hinge_loss(probs, target, delta)
                np.testing.assert_allclose(loss, np.maximum(0, rest - own + delta), rtol=1e-5)
            for top_k in (1, 2):
                best = np.argsort(-probs, axis=1, kind="stable")[:, :top_k]
                hits = dandelion.categorical_accuracy(probs, target, top_k)
                np.testing.assert_array_equal(hits, (best == ids[:, None]).any(axis=1))

    def test_number_of_classes(self, rows):
        with pytest.raises(ValueError, match="m must be the number of classes, 4; got 5"):
            dandelion.categorical_crossentropy(rows[0], rows[1], m=5)
