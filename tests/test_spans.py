"""Words and their times."""

import itertools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BATCHES, batch_of
from hypothesis import given
from hypothesis import strategies as st

import jaxctc
from jaxctc import Span, Vocabulary, WordSpans, group_spans, timed_spans, word_spans

VOCABULARY = Vocabulary(["-", " ", *"abcd"], separator=" ")
SEPARATOR = 1


def scores_of(path, sharpness=6.0, classes=6):
    return sharpness * np.eye(classes, dtype=np.float32)[np.asarray(path)]


def words_by_hand(labels, is_label, starts, ends, confidences, combine):
    """The definition: runs of labels in use without a separator, in Python."""
    words, run = [], []
    for n in [n for n in range(len(labels)) if is_label[n]] + [None]:
        if n is not None and labels[n] != SEPARATOR:
            run.append(n)
            continue
        if run:
            shown = [m for m in run if starts[m] >= 0]
            words.append(
                (
                    min(starts[m] for m in shown),
                    max(ends[m] for m in shown),
                    combine([confidences[m] for m in shown]),
                )
                if shown
                else (-1, -1, -1)
            )
        run = []
    return words


COMBINE = {"minimum": min, "mean": np.mean, "product": np.prod}


@pytest.mark.parametrize("confidence", COMBINE)
def test_words_are_runs_between_separators(confidence, rng):
    """Of random labels and paddings, for a batch of two axes, under jit."""
    shape = (3, 7, 9)
    labels = rng.choice([SEPARATOR, 2, 3, 4], shape, p=[0.4, 0.2, 0.2, 0.2]).astype(np.int32)
    paddings = rng.random(shape) < 0.2
    starts = np.cumsum(rng.integers(1, 3, shape), axis=-1).astype(np.int32)
    starts[rng.random(shape) < 0.1] = -1
    ends = np.where(starts < 0, -1, starts + rng.integers(0, 2, shape)).astype(np.int32)
    sure = np.where(starts < 0, -1, rng.random(shape)).astype(np.float32)
    nothing = jnp.zeros(shape[:2])
    times = jnp.asarray(starts), jnp.asarray(ends), jnp.asarray(sure)
    alignment = jaxctc.Alignment(jnp.zeros(shape, int), *times, nothing)

    @jax.jit
    def find(alignment, labels, paddings):
        return word_spans(alignment, labels, paddings, separator=SEPARATOR, confidence=confidence)

    found = jax.tree.map(np.asarray, find(alignment, labels, paddings))
    for place in np.ndindex(shape[:2]):
        parts = labels[place], ~paddings[place], starts[place], ends[place], sure[place]
        words = words_by_hand(*parts, COMBINE[confidence])
        assert found.counts[place] == len(words)
        words += [(-1, -1, -1)] * (shape[-1] - len(words))
        for result, truth in zip(found[:3], zip(*words, strict=True), strict=True):
            np.testing.assert_allclose(result[place], truth, rtol=1e-6)


@pytest.mark.parametrize("blank_id", BATCHES)
def test_every_awkward_input(blank_id):
    """Padding anywhere, no labels, labels that do not fit, NaN: words of what was aligned."""
    arguments = batch_of(BATCHES[blank_id])
    best = jaxctc.forced_align(*arguments, blank_id=blank_id)
    labels, paddings = arguments[2:]
    found = jax.tree.map(np.asarray, word_spans(best, labels, paddings, separator=SEPARATOR))
    spans = jax.tree.map(np.asarray, best[1:4])
    for row, case in enumerate(BATCHES[blank_id]):
        starts, ends, sure = (part[row] for part in spans)
        words = words_by_hand(labels[row], ~paddings[row], starts, ends, sure, min)
        assert found.counts[row] == len(words)
        assert found.starts[row, : len(words)].tolist() == [word[0] for word in words]
        assert (found.starts[row] >= 0).any() <= (case.kind == "finite")


def test_a_real_alignment():
    path = [0, 2, 2, 0, 3, 1, 0, 4, 4, 0]
    encoded = VOCABULARY.encode("ab c")
    best = jaxctc.forced_align(scores_of(path), None, encoded.labels, None)
    found = word_spans(best, encoded.labels, None, separator=SEPARATOR)
    assert found.starts.tolist() == [1, 7, -1, -1]
    assert found.ends.tolist() == [4, 8, -1, -1]
    labels_of_words = [best.confidences[:2].min(), best.confidences[3], -1, -1]
    np.testing.assert_allclose(found.confidences, labels_of_words)
    spans = timed_spans(found, encoded.words, frame_seconds=0.5, offset=10.0)
    assert [(s.text, s.start, s.end) for s in spans] == [("ab", 10.5, 12.5), ("c", 13.5, 14.5)]


