"""Without label loops a label takes one frame: everything against every path written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from every_pair import every_sequence, padded

import jaxctc

FRAMES, BLANK = 4, 1
LABELS = [*every_sequence(3, BLANK, FRAMES + 1)]
RNG = np.random.default_rng(11)
LOGITS = RNG.normal(size=(len(LABELS), FRAMES + 2, 3)).astype(np.float32) * 2
# Padding between frames, which must not count as a frame in which a label could end.
PADDINGS = np.tile(np.array([False, True, False, False, True, False]), (len(LABELS), 1))
ARGUMENTS = (LOGITS, PADDINGS, *padded(LABELS, FRAMES + 1))
OPTIONS = {"blank_id": BLANK, "label_loop": False}


@pytest.fixture(scope="module")
def truths():
    """All alignments of every pair."""
    log_probs = oracles.log_softmax(LOGITS[:, ~PADDINGS[0]])
    return [
        oracles.alignments(scores, labels, BLANK, label_loop=False)
        for scores, labels in zip(log_probs, LABELS, strict=True)
    ]


@functools.partial(jax.jit, static_argnames="semiring")
def compiled_loss_and_gradient(logits, *rest, semiring):
    def loss(logits):
        return jaxctc.ctc_loss(logits, *rest, **OPTIONS, max_approx=semiring == "max")

    value, pullback = jax.vjp(loss, logits)
    return value, *pullback(jnp.ones_like(value))


# Results in NumPy: every slice of a JAX array is an operation of its own, which compiles.
def loss_and_gradient(*arguments, semiring="sum"):
    return jax.device_get(compiled_loss_and_gradient(*arguments, semiring=semiring))


@pytest.mark.smoke
def test_loss_and_gradient(truths):
    loss, gradient = loss_and_gradient(*ARGUMENTS)
    oracles.assert_close(loss, [oracles.loss(paths) for paths in truths])
    softmax = np.exp(oracles.log_softmax(LOGITS[:, ~PADDINGS[0]]))
    for paths, labels, expected, found in zip(truths, LABELS, softmax, gradient, strict=True):
        if not paths:
            np.testing.assert_array_equal(found, 0)
            continue
        blank, label = oracles.posteriors(paths, FRAMES, len(labels))
        expected[:, BLANK] -= blank
        for place, name in enumerate(labels):
            expected[:, name] -= label[:, place]
        np.testing.assert_allclose(found[~PADDINGS[0]], expected, atol=2e-6)
        np.testing.assert_array_equal(found[PADDINGS[0]], 0)


def test_float64(truths):
    """Which LOG computes, and with it all second derivatives."""
    with jax.enable_x64(True):
        wide = (LOGITS[:12].astype(np.float64), *(part[:12] for part in ARGUMENTS[1:]))
        loss, gradient = loss_and_gradient(*wide)
    np.testing.assert_allclose(loss, [oracles.loss(paths) for paths in truths[:12]], rtol=1e-12)
    _, narrow = loss_and_gradient(*ARGUMENTS)
    np.testing.assert_allclose(gradient, narrow[:12], atol=2e-6)


def test_posteriors_and_entropy(truths):
    @jax.jit
    def all_of(*arguments):
        shares = jaxctc.posteriors(*arguments, **OPTIONS)
        return *shares, jaxctc.alignment_entropy(*arguments, **OPTIONS)

    blank, label, entropy = jax.device_get(all_of(*ARGUMENTS))
    for row, paths in enumerate(truths):
        count = len(LABELS[row])
        expected = oracles.posteriors(paths, FRAMES, count)
        np.testing.assert_allclose(blank[row, ~PADDINGS[0]], expected[0], atol=2e-6)
        np.testing.assert_allclose(label[row, ~PADDINGS[0], :count], expected[1], atol=2e-6)
        duration = label[row, :, :count].sum(axis=0)
        np.testing.assert_allclose(duration, float(len(paths) > 0), atol=2e-6)
        np.testing.assert_allclose(entropy[row], oracles.entropy(paths), atol=2e-6)


def test_wildcards():
    """In front, between and behind, where without loops labels need no blank beside them."""
    star = 3
    sequences = [labels for labels in every_sequence(star + 1, BLANK, 3) if star in labels]
    ids, no_label = padded(sequences, 3)
    options = OPTIONS | {"wildcard_id": star, "wildcard_penalty": 0.5}

    @jax.jit
    def loss_and_shares(*arguments):
        return jaxctc.ctc_loss(*arguments, **options), jaxctc.posteriors(*arguments, **options)

    arguments = LOGITS[: len(ids)], PADDINGS[: len(ids)], ids, no_label
    loss, shares = jax.device_get(loss_and_shares(*arguments))
    log_probs = oracles.log_softmax(arguments[0][:, ~PADDINGS[0]])
    for row, (scores, labels) in enumerate(zip(log_probs, sequences, strict=True)):
        paths = oracles.alignments(scores, labels, BLANK, star, 0.5, label_loop=False)
        blank, label = oracles.posteriors(paths, FRAMES, len(labels))
        oracles.assert_close(loss[row], oracles.loss(paths), rtol=1e-5)
        np.testing.assert_allclose(shares.blank[row, ~PADDINGS[0]], blank, atol=2e-6)
        found = shares.label[row, ~PADDINGS[0], : len(labels)]
        np.testing.assert_allclose(found, label, atol=2e-6)


def test_forced_align(truths):
    @jax.jit
    def best_and_spelt(*arguments):
        best = jaxctc.forced_align(*arguments, **OPTIONS)
        return best, jaxctc.collapse(best.frame_labels, PADDINGS, **OPTIONS)[0]

    best, spelt = jax.device_get(best_and_spelt(*ARGUMENTS))
    loss, _ = loss_and_gradient(*ARGUMENTS, semiring="max")
    np.testing.assert_allclose(best.score, -loss, rtol=1e-6)
    np.testing.assert_array_equal(best.starts, best.ends)
    for row, paths in enumerate(truths):
        if not paths:
            np.testing.assert_array_equal(best.frame_labels[row], -1)
            continue
        path = max(paths, key=lambda path: path.weight)
        assert tuple(best.frame_labels[row, ~PADDINGS[0]].tolist()) == path.classes
        assert tuple(label for label in spelt[row].tolist() if label >= 0) == LABELS[row]


def test_samples_are_alignments(truths):
    draw = functools.partial(jaxctc.sample_alignments, num_samples=20, **OPTIONS)
    samples = np.asarray(jax.jit(draw)(jax.random.key(0), *ARGUMENTS))
    for drawn, paths in zip(samples[..., ~PADDINGS[0]], truths, strict=True):
        allowed = {path.classes for path in paths} or {(-1,) * FRAMES}
        assert set(map(tuple, drawn.tolist())) <= allowed


def test_feasibility(truths):
    feasible = jax.jit(functools.partial(jaxctc.is_feasible, **OPTIONS))(*ARGUMENTS)
    np.testing.assert_array_equal(feasible, [len(paths) > 0 for paths in truths])
    lengths = [len(labels) for labels in LABELS]
    required = jaxctc.required_frames(*ARGUMENTS[2:], label_loop=False)
    np.testing.assert_array_equal(required, lengths)
    logits, labels = np.zeros((2, 3)), np.array([2, 2])
    jaxctc.validate(logits, None, labels, None, **OPTIONS)
    with pytest.raises(ValueError, match="2 frames for labels that require 3"):
        jaxctc.validate(logits, None, labels, None, blank_id=BLANK)


def test_greedy_decode():
    logits = jax.nn.one_hot(jnp.array([2, 2, 1, 0]), 3)
    best = jaxctc.greedy_decode(logits, None, **OPTIONS)
    assert best.labels.tolist() == [2, 2, 0, -1]
    np.testing.assert_array_equal(best.starts, [0, 1, 3, -1])
    np.testing.assert_array_equal(best.ends, [0, 1, 3, -1])
