"""Against all paths in float64, and against pyctcdecode itself, with KenLM for its models."""

import gzip
import importlib
import itertools
import json
import logging
import math
import multiprocessing.pool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ngrams import PlainHypothesis, arpa, random_grams

from jaxctc.adapters.pyctcdecode import Alphabet, build_ctcdecoder

LETTERS = ["<pad>", "|", "a", "b"]
PIECES = ["▁a", "b", "", "▁", "▁b", "[unk]"]
ALL: dict[str, Any] = {"beam_width": 128, "beam_prune_logp": -1e4, "token_min_logp": -1e4}
"""Options under which nothing is pruned."""
FRAMES = 4


@pytest.fixture
def logits(rng):
    return 2 * rng.normal(size=(FRAMES, len(LETTERS)))


@pytest.fixture(scope="module")
def grams():
    return random_grams(
        np.random.default_rng(0), 2, ["a", "b", "ab", "bb"], ("<s>", "</s>", "<unk>")
    )


@pytest.fixture(scope="module")
def model_path(grams, tmp_path_factory):
    path = tmp_path_factory.mktemp("arpa") / "words.arpa"
    path.write_text(arpa(grams, np.random.default_rng(0)))
    return str(path)


def text_of(path, names):
    """By the definition: merge, drop blanks, and put one space between words."""
    labels = [names[k] for k, _ in itertools.groupby(path)]
    text = ""
    for name in labels:
        text += name.replace("▁", " ")
    return " ".join(text.split())


def all_texts(logits, names):
    """log p(text) of all texts, in float64."""
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    found: dict[str, float] = {}
    for path in itertools.product(range(len(names)), repeat=len(logits)):
        score = log_probs[np.arange(len(path)), path].sum()
        text = text_of(path, names)
        found[text] = np.logaddexp(found.get(text, -np.inf), score)
    return found


def worth_of(text, grams, known, *, alpha=0.5, beta=1.5, unk_score_offset=-10.0, boundary=True):
    """What a model adds: pyctcdecode's documented sum, without its partial words."""
    hypothesis = PlainHypothesis(grams)
    if not boundary:
        hypothesis.words = ()
    worth = 0.0
    for word in text.split():
        offset = 0 if word in known else math.log(10) * unk_score_offset
        worth += alpha * (hypothesis.score(word) + offset) + beta
    return worth + (alpha * hypothesis.final() if boundary else 0.0)


def some_logits(labels, rng):
    """Few enough frames for all sequences to fit into the beam; pieces begin with "▁"."""
    logits = 2 * rng.normal(size=(FRAMES - (labels is not LETTERS), len(labels)))
    if labels is not LETTERS:
        logits[0, 1:4] = -99
    return logits


