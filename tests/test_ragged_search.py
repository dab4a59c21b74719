"""Searches in steps, from NumPy's log-probabilities: the same as frame by frame."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxctc
from jaxctc.decoding.likely_tokens import LONGEST_RUN, likely_frames
from jaxctc.decoding.ragged_search import align, search

BLANK, WIDTH = 2, 32
VOCABULARY = jaxctc.Vocabulary(["a", "|", "", "b"], blank_id=BLANK, separator="|")
SPEECH = "-a.a a-bab|abab-|aab?-?bb.?a?ab-?a?bababababab-?|-?ab"
"""A frame each: a token, "-" a blank, " " a faint one; "?" may be all, "." is a or blank."""


def log_probs_of(speech, rng):
    """Sure frames have one token above e^-5, as pyctcdecode's default asks."""
    scores = rng.normal(size=(len(speech), 4))
    for place, sign in enumerate(speech):
        if sign in "ab|- ":
            scores[place, "a|-b".index(sign.replace(" ", "-"))] += 9 + (sign == "-")
        elif sign == ".":
            scores[place, [0, 2]] += 9
    return (scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))).astype(np.float32)


def found_by(found):
    """Labels and both scores of what is in a beam, the best first."""
    order = np.argsort(-found.scores)
    rows = [(*found.labels[k][found.labels[k] >= 0].tolist(),) for k in order]
    likely = found.scores[order] > -np.inf
    return [row for row, is_so in zip(rows, likely, strict=True) if is_so], found.scores[order]


def frame_by_frame(log_probs, guide, threshold, width=WIDTH):
    """The same by `prefix_beam_search`, tokens that are not likely left out."""
    is_likely = log_probs >= -5.0
    is_likely[np.arange(len(log_probs)), log_probs.argmax(axis=1)] = True
    rows = np.zeros((len(SPEECH), 4), np.float32)  # one shape is one compilation
    rows[: len(log_probs)] = np.where(is_likely, log_probs, -np.inf)
    best = jaxctc.prefix_beam_search(
        jnp.asarray(rows),
        np.arange(len(SPEECH)) >= len(log_probs),
        blank_id=BLANK,
        logits_normalized=True,
        beam_width=width,
        num_hypotheses=width,
        beam_threshold=threshold,
        **guide,
    )
    rows = [tuple(row[row >= 0].tolist()) for row in np.asarray(best.labels)]
    return rows, np.asarray(best.scores)


GUIDES = {
    "alone": dict,
    "hot words": lambda: {"hot_words": jaxctc.hot_words([[0, 3], [3]], bonus=2.0)},
    "lexicon": lambda: {
        "lexicon": jaxctc.build_lexicon(["ab", "a"], VOCABULARY, unknown_score=-3.0)
    },
}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("hot words", "lexicon")]


@pytest.mark.parametrize("guide", ["alone", *SLOW])
def test_steps_find_what_frames_find(guide, rng):
    models = GUIDES[guide]()
    parts = [SPEECH, SPEECH[9:], "", "-", "abab", "?", "a" * 7, SPEECH[:17]]
    batch = [log_probs_of(part, rng) for part in parts]
    frames = likely_frames(np.concatenate(batch), list(map(len, batch)), -5.0, blank_id=BLANK)
    options = {"blank_id": BLANK, "beam_width": WIDTH, "beam_threshold": 8.0}
    for log_probs, found in zip(batch, search(frames, models, **options), strict=True):
        labels, scores = found_by(found)
        expected, expected_scores = frame_by_frame(log_probs, models, 8.0)
        assert labels[0] == expected[0]
        np.testing.assert_allclose(scores[:3], expected_scores[:3], rtol=1e-5, atol=1e-4)
        if not models:  # a threshold that no model moves drops the same prefixes
            kept = [
                row for row, score in zip(expected, expected_scores, strict=True) if score > -np.inf
            ]
            assert set(labels) == set(kept)


def test_a_wider_beam_only_where_a_narrow_one_is_full(rng):
    """Nothing is dropped: hundreds of prefixes come within the threshold.

    The narrow search ends where they no longer fit, and has gone over the other one by then.
    """
    log_probs = rng.normal(size=(7, 4)).astype(np.float32)
    log_probs -= np.log(np.exp(log_probs).sum(axis=1, keepdims=True))
    sure = log_probs_of("ab-b", rng)
    frames = likely_frames(np.concatenate([log_probs, sure]), [7, 4], -5.0, blank_id=BLANK)
    found = search(frames, {}, blank_id=BLANK, beam_width=64, beam_threshold=99.0)
    assert [len(part.scores) for part in found] == [64, 6]
    for part, given in zip(found, (log_probs, sure), strict=True):
        labels, scores = found_by(part)
        expected, expected_scores = frame_by_frame(given, {}, 99.0, width=64)
        assert labels[:20] == expected[: len(labels)][:20]
        np.testing.assert_allclose(scores, expected_scores[: len(scores)], rtol=1e-5)


@pytest.mark.parametrize("length", [1, LONGEST_RUN, LONGEST_RUN + 1, 3 * LONGEST_RUN + 2])
def test_runs_of_any_length(length, rng):
    speech = "?" + "-" + "ab" * length + "-?"
    log_probs = log_probs_of(speech, rng)
    (frames,) = likely_frames(log_probs, [len(speech)], -5.0, blank_id=BLANK)
    # One label is searched after each full run.
    assert len(frames.steps.run_last) == 2 + 2 * length // (LONGEST_RUN + 1)
    (found,) = search([frames], {}, blank_id=BLANK, beam_width=WIDTH, beam_threshold=9.0)
    expected, scores = frame_by_frame(log_probs, {}, 9.0)
    assert found_by(found)[0][0] == expected[0]
    np.testing.assert_allclose(np.max(found.scores), scores[0], rtol=1e-5)


def test_all_frames_are_aligned(rng):
    """In steps or not: the alignment is that of all frames."""
    log_probs = log_probs_of("a-ab--|", rng)
    (frames,) = likely_frames(log_probs, [7], -5.0, blank_id=BLANK)
    ((starts, ends),) = align([frames], [[np.array([0, 0, 3, 1])]], BLANK)
    assert starts[0, :4].tolist() == [0, 2, 3, 6]
    assert ends[0, :4].tolist() == [0, 2, 3, 6]


@pytest.mark.parametrize("place", [2, 4])
def test_nan_is_not_lost_in_a_run(place, rng):
    log_probs = log_probs_of("?-abab", rng)
    log_probs[place, 1] = np.nan
    (frames,) = likely_frames(log_probs, [6], -40.0 if place == 2 else -5.0, blank_id=BLANK)
    (found,) = search([frames], {}, blank_id=BLANK, beam_width=8, beam_threshold=9.0)
    assert np.isnan(found.scores).all()
