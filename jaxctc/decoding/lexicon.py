"""Words that a decoder may write, as an automaton: all others are forbidden, or have a price.

States are beginnings of words. What may follow a state is a row with one bit for each class, and
the arc of a class is found by counting the bits before its own: no table of states times classes,
no search, and no loop. States with the same classes after them share a row, and there are few
different ones. A lookup gathers a row, and to go on it also gathers one number.
"""

import itertools
import math
import os
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, UInt32

from jaxctc._core import checks
from jaxctc.decoding.automata import sizes_of
from jaxctc.decoding.spellings import (
    BETWEEN,
    Entry,
    Graph,
    deterministic,
    graph_of_spellings,
    graph_of_words,
    read_entries,
)
from jaxctc.text import Vocabulary


class Lexicon(NamedTuple):
    """A model under which a hypothesis is words of a list. Its state is a number.

    State 0 is between words, the last one within a word that is not in the list; every other one
    is a beginning of words that are, or several at once. All fields are arrays, so that it can be
    an argument of a compiled function; two lexicons of the same shapes share the program.
    """

    row: Int[Array, " states"]
    """Row of `tokens` for each state."""
    tokens: UInt32[Array, "rows K/32"]
    """Which classes may follow, 32 in a number; states that agree in that share a row."""
    first_arc: Int[Array, " states"]
    """First arc of each state; its arcs stand in the order of their classes."""
    arc_next: Int[Array, " arcs"]
    """Where each arc leads."""
    may_end: Bool[Array, " states"]
    """True where the end of the word costs nothing: at its last token, and in states 0 and last."""
    starts_word: Bool[Array, " K"]
    """Classes that begin the next word without a separator before them."""
    separator: Int[Array, ""]
    """The class between words, -1 for none."""
    unknown_score: Float[Array, ""]
    """What a word that is not in the list is worth, in nats; -inf forbids it."""
    unfinished_score: Float[Array, ""]
    """What it is worth, in nats, to end within a word that is not over; -inf forbids it."""

    def __repr__(self) -> str:
        """One line, without the numbers."""
        return sizes_of(self, classes=self.starts_word, states=self.row, arcs=self.arc_next)

    @property
    def num_classes(self) -> int:
        """How many tokens the vocabulary had."""
        return self.starts_word.shape[-1]

    @property
    def initial_state(self) -> Int[Array, ""]:
        """The state between words."""
        return jnp.asarray(BETWEEN, jnp.int32)

    @property
    def lost_state(self) -> Int[Array, ""]:
        """The state within a word that is not in the list."""
        return jnp.asarray(self.row.shape[0] - 1, jnp.int32)

    def score_and_advance(
        self, state: Int[Array, ""], token: Int[ArrayLike, ""]
    ) -> tuple[Float[Array, ""], Int[Array, ""]]:
        """What the token is worth after `state`, in nats, and the state after it.

        A word that is not in the list is paid at the first token that no word has there, or else
        where it ends.
        """
        token = jnp.asarray(token, jnp.int32)
        lost, nothing = self.lost_state, jnp.zeros_like(self.unknown_score)
        ended = jnp.where(self.may_end[state], nothing, self.unknown_score)
        goes_on, after = self.arc(state, token)
        is_known, begun = self.arc(self.initial_state, token)
        is_class, place = self._place(token)
        begins = is_class & self.starts_word[place]
        is_separator = self._is_separator(token)

        begin_score = ended + jnp.where(is_known, nothing, self.unknown_score)
        stray_score = jnp.where(state == lost, nothing, self.unknown_score)
        score = jnp.where(begins, begin_score, stray_score)
        score = jnp.where(goes_on, nothing, score)
        next_state = jnp.where(begins & is_known, begun, lost)
        next_state = jnp.where(goes_on, after, next_state)
        return (
            jnp.where(is_separator, ended, score),
            jnp.where(is_separator, self.initial_state, next_state),
        )

    def arc(
        self, state: Int[Array, ""], token: Int[Array, ""]
    ) -> tuple[Bool[Array, ""], Int[Array, ""]]:
        """Whether `token` goes on with a word of the list, and the state that it leads to.

        The second is of no meaning where the first is False.
        """
        row = self.tokens[self.row[state]]
        is_class, place = self._place(token)
        group, bit = place >> 5, (place & 31).astype(jnp.uint32)
        one = jnp.ones_like(bit)
        is_arc = is_class & (((row[group] >> bit) & one) == one)
        groups = jnp.arange(row.shape[0], dtype=jnp.int32)
        before = jnp.where(groups == group, (one << bit) - one, jnp.zeros_like(bit))
        before = jnp.where(groups < group, ~jnp.zeros_like(bit), before)
        count = jnp.sum(lax.population_count(row & before), dtype=jnp.uint32).astype(jnp.int32)
        # One arc more than there are stands at the end, so that the place is always one.
        return is_arc, self.arc_next[self.first_arc[state] + count]

    def is_end(self, token: Int[ArrayLike, ""]) -> Bool[Array, ""]:
        """Whether a word before `token` ends there."""
        token = jnp.asarray(token, jnp.int32)
        is_class, place = self._place(token)
        return self._is_separator(token) | (is_class & self.starts_word[place])

    def _is_separator(self, token: Int[Array, ""]) -> Bool[Array, ""]:
        return (token == self.separator) & (token >= 0)

    def _place(self, token: Int[Array, ""]) -> tuple[Bool[Array, ""], Int[Array, ""]]:
        """Whether a token is a class, and a class."""
        is_class = (token >= 0) & (token < self.starts_word.shape[0])
        return is_class, jnp.where(is_class, token, jnp.zeros_like(token))

    def final_score(self, state: Int[Array, ""]) -> Float[Array, ""]:
        """What it is worth, in nats, that the hypothesis ends in `state`."""
        nothing = jnp.zeros_like(self.unfinished_score)
        return jnp.where(self.may_end[state], nothing, self.unfinished_score)


