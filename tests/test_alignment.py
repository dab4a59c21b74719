"""Forced alignment against all alignments written out, its ties, its invariants, its memory."""

import functools
import itertools
import operator

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import BATCHES, CASES, EDGES, IDS, batch_of
from every_pair import every_pair, every_sequence, padded, some_topologies
from hypothesis import given
from hypothesis import strategies as st
from jaxprs import equations
from oracles import assert_close

from jaxctc import Alignment, forced_align, posteriors

STATIC = ("blank_id", "logits_normalized", "wildcard_id", "checkpoint_every", "band")
compiled_align = jax.jit(forced_align, static_argnames=STATIC)
compiled_posteriors = jax.jit(posteriors, static_argnames=STATIC[:3])


def align(*arguments, **options):
    """In NumPy: every slice of a JAX array is an operation of its own, which compiles."""
    return jax.device_get(compiled_align(*arguments, **options))


def posteriors_of(*arguments, **options):
    return jax.device_get(compiled_posteriors(*arguments, **options))


def check_spans(found, labels, frames_in_use, blank, wildcard=None):
    """What holds for every alignment of one feasible example, as arrays of its own size."""
    path, starts, ends, confidences, score = map(np.asarray, found)
    assert (path[~frames_in_use] == -1).all()
    used = np.flatnonzero(frames_in_use)
    is_there = [place for place, start in enumerate(starts) if start >= 0]
    assert all(place in is_there or labels[place] == wildcard for place in range(len(labels)))
    spelt = oracles.collapse(path[used], blank)
    assert spelt == tuple(labels[place] for place in is_there)
    last = -1
    for place in is_there:
        assert last < starts[place] <= ends[place]
        last = ends[place]
        span = [frame for frame in used if starts[place] <= frame <= last]
        assert {starts[place], last} <= set(span)
        assert (path[span] == labels[place]).all()
        assert 0 <= confidences[place] <= 1
    spans = sum(np.sum((used >= starts[place]) & (used <= ends[place])) for place in is_there)
    assert spans == np.sum(path[used] != blank)
    assert score > -np.inf


def row_of(batch, row):
    return jax.tree.map(lambda part: part[row], batch)


def is_nothing(found, score=-np.inf):
    np.testing.assert_array_equal(found.score, score)
    return all((np.asarray(part) == -1).all() for part in found[:4])


@some_topologies
def test_every_pair(classes, blank):
    every = every_pair(classes, blank)
    batch = align(*every.arguments, blank_id=blank)
    _, shares = posteriors_of(*every.arguments, blank_id=blank)
    for row, (log_probs, labels) in enumerate(zip(every.log_probs, every.labels, strict=True)):
        found, truth = row_of(batch, row), every.truths[row]
        assert_close(found.score, 0.0 - truth.best_loss)
        if not truth.best_paths:
            assert is_nothing(found)
            continue
        frames, count = len(log_probs), len(labels)
        path = np.asarray(found.frame_labels)
        assert tuple(path[:frames].tolist()) in truth.best_paths
        own = found._replace(
            starts=found.starts[:count],
            ends=found.ends[:count],
            confidences=found.confidences[:count],
        )
        check_spans(own, labels, np.arange(len(path)) < frames, blank)
        for place in range(count):
            span = shares[row, int(found.starts[place]) : int(found.ends[place]) + 1, place]
            assert_close(found.confidences[place], np.max(span))


def check(case, found):
    """The alignment of a case; arrays of a batch are longer, by padding."""
    frames = len(case.logits)
    if case.kind != "finite":
        assert is_nothing(found, np.nan if case.kind == "nan" else -np.inf)
        return
    assert (found.frame_labels[frames:] == -1).all()
    places = np.flatnonzero(case.labels_in_use)
    for part in found[1:4]:
        assert (np.delete(part, places) == -1).all()
    path = found.frame_labels[:frames]
    starts, ends, confidences = (part[places] for part in found[1:4])
    own = Alignment(path, starts, ends, confidences, found.score)
    check_spans(own, case.labels[places].tolist(), case.frames_in_use, case.blank)
    assert_close(found.score, 0.0 - case.truth().best_loss)
    weights = {path.classes: path.weight for path in case.alignments()}
    worth = weights[tuple(path[case.frames_in_use].tolist())]
    assert worth >= max(weights.values()) * (1 + 1e-6) - 1e-5


