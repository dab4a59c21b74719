"""Against every path of small lattices, against a plain search with dictionaries, and in pieces."""

import functools
import itertools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import assert_close

from jaxctc import (
    beam_finish,
    beam_init,
    beam_step,
    ctc_loss,
    forced_align,
    hot_words,
    prefix_beam_search,
    read_arpa,
)
from jaxctc.decoding import beam_search

FRAMES, CLASSES, EVERY = 5, 3, 64  # a beam as wide as there are label sequences
SEEDS = st.integers(0, 2**32 - 1)
STATIC = (
    "beam_width",
    "blank_id",
    "logits_normalized",
    "max_length",
    "num_hypotheses",
    "times",
    "top_k",
)
search = jax.jit(prefix_beam_search, static_argnames=STATIC)
search_all = functools.partial(search, beam_width=EVERY, num_hypotheses=EVERY)


def _advance(table, state, token):
    return table[state, token], token


def _end(table, state):
    return table[state, 0]


def bigrams(table):
    """A model of one's own: `table[last, token]`, where 0 is the start and the end."""
    table = jnp.asarray(table)
    return jnp.int32(0), *(jax.tree_util.Partial(part, table) for part in (_advance, _end))


def worth(table, labels):
    """What `bigrams` says to a whole sequence."""
    states = (0, *labels)
    return sum(table[a, b] for a, b in zip(states, (*labels, 0), strict=True))


def n_best(hypotheses):
    """Label tuples and scores of the slots in use."""
    used = np.asarray(hypotheses.scores) > -np.inf
    labels, lengths = np.asarray(hypotheses.labels), np.asarray(hypotheses.lengths)
    assert (labels[~used] == -1).all()
    assert (lengths[~used] == 0).all()
    assert ((labels >= 0).sum(axis=-1) == lengths).all()
    rows = zip(labels[used], lengths[used], strict=True)
    return [tuple(row[:length].tolist()) for row, length in rows], hypotheses.scores[used]


def assert_is_n_best(hypotheses, truth):
    """Every sequence with a probability, in order (up to equal ones), with its score."""
    labels, scores = n_best(hypotheses)
    truth = {sequence: score for sequence, score in truth.items() if score > -np.inf}
    assert len(set(labels)) == len(labels)
    assert set(labels) == set(truth)
    assert_close(scores, [truth[sequence] for sequence in labels], rtol=1e-5)
    assert (np.diff(scores) <= 0).all()


def random_frames(rng):
    """Scores with masked classes and frames that are not in use."""
    logits = rng.normal(size=(FRAMES, CLASSES)) * rng.choice([1, 5])
    logits = np.where(rng.random(logits.shape) < 0.1, -np.inf, logits).astype(np.float32)
    return logits, rng.random(FRAMES) < rng.choice([0, 0.3])


@pytest.mark.smoke
@given(SEEDS)
def test_against_every_path(seed):
    rng = np.random.default_rng(seed)
    logits, paddings = random_frames(rng)
    blank = int(rng.choice([0, 2]))
    truth = oracles.sequences(oracles.log_softmax(logits[~paddings]), blank)
    assert_is_n_best(search_all(logits, paddings, blank_id=blank), truth)


@given(SEEDS)
def test_against_every_path_with_a_model(seed):
    rng = np.random.default_rng(seed)
    logits, paddings = random_frames(rng)
    table = np.log(rng.random((CLASSES, CLASSES))).astype(np.float32)
    table[rng.random(table.shape) < 0.1] = -np.inf
    weight, bonus = rng.choice([0.5, 2.0]), rng.choice([-1.0, 0.7])
    best = search_all(
        logits, paddings, language_model=bigrams(table), lm_weight=weight, length_bonus=bonus
    )
    truth = oracles.sequences(oracles.log_softmax(logits[~paddings]))
    truth = {
        sequence: score + weight * worth(table, sequence) + bonus * len(sequence)
        for sequence, score in truth.items()
    }
    assert_is_n_best(best, truth)


