"""The decoder of pyctcdecode: `pyctcdecode.build_ctcdecoder`, from NumPy's logits to text."""

import dataclasses
import functools
import math
import re
import warnings
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from jaxctc._core import checks
from jaxctc.alignment import forced_align
from jaxctc.decoding.arpa import WordNGrams, read_ngrams, word_ngrams
from jaxctc.decoding.beam_search import beam_init, beam_step, prefix_scores
from jaxctc.decoding.lexicon import Lexicon, build_lexicon
from jaxctc.decoding.likely_tokens import LikelyFrames, likely_frames
from jaxctc.decoding.words import WeightedWords, WholeWords, whole_words
from jaxctc.text import Vocabulary

_MARK, _UNKNOWN = "▁", "⁇"
_PAD, _UNK = (re.compile(rf"[<\[]{name}[>\]]", re.IGNORECASE) for name in ("pad", "unk"))
_SPECIAL = re.compile(r"[<\[].+[>\]]")
_LEAST_LOG_PROB = math.log(1e-15)
_LARGEST_BATCH, _NARROW = 16, (8, 32)

Frames = tuple[int, int]
OutputBeam = tuple[str, int | None, list[tuple[str, Frames]], float, float]
"""Text, state of the language model after it, words with frames, log p(text | logits), score."""
OutputBeamMPSafe = tuple[str, list[tuple[str, Frames]], float, float]
"""The same without the state."""


def build_ctcdecoder(
    labels: list[str],
    kenlm_model_path: str | None = None,
    unigrams: Collection[str] | None = None,
    alpha: float = 0.5,
    beta: float = 1.5,
    unk_score_offset: float = -10.0,
    lm_score_boundary: bool = True,
) -> "BeamSearchDecoderCTC":
    """A decoder from logits to text, by `jaxctc.beam_step`, with pyctcdecode's arguments.

    Args:
      labels: names of the classes. As in pyctcdecode, names that begin with "▁" or "##" make them
        word pieces; "<pad>" or "[PAD]", else "" or "_", is the blank, and without any it is one
        class more, the last; "|" is the space if " " is not there; "<unk>" is written as "⁇".
      kenlm_model_path: an n-gram model of words as an ARPA file, gzipped or not, whatever its
        name. KenLM's binary format is refused: KenLM itself makes no ARPA file of it.
      unigrams: the words that are known. Those that are not in the model are left out; None is
        the words of the model. Without a model they have no effect, as in pyctcdecode, and a
        warning says so.
      alpha: weight of the model.
      beta: nats for every word, if there is a model.
      unk_score_offset: what the model adds for a word that is not known, to base 10; `alpha`
        applies to it.
      lm_score_boundary: whether the model scores the beginning and the end of the text.

    Returns:
      `BeamSearchDecoderCTC`.

    Raises:
      ValueError: if labels are not different strings, or several are the blank; if the file is
        no ARPA file, no label of it spells a word, or there is a model and no label for the space
        between words.
      OSError: if the file cannot be opened.

    Example:
      >>> decoder = build_ctcdecoder(["", " ", "a", "b"])
      >>> path = np.array([2, 2, 0, 2, 1, 3])
      >>> decoder.decode(9.0 * np.eye(4)[path])
      'aa b'
      >>> [beam[2] for beam in decoder.decode_beams(9.0 * np.eye(4)[path], beam_width=2)][0]
      [('aa', (0, 4)), ('b', (5, 6))]
    """
    names, is_pieces = _alphabet(labels)
    separator = _MARK if is_pieces else " " if " " in names else None
    vocabulary = Vocabulary(names, blank_id=names.index(""), separator=separator)
    if kenlm_model_path is None:
        if unigrams is not None:
            _warn("unigrams have no effect without kenlm_model_path, as in pyctcdecode")
        return BeamSearchDecoderCTC(vocabulary)
    if separator is None:
        requirement = 'have " " or "|", or begin words with "▁", for a language model'
        checks.fail("build_ctcdecoder", "labels", requirement, "no space between words")
    model = _read_model(kenlm_model_path, unigrams, vocabulary)
    decoder = BeamSearchDecoderCTC(vocabulary, model)
    decoder.reset_params(alpha, beta, unk_score_offset, lm_score_boundary)
    return decoder


