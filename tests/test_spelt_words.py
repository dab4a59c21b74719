"""From labels back to the words of a lexicon, and beside the decoder of flashlight."""

import importlib
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

import jaxctc
from jaxctc import read_lexicon, read_spellings

LETTERS = jaxctc.Vocabulary(["-", "|", "a", "b", "t"], separator="|")


def write_spellings(folder, *lines):
    path = folder / "spelt"
    path.write_text("\n".join(lines))
    return path


def test_words_that_sound_alike(tmp_path):
    """From logits by a lexicon to the words that its spellings stand for."""
    vocabulary = jaxctc.Vocabulary(["-", "|", "T", "UW", "AH"], separator="|")
    path = write_spellings(tmp_path, "two T UW |", "to T AH |", "too T UW |", "to T UW |")
    spellings = read_spellings(path, vocabulary)
    heard = 5.0 * np.eye(5)[[2, 0, 3, 1, 1, 2, 4]]
    options = {"lexicon": read_lexicon(path, vocabulary), "num_hypotheses": 2}
    best = jaxctc.prefix_beam_search(jnp.asarray(heard, jnp.float32), None, **options)
    assert spellings.words(best.labels[0]) == [["two", "too", "to"], ["to"]]
    assert spellings.words(best.labels)[0] == spellings.words(best.labels[0])


def test_words_with_a_mark_and_without(tmp_path):
    marked = jaxctc.Vocabulary(["-", "▁a", "b", "▁"], separator="▁")
    path = write_spellings(tmp_path, "AB ▁a b", "A ▁a", "B ▁ b")
    assert read_spellings(path, marked).words([1, 2, 1, 3, 2, 2]) == [["AB"], ["A"], []]
    bare = jaxctc.Vocabulary(["-", "a", "b", "c"])
    path = write_spellings(tmp_path, "A a", "AB a b", "B b", "BCC b c c", "ABC a b c")
    spellings = read_spellings(path, bare)
    assert spellings.words([1, 2, 3, 3, 1, -1]) == [["A"], ["BCC"], ["A"]]
    assert spellings.words([1, 2, 1, 2]) == [["AB"], ["AB"]]
    assert spellings.words([3, 1]) == [[]]
    assert spellings.words([]) == []


def test_words_that_are_not_spelt(tmp_path):
    path = write_spellings(tmp_path, "ab", "b")
    with pytest.raises(ValueError, match=r"line 1 of .* must have tokens after the word; got 'ab'"):
        read_spellings(path, LETTERS)
    with pytest.raises(ValueError, match="must have words; got none"):
        read_spellings(write_spellings(tmp_path, ""), LETTERS)


# Beside flashlight's lexicon decoder, which ends every word with the separator, the last one too.

LINES = ("AT a t |", "ATE a t |", "BAT b a t |", "TAB t a b |", "B b |")


def by_flashlight(log_probs):
    """The best words and their score, of all paths, without a language model."""
    decoder = importlib.import_module("flashlight.lib.text.decoder")
    model, separator = decoder.ZeroLM(), 1
    trie, start = decoder.Trie(len(LETTERS.tokens), separator), model.start(False)
    for place, line in enumerate(LINES):
        spelling = [LETTERS.tokens.index(token) for token in line.split()[1:]]
        trie.insert(spelling, place, model.score(start, place)[1])
    trie.smear(decoder.SmearingMode.MAX)
    everything, nothing = (5000, 5, 1e6), (0.0, 0.0, -math.inf, 0.0)
    options = decoder.LexiconDecoderOptions(*everything, *nothing, True, decoder.CriterionType.CTC)
    search = decoder.LexiconDecoder(options, trie, model, separator, 0, len(LINES), [], False)
    best = search.decode(log_probs.ctypes.data, *log_probs.shape)[0]
    return [LINES[word].split()[0] for word in best.words if word >= 0], best.score


def test_beside_flashlight(tmp_path, rng):
    reason = "needs `pip install flashlight-text`, which has wheels up to Python 3.12"
    pytest.importorskip("flashlight.lib.text.decoder", reason=reason)
    path = write_spellings(tmp_path, *LINES)
    lexicon, spellings = read_lexicon(path, LETTERS), read_spellings(path, LETTERS)
    for _ in range(5):
        log_probs = 2 * rng.normal(size=(7, 5))
        log_probs -= np.log(np.exp(log_probs).sum(axis=1, keepdims=True))
        log_probs = log_probs.astype(np.float32)
        found = jaxctc.prefix_beam_search(
            jnp.asarray(log_probs),
            None,
            logits_normalized=True,
            beam_width=800,
            num_hypotheses=800,
            lexicon=lexicon,
        )
        totals: dict[str, float] = {}  # all label sequences of the same words are one there
        for labels, score in zip(*map(np.asarray, (found.labels, found.scores)), strict=True):
            ids = labels[labels >= 0]
            if score > -np.inf and ids[-1:].tolist() == [1]:
                words = json.dumps(spellings.words(ids))
                totals[words] = np.logaddexp(totals.get(words, -np.inf), score)
        best = max(totals, key=totals.__getitem__)
        words, score = by_flashlight(log_probs)
        assert all(word in alike for word, alike in zip(words, json.loads(best), strict=True))
        np.testing.assert_allclose(totals[best], score, rtol=1e-5)
