"""Rows, posteriors, durations, entropy and samples, each against all alignments written out."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import BATCHES, CASES, EDGES, IDS, batch_of
from every_pair import every_pair, some_topologies
from oracles import assert_close

from jaxctc import (
    alignment_entropy,
    backward_log_probs,
    collapse,
    ctc_loss,
    expected_durations,
    forward_log_probs,
    posteriors,
    sample_alignments,
)

OPTIONS = ("blank_id", "logits_normalized", "wildcard_id")


@functools.partial(jax.jit, static_argnames=OPTIONS)
def everything(*arguments, **options):
    """One compilation for all of it."""
    return {
        "forward": forward_log_probs(*arguments, **options),
        "backward": backward_log_probs(*arguments, **options),
        "posteriors": posteriors(*arguments, **options),
        "durations": expected_durations(*arguments, **options),
        "entropy": alignment_entropy(*arguments, **options),
    }


@jax.jit
def rows_of(*arguments):
    return {
        "forward": forward_log_probs(*arguments),
        "backward": backward_log_probs(*arguments),
    }


loss_of = jax.jit(ctc_loss, static_argnames=OPTIONS)


@functools.partial(jax.jit, static_argnames=OPTIONS)
def loss_and_gradient(logits, *rest, **options):
    loss, pullback = jax.vjp(lambda logits: ctc_loss(logits, *rest, **options), logits)
    return loss, *pullback(jnp.ones_like(loss))


@functools.partial(jax.jit, static_argnames=(*OPTIONS, "num_samples"))
def samples_of(key, *arguments, **options):
    return sample_alignments(key, *arguments, **options)


@pytest.mark.smoke
@some_topologies
def test_every_pair(classes, blank):
    every = every_pair(classes, blank)
    # In NumPy: every slice of a JAX array is an operation of its own, which compiles.
    found = jax.device_get(everything(*every.arguments, blank_id=blank))
    width = every.arguments[2].shape[1]
    for row, (log_probs, labels) in enumerate(zip(every.log_probs, every.labels, strict=True)):
        frames, count = len(log_probs), len(labels)
        paths = oracles.alignments(log_probs, labels, blank)
        in_blank, in_label = oracles.posteriors(paths, frames, count)
        assert_close(found["posteriors"].blank[row, :frames], in_blank)
        assert_close(found["posteriors"].label[row, :frames, :count], in_label)
        np.testing.assert_array_equal(found["posteriors"].blank[row, frames:], 0)
        np.testing.assert_array_equal(found["posteriors"].label[row, frames:], 0)
        np.testing.assert_array_equal(found["posteriors"].label[row, :, count:], 0)
        durations = np.pad(in_label.sum(axis=0), (0, width - count))
        assert_close(found["durations"][row], durations, rtol=1e-5)
        assert_close(found["entropy"][row], oracles.entropy(paths), rtol=1e-5)
        for name in ("forward", "backward"):
            truth = getattr(oracles, f"{name}_rows")(log_probs, labels, blank)
            for rows, true_rows, size in zip(found[name], truth, (count + 1, count), strict=True):
                assert_close(rows[:frames, row, :size], true_rows)
                assert np.all(np.isneginf(rows[:, row, size:]))


@functools.cache
def all_in_a_batch(blank_id):
    return jax.device_get(everything(*batch_of(BATCHES[blank_id]), blank_id=blank_id))


def check(case, found, read):
    """What `everything` says of a case, read out of its arrays by `read`."""
    blank, label = read(found["posteriors"].blank), read(found["posteriors"].label)
    frames, count = case.logits.shape[0], len(case.labels)
    durations, entropy = read(found["durations"])[:count], read(found["entropy"])
    if case.kind == "nan":
        in_use = label[:frames, :count][:, case.labels_in_use]
        for part in (blank[:frames], in_use, durations[case.labels_in_use], entropy):
            assert np.isnan(part).all()
        return
    paths = case.alignments()
    in_blank, in_label = oracles.posteriors(
        paths, case.frames_in_use.sum(), case.labels_in_use.sum()
    )
    true_blank, true_label = np.zeros(frames), np.zeros((frames, count))
    true_blank[case.frames_in_use] = in_blank
    true_label[np.ix_(case.frames_in_use, case.labels_in_use)] = in_label
    assert_close(blank[:frames], true_blank)
    assert_close(label[:frames, :count], true_label)
    assert_close(durations, true_label.sum(axis=0), rtol=1e-5)
    assert_close(entropy, oracles.entropy(paths), rtol=1e-5)
    assert bool(paths) == (case.kind == "finite")


@pytest.mark.parametrize("case", EDGES, ids=[case.name for case in EDGES])
def test_contract_alone(case):
    check(case, everything(*case.arguments, blank_id=case.blank_id), np.asarray)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_contract_in_a_batch(case):
    row = BATCHES[case.blank_id].index(case)
    check(case, all_in_a_batch(case.blank_id), lambda part: part[row])


def test_rows_of_a_broken_example_are_nan_and_padded_rows_repeat():
    logits = np.random.default_rng(0).normal(size=(3, 6, 4)).astype(np.float32)
    logits[1, 2, 3] = np.nan
    paddings = np.array([[1, 0, 0, 1, 0, 1], [1, 0, 0, 1, 0, 1], [0, 0, 0, 1, 1, 1]])
    logits[2, :3] = logits[0, paddings[0] == 0]
    found = jax.device_get(rows_of(logits, paddings, np.array([[1, 2]] * 3), None))
    order = {"forward": [0, 1, 1, 2, 2], "backward": [0, 0, 1, 2, 2]}
    for name, edge, at in [("forward", 0, 0), ("backward", 5, 2)]:
        rest = np.delete(np.arange(6), edge)
        for rows in found[name]:
            np.testing.assert_array_equal(rows[rest, 0], rows[order[name], 2])
            assert np.isnan(rows[:, 1]).all()
        np.testing.assert_array_equal(found[name].blank[edge, 0] == 0, np.arange(3) == at)
        assert np.isneginf(found[name].label[edge, 0]).all()


@pytest.mark.smoke
def test_softmax_less_posteriors_is_the_gradient(rng):
    """And forward times backward, less what both count, is the posterior: all of it twice."""
    logits = (rng.normal(size=(3, 60, 7)) * 3).astype(np.float32)
    labels = rng.integers(1, 7, (3, 12))
    arguments = logits, rng.random((3, 60)) < 0.2, labels, rng.random((3, 12)) < 0.2
    found, (loss, gradient) = jax.device_get(
        (everything(*arguments), loss_and_gradient(*arguments))
    )
    by_class = np.einsum("btn,bnk->btk", found["posteriors"].label, np.eye(7)[labels])
    by_class[..., 0] = found["posteriors"].blank
    softmax = np.where(arguments[1][..., None], 0, np.exp(oracles.log_softmax(logits)))
    np.testing.assert_allclose(gradient, softmax - by_class, atol=2e-6)

    log_probs = np.moveaxis(oracles.log_softmax(logits), 1, 0)
    joint = (
        found["forward"].blank + found["backward"].blank - log_probs[..., :1] + loss[None, :, None]
    )
    in_use = ~arguments[1]
    np.testing.assert_allclose(
        np.exp(joint).sum(axis=-1).T[in_use], found["posteriors"].blank[in_use], atol=1e-4
    )


@pytest.mark.slow
def test_posteriors_of_long_inputs(rng):
    """WIDE against LOG in float64."""
    logits = rng.normal(size=(1000, 16)).astype(np.float32) * 3
    labels = rng.integers(1, 16, 150).astype(np.int32)
    ours = everything(logits, None, labels, None)
    with jax.enable_x64(True):
        truth = everything(logits.astype(np.float64), None, labels, None)
    np.testing.assert_allclose(ours["posteriors"].label, truth["posteriors"].label, atol=5e-6)
    np.testing.assert_allclose(ours["durations"], truth["durations"], rtol=3e-6)
    np.testing.assert_allclose(ours["entropy"], truth["entropy"], rtol=3e-6)
    for name in ("forward", "backward"):
        np.testing.assert_allclose(ours[name].blank, truth[name].blank, rtol=1e-6, atol=1e-5)
        np.testing.assert_allclose(ours[name].label, truth[name].label, rtol=1e-6, atol=1e-5)
    assert (ours["durations"] >= 1 - 1e-5).all()


def test_narrow_floats():
    """Computed in float32 from the rounded logits."""
    logits, *arguments = batch_of(BATCHES[0])
    logits = jnp.asarray(logits, jnp.bfloat16)
    narrow = everything(logits, *arguments, blank_id=0)
    wide = everything(logits.astype(jnp.float32), *arguments, blank_id=0)
    chex.assert_trees_all_equal_shapes_and_dtypes(narrow, wide)
    chex.assert_trees_all_close(narrow, wide, rtol=1e-5, atol=1e-6)


def finite(logits, *rest):
    """What `everything` finds, and 0 for log 0."""
    found = everything(logits, *rest)
    return jax.tree.map(lambda part: jnp.where(part == -jnp.inf, 0, part), found)


finite_values = jax.jit(finite)
jacobian = jax.jit(jax.jacrev(finite))
FRAMES = np.array([0, 0, 1, 0, 0])


def test_derivatives():
    """Against differences in float64; forward mode is what reverse mode transposes."""
    logits = np.random.default_rng(4).normal(size=(5, 3)).astype(np.float32)
    logits[2] = np.nan  # a padded frame
    rest = FRAMES, np.array([1, 1, 0, 0]), np.array([0, 0, 1, 1])
    slopes = jacobian(logits, *rest)
    with jax.enable_x64(True):
        wide = logits.astype(np.float64)
        for place in np.ndindex(wide.shape):
            nudge = np.zeros_like(wide)
            nudge[place] = 5e-7
            after, before = (finite_values(wide + sign * nudge, *rest) for sign in (1, -1))
            for slope, one, other in zip(
                *map(jax.tree.leaves, (slopes, after, before)), strict=True
            ):
                np.testing.assert_allclose(slope[(..., *place)], (one - other) / 1e-6, atol=1e-5)
    forward = jax.eval_shape(jax.jacfwd(finite), logits, *rest)
    assert jax.tree.map(jnp.shape, forward) == jax.tree.map(jnp.shape, slopes)


def test_derivatives_where_nothing_is_possible_are_zero():
    """Too many labels, and none at all."""
    logits, labels = np.zeros((5, 3), np.float32), np.array([1, 1, 2, 2])
    logits[:, 1:] = -np.inf
    for no_label in (np.zeros(4, int), np.ones(4, int)):
        slopes = jacobian(logits, FRAMES, labels, no_label)
        for name in ("posteriors", "durations", "entropy"):
            chex.assert_trees_all_equal(slopes[name], jax.tree.map(jnp.zeros_like, slopes[name]))
    slopes = jax.eval_shape(jax.jacrev(finite), logits, FRAMES, labels[:0], None)
    assert slopes["entropy"].shape == (5, 3)


def test_sure_entropy_is_not_negative(rng):
    path = rng.integers(0, 5, (8, 40))
    logits = np.where(path[..., None] == np.arange(5), np.float32(25), np.float32(0))
    labels = np.asarray(jax.jit(collapse)(path)[0])
    entropy = jax.jit(alignment_entropy)(logits, None, labels, labels < 0)
    assert (entropy >= 0).all()
    assert entropy.max() < 1e-6


def test_entropy_of_a_single_alignment_is_zero(rng):
    """Five equal labels take all of nine frames."""
    logits = rng.normal(size=(32, 9, 3)).astype(np.float32)
    np.testing.assert_array_equal(
        jax.jit(alignment_entropy)(logits, None, np.ones((32, 5), int), None), 0
    )


STAR = 5
STARRED = [
    labels
    for count in range(4)
    for labels in itertools.product((1, 2, STAR), repeat=count)
    if labels.count(STAR) <= 2
]


class TestWildcardsAndPriors:
    """Small lattices with all placements of up to two wildcards, against all alignments."""

    def batch(self, frames):
        rng = np.random.default_rng(frames)
        logits = rng.normal(size=(len(STARRED), frames, 3)).astype(np.float32) * 2
        priors = np.log(rng.dirichlet([2, 2, 2], len(STARRED))).astype(np.float32)
        ids = np.full((len(STARRED), 3), -1)
        for row, labels in zip(ids, STARRED, strict=True):
            row[: len(labels)] = labels
        return logits, priors, ids

    @pytest.mark.parametrize("frames", [1, pytest.param(4, marks=pytest.mark.smoke)])
    @pytest.mark.parametrize(("penalty", "scale"), [(0.0, 0.0), (1.5, 0.0), (0.5, 0.7)], ids=str)
    def test_against_enumeration(self, frames, penalty, scale):
        logits, priors, ids = self.batch(frames)
        options = {"wildcard_id": STAR, "wildcard_penalty": penalty}
        options |= {"label_priors": priors, "prior_scale": scale}
        # One shape for all numbers of frames, which compiles once.
        rest = ((0, 0), (0, 4 - frames), (0, 0))
        no_frame = np.broadcast_to(np.arange(4) >= frames, (len(STARRED), 4))
        arguments = np.pad(logits, rest, constant_values=np.nan), no_frame, ids, ids < 0
        found = jax.device_get(everything(*arguments, **options))
        losses = np.asarray(loss_of(*arguments, **options))
        for row, labels in enumerate(STARRED):
            scores = oracles.log_softmax(logits[row]) - scale * priors[row].astype(np.float64)
            paths = oracles.alignments(scores, labels, 0, STAR, penalty)
            blank, label = oracles.posteriors(paths, frames, len(labels))
            assert_close(losses[row], oracles.loss(paths), rtol=1e-5)
            assert_close(found["posteriors"].blank[row, :frames], blank)
            assert_close(found["posteriors"].label[row, :frames, : len(labels)], label)
            assert_close(found["durations"][row, : len(labels)], label.sum(axis=0), rtol=1e-5)
            assert_close(found["entropy"][row], oracles.entropy(paths), rtol=1e-5)

    @pytest.mark.parametrize("max_approx", [False, True])
    def test_gradient(self, max_approx):
        """With respect to logits, priors, their scale and the penalty, by float64 differences."""
        logits, priors, ids = self.batch(3)
        keep = np.array(
            [
                len(oracles.alignments(x, y, 0, STAR)) > 0
                for x, y in zip(logits, STARRED, strict=True)
            ]
        )

        @jax.jit
        def total(logits, priors, scale, penalty):
            losses = ctc_loss(
                logits, None, ids, ids < 0, label_priors=priors, prior_scale=scale,
                wildcard_id=STAR, wildcard_penalty=penalty, max_approx=max_approx,
            )  # fmt: skip
            return jnp.sum(jnp.where(keep, losses, jnp.zeros_like(losses)))

        arguments = logits, priors, np.float32(0.7), np.float32(0.5)
        found = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3)))(*arguments)
        rng = np.random.default_rng(0)
        with jax.enable_x64(True):
            wide = [np.asarray(part, np.float64) for part in arguments]
            for which, slope in enumerate(found):
                step = rng.normal(size=np.shape(slope)) * 1e-6
                there, back = ([*wide] for _ in range(2))
                there[which], back[which] = wide[which] + step, wide[which] - step
                difference = (total(*there) - total(*back)) / 2e-6
                np.testing.assert_allclose(
                    np.vdot(slope, step / 1e-6), difference, rtol=1e-4, atol=1e-4
                )

    def test_an_infinite_penalty_is_no_wildcard(self):
        logits, _, ids = self.batch(4)
        with_star = loss_of(logits, None, ids, ids < 0, wildcard_id=STAR, wildcard_penalty=jnp.inf)
        without = loss_of(logits, None, ids, (ids < 0) | (ids == STAR))
        assert_close(with_star, np.asarray(without))

    def test_anything_goes_for_nothing(self, rng):
        logits = rng.normal(size=(50, 6)).astype(np.float32) * 4
        labels = np.array([STAR + 9])
        loss, slope = loss_and_gradient(logits, None, labels, None, wildcard_id=STAR + 9)
        np.testing.assert_allclose(loss, 0, atol=1e-5)
        np.testing.assert_allclose(slope, 0, atol=1e-6)

    def test_a_class_that_shares_the_number_is_no_wildcard(self):
        """Id K is no class, unless it is the wildcard."""
        logits = np.zeros((3, 4), np.float32)
        assert loss_of(logits, None, np.array([4]), None, wildcard_id=7) == np.inf
        assert np.isfinite(loss_of(logits, None, np.array([4]), None, wildcard_id=4))

    def test_padding_and_nan_as_ever(self, rng):
        logits = rng.normal(size=(3, 6, 4)).astype(np.float32)
        logits[1, 3:], logits[2, 1, 3] = np.nan, np.nan
        paddings = np.array([[0] * 6, [0, 0, 0, 1, 1, 1], [0] * 6])
        labels = np.array([[1, 7, 2]] * 3)
        options = {"wildcard_id": 7, "label_priors": np.zeros(4, np.float32)}
        loss, slope = loss_and_gradient(logits, paddings, labels, None, **options)
        alone = oracles.alignments(oracles.log_softmax(logits[1, :3]), (1, 7, 2), wildcard=7)
        assert_close(loss[1], oracles.loss(alone))
        assert np.isnan(loss[2])
        assert not np.isnan(slope[:2]).any()
        np.testing.assert_array_equal(slope[1, 3:], 0)


class TestSamples:
    def frequencies(self, samples):
        rows, counts = np.unique(np.asarray(samples), axis=0, return_counts=True)
        return {tuple(row.tolist()): count for row, count in zip(rows, counts, strict=True)}

    @pytest.mark.parametrize(
        ("labels", "options"),
        [
            ((1, 1), {}),
            ((1, 2), {}),
            ((), {}),
            ((1, 5), {"wildcard_id": 5, "wildcard_penalty": 0.5}),
        ],
        ids=str,
    )
    def test_frequencies(self, labels, options):
        """Each alignment as often as its probability says, by Pearson's test."""
        logits = np.random.default_rng(2).normal(size=(4, 3)).astype(np.float32)
        count = 20_000
        ids = np.array([*labels, 0, 0][:2])
        drawn = samples_of(
            jax.random.key(1), logits, None, ids, np.arange(2) >= len(labels),
            num_samples=count, **options,
        )  # fmt: skip
        seen = self.frequencies(drawn)
        paths = oracles.alignments(
            oracles.log_softmax(logits),
            labels,
            0,
            options.get("wildcard_id"),
            options.get("wildcard_penalty", 0.0),
        )
        expected = {
            path.classes: count * np.exp(path.weight + oracles.loss(paths)) for path in paths
        }
        assert set(seen) <= set(expected)
        chi2 = sum((seen.get(path, 0) - mean) ** 2 / mean for path, mean in expected.items())
        freedom = len(expected) - 1
        assert chi2 < freedom + 5 * np.sqrt(2 * freedom) + 1

    @pytest.mark.parametrize("blank_id", BATCHES)
    def test_contract(self, blank_id):
        cases = BATCHES[blank_id]
        batch = samples_of(jax.random.key(0), *batch_of(cases), blank_id=blank_id, num_samples=3)
        for case, drawn in zip(cases, np.asarray(batch), strict=True):
            frames = len(case.logits)
            assert (drawn[:, frames:] == -1).all()
            assert (drawn[:, :frames][:, ~case.frames_in_use] == -1).all()
            possible = (
                {path.classes for path in case.alignments()} if case.kind == "finite" else set()
            )
            for row in drawn[:, :frames][:, case.frames_in_use]:
                assert tuple(row.tolist()) in possible if possible else (row == -1).all(), case.name

    def test_examples_and_keys_differ(self):
        arguments = jnp.zeros((2, 30, 4)), None, jnp.array([[1, 2]] * 2), None
        first, again, other = (
            np.asarray(samples_of(jax.random.key(seed), *arguments, num_samples=4))
            for seed in (0, 0, 1)
        )
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()
        assert len({tuple(row.tolist()) for row in first.reshape(8, 30)}) == 8

    def test_num_samples_is_checked(self):
        with pytest.raises(ValueError, match="num_samples must be at least 0; got -1"):
            sample_alignments(
                jax.random.key(0), jnp.zeros((3, 2)), None, jnp.array([1]), None, num_samples=-1
            )
