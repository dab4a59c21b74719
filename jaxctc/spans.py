"""Words with their frames, as arrays; and with their seconds, on the host."""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Shaped

from jaxctc._core import checks
from jaxctc._core.explicit_axes import over_explicit_axes
from jaxctc._core.ragged import pack_left
from jaxctc.alignment import Alignment
from jaxctc.decoding.greedy import Hypotheses


class WordSpans(NamedTuple):
    """Words and their frames, in as many places as there are labels; -1 after the last word."""

    starts: Int[Array, "*B N"]
    """First frame of each word; -1 for one without frames, too."""
    ends: Int[Array, "*B N"]
    """Last frame of each word, itself included; -1 for one without frames, too."""
    confidences: Float[Array, "*B N"]
    """In [0, 1], from those of the word's labels; -1 for a word without frames, too."""
    counts: Int[Array, "*B"]
    """How many words there are."""


class Span(NamedTuple):
    """A text and its time, on the host."""

    text: str
    """What is said or written there."""
    start: float
    """When it begins, in seconds."""
    end: float
    """When it ends, in seconds."""
    confidence: float | None = None
    """In [0, 1]; None where nothing is known."""
    parts: tuple["Span", ...] = ()
    """The spans that it is made of: the words of a line, the characters of a word."""


@over_explicit_axes
def word_spans(
    alignment: Alignment | Hypotheses,
    labels: Int[ArrayLike, "*B N"] | None = None,
    label_paddings: Shaped[ArrayLike, "*B N"] | None = None,
    *,
    separator: int | None = None,
    word_starts: Bool[ArrayLike, "K"] | Sequence[bool] | None = None,
    word_ids: Int[ArrayLike, "*B N"] | None = None,
    confidence: Literal["minimum", "mean", "product"] = "minimum",
) -> WordSpans:
    """The frames of words, from those of their labels.

    What a word is says one of three options. Separators belong to no word, and there are no empty
    words.

    Args:
      alignment: what `forced_align` returns, or a decoder: `greedy_decode`, or
        `prefix_beam_search` with `times=True`.
      labels: what was aligned; None for hypotheses, which bring theirs.
      label_paddings: nonzero where padded; None pads nothing. For hypotheses, -1 is padding.
      separator: static class id of the token between words.
      word_starts: for word pieces, True for each class that begins a word; ids that are no
        class, such as a wildcard's, go on with the word before.
      word_ids: the place in the result of the word that each label belongs to, -1 for none, as
        `Vocabulary.encode` gives them. It is the one to take where wildcards stand at open
        ends, which belong to no word, or for words of which no token is known.
      confidence: static; the "minimum", the "mean" or the "product" of the confidences of the
        word's labels.

    Returns:
      `WordSpans`, the words in their order. A label without frames (a wildcard that absorbed
      nothing) does not count; where labels could not be aligned no word has frames. Confidences
      are differentiable, as those of the alignment are.

    Raises:
      ValueError: unless one of the three options says what a word is; if shapes disagree,
        or the hypotheses have no times.

    Example:
      The words "1 2" and "1", with a 3 between them:

      >>> from jaxctc import forced_align
      >>> path = jnp.array([1, 0, 2, 2, 3, 0, 1])
      >>> best = forced_align(9.0 * jax.nn.one_hot(path, 4), None, [1, 2, 3, 1], None)
      >>> words = word_spans(best, [1, 2, 3, 1], None, separator=3)
      >>> words.starts.tolist(), words.ends.tolist(), int(words.counts)
      ([0, 6, -1, -1], [3, 6, -1, -1], 2)
    """
    function = "word_spans"
    checks.choice(function, "confidence", confidence, ("minimum", "mean", "product"))
    if alignment.starts is None or alignment.ends is None or alignment.confidences is None:
        remedy = "Pass times=True to prefix_beam_search."
        checks.fail(function, "alignment", "have starts and ends", "hypotheses without", remedy)
    if isinstance(alignment, Hypotheses):
        labels, label_paddings = alignment.labels, alignment.labels < 0
    if labels is None:
        checks.fail(function, "labels", "be what was aligned", None)
    ids = checks.class_ids(function, "labels", labels)
    if ids.shape != alignment.starts.shape:
        requirement = f"have shape {alignment.starts.shape}, as in alignment"
        checks.fail(function, "labels", requirement, ids.shape)
    is_label = ~checks.paddings(function, "label_paddings", label_paddings, ids.shape)
    words = _words_of_labels(ids, is_label, separator, word_starts, word_ids)
    return _gather(confidence, words, alignment.starts, alignment.ends, alignment.confidences)