def build_lexicon(
    words: Sequence[str] | Sequence[Sequence[int]],
    vocabulary: Vocabulary,
    *,
    unknown: Literal["raise", "drop"] = "raise",
    normalize: Callable[[str], str] | None = None,
    unknown_score: float = -math.inf,
) -> Lexicon:
    """A model of the words that a hypothesis may hold; all others are forbidden, or cost something.

    Between two words stands the vocabulary's separator, any number of times, and also before the
    first and after the last. If the separator marks the beginnings of words ("▁"), or there is
    none, a word follows another at once; without any mark, hypotheses are whatever words make
    up, in whatever way.

    Args:
      words: strings, each of which may be spelt in all the ways in which tokens make it up; or
        lists of class ids, each of which is one spelling. A word may come more than once.
      vocabulary: the tokens, the blank and the separator.
      unknown: what happens to a word that no tokens spell, and to one of more than 1000
        characters: "raise" refuses the list, "drop" leaves the word out.
      normalize: applied to every string before it is spelt, such as `str.upper`.
      unknown_score: nats for every word that is not in the list, below 0: paid once, as soon as
        no word goes on like it. -inf forbids such words. Without a separator it must be -inf.

    Returns:
      A `Lexicon`. The sum of its scores, the final one included, is `unknown_score` times the
      words of a hypothesis that are not in the list. It takes the place of a language model, or
      stands beside one as `lexicon=`.

    Raises:
      ValueError: if there are no words, or an empty one; if a string has white space where a
        separator parts words, or no tokens spell it; if an id is no class, or the blank's or the
        separator's; if a spelling does not begin with the mark where words do; if `unknown_score`
        is no number below 0.

    Example:
      >>> vocabulary = Vocabulary(["-", "|", "a", "b"], separator="|")
      >>> model = build_lexicon(["ab", "b"], vocabulary)
      >>> score, state = model.score_and_advance(model.initial_state, 2)  # a: the word is open
      >>> float(score), float(model.final_score(state))
      (0.0, -inf)
      >>> [float(model.score_and_advance(state, token)[0]) for token in (1, 2, 3)]
      [-inf, -inf, 0.0]
    """
    function = "build_lexicon"
    if isinstance(words, str) or not isinstance(words, Sequence):
        got, remedy = type(words).__name__, "One word alone is a list of one."
        checks.fail(function, "words", "be a list of words", got, remedy)
    entries = [Entry(word, f"words[{place}]") for place, word in enumerate(words)]
    return _build(function, "words", entries, vocabulary, unknown, normalize, unknown_score)


