"""Every change of one label, against all paths that spell the changed labels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import BATCHES, CASES, EDGES, NARROW, batch_of
from every_pair import every_pair, every_topology
from jaxprs import dtypes, scans, shapes
from oracles import assert_close

from jaxctc import ctc_loss, insertion_scores, substitution_scores
from jaxctc._core import changes

OPTIONS = ("blank_id", "logits_normalized", "label_loop")


@functools.partial(jax.jit, static_argnames=OPTIONS)
def both(*arguments, **options):
    """One compilation for the two of them."""
    return (
        substitution_scores(*arguments, **options),
        insertion_scores(*arguments, **options),
    )


def changed(labels, classes, blank):
    """Label sequences by place and class: with one replaced or left out, and with one put in."""
    without = [labels[:n] + labels[n + 1 :] for n in range(len(labels))]
    replaced = [
        [None if k == blank else (*labels[:n], k, *labels[n + 1 :]) for k in range(classes)]
        + [without[n]]
        for n in range(len(labels))
    ]
    inserted = [
        [None if k == blank else (*labels[:n], k, *labels[n:]) for k in range(classes)]
        for n in range(len(labels) + 1)
    ]
    return replaced, inserted


def truth(log_probs, labels, blank):
    """Both tables, from all paths."""
    spelt = oracles.sequences(log_probs, blank)
    classes = log_probs.shape[-1]
    labels = tuple(int(label) for label in labels)
    tables = changed(labels, classes, blank)
    widths = classes + 1, classes
    return [
        np.array([[spelt.get(row, -np.inf) for row in rows] for rows in table]).reshape(-1, width)
        for table, width in zip(tables, widths, strict=True)
    ]


@pytest.mark.smoke
@every_topology
def test_every_pair(classes, blank):
    every = every_pair(classes, blank)
    replaced, inserted = jax.device_get(both(*every.arguments, blank_id=blank))
    most = every.arguments[0].shape[-1]
    for row, (log_probs, labels) in enumerate(zip(every.log_probs, every.labels, strict=True)):
        count = len(labels)
        true_replaced, true_inserted = truth(log_probs, labels, blank)
        columns = [*range(classes), most]
        assert_close(replaced[row, :count][:, columns], true_replaced)
        assert_close(inserted[row, :count, :classes], true_inserted[:count])
        assert_close(inserted[row, -1, :classes], true_inserted[-1])
        assert np.isneginf(replaced[row, count:]).all()
        assert np.isneginf(inserted[row, count:-1]).all()


def check(case, replaced, inserted, classes):
    """What the contract says of a case; columns beyond its own classes are impossible."""
    count, own = len(case.labels), case.logits.shape[-1]
    if case.kind == "nan":
        assert np.isnan(replaced[:count][case.labels_in_use][:, own - 1]).all()
        assert np.isnan(inserted[-1][own - 1])
        return
    labels = case.labels[case.labels_in_use]
    true_replaced, true_inserted = truth(case.scores(), labels, case.blank)
    found = replaced[:count][case.labels_in_use]
    columns = [*range(own), classes]
    # As of the loss, after some hundred thousand nats have been added and taken off.
    assert_close(found[:, columns], true_replaced, rtol=1e-5)
    places = [*np.flatnonzero(case.labels_in_use), -1]
    assert_close(inserted[places][:, :own], true_inserted, rtol=1e-5)
    assert np.isneginf(replaced[:count][~case.labels_in_use]).all()


@pytest.mark.parametrize("case", EDGES, ids=[case.name for case in EDGES])
def test_contract_alone(case):
    replaced, inserted = jax.device_get(both(*case.arguments, blank_id=case.blank_id))
    check(case, replaced, inserted, case.logits.shape[-1])


@functools.cache
def all_in_a_batch(blank_id):
    return jax.device_get(both(*batch_of(BATCHES[blank_id]), blank_id=blank_id))


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_contract_in_a_batch(case):
    cases = BATCHES[case.blank_id]
    row = [other.name for other in cases].index(case.name)
    replaced, inserted = all_in_a_batch(case.blank_id)
    check(case, replaced[row], inserted[row], max(other.logits.shape[-1] for other in cases))


def losses_of_changes(logits, labels, **options):
    """Both tables, from a loss for each entry."""
    classes, blank = logits.shape[-1], options.get("blank_id", 0)
    loss = jax.jit(functools.partial(ctc_loss, **options))
    longest = len(labels) + 1

    def score(sequence):
        if sequence is None:
            return -np.inf
        row = np.full(longest, blank, np.int32)
        row[: len(sequence)] = sequence
        return -float(loss(logits, None, row, np.arange(longest) >= len(sequence)))

    tables = changed(tuple(map(int, labels)), classes, blank)
    return [np.array([[score(sequence) for sequence in row] for row in table]) for table in tables]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"logits_normalized": True},
        {"label_loop": False},
        {"label_priors": np.array([-1.0, -0.5, -2.0, -3.0, -0.1], np.float32)},
    ],
    ids=str,
)
def test_equals_the_losses(rng, options):
    logits = rng.normal(size=(40, 5)).astype(np.float32) * 3
    labels = np.array([1, 2, 2, 1, 4, 3, 3, 1], np.int32)
    found = both(logits, None, labels, None, **options)
    for scores, losses in zip(found, losses_of_changes(logits, labels, **options), strict=True):
        assert_close(scores, losses, rtol=2e-6)
    own = np.asarray(found[0])[np.arange(len(labels)), labels]
    loss = jax.jit(ctc_loss, static_argnames=OPTIONS)(logits, None, labels, None, **options)
    assert_close(own, np.full(len(labels), -loss), rtol=2e-6)


def test_classes_in_chunks_say_the_same(rng, monkeypatch):
    """Also where the last chunk overlaps the one before it."""
    logits = rng.normal(size=(2, 12, 11)).astype(np.float32)
    labels = np.array([[1, 2, 10], [3, 3, 0]], np.int32)
    arguments = logits, None, labels, np.array([[0, 0, 0], [0, 0, 1]])
    at_once = both(*arguments)
    monkeypatch.setattr(changes, "MAX_NUMBERS", 1)
    monkeypatch.setattr(changes, "LEAST_CLASSES", 4)
    jax.clear_caches()
    in_chunks = both(*arguments)
    jax.clear_caches()
    for one, other in zip(at_once, in_chunks, strict=True):
        np.testing.assert_array_equal(one, other)


def test_checkpoints_say_the_same(rng, monkeypatch):
    logits = rng.normal(size=(50, 5)).astype(np.float32)
    arguments = logits, None, np.array([1, 2, 2]), None
    at_once = jax.jit(substitution_scores)(*arguments)
    monkeypatch.setattr("jaxctc._core.frames.MAX_RESIDENT_BYTES", 0)
    jax.clear_caches()
    in_stretches = jax.jit(substitution_scores)(*arguments)
    jax.clear_caches()
    np.testing.assert_allclose(at_once, in_stretches, rtol=3e-7)


def test_long_inputs_are_right_in_float32(x64, rng):
    """WIDE numbers: no rounding that grows with the size of a log-probability."""
    logits = rng.normal(size=(2000, 6)) * 3
    labels = rng.integers(1, 6, 300).astype(np.int32)
    score = jax.jit(substitution_scores)
    truth = score(logits, None, labels, None)
    found = score(logits.astype(np.float32), None, labels, None)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, truth, rtol=3e-7)


def test_gradient_is_that_of_the_losses(x64, rng):
    logits = rng.normal(size=(7, 4))
    labels = np.array([1, 2, 2], np.int32)

    def loss_of(logits, place, k):
        changed = jnp.asarray(labels).at[place].set(k)
        return -ctc_loss(logits, None, changed, None)

    for dtype, tolerance in (("float64", 1e-10), ("float32", 1e-5)):
        jacobian = jax.jit(jax.jacrev(lambda x: substitution_scores(x, None, labels, None)))
        found = jacobian(logits.astype(dtype))
        for place, k in [(0, 1), (1, 1), (1, 2), (2, 3)]:
            expected = jax.grad(loss_of)(logits, place, k)
            np.testing.assert_allclose(found[place, k], expected, atol=tolerance)
        without = jax.grad(lambda x: -ctc_loss(x, None, labels[[0, 2]], None))(logits)
        np.testing.assert_allclose(found[1, 4], without, atol=tolerance)
        np.testing.assert_array_equal(found[:, 0], 0)


def test_one_class_with_nan_spoils_no_other(rng):
    """With log-probabilities given, only what is asked for counts."""
    log_probs = np.log(rng.dirichlet(np.ones(4), 6)).astype(np.float32)
    spoilt = log_probs.copy()
    spoilt[2, 3] = np.nan
    labels = np.array([1, 2], np.int32)
    before = both(log_probs, None, labels, None, logits_normalized=True)
    after = both(spoilt, None, labels, None, logits_normalized=True)
    for one, other in zip(before, after, strict=True):
        assert np.isnan(other[:, 3]).all()
        np.testing.assert_array_equal(np.delete(one, 3, 1), np.delete(other, 3, 1))


def test_scores_far_above_the_labels_do_not_count(rng):
    """A class that is not among the labels, and a thousand nats more likely in every frame."""
    scores = rng.normal(size=(3000, 4)).astype(np.float32)
    scores[:, 3] += 1000
    labels = np.array([1, 1], np.int32)
    found = jax.jit(functools.partial(substitution_scores, logits_normalized=True))(
        scores, None, labels, None
    )
    assert np.isfinite(found[:, 1:]).all()
    loss = jax.jit(functools.partial(ctc_loss, logits_normalized=True))(scores, None, labels, None)
    # Three million nats are taken off and added again, each to 24 bits.
    np.testing.assert_allclose(found[0, 1], -loss, atol=1.0)


@pytest.mark.parametrize("dtype", NARROW)
def test_narrow_logits(rng, dtype):
    logits = jnp.asarray(rng.normal(size=(6, 4)), dtype)
    found = both(logits, None, np.array([1, 2]), None)
    wide = both(logits.astype(jnp.float32), None, np.array([1, 2]), None)
    for one, other in zip(found, wide, strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_array_equal(one, other)


def test_one_pass_over_the_frames():
    """Steps by frame, whatever the numbers of labels and classes; no float64 with x64 on."""
    arguments = jnp.zeros((2, 30, 7), jnp.float32), None, jnp.ones((2, 9), jnp.int32), None
    with jax.enable_x64(True):
        jaxpr = jax.make_jaxpr(lambda *a: substitution_scores(*a))(*arguments)
    lengths = [scan.params["length"] for scan in scans(jaxpr.jaxpr)]
    assert sorted(lengths)[-2:] == [30, 30]
    assert max(lengths) == 30
    assert not {"float64", "complex128"} & dtypes(jaxpr.jaxpr)
    assert shapes(jaxpr.jaxpr.outvars) == [(2, 9, 8)]