class _Model(NamedTuple):
    """An n-gram model of words, and what weighs it."""

    words: WordNGrams
    known: Lexicon
    alpha: float = 0.5
    beta: float = 1.5
    unk_score_offset: float = -10.0
    score_boundary: bool = True

    def parts(self, start: int | None) -> tuple[WeightedWords, Lexicon]:
        """The model with its weights, from a state on, and the price of unknown words."""
        ngrams = self.words.ngrams
        if not self.score_boundary:
            state, final = jnp.zeros_like(ngrams.initial_state), jnp.zeros_like(ngrams.final_weight)
            ngrams = dataclasses.replace(ngrams, initial_state=state, final_weight=final)
        if start is not None:
            ngrams = dataclasses.replace(ngrams, initial_state=jnp.asarray(start, jnp.int32))
        price = jnp.asarray(self.alpha * math.log(10) * self.unk_score_offset, jnp.float32)
        return (
            WeightedWords(
                self.words._replace(ngrams=ngrams),
                weight=jnp.asarray(self.alpha, jnp.float32),
                word_bonus=jnp.asarray(self.beta, jnp.float32),
            ),
            self.known._replace(unknown_score=price, unfinished_score=price),
        )


class _Beam(NamedTuple):
    """A text with the best of its label sequences, or all of its beam."""

    text: str
    state: int | None
    labels: Int[np.ndarray, "L"]
    log_prob: float
    score: float