def test_hypotheses_bring_their_labels():
    """Greedy ones, and those of a beam, with an axis of their own."""
    path = [0, 2, 2, 0, 3, 1, 0, 4, 4, 0]
    greedy = jaxctc.greedy_decode(scores_of(path), None)
    found = word_spans(greedy, separator=SEPARATOR)
    assert (found.starts[:3].tolist(), found.ends[:3].tolist()) == ([1, 7, -1], [4, 8, -1])
    beam = jaxctc.prefix_beam_search(scores_of(path), None, num_hypotheses=2, times=True)
    several = word_spans(beam, separator=SEPARATOR)
    assert several.starts.shape == beam.labels.shape
    np.testing.assert_array_equal(several.starts[0], found.starts)
    spans = timed_spans(several, VOCABULARY.words(beam.labels), frame_seconds=1.0)
    assert [span.text for span in spans[0]] == ["ab", "c"]
    with pytest.raises(ValueError, match=r"hypotheses without. Pass times=True"):
        word_spans(jaxctc.prefix_beam_search(scores_of(path), None), separator=SEPARATOR)


def test_pieces_begin_words():
    vocabulary = Vocabulary(["-", "▁a", "b", "▁c", "▁", "d"], separator="▁")
    encoded = vocabulary.encode("ab cb a")
    path = [1, 2, 0, 3, 2, 0, 1]
    best = jaxctc.forced_align(scores_of(path), None, encoded.labels, None)
    found = word_spans(best, encoded.labels, None, **vocabulary.word_options)
    assert (found.starts.tolist(), int(found.counts)) == ([0, 3, 6, -1, -1], 3)
    by_ids = word_spans(best, encoded.labels, None, word_ids=encoded.word_ids)
    for one, other in zip(found, by_ids, strict=True):
        np.testing.assert_array_equal(one, other)


def test_open_ends():
    """Two seconds of other speech on either side of the transcript are no part of its words."""
    path = [4, 5, 4, 5, 0, 2, 2, 1, 3, 0, 5, 4, 5, 4]
    encoded = VOCABULARY.encode("a b", open_ends=True)
    best = jaxctc.forced_align(
        scores_of(path),
        None,
        encoded.labels,
        None,
        wildcard_id=VOCABULARY.wildcard_id,
        wildcard_penalty=1.0,
    )
    found = word_spans(best, encoded.labels, None, word_ids=encoded.word_ids)
    spans = timed_spans(found, encoded.words, frame_seconds=0.5)
    assert [(s.text, s.start, s.end) for s in spans] == [("a", 2.5, 3.5), ("b", 4.0, 4.5)]
    closed = VOCABULARY.encode("a b")
    whole = jaxctc.forced_align(scores_of(path), None, closed.labels, None)
    assert int(whole.starts[0]) == 5  # the blanks around cost a certain model dearly
    assert float(whole.score) < float(best.score) - 20


def test_unknown_words_have_times():
    encoded = VOCABULARY.encode("a £5 b", unknown="wildcard")
    best = jaxctc.forced_align(
        scores_of([2, 1, 5, 5, 5, 1, 3]),
        None,
        encoded.labels,
        None,
        wildcard_id=VOCABULARY.wildcard_id,
        wildcard_penalty=0.5,
    )
    found = word_spans(best, encoded.labels, None, separator=SEPARATOR)
    spans = timed_spans(found, encoded.words, frame_seconds=1.0)
    assert [(s.text, s.start, s.end) for s in spans] == [("a", 0, 1), ("£5", 2, 5), ("b", 6, 7)]


def test_a_word_without_frames_has_no_length():
    """Where a wildcard absorbs nothing."""
    words = WordSpans(
        jnp.array([-1, 2, -1]), jnp.array([-1, 3, -1]), jnp.array([-1.0, 0.5, -1.0]), jnp.array(3)
    )
    spans = timed_spans(words, ["x", "y", "z"], frame_seconds=0.5)
    assert spans == [Span("x", 0, 0), Span("y", 1.0, 2.0, 0.5), Span("z", 2.0, 2.0)]


def test_what_cannot_be_aligned_has_no_spans():
    """And leaves its neighbours alone."""
    encoded = VOCABULARY.encode(["ab cd", "a"])
    logits = np.stack([scores_of([2, 3]), scores_of([0, 2])])
    best = jaxctc.forced_align(logits, None, encoded.labels, encoded.label_paddings)
    found = word_spans(best, encoded.labels, encoded.label_paddings, separator=SEPARATOR)
    assert found.counts.tolist() == [2, 1]
    spans = timed_spans(found, encoded.words, frame_seconds=1.0)
    assert spans[0] == []
    assert [(s.text, s.start) for s in spans[1]] == [("a", 1)]


