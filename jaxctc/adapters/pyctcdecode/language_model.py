"""The language model of a decoder: n-grams of words with their weights, and its files."""

import copy
import dataclasses
import json
import math
import os
import shutil
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxctc._core import checks
from jaxctc.adapters.pyctcdecode import constants
from jaxctc.adapters.pyctcdecode.alphabet import MARK
from jaxctc.adapters.pyctcdecode.inputs import require_list
from jaxctc.decoding.arpa import read_ngrams, word_ngrams
from jaxctc.decoding.lexicon import Lexicon, build_lexicon
from jaxctc.decoding.memory import MAX_BYTES, Memory
from jaxctc.decoding.ngram_models import WordNGrams
from jaxctc.decoding.words import WeightedWords
from jaxctc.text import Vocabulary

_MODELS = (".arpa", ".gz", ".bin", ".binary")


class LanguageModel:
    """An n-gram model of words; weights may be set as attributes, and count from then on.

    Args:
      kenlm_model: the path of an ARPA file, as of `build_ctcdecoder`; or what has it as `path`,
        as a `kenlm.Model` has.
      unigrams, alpha, beta, unk_score_offset, max_bytes: as of `build_ctcdecoder`.
      score_boundary: what it calls `lm_score_boundary`.

    Raises:
      As `build_ctcdecoder`, of the file.
    """

    JSON_ATTRS = ("alpha", "beta", "unk_score_offset", "score_boundary")
    _ATTRS_SERIALIZED_FILENAME = "attrs.json"
    _UNIGRAMS_SERIALIZED_FILENAME = "unigrams.txt"

    def __init__(
        self,
        kenlm_model: str | os.PathLike[str] | Any,
        unigrams: Collection[str] | None = None,
        alpha: float = constants.DEFAULT_ALPHA,
        beta: float = constants.DEFAULT_BETA,
        unk_score_offset: float = constants.DEFAULT_UNK_LOGP_OFFSET,
        score_boundary: bool = constants.DEFAULT_SCORE_LM_BOUNDARY,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """Reads the file."""
        require_list("build_ctcdecoder", "unigrams", unigrams)
        self._path = os.fsdecode(getattr(kenlm_model, "path", kenlm_model))
        self._memory = Memory(self._path, max_bytes)
        self._ngrams = read_ngrams(self._path, self._memory)
        listed = [word.decode() for word in self._ngrams.vocabulary]
        listed = sorted({*listed} - {"<unk>", "<s>", "</s>"})
        given = {*(unigrams or ())}
        found = {*listed} & given
        self.unigrams = sorted(found) or listed
        if 10 * len(found) < len(given):
            _warn(
                f"{len(found)} of {len(given)} unigrams are in {self._path}; the others are left "
                "out. Is their case that of the model?"
            )
        self.alpha, self.beta = alpha, beta
        self.unk_score_offset, self.score_boundary = unk_score_offset, score_boundary

    def reset_params(self, **params: Any) -> None:
        """Changes `alpha`, `beta`, `unk_score_offset`, `score_boundary`; None leaves them."""
        for name, value in params.items():
            checks.choice("reset_params", "params", name, self.JSON_ATTRS)
            if value is None:
                continue
            is_number = isinstance(value, int | float | np.number) and np.isfinite(value)
            if name != "score_boundary" and not is_number:
                checks.fail("reset_params", name, "be a finite number", repr(value))
            setattr(self, name, value)

    def save_to_dir(self, filepath: str, unigram_encoding: str | None = None) -> None:
        """Writes the three files of a folder that `load_from_dir` reads; the model is a copy."""
        attributes = {name: getattr(self, name) for name in self.JSON_ATTRS}
        folder, name = Path(filepath), Path(self._path).name
        (folder / self._ATTRS_SERIALIZED_FILENAME).write_text(json.dumps(attributes))
        words = "".join(f"{word}\n" for word in self.unigrams)
        unigrams = folder / self._UNIGRAMS_SERIALIZED_FILENAME
        unigrams.write_text(words, encoding=unigram_encoding or "utf-8")
        shutil.copy2(self._path, folder / (name if name.endswith(_MODELS) else f"{name}.arpa"))

    @classmethod
    def parse_directory_contents(cls, filepath: str) -> dict[str, str]:
        """The paths of "json_attrs", "unigrams" and "kenlm" in a folder.

        Raises:
          ValueError: if there are others than these three; hidden files do not count.
        """
        names = visible_names(filepath)
        attributes, unigrams = cls._ATTRS_SERIALIZED_FILENAME, cls._UNIGRAMS_SERIALIZED_FILENAME
        models = [name for name in names if name not in (attributes, unigrams)]
        if len(names) != 3 or len(models) != 1 or not models[0].endswith(_MODELS):
            requirement = f"hold {attributes}, {unigrams} and one of {', '.join(_MODELS)}"
            checks.fail("load_from_dir", os.fspath(filepath), requirement, names)
        parts = {"json_attrs": attributes, "unigrams": unigrams, "kenlm": models[0]}
        return {part: os.path.join(filepath, name) for part, name in parts.items()}

    @classmethod
    def load_from_dir(
        cls, filepath: str, unigram_encoding: str | None = None, max_bytes: int = MAX_BYTES
    ) -> "LanguageModel":
        """The model of a folder that pyctcdecode or `save_to_dir` wrote.

        Raises:
          ValueError: as `parse_directory_contents` and `LanguageModel`, or if the attributes
            are not those of a model.
        """
        paths = cls.parse_directory_contents(filepath)
        attributes = json.loads(Path(paths["json_attrs"]).read_text())
        if not isinstance(attributes, dict) or attributes.keys() != {*cls.JSON_ATTRS}:
            requirement = f"be an object with {', '.join(cls.JSON_ATTRS)}"
            checks.fail("load_from_dir", paths["json_attrs"], requirement, repr(attributes)[:99])
        text = Path(paths["unigrams"]).read_text(encoding=unigram_encoding or "utf-8")
        return cls(paths["kenlm"], text.splitlines(), **attributes, max_bytes=max_bytes)

    def spelt(self, vocabulary: Vocabulary) -> "SpeltWords":
        """The same for a beam search over the labels of a vocabulary."""
        letters, spelt = set("".join(self.unigrams)), set("".join(vocabulary.tokens))
        if 5 * len(letters & spelt) < len(letters):
            _warn(f"labels spell few words of {self._path}. Is their case that of the model?")
        mark = vocabulary.separator or ""
        ends_word = np.array([name.startswith(mark) for name in vocabulary.tokens])
        names = [name.removeprefix(mark).encode() for name in vocabulary.tokens]
        # KenLM has 10⁻¹⁰⁰ for what is unknown, where the file does not say.
        unknown, memory = -100 * math.log(10), copy.copy(self._memory)
        words = word_ngrams(self._ngrams, names, ends_word, unknown, memory)
        lexicon = build_lexicon(self.unigrams, vocabulary, unknown="drop")
        if MARK in vocabulary.tokens:  # alone it is no word, whatever comes next
            label = jnp.asarray(vocabulary.tokens.index(MARK), jnp.int32)
            is_arc, state = lexicon.arc(lexicon.initial_state, label)
            may_end = lexicon.may_end.at[state].set(lexicon.may_end[state] | is_arc)
            lexicon = lexicon._replace(may_end=may_end)
        return SpeltWords(words, lexicon)


class SpeltWords(NamedTuple):
    """The n-grams of a model, and the words that are known, as labels spell them."""

    words: WordNGrams
    known: Lexicon

    def context(self, function: str, start: int) -> int:
        """The state of a result, as `lm_start_state`."""
        contexts = len(self.words.ngrams.fail_state)
        if not isinstance(start, int | np.integer) or not 0 <= start < contexts:
            requirement = "be None or the second entry of a result of decode_beams, of this model"
            checks.fail(function, "lm_start_state", requirement, repr(start)[:99])
        return int(start)

    def weighted(self, model: LanguageModel, start: int | None) -> tuple[WeightedWords, Lexicon]:
        """With the weights that `model` has now, from a state on."""
        ngrams = self.words.ngrams
        if not model.score_boundary:
            state, final = jnp.zeros_like(ngrams.initial_state), jnp.zeros_like(ngrams.final_weight)
            ngrams = dataclasses.replace(ngrams, initial_state=state, final_weight=final)
        if start is not None:
            ngrams = dataclasses.replace(ngrams, initial_state=jnp.asarray(start, jnp.int32))
        price = jnp.asarray(model.alpha * math.log(10) * model.unk_score_offset, jnp.float32)
        return (
            WeightedWords(
                self.words._replace(ngrams=ngrams),
                weight=jnp.asarray(model.alpha, jnp.float32),
                word_bonus=jnp.asarray(model.beta, jnp.float32),
            ),
            self.known._replace(unknown_score=price, unfinished_score=price),
        )


def visible_names(folder: str) -> list[str]:
    """Names in a folder, hidden ones and those that begin with two underscores left out."""
    return sorted(name for name in os.listdir(folder) if not name.startswith((".", "__")))


def _warn(what: str) -> None:
    warnings.warn(f"adapters.pyctcdecode: {what}", UserWarning, stacklevel=4)