@functools.cache
def all_in_a_batch(blank_id):
    return align(*batch_of(BATCHES[blank_id]), blank_id=blank_id)


@pytest.mark.parametrize("case", EDGES, ids=[case.name for case in EDGES])
def test_contract_alone(case):
    check(case, align(*case.arguments, blank_id=case.blank_id))


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_contract_in_a_batch(case):
    check(case, row_of(all_in_a_batch(case.blank_id), BATCHES[case.blank_id].index(case)))


@pytest.mark.parametrize(
    ("frames", "classes", "values"), [(3, 3, (-1, 0)), (4, 2, (-2, -1, 0)), (5, 2, (-1, 0))]
)
@pytest.mark.parametrize("checkpoint_every", [None, 2])
def test_ties_always_give_an_optimal_path(frames, classes, values, checkpoint_every):
    """All matrices of small integers with all label sequences: the path found is worth its score,
    and none is worth more (pytorch/audio issue 4221)."""
    scores = np.array(list(itertools.product(values, repeat=frames * classes)), np.float32)
    scores = scores.reshape(-1, frames, classes)
    # One shape for all, which compiles once.
    logits = np.full((3**8, 5, 3), -np.inf, np.float32)
    logits[: len(scores), :frames, :classes] = scores
    no_frame = np.broadcast_to(np.arange(5) >= frames, logits.shape[:2])
    for labels in every_sequence(classes, 0, frames):
        paths = oracles.paths_by_spelling(frames, classes, 0).get(labels)
        if not paths:
            continue
        weights = np.stack([scores[:, range(frames), path].sum(axis=1) for path in paths])
        ids = np.full((len(logits), 5), -1)
        ids[:, : len(labels)] = labels
        found = align(
            logits, no_frame, ids, ids < 0,
            logits_normalized=True, checkpoint_every=checkpoint_every,
        )  # fmt: skip
        best = np.asarray(found.score)[: len(scores)]
        np.testing.assert_array_equal(best, weights.max(axis=0))
        taken = np.asarray(found.frame_labels)[: len(scores), :frames]
        worth = np.take_along_axis(scores, taken[..., None], 2).sum((1, 2))
        np.testing.assert_array_equal(worth, best)
        spelt = {oracles.collapse(path) for path in taken.tolist()}
        assert spelt == {labels}


@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0, 0.3, 3, 30]))
def test_invariants(seed, scale):
    """Padding anywhere; with scale 0 nothing but ties."""
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(4, 20, 4)) * scale).astype(np.float32)
    logit_paddings, label_paddings = rng.random((4, 20)) < 0.2, rng.random((4, 7)) < 0.3
    labels = rng.integers(1, 5, (4, 7))  # 4 is the wildcard
    batch = align(logits, logit_paddings, labels, label_paddings, wildcard_id=4)
    for row in range(4):
        places = np.flatnonzero(~label_paddings[row])
        found = row_of(batch, row)
        if found.score == -np.inf:
            assert is_nothing(found)
            continue
        own = found._replace(
            starts=found.starts[places],
            ends=found.ends[places],
            confidences=found.confidences[places],
        )
        check_spans(own, labels[row, places].tolist(), ~logit_paddings[row], 0, wildcard=4)


@pytest.mark.parametrize("penalty", [0.0, 1.5])
def test_wildcards_and_priors(penalty):
    star, frames = 5, 4
    sequences = [
        labels
        for count in range(4)
        for labels in itertools.product((1, 2, star), repeat=count)
        if labels.count(star) <= 2
    ]
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(len(sequences), frames, 3)).astype(np.float32) * 2
    priors = np.log(rng.dirichlet([2, 2, 2])).astype(np.float32)
    ids, paddings = padded(sequences, 3)
    options = {"label_priors": priors, "prior_scale": 0.5}
    options |= {"wildcard_id": star, "wildcard_penalty": penalty}
    batch = align(logits, None, ids, paddings, **options)
    _, shares = posteriors_of(logits, None, ids, paddings, **options)
    for row, labels in enumerate(sequences):
        found = row_of(batch, row)
        scores = oracles.log_softmax(logits[row]) - 0.5 * priors.astype(np.float64)
        paths = oracles.alignments(scores, labels, 0, star, penalty)
        if not paths:
            assert is_nothing(found)
            continue
        best = max(paths, key=lambda path: path.weight)
        assert_close(found.score, best.weight)
        for place in range(len(labels)):
            own = [frame for frame in range(frames) if best.places[frame] == place]
            assert found.starts[place] == (own[0] if own else -1)
            assert found.ends[place] == (own[-1] if own else -1)
            if own:
                assert (found.frame_labels[own[0] : own[-1] + 1] == labels[place]).all()
                assert_close(found.confidences[place], shares[row, own, place].max())
            else:
                assert found.confidences[place] == -1


