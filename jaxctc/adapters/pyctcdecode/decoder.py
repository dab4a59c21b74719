"""The decoder that `build_ctcdecoder` makes: logits to text, by the searches of this library."""

import functools
import importlib
import math
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from jaxctc._core import checks
from jaxctc.adapters.pyctcdecode import constants
from jaxctc.adapters.pyctcdecode.alphabet import Alphabet, require_space, vocabulary_of, written
from jaxctc.adapters.pyctcdecode.inputs import require_list, utterance
from jaxctc.adapters.pyctcdecode.language_model import LanguageModel, visible_names
from jaxctc.decoding.likely_tokens import LikelyFrames, likely_frames
from jaxctc.decoding.memory import MAX_BYTES
from jaxctc.decoding.ngram_models import WordNGrams, WordState
from jaxctc.decoding.ragged_search import Found, align, search
from jaxctc.decoding.words import WholeWords, whole_words
from jaxctc.text import Vocabulary

Frames = tuple[int, int]


class OutputBeam(NamedTuple):
    """A text of `decode_beams`."""

    text: str
    last_lm_state: int | None
    """State of the language model after it; None without a model."""
    text_frames: list[tuple[str, Frames]]
    """Words with the first frame and the one after the last."""
    logit_score: float
    """Log p(text | logits), in nats."""
    lm_score: float
    """The same with what model and hot words add."""


class OutputBeamMPSafe(NamedTuple):
    """A text of `decode_beams_batch`: an `OutputBeam` without the state."""

    text: str
    text_frames: list[tuple[str, Frames]]
    logit_score: float
    lm_score: float