ARPA = r"""\data\
ngram 1=5
ngram 2=3

\1-grams:
-1.0 <unk>
-99 <s> -0.3
-0.8 </s>
-0.5 a -0.2
-0.9 aa -0.4

\2-grams:
-0.2 <s> a
-0.6 a aa
-0.1 aa </s>

\end\
"""


def test_against_every_path_with_words(tmp_path, rng):
    """Words over the separator 2, and hot words beside them, by what the models say alone."""
    (tmp_path / "words").write_text(ARPA)
    model = read_arpa(tmp_path / "words", ["", "a", "|"], separator=2)
    hot = hot_words([[1, 1], [2, 1]], [1.5, 0.5])
    logits = rng.normal(size=(FRAMES, CLASSES)).astype(np.float32)
    best = search_all(logits, None, language_model=model, lm_weight=0.5, hot_words=hot)

    @jax.jit
    def judge(labels):
        def step(states, label):
            scores, after = zip(
                *(m.score_and_advance(s, label) for m, s in zip((model, hot), states, strict=True)),
                strict=True,
            )
            after = jax.tree.map(lambda new, old: jnp.where(label > 0, new, old), after, states)
            return after, jnp.where(label > 0, 0.5 * scores[0] + scores[1], 0)

        states, scores = jax.lax.scan(step, (model.initial_state, hot.initial_state), labels)
        return scores.sum() + 0.5 * model.final_score(states[0]) + hot.final_score(states[1])

    truth = oracles.sequences(oracles.log_softmax(logits))
    rows = {s: np.array([*s, *[0] * (FRAMES - len(s))], np.int32) for s in truth}
    truth = {s: score + float(judge(rows[s])) for s, score in truth.items()}
    assert_is_n_best(best, truth)
    words = hot_words([[1, 1]], 100.0)
    assert (1, 1) in [s[-2:] for s in n_best(search_all(logits, None, hot_words=words))[0][:3]]


def plain_search(log_probs, width, *, top_k, least, threshold, longest, margin):
    """The algorithm as its papers have it: dictionaries of sequences, in float64."""
    beam = {(): (0.0, -np.inf)}
    for frame in log_probs:
        new = {}

        def add(labels, blank, label, new=new):
            old = new.get(labels, (-np.inf, -np.inf))
            new[labels] = (np.logaddexp(old[0], blank), np.logaddexp(old[1], label))

        certain = math.exp(frame[0]) > threshold
        likely = [k for k in np.argsort(-frame, kind="stable") if k][:top_k]
        for labels, (blank, label) in beam.items():
            total = np.logaddexp(blank, label)
            add(labels, float(total + frame[0]), -np.inf)
            if certain:
                continue
            if labels:
                add(labels, -np.inf, label + frame[labels[-1]])
            for k in range(1, len(frame)):
                longer, before = (*labels, k), blank if labels[-1:] == (k,) else total
                may = k in likely and frame[k] >= least and len(longer) <= longest
                if may or longer in beam:  # a way to what is there is never cut
                    add(longer, -np.inf, before + frame[k])
        ranked = sorted(new.items(), key=lambda item: -np.logaddexp(item[1][0], item[1][1]))
        floor = np.logaddexp(*ranked[0][1]) - margin
        beam = {
            labels: parts
            for labels, parts in ranked[:width]
            if max(parts) > -np.inf and np.logaddexp(*parts) >= floor
        }
    return {labels: float(np.logaddexp(a, b)) for labels, (a, b) in beam.items()}


@pytest.mark.smoke
@given(SEEDS)
def test_a_narrow_beam_against_a_plain_one(seed):
    """20 frames and few classes, so that prefixes leave the beam and come again."""
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(20, 4)) * rng.choice([0.3, 2])).astype(np.float32)
    options = {
        "min_log_prob": rng.choice([-99.0, -1.5]),
        "blank_threshold": rng.choice([0.4, 2]),
        "beam_threshold": rng.choice([1.3, 1e9]),
    }
    best = search(logits, None, beam_width=5, num_hypotheses=5, top_k=2, max_length=6, **options)
    truth = plain_search(
        oracles.log_softmax(logits),
        5,
        top_k=2,
        least=options["min_log_prob"],
        threshold=options["blank_threshold"],
        longest=6,
        margin=options["beam_threshold"],
    )
    labels, scores = n_best(best)
    assert set(labels) == set(truth)
    assert_close(scores, [truth[sequence] for sequence in labels], rtol=1e-5)


