"""What whole words are worth to a decoder: n-grams with a bonus for every word, and hot words."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from jaxctc._core import checks
from jaxctc.decoding.language_models import weighted
from jaxctc.decoding.lexicon import Lexicon, build_lexicon
from jaxctc.decoding.ngram_models import WordNGrams, WordState
from jaxctc.text import Vocabulary


class WeightedWords(NamedTuple):
    """N-grams of words with a weight of their own, and a bonus for every word."""

    words: WordNGrams
    weight: Float[Array, ""]
    """Factor of the log-probabilities."""
    word_bonus: Float[Array, ""]
    """Nats for every word, added where it ends."""

    @property
    def initial_state(self) -> WordState:
        """That of the n-grams."""
        return self.words.initial_state

    def score_and_advance(
        self, state: WordState, token: Int[ArrayLike, ""]
    ) -> tuple[Float[Array, ""], WordState]:
        """What the word that the token ends is worth, in nats, and the state after it."""
        log_prob, after = self.words.score_and_advance(state, token)
        is_word = self.words.is_end(token) & self._is_within(state)
        return self._worth(log_prob, is_word), after

    def final_score(self, state: WordState) -> Float[Array, ""]:
        """What the last word, if it is yet to be ended, and `</s>` are worth, in nats."""
        return self._worth(self.words.final_score(state), self._is_within(state))

    def _is_within(self, state: WordState) -> Bool[Array, ""]:
        return state.spelt != self.words.spelling.initial_state

    def _worth(self, log_prob: Float[Array, ""], is_word: Bool[Array, ""]) -> Float[Array, ""]:
        bonus = jnp.where(is_word, self.word_bonus, jnp.zeros_like(self.word_bonus))
        return weighted(self.weight, log_prob) + bonus


class WholeWords(NamedTuple):
    """A model under which every word of a list is worth a bonus where it stands alone.

    Its state is that of the lexicon, of whose scores nothing is used.
    """

    lexicon: Lexicon
    worth: Float[Array, " states"]
    """What it is worth that a word ends in each state, in nats."""
    advance: Float[Array, " states"]
    """How much of it a hypothesis in each state has been paid in advance."""

    @property
    def initial_state(self) -> Int[Array, ""]:
        """The state between words."""
        return self.lexicon.initial_state

    def score_and_advance(
        self, state: Int[Array, ""], token: Int[ArrayLike, ""]
    ) -> tuple[Float[Array, ""], Int[Array, ""]]:
        """What the token is worth after `state`, in nats, and the state after it."""
        _, after = self.lexicon.score_and_advance(state, token)
        ended = jnp.where(self.lexicon.is_end(token), self.worth[state], 0)
        return ended.astype(jnp.float32) + self.advance[after] - self.advance[state], after

    def final_score(self, state: Int[Array, ""]) -> Float[Array, ""]:
        """What it is worth, in nats, that the last word ends in `state`."""
        return self.worth[state] - self.advance[state]


def whole_words(words: Sequence[str], vocabulary: Vocabulary, bonus: float) -> WholeWords:
    """A model under which every occurrence of a word of a list is worth a bonus.

    Unlike under `jaxctc.hot_words`, a word occurs only where it stands alone, between separators
    or at an end, and however tokens spell it. The bonus is paid in advance: within a word, the
    share of its tokens that are there, were it to end as soon as it can.

    Args:
      words: the words. One that comes twice, or that no tokens spell, is worth no more than one
        that comes once, or nothing.
      vocabulary: the tokens, and the separator that words have.
      bonus: nats for every occurrence.

    Returns:
      `WholeWords`. Its scores, the final one included, sum to bonus · occurrences: exactly
      (shares are rounded) if the bonus is a multiple of 1/1024 and the sum below 2¹⁴.

    Raises:
      ValueError: as `build_lexicon`; if no tokens spell any of the words, or without a separator.

    Example:
      >>> vocabulary = Vocabulary(["-", " ", "a", "b"], separator=" ")
      >>> model = whole_words(["ab"], vocabulary, bonus=8.0)
      >>> half, state = model.score_and_advance(model.initial_state, 2)
      >>> rest, state = model.score_and_advance(state, 3)
      >>> float(half), float(rest), float(model.final_score(state))
      (4.0, 4.0, 0.0)
      >>> float(model.score_and_advance(state, 3)[0])  # it goes on: another word
      -8.0
    """
    if not vocabulary.separator:
        checks.fail("whole_words", "vocabulary", "have a separator", "none")
    lexicon = build_lexicon(words, vocabulary, unknown="drop")
    before, after = _tokens_before_and_after(lexicon)
    whole = before + after  # inf in the state of what is in no word, and never 0
    shares = np.divide(before, whole, out=np.zeros_like(whole), where=whole < np.inf)
    is_word = np.asarray(lexicon.may_end).copy()
    is_word[[0, -1]] = False
    return WholeWords(
        lexicon=lexicon,
        worth=jnp.asarray(is_word * bonus, jnp.float32),
        advance=jnp.asarray(np.round(1024 * bonus * shares) / 1024, jnp.float32),
    )


def _tokens_before_and_after(
    lexicon: Lexicon,
) -> tuple[Float[np.ndarray, " states"], Float[np.ndarray, " states"]]:
    """The fewest tokens from between words to each state, and from there to the end of a word."""
    starts, nexts = np.asarray(lexicon.first_arc), np.asarray(lexicon.arc_next)[:-1]
    counts = np.diff(starts, append=len(nexts))
    sources = np.repeat(np.arange(len(starts)), counts)
    before, after = np.full((2, len(starts)), np.inf)
    before[0] = 0
    after[1:-1][np.asarray(lexicon.may_end)[1:-1]] = 0
    for distances, here, there in ((before, sources, nexts), (after, nexts, sources)):
        known = np.zeros_like(distances)
        while (distances != known).any():
            known = distances.copy()
            np.minimum.at(distances, there, known[here] + 1)
    return before, after
