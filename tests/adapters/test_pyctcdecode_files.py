"""The folders of pyctcdecode, and the calls of transformers' `Wav2Vec2ProcessorWithLM`."""

import importlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxctc.adapters.pyctcdecode import (
    Alphabet,
    BeamSearchDecoderCTC,
    LanguageModel,
    build_ctcdecoder,
    constants,
)
from jaxctc.adapters.pyctcdecode.alphabet import BLANK_TOKEN_PTN, UNK_TOKEN, UNK_TOKEN_PTN

VOCABULARY = {"<pad>": 0, "|": 1, "a": 2, "b": 3, "<unk>": 4}
"""Of a tokenizer, with its word delimiter "|"."""
MODEL = """\\data\\
ngram 1=5
ngram 2=2

\\1-grams:
-1.0\t<unk>
-99\t<s>\t-0.4
-0.9\t</s>
-0.7\tab\t-0.2
-0.5\tb\t-0.3

\\2-grams:
-0.2\t<s> ab
-0.4\tab b

\\end\\
"""


@pytest.fixture
def model_path(tmp_path):
    path = tmp_path / "words.arpa"
    path.write_text(MODEL)
    return str(path)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "processor"
    path.mkdir()
    return path


@pytest.fixture
def logits(rng):
    path = rng.integers(0, 4, size=(2, 12))
    return 5 * np.eye(5)[path] + rng.normal(size=(2, 12, 5))


def test_a_decoder_goes_into_a_folder_and_comes_back(model_path, folder, logits):
    decoder = build_ctcdecoder(list(VOCABULARY), model_path, ["b"], alpha=0.9, beta=0.2)
    decoder.save_to_dir(str(folder))
    (folder / ".hidden").touch()
    again = BeamSearchDecoderCTC.load_from_dir(str(folder), "utf-8")
    assert again.decode_beams(logits[0], beam_width=8) == decoder.decode_beams(
        logits[0], beam_width=8
    )
    files = {file.name for file in (folder / "language_model").iterdir()}
    assert files == {"attrs.json", "unigrams.txt", "words.arpa"}
    assert (folder / "language_model" / "unigrams.txt").read_text() == "b\n"
    with pytest.raises(FileExistsError):
        decoder.save_to_dir(str(folder))


def test_no_model_is_no_folder(folder, logits):
    decoder = build_ctcdecoder(["▁a", "b", "<pad>"])
    decoder.save_to_dir(str(folder))
    assert [file.name for file in folder.iterdir()] == ["alphabet.json"]
    again = BeamSearchDecoderCTC.load_from_dir(str(folder))
    assert again.decode(logits[0, :, :3], beam_width=8) == decoder.decode(
        logits[0, :, :3], beam_width=8
    )


def test_folders_that_are_refused(model_path, folder):
    with pytest.raises(ValueError, match=r"hold alphabet\.json, and language_model if"):
        BeamSearchDecoderCTC.load_from_dir(str(folder))
    build_ctcdecoder(list(VOCABULARY), model_path).save_to_dir(str(folder))
    model = folder / "language_model"
    (model / "words.arpa").write_bytes(b"mmap lm http://kheafield.com/code format version 5\n\0")
    with pytest.raises(ValueError, match="got KenLM's binary format"):
        BeamSearchDecoderCTC.load_from_dir(str(folder))
    (model / "attrs.json").write_text('{"alpha": 1.0}')
    with pytest.raises(ValueError, match="be an object with alpha, beta, unk_score_offset, score"):
        BeamSearchDecoderCTC.load_from_dir(str(folder))
    (model / "words.arpa").rename(model / "words.txt")
    with pytest.raises(ValueError, match=r"hold attrs\.json, unigrams\.txt and one of \.arpa"):
        BeamSearchDecoderCTC.load_from_dir(str(folder))
    model.rename(folder / "lm")
    with pytest.raises(ValueError, match=r"and language_model if .* got \['alphabet.json', 'lm'\]"):
        BeamSearchDecoderCTC.load_from_dir(str(folder))
    (folder / "alphabet.json").write_text("[1]")
    with pytest.raises(ValueError, match='have "labels" and "is_bpe"; got list'):
        Alphabet.loads((folder / "alphabet.json").read_text())


