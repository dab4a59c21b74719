"""Scores of prefixes, against all paths over all label sequences that begin so."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import BATCHES, CASES, NARROW, batch_of
from every_pair import LONGEST, MOST_CLASSES, every_sequence, every_topology, padded
from jaxprs import dtypes, equations, scans
from oracles import assert_close

from benchmarks.published import published_start, published_step
from jaxctc import ctc_loss, prefix_scores, prefix_scores_init, prefix_scores_select

OPTIONS = ("blank_id", "logits_normalized")


@functools.partial(jax.jit, static_argnames=OPTIONS)
def scores_along(logits, logit_paddings, prefixes, **options):
    """Scores `[L + 1, *B, W, …]` after each place of `[*B, W, L]` prefixes, of none first."""
    width, length = prefixes.shape[-2:]
    state = prefix_scores_init(logits, logit_paddings, beam_width=width, **options)
    first = prefix_scores(state)
    if length == 0:
        return jax.tree.map(lambda part: part[None], first)

    def step(state, tokens):
        state = prefix_scores_select(state, tokens)
        return state, prefix_scores(state)

    _, rest = jax.lax.scan(step, state, jnp.moveaxis(prefixes, -1, 0))
    return jax.tree.map(lambda one, more: jnp.concatenate([one[None], more]), first, rest)


def truth(spelt, prefix, classes):
    """`(token [K], end)` from the log-probability of every sequence."""

    def of_all(beginning):
        found = [p for labels, p in spelt.items() if labels[: len(beginning)] == beginning]
        return np.logaddexp.reduce(found) if found else -np.inf

    return [of_all((*prefix, k)) for k in range(classes)], spelt.get(prefix, -np.inf)


@pytest.mark.smoke
@every_topology
def test_every_prefix(classes, blank):
    """Of all lengths that fit and one more, over T = 0 to 5 frames, padded."""
    logits = np.random.default_rng(classes).normal(size=(LONGEST, classes)).astype(np.float32) * 2
    lengths = np.arange(LONGEST + 1)
    padding = np.arange(LONGEST) >= lengths[:, None]
    batch = np.where(padding[..., None], np.float32(np.nan), logits)
    batch = np.pad(batch, ((0, 0), (0, 0), (0, MOST_CLASSES - classes)), constant_values=-np.inf)
    prefixes = list(every_sequence(classes, blank, LONGEST))
    ids, _ = padded(prefixes, LONGEST)
    most = 2 ** (LONGEST + 1) - 1
    ids = np.broadcast_to(np.resize(ids, (most, LONGEST)), (len(lengths), most, LONGEST))
    found = jax.device_get(scores_along(batch, padding, ids, blank_id=blank))
    for frames in lengths:
        spelt = oracles.sequences(oracles.log_softmax(logits[:frames]), blank)
        for row, prefix in enumerate(prefixes):
            token, end = truth(spelt, prefix, classes)
            place = -1  # what is selected after the last token leaves the prefix as it is
            assert_close(found.token[place, frames, row, :classes], token)
            assert_close(found.end[place, frames, row], end)


@functools.cache
def all_in_a_batch(blank_id):
    logits, logit_paddings, labels, label_paddings = batch_of(BATCHES[blank_id])
    # A prefix is what is left of labels; -1 is for no label, and another for one that is none.
    ids = np.where(label_paddings, -1, np.where(labels < 0, 99, labels))
    found = scores_along(logits, logit_paddings, ids[:, None], blank_id=blank_id)
    loss = jax.jit(functools.partial(ctc_loss, blank_id=blank_id))(
        logits, logit_paddings, labels, label_paddings
    )
    return jax.device_get((found, loss))


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_contract(case):
    row = [other.name for other in BATCHES[case.blank_id]].index(case.name)
    found, losses = all_in_a_batch(case.blank_id)
    token, end = found.token[-1, row, 0], found.end[-1, row, 0]
    if case.kind == "nan":
        assert np.isnan(token).all()
        assert np.isnan(end)
        return
    spelt = oracles.sequences(case.scores(), case.blank)
    labels = tuple(map(int, case.labels[case.labels_in_use]))
    true_token, true_end = truth(spelt, labels, case.logits.shape[-1])
    if case.kind == "infeasible":
        true_end = -np.inf
    if any(k == case.blank or not 0 <= k < case.logits.shape[-1] for k in labels):
        true_token = np.full(len(true_token), -np.inf)
    assert_close(token[: len(true_token)], true_token, rtol=1e-5)
    assert_close(end, true_end, rtol=1e-5)
    assert_close(end, -losses[row], rtol=1e-5)


def test_no_frames():
    scores = prefix_scores(prefix_scores_init(jnp.zeros((2, 0, 3)), None, beam_width=2))
    np.testing.assert_array_equal(scores.end, 0)
    assert np.isneginf(scores.token).all()


def hypotheses(rng, frames=60, classes=6, batch=(2, 3), width=4, length=7):
    """Logits and prefixes that they might spell."""
    logits = rng.normal(size=(*batch, frames, classes)).astype(np.float32) * 3
    prefixes = rng.integers(1, classes, size=(*batch, width, length)).astype(np.int32)
    return logits, prefixes


@pytest.mark.parametrize("logits_normalized", [False, True])
def test_the_end_is_the_loss(rng, logits_normalized):
    """And all that may come next, with the end, sums to what the prefix has."""
    logits, prefixes = hypotheses(rng)
    found = scores_along(logits, None, prefixes, logits_normalized=logits_normalized)
    loss = jax.jit(functools.partial(ctc_loss, logits_normalized=logits_normalized))
    spread = np.broadcast_to(logits[..., None, :, :], (*prefixes.shape[:-1], *logits.shape[-2:]))
    for place in range(prefixes.shape[-1] + 1):
        beyond = np.broadcast_to(np.arange(prefixes.shape[-1]) >= place, prefixes.shape)
        expected = -loss(spread, None, prefixes, beyond)
        # Sums of 60 normalisers of up to ten nats, where logits are taken as they are.
        np.testing.assert_allclose(found.end[place], expected, rtol=2e-6, atol=1e-4)
    for place, tokens in enumerate(np.moveaxis(prefixes, -1, 0)):
        of_token = np.take_along_axis(np.asarray(found.token[place]), tokens[..., None], -1)[..., 0]
        after = jax.nn.logsumexp(found.token[place + 1], axis=-1)
        np.testing.assert_allclose(
            np.logaddexp(after, found.end[place + 1]), of_token, rtol=2e-5, atol=2e-5
        )


def test_rows_of_any_sum():
    """What comes later counts with all it has: enumerated, of weights that sum to anything."""
    scores = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32) * 2 + 1
    spelt = oracles.sequences(scores.astype(np.float64))
    prefixes = np.array([[1, 2], [2, -1], [-1, -1]])
    found = scores_along(scores, None, prefixes, logits_normalized=True)
    for row, prefix in enumerate([(1, 2), (2,), ()]):
        token, end = truth(spelt, prefix, 3)
        assert_close(found.token[-1, row], token)
        assert_close(found.end[-1, row], end)


def test_given_candidates_are_those_of_all(rng):
    logits, prefixes = hypotheses(rng)
    state = prefix_scores_init(logits, None, beam_width=4)
    for tokens in np.moveaxis(prefixes, -1, 0)[:3]:
        state = prefix_scores_select(state, tokens)
    candidates = rng.integers(-2, 8, size=(*prefixes.shape[:-1], 9)).astype(np.int32)
    some, everything = jax.jit(prefix_scores)(state, candidates), jax.jit(prefix_scores)(state)
    is_class = (candidates > 0) & (candidates < 6)
    columns = np.where(is_class, candidates, 0)
    expected = np.take_along_axis(np.asarray(everything.token), columns, -1)
    expected = np.where(is_class, expected, -np.inf)
    np.testing.assert_allclose(some.token, expected, rtol=1e-6)
    np.testing.assert_array_equal(some.end, everything.end)


def test_a_beam_is_its_prefixes_one_by_one(rng):
    """Parents anywhere in the beam, more of them than there were, and ended ones left alone."""
    logits, _ = hypotheses(rng, batch=(2,))
    steps = [
        (np.array([[1, 2, 3, 4]] * 2), np.zeros((2, 4), np.int32)),
        (np.array([[1, 1, -1, 5, 2]] * 2), np.array([[0, 3, 2, 3, 1], [3, 3, 0, 1, 1]])),
        (np.array([[2, -1, 1]] * 2), np.array([[4, 2, 0], [1, 0, 2]])),
    ]
    state = prefix_scores_init(logits, None, beam_width=4)
    prefixes = [[()] * 4 for _ in range(2)]
    for tokens, parents in steps:
        state = jax.jit(prefix_scores_select)(state, tokens, parents)
        prefixes = [
            [prefixes[b][p] + (() if t < 0 else (int(t),)) for t, p in zip(*rows, strict=True)]
            for b, rows in enumerate(zip(tokens, parents, strict=True))
        ]
    found = prefix_scores(state)
    ids = np.stack([padded(row, 3)[0] for row in prefixes])
    alone = scores_along(logits, None, ids)
    np.testing.assert_allclose(found.token, alone.token[-1], rtol=1e-6)
    np.testing.assert_allclose(found.end, alone.end[-1], rtol=1e-6)


def test_as_published(rng):
    """The paper's algorithm, frame by frame, in float64; and that one against all paths."""
    logits, prefixes = hypotheses(rng, batch=())
    found = scores_along(logits, None, prefixes)
    log_probs = oracles.log_softmax(logits)
    tokens = np.arange(1, 6)
    for row, prefix in enumerate(prefixes):
        rows, last = published_start(log_probs), -1
        for place, token in enumerate(prefix):
            scores, after = published_step(log_probs, rows, last, tokens)
            assert_close(found.token[place, row, 1:], scores, rtol=1e-5)
            end = np.logaddexp(rows.label[-1], rows.blank[-1])
            assert_close(found.end[place, row], end, rtol=1e-5)
            rows, last = type(rows)(*(part[token - 1] for part in after)), token

    log_probs = oracles.log_softmax(logits[:6, :3])
    scores, _ = published_step(log_probs, published_start(log_probs), -1, tokens[:2])
    np.testing.assert_allclose(scores, truth(oracles.sequences(log_probs), (), 3)[0][1:])


