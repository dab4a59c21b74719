r"""Subtitles and transcripts from a file of scores, as commands.

    python -m jaxctc align LOGITS.npy TEXT.txt --vocabulary TOKENS.txt --frame-seconds 0.02 \
        --output OUT.srt
    python -m jaxctc decode LOGITS.npy --vocabulary TOKENS.txt --beam-width 32 --best 5

If an input is wrong, one line says what, and no file is ever written in part.
"""

import argparse
import dataclasses
import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from jaxctc._core import checks
from jaxctc.alignment import Alignment, forced_align
from jaxctc.command_line import new_parser
from jaxctc.decoding.arpa import read_arpa
from jaxctc.decoding.beam_search import beam_finish, beam_init, beam_step
from jaxctc.decoding.language_models import hot_words
from jaxctc.decoding.lexicon import read_lexicon
from jaxctc.padding import required_frames, validate
from jaxctc.spans import Span, group_spans, timed_spans, word_spans
from jaxctc.subtitles import FORMATS, as_object, format_of, format_spans, write_whole
from jaxctc.text import EncodedText, Vocabulary

CHUNK = 500
"""Frames that the beam search takes between two reports of its progress."""
LONG = 20_000
"""Frames from which on an alignment says what it is at."""
PATIENCE = 10
"""Seconds between two signs of life while it aligns."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    options = new_parser().parse_args(arguments)
    try:
        {"align": run_align, "decode": run_decode}[options.command](options)
    except (ValueError, OSError) as error:
        print(f"python -m jaxctc: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def run_align(options: argparse.Namespace) -> None:
    """When each word of the text is said."""
    form = _format_of_output(options, FORMATS) or "srt"
    vocabulary = _vocabulary(options)
    scores = _scores(options, vocabulary)
    lines = _lines(options.command, options.text)
    if _are_words_apart(vocabulary, lines):
        vocabulary = dataclasses.replace(vocabulary, separator="")
    each = _encode(options, vocabulary, options.text, lines)
    encoded = _joined(vocabulary, each, options.open_ends)
    labels, word_ids = encoded.labels, encoded.word_ids
    has_wildcards = bool(np.any(labels == vocabulary.wildcard_id))
    wildcard = vocabulary.wildcard_id if has_wildcards else None
    _check_fit(options, scores, labels, wildcard, vocabulary.blank_id)
    best = _align(
        options,
        vocabulary,
        scores,
        labels,
        label_priors=_priors(options.priors, vocabulary),
        prior_scale=options.prior_scale,
        wildcard_id=wildcard,
        wildcard_penalty=options.wildcard_penalty,
    )
    if len(labels) and not math.isfinite(best.score):
        got = f"a score of {float(best.score)} nats"
        checks.fail("align", str(options.logits), "give the text some probability", got)
    found = word_spans(best, labels, None, word_ids=word_ids)
    seconds = {"frame_seconds": options.frame_seconds, "offset": options.offset}
    words = timed_spans(found, [word for line in encoded.words for word in line], **seconds)
    cues = words
    if options.cues == "short":
        cues = group_spans(words, space="" if vocabulary.separator is None else " ")
    elif options.cues == "lines" and words:
        cues = _lines_as_written(words, lines, [len(line) for line in encoded.words])
    _write_cues(options, cues, form, len(scores))


def _align(
    options: argparse.Namespace,
    vocabulary: Vocabulary,
    scores: Float[np.ndarray, "T K"],
    labels: Int[np.ndarray, " N"],
    **how: Any,
) -> Alignment:
    what = f"aligning {len(labels)} labels to {len(scores)} frames"
    with _announced(what, is_long=len(scores) >= LONG):
        best = forced_align(
            scores,
            None,
            labels,
            None,
            blank_id=vocabulary.blank_id,
            logits_normalized=options.log_probs,
            **how,
        )
        return jax.block_until_ready(best)


def _lines_as_written(words: list[Span], lines: list[str], counts: list[int]) -> list[Span]:
    """A span for each line that has words, with the line's own text."""
    shown = [line.strip() for line, count in zip(lines, counts, strict=True) if count]
    spans = group_spans(words, counts=counts)
    return [span._replace(text=text) for span, text in zip(spans, shown, strict=True)]