def _words_of_labels(
    ids: Int[Array, "*B N"],
    is_label: Bool[Array, "*B N"],
    separator: int | None,
    word_starts: Any,
    word_ids: Any,
) -> Int[Array, "*B N"]:
    """The place of the word that each label belongs to; -1 for none."""
    function, options = "word_spans", (separator, word_starts, word_ids)
    if sum(option is not None for option in options) != 1:
        given = sum(option is not None for option in options)
        requirement = "say alone what a word is"
        remedy = "Vocabulary.word_options has one of the first two, EncodedText the last."
        which = "separator, word_starts or word_ids"
        checks.fail(function, which, requirement, f"{given} of them", remedy)
    if word_ids is not None:
        words = checks.class_ids(function, "word_ids", word_ids)
        if words.shape != ids.shape:
            checks.fail(function, "word_ids", f"have shape {ids.shape}", words.shape)
        return jnp.where(is_label, words, jnp.full_like(words, -1))
    if word_starts is not None:
        begins_here = checks.as_array(function, "word_starts", word_starts)
        if begins_here.ndim != 1:
            checks.fail(function, "word_starts", "have shape [K]", begins_here.shape)
        is_member, begins = is_label, _is_one_of(ids, begins_here.astype(bool))
        begins |= _count(is_label) == 1  # the first one in use
    else:
        is_member = is_label & (ids != checks.some_id(function, "separator", separator))
        begins = _is_first_member(is_member, is_label)
    places = _count(is_member & begins) - 1
    return jnp.where(is_member, places, jnp.full_like(places, -1))


def _count(flags: Bool[Array, "*B N"]) -> Int[Array, "*B N"]:
    """How many are True up to each place, itself included."""
    return jnp.cumsum(flags, axis=-1, dtype=jnp.int32)


@functools.partial(jnp.vectorize, signature="(n)->(n)", excluded=(1,))
def _is_one_of(ids: Int[Array, " N"], classes: Bool[Array, " K"]) -> Bool[Array, " N"]:
    return classes.at[ids].get(mode="fill", fill_value=False, wrap_negative_indices=False)


def _is_first_member(
    is_member: Bool[Array, "*B N"], is_label: Bool[Array, "*B N"]
) -> Bool[Array, "*B N"]:
    """True for a member whose neighbour on the left, padding left out, is none."""
    packed = pack_left(is_member, is_label)
    edge = jnp.zeros_like(packed[..., :1])
    after_none = ~jnp.concatenate([edge, packed[..., :-1]], axis=-1)
    places = jnp.maximum(_count(is_label) - 1, 0)
    return is_member & jnp.take_along_axis(after_none, places, axis=-1, mode="clip")


@functools.partial(jax.jit, static_argnums=0)
def _gather(
    confidence: str,
    words: Int[Array, "*B N"],
    starts: Int[Array, "*B N"],
    ends: Int[Array, "*B N"],
    confidences: Float[Array, "*B N"],
) -> WordSpans:
    size = words.shape[-1]

    @functools.partial(jnp.vectorize, signature="(n),(n),(n),(n)->(n),(n),(n),()")
    def one(words, starts, ends, confidences):
        nowhere = jnp.full_like(words, size)
        is_shown = (words >= 0) & (words < size)
        place = jnp.where(is_shown & (starts >= 0), words, nowhere)
        first = jnp.full_like(starts, jnp.iinfo(starts.dtype).max)
        first = first.at[place].min(starts, mode="drop")
        last = jnp.full_like(ends, -1).at[place].max(ends, mode="drop")
        sure = _combined(confidence, confidences, place)
        has_frames = last >= 0
        first = jnp.where(has_frames, first, last)
        sure = jnp.where(has_frames, sure, jnp.full_like(sure, -1))
        count = jnp.max(jnp.where(is_shown, words + 1, jnp.zeros_like(words)), initial=0)
        return first, last, sure, count

    return WordSpans(*one(words, starts, ends, confidences))


def _combined(how: str, values: Float[Array, " N"], place: Int[Array, " N"]) -> Float[Array, " N"]:
    """One number for the values at each place."""
    ones, zeros = jnp.ones_like(values), jnp.zeros_like(values)
    least = ones.at[place].min(values, mode="drop")
    if how == "minimum":
        return least
    if how == "product":  # by logarithms, as a scatter that multiplies has no derivative
        logs = jnp.log(jnp.where(values > 0, values, ones))
        product = jnp.exp(zeros.at[place].add(logs, mode="drop"))
        return jnp.where(least > 0, product, zeros)
    total, count = (zeros.at[place].add(part, mode="drop") for part in (values, ones))
    return total / jnp.maximum(count, ones)


