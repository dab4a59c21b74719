"""N-gram models as a decoder uses them: of tokens, or of words that tokens spell."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from jaxctc.decoding.automata import Automaton


class TokenNGrams(NamedTuple):
    """An n-gram model whose words are the tokens. Its state is the context, a number."""

    words: Int[Array, " K+1"]
    """Word of each class id, and last that of all other ids."""
    ngrams: Automaton
    """Contexts as states, words as tokens."""

    def __repr__(self) -> str:
        """One line, without the numbers."""
        return f"TokenNGrams(ngrams={self.ngrams})"

    @property
    def num_classes(self) -> int:
        """How many classes have been named."""
        return self.words.shape[-1] - 1

    @property
    def initial_state(self) -> Int[Array, ""]:
        """The context `<s>`."""
        return self.ngrams.initial_state

    def score_and_advance(
        self, state: Int[Array, ""], token: Int[ArrayLike, ""]
    ) -> tuple[Float[Array, ""], Int[Array, ""]]:
        """Log-probability, in nats, of the token's word in its context, and the next context."""
        token, classes = jnp.asarray(token, jnp.int32), np.int32(self.words.shape[0] - 1)
        place = jnp.where((token >= 0) & (token < classes), token, classes)
        return self.ngrams.score_and_advance(state, self.words[place])

    def final_score(self, state: Int[Array, ""]) -> Float[Array, ""]:
        """Log-probability, in nats, of `</s>`."""
        return self.ngrams.final_score(state)


class WordState(NamedTuple):
    """Where a hypothesis stands between the words of a `WordNGrams` model."""

    spelt: Int[Array, ""]
    """State of the spelling: 0 at the beginning of a word."""
    context: Int[Array, ""]
    """Context of the words before."""


class WordNGrams(NamedTuple):
    """An n-gram model whose words are spelt by tokens."""

    ends_word: Bool[Array, " K+1"]
    """Before which class ids a word ends: the separator, and those that begin the next word."""
    spelling: Automaton
    """Beginnings of words as states, class ids as tokens."""
    words: Int[Array, " states"]
    """The word that each state of the spelling has spelt, or else the unknown one."""
    ngrams: Automaton
    """Contexts as states, words as tokens."""

    def __repr__(self) -> str:
        """One line, without the numbers."""
        return f"WordNGrams(spelling={self.spelling}, ngrams={self.ngrams})"

    @property
    def num_classes(self) -> int:
        """How many classes have been named."""
        return self.ends_word.shape[-1] - 1

    @property
    def initial_state(self) -> WordState:
        """At the beginning of a word, in the context `<s>`."""
        return WordState(self.spelling.initial_state, self.ngrams.initial_state)

    def score_and_advance(
        self, state: WordState, token: Int[ArrayLike, ""]
    ) -> tuple[Float[Array, ""], WordState]:
        """Log-probability, in nats, of the word that the token ends; 0 within words."""
        log_prob, ended = self.end_word(state)
        is_end = self.is_end(token)
        state = jax.tree.map(lambda a, b: jnp.where(is_end, a, b), ended, state)
        _, spelt = self.spelling.score_and_advance(state.spelt, token)
        score = jnp.where(is_end, log_prob, jnp.zeros_like(log_prob))
        return score, WordState(spelt, state.context)

    def is_end(self, token: Int[ArrayLike, ""]) -> Bool[Array, ""]:
        """Whether the word before `token` ends there."""
        token, classes = jnp.asarray(token, jnp.int32), np.int32(self.ends_word.shape[0] - 1)
        return self.ends_word[jnp.where((token >= 0) & (token < classes), token, classes)]

    def final_score(self, state: WordState) -> Float[Array, ""]:
        """Log-probability, in nats, of the last word, if it is yet to be ended, and of `</s>`."""
        log_prob, ended = self.end_word(state)
        return log_prob + self.ngrams.final_score(ended.context)

    def end_word(self, state: WordState) -> tuple[Float[Array, ""], WordState]:
        """Log-probability, in nats, of the word so far, and the state after it."""
        word = self.words[state.spelt]
        log_prob, context = self.ngrams.score_and_advance(state.context, word)
        is_empty = state.spelt == self.spelling.initial_state
        context = jnp.where(is_empty, state.context, context)
        log_prob = jnp.where(is_empty, jnp.zeros_like(log_prob), log_prob)
        return log_prob, WordState(self.spelling.initial_state, context)