class TestLongInputs:
    def inputs(self, frames=300, labels=60, batch=2):
        rng = np.random.default_rng(8)
        logits = rng.normal(size=(batch, frames, 6)).astype(np.float32)
        ids = rng.integers(1, 6, (batch, labels))
        return logits, rng.random((batch, frames)) < 0.1, ids, rng.random((batch, labels)) < 0.1

    @pytest.mark.parametrize(
        "checkpoint_every",
        [17, *(pytest.param(every, marks=pytest.mark.slow) for every in (1, 299, 1000))],
    )
    def test_checkpoints_leave_the_path_as_it_is(self, checkpoint_every):
        plain = align(*self.inputs())
        again = align(*self.inputs(), checkpoint_every=checkpoint_every)
        chex.assert_trees_all_close(plain, again, rtol=2e-6)

    @pytest.mark.filterwarnings("ignore:forced_align. band goes:DeprecationWarning")
    def test_a_band_that_holds_the_path_leaves_it_as_it_is(self):
        logits, no_frame, labels, no_label = self.inputs()
        plain = align(*self.inputs())
        for row in range(2):
            starts = plain.starts[row][~no_label[row]]
            frames = np.cumsum(~no_frame[row]) - 1
            middle = frames * ((~no_label[row]).sum() / (~no_frame[row]).sum())
            ends = plain.ends[row][~no_label[row]]
            places = np.arange(len(starts))
            off = np.maximum(np.abs(places - middle[starts]), np.abs(places - middle[ends])).max()
            needed = int(off) + 3
            assert 2 * needed + 1 < labels.shape[1], "a band that leaves something out"
            banded = align(logits[row], no_frame[row], labels[row], no_label[row], band=needed)
            chex.assert_trees_all_close(
                jax.tree.map(operator.itemgetter(row), plain), banded, rtol=2e-6
            )

    @pytest.mark.filterwarnings("ignore:forced_align. band goes:DeprecationWarning")
    @pytest.mark.parametrize("band", [0, 1, 2])
    def test_a_narrow_band(self, band):
        """The best of the paths inside, by enumeration."""
        rng = np.random.default_rng(band)
        for labels in [(1, 2, 1, 2, 1, 2), (1, 2, 1, 2, 2, 1)]:
            logits = rng.normal(size=(8, 3)).astype(np.float32) * 3
            found = align(logits, None, np.array(labels), None, band=band)
            width = 2 * band + 1
            middle = (np.arange(8) * np.float32(len(labels) / 8)).astype(int)
            first = np.clip(middle - band, 0, max(len(labels) - width, 0))
            weights = []
            for path in oracles.alignments(oracles.log_softmax(logits), labels):
                last, inside = -1, True
                for frame, place in enumerate(path.places):
                    # A blank is that of the gap behind the last label.
                    low, high = first[frame], first[frame] + width - (place >= 0)
                    last = max(last, place)
                    column = place if place >= 0 else last + 1
                    inside &= low <= column <= high
                    inside &= frame == 7 or first[frame + 1] <= column
                weights += [path.weight] * bool(inside)
            assert_close(found.score, max(weights, default=-np.inf))

    def test_a_long_path_is_as_good_as_that_of_float64(self):
        rng = np.random.default_rng(1)
        logits = rng.normal(size=(5000, 8)).astype(np.float32)
        labels = rng.integers(1, 8, 700)
        ours = align(logits, None, labels, None)
        with jax.enable_x64(True):
            truth = align(logits.astype(np.float64), None, labels, None)
        log_probs = oracles.log_softmax(logits)
        worth = log_probs[np.arange(5000), np.asarray(ours.frame_labels)].sum()
        np.testing.assert_allclose(worth, truth.score, atol=1e-3)
        np.testing.assert_allclose(ours.score, truth.score, rtol=1e-6)
        np.testing.assert_allclose(ours.confidences, truth.confidences, atol=1e-3)

    @pytest.mark.parametrize("options", [{}, {"logits_normalized": True}], ids=str)
    def test_two_hours_fit(self, options):
        """T = 360 000, N = 5 000: 2 GB, where one table of floats would take 7. Compiled, not run:
        `python -m benchmarks.alignment` runs it."""
        shapes = (
            jax.ShapeDtypeStruct((360_000, 32), jnp.float32),
            None,
            jax.ShapeDtypeStruct((5_000,), jnp.int32),
            None,
        )
        memory = compiled_align.lower(*shapes, **options).compile().memory_analysis()
        assert memory is not None
        total = (
            memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
        )
        assert total < 500e6
        jaxpr = jax.make_jaxpr(functools.partial(forced_align, **options), static_argnums=(1, 3))(
            *shapes
        )
        sizes = [value.aval.size for eqn in equations(jaxpr.jaxpr) for value in eqn.outvars]
        assert max(sizes) <= 360_000 * 32, "nothing larger than the logits"


