"""What is trained beside the loss: against definitions in float64, with gradients, at the edges."""

import functools

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jaxctc import (
    WeightedSum,
    alignment_entropy,
    confidence_penalty,
    consistency_loss,
    ctc_loss,
    delay_penalty,
    focal_loss,
    mwer_loss,
    purpose_loss,
    reduce_loss,
    smoothing_penalty,
)

# Two examples; the second has padding between its frames and labels, with junk in it.
FRAMES = np.array([[True] * 5, [True, False, True, True, False]])
LABELS = np.array([[1, 2, 2], [2, 9, 1]])
IS_LABEL = np.array([[True, True, True], [True, False, True]])


@pytest.fixture
def batch(rng):
    logits = rng.normal(size=(2, 5, 3)).astype(np.float32)
    logits[~FRAMES] = [np.nan, np.inf, -np.inf]
    return logits, ~FRAMES, LABELS, ~IS_LABEL


def assert_gradient(function, logits):
    """That of a function of one example against differences in float64; each compiles once."""
    with jax.enable_x64(True):
        logits = jnp.asarray(logits, jnp.float64)
        gradient = jax.jit(jax.grad(function))(logits)
        steps = 1e-5 * np.eye(logits.size).reshape(-1, *logits.shape)
        around = np.asarray(logits) + np.concatenate([steps, -steps])
        ahead, behind = np.split(np.asarray(jax.jit(jax.vmap(function))(around)), 2)
    np.testing.assert_allclose(gradient.ravel(), (ahead - behind) / 2e-5, atol=1e-8)


value_and_gradients = {
    function: jax.jit(
        lambda logits, *rest, function=function: jax.value_and_grad(
            lambda logits: function(logits, *rest).sum()
        )(logits)
    )
    for function in (ctc_loss, delay_penalty, smoothing_penalty, confidence_penalty)
}


def rows_of(logits):
    """Log-probabilities of the frames in use, example by example."""
    return [oracles.log_softmax(row[used]) for row, used in zip(logits, FRAMES, strict=True)]


BATCH = cases.BATCHES[0]


@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("function", [delay_penalty, mwer_loss])
def test_every_awkward_case(function, dtype):
    """NaN where the loss is, finite elsewhere; the gradient, too, and 0 in padding."""
    logits, padded, *labels = cases.batch_of(BATCH)

    @jax.jit
    def of(logits):
        value, pullback = jax.vjp(lambda logits: function(logits, padded, *labels), logits)
        return value, *pullback(jnp.ones_like(value))

    values, gradient = jax.device_get(of(jnp.asarray(logits, dtype)))
    assert (values.dtype, gradient.dtype) == (jnp.float32, dtype)
    for case, value, slope, no_frame in zip(BATCH, values, gradient, padded, strict=True):
        if case.kind == "nan":
            assert np.isnan(value), case.name
            continue
        assert np.isfinite(value), case.name
        assert np.isfinite(slope.astype(jnp.float32)).all(), case.name
        np.testing.assert_array_equal(slope.astype(jnp.float32)[no_frame], 0, err_msg=case.name)
        if function is delay_penalty and case.kind == "infeasible":
            assert value == 0, case.name
            np.testing.assert_array_equal(slope.astype(jnp.float32), 0, err_msg=case.name)