def begin_of(path, place, blank=0):
    """The frame in which a label of a path begins, None where it has fewer."""
    begins = [
        frame
        for frame, symbol in enumerate(path)
        if symbol != blank and (frame == 0 or path[frame - 1] != symbol)
    ]
    return begins[place] if place < len(begins) else None


@pytest.mark.parametrize("window", [1, 2, 3])
def test_every_window(window):
    """Paths whose next label begins in the likeliest stretch of so many frames, enumerated."""
    frames, classes = 5, 3
    logits = np.random.default_rng(5).normal(size=(frames, classes)).astype(np.float32) * 2
    log_probs = oracles.log_softmax(logits)
    prefixes = [(), (1,), (2,), (1, 1), (1, 2), (2, 1)]
    state = prefix_scores_init(logits, None, beam_width=len(prefixes))
    for column in np.array([(*p, -1, -1)[:2] for p in prefixes]).T:
        state = prefix_scores_select(state, column.astype(np.int32))
    found = prefix_scores(state, window=window)
    candidates = np.tile(np.array([2, 1], np.int32), (len(prefixes), 1))
    some = prefix_scores(state, candidates, window=window)
    np.testing.assert_allclose(some.token, found.token[:, [2, 1]], rtol=1e-6)
    np.testing.assert_array_equal(found.end, prefix_scores(state).end)
    for row, prefix in enumerate(prefixes):
        begins = np.zeros((frames, classes))
        for path in itertools.product(range(classes), repeat=frames):
            spelt = oracles.collapse(path)
            if spelt[: len(prefix)] == prefix and len(spelt) > len(prefix):
                weight = np.exp(log_probs[np.arange(frames), path].sum())
                begins[begin_of(path, len(prefix)), spelt[len(prefix)]] += weight
        # What a window holds is judged as if the last label could go on by itself without a blank.
        rows = [begins[start : start + window].sum(axis=0) for start in range(frames - window + 1)]
        errors = [np.abs(np.exp(found.token[row]) - each).max() for each in rows]
        assert min(errors) < 1e-6
        best = rows[int(np.argmin(errors))]
        assert best.sum() >= 0.8 * max(each.sum() for each in rows)