def assert_beams(beams, expected, log_probs):
    """All texts, the best first, with both scores."""
    likely = {text for text, score in expected.items() if log_probs[text] > -30}
    assert likely <= {beam[0] for beam in beams} <= expected.keys()
    assert [beam[-1] for beam in beams] == sorted((beam[-1] for beam in beams), reverse=True)
    for beam in (beam for beam in beams if beam[0] in likely):
        np.testing.assert_allclose(beam[-2], log_probs[beam[0]], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(beam[-1], expected[beam[0]], rtol=1e-4, atol=1e-3)


NAMES = {"letters": ["", " ", "a", "b"], "pieces": ["▁a", "b", "", "▁", "▁b", "▁⁇▁"]}


@pytest.mark.parametrize("labels", [LETTERS, PIECES], ids=["letters", "pieces"])
def test_all_texts_with_hot_words(labels, rng):
    names = NAMES["letters" if labels is LETTERS else "pieces"]
    logits = some_logits(labels, rng)
    decoder, log_probs = build_ctcdecoder(labels), all_texts(logits, names)
    assert_beams(decoder.decode_beams(logits, **ALL), log_probs, log_probs)
    hot: dict[str, Any] = {"hotwords": ["ab b", "ab", "xyz"], "hotword_weight": 2.5}
    worth = {
        text: score + 2.5 * sum(word in ("ab", "b") for word in text.split())
        for text, score in log_probs.items()
        if "⁇" not in text  # which goes on to the next mark for models
    }
    beams = [beam for beam in decoder.decode_beams(logits, **ALL, **hot) if "⁇" not in beam[0]]
    assert_beams(beams, worth, log_probs)


@pytest.mark.parametrize("labels", [LETTERS, PIECES], ids=["letters", "pieces"])
@pytest.mark.parametrize("boundary", [True, False])
def test_all_texts_with_a_model(labels, boundary, grams, model_path, rng):
    names = NAMES["letters" if labels is LETTERS else "pieces"]
    logits = some_logits(labels, rng)
    log_probs = all_texts(logits, names)
    options: dict[str, Any] = {"alpha": 0.7, "beta": 0.3, "unk_score_offset": -2.0}
    decoder = build_ctcdecoder(labels, model_path, lm_score_boundary=boundary)
    decoder.reset_params(**options)
    known = ["a", "b", "ab", "bb"]
    worth = {
        text: score + worth_of(text, grams, known, boundary=boundary, **options)
        for text, score in log_probs.items()
        if "⁇" not in text  # which goes on to the next mark for the model
    }
    beams = [beam for beam in decoder.decode_beams(logits, **ALL) if "⁇" not in beam[0]]
    assert_beams(beams, worth, log_probs)


def test_unigrams_and_gzip(grams, model_path, logits, tmp_path):
    zipped = tmp_path / "words.bin"
    zipped.write_bytes(gzip.compress(Path(model_path).read_bytes()))
    decoder = build_ctcdecoder(LETTERS, str(zipped), unigrams=["ab", "not in the model"])
    log_probs = all_texts(logits, NAMES["letters"])
    worth = {t: score + worth_of(t, grams, ["ab"]) for t, score in log_probs.items()}
    assert_beams(decoder.decode_beams(logits, **ALL), worth, log_probs)


@pytest.mark.slow
def test_the_model_goes_on_from_a_state(grams, model_path, logits):
    decoder = build_ctcdecoder(LETTERS, model_path)
    states = {beam[0]: beam[1] for beam in decoder.decode_beams(logits, **ALL)}
    log_probs = all_texts(logits, NAMES["letters"])
    beams = decoder.decode_beams(logits, **ALL, lm_start_state=states["a"])
    worth = {
        text: score + worth_of(f"a {text}", grams, ["a", "b", "ab", "bb"])
        for text, score in log_probs.items()
    }
    first = 0.5 * PlainHypothesis(grams).score("a") + 1.5
    assert_beams(beams, {text: score - first for text, score in worth.items()}, log_probs)


def test_frames_of_words():
    path = [0, 2, 2, 0, 3, 1, 1, 0, 3, 3]
    (beam, *_) = build_ctcdecoder(LETTERS).decode_beams(9 * np.eye(4)[path])
    text, state, words, logit_score, lm_score = beam
    assert (text, state) == (beam.text, beam.last_lm_state) == ("ab b", None)
    assert words == beam.text_frames
    assert (logit_score, lm_score) == (beam.logit_score, beam.lm_score)
    assert words == [("ab", (1, 5)), ("b", (8, 10))]
    (_, _, words, *_), *_ = build_ctcdecoder(PIECES).decode_beams(9 * np.eye(6)[[0, 0, 1, 2, 4]])
    assert words == [("ab", (0, 3)), ("b", (4, 5))]


@pytest.mark.slow
def test_batches_are_their_examples(rng):
    decoder = build_ctcdecoder(LETTERS)
    lengths = rng.integers(0, 40, size=19)
    batch = [3 * rng.normal(size=(length, 4)).astype(np.float32) for length in lengths]
    together = decoder.decode_beams_batch(None, batch, beam_width=16)
    for logits, beams in zip(batch, together, strict=True):
        alone = decoder.decode_beams(logits, beam_width=16)
        assert [beam[0] for beam in beams] == [beam[0] for beam in alone]
        assert [beam[1] for beam in beams] == [beam[2] for beam in alone]
        np.testing.assert_allclose([b[2:] for b in beams], [b[3:] for b in alone], rtol=1e-5)
    assert decoder.decode_batch(None, batch, beam_width=16) == [beams[0][0] for beams in together]
    assert decoder.decode_batch(None, []) == []


def test_probabilities_and_log_probabilities_will_do(logits):
    decoder, probs = build_ctcdecoder(LETTERS), np.exp(logits)
    probs /= probs.sum(axis=1, keepdims=True)
    expected = [beam[3:] for beam in decoder.decode_beams(logits)]
    for same in (probs, np.log(probs), logits.astype(np.float32)):
        found = [beam[3:] for beam in decoder.decode_beams(same)]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "remedy"),
    [
        ((1, 6, 4), "decode_batch"),
        ((4,), "One utterance is a matrix"),
        ((4, 6), "transpose"),
        ((6, 3), "the blank is one class more"),
    ],
    ids=str,
)
def test_logits_of_other_shapes(shape, remedy):
    with pytest.raises(ValueError, match=rf"decode: logits must have shape \(T, 4\).*{remedy}"):
        build_ctcdecoder(LETTERS).decode(np.zeros(shape))