class TestReduceLoss:
    LOSS = np.array([2.0, np.inf, 6.0, 3.0], np.float32)
    LENGTHS = np.array([2, 1, 3, 0])
    PADDINGS = np.arange(3) >= LENGTHS[:, None]

    @pytest.mark.parametrize(
        ("per", "total", "weight", "mean"),
        [
            ("example", 11, 3, 11 / 3),
            ("label", 11, 5, 11 / 5),
            ("frame", 11, 5, 11 / 5),
            ("example_and_label", 1 + 2 + 3, 3, 2),
            ("none", [2, 0, 6, 3], [1, 0, 1, 1], [2, np.inf, 6, 3]),
        ],
    )
    def test_named_means(self, per, total, weight, mean):
        result = reduce_loss(self.LOSS, self.PADDINGS, self.PADDINGS, per=per)
        np.testing.assert_allclose(result.sum, total)
        np.testing.assert_allclose(result.weight, weight)
        np.testing.assert_array_equal(result.dropped, [0, 1, 0, 0] if per == "none" else 1)
        np.testing.assert_allclose(result.mean, mean, rtol=1e-6)

    def test_torch(self, rng):
        torch = pytest.importorskip("torch", reason="needs the extra `compare`")
        logits, labels = rng.normal(size=(3, 9, 5)).astype(np.float32), rng.integers(1, 5, (3, 4))
        lengths = np.array([4, 2, 0])
        paddings = np.arange(4) >= lengths[:, None]
        loss = jax.jit(ctc_loss)(logits, None, labels, paddings)
        theirs = torch.nn.functional.ctc_loss(
            torch.tensor(logits).log_softmax(-1).transpose(0, 1),
            torch.tensor(labels),
            torch.full((3,), 9),
            torch.tensor(lengths),
        )
        ours = reduce_loss(loss, label_paddings=paddings, per="example_and_label").mean
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5)

    def test_a_mean_over_devices_is_that_of_the_batch(self):
        """Parts of different weight, added up before they are divided."""
        whole = reduce_loss(self.LOSS, label_paddings=self.PADDINGS, per="label")

        def part(loss, paddings):
            here = reduce_loss(loss, label_paddings=paddings, per="label")
            return jax.lax.psum(here, "devices").mean

        halves = self.LOSS.reshape(2, 2), self.PADDINGS.reshape(2, 2, 3)
        np.testing.assert_allclose(jax.vmap(part, axis_name="devices")(*halves), whole.mean)
        sums = [reduce_loss(*half, per="frame") for half in zip(*halves, strict=True)]
        assert (WeightedSum.zero() + sums[0] + sums[1]).mean == whole.mean

    def test_masks(self):
        result = reduce_loss(self.LOSS, example_paddings=np.array([0, 0, 1, 0]))
        assert tuple(map(float, result)) == (5, 2, 1)
        kept = reduce_loss(self.LOSS, drop_infeasible=False)
        assert (kept.mean, kept.dropped) == (np.inf, 0)
        assert np.isnan(reduce_loss(jnp.array([1.0, jnp.nan])).mean)
        assert reduce_loss(jnp.zeros((0,))).mean == 0

    def test_nothing_but_infeasible_examples_is_no_success(self):
        def mean(logits):  # subsampled too far, so that no labels fit
            reduced = reduce_loss(ctc_loss(logits, None, np.ones((2, 2), np.int32), None))
            return reduced.mean, reduced.dropped

        result, gradient = jax.value_and_grad(mean, has_aux=True)(jnp.zeros((2, 2, 3)))
        assert result == (np.inf, 2)
        np.testing.assert_array_equal(gradient, 0)
        assert reduce_loss(jnp.array([jnp.inf]), example_paddings=np.ones(1)).mean == 0

    def test_narrow_losses(self):
        """Counted and added up in float32: in bfloat16, 257 are 256."""
        losses = jnp.ones(257, jnp.bfloat16)
        for paddings, weight in ((None, 257), (np.zeros((257, 257)), 257**2)):
            per = "example" if paddings is None else "label"
            result = reduce_loss(losses, label_paddings=paddings, per=per)
            assert (float(result.sum), float(result.weight)) == (257, weight)
            assert result.sum.dtype == result.weight.dtype == jnp.float32

    def test_gradient_of_infeasible_examples(self):
        def mean(logits):
            loss = ctc_loss(logits, None, np.array([[1, 1], [1, 2]]), None)
            return reduce_loss(loss).mean

        gradient = jax.jit(jax.grad(mean))(jnp.zeros((2, 2, 3)))
        np.testing.assert_array_equal(gradient[0], 0)
        assert np.abs(gradient[1]).max() > 0.1

    def test_errors(self):
        with pytest.raises(ValueError, match="per must be one of 'example'"):
            reduce_loss(self.LOSS, per="mean")  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match="label_paddings must be given"):
            reduce_loss(self.LOSS, per="label")
        with pytest.raises(ValueError, match="one axis more than loss"):
            reduce_loss(self.LOSS, self.PADDINGS[:2], per="frame")
        with pytest.raises(ValueError, match="one axis more than loss"):
            reduce_loss(self.LOSS[0], np.float32(0), per="frame")
        with pytest.raises(ValueError, match="reduce_loss: label_paddings must be one array"):
            reduce_loss(self.LOSS, label_paddings=[[0], [0, 1]], per="label")  # pyright: ignore[reportArgumentType]