class BeamSearchDecoderCTC:
    """What `build_ctcdecoder` makes.

    The search is that of `jaxctc.beam_step`, of all utterances of a batch at once, on the device
    that JAX has. Like pyctcdecode it seeks the text with the best `log p(text | logits)` plus what
    language model and hot words add, in which a text counts all label sequences and paths that
    spell it; as long as nothing is pruned, both give the same texts and scores. Otherwise:

    - `beam_width` counts label sequences: there, the same ones that end in a blank and that do not
      count twice, and those with the same text once.
    - Unknown words are paid for as soon as no word goes on like them, and at their full price.
      There, such a beginning costs `unk_score_offset` nats (more from seven characters on) until
      the word ends, which changes what is pruned; and the space after the last word may count as
      one more, unknown word.
    - Words of an ARPA file are known whether or not they have a back-off; of a gzipped one, too.
    - The history of beams is never pruned, by `decode` neither.
    - Frames of words are those of the most likely path of their label sequence.

    XLA compiles once for each number of frames (after merging those with one likely token, and
    rounded up to 2ⁿ or 3 · 2ⁿ), of likely tokens (rounded up to 2ⁿ), of utterances (1, 2, 4, 8 or
    16 at a time), beam width, and shape of the lexicon of hot words.
    """

    def __init__(self, vocabulary: Vocabulary, language_model: _Model | None = None) -> None:
        """For `build_ctcdecoder`."""
        self._vocabulary, self._model = vocabulary, language_model

    def reset_params(
        self,
        alpha: float | None = None,
        beta: float | None = None,
        unk_score_offset: float | None = None,
        lm_score_boundary: bool | None = None,
    ) -> None:
        """Changes arguments of `build_ctcdecoder`, all but those that are None; compiles nothing.

        Without a language model, there is nothing to change.
        """
        if self._model is None:
            return
        new = {"alpha": alpha, "beta": beta, "unk_score_offset": unk_score_offset}
        for name, value in new.items():
            if value is not None and not np.isfinite(value):
                checks.fail("reset_params", name, "be a finite number", value)
        new["score_boundary"] = lm_score_boundary
        kept = {name: value for name, value in new.items() if value is not None}
        self._model = self._model._replace(**kept)

    def decode(
        self,
        logits: Float[np.ndarray, "T K"],
        beam_width: int = 100,
        beam_prune_logp: float = -10.0,
        token_min_logp: float = -5.0,
        hotwords: Iterable[str] | None = None,
        hotword_weight: float = 10.0,
        lm_start_state: int | None = None,
    ) -> str:
        """The best text of an utterance; arguments are those of `decode_beams`."""
        options = (beam_width, beam_prune_logp, token_min_logp, hotwords, hotword_weight)
        return self._beams("decode", [logits], *options, lm_start_state)[0][0][0].text

    def decode_batch(
        self,
        pool: Any,
        logits_list: Sequence[Float[np.ndarray, "_ K"]],
        beam_width: int = 100,
        beam_prune_logp: float = -10.0,
        token_min_logp: float = -5.0,
        hotwords: Iterable[str] | None = None,
        hotword_weight: float = 10.0,
    ) -> list[str]:
        """The best text of each utterance; arguments are those of `decode_beams_batch`."""
        _ignore_pool(pool)
        options = (beam_width, beam_prune_logp, token_min_logp, hotwords, hotword_weight)
        found = self._beams("decode_batch", logits_list, *options)
        return [beams[0].text for beams, _ in found]

    def decode_beams(
        self,
        logits: Float[np.ndarray, "T K"],
        beam_width: int = 100,
        beam_prune_logp: float = -10.0,
        token_min_logp: float = -5.0,
        prune_history: bool = False,
        hotwords: Iterable[str] | None = None,
        hotword_weight: float = 10.0,
        lm_start_state: int | None = None,
    ) -> list[OutputBeam]:
        """The best texts of an utterance, the best first.

        Args:
          logits: logits, log-probabilities, or probabilities (whose rows sum to 1 on average).
            Probabilities below 1e-15 count as that.
          beam_width: how many label sequences to keep.
          beam_prune_logp: nats, 0 or less; what is worse than the best by more is dropped.
          token_min_logp: log-probability below which a token is left out, the best one of a frame
            excepted.
          prune_history: ignored, and said so if it is True: what it would drop is kept.
          hotwords: words that are worth `hotword_weight` nats wherever they stand alone. As in
            pyctcdecode, each word of a phrase counts for itself.
          hotword_weight: nats for each of them.
          lm_start_state: second entry of a result: the model goes on after it. None begins anew.

        Returns:
          `(text, state, words, logit_score, lm_score)` for each text: the state of the language
          model after it (an int; None without a model); words with the first frame and the one
          after the last; log p(text | logits) in nats; and that with what model and hot words
          add. An utterance whose logits in use hold NaN or +inf has the text "" with scores NaN.

        Raises:
          ValueError: if shapes disagree with the labels, `beam_width` is not positive,
            `beam_prune_logp` is; if there are hot words, and no label for the space between
            words; if `lm_start_state` is no state.
        """
        _ignore_history(prune_history)
        options = (beam_width, beam_prune_logp, token_min_logp, hotwords, hotword_weight)
        found = self._beams("decode_beams", [logits], *options, lm_start_state)
        return self._with_frames(found)[0]

    def decode_beams_batch(
        self,
        pool: Any,
        logits_list: Sequence[Float[np.ndarray, "_ K"]],
        beam_width: int = 100,
        beam_prune_logp: float = -10.0,
        token_min_logp: float = -5.0,
        prune_history: bool = False,
        hotwords: Iterable[str] | None = None,
        hotword_weight: float = 10.0,
    ) -> list[list[OutputBeamMPSafe]]:
        """The best texts of each utterance.

        Args:
          pool: ignored, and said so unless it is None: utterances are decoded side by side.
          logits_list: logits of each utterance, of any lengths.
          beam_width, beam_prune_logp, token_min_logp: as of `decode_beams`.
          prune_history, hotwords, hotword_weight: as there.

        Returns:
          A list for each utterance; its entries are those of `decode_beams` without the state.
        """
        _ignore_pool(pool)
        _ignore_history(prune_history)
        options = (beam_width, beam_prune_logp, token_min_logp, hotwords, hotword_weight)
        found = self._beams("decode_beams_batch", logits_list, *options)
        return [[(beam[0], *beam[2:]) for beam in beams] for beams in self._with_frames(found)]

    def _beams(
        self,
        function: str,
        logits_list: Sequence[Any],
        beam_width: int,
        beam_prune_logp: float,
        token_min_logp: float,
        hotwords: Iterable[str] | None,
        hotword_weight: float,
        lm_start_state: int | None = None,
    ) -> list[tuple[list[_Beam], LikelyFrames]]:
        """The texts of each utterance, and the frames that they were found in."""
        width = checks.count(function, "beam_width", beam_width, least=1)
        if not beam_prune_logp <= 0:
            checks.fail(function, "beam_prune_logp", "be 0 or less", beam_prune_logp)
        blank = self._vocabulary.blank_id
        frames = [
            likely_frames(self._log_probs(function, logits), token_min_logp, blank_id=blank)
            for logits in logits_list
        ]
        models = self._models(function, hotwords, hotword_weight, lm_start_state)
        search = functools.partial(self._search, frames, models=models, prune=beam_prune_logp)
        found: dict[int, list[_Beam]] = {}
        # Where the prefixes worth keeping fit into a narrow beam, a wider one holds no others.
        for beam_width in [*(narrow for narrow in _NARROW if narrow < width), width]:
            left = [place for place in range(len(frames)) if place not in found]
            for places in _batches(frames, left):
                found |= search(places, beam_width, is_last=beam_width == width)
        return [(found[place], part) for place, part in enumerate(frames)]

    def _search(
        self,
        frames: list[LikelyFrames],
        places: list[int],
        beam_width: int,
        *,
        models: Any,
        prune: float,
        is_last: bool,
    ) -> dict[int, list[_Beam]]:
        """The texts of a few utterances; unless `is_last`, of those whose beam was not full."""
        batch = [frames[place] for place in places]
        log_probs, is_padded = _stacked(batch)
        is_full, labels, *results = jax.device_get(
            _search(
                log_probs,
                is_padded,
                models,
                jnp.asarray(-prune, jnp.float32),
                blank_id=self._vocabulary.blank_id,
                beam_width=beam_width,
                top_k=_power_of_two(max(part.most for part in batch)),
            )
        )
        return {
            place: self._texts(
                labels[row], *(None if part is None else part[row] for part in results), prune
            )
            for row, place in enumerate(places)
            if is_last or not is_full[row]
        }

    def _log_probs(self, function: str, logits: Any) -> Float[np.ndarray, "T K"]:
        """Log-probabilities of what may be logits, log-probabilities or probabilities."""
        scores = checks.host_array(function, "logits", logits, "be an array")
        classes = len(self._vocabulary.tokens)
        if scores.ndim != 2 or scores.shape[1] != classes:
            requirement = f"have shape (T, {classes}), a column for each label and the blank"
            checks.fail(function, "logits", requirement, scores.shape)
        if scores.dtype != np.float64:
            scores = scores.astype(np.float32)
        if len(scores) and math.isclose(scores.sum(axis=1).mean(), 1):
            return np.log(np.clip(scores, 1e-15, 1))
        largest = scores.max(axis=1, keepdims=True)
        scores = scores - np.where(np.isfinite(largest), largest, 0)
        scores = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        return np.clip(scores, _LEAST_LOG_PROB, 0)

    def _models(
        self, function: str, hotwords: Iterable[str] | None, weight: float, start: int | None
    ) -> tuple[WeightedWords | None, WholeWords | None, Lexicon | None]:
        hot = tuple(sorted({word for phrase in hotwords or () for word in phrase.split()}))
        if hot and self._vocabulary.separator is None:
            requirement = 'be None unless labels have " " or "|", or begin words with "▁"'
            checks.fail(function, "hotwords", requirement, list(hot))
        hot = _hot_words(hot, self._vocabulary, float(weight))
        if self._model is None:
            if start is not None:
                requirement = "be None without a language model"
                checks.fail(function, "lm_start_state", requirement, start)
            return None, hot, None
        if start is not None:
            contexts = len(self._model.words.ngrams.fail_state)
            start = checks.class_id(function, "lm_start_state", start, contexts)
        words, known = self._model.parts(start)
        return words, hot, known

    def _texts(
        self,
        labels: Int[np.ndarray, "W L"],
        log_probs: Float[np.ndarray, "W"],
        scores: Float[np.ndarray, "W"],
        states: Int[np.ndarray, "W"] | None,
        prune: float,
    ) -> list[_Beam]:
        """What a beam spells: label sequences of one text become one, with the sum of them."""
        if np.isnan(scores).any():
            return [_Beam("", None, labels[0][:0], math.nan, math.nan)]
        texts: dict[str, _Beam] = {}
        for place in np.argsort(-scores, kind="stable").tolist():
            if scores[place] == -np.inf:
                break
            row = labels[place]
            row = row[: np.count_nonzero(row >= 0)]
            text = " ".join(word for word, _ in self._words(row))
            log_prob, score = float(log_probs[place]), float(scores[place])
            state = None if states is None else int(states[place])
            first = texts.get(text)
            if first is not None:
                total = float(np.logaddexp(first.log_prob, log_prob))
                first = first._replace(log_prob=total, score=first.score + total - first.log_prob)
            texts[text] = first or _Beam(text, state, row, log_prob, score)
        beams = sorted(texts.values(), key=lambda beam: -beam.score)
        return [beam for beam in beams if beam.score >= beams[0].score + prune]

    def _words(self, labels: Int[np.ndarray, "L"]) -> list[tuple[str, tuple[int, int]]]:
        """Words, with the places of their first and last label."""
        words, is_open = [], False
        for place, label in enumerate(labels.tolist()):
            name = self._vocabulary.tokens[label]
            begins = self._vocabulary.separator == _MARK and name.startswith(_MARK)
            piece = name.strip(_MARK) if begins else name
            for part in re.findall(r"\s+|\S+", piece) if not begins else [" ", piece]:
                if not part.strip():
                    is_open = False
                elif is_open:
                    words[-1] = words[-1][0] + part, (words[-1][1][0], place)
                else:
                    words.append((part, (place, place)))
                    is_open = True
            is_open = is_open and not (begins and len(name) > 1 and name.endswith(_MARK))
        return words

    def _with_frames(self, found: list[tuple[list[_Beam], LikelyFrames]]) -> list[list[OutputBeam]]:
        """Results in pyctcdecode's form: with the frames of words."""
        results: list[Any] = [None] * len(found)
        for places in _batches([frames for _, frames in found], range(len(found))):
            batch = [found[place] for place in places]
            log_probs, is_padded = _stacked([frames for _, frames in batch])
            most = _power_of_two(max(len(beams) for beams, _ in batch))
            longest = max(len(beam.labels) for beams, _ in batch for beam in beams)
            labels = np.full((len(log_probs), most, _round_up(longest)), -1, np.int32)
            for row, (beams, _) in enumerate(batch):
                for slot, beam in enumerate(beams):
                    labels[row, slot, : len(beam.labels)] = beam.labels
            starts, ends = jax.device_get(
                _align(log_probs, is_padded, labels, blank_id=self._vocabulary.blank_id)
            )
            for row, place in enumerate(places):
                beams, frames = found[place]
                results[place] = [
                    self._output(beam, frames, starts[row, slot], ends[row, slot])
                    for slot, beam in enumerate(beams)
                ]
        return results

    def _output(
        self,
        beam: _Beam,
        frames: LikelyFrames,
        starts: Int[np.ndarray, "L"],
        ends: Int[np.ndarray, "L"],
    ) -> OutputBeam:
        words = [
            (word, (int(frames.first[starts[first]]), int(frames.last[ends[last]]) + 1))
            for word, (first, last) in self._words(beam.labels)
        ]
        return beam.text, beam.state, words, beam.log_prob, beam.score