def _joined(vocabulary: Vocabulary, batch: EncodedText, open_ends: bool) -> EncodedText:
    """The lines as one text; `words` stay parted by lines."""
    end = np.full(int(open_ends), vocabulary.wildcard_id, np.int32)
    none = np.full_like(end, -1)
    labels, word_ids, count = [end], [none], 0
    for row, ids, line in zip(batch.labels, batch.word_ids, batch.words, strict=True):
        if not line:
            continue
        if count and vocabulary.separator_id is not None:
            labels.append(np.array([vocabulary.separator_id], np.int32))
            word_ids.append(np.array([-1], np.int32))
        labels.append(row[row >= 0])
        word_ids.append(np.where(ids < 0, ids, ids + count)[row >= 0])
        count += len(line)
    whole = np.concatenate([*labels, end])
    ids = np.concatenate([*word_ids, none])
    return EncodedText(whole, whole < 0, ids, batch.words, batch.unknown)


def run_decode(options: argparse.Namespace) -> None:
    """What is said: the best hypotheses with their scores, or the best one as cues."""
    form = _format_of_output(options, ("txt", *FORMATS)) or "txt"
    if options.frame_seconds is None and form not in ("txt", "json"):
        checks.fail("decode", "--frame-seconds", f"be given for .{form}", None)
    if options.best > options.beam_width:
        remedy = "See --beam-width."
        checks.fail("decode", "--best", f"be at most {options.beam_width}", options.best, remedy)
    vocabulary = _vocabulary(options)
    scores = _scores(options, vocabulary)
    validate(scores, None, np.zeros(0, np.int32), None, blank_id=vocabulary.blank_id)
    best = _search(options, vocabulary, scores)
    found = [
        (round(float(score), 6), np.asarray(labels[:length]))
        for labels, length, score in zip(best.labels, best.lengths, best.scores, strict=True)
        if score > -math.inf
    ]
    if not found:
        got = "none in the beam"
        remedy = "See --beam-width, --lexicon and --unknown-score." if options.lexicon else ""
        checks.fail("decode", str(options.logits), "give some text a probability", got, remedy)
    if form == "txt":
        lines = (f"{score:.4f}\t{vocabulary.decode(labels)}\n" for score, labels in found)
        _write(options.output, "".join(lines))
    elif form == "json":
        results = [
            {"score": score, "text": vocabulary.decode(labels)}
            | _times_as_object(options, vocabulary, scores, labels)
            for score, labels in found
        ]
        dump = json.dumps({"hypotheses": results}, ensure_ascii=False, indent=2)
        _write(options.output, dump + "\n")
    else:
        cues = _said(options, vocabulary, scores, found[0][1])
        _write_cues(options, cues, form, len(scores))


def _times_as_object(
    options: argparse.Namespace,
    vocabulary: Vocabulary,
    scores: Float[np.ndarray, "T K"],
    labels: Int[np.ndarray, " N"],
) -> dict[str, Any]:
    """The spans of a hypothesis for JSON, if a frame's time is known."""
    if options.frame_seconds is None:
        return {}
    return {"spans": [as_object(span) for span in _said(options, vocabulary, scores, labels)]}


def _search(
    options: argparse.Namespace, vocabulary: Vocabulary, scores: Float[np.ndarray, "T K"]
) -> Any:
    """A beam search in chunks of one shape, so that it is compiled once."""
    models: dict[str, Any] = {}
    if options.arpa is not None:
        separator, limit = vocabulary.separator_id, options.max_bytes
        names = vocabulary.tokens
        models["language_model"] = (
            read_arpa(options.arpa, names, max_bytes=limit)
            if separator is None
            else read_arpa(options.arpa, names, separator=separator, max_bytes=limit)
        )
    if options.hot_words is not None:
        models["hot_words"] = hot_words(*_hot_words(options, vocabulary))
    if options.lexicon is not None:
        models["lexicon"] = read_lexicon(
            options.lexicon,
            vocabulary,
            unknown=options.unknown,
            normalize=_change_of_case(options),
            unknown_score=options.unknown_score,
        )
    state = beam_init(len(scores), beam_width=options.beam_width, **models)
    weights = {"lm_weight": options.lm_weight}
    for start in _progress(range(0, len(scores), CHUNK)):
        chunk = scores[start : start + CHUNK]
        missing = CHUNK - len(chunk) if start else 0
        state = beam_step(
            state,
            np.pad(chunk, ((0, missing), (0, 0))),
            np.arange(len(chunk) + missing) >= len(chunk),
            blank_id=vocabulary.blank_id,
            logits_normalized=options.log_probs,
            length_bonus=options.length_bonus,
            **weights,
            **models,
        )
        jax.block_until_ready(state)  # so that the progress is the work's, not the queue's
    return beam_finish(state, num_hypotheses=options.best, **weights, **models)