class TestFocalLoss:
    @pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
    def test_value_and_gradient(self, gamma):
        loss = np.array([1e-12, 1e-6, 0.1, 3.0, 200.0])

        def exact(x):
            return (-np.expm1(-x)) ** gamma * x

        focal = focal_loss(loss.astype(np.float32), gamma=gamma)
        np.testing.assert_allclose(focal, exact(loss), rtol=2e-6)
        gradient = jax.grad(lambda x: focal_loss(x, gamma=gamma).sum())(loss.astype(np.float32))
        step = loss * 1e-5
        expected = (exact(loss + step) - exact(loss - step)) / (2 * step)
        np.testing.assert_allclose(gradient, expected, rtol=1e-4)

    @pytest.mark.parametrize("gamma", [0.5, 2.0])
    def test_edges(self, gamma):
        loss = jnp.array([0.0, jnp.inf, jnp.nan])
        np.testing.assert_array_equal(focal_loss(loss, gamma=gamma), loss)
        gradient = jax.grad(lambda x: focal_loss(x, gamma=gamma).sum())(loss[:2])
        chex.assert_tree_all_finite(gradient)

    def test_of_an_infeasible_pair(self):
        def focal(logits):
            return focal_loss(ctc_loss(logits, None, np.array([1, 1]), None))

        np.testing.assert_array_equal(jax.jit(jax.grad(focal))(jnp.zeros((2, 3))), 0)


class TestPenaltiesOnFrames:
    def test_smoothing(self, batch):
        """The value, and the smoothed posteriors in the gradient."""
        logits, padded, *labels = batch
        truth = [-(row.mean(axis=-1)).sum() for row in rows_of(logits)]
        np.testing.assert_allclose(jax.jit(smoothing_penalty)(logits, padded), truth, rtol=1e-6)
        epsilon = 0.2
        _, plain = jax.device_get(value_and_gradients[ctc_loss](logits, padded, *labels))
        _, smooth = jax.device_get(value_and_gradients[smoothing_penalty](logits, padded))
        gradient = (1 - epsilon) * plain + epsilon * smooth
        for row, used in enumerate(FRAMES):
            softmax = np.exp(rows_of(logits)[row])
            occupancy = softmax - plain[row, used]
            target = (1 - epsilon) * occupancy + epsilon / 3
            np.testing.assert_allclose(gradient[row, used], softmax - target, atol=1e-6)
            np.testing.assert_array_equal(gradient[row, ~used], 0)

    def test_confidence(self, batch):
        logits, padded, *_ = batch
        truth = [(np.exp(row) * row).sum() for row in rows_of(logits)]
        np.testing.assert_allclose(confidence_penalty(logits, padded), truth, rtol=1e-5)
        assert_gradient(lambda x: confidence_penalty(x, None), logits[0])

    @pytest.mark.parametrize("penalty", [smoothing_penalty, confidence_penalty])
    def test_masked_classes(self, penalty):
        """As if they were not there; a frame without any adds nothing."""
        logits = np.array([[0.5, 1.0, -np.inf], [-np.inf] * 3], np.float32)
        of = value_and_gradients[penalty]
        (value, gradient), (truth, expected) = of(logits, None), of(logits[:1, :2], None)
        np.testing.assert_allclose(value, truth, rtol=1e-6)
        np.testing.assert_allclose(gradient[:1, :2], expected, atol=1e-6)
        np.testing.assert_array_equal(gradient[1], 0)
        np.testing.assert_array_equal(gradient[:, 2], 0)

    @pytest.mark.parametrize("penalty", [smoothing_penalty, confidence_penalty])
    def test_nan_is_not_hidden(self, penalty):
        values = jax.jit(penalty)(np.array([[[0, np.nan]], [[0, 1]]], np.float32), None)
        assert np.isnan(values).tolist() == [True, False]