def test_words_that_no_model_or_label_has(model_path):
    with pytest.warns(UserWarning, match="1 of 11 unigrams are in .* Is their case"):
        build_ctcdecoder(LETTERS, model_path, unigrams=["ab", *"CDEFGHIJKL"])
    no_word = pytest.raises(ValueError, match="tokens must name words of the file")
    with pytest.warns(UserWarning, match="labels spell few words .* Is their case"), no_word:
        build_ctcdecoder(["", "|", "A", "B", "C"], model_path)
    with pytest.raises(ValueError, match="unigrams must be a list of words"):
        build_ctcdecoder(LETTERS, model_path, unigrams="words.txt")
    with pytest.raises(ValueError, match="hotwords must be a list of words; got 'ab'"):
        build_ctcdecoder(LETTERS).decode(np.zeros((3, 4)), hotwords="ab")


def test_states_and_weights_of_another_kind(model_path, logits):
    decoder = build_ctcdecoder(LETTERS, model_path)
    states: list[Any] = ["x", -1, 10**9]
    for state in states:
        with pytest.raises(ValueError, match="lm_start_state must be None or the second entry"):
            decoder.decode(logits, lm_start_state=state)
    weights: list[Any] = ["x", math.nan]
    for weight in weights:
        with pytest.raises(ValueError, match="alpha must be a finite number"):
            decoder.reset_params(alpha=weight)


def test_impossible_frames_warn_of_nothing(logits, recwarn):
    impossible = logits.copy()
    impossible[1] = -np.inf
    assert build_ctcdecoder(LETTERS).decode_batch(None, [impossible])[0] == ""
    assert not recwarn.list


@pytest.mark.parametrize("place", [0, 1])
def test_nan_among_thousands_of_scores(place, rng):
    """The maximum of XLA:CPU finds no NaN there."""
    letters = ["", " ", *"abcdefghijklmnopqrstuvwxyz"]
    batch = rng.normal(size=(2, 50, len(letters)))
    batch[place, 10, 5] = np.nan
    texts = build_ctcdecoder(letters).decode_batch(None, batch)
    assert [text == "" for text in texts] == [place == 0, place == 1]


def test_nan_is_one_empty_text(logits):
    bad = logits.copy()
    bad[2, 1] = np.nan
    results = build_ctcdecoder(LETTERS).decode_beams_batch(None, [bad, logits])
    assert [beam[:2] for beam in results[0]] == [("", [])]
    assert np.isnan(results[0][0][2:]).all()
    assert np.isfinite([beam[2:] for beam in results[1]]).all()