@pytest.mark.smoke
def test_gradient_of_the_score_is_that_of_the_path(rng):
    logits = rng.normal(size=(6, 4)).astype(np.float32)
    no_frame, ones = np.array([0, 0, 1, 0, 0, 0]), np.ones(9, int)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def slope_and_path(logits, no_label):
        found = forced_align(logits, no_frame, ones, no_label)
        return found.score, found.frame_labels

    slope, path = map(np.asarray, slope_and_path(logits, np.arange(9) >= 2))
    one_hot = (path[:, None] == np.arange(4)).astype(np.float32)
    expected = one_hot - np.exp(oracles.log_softmax(logits))
    expected[2] = 0
    np.testing.assert_allclose(slope, expected, atol=1e-6)
    hopeless, _ = slope_and_path(logits, np.zeros(9, bool))
    np.testing.assert_array_equal(hopeless, 0)


def test_gradient_of_confidences(rng):
    logits = rng.normal(size=(5, 3)).astype(np.float32)

    @jax.jit
    def sure(logits):
        return forced_align(logits, None, np.array([1, 2]), None).confidences.sum()

    slope, step = jax.jit(jax.grad(sure))(logits), rng.normal(size=logits.shape)
    with jax.enable_x64(True):
        wide = logits.astype(np.float64)
        difference = (sure(wide + 1e-6 * step) - sure(wide - 1e-6 * step)) / 2e-6
    np.testing.assert_allclose(np.vdot(slope, step), difference, atol=1e-5)


def test_a_band_is_deprecated():
    with pytest.warns(DeprecationWarning, match=r"band goes in version 0\.3, because it saves"):
        forced_align(np.zeros((3, 2), np.float32), None, np.array([1]), None, band=1)


@pytest.mark.filterwarnings("ignore:forced_align. band goes:DeprecationWarning")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint_every": 0}, "checkpoint_every must be at least 1; got 0"),
        ({"band": -1}, "band must be at least 0; got -1"),
        ({"wildcard_id": 0}, r"wildcard_id must be .* and not the blank 0; got 0\."),
        ({"wildcard_id": -1}, r"wildcard_id must be an id in \[0, 2147483647\), .* got -1\."),
        (
            {"wildcard_id": 2**31 - 1},
            r"wildcard_id must be an id in \[0, 2147483647\), .* got 2147",
        ),
        ({"label_priors": np.zeros(3, np.float32)}, r"label_priors must have shape \(4,\)"),
        (
            {"label_priors": np.zeros(4, np.int32)},
            "label_priors must be real numbers; got an array of int32",
        ),
        ({"wildcard_id": 4, "wildcard_penalty": np.zeros(2)}, "wildcard_penalty must be one real"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=f"forced_align: {message}"):
        forced_align(np.zeros((3, 4), np.float32), None, np.array([1]), None, **options)