class TestDelayPenalty:
    def test_all_alignments(self, batch):
        logits, padded, *labels = batch
        penalties = jax.jit(delay_penalty)(logits, padded, *labels)
        for row, scores in enumerate(rows_of(logits)):
            names = LABELS[row, IS_LABEL[row]]
            paths = oracles.alignments(scores, names)
            _, share = oracles.posteriors(paths, len(scores), len(names))
            frames = np.arange(len(scores)) - (len(scores) - 1) / 2
            truth = (frames @ share / share.sum(axis=0)).sum()
            np.testing.assert_allclose(penalties[row], truth, atol=1e-5)

    def test_gradient(self, batch):
        assert_gradient(lambda x: delay_penalty(x, None, np.array([1, 2]), None), batch[0][0])

    def test_going_down_moves_labels_forward(self, batch):
        """By their mean frame, of both examples."""
        logits, padded, *labels = batch
        logits = np.where(padded[..., None], 0, logits)
        before, gradient = value_and_gradients[delay_penalty](logits, padded, *labels)
        after, _ = value_and_gradients[delay_penalty](logits - gradient, padded, *labels)
        assert after < before

    def test_edges(self):
        """No labels, too few frames, no frames: 0, with gradient 0."""
        logits, labels = np.zeros((4, 3, 2), np.float32), np.array([[1, 1, 1]] * 4)
        padded = np.arange(3) >= np.array([3, 1, 0, 0])[:, None]
        no_label = np.arange(3) >= np.array([0, 2, 1, 0])[:, None]
        total, gradient = value_and_gradients[delay_penalty](logits, padded, labels, no_label)
        assert total == 0
        np.testing.assert_array_equal(gradient, 0)
        none = np.zeros((0, 2), np.float32)
        assert jax.jit(delay_penalty)(none, None, labels[0, :0], None) == 0


def all_hypotheses(frames, classes):
    """Every label sequence that so many frames can spell, as padded ids."""
    sequences = sorted(oracles.sequences(np.zeros((frames, classes))))
    ids = np.full((len(sequences), frames), -1, np.int32)
    for row, sequence in zip(ids, sequences, strict=True):
        row[: len(sequence)] = sequence
    return sequences, ids


@jax.jit
def mwer_of(logits, logit_paddings, labels, label_paddings, hypotheses):
    """Losses of a batch, and the gradient of their sum."""

    def losses(logits):
        arguments = logits, logit_paddings, labels, label_paddings
        return mwer_loss(*arguments, hypotheses=hypotheses)

    loss, pullback = jax.vjp(losses, logits)
    return loss, *pullback(jnp.ones_like(loss))


@jax.jit
def searched_mwer_of(*arguments):
    def losses(logits):
        return mwer_loss(logits, *arguments[1:], beam_width=15, num_hypotheses=15)

    loss, pullback = jax.vjp(losses, arguments[0])
    return loss, *pullback(jnp.ones_like(loss))