def test_what_is_ignored_is_said(logits):
    decoder = build_ctcdecoder(LETTERS)
    with multiprocessing.pool.ThreadPool(1) as pool, pytest.warns(UserWarning, match="pool is ig"):
        assert decoder.decode_batch(pool, [logits]) == [decoder.decode(logits)]
    with pytest.warns(UserWarning, match="prune_history=True is ignored"):
        decoder.decode_beams(logits, prune_history=True)
    with pytest.warns(UserWarning, match="unigrams have no effect without kenlm_model_path"):
        build_ctcdecoder(LETTERS, unigrams=["a"])


@pytest.mark.parametrize(
    ("labels", "expected", "is_bpe"),
    [
        (["a", "b"], ["a", "b", ""], False),
        (["_", "|", "a"], ["", " ", "a"], False),
        (["[PAD]", "|", " ", "[unk]"], ["", "|", " ", "⁇"], False),
        (["<pad>", "<s>", "A", "|"], ["", "<s>", "A", " "], False),
        (["##b", "a", "[CLS]", "<UNK>", "▁"], ["b", "▁a", "[CLS]", "▁⁇▁", "▁", ""], True),
        (["▁a", "b", "_", "<pad>"], ["▁a", "b", "_", ""], True),
    ],
    ids=str,
)
def test_labels_as_pyctcdecode_has_them(labels, expected, is_bpe):
    alphabet = Alphabet.build_alphabet(labels)
    assert (alphabet.labels, alphabet.is_bpe) == (expected, is_bpe)


def test_one_token_a_frame(logits):
    """As no other is likely enough: the best path, collapsed."""
    text = text_of(logits.argmax(axis=1), NAMES["letters"])
    assert build_ctcdecoder(LETTERS).decode(logits, token_min_logp=0.0) == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a", "a"],), "labels must differ; got 'a' 2 times"),
        ((["", "<pad>", "a"],), "labels must have one blank; got 2 of them"),
        ((["▁a", " "],), "labels must have no space where some begin"),
        (("abc",), "labels must be a list of strings"),
        ((["", "a"], "words.arpa"), 'labels must have " " or "|", or begin words with "▁"'),
    ],
    ids=str,
)
def test_refused_labels(arguments, message):
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        build_ctcdecoder(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_width": 0}, "beam_width must be at least 1"),
        ({"beam_prune_logp": 1.0}, "beam_prune_logp must be 0 or less; got 1.0"),
        ({"lm_start_state": 1}, "lm_start_state must be None without a language model"),
        ({"logits": np.zeros((3, 5))}, r"logits must have shape \(T, 4\)"),
    ],
    ids=str,
)
def test_refused_options(options, message, logits):
    arguments: dict[str, Any] = {"logits": logits, **options}
    with pytest.raises(ValueError, match=message):
        build_ctcdecoder(LETTERS).decode_beams(**arguments)


def test_hot_words_need_spaces():
    with pytest.raises(ValueError, match="hotwords must be None unless labels have"):
        build_ctcdecoder(["", "a"]).decode(np.zeros((2, 2)), hotwords=["a"])


def test_binary_models_are_refused_by_name(tmp_path):
    path = tmp_path / "words.arpa"
    path.write_bytes(b"mmap lm http://kheafield.com/code format version 5\n\0" + bytes(99))
    with pytest.raises(ValueError, match=r"got KenLM's binary format\. Pass the ARPA file"):
        build_ctcdecoder(LETTERS, str(path))


# Beside the package itself.


@pytest.fixture
def theirs():
    reason = "needs `pip install --no-deps pyctcdecode pygtrie`, which no extra has"
    pytest.importorskip("pyctcdecode", reason=reason)
    logging.disable(logging.WARNING)
    yield importlib.import_module("pyctcdecode").build_ctcdecoder
    logging.disable(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [ALL, {**ALL, "hotwords": ["ab", "b a"], "hotword_weight": 3.0}, {}], ids=str
)
@pytest.mark.parametrize("labels", [LETTERS, PIECES[:5]], ids=["letters", "pieces"])
def test_beside_pyctcdecode(theirs, labels, options, rng):
    for _ in range(3):
        logits = some_logits(labels, rng)
        expected = theirs(labels).decode_beams(logits, **options)
        found = build_ctcdecoder(labels).decode_beams(logits, **options)
        assert_same_beams(found, expected, len(expected) if options else 1)


