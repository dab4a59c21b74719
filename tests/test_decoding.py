import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import CASES, IDS, NARROW, alone, batch_of
from hypothesis import given
from hypothesis import strategies as st
from oracles import assert_close

from jaxctc import greedy_decode

decode = functools.partial(jax.jit, static_argnames=("blank_id", "logits_normalized"))(
    greedy_decode
)


def expected(log_probs, frames, blank):
    """Labels, first and last frames and confidences, in plain Python."""
    path = log_probs.argmax(axis=-1)
    runs = []
    for place, k in enumerate(path):
        if place and path[place - 1] == k:
            runs[-1][2] = frames[place]
            runs[-1][3] = max(runs[-1][3], np.exp(log_probs[place, k]))
        else:
            runs.append([k, frames[place], frames[place], np.exp(log_probs[place, k])])
    return [run for run in runs if run[0] != blank], log_probs.max(axis=-1, initial=-np.inf).sum()


@pytest.mark.smoke
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_against_plain_python(case):
    logits, logit_paddings, *_ = alone(case)
    best = decode(logits, logit_paddings, blank_id=case.blank_id)
    if case.kind == "nan":
        assert np.isnan(best.scores)
        return
    frames = np.flatnonzero(case.frames_in_use)
    scores = case.logits[frames]
    log_probs = np.where(np.isneginf(scores), -np.inf, oracles.log_softmax(scores))
    runs, score = expected(log_probs, frames, case.blank)
    assert int(best.lengths) == len(runs)
    assert_close(best.scores, score)
    columns = [list(column) for column in zip(*runs, strict=True)] or [[], [], [], []]
    rest = len(logits) - len(runs)
    for got, column in zip((best.labels, best.starts, best.ends), columns, strict=False):
        assert got.tolist() == [*column, *[-1] * rest]
    assert_close(best.confidences, [*columns[3], *[-1] * rest])


def test_repeats_merge_before_blanks_go():
    path = np.array([[1, 1, 0, 1], [1, 2, 2, 1], [0, 0, 0, 0]])
    best = decode(jax.nn.one_hot(path, 3), None)
    assert best.starts is not None
    assert best.ends is not None
    assert best.labels.tolist() == [[1, 1, -1, -1], [1, 2, 1, -1], [-1] * 4]
    assert best.starts.tolist() == [[0, 3, -1, -1], [0, 1, 3, -1], [-1] * 4]
    assert best.ends.tolist() == [[1, 3, -1, -1], [0, 2, 3, -1], [-1] * 4]
    assert best.lengths.tolist() == [2, 3, 0]


def test_ties_go_to_the_lowest_id():
    assert decode(jnp.zeros((3, 4)), None).lengths == 0
    assert decode(jnp.zeros((3, 4)), None, blank_id=3).labels.tolist() == [0, -1, -1]


def test_normalized_scores_are_taken_as_they_are():
    log_probs = jnp.log(jnp.array([[0.1, 0.4], [0.3, 0.1]]))
    best = decode(log_probs, None, logits_normalized=True)
    np.testing.assert_allclose(best.scores, np.log(0.4 * 0.3), rtol=1e-6)
    assert best.confidences is not None
    np.testing.assert_allclose(best.confidences, [0.4, -1], rtol=1e-6)


@given(st.integers(0, 2**32 - 1))
def test_padding_anywhere_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(6, 3)).astype(np.float32)
    frames = np.sort(rng.choice(10, 6, replace=False))
    strewn, paddings = np.full((10, 3), np.nan, np.float32), np.ones(10)
    strewn[frames], paddings[frames] = logits, 0
    alone, together = decode(logits, None), decode(strewn, paddings)
    length = int(alone.lengths)
    assert int(together.lengths) == length
    assert together.labels.tolist() == [*alone.labels.tolist(), *[-1] * 4]
    assert together.starts[:length].tolist() == frames[alone.starts[:length]].tolist()
    assert together.ends[:length].tolist() == frames[alone.ends[:length]].tolist()
    assert_close(together.scores, np.asarray(alone.scores))


@pytest.mark.parametrize("dtype", NARROW, ids=["bfloat16", "float16"])
def test_narrow_floats_score_in_float32(dtype):
    logits, paddings, *_ = batch_of([case for case in CASES if case.blank_id == 0])
    logits = jnp.asarray(logits).astype(dtype)
    narrow, wide = decode(logits, paddings), decode(logits.astype(jnp.float32), paddings)
    for got, want in zip(narrow, wide, strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (0, 0, 1), (2, 3, 4, 5)], ids=str)
def test_shapes(shape):
    best = decode(np.zeros(shape, np.float32), None)
    assert best.labels.shape == best.starts.shape == best.confidences.shape == shape[:-1]
    assert best.lengths.shape == best.scores.shape == shape[:-2]