class TestMwerLoss:
    def test_all_hypotheses(self, batch):
        """A beam as wide as there are sequences is the expectation over all of them."""
        logits, padded, labels, no_label = (part[:, :4] for part in batch)
        sequences, ids = all_hypotheses(4, 3)
        searched, gradient = searched_mwer_of(logits, padded, labels, no_label)
        given, given_gradient = mwer_of(logits, padded, labels, no_label, np.stack([ids] * 2))
        for row, used in enumerate(~padded):
            probs = oracles.sequences(oracles.log_softmax(logits[row, used]))
            ref = tuple(labels[row, ~no_label[row]].tolist())
            truth = sum(np.exp(p) * oracles.levenshtein(s, ref) for s, p in probs.items())
            np.testing.assert_allclose([searched[row], given[row]], truth, rtol=1e-5)
        np.testing.assert_allclose(gradient, given_gradient, atol=1e-6)
        np.testing.assert_array_equal(gradient[padded], 0)
        assert len(sequences) == 15

    def test_gradient(self, rng):
        """Of words; label 2 is the space. Hypotheses are no part of it."""
        labels, hypotheses = np.array([1, 2, 1]), np.array([[1, 2, 1], [1, 1, -1], [2, 1, -1]])
        options = {"hypotheses": hypotheses, "separator": 2}

        def loss(logits):
            return mwer_loss(logits, None, labels, None, **options)

        logits = rng.normal(size=(5, 3))
        assert_gradient(loss, logits)
        probs = oracles.sequences(oracles.log_softmax(logits))
        shares = np.exp([probs[1, 2, 1], probs[1, 1], probs[2, 1]])
        truth = shares @ [0, 2, 1] / shares.sum()
        with jax.enable_x64(True):
            np.testing.assert_allclose(jax.jit(loss)(logits), truth, rtol=1e-6)

    @pytest.mark.smoke
    def test_edges(self):
        """No frames; a frame of which two sequences come, in three slots; NaN; what is no label."""
        logits = np.zeros((4, 2, 2), np.float32)
        logits[2] = np.nan
        padded = np.arange(2) >= np.array([0, 1, 2, 2])[:, None]
        labels = np.array([[1]] * 4)
        hypotheses = np.array([[[-1], [1], [7]]] * 3 + [[[0], [7], [8]]])
        loss, gradient = mwer_of(logits, padded, labels, labels < 0, hypotheses)
        np.testing.assert_allclose(loss, [1, 0.5, np.nan, 0], rtol=1e-6)
        np.testing.assert_allclose(gradient[1], [[0.25, -0.25], [0, 0]], rtol=1e-6)
        np.testing.assert_array_equal(gradient[::3], 0)
        loss, _ = searched_mwer_of(logits, padded, labels, labels < 0)
        np.testing.assert_allclose(loss, [1, 0.5, np.nan, 0.25], rtol=1e-6)

    @pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 2, 3)], ids=str)
    def test_hypotheses_of_another_batch(self, shape):
        logits, labels = np.zeros((2, 3, 4), np.float32), np.ones((2, 1), int)
        with pytest.raises(ValueError, match=r"mwer_loss: hypotheses must have .* \*B = \(2,\)"):
            mwer_loss(logits, None, labels, None, hypotheses=np.ones(shape, int))


@pytest.mark.parametrize("function", [delay_penalty, mwer_loss])
def test_options_are_checked_by_the_name_that_was_called(function):
    arguments = np.zeros((3, 4), np.float32), None, np.ones(1, int), None
    for option, value in (("blank_id", 4), ("logits_normalized", 1)):
        with pytest.raises(ValueError, match=f"^{function.__name__}: {option} must be"):
            function(*arguments, **{option: value})


class TestConsistencyLoss:
    @pytest.mark.smoke
    def test_value_and_gradient(self, batch, rng):
        """Each view is drawn to the other: softmax - the other's, halved."""
        one, padded, *_ = batch
        two = np.where(padded[..., None], -1, rng.normal(size=one.shape)).astype(np.float32)
        p, q = ([np.exp(row) for row in rows_of(view)] for view in (one, two))
        truth = [((b - a) * (np.log(b) - np.log(a))).sum() / 2 for a, b in zip(p, q, strict=True)]
        np.testing.assert_allclose(jax.jit(consistency_loss)(one, two, padded), truth, rtol=1e-5)

        def total(one, two):
            return consistency_loss(one, two, padded).sum()

        gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(one, two)
        for row, used in enumerate(FRAMES):
            for gradient, own, other in zip(gradients, (p, q), (q, p), strict=True):
                np.testing.assert_allclose(
                    gradient[row, used], (own[row] - other[row]) / 2, atol=1e-6
                )
                np.testing.assert_array_equal(gradient[row, ~used], 0)

    def test_sure_and_masked_frames(self):
        one = np.array([[200.0, 0, -np.inf], [-np.inf] * 3, [0, 0, -np.inf]], np.float32)
        two = np.array([[0, 200.0, -np.inf], [0, 0, 0], [0, 0, -np.inf]], np.float32)
        value, gradient = jax.jit(jax.value_and_grad(consistency_loss))(one, two, None)
        np.testing.assert_allclose(value, 200, rtol=1e-6)
        chex.assert_tree_all_finite(gradient)
        assert consistency_loss(one, one, None) == 0

    def test_errors(self):
        with pytest.raises(ValueError, match="other_logits must have the shape of logits"):
            consistency_loss(jnp.zeros((2, 3)), jnp.zeros((3, 3)), None)