def _hot_words(
    options: argparse.Namespace, vocabulary: Vocabulary
) -> tuple[list[list[int]], list[float]]:
    words, bonuses = [], []
    for line in _lines("decode", options.hot_words):
        phrase, _, bonus = line.partition("\t")
        words.append(phrase)
        try:
            bonuses.append(float(bonus) if bonus.strip() else options.hot_word_bonus)
        except ValueError:
            checks.fail("decode", str(options.hot_words), "have numbers after tabs", repr(line))
    encoded = _encode(options, vocabulary, options.hot_words, words)
    return [row[row >= 0].tolist() for row in encoded.labels], bonuses


def _said(
    options: argparse.Namespace,
    vocabulary: Vocabulary,
    scores: Float[np.ndarray, "T K"],
    labels: Int[np.ndarray, " N"],
) -> list[Span]:
    """Lines of the words of a hypothesis, with times; of its labels, if there is no separator."""
    best = _align(options, vocabulary, scores, labels)
    seconds = {"frame_seconds": options.frame_seconds, "offset": options.offset}
    if vocabulary.separator is None:
        signs = [vocabulary.tokens[label] for label in labels]
        return group_spans(timed_spans(best, signs, **seconds), space="")
    found = word_spans(best, labels, None, **vocabulary.word_options)
    return group_spans(timed_spans(found, vocabulary.words(labels), **seconds))


# What comes in, and what is wrong with it.


def _vocabulary(options: argparse.Namespace) -> Vocabulary:
    vocabulary = Vocabulary.from_file(options.vocabulary, blank_id=options.blank_id)
    separator = options.separator
    if separator is None:
        tokens = vocabulary.tokens
        is_used = {mark: any(t == mark for t in tokens) for mark in ("|", " ")}
        is_used = {"▁": any(t.startswith("▁") for t in tokens)} | is_used
        separator = next((mark for mark, used in is_used.items() if used), "")
    return dataclasses.replace(vocabulary, separator=separator or None)


def _are_words_apart(vocabulary: Vocabulary, lines: list[str]) -> bool:
    """Whether the text has words where the vocabulary has nothing to put between them."""
    if vocabulary.separator is not None or any(token.isspace() for token in vocabulary.tokens):
        return False
    return any(len(line.split()) > 1 for line in lines)


def _change_of_case(options: argparse.Namespace) -> Callable[[str], str] | None:
    return {"keep": None, "lower": str.lower, "upper": str.upper}[options.case]


def _encode(
    options: argparse.Namespace, vocabulary: Vocabulary, path: Path, texts: list[str]
) -> EncodedText:
    """The lines of a file as ids; says which characters are unknown, or that none may be.

    Where nothing says what a word is, each label counts as one, so that it has a time.
    """
    change = _change_of_case(options)
    may_be = options.unknown != "raise"
    how = "wildcard" if options.unknown == "wildcard" else "drop"
    encoded = vocabulary.encode(texts, unknown=how, normalize=change)
    some = ", ".join(f"{sign!r} ({count})" for sign, count in encoded.unknown.most_common(8))
    if some and not may_be:
        remedy = "See --case and --separator, or --unknown."
        requirement = "have a token for every character"
        checks.fail(options.command, str(path), requirement, some, remedy)
    if some:
        done = "left out" if how == "drop" else "taken for wildcards"
        print(f"characters without a token, {done}: {some}", file=sys.stderr)
    if vocabulary.separator is not None:
        return encoded
    places = np.broadcast_to(
        np.arange(encoded.labels.shape[1], dtype=np.int32), encoded.labels.shape
    )
    signs = [[vocabulary.decode([label]) for label in row[row >= 0]] for row in encoded.labels]
    return encoded._replace(word_ids=np.where(encoded.labels < 0, -1, places), words=signs)


def _scores(options: argparse.Namespace, vocabulary: Vocabulary) -> Float[np.ndarray, "T K"]:
    command, path = options.command, options.logits
    scores, classes = _array(command, path), len(vocabulary.tokens)
    while scores.ndim > 2 and scores.shape[0] == 1:
        scores = scores[0]
    if scores.ndim != 2 or scores.shape[1] != classes:
        remedy = "It is transposed." if scores.shape == (classes, *scores.shape[1:]) else ""
        if scores.ndim > 2:
            remedy = "It may hold one recording."
        requirement = f"have shape [frames, {classes}], as there are {classes} tokens"
        checks.fail(command, str(path), requirement, scores.shape, remedy)
    return scores