def test_a_window_of_all_frames_is_exact(rng):
    """As many as there are, or as there are in use."""
    logits, prefixes = hypotheses(rng)
    arrived = np.broadcast_to(np.arange(60) >= 40, logits.shape[:-1])
    state = prefix_scores_init(logits, arrived, beam_width=4)
    for tokens in np.moveaxis(prefixes, -1, 0)[:3]:
        state = prefix_scores_select(state, tokens)
    exact = prefix_scores(state)
    np.testing.assert_array_equal(prefix_scores(state, window=60).token, exact.token)
    np.testing.assert_allclose(prefix_scores(state, window=40).token, exact.token, rtol=1e-6)


def test_a_window_misses_little_where_the_model_is_sure(rng):
    """20 of 300 frames; and never says too much."""
    labels = rng.integers(1, 6, size=(2, 30)).astype(np.int32)
    path = np.zeros((2, 300), np.int32)
    path[:, 5::10] = labels
    logits = 9 * jax.nn.one_hot(path, 6) + rng.normal(size=(2, 300, 6)).astype(np.float32)
    state = prefix_scores_init(logits, None)
    step = jax.jit(prefix_scores, static_argnames="window")
    for tokens in np.moveaxis(labels, -1, 0):
        exact, near = step(state), step(state, window=20)
        assert (near.token <= exact.token + 1e-6).all()
        np.testing.assert_array_equal(near.token.argmax(axis=-1)[:, 0], tokens)
        best = np.take_along_axis(np.asarray(exact.token - near.token), tokens[:, None, None], -1)
        np.testing.assert_allclose(best, 0, atol=0.02)
        state = jax.jit(prefix_scores_select)(state, tokens[:, None])


