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
from jaxctc.decoding.arpa import read_ngrams, word_ngrams
from jaxctc.decoding.lexicon import Lexicon, build_lexicon
from jaxctc.decoding.likely_tokens import LikelyFrames, likely_frames
from jaxctc.decoding.memory import MAX_BYTES, Memory
from jaxctc.decoding.ngram_models import WordNGrams, WordState
from jaxctc.decoding.ragged_search import Found, align, search
from jaxctc.decoding.words import WeightedWords, WholeWords, whole_words
from jaxctc.text import Vocabulary

_MARK, _UNKNOWN = "▁", "⁇"
_PAD, _UNK = (re.compile(rf"[<\[]{name}[>\]]", re.IGNORECASE) for name in ("pad", "unk"))
_SPECIAL = re.compile(r"[<\[].+[>\]]")
_LEAST_LOG_PROB = math.log(1e-15)

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
    max_bytes: int = MAX_BYTES,
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
      max_bytes: as of `jaxctc.read_arpa`; pyctcdecode has no limit.

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
    model = _read_model(Memory(kenlm_model_path, max_bytes), unigrams, vocabulary)
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
    - A first word piece without "▁" begins no known word and no hot word, and what follows "▁⁇▁"
      without "▁" is part of it, for model and hot words; texts are the same.
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
        guide = self._guide(function, hotwords, hotword_weight, lm_start_state)
        found = search(
            frames,
            {name: model for name, model in guide.items() if model is not None},
            blank_id=blank,
            beam_width=width,
            beam_threshold=-beam_prune_logp,
        )
        texts = [self._texts(part, beam_prune_logp) for part in found]
        return list(zip(texts, frames, strict=True))

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

    def _guide(
        self, function: str, hotwords: Iterable[str] | None, weight: float, start: int | None
    ) -> dict[str, Any]:
        """What guides the search, by the names that `beam_step` has for it; None for nothing."""
        hot = tuple(sorted({word for phrase in hotwords or () for word in phrase.split()}))
        if hot and self._vocabulary.separator is None:
            requirement = 'be None unless labels have " " or "|", or begin words with "▁"'
            checks.fail(function, "hotwords", requirement, list(hot))
        hot_words = _hot_words(hot, self._vocabulary, float(weight))
        if self._model is None:
            if start is not None:
                requirement = "be None without a language model"
                checks.fail(function, "lm_start_state", requirement, start)
            return {"hot_words": hot_words}
        if start is not None:
            contexts = len(self._model.words.ngrams.fail_state)
            start = checks.class_id(function, "lm_start_state", start, contexts)
        words, known = self._model.parts(start)
        return {"language_model": words, "hot_words": hot_words, "lexicon": known}

    def _texts(self, found: Found, prune: float) -> list[_Beam]:
        """What a beam spells: label sequences of one text become one, with the sum of them."""
        if np.isnan(found.scores).any():
            return [_Beam("", None, found.labels[0][:0], math.nan, math.nan)]
        texts: dict[str, _Beam] = {}
        for place in np.argsort(-found.scores, kind="stable").tolist():
            log_prob, score = float(found.log_probs[place]), float(found.scores[place])
            if score == -math.inf:
                break
            labels = found.labels[place]
            labels = labels[: np.count_nonzero(labels >= 0)]
            text = " ".join(word for word, _ in self._words(labels))
            best = texts.setdefault(text, _Beam(text, place, labels, -math.inf, -math.inf))
            texts[text] = best._replace(
                log_prob=float(np.logaddexp(best.log_prob, log_prob)),
                score=float(np.logaddexp(best.score, score)),
            )
        beams = sorted(texts.values(), key=lambda beam: -beam.score)
        beams = [beam for beam in beams if beam.score >= beams[0].score + prune]
        if self._model is None:
            return [beam._replace(state=None) for beam in beams]
        places = np.array([beam.state for beam in beams])
        contexts = np.asarray(_contexts(self._model.words, found.model_states[0]))[places]
        pairs = zip(beams, contexts.tolist(), strict=True)
        return [beam._replace(state=context) for beam, context in pairs]

    def _words(self, labels: Int[np.ndarray, "L"]) -> list[tuple[str, tuple[int, int]]]:
        """Words, with the places of their first and last label."""
        words, is_open = [], False
        for place, label in enumerate(labels.tolist()):
            name = str(self._vocabulary.tokens[label])
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
        labels = [[beam.labels for beam in beams] for beams, _ in found]
        spans = align([frames for _, frames in found], labels, self._vocabulary.blank_id)
        return [
            [
                self._output(beam, first, last)
                for beam, first, last in zip(beams, *spans[place], strict=False)
            ]
            for place, (beams, _) in enumerate(found)
        ]

    def _output(
        self, beam: _Beam, firsts: Int[np.ndarray, "L"], lasts: Int[np.ndarray, "L"]
    ) -> OutputBeam:
        words = [
            (word, (int(firsts[first]), int(lasts[last]) + 1))
            for word, (first, last) in self._words(beam.labels)
        ]
        return beam.text, beam.state, words, beam.log_prob, beam.score


@jax.jit
def _contexts(words: WordNGrams, states: WordState) -> Int[Array, "W"]:
    """Context of the model after the last word of each prefix."""
    return jax.vmap(words.end_word)(states)[1].context


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


def _read_model(memory: Memory, unigrams: Collection[str] | None, vocabulary: Vocabulary) -> _Model:
    ngrams = read_ngrams(memory.path, memory)
    mark = vocabulary.separator or ""
    ends_word = np.array([name.startswith(mark) for name in vocabulary.tokens])
    names = [name.removeprefix(mark).encode() for name in vocabulary.tokens]
    # KenLM has 10⁻¹⁰⁰ for what is unknown, where the file does not say.
    words = word_ngrams(ngrams, names, ends_word, -100 * math.log(10), memory)
    listed = [word.decode() for word in ngrams.vocabulary]
    listed = [word for word in listed if word not in ("<unk>", "<s>", "</s>")]
    known = listed if unigrams is None else sorted(set(listed) & set(unigrams)) or listed
    lexicon = build_lexicon(known, vocabulary, unknown="drop")
    if _MARK in vocabulary.tokens:  # alone it is no word, whatever comes next
        mark = jnp.asarray(vocabulary.tokens.index(_MARK), jnp.int32)
        is_arc, state = lexicon.arc(lexicon.initial_state, mark)
        may_end = lexicon.may_end.at[state].set(lexicon.may_end[state] | is_arc)
        lexicon = lexicon._replace(may_end=may_end)
    return _Model(words, lexicon)


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