def _array(command: str, path: Path) -> Float[np.ndarray, "..."]:
    """Real numbers from a file, as float32."""
    requirement = "be an array in NumPy's .npy format"
    remedy = "numpy.save writes one; of a tensor, take its .cpu().numpy()."
    with path.open("rb") as file:
        prefix = np.lib.format.MAGIC_PREFIX
        if file.read(len(prefix)) != prefix:  # an archive would be NumPy's own .npz, or PyTorch's
            checks.fail(command, str(path), requirement, "something else", remedy)
    try:
        # A map takes no memory, whatever shape the file claims to have.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OverflowError):  # the first also for what only pickle could read
        checks.fail(command, str(path), requirement, "a part of one, or objects", remedy)
    rest = path.stat().st_size - array.offset - array.nbytes
    if rest:
        checks.fail(command, str(path), "hold one array", f"{rest} bytes more, after its end")
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        checks.fail(command, str(path), "hold real numbers", array.dtype)
    return np.array(array, np.float32)


def _priors(path: Path | None, vocabulary: Vocabulary) -> Float[np.ndarray, " K"] | None:
    if path is None:
        return None
    priors = _array("align", path)
    if priors.shape != (len(vocabulary.tokens),):
        checks.fail("align", str(path), f"have shape {(len(vocabulary.tokens),)}", priors.shape)
    return priors


def _lines(command: str, path: Path) -> list[str]:
    """The lines of a file that have something on them."""
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        checks.fail(command, str(path), "be text in UTF-8", str(error))
    return [line for line in text.splitlines() if line.strip()]


def _check_fit(
    options: argparse.Namespace,
    scores: Float[np.ndarray, "T K"],
    labels: Int[np.ndarray, " N"],
    wildcard: int | None,
    blank: int,
) -> None:
    """Refuses scores that are NaN, and more text than there are frames."""
    needed = int(required_frames(labels, wildcard_id=wildcard))
    if needed > len(scores):
        got = f"one that needs {needed} frames, and {len(scores)} frames in {options.logits}"
        checks.fail("align", str(options.text), "be a text that fits into the frames", got)
    validate(scores, None, labels, None, blank_id=blank, wildcard_id=wildcard)


def _format_of_output(options: argparse.Namespace, known: tuple[str, ...]) -> str | None:
    """The format that the output's name ends with; None for the standard output."""
    path = options.output
    if path is None:
        return None
    if not path.parent.is_dir():
        checks.fail("--output", str(path), "be in a folder that is there", str(path.parent))
    return "txt" if path.suffix == ".txt" and "txt" in known else format_of("--output", path)


# What goes out, and what is said meanwhile.


def _write_cues(options: argparse.Namespace, cues: list[Span], form: str, frames: int) -> None:
    duration = options.offset + frames * options.frame_seconds
    name = (options.output or options.logits).stem
    _write(options.output, format_spans(cues, form, duration=duration, recording=name))


def _write(path: Path | None, text: str) -> None:
    if path is None:
        sys.stdout.write(text)
    else:
        write_whole(path, text)


@contextmanager
def _announced(what: str, is_long: bool) -> Iterator[None]:
    """Says what is going on, that it still is every ten seconds, and how long it took."""
    if not is_long:
        yield
        return
    start, is_done = time.monotonic(), threading.Event()

    def say_so() -> None:
        while not is_done.wait(PATIENCE):
            print(f"{time.monotonic() - start:.0f} s … ", end="", file=sys.stderr, flush=True)

    print(f"{what} … ", end="", file=sys.stderr, flush=True)
    speaker = threading.Thread(target=say_so, daemon=True)
    speaker.start()
    try:
        yield
    finally:
        is_done.set()
        speaker.join()
        print(f"{time.monotonic() - start:.1f} s", file=sys.stderr)


def _progress(steps: range) -> Iterator[int]:
    """A bar, if tqdm is installed and there is more than one step; else a line at every tenth."""
    if len(steps) < 2:
        yield from steps
        return
    try:
        from tqdm import tqdm
    except ImportError:
        for place, step in enumerate(steps):
            if place and place * 10 // len(steps) > (place - 1) * 10 // len(steps):
                print(f"{100 * place // len(steps)} % of the frames", file=sys.stderr)
            yield step
    else:
        yield from tqdm(steps, unit_scale=CHUNK, unit=" frames", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