def test_what_transformers_does(model_path, folder, logits):
    """Its steps in their order, with its private names: from a processor's folder to words."""
    build_ctcdecoder(list(VOCABULARY), model_path).save_to_dir(str(folder))
    (folder / "preprocessor_config.json").write_text("{}")

    decoder = BeamSearchDecoderCTC.load_from_dir(str(folder), "utf-8")
    for name, value in (("alpha", 0.8), ("beta", 0.1), ("score_boundary", False)):
        setattr(decoder.model_container[decoder._model_key], name, value)
    names = ["" if BLANK_TOKEN_PTN.match(name) else name for name in VOCABULARY]
    names = [UNK_TOKEN if UNK_TOKEN_PTN.match(name) else name for name in names]
    names = [" " if name == "|" else name for name in names]
    assert set(names) == set(decoder._alphabet.labels)

    decoder.reset_params(alpha=None, beta=0.3, unk_score_offset=None, lm_score_boundary=None)
    padded = np.concatenate([logits, np.full((2, 3, 5), -100.0)], axis=1)
    options: dict[str, Any] = {
        "beam_width": 8,  # and not constants.DEFAULT_BEAM_WIDTH, which compiles for longer
        "beam_prune_logp": constants.DEFAULT_PRUNE_LOGP,
        "token_min_logp": constants.DEFAULT_MIN_TOKEN_LOGP,
        "hotwords": ["b"],
        "hotword_weight": constants.DEFAULT_HOTWORD_WEIGHT,
    }
    used = [array[(array != -100.0).all(axis=-1)] for array in padded]
    batch = decoder.decode_beams_batch(pool=None, logits_list=used, **options)
    for array, beams in zip(logits, batch, strict=True):
        alone = decoder.decode_beams(array, **options)
        assert [beam[0] for beam in beams] == [beam[0] for beam in alone]
        assert [beam[1] for beam in beams] == [beam[2] for beam in alone]
        assert [word for word, (_, _) in beams[0][1]] == beams[0][0].split()
        np.testing.assert_allclose([b[-2:] for b in beams], [b[-2:] for b in alone], rtol=1e-5)

    weights = {"alpha": 0.8, "beta": 0.3, "lm_score_boundary": False}
    expected = build_ctcdecoder(list(VOCABULARY), model_path, **weights)
    found = decoder.decode_beams(logits[0], **options)
    assert found == expected.decode_beams(logits[0], **options)


def test_weights_that_are_refused(model_path):
    decoder = build_ctcdecoder(list(VOCABULARY), model_path)
    with pytest.raises(ValueError, match="reset_params: alpha must be a finite number; got nan"):
        decoder.reset_params(alpha=np.nan)
    with pytest.raises(ValueError, match="params must be one of"):
        LanguageModel(model_path).reset_params(order=3)
    with pytest.raises(ValueError, match="language_model must be a LanguageModel of jaxctc"):
        BeamSearchDecoderCTC(Alphabet(["", " "], False), [decoder._language_model])  # pyright: ignore


def test_a_repository_that_is_there_already(model_path, logits, tmp_path, monkeypatch):
    """From the cache of `huggingface_hub`, in its own layout; nothing is fetched."""
    pytest.importorskip("huggingface_hub", reason="no extra has huggingface_hub")
    repository = tmp_path / "cache" / "models--someone--words"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    decoder = build_ctcdecoder(list(VOCABULARY), model_path)
    decoder.save_to_dir(str(snapshot))
    load = BeamSearchDecoderCTC.load_from_hf_hub
    where: dict[str, Any] = {"cache_dir": str(tmp_path / "cache"), "local_files_only": True}
    again = load("someone/words", **where, allow_patterns=["language_model/*", "alphabet.json"])
    assert again.decode_beams(logits[0], beam_width=8) == decoder.decode_beams(
        logits[0], beam_width=8
    )


def test_repositories_need_their_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="load_from_hf_hub: needs `pip install huggingface_hub`"):
        BeamSearchDecoderCTC.load_from_hf_hub("someone/words")


@pytest.fixture
def theirs():
    for name in ("pyctcdecode", "kenlm"):
        pytest.importorskip(name, reason=f"no extra has {name}")
    logging.disable(logging.WARNING)
    yield importlib.import_module("pyctcdecode")
    logging.disable(logging.NOTSET)


def test_folders_of_either_are_read_by_the_other(theirs, model_path, folder, logits):
    weights: dict[str, Any] = {"alpha": 0.9, "beta": 0.2, "unk_score_offset": -3.0}
    arguments = list(VOCABULARY), model_path, ["ab"]
    original = theirs.build_ctcdecoder(*arguments, **weights)
    original.save_to_dir(str(folder))
    ours = BeamSearchDecoderCTC.load_from_dir(str(folder))
    expected = build_ctcdecoder(*arguments, **weights)
    assert ours.decode_beams(logits[0], beam_width=8) == expected.decode_beams(
        logits[0], beam_width=8
    )

    second = folder.with_name("second")
    second.mkdir()
    ours.save_to_dir(str(second))
    for name in ("alphabet.json", "language_model/attrs.json"):
        written, read = (json.loads(Path(path, name).read_text()) for path in (folder, second))
        assert written == read
    words = Path("language_model", "unigrams.txt")
    assert (folder / words).read_text() == (second / words).read_text()
    other = theirs.BeamSearchDecoderCTC.load_from_dir(str(second))
    assert other.decode(logits[0], beam_width=8) == original.decode(logits[0], beam_width=8)