def assert_same_beams(found, expected, count, rtol=1e-4):
    """The same texts with the same scores; which of equal ones comes first is left open."""
    ours = {beam[0]: beam[-2:] for beam in found}
    for text, *_, log_prob, score in expected[:count]:
        if log_prob < -30:  # texts of what is clipped
            continue
        np.testing.assert_allclose(ours[text], (log_prob, score), rtol, 1e-4)
    assert found[0][0] == expected[0][0]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"alpha": 0.9, "beta": 0.2, "unk_score_offset": -1.0}])
def test_beside_pyctcdecode_with_a_model(theirs, options, grams, tmp_path, rng):
    """Texts that no path ends with a space in: there, it may count as one more, unknown word."""
    pytest.importorskip("kenlm", reason="needs `pip install kenlm`, which no extra has")
    path = tmp_path / "words.arpa"
    path.write_text(as_kenlm_wants(grams))
    logits = 3 * rng.normal(size=(FRAMES, 4))
    logits[-1, :2] = -99  # a letter at the end
    ours = build_ctcdecoder(LETTERS, str(path), **options)
    other = theirs(LETTERS, str(path), **options)
    for more in ({}, {"hotwords": ["ab"], "hotword_weight": 3.0}):
        unpruned = {**ALL, "token_min_logp": -30.0, **more}  # not the clipped space at the end
        expected = other.decode_beams(logits, **unpruned)
        assert_same_beams(ours.decode_beams(logits, **unpruned), expected, 5)


def as_kenlm_wants(grams):
    """A file with nothing before it, tabs, and a back-off for every word, which makes it known."""
    lines = ["\\data\\", *(f"ngram {n}={sum(len(g) == n for g in grams)}" for n in (1, 2))]
    for order in (1, 2):
        lines += ["", f"\\{order}-grams:"]
        for gram, (log_prob, back_off) in grams.items():
            if len(gram) == order:
                fields = [f"{log_prob}", " ".join(gram), f"{back_off or -0.0}"]
                lines.append("\t".join(fields[: 4 - order]))
    return "\n".join([*lines, "", "\\end\\", ""])


def test_a_space_at_the_end_is_no_word(theirs, grams, tmp_path):
    """Where pyctcdecode counts the nothing after it as an unknown word, ours does not."""
    pytest.importorskip("kenlm", reason="needs `pip install kenlm`, which no extra has")
    path = tmp_path / "words.arpa"
    path.write_text(as_kenlm_wants(grams))
    logits = 30 * np.eye(4)[[2, 1]]
    (beam, *_) = build_ctcdecoder(LETTERS, str(path)).decode_beams(logits)
    np.testing.assert_allclose(beam[-1], worth_of("a", grams, ["a", "b", "ab", "bb"]), rtol=1e-5)
    (other, *_) = theirs(LETTERS, str(path)).decode_beams(logits)
    assert other[0] == beam[0] == "a"
    assert other[-1] < beam[-1] - 5


@pytest.mark.slow
def test_real_log_probabilities(theirs):
    """Of a sentence of LibriSpeech, which pyctcdecode brings along for its own tests."""
    folder = Path(str(importlib.import_module("pyctcdecode").__file__)).parent / "tests/sample_data"
    if not (folder / "libri_logits.json").exists():
        pytest.skip("this pyctcdecode came without its tests")
    logits = np.array(json.loads((folder / "libri_logits.json").read_text()))
    labels = [" ", *map(chr, range(ord("a"), ord("z") + 1)), "'", ""]
    ours, other = build_ctcdecoder(labels), theirs(labels)
    some: list[dict[str, Any]] = [{}, {"beam_prune_logp": -20.0}, {"token_min_logp": -9.0}]
    for options in some:
        expected = other.decode_beams(logits, **options)
        assert_same_beams(ours.decode_beams(logits, **options), expected, 2, rtol=1e-2)
    assert ours.decode_batch(None, [logits, logits[:200]]) == other.decode_batch(
        None, [logits, logits[:200]]
    )