def test_a_full_beam_says_so(rng):
    """Only where a threshold asks, and only if the last place was ever taken."""
    logits = rng.normal(size=(2, 4, 3)).astype(np.float32)
    logits[1, :, 1:] = -20  # blanks, and a prefix or two that come within the threshold
    for threshold, is_full in ((None, [False, False]), (5.0, [True, False])):
        state = beam_init(4, batch=(2,), beam_width=4)
        state = beam_step(state, logits, None, beam_threshold=threshold)
        assert state.is_full.tolist() == is_full


@given(SEEDS)
def test_more_candidates_make_no_difference(seed):
    """Of 12 classes, a beam of two needs the 2 W + 1 = 5 likeliest, and not only the likeliest."""
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(20, 12)) * rng.choice([0.1, 1])).astype(np.float32)
    best, all_of_them = (
        search(logits, None, beam_width=2, num_hypotheses=2, max_length=20, **options)
        for options in ({}, {"top_k": 11})
    )
    np.testing.assert_array_equal(best.labels, all_of_them.labels)
    assert_close(best.scores, np.asarray(all_of_them.scores))


@pytest.fixture(scope="module")
def models():
    """A model, hot words, and what else can be said to both ways of searching."""
    table = np.log(np.random.default_rng(5).random((4, 4))).astype(np.float32)
    return {
        "language_model": bigrams(table),
        "lm_weight": 0.8,
        "hot_words": hot_words([[1, 2], [3]], 1.0),
    }


step, align = jax.jit(beam_step), jax.jit(forced_align)
finish = jax.jit(beam_finish, static_argnames="num_hypotheses")