class _Beam(NamedTuple):
    """A text with the best of its label sequences, or all of its beam."""

    text: str
    slot: int
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

    XLA compiles once for each number of frames that leave a choice (rounded up to 2ⁿ), of likely
    tokens (rounded up to 2ⁿ), of utterances (1, 2, 4, 8 or 16 at a time), beam width, and shape of
    the lexicon of hot words.
    """

    _ALPHABET_SERIALIZED_FILENAME = "alphabet.json"
    _LANGUAGE_MODEL_SERIALIZED_DIRECTORY = "language_model"

    def __init__(self, alphabet: Alphabet, language_model: LanguageModel | None = None) -> None:
        """As of `build_ctcdecoder`. Of several models (`MultiLanguageModel`) there is none."""
        if language_model is not None:
            if not isinstance(language_model, LanguageModel):
                got = type(language_model).__name__
                requirement = "be a LanguageModel of jaxctc.adapters.pyctcdecode"
                checks.fail("BeamSearchDecoderCTC", "language_model", requirement, got)
            require_space(alphabet)
        self._alphabet, self._vocabulary = alphabet, vocabulary_of(alphabet)
        self._written = written(self._vocabulary)
        self._spelt = None if language_model is None else language_model.spelt(self._vocabulary)
        self._model_key = b"0"
        self.model_container = {self._model_key: language_model}

    @property
    def _language_model(self) -> LanguageModel | None:
        return self.model_container[self._model_key]

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
        if self._language_model is not None:
            self._language_model.reset_params(
                alpha=alpha,
                beta=beta,
                unk_score_offset=unk_score_offset,
                score_boundary=lm_score_boundary,
            )

    def cleanup(self) -> None:
        """Nothing to do: a model goes with the last decoder that has it."""

    @classmethod
    def clear_class_models(cls) -> None:
        """Nothing to do, as for `cleanup`."""

    def save_to_dir(self, filepath: str) -> None:
        """Writes `alphabet.json` and, if there is a model, the new folder `language_model`.

        pyctcdecode reads them, and so does `load_from_dir`.

        Raises:
          OSError: if `filepath` is no folder, or has a `language_model` already.
        """
        text = self._alphabet.dumps()
        Path(filepath, self._ALPHABET_SERIALIZED_FILENAME).write_text(text)
        if self._language_model is not None:
            folder = os.path.join(filepath, self._LANGUAGE_MODEL_SERIALIZED_DIRECTORY)
            os.mkdir(folder)
            self._language_model.save_to_dir(folder)

    @classmethod
    def parse_directory_contents(cls, filepath: str) -> dict[str, str | None]:
        """The paths of "alphabet" and "language_model" in a folder, the second one or None.

        Raises:
          ValueError: if there is no `alphabet.json`, or there are other files beside it and no
            folder `language_model`; hidden files do not count.
        """
        names = visible_names(filepath)
        alphabet, model = (
            cls._ALPHABET_SERIALIZED_FILENAME,
            cls._LANGUAGE_MODEL_SERIALIZED_DIRECTORY,
        )
        if alphabet not in names or (len(names) > 1 and model not in names):
            requirement = f"hold {alphabet}, and {model} if there is anything else"
            checks.fail("load_from_dir", os.fspath(filepath), requirement, names)
        path = os.path.join(filepath, model) if model in names else None
        return {"alphabet": os.path.join(filepath, alphabet), "language_model": path}

    @classmethod
    def load_from_dir(
        cls, filepath: str, unigram_encoding: str | None = None, max_bytes: int = MAX_BYTES
    ) -> "BeamSearchDecoderCTC":
        """The decoder of a folder that pyctcdecode, transformers or `save_to_dir` wrote.

        Args:
          filepath: the folder; see `parse_directory_contents`.
          unigram_encoding: that of the file of known words; None is UTF-8.
          max_bytes: as of `build_ctcdecoder`.

        Raises:
          ValueError: as `parse_directory_contents`, here and of `LanguageModel`, or as
            `build_ctcdecoder`: above all if the model is in KenLM's binary format.
        """
        paths = cls.parse_directory_contents(filepath)
        alphabet = Alphabet.loads(Path(str(paths["alphabet"])).read_text())
        folder = paths["language_model"]
        options = unigram_encoding, max_bytes
        return cls(alphabet, LanguageModel.load_from_dir(folder, *options) if folder else None)

    @classmethod
    def load_from_hf_hub(
        cls, model_id: str, cache_dir: str | None = None, **kwargs: Any
    ) -> "BeamSearchDecoderCTC":
        """`load_from_dir` of a repository that `huggingface_hub.snapshot_download` fetches.

        Args:
          model_id: its name, such as "owner/name".
          cache_dir: where to keep it; None is where `huggingface_hub` does.
          **kwargs: for `snapshot_download`, such as `allow_patterns`.

        Raises:
          ImportError: if `huggingface_hub`, which no extra has, is not installed.
          ValueError: as `load_from_dir`.
        """
        try:
            hub = importlib.import_module("huggingface_hub")
        except ImportError as error:
            message = "load_from_hf_hub: needs `pip install huggingface_hub`"
            raise ImportError(message) from error
        return cls.load_from_dir(hub.snapshot_download(model_id, cache_dir=cache_dir, **kwargs))

    def decode(
        self,
        logits: Float[np.ndarray, "T K"],
        beam_width: int = constants.DEFAULT_BEAM_WIDTH,
        beam_prune_logp: float = constants.DEFAULT_PRUNE_LOGP,
        token_min_logp: float = constants.DEFAULT_MIN_TOKEN_LOGP,
        hotwords: Iterable[str] | None = None,
        hotword_weight: float = constants.DEFAULT_HOTWORD_WEIGHT,
        lm_start_state: int | None = None,
    ) -> str:
        """The best text of an utterance; arguments are those of `decode_beams`."""
        options = (beam_width, beam_prune_logp, token_min_logp, hotwords, hotword_weight)
        return self._beams("decode", [logits], *options, lm_start_state)[0][0][0].text

    def decode_batch(
        self,
        pool: Any,
        logits_list: Sequence[Float[np.ndarray, "_ K"]],
        beam_width: int = constants.DEFAULT_BEAM_WIDTH,
        beam_prune_logp: float = constants.DEFAULT_PRUNE_LOGP,
        token_min_logp: float = constants.DEFAULT_MIN_TOKEN_LOGP,
        hotwords: Iterable[str] | None = None,
        hotword_weight: float = constants.DEFAULT_HOTWORD_WEIGHT,
    ) -> list[str]:
        """The best text of each utterance; arguments are those of `decode_beams_batch`."""
        _ignore_pool(pool)
        options = (beam_width, beam_prune_logp, token_min_logp, hotwords, hotword_weight)
        found = self._beams("decode_batch", logits_list, *options)
        return [beams[0].text for beams, *_ in found]

    def decode_beams(
        self,
        logits: Float[np.ndarray, "T K"],
        beam_width: int = constants.DEFAULT_BEAM_WIDTH,
        beam_prune_logp: float = constants.DEFAULT_PRUNE_LOGP,
        token_min_logp: float = constants.DEFAULT_MIN_TOKEN_LOGP,
        prune_history: bool = constants.DEFAULT_PRUNE_BEAMS,
        hotwords: Iterable[str] | None = None,
        hotword_weight: float = constants.DEFAULT_HOTWORD_WEIGHT,
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
          `OutputBeam` for each text. An utterance whose logits in use hold NaN or +inf has the
          text "" with scores NaN.

        Raises:
          ValueError: if shapes disagree with the labels, `beam_width` is not positive,
            `beam_prune_logp` is; if there are hot words, and no label for the space between
            words; if `lm_start_state` is no state.
        """
        _ignore_history(prune_history)
        options = (beam_width, beam_prune_logp, token_min_logp, hotwords, hotword_weight)
        found = self._beams("decode_beams", [logits], *options, lm_start_state)
        (results,) = self._with_frames(found)
        if self._spelt is None:
            return results
        ((beams, _, beam),) = found
        contexts = np.asarray(_contexts(self._spelt.words, beam.model_states[0])).tolist()
        return [
            result._replace(last_lm_state=None if math.isnan(at.score) else contexts[at.slot])
            for result, at in zip(results, beams, strict=True)
        ]

    def decode_beams_batch(
        self,
        pool: Any,
        logits_list: Sequence[Float[np.ndarray, "_ K"]],
        beam_width: int = constants.DEFAULT_BEAM_WIDTH,
        beam_prune_logp: float = constants.DEFAULT_PRUNE_LOGP,
        token_min_logp: float = constants.DEFAULT_MIN_TOKEN_LOGP,
        prune_history: bool = constants.DEFAULT_PRUNE_BEAMS,
        hotwords: Iterable[str] | None = None,
        hotword_weight: float = constants.DEFAULT_HOTWORD_WEIGHT,
    ) -> list[list[OutputBeamMPSafe]]:
        """The best texts of each utterance.

        Args:
          pool: ignored, and said so unless it is None: utterances are decoded side by side.
          logits_list: logits of each utterance, of any lengths.
          beam_width, beam_prune_logp, token_min_logp: as of `decode_beams`.
          prune_history, hotwords, hotword_weight: as there.

        Returns:
          A list of `OutputBeamMPSafe` for each utterance.
        """
        _ignore_pool(pool)
        _ignore_history(prune_history)
        options = (beam_width, beam_prune_logp, token_min_logp, hotwords, hotword_weight)
        found = self._beams("decode_beams_batch", logits_list, *options)
        return [
            [OutputBeamMPSafe(beam.text, *beam[2:]) for beam in beams]
            for beams in self._with_frames(found)
        ]

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
    ) -> list[tuple[list[_Beam], LikelyFrames, Found]]:
        """The texts of each utterance, with the frames and the beam that they were found in."""
        width = checks.count(function, "beam_width", beam_width, least=1)
        if not beam_prune_logp <= 0:
            checks.fail(function, "beam_prune_logp", "be 0 or less", beam_prune_logp)
        blank = self._vocabulary.blank_id
        log_probs, lengths = self._log_probs(function, logits_list)
        frames = likely_frames(log_probs, lengths, token_min_logp, blank_id=blank)
        guide = self._guide(function, hotwords, hotword_weight, lm_start_state)
        found = search(
            frames,
            {name: model for name, model in guide.items() if model is not None},
            blank_id=blank,
            beam_width=width,
            beam_threshold=-beam_prune_logp,
        )
        texts = [self._texts(part, beam_prune_logp) for part in found]
        return list(zip(texts, frames, found, strict=True))

    def _log_probs(
        self, function: str, logits_list: Sequence[Any]
    ) -> tuple[Float[np.ndarray, "N K"], list[int]]:
        """Log-probabilities of what may be logits, log-probabilities or probabilities.

        They stand one after the other, beside the number of frames of each utterance.
        """
        classes = len(self._vocabulary.tokens)
        parts, are_logits = [np.zeros((0, classes), np.float32)], []
        for logits in logits_list:
            scores = utterance(function, logits, classes)
            are_probabilities = _sum_to_1(scores)
            if are_probabilities:
                scores = np.log(np.clip(scores, constants.MIN_TOKEN_CLIP_P, 1))
            elif scores.dtype == np.float64:  # in float32, large ones would lose their differences
                scores = scores - _finite_max(scores)
            parts.append(scores.astype(np.float32, copy=False))
            are_logits.append(not are_probabilities)
        lengths = [len(part) for part in parts[1:]]
        scores = np.concatenate(parts)
        with np.errstate(
            divide="ignore", invalid="ignore"
        ):  # rows of -inf, or with +inf, become NaN
            is_logit = True if all(are_logits) else np.repeat(are_logits, lengths)[:, None]
            scores = np.subtract(scores, _finite_max(scores), out=scores, where=is_logit)
            log_sums = np.log(np.exp(scores) @ np.ones((classes, 1), np.float32))
            scores = np.subtract(scores, log_sums, out=scores, where=is_logit)
        least = math.log(constants.MIN_TOKEN_CLIP_P)
        return np.clip(scores, least, 0, out=scores), lengths

    def _guide(
        self, function: str, hotwords: Iterable[str] | None, weight: float, start: int | None
    ) -> dict[str, Any]:
        """What guides the search, by the names that `beam_step` has for it; None for nothing."""
        require_list(function, "hotwords", hotwords)
        hot = tuple(sorted({word for phrase in hotwords or () for word in phrase.split()}))
        if hot and self._vocabulary.separator is None:
            requirement = 'be None unless labels have " " or "|", or begin words with "▁"'
            checks.fail(function, "hotwords", requirement, list(hot))
        hot_words = _hot_words(hot, self._vocabulary, float(weight))
        if self._language_model is None or self._spelt is None:
            if start is not None:
                requirement = "be None without a language model"
                checks.fail(function, "lm_start_state", requirement, start)
            return {"hot_words": hot_words}
        if start is not None:
            start = self._spelt.context(function, start)
        words, known = self._spelt.weighted(self._language_model, start)
        return {"language_model": words, "hot_words": hot_words, "lexicon": known}

    def _texts(self, found: Found, prune: float) -> list[_Beam]:
        """What a beam spells: label sequences of one text become one, with the sum of them."""
        if np.isnan(found.scores).any():
            return [_Beam("", 0, found.labels[0][:0], math.nan, math.nan)]
        texts: dict[str, _Beam] = {}
        for place in np.argsort(-found.scores, kind="stable").tolist():
            log_prob, score = float(found.log_probs[place]), float(found.scores[place])
            if score == -math.inf:
                break
            labels = found.labels[place]
            labels = labels[labels >= 0]
            text = " ".join("".join([self._written[label] for label in labels.tolist()]).split())
            best = texts.setdefault(text, _Beam(text, place, labels, -math.inf, -math.inf))
            texts[text] = best._replace(
                log_prob=float(np.logaddexp(best.log_prob, log_prob)),
                score=float(np.logaddexp(best.score, score)),
            )
        beams = sorted(texts.values(), key=lambda beam: -beam.score)
        return [beam for beam in beams if beam.score >= beams[0].score + prune]

    def _words(self, labels: Int[np.ndarray, "L"]) -> list[tuple[str, tuple[int, int]]]:
        """Words, with the places of their first and last label."""
        words, is_open = [], False
        for place, label in enumerate(labels.tolist()):
            for part in re.findall(r"\s+|\S+", self._written[label]):
                if part.isspace():
                    is_open = False
                elif is_open:
                    words[-1] = words[-1][0] + part, (words[-1][1][0], place)
                else:
                    words.append((part, (place, place)))
                    is_open = True
        return words

    def _with_frames(
        self, found: list[tuple[list[_Beam], LikelyFrames, Found]]
    ) -> list[list[OutputBeam]]:
        """Results in pyctcdecode's form: with the frames of words, and yet without states."""
        labels = [[beam.labels for beam in beams] for beams, *_ in found]
        spans = align([frames for _, frames, _ in found], labels, self._vocabulary.blank_id)
        return [
            [
                self._output(beam, first, last)
                for beam, first, last in zip(beams, *spans[place], strict=False)
            ]
            for place, (beams, *_) in enumerate(found)
        ]

    def _output(
        self, beam: _Beam, firsts: Int[np.ndarray, "L"], lasts: Int[np.ndarray, "L"]
    ) -> OutputBeam:
        words = [
            (word, (int(firsts[first]), int(lasts[last]) + 1))
            for word, (first, last) in self._words(beam.labels)
        ]
        return OutputBeam(beam.text, None, words, beam.log_prob, beam.score)


@jax.jit
def _contexts(words: WordNGrams, states: WordState) -> Int[Array, "W"]:
    """Context of the model after the last word of each prefix."""
    return jax.vmap(words.end_word)(states)[1].context


def _sum_to_1(scores: Float[np.ndarray, "T K"]) -> bool:
    """Whether rows sum to 1 on average, exactly as pyctcdecode asks; it first asks roughly."""
    is_near = abs(float(scores.sum()) - len(scores)) < 1e-3 * len(scores)
    return is_near and math.isclose(scores.sum(axis=1).mean(), 1)


def _finite_max(scores: Float[np.ndarray, "N K"]) -> Float[np.ndarray, "N 1"]:
    """The largest score of each frame, 0 for one that is infinite or NaN."""
    # NumPy is several times slower over the last axis.
    largest = np.ascontiguousarray(scores.T).max(axis=0)[:, None]
    return np.where(np.isfinite(largest), largest, np.zeros_like(largest))


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