class TestPurposeLoss:
    """Align With Purpose: alignments, and better ones made of them."""

    @staticmethod
    def earlier(ids):
        """Moved one frame to the left where a blank comes first."""
        moved = jnp.concatenate([ids[..., 1:], jnp.full_like(ids[..., :1], -1)], axis=-1)
        return jnp.where(ids[..., :1] == 0, moved, ids)

    def test_expectation(self):
        """The mean over all alignments by their probability, as many samples see it."""
        logits = np.random.default_rng(3).normal(size=(4, 3)).astype(np.float32)
        labels, samples = np.array([1, 2]), 20_000
        paths = oracles.alignments(oracles.log_softmax(logits), (1, 2))
        shares = np.exp(np.array([path.weight for path in paths]) + oracles.loss(paths))
        log_probs = oracles.log_softmax(logits)

        def gap(path):
            better = [*path[1:], 0] if path[0] == 0 else path
            own, other = (log_probs[range(4), list(ids)].sum() for ids in (path, better))
            return max(own - other + 0.5, 0)

        gaps = np.array([gap(path.classes) for path in paths])
        mean = (shares * gaps).sum()
        deviation = np.sqrt((shares * (gaps - mean) ** 2).sum() / samples)
        found = jax.jit(
            functools.partial(purpose_loss, improve=self.earlier, num_samples=samples, margin=0.5)
        )(jax.random.key(0), logits, None, labels, None)
        np.testing.assert_allclose(found, mean, atol=5 * deviation)

    def test_it_moves_labels_to_the_left(self):
        """A step down the gradient makes earlier alignments likelier; padding has no part in it."""
        logits = np.random.default_rng(3).normal(size=(2, 6, 3)).astype(np.float32)
        logits[1, 4:] = np.nan
        padded = np.array([[0] * 6, [0, 0, 0, 0, 1, 1]])
        labels = np.array([[1, 2], [2, 1]])

        def total(logits):
            key = jax.random.key(0)
            arguments = key, logits, padded, labels, None
            return purpose_loss(*arguments, improve=self.earlier, num_samples=50).sum()

        before, gradient = jax.jit(jax.value_and_grad(total))(logits)
        chex.assert_tree_all_finite(gradient)
        np.testing.assert_array_equal(gradient[1, 4:], 0)
        assert 0 < total(logits - 0.1 * gradient) < before

    def test_what_cannot_be_aligned_costs_nothing(self):
        arguments = jax.random.key(0), jnp.zeros((2, 3)), None, jnp.array([1, 1]), None
        assert purpose_loss(*arguments, improve=self.earlier, margin=1.0) == 0
        spoilt = jnp.array([[0.0, 1.0, 2.0], [0.0, jnp.nan, 0.0]])
        assert jnp.isnan(purpose_loss(arguments[0], spoilt, *arguments[2:], improve=self.earlier))

    def test_another_shape(self):
        arguments = jax.random.key(0), jnp.zeros((2, 3)), None, jnp.array([1]), None
        with pytest.raises(ValueError, match=r"purpose_loss: improve must return the shape"):
            purpose_loss(*arguments, improve=lambda ids: ids[..., 1:])


def test_entropy_regularised_loss(rng):
    """EnCTC: the loss less a share of the alignments' entropy (Liu, Jin and Zhang 2018)."""

    def objective(logits):
        arguments = logits, None, jnp.array([1, 2]), None
        return ctc_loss(*arguments) - 0.2 * alignment_entropy(*arguments)

    assert_gradient(objective, rng.normal(size=(5, 3)))
    gradient = jax.jit(jax.grad(objective))(jnp.zeros((1, 3)))
    np.testing.assert_array_equal(gradient, 0)  # two labels do not fit into one frame


@pytest.mark.parametrize("penalty", [smoothing_penalty, confidence_penalty])
@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (2, 4, 1)])
def test_nothing_to_penalise(penalty, shape):
    logits = np.zeros(shape, np.float32)
    np.testing.assert_array_equal(jax.jit(penalty)(logits, None), np.zeros(shape[0]))
    np.testing.assert_array_equal(jax.jit(consistency_loss)(logits, logits, None), 0)