@given(seed=SEEDS, cuts=st.lists(st.integers(0, 9), max_size=4))
def test_chunks_make_no_difference(seed, cuts, models):
    """Bit by bit; chunks of any lengths, none included, here padded to one shape."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(2, 9, 4)).astype(np.float32) * 3
    rest = {"blank_threshold": 0.5, "length_bonus": 0.3}
    state = beam_init(7, batch=(2,), beam_width=4, **_without(models, "lm_weight"))
    edges = [0, *sorted(cuts), 9]
    for start, end in itertools.pairwise(edges):
        outside = (np.arange(9) < start) | (np.arange(9) >= end)
        state = step(state, logits, np.broadcast_to(outside, (2, 9)), **rest, **models)
    pieces = finish(state, num_hypotheses=3, **models)
    whole = search(logits, None, beam_width=4, num_hypotheses=3, max_length=7, **rest, **models)
    chex.assert_trees_all_equal(pieces[:3], whole[:3])


def test_chunks_of_several_lengths(rng, models):
    logits = rng.normal(size=(9, 4)).astype(np.float32)
    state = beam_init(9, **_without(models, "lm_weight"))
    for start, end in ((0, 0), (0, 4), (4, 9)):
        state = step(state, logits[start:end], None, **models)
        early = finish(state, **models)
        sooner = search(logits[:end], None, max_length=9, **models)
        np.testing.assert_array_equal(early.scores, sooner.scores)
        np.testing.assert_array_equal(early.labels, sooner.labels)


def _without(options, name):
    return {key: value for key, value in options.items() if key != name}


def test_one_utterance_is_one_of_a_batch(rng):
    """Alone, a frame takes one of two branches; in a batch, both."""
    logits = rng.normal(size=(2, 9, 4)).astype(np.float32) * 2
    paddings = np.arange(9) >= np.array([[9], [6]])
    together = search(logits, paddings, beam_width=4, blank_threshold=0.5)
    for row in range(2):
        alone = search(logits[row], paddings[row], beam_width=4, blank_threshold=0.5)
        np.testing.assert_array_equal(alone.labels, together.labels[row])
        assert_close(alone.scores, np.asarray(together.scores[row]))


@pytest.mark.parametrize("top_k", [None, 2])
def test_other_platforms_find_the_same(top_k, rng, monkeypatch, pretend):
    """Where a CPU gathers, the others sum what is there and zeros: the same bits."""
    logits = rng.normal(size=(2, 12, 6)).astype(np.float32)
    words = hot_words([[1, 2]], 1.0)
    monkeypatch.setattr(beam_search, "_compiled_chunk", beam_search._chunk)
    found = []
    for platform in ("cpu", "default"):
        pretend(platform)
        found.append(prefix_beam_search(logits, None, beam_width=5, top_k=top_k, hot_words=words))
    chex.assert_trees_all_equal(*found)


def test_long_utterances(rng):
    """Peaked scores of 400 frames: none comes twice, each is worth about its loss."""
    path = np.where(rng.random(400) < 0.6, 0, rng.integers(1, 30, 400))
    logits = (rng.normal(size=(400, 30)) + 6 * np.eye(30)[path]).astype(np.float32)
    best = search(logits, None, num_hypotheses=8, max_length=200)
    labels, scores = n_best(best)
    assert len(set(labels)) == 8
    padded = np.asarray(best.labels)
    losses = ctc_loss(np.broadcast_to(logits, (8, 400, 30)), None, padded, padded < 0)
    exact = -np.asarray(losses)
    assert (scores <= exact + 1e-3).all()
    assert (scores >= exact - 2).all()  # what paths outside the beam were worth


def test_scores_stay_exact_over_many_frames():
    """One class is certain but for a hair: a beam of two holds all that matters."""
    frame = np.array([0.0, -9.0, -9.0], np.float32)
    logits = np.broadcast_to(frame + 1e4, (5000, 3))
    best = search(logits, None, beam_width=2, max_length=2)
    assert_close(best.scores, [5000 * oracles.log_softmax(frame[None])[0, 0]], rtol=1e-6)


def test_times_are_those_of_the_aligner(rng):
    logits = rng.normal(size=(2, 8, 4)).astype(np.float32) * 3
    paddings = np.arange(8) >= np.array([[8], [5]])
    best = search(logits, paddings, num_hypotheses=3, max_length=4, times=True)
    for row in range(2):
        for slot in range(3):
            labels = best.labels[row, slot]
            spans = align(logits[row], paddings[row], labels, labels < 0)
            np.testing.assert_array_equal(best.starts[row, slot], spans.starts)
            np.testing.assert_array_equal(best.ends[row, slot], spans.ends)
            assert_close(best.confidences[row, slot], np.asarray(spans.confidences), rtol=1e-5)
    used = np.arange(4) < np.asarray(best.lengths)[..., None]
    assert ((np.asarray(best.starts) >= 0) == used).all()
    assert ((np.asarray(best.confidences) >= 0) == used).all()


def test_awkward_frames():
    """NaN and +inf in frames in use, impossible frames, and whatever stands in padding."""
    logits = np.zeros((5, 2, 3), np.float32)
    logits[0, 1, 2], logits[1, 0, 0], logits[2, 0], logits[3, 1] = np.nan, np.inf, -np.inf, np.nan
    paddings = np.zeros((5, 2))
    paddings[3, 1] = 1
    best = search(logits, paddings, num_hypotheses=2)
    assert np.isnan(best.scores[:2]).all()
    assert (best.scores[2] == -np.inf).all()
    assert (best.labels[:3] == -1).all()
    assert best.lengths[:3].tolist() == [[0, 0]] * 3
    np.testing.assert_allclose(best.scores[3], np.log([1 / 3, 1 / 3]), rtol=1e-6)
    assert best.labels[3].tolist() == [[-1, -1], [1, -1]]  # equally likely: what was there first


@pytest.mark.parametrize("logits_normalized", [False, True])
def test_nan_among_thousands_of_scores(logits_normalized, rng):
    """The maximum of XLA:CPU finds no NaN there."""
    logits = rng.normal(size=(3, 47, 32)).astype(np.float32)
    logits[1, 10, 5] = np.nan
    best = prefix_beam_search(logits, None, beam_width=2, logits_normalized=logits_normalized)
    assert np.isnan(best.scores[:, 0]).tolist() == [False, True, False]
    assert (best.labels[1] == -1).all()


def test_scores_that_are_log_probabilities():
    log_probs = np.log(np.array([[0.1, 0.4], [0.3, 0.1]], np.float32))
    best = search_all(log_probs, None, logits_normalized=True)
    labels, scores = n_best(best)
    assert labels == [(1,), ()]
    np.testing.assert_allclose(np.exp(scores), [0.1 * 0.1 + 0.4 * 0.3 + 0.4 * 0.1, 0.03], rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_floats_score_in_float32(dtype, rng):
    logits = jnp.asarray(rng.normal(size=(FRAMES, CLASSES)), dtype)
    narrow, wide = search_all(logits, None), search_all(logits.astype(jnp.float32), None)
    np.testing.assert_array_equal(narrow.labels, wide.labels)
    np.testing.assert_array_equal(narrow.scores, wide.scores)
    assert narrow.scores.dtype == jnp.float32


@pytest.mark.usefixtures("x64")
def test_float64_scores_in_float64(rng):
    logits = rng.normal(size=(FRAMES, CLASSES))
    labels, scores = n_best(search_all(logits, None))
    truth = oracles.sequences(oracles.log_softmax(logits))
    assert scores.dtype == jnp.float64
    assert_close(scores, [truth[sequence] for sequence in labels], rtol=1e-13)


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (2, 3, 1), (2, 1, 3, 2)], ids=str)
def test_shapes(shape):
    best = search(np.zeros(shape, np.float32), None, num_hypotheses=2)
    assert best.labels.shape == (*shape[:-2], 2, shape[-2])
    assert best.lengths.shape == best.scores.shape == (*shape[:-2], 2)
    if shape[-2] == 0:
        assert (best.scores == np.array([[0, -np.inf]] * 2)).all()


def test_no_derivative_is_better_than_a_wrong_one(rng):
    logits = rng.normal(size=(FRAMES, CLASSES)).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda logits: prefix_beam_search(logits, None).scores.sum()))(
        logits
    )
    assert (gradient == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_width": 0}, "prefix_beam_search: beam_width must be at least 1; got 0"),
        ({"num_hypotheses": 17}, "num_hypotheses must be at most the beam width 16; got 17"),
        ({"max_length": -1}, "max_length must be at least 0; got -1"),
        ({"top_k": 0}, "top_k must be at least 1; got 0"),
        ({"blank_id": 3}, r"blank_id must be a class id in \[-3, 3\)"),
        ({"language_model": "kenlm"}, "language_model must be a model, or a tuple"),
        ({"min_log_prob": [1.0]}, "min_log_prob must be one real number"),
        ({"hot_words": [[1, 2]]}, "hot_words must be what jaxctc.hot_words returns; got a list"),
    ],
    ids=str,
)
def test_errors_say_what_to_do(options: Any, message):
    with pytest.raises(ValueError, match=message):
        prefix_beam_search(np.zeros((2, 3), np.float32), None, **options)


def test_a_batch_is_a_tuple():
    with pytest.raises(
        ValueError, match=r"beam_init: batch must be a tuple .*; got 2. One axis is"
    ):
        beam_init(3, batch=2)  # pyright: ignore[reportArgumentType]


def test_models_are_the_same_from_first_to_last():
    words, frame = hot_words([[1, 2]], 1.0), np.zeros((1, 3), np.float32)
    for first, later in ((words, None), (None, words)):
        state = beam_init(3, hot_words=first)
        with pytest.raises(ValueError, match="beam_step: state must come from calls with the same"):
            beam_step(state, frame, None, hot_words=later)
        with pytest.raises(ValueError, match="beam_finish: state must come from calls with the"):
            beam_finish(state, hot_words=later)


def test_a_step_must_have_the_batch_of_its_state():
    with pytest.raises(ValueError, match=r"beam_step: logits must have shape \[\*B, T, K\] with"):
        beam_step(beam_init(3, batch=(2,)), np.zeros((2, 3), np.float32), None)