@functools.partial(jax.jit, static_argnames=("blank_id", "beam_width", "top_k"))
def _search(
    log_probs: Float[Array, "B T K"],
    is_padded: Array,
    models: tuple[WeightedWords | None, WholeWords | None, Lexicon | None],
    beam_threshold: Float[Array, ""],
    *,
    blank_id: int,
    beam_width: int,
    top_k: int,
) -> tuple[Array, Array, Array, Array, Array | None]:
    """Whether the beam was full; labels, log-probabilities, scores and contexts of prefixes."""
    language_model, hot_words, lexicon = models
    guide = {"language_model": language_model, "hot_words": hot_words, "lexicon": lexicon}
    batch, frames, _ = log_probs.shape
    state = beam_init(frames, batch=(batch,), beam_width=beam_width, **guide)
    state = beam_step(
        state,
        log_probs,
        is_padded,
        blank_id=blank_id,
        logits_normalized=True,
        top_k=top_k,
        beam_threshold=beam_threshold,
        **guide,
    )
    acoustic, scores = prefix_scores(state, **guide)
    if language_model is None:
        return state.is_full, state.labels, acoustic, scores, None
    end_word = jax.vmap(jax.vmap(language_model.words.end_word))
    _, after = end_word(state.prefixes.model_states[0])
    return state.is_full, state.labels, acoustic, scores, after.context