def test_no_examples():
    state = prefix_scores_init(jnp.zeros((0, 4, 3)), None, beam_width=2)
    state = prefix_scores_select(state, jnp.ones((0, 2), jnp.int32))
    assert prefix_scores(state).token.shape == (0, 2, 3)
    assert prefix_scores(state, jnp.ones((0, 2, 5), jnp.int32)).token.shape == (0, 2, 5)


def test_more_frames(rng):
    """As the documentation says: all frames so far, and the tokens again."""
    logits, prefixes = hypotheses(rng, batch=())
    arrived = np.arange(60) >= 40
    spoilt = np.where(arrived[:, None], np.float32(np.nan), logits)
    again = scores_along(spoilt, arrived, prefixes)
    short = scores_along(logits[:40], None, prefixes)
    np.testing.assert_allclose(again.token, short.token, rtol=1e-6)
    np.testing.assert_allclose(again.end, short.end, rtol=1e-6)


def test_precise_at_any_length(x64, rng):
    """Float32 against float64: rows are of WIDE numbers, whose rounding does not grow."""
    logits, prefixes = hypotheses(rng, frames=3000, batch=(), width=2, length=30)
    truth = scores_along(logits.astype(np.float64), None, prefixes)
    found = scores_along(logits, None, prefixes)
    assert found.token.dtype == jnp.float32
    assert truth.token.dtype == jnp.float64
    for one, other in zip(found, truth, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-6)


@pytest.mark.parametrize("dtype", NARROW)
def test_narrow_logits(rng, dtype):
    logits = jnp.asarray(rng.normal(size=(6, 4)), dtype)
    one = prefix_scores(prefix_scores_init(logits, None))
    other = prefix_scores(prefix_scores_init(logits.astype(jnp.float32), None))
    for a, b in zip(one, other, strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_array_equal(a, b)


def test_no_step_by_frame():
    """A round for every doubling of 500 frames; on a CPU, a turn for each of six prefixes."""
    logits = jnp.zeros((2, 500, 7), jnp.float32)
    tokens = jnp.ones((2, 3), jnp.int32)

    def program(logits, tokens):
        state = prefix_scores_select(prefix_scores_init(logits, None, beam_width=3), tokens)
        return prefix_scores(state), prefix_scores(state, tokens[..., None])

    with jax.enable_x64(True):
        jaxpr = jax.make_jaxpr(program)(logits, tokens).jaxpr
    names = {equation.primitive.name for equation in equations(jaxpr)}
    assert {scan.params["length"] for scan in scans(jaxpr)} == {9, 6}
    assert not {"while", "scatter", "scatter-add"} & names
    assert not {"float64", "complex128"} & dtypes(jaxpr)


@pytest.mark.parametrize("logits_normalized", [False, True])
def test_nan_among_thousands_of_scores(logits_normalized, rng):
    """The maximum of XLA:CPU finds no NaN there."""
    logits = rng.normal(size=(3, 47, 32)).astype(np.float32)
    logits[1, 10, 5] = np.nan
    options = {"beam_width": 1, "logits_normalized": logits_normalized}
    scores = prefix_scores(prefix_scores_init(logits, None, **options))
    assert np.isnan(scores.end[:, 0]).tolist() == [False, True, False]
    assert np.isnan(scores.token[1]).all()


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (
            lambda s: prefix_scores(s, jnp.zeros((3, 5), jnp.int32)),
            "prefix_scores: tokens must have shape [*B, W, C] with [*B, W] = (2, 3), as in state",
        ),
        (
            lambda s: prefix_scores_select(s, jnp.zeros((2, 4), jnp.int32)),
            "prefix_scores_select: tokens must be one for each of 3 prefixes; got (2, 4). With",
        ),
        (
            lambda s: prefix_scores_select(s, jnp.zeros((4,), jnp.int32)),
            "prefix_scores_select: tokens must have shape [*B, W] with *B = (2,), as in state",
        ),
        (
            lambda s: prefix_scores_select(s, jnp.zeros((2, 4), jnp.int32), jnp.zeros((2, 3), int)),
            "prefix_scores_select: parents must have the shape of tokens, (2, 4)",
        ),
        (
            lambda s: prefix_scores_select(s, jnp.zeros((2, 3))),
            "prefix_scores_select: tokens must be integers",
        ),
        (
            lambda s: prefix_scores_init(jnp.zeros((2, 4, 3)), None, beam_width=0),
            "prefix_scores_init: beam_width must be at least 1; got 0",
        ),
        (
            lambda s: prefix_scores(s, window=0),
            "prefix_scores: window must be at least 1; got 0",
        ),
    ],
    ids=itertools.count(),
)
def test_mistakes(call, line):
    state = prefix_scores_init(jnp.zeros((2, 4, 3)), None, beam_width=3)
    with pytest.raises(ValueError, match="must") as caught:
        call(state)
    assert str(caught.value).startswith(line)