def read_lexicon(
    path: str | os.PathLike[str],
    vocabulary: Vocabulary,
    *,
    unknown: Literal["raise", "drop"] = "raise",
    normalize: Callable[[str], str] | None = None,
    unknown_score: float = -math.inf,
) -> Lexicon:
    r"""`build_lexicon` of the words in a file, in UTF-8.

    A line is a word. Or every line is a word and, parted by white space, the names of the tokens
    that spell it (a lexicon of flashlight or torchaudio); a separator at the end of a spelling is
    left out, and a word with several spellings has a line for each. Empty lines do not count.
    `read_spellings` of the same file says what words a hypothesis then spells.

    Args:
      path: the file.
      vocabulary, unknown, unknown_score: as of `build_lexicon`.
      normalize: as of `build_lexicon`; words that come with their spelling stay as they are.

    Returns:
      A `Lexicon`.

    Raises:
      ValueError: as `build_lexicon`, with the number of the line; if a line comes twice, or some
        have a spelling and others none, or a spelling names what is no token.
      OSError: if the file cannot be read.

    Example:
      >>> from tempfile import NamedTemporaryFile
      >>> vocabulary = Vocabulary(["-", "|", "a", "b"], separator="|")
      >>> with NamedTemporaryFile("w") as file:
      ...     print("bee b |", "abba a b b a |", sep="\n", file=file, flush=True)
      ...     model = read_lexicon(file.name, vocabulary)
      >>> float(model.score_and_advance(model.initial_state, 3)[0])
      0.0
    """
    function = "read_lexicon"
    entries = read_entries(function, path, vocabulary)
    return _build(function, os.fspath(path), entries, vocabulary, unknown, normalize, unknown_score)


def _build(
    function: str,
    argument: str,
    entries: list[Entry],
    vocabulary: Vocabulary,
    unknown: str,
    normalize: Callable[[str], str] | None,
    unknown_score: float,
) -> Lexicon:
    """Checks the options, spells the words and puts the automaton together."""
    checks.choice(function, "unknown", unknown, ("raise", "drop"))
    if not isinstance(vocabulary, Vocabulary):
        got = type(vocabulary).__name__
        checks.fail(function, "vocabulary", "be a jaxctc.Vocabulary", got)
    if not unknown_score < 0:
        checks.fail(function, "unknown_score", "be a number below 0", unknown_score)
    if not vocabulary.separator and unknown_score > -math.inf:
        remedy = "Nothing says where an unknown word would end."
        checks.fail(function, "unknown_score", "be -inf without a separator", unknown_score, remedy)
    if not entries:
        checks.fail(function, argument, "have words", "none")
    if all(isinstance(entry.word, str) for entry in entries):
        graph = graph_of_words(function, argument, entries, vocabulary, unknown, normalize)
    else:
        graph = graph_of_spellings(function, entries, vocabulary)
    starts_word = np.ones(len(vocabulary.tokens), bool)
    if vocabulary.separator_id is not None:
        starts_word = np.zeros_like(starts_word)
    elif vocabulary.marks_words:
        starts_word = vocabulary.word_options["word_starts"]
    return _arrays(deterministic(graph, starts_word), vocabulary, starts_word, unknown_score)


def _arrays(
    graph: Graph,
    vocabulary: Vocabulary,
    starts_word: Bool[np.ndarray, " K"],
    unknown_score: float,
) -> Lexicon:
    """The automaton, with a state for what is in no word."""
    states, classes = len(graph.is_word) + 1, len(starts_word)
    first_arc = np.searchsorted(graph.sources, np.arange(states + 1))
    tokens = graph.tokens.astype(np.int32)
    kinds: dict[bytes, int] = {}
    spans = itertools.pairwise(first_arc.tolist())
    row = [kinds.setdefault(tokens[start:end].tobytes(), len(kinds)) for start, end in spans]
    bits = np.zeros((len(kinds), -(-classes // 32)), np.uint32)
    for kind, place in kinds.items():
        ids = np.frombuffer(kind, np.uint32)
        np.bitwise_or.at(bits[place], ids // 32, np.uint32(1) << ids % 32)
    may_end = np.append(graph.is_word, True)
    may_end[BETWEEN] = True
    separator = -1 if vocabulary.separator_id is None else vocabulary.separator_id
    return Lexicon(
        row=jnp.asarray(row, jnp.int32),
        tokens=jnp.asarray(bits),
        first_arc=jnp.asarray(first_arc[:-1], jnp.int32),
        arc_next=jnp.asarray(np.append(graph.nexts, 0), jnp.int32),
        may_end=jnp.asarray(may_end),
        starts_word=jnp.asarray(starts_word),
        separator=jnp.asarray(separator, jnp.int32),
        unknown_score=jnp.asarray(unknown_score, jnp.float32),
        unfinished_score=jnp.asarray(unknown_score, jnp.float32),
    )