def timed_spans(
    spans: WordSpans | Alignment | Hypotheses,
    texts: Sequence[Any],
    *,
    frame_seconds: float,
    offset: float = 0.0,
) -> list[Any]:
    """Texts with the seconds at which they begin and end, for the host.

    Frame t lasts from `offset + t · frame_seconds` to `offset + (t + 1) · frame_seconds`: its
    length is the hop of the features times the subsampling of the model.

    Args:
      spans: of words, what `word_spans` returns; of labels, an alignment or hypotheses.
      texts: the text of each word or label: `EncodedText.words`, or `Vocabulary.words`. For a
        batch, a sequence of them for each example, nested like its axes.
      frame_seconds: seconds from one frame to the next.
      offset: seconds at which the first frame begins.

    Returns:
      A list of `Span`, nested for a batch. A text without frames, whose wildcard absorbed
      nothing, has no length, and stands where the one before ends. The list is empty where no
      text has frames: the labels could not be aligned.

    Raises:
      ValueError: if there are more texts than places, `frame_seconds` is not positive, or
        `offset` is not finite.

    Example:
      >>> words = WordSpans(jnp.array([0, 6]), jnp.array([3, 6]), jnp.ones(2), jnp.array(2))
      >>> timed_spans(words, ["to", "be"], frame_seconds=0.25, offset=10.0)[1]
      Span(text='be', start=11.5, end=11.75, confidence=1.0, parts=())
    """
    function = "timed_spans"
    for argument, value, least in (
        ("frame_seconds", frame_seconds, 0.0),
        ("offset", offset, -math.inf),
    ):
        number = checks.host_array(function, argument, value, "be a number of seconds", np.float64)
        if number.ndim or not least < number < math.inf:
            requirement = "be a positive number of seconds" if least == 0 else "be finite"
            checks.fail(function, argument, requirement, value)
    if spans.starts is None or spans.ends is None or spans.confidences is None:
        remedy = "Pass times=True to prefix_beam_search."
        checks.fail(function, "spans", "have starts and ends", "hypotheses without", remedy)
    starts, ends, sure = map(np.asarray, (spans.starts, spans.ends, spans.confidences))
    return _timed(starts, ends, sure, texts, float(frame_seconds), float(offset))


def _timed(
    starts: np.ndarray,
    ends: np.ndarray,
    confidences: np.ndarray,
    texts: Sequence[Any],
    frame_seconds: float,
    offset: float,
) -> list[Any]:
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        requirement = "be a sequence of strings, nested like the batch"
        checks.fail("timed_spans", "texts", requirement, repr(texts)[:40])
    if starts.ndim > 1:
        if len(texts) != len(starts):
            requirement = f"have one sequence for each of {len(starts)} examples"
            checks.fail("timed_spans", "texts", requirement, len(texts))
        rows = zip(starts, ends, confidences, texts, strict=True)
        return [_timed(*row, frame_seconds, offset) for row in rows]
    if len(texts) > len(starts):
        requirement = f"be at most {len(starts)}, as many as spans have places"
        checks.fail("timed_spans", "texts", requirement, len(texts))
    if not np.any(starts[: len(texts)] >= 0):
        return []
    times = zip(texts, starts.tolist(), ends.tolist(), confidences.tolist(), strict=False)
    return list(_in_seconds(times, frame_seconds, offset))


def _in_seconds(
    rows: Iterator[tuple[str, int, int, float]], frame_seconds: float, offset: float
) -> Iterator[Span]:
    after = 0  # the frame after the last one that has been used
    for text, start, end, confidence in rows:
        if start < 0:
            time = offset + after * frame_seconds
            yield Span(text, time, time)
            continue
        after = end + 1
        yield Span(text, offset + start * frame_seconds, offset + after * frame_seconds, confidence)


def group_spans(
    spans: Sequence[Span],
    *,
    counts: Sequence[int] | None = None,
    max_characters: int = 84,
    max_seconds: float = 7.0,
    max_gap: float = 1.5,
    space: str = " ",
) -> list[Span]:
    """Words put together to lines, as subtitles show them.

    Args:
      spans: words, in the order of their times.
      counts: how many words each line has, for lines that are known; one of 0 words is left
        out. None begins a line where the next word would make it too long, by any of:
      max_characters: the longest text of a line, in characters. A longer word stands alone.
      max_seconds: the longest time of a line.
      max_gap: the longest silence within a line, in seconds.
      space: what stands between two words in the text of a line; "" for spans of characters.

    Returns:
      A list of `Span`, the words as `parts` of each. The confidence is the least of the words',
      None if none has one.

    Raises:
      ValueError: if `counts` do not add up to the number of words, or `max_characters` is
        not at least 1.

    Example:
      >>> words = [Span("to", 0.0, 0.5), Span("be", 0.6, 1.0), Span("or", 4.0, 4.5)]
      >>> [(line.text, line.start, line.end) for line in group_spans(words)]
      [('to be', 0.0, 1.0), ('or', 4.0, 4.5)]
    """
    function, words = "group_spans", list(spans)
    longest = checks.count(function, "max_characters", max_characters, least=1)
    if counts is not None:
        sizes = [checks.count(function, "counts", count) for count in counts]
        if sum(sizes) != len(words):
            checks.fail(function, "counts", f"add up to {len(words)} words", sum(sizes))
        ends = np.cumsum([0, *sizes]).tolist()
        lines = [words[start:end] for start, end in itertools.pairwise(ends)]
        return [_line(line, space) for line in lines if line]
    lines: list[list[Span]] = []
    for word in words:
        line = [*lines[-1], word] if lines else []
        fits = (
            line
            and len(space.join(part.text for part in line)) <= longest
            and word.end - line[0].start <= max_seconds
            and word.start - line[-2].end <= max_gap
        )
        if fits:
            lines[-1] = line
        else:
            lines.append([word])
    return [_line(line, space) for line in lines]


def _line(words: list[Span], space: str) -> Span:
    known = [word.confidence for word in words if word.confidence is not None]
    return Span(
        space.join(word.text for word in words),
        words[0].start,
        words[-1].end,
        min(known, default=None),
        tuple(words),
    )