@functools.partial(jax.jit, static_argnames=("blank_id",))
def _align(
    log_probs: Float[Array, "B T K"],
    is_padded: Array,
    labels: Int[Array, "B H L"],
    *,
    blank_id: int,
) -> tuple[Array, Array]:
    """First and last frame of each label."""

    def one(labels):
        best = forced_align(
            log_probs, is_padded, labels, labels < 0, blank_id=blank_id, logits_normalized=True
        )
        return best.starts, best.ends

    return jax.vmap(one, in_axes=1, out_axes=1)(labels)


def _batches(frames: list[LikelyFrames], places: Iterable[int]) -> list[list[int]]:
    """Utterances of like length, a few at a time."""
    order = sorted(places, key=lambda place: len(frames[place].first))
    return [order[at : at + _LARGEST_BATCH] for at in range(0, len(order), _LARGEST_BATCH)]


def _stacked(batch: list[LikelyFrames]) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities in one of few shapes, and what is padding there."""
    longest = _round_up(max(len(part.first) for part in batch))
    shape = _power_of_two(len(batch)), longest, batch[0].log_probs.shape[1]
    log_probs, is_padded = np.zeros(shape, np.float32), np.ones(shape[:2], bool)
    for row, part in enumerate(batch):
        log_probs[row, : len(part.first)] = part.log_probs
        is_padded[row, : len(part.first)] = False
    return log_probs, is_padded


def _power_of_two(size: int) -> int:
    return 1 << max(size - 1, 0).bit_length()


def _round_up(size: int, least: int = 16) -> int:
    """The next 2ⁿ or 3 · 2ⁿ."""
    power = _power_of_two(max(size, least))
    return 3 * power // 4 if size <= 3 * power // 4 and power > least else power


def _alphabet(labels: Sequence[str]) -> tuple[list[str], bool]:
    """Names of all classes, with "" for the blank, and whether they are pieces of words."""
    function = "build_ctcdecoder"
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        checks.fail(function, "labels", "be a list of strings", type(labels).__name__)
    names = list(labels)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        checks.fail(function, "labels", "differ", f"{twice!r} {names.count(twice)} times")
    is_pieces = any(name.startswith(("##", _MARK)) for name in names)
    if is_pieces and any(" " in name for name in names):
        requirement = 'have no space where some begin with "##" or "▁"'
        checks.fail(function, "labels", requirement, "one with a space")
    if any(name.startswith("##") for name in names):
        names = [_marked(name) for name in names]
    if not is_pieces and "|" in names and " " not in names:
        names[names.index("|")] = " "
    names = ["" if _PAD.fullmatch(name) else name for name in names]
    if not is_pieces and "_" in names and "" not in names:
        names[names.index("_")] = ""
    if "" not in names:
        names.append("")
    if names.count("") > 1:
        checks.fail(function, "labels", "have one blank", f"{names.count('')} of them")
    unknown = f"{_MARK}{_UNKNOWN}{_MARK}" if is_pieces else _UNKNOWN
    return [unknown if _UNK.fullmatch(name) else name for name in names], is_pieces


def _marked(name: str) -> str:
    """The name in which "▁" begins words, of one in which "##" goes on with them."""
    if name.startswith("##"):
        return name[2:]
    is_special = _SPECIAL.fullmatch(name) or name in ("", _MARK, f"{_MARK}{_UNKNOWN}{_MARK}")
    return name if is_special else f"{_MARK}{name}"


def _read_model(path: str, unigrams: Collection[str] | None, vocabulary: Vocabulary) -> _Model:
    ngrams = read_ngrams(path)
    mark = vocabulary.separator or ""
    ends_word = np.array([name.startswith(mark) for name in vocabulary.tokens])
    names = [name.removeprefix(mark).encode() for name in vocabulary.tokens]
    # KenLM has 10⁻¹⁰⁰ for what is unknown, where the file does not say.
    words = word_ngrams(ngrams, names, ends_word, unknown_log_prob=-100 * math.log(10))
    listed = [word.decode() for word in ngrams.vocabulary]
    listed = [word for word in listed if word not in ("<unk>", "<s>", "</s>")]
    known = listed if unigrams is None else sorted(set(listed) & set(unigrams)) or listed
    return _Model(words, build_lexicon(known, vocabulary, unknown="drop"))


@functools.lru_cache(maxsize=16)
def _hot_words(words: tuple[str, ...], vocabulary: Vocabulary, weight: float) -> WholeWords | None:
    """None where labels spell none of them."""
    spelt = [word for word in words if not vocabulary.encode(word, unknown="drop").unknown]
    return whole_words(spelt, vocabulary, weight) if spelt else None


def _ignore_pool(pool: Any) -> None:
    if pool is not None:
        _warn("pool is ignored: one process decodes all utterances side by side")


def _ignore_history(prune_history: bool) -> None:
    if prune_history:
        _warn("prune_history=True is ignored: beams that share their last words are kept")


def _warn(what: str) -> None:
    warnings.warn(f"adapters.pyctcdecode: {what}.", UserWarning, stacklevel=3)