def test_characters_have_times_too():
    best = jaxctc.greedy_decode(scores_of([2, 0, 3]), None)
    spans = timed_spans(best, list("ab"), frame_seconds=2.0)
    assert [(s.text, s.start, s.end) for s in spans] == [("a", 0, 2), ("b", 4, 6)]


def test_confidences_are_differentiable():
    encoded = VOCABULARY.encode("ab c")
    logits = jnp.asarray(scores_of([2, 3, 1, 4, 0], 1.0))

    @jax.jit
    def of_first_word(logits):
        best = jaxctc.forced_align(logits, None, encoded.labels, None)
        words = word_spans(best, encoded.labels, None, separator=SEPARATOR, confidence="product")
        return words.confidences[0], best.confidences[0] * best.confidences[1]

    word, labels = (jax.grad(lambda x, i=i: of_first_word(x)[i])(logits) for i in (0, 1))
    assert float(jnp.abs(labels).max()) > 1e-3
    np.testing.assert_allclose(word, labels, atol=1e-6)


@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0, 2), st.text("ab", max_size=6))))
def test_grouped_words_keep_their_order_and_limits(drawn):
    words, time = [], 0.0
    for gap, length, text in drawn:
        words.append(Span(text, time + gap, time + gap + length, None))
        time += gap + length
    lines = group_spans(words, max_characters=10, max_seconds=4.0, max_gap=1.0)
    assert [word for line in lines for word in line.parts] == words
    for line in lines:
        assert line.text == " ".join(word.text for word in line.parts)
        if len(line.parts) > 1:
            assert len(line.text) <= 10
            assert line.end - line.start <= 4.0
    for line, after in itertools.pairwise(lines):
        longer = f"{line.text} {after.parts[0].text}"
        assert (
            len(longer) > 10
            or after.parts[0].end - line.start > 4.0
            or after.start - line.end > 1.0
        )


def test_known_lines():
    words = [Span(text, place, place + 1, 0.9 - place / 10) for place, text in enumerate("abc")]
    lines = group_spans(words, counts=[2, 0, 1])
    assert lines == [Span("a b", 0, 2, 0.8, tuple(words[:2])), Span("c", 2, 3, 0.7, (words[2],))]


def test_characters_have_no_space_between():
    signs = [Span(text, place, place + 1) for place, text in enumerate("abcd")]
    lines = group_spans(signs, max_characters=3, space="")
    assert [line.text for line in lines] == ["abc", "d"]


ZEROS = jnp.zeros((2, 3), jnp.int32)
ALIGNMENT = jaxctc.Alignment(ZEROS, ZEROS, ZEROS, jnp.zeros((2, 3)), jnp.zeros(2))
LABELS = np.ones((2, 3), np.int32)
WORDS = WordSpans(jnp.array([0]), jnp.array([1]), jnp.ones(1), jnp.array(1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: word_spans(ALIGNMENT, LABELS), "say alone what a word is; got 0 of them. Voc"),
        (
            lambda: word_spans(ALIGNMENT, LABELS, separator=1, word_ids=LABELS),
            "say alone what a word is; got 2 of them",
        ),
        (lambda: word_spans(ALIGNMENT, separator=1), "labels must be what was aligned"),
        (lambda: word_spans(ALIGNMENT, LABELS[0], separator=1), r"have shape \(2, 3\), as in"),
        (lambda: word_spans(ALIGNMENT, LABELS, word_ids=LABELS[0]), r"have shape \(2, 3\); got"),
        (lambda: word_spans(ALIGNMENT, LABELS, word_starts=LABELS), r"have shape \[K\]"),
        (
            lambda: word_spans(ALIGNMENT, LABELS, separator=1, confidence=cast(Any, "min")),
            "must be one of 'minimum', 'mean', 'product'; got 'min'",
        ),
        (lambda: timed_spans(WORDS, ["a"], frame_seconds=0.0), "be a positive number of seconds"),
        (lambda: timed_spans(WORDS, ["a"], frame_seconds=1.0, offset=np.inf), "be finite"),
        (lambda: timed_spans(WORDS, ["a", "b"], frame_seconds=1.0), "be at most 1, as many as"),
        (lambda: timed_spans(WORDS, "a", frame_seconds=1.0), "be a sequence of strings"),
        (lambda: timed_spans(ALIGNMENT, [["a"]], frame_seconds=1.0), "one sequence for each of 2"),
        (lambda: group_spans([Span("a", 0, 1)], counts=[2]), "counts must add up to 1 words"),
        (lambda: group_spans([], max_characters=0), "max_characters must be at least 1"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
