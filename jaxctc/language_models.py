"""What a decoder may know of the language: n-gram models, hot words, or a model of your own.

A model scores one hypothesis, one token at a time, and says nothing of batches or beams: `vmap`
does. N-grams and hot words are one thing underneath, a weighted automaton with failure arcs as
arrays. Pass models to a compiled function as arguments, like parameters; those that it closes
over become constants of the program.
"""

import gzip
import io
import itertools
import math
import os
import re
import zlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, NoReturn, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from jaxctc import _checks


@runtime_checkable
class LanguageModel(Protocol):
    """What a beam needs to know of a model: three pure functions of one hypothesis."""

    @property
    def initial_state(self) -> Any:
        """The state before any token: a pytree of arrays."""
        ...

    def score_and_advance(self, state: Any, token: Array, /) -> tuple[Array, Any]:
        """Log-probability, in nats, of `token` (int32) after `state`, and the state behind it."""
        ...

    def final_score(self, state: Any, /) -> Array:
        """What it is worth, in nats, that the hypothesis ends in `state`."""
        ...


def _nothing_at_the_end(state: Any) -> Float[Array, ""]:
    del state
    return jnp.zeros((), jnp.float32)


class CustomModel(NamedTuple):
    """A language model of your own, from pure functions of one hypothesis."""

    initial_state: Any
    """The state before any token: a pytree of arrays, of the same shapes ever after."""
    score_and_advance: Callable[..., tuple[Array, Any]]
    """`(state, token) -> (log_prob, state)`, in nats, for a token that is a scalar int32."""
    final_score: Callable[..., Array] = _nothing_at_the_end
    """`state -> log_prob`: what it is worth to end there; 0 unless given."""


class Automaton(NamedTuple):
    """States, and arcs between them that tokens take; a state without the arc fails to another.

    A state fails until one has an arc for the token, and pays for every failure. Where the last
    one, that which fails to itself, has none, the token leads to `missing_state`. Arcs lie in the
    buckets of a hash table: looking one up takes a fixed number of probes, and is exact.
    """

    initial_state: Int[Array, ""]
    """The state before any token; states are numbers, as tokens are."""
    arc_keys: Int[Array, "arcs 2"]
    """State and token of each arc."""
    arc_weight: Float[Array, " arcs"]
    """What it is worth to take it, in nats."""
    arc_next: Int[Array, " arcs"]
    """Where it leads."""
    bucket_start: Int[Array, " buckets"]
    """First arc of each bucket; there are 2ⁿ."""
    fail_state: Int[Array, " states"]
    """Where each state fails to."""
    fail_weight: Float[Array, " states"]
    """What failing is worth, in nats."""
    final_weight: Float[Array, " states"]
    """What ending in each state is worth, in nats."""
    missing_state: Int[Array, ""]
    """Where a token without any arc leads."""
    missing_weight: Float[Array, ""]
    """What such a token is worth, in nats, beside the failures before it."""
    attempts: Int[Array, " attempts"]
    """0, 1, …: one for each state of the longest chain of failures."""
    probes: Int[Array, " probes"]
    """0, 1, …: one for each arc of the fullest bucket."""

    def score_and_advance(
        self, state: Int[Array, ""], token: Int[ArrayLike, ""]
    ) -> tuple[Float[Array, ""], Int[Array, ""]]:
        """What the token is worth after `state`, failures included, and the state behind it."""
        chain, spent = [state], [jnp.zeros((), jnp.float32)]
        for _ in range(self.attempts.shape[0] - 1):
            spent.append(spent[-1] + self.fail_weight[chain[-1]])
            chain.append(self.fail_state[chain[-1]])
        states = jnp.stack(chain)
        keys = jnp.stack([states, jnp.full_like(states, token)], axis=-1)
        starts = self.bucket_start[_bucket(keys, self.bucket_start.shape[0])]
        # Probes may run into the next bucket, where no key is the same.
        places = jnp.minimum(starts[:, None] + self.probes[None], self.arc_next.shape[0] - 1)
        is_hit = jnp.all(self.arc_keys[places] == keys[:, None], axis=-1)
        costs = jnp.broadcast_to(jnp.stack(spent)[:, None], places.shape)

        first = lax.argmax(is_hit.reshape(-1), 0, jnp.int32)
        is_found, place, cost = (part.reshape(-1)[first] for part in (is_hit, places, costs))
        found = cost + self.arc_weight[place]
        score = jnp.where(is_found, found, spent[-1] + self.missing_weight)
        return score, jnp.where(is_found, self.arc_next[place], self.missing_state)

    def final_score(self, state: Int[Array, ""]) -> Float[Array, ""]:
        """What it is worth, in nats, that the hypothesis ends in `state`."""
        return self.final_weight[state]


class TokenNGrams(NamedTuple):
    """An n-gram model whose words are the tokens. Its state is the context, a number."""

    words: Int[Array, " K+1"]
    """Word of each class id, and last that of all other ids."""
    ngrams: Automaton
    """Contexts as states, words as tokens."""

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
    """An n-gram model whose words are spelt by tokens, a separator between them."""

    separator: Int[Array, ""]
    """The class id that ends a word."""
    spelling: Automaton
    """Beginnings of words as states, class ids as tokens."""
    words: Int[Array, " states"]
    """The word that each state of the spelling has spelt, or else the unknown one."""
    ngrams: Automaton
    """Contexts as states, words as tokens."""

    @property
    def initial_state(self) -> WordState:
        """At the beginning of a word, in the context `<s>`."""
        return WordState(self.spelling.initial_state, self.ngrams.initial_state)

    def score_and_advance(
        self, state: WordState, token: Int[ArrayLike, ""]
    ) -> tuple[Float[Array, ""], WordState]:
        """Log-probability, in nats, of the word that the token ends; 0 within words."""
        log_prob, ended = self._end_word(state)
        _, spelt = self.spelling.score_and_advance(state.spelt, token)
        is_end = jnp.asarray(token, jnp.int32) == self.separator
        within = WordState(spelt, state.context)
        state = jax.tree.map(lambda a, b: jnp.where(is_end, a, b), ended, within)
        return jnp.where(is_end, log_prob, jnp.zeros_like(log_prob)), state

    def final_score(self, state: WordState) -> Float[Array, ""]:
        """Log-probability, in nats, of the last word, if it is yet to be ended, and of `</s>`."""
        log_prob, ended = self._end_word(state)
        return log_prob + self.ngrams.final_score(ended.context)

    def _end_word(self, state: WordState) -> tuple[Float[Array, ""], WordState]:
        word = self.words[state.spelt]
        log_prob, context = self.ngrams.score_and_advance(state.context, word)
        is_empty = state.spelt == self.spelling.initial_state
        context = jnp.where(is_empty, state.context, context)
        log_prob = jnp.where(is_empty, jnp.zeros_like(log_prob), log_prob)
        return log_prob, WordState(self.spelling.initial_state, context)


def as_language_model(model: Any, *, function: str = "as_language_model") -> LanguageModel:
    """The model itself, or one made of the tuple `(initial_state, score_and_advance)`.

    Args:
      model: a `LanguageModel`, which is returned as it is; or a tuple of an initial state, a
        function `(state, token) -> (log_prob, state)` and perhaps a function
        `state -> log_prob` for the end, which are checked by tracing them once. To make such a
        model an argument of a compiled function, give arrays that a function `f` needs as
        `jax.tree_util.Partial(f, arrays)`.
      function: name of the caller, for messages.

    Returns:
      A `LanguageModel`.

    Raises:
      ValueError: if `model` is neither, if a score is not a floating scalar, or if the state
        comes back with another structure, shape or dtype.

    Example:
      A model that counts tokens, and takes one nat for each:

      >>> model = as_language_model((jnp.int32(0), lambda n, token: (jnp.float32(-1), n + 1)))
      >>> score, state = model.score_and_advance(model.initial_state, jnp.int32(7))
      >>> float(score), int(state), float(model.final_score(state))
      (-1.0, 1, 0.0)
    """
    if isinstance(model, LanguageModel) and not isinstance(model, CustomModel):
        return model
    if not (isinstance(model, tuple) and len(model) in (2, 3) and all(map(callable, model[1:]))):
        requirement = "be a model, or a tuple (initial_state, score_and_advance[, final_score])"
        got = f"a tuple of {len(model)}" if isinstance(model, tuple) else type(model).__name__
        _checks.fail(function, "language_model", requirement, got)
    state = jax.tree.map(jnp.asarray, model[0])
    custom = CustomModel(state, *map(_as_pytree, (*model[1:], _nothing_at_the_end)[:2]))
    _check_custom(function, custom)
    return custom


def _as_pytree(function: Callable[..., Any]) -> Callable[..., Any]:
    """A plain function as one without leaves; what brings its own arrays stays as it is."""
    is_plain = jax.tree_util.all_leaves([function])
    return jax.tree_util.Partial(function) if is_plain else function


def _check_custom(function: str, model: CustomModel) -> None:
    token = jax.ShapeDtypeStruct((), jnp.int32)
    result = jax.eval_shape(model.score_and_advance, model.initial_state, token)
    if not (isinstance(result, tuple) and len(result) == 2):
        got = f"a {type(result).__name__}"
        _checks.fail(function, "score_and_advance", "return a tuple (log_prob, state)", got)
    final = jax.eval_shape(model.final_score, model.initial_state)
    for name, score in (("score_and_advance", result[0]), ("final_score", final)):
        if not isinstance(score, jax.ShapeDtypeStruct) or score.shape:
            _checks.fail(function, name, "score with a scalar", score)
        if not jnp.issubdtype(score.dtype, jnp.floating):
            _checks.fail(function, name, "score with a floating number", score.dtype)
    came, state = result[1], model.initial_state
    if jax.tree.structure(came) != jax.tree.structure(state) or _kinds(came) != _kinds(state):
        requirement = f"return a state like the initial one, {jax.tree.map(jax.typeof, state)}"
        _checks.fail(function, "score_and_advance", requirement, came)


def _kinds(tree: Any) -> list[tuple[tuple[int, ...], Any]]:
    return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]


def hot_words(words: Sequence[Sequence[int]], bonus: ArrayLike | Sequence[float]) -> Automaton:
    """A model under which every occurrence of a word is worth a bonus, and nothing else is.

    An occurrence is a run of tokens anywhere in the hypothesis: occurrences overlap, one word may
    occur within another, and a word that is listed twice earns both bonuses. (For a word that
    must stand alone, give its separators as tokens of it.) The bonus is paid in advance, in equal
    shares from token to token: while words are under way, the hypothesis holds the share of the
    one that has the largest. A word that fails gives back what it was paid.

    Args:
      words: token ids of each word.
      bonus: nats per occurrence, for all words or for each. A negative one is a penalty, and is
        not paid in advance.

    Returns:
      An `Automaton`. Its scores, the final one included, sum to Σ bonus · occurrences: exactly
      (shares are rounded) where bonuses are multiples of 1/1024 and the sum is below 2¹⁴, and
      else to float32. Any token may come, whether or not words know it.

    Raises:
      ValueError: if a word is empty or holds what is no token id, or a bonus is not finite or
        not one per word.

    Example:
      The word `1 2` is under way after a 1, and a 3 ends that:

      >>> model = hot_words([[1, 2]], bonus=4.0)
      >>> half, state = model.score_and_advance(model.initial_state, 1)
      >>> float(half), float(model.score_and_advance(state, 2)[0])
      (2.0, 2.0)
      >>> float(model.score_and_advance(state, 3)[0]), float(model.final_score(state))
      (-2.0, -2.0)

    References:
      Aho and Corasick 1975, "Efficient string matching: an aid to bibliographic search".
    """
    bonuses = _bonuses(words, bonus)
    prefixes = {()} | {word[: end + 1] for word in bonuses for end in range(len(word))}
    states = {prefix: state for state, prefix in enumerate(sorted(prefixes, key=_short_first))}
    shares = np.zeros(len(states))
    for word, worth in bonuses.items():
        for end in range(len(word)):
            share = round(1024 * worth * end / len(word)) / 1024
            shares[states[word[:end]]] = max(shares[states[word[:end]]], share)

    fails, earned = np.zeros(len(states), np.int64), np.zeros(len(states))
    for prefix, state in list(states.items())[1:]:
        suffixes = (prefix[start:] for start in range(1, len(prefix) + 1))
        fails[state] = next(states[suffix] for suffix in suffixes if suffix in states)
        earned[state] = bonuses.get(prefix, 0.0) + earned[fails[state]]
        shares[state] = max(shares[state], shares[fails[state]])

    arcs = [(states[prefix[:-1]], prefix[-1]) for prefix in states if prefix]
    keys = _pairs(arcs)
    return _automaton(
        keys=keys,
        weights=shares[1:] - shares[keys[:, 0]] + earned[1:],
        nexts=np.arange(1, len(states)),
        fails=(fails, shares[fails] - shares),
        final=-shares,
    )


def _short_first(word: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    return len(word), word


def _bonuses(words: Sequence[Sequence[int]], bonus: Any) -> dict[tuple[int, ...], float]:
    """Bonus of each different word."""
    worth = np.asarray(bonus, np.float64)
    if worth.shape not in ((), (len(words),)) or not np.all(np.abs(worth) < _LARGEST):
        requirement = f"be a finite number, or one for each of {len(words)} words"
        _checks.fail("hot_words", "bonus", requirement, bonus)
    bonuses: dict[tuple[int, ...], float] = {}
    for word, own in zip(words, np.broadcast_to(worth, (len(words),)), strict=True):
        ids = tuple(_checks.static_int("hot_words", "a token of words", token) for token in word)
        if not ids or min(ids) < 0 or max(ids) > _MOST:
            _checks.fail("hot_words", "words", "be lists of token ids, from 0 on", list(word))
        bonuses[ids] = bonuses.get(ids, 0.0) + float(own)
    return bonuses


def read_arpa(
    path: str | os.PathLike[str],
    tokens: Sequence[str | None],
    *,
    separator: int | None = None,
    unknown_log_prob: float = -100.0,
) -> TokenNGrams | WordNGrams:
    r"""An n-gram model with back-off, of any order, from a file in the ARPA format.

    .. math:: p(w | c) = p_{file}(cw) \text{ if it is listed, else } b(c) p(w | c_{2:})

    Words are tokens or, with a `separator`, are spelt by them: whatever tokens a hypothesis has
    between two separators, put together, is the word, so that it does not matter which of many
    pieces spell it. Partial words cost nothing. A word is scored at the separator behind it or at
    the end of the hypothesis, and no word, as between two separators, costs nothing.

    Everything that is not a word of the file, or a token or word named `<s>` or `</s>`, is
    `<unk>`. The initial state is the context `<s>` (empty if the file has none), and the final
    score is that of `</s>` (0 if it has none).

    Args:
      path: the file, as text or gzip, whatever its name. Fields may be parted by tabs or spaces;
        text before `\data\` is skipped; an n-gram needs its first n - 1 words as an entry, but
        may lack its last n - 1, as in KenLM.
      tokens: names of the classes, in the order of their ids. A None names nothing. A name of
        the blank does no harm, as no decoder emits it.
      separator: static class id of what stands between words; a negative one counts from the
        last class. None takes every token for a word.
      unknown_log_prob: nats for what is not in the file, if `<unk>` is not either; back-off is
        added. -inf excludes it.

    Returns:
      `TokenNGrams`, or with a separator `WordNGrams`: models that score tokens in nats. Any
      int32 may come for a token; what is no class is an unknown word, or part of one.

    Raises:
      ValueError: if the file is malformed or truncated or disagrees with its own counts, with
        the number of the line; if it is too large for int32; if no token occurs in it.
      OSError: if the file cannot be opened.

    Example:
      >>> from tempfile import NamedTemporaryFile
      >>> with NamedTemporaryFile("w") as file:
      ...     lines = "\\data\\", "ngram 1=2", "\\1-grams:", "-1 a", "-2 </s>", "\\end\\"
      ...     print(*lines, sep="\n", file=file, flush=True)
      ...     model = read_arpa(file.name, tokens=["-", "a"])
      >>> score, state = model.score_and_advance(model.initial_state, 1)
      >>> score.round(4), model.final_score(state).round(4)  # -1 and -2 times log(10)
      (Array(-2.3026, dtype=float32), Array(-4.6052, dtype=float32))

    References:
      Katz 1987, "Estimation of probabilities from sparse data for the language model component
      of a speech recognizer"; Heafield 2011, "KenLM: faster and smaller language model queries".
    """
    names = _names(tokens)
    if not unknown_log_prob < math.inf:
        _checks.fail("read_arpa", "unknown_log_prob", "be a number below inf", unknown_log_prob)
    if separator is not None:
        separator = _checks.class_id("read_arpa", "separator", separator, len(names))
    ngrams = _read_file(path)
    if separator is None:
        words = ngrams.words_named(names, "Words that tokens spell need a separator=.")
        return TokenNGrams(words, ngrams.automaton(unknown_log_prob))
    beginnings, spelling = _spelling(names, ngrams.vocabulary)
    words, contexts = ngrams.words_named(beginnings), ngrams.automaton(unknown_log_prob)
    return WordNGrams(jnp.asarray(separator, jnp.int32), spelling, words, contexts)


_MARKS = (b"<s>", b"</s>")
# N-grams that int32 can number, and numbers whose sums float32 can hold.
_MOST, _LARGEST = 2**31 - 2, 1e30
_LONGEST_LINE = 2**16


class _NGrams:
    """N-grams by number: 0 is the empty one, and those of the file follow in its order.

    An n-gram is the context of longer ones, and a state of the automaton, under its number. As
    lines come shortest first, all that an n-gram refers to is there before it.
    """

    def __init__(self, contexts: int):
        self.contexts = contexts
        """How many there are below the highest order."""
        self.vocabulary: dict[bytes, int] = {}
        self.numbers: dict[tuple[int, int], int] = {}
        """By number of the context and last word."""
        self.suffixes = array("q", [0])
        """The longest proper suffix that is an n-gram."""
        self.log_probs, self.back_offs = array("d", [0.0]), array("d", [0.0])
        """As in the file, to base 10."""

    def find(self, words: list[int]) -> int:
        """Number of an n-gram; -1, which is the context of nothing, if there is no such one."""
        number = 0
        for word in words:
            number = self.numbers.get((number, word), -1)
        return number

    def add(self, context: int, word: int, log_prob: float, back_off: float) -> bool:
        """Enters an n-gram, unless it is there."""
        number = len(self.log_probs)
        if self.numbers.setdefault((context, word), number) != number:
            return False
        while context and (self.suffixes[context], word) not in self.numbers:
            context = self.suffixes[context]
        self.suffixes.append(self.numbers[self.suffixes[context], word] if context else 0)
        self.log_probs.append(log_prob)
        self.back_offs.append(back_off)
        return True

    def words_named(self, names: list[bytes], remedy: str = "") -> Int[Array, " words"]:
        """The word of each name, and last that of no name: the unknown one."""
        unknown = self.vocabulary.get(b"<unk>", len(self.vocabulary))
        words = [self.vocabulary.get(name, unknown) for name in names]
        words = [
            unknown if name in _MARKS else word for name, word in zip(names, words, strict=True)
        ]
        if all(word == unknown for word in words):
            _checks.fail("read_arpa", "tokens", "name words of the file", "none that do", remedy)
        return jnp.asarray([*words, unknown], jnp.int32)

    def automaton(self, unknown_log_prob: float) -> Automaton:
        """Contexts as states, which fail to their longest suffix."""
        log_probs, back_offs = (
            np.array(part) * math.log(10) for part in (self.log_probs, self.back_offs)
        )
        suffixes, numbers = np.array(self.suffixes), np.arange(len(self.suffixes))
        is_context = numbers < self.contexts
        start = self.find([self.vocabulary.get(b"<s>", -1)])
        return _automaton(
            initial=start if 0 < start < self.contexts else 0,
            keys=_pairs(self.numbers),
            weights=log_probs[1:],
            nexts=np.where(is_context, numbers, suffixes)[1:],
            fails=(suffixes[is_context], back_offs[is_context]),
            final=self._final(log_probs, back_offs),
            missing=(0, unknown_log_prob),
        )

    def _final(self, log_probs: np.ndarray, back_offs: np.ndarray) -> np.ndarray:
        """Log-probability of `</s>` in each context; 0 without `</s>`."""
        final, end = np.zeros(self.contexts), self.vocabulary.get(b"</s>")
        if end is not None:
            for context in range(self.contexts):
                backed_off = back_offs[context] + final[self.suffixes[context]]
                number = self.numbers.get((context, end))
                final[context] = backed_off if number is None else log_probs[number]
        return final


class _Lines:
    """The lines of a file, counted, so that every error says where it was."""

    def __init__(self, path: str | os.PathLike[str], file: io.BufferedIOBase):
        self.path, self.file, self.number, self.text = os.fspath(path), file, 0, b""

    def fail(self, requirement: str, got: str | None = None) -> NoReturn:
        """Raises for the line at hand."""
        if got is None:
            got = repr(self.text[:80].decode(errors="backslashreplace"))
        _checks.fail("read_arpa", f"line {self.number} of {self.path}", requirement, got)

    def is_any_left(self) -> bool:
        """Goes to the next line, if there is one, and keeps it without white space around it."""
        self.number += 1
        try:
            line = self.file.readline(_LONGEST_LINE + 1)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            self.fail("be part of a sound gzip file", str(error))
        self.text = line.strip()
        if len(line) > _LONGEST_LINE:
            self.fail(f"have at most {_LONGEST_LINE} bytes")
        return bool(line)

    def advance(self) -> bytes:
        """Goes to the next line, which must be there."""
        if not self.is_any_left():
            self.fail("be there, as none so far is \\end\\", "the end of the file")
        return self.text

    def skip_blank(self) -> bytes:
        """Goes to the next line with anything on it, unless at one."""
        while not self.text:
            self.advance()
        return self.text


def _names(tokens: Sequence[str | None]) -> list[bytes]:
    """Names as bytes; empty for what names nothing."""
    if not isinstance(tokens, Sequence) or not all(isinstance(t, str | None) for t in tokens):
        remedy = "They are the names of the classes, in the order of their ids."
        got = f"{type(tokens).__name__}"
        _checks.fail("read_arpa", "tokens", "be a sequence of strings", got, remedy)
    return [(name or "").encode(errors="surrogatepass") for name in tokens]


def _read_file(path: str | os.PathLike[str]) -> _NGrams:
    """All n-grams; never a part of them."""
    with open(path, "rb") as raw:
        is_gzip = raw.peek(2)[:2] == b"\x1f\x8b"
        lines = _Lines(path, gzip.GzipFile(fileobj=raw) if is_gzip else raw)
        counts = _read_counts(lines)
        ngrams = _NGrams(contexts=1 + sum(counts[:-1]))
        for order, count in enumerate(counts, 1):
            _read_section(lines, ngrams, order, count, has_back_offs=order < len(counts))
        if lines.skip_blank() != b"\\end\\":
            lines.fail("be \\end\\")
        while lines.is_any_left():
            if lines.text:
                lines.fail("be empty, behind \\end\\")
    return ngrams


def _read_counts(lines: _Lines) -> list[int]:
    """The number of n-grams of each order, as declared."""
    while lines.advance() != b"\\data\\":
        pass
    lines.advance()
    counts: list[int] = []
    while lines.skip_blank().startswith(b"ngram") or not counts:
        fields = re.fullmatch(rb"ngram\s+(\d{1,9})\s*=\s*(\d{1,18})", lines.text)
        if not fields or int(fields[1]) != len(counts) + 1:
            lines.fail(f"be ngram {len(counts) + 1}=(a number)")
        counts.append(int(fields[2]))
        if sum(counts) > _MOST:
            lines.fail(f"leave it at {_MOST} n-grams, which int32 can number")
        lines.advance()
    return counts


def _read_section(
    lines: _Lines, ngrams: _NGrams, order: int, count: int, *, has_back_offs: bool
) -> None:
    if lines.skip_blank() != b"\\%d-grams:" % order:
        lines.fail(f"be \\{order}-grams:")
    entries = 0
    while lines.advance() and not lines.text.startswith(b"\\"):
        entries += 1
        if entries > count:
            lines.fail(f"end the {order}-grams, of which {count} are declared")
        fields = lines.text.split()
        sizes = (order + 1, order + 2) if has_back_offs else (order + 1,)
        if len(fields) not in sizes:
            optional = " and perhaps a back-off" if has_back_offs else " and no back-off"
            lines.fail(f"have a log-probability, {order} words{optional}")
        log_prob = _number(lines, fields[0], "a log-probability", -math.inf, 0.0)
        back_off = fields[-1] if len(fields) == order + 2 else b"0"
        back_off = _number(lines, back_off, "a back-off", -_LARGEST, _LARGEST)
        context, word = _context_and_word(lines, ngrams, fields[1 : order + 1])
        if not ngrams.add(context, word, log_prob, back_off):
            lines.fail(f"have another {order}-gram than all lines before")
    if entries < count:
        lines.fail(f"have number {entries + 1} of {count} {order}-grams, as declared")


def _number(lines: _Lines, field: bytes, what: str, least: float, most: float) -> float:
    try:
        value = float(field)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        lines.fail(f"have {what} in [{least:g}, {most:g}]")
    return value


def _context_and_word(lines: _Lines, ngrams: _NGrams, words: list[bytes]) -> tuple[int, int]:
    """Numbers of an n-gram but its last word, and of that; a 1-gram is a new word."""
    if len(words) == 1:
        try:
            words[0].decode()
        except UnicodeDecodeError:
            lines.fail("be UTF-8")
        return 0, ngrams.vocabulary.setdefault(words[0], len(ngrams.vocabulary))
    ids = [ngrams.vocabulary.get(word, -1) for word in words]
    if min(ids) < 0:
        lines.fail("have words that are 1-grams")
    context = ngrams.find(ids[:-1])
    if context < 0:
        lines.fail(f"have first words that are a {len(ids) - 1}-gram")
    return context, ids[-1]


def _spelling(names: list[bytes], words: dict[bytes, int]) -> tuple[list[bytes], Automaton]:
    """Beginnings of words that tokens can spell, and the automaton whose states they are.

    Tokens that put together the same beginning lead to the same state, whichever they are. What
    begins no word leads to a state of its own, the last.
    """
    ids: dict[bytes, list[int]] = {}
    for token, name in enumerate(names):
        ids.setdefault(name, []).append(token)
    ids.pop(b"", None)
    lengths = sorted({len(name) for name in ids})

    states, arcs = {b"": 0}, {}
    for word in words:
        for start in range(len(word)):
            if word[:start] not in states:
                continue
            for end in (start + length for length in lengths if start + length <= len(word)):
                for token in ids.get(word[start:end], ()):
                    state = states.setdefault(word[:end], len(states))
                    arcs[states[word[:start]], token] = state
    nowhere = np.arange(len(states) + 1)
    return list(states), _automaton(
        keys=_pairs(arcs),
        weights=np.zeros(len(arcs)),
        nexts=np.array(list(arcs.values())),
        fails=(nowhere, np.zeros(len(nowhere))),
        final=np.zeros(len(nowhere)),
        missing=(len(states), 0.0),
    )


def _pairs(pairs: Iterable[tuple[int, int]]) -> Int[np.ndarray, "pairs 2"]:
    return np.fromiter(itertools.chain.from_iterable(pairs), np.int64).reshape(-1, 2)


def _automaton(
    *,
    keys: np.ndarray,
    weights: np.ndarray,
    nexts: np.ndarray,
    fails: tuple[np.ndarray, np.ndarray],
    final: np.ndarray,
    initial: int = 0,
    missing: tuple[int, float] = (0, 0.0),
) -> Automaton:
    """An automaton from its arcs and failures (state and weight of each) in any order."""
    # An arc that nothing takes: no array is empty.
    keys = np.concatenate([keys, [(-1, -1)]]).astype(np.int32)
    weights, nexts = np.append(weights, 0.0), np.append(nexts, 0)
    buckets = 1 << (2 * len(keys)).bit_length()
    bucket = _bucket(keys, buckets)
    order = np.argsort(bucket, kind="stable")
    filled = np.bincount(bucket, minlength=buckets)

    attempts, reached = 1, np.arange(len(final))
    while (fails[0][reached] != reached).any():
        attempts, reached = attempts + 1, fails[0][reached]
    with np.errstate(over="ignore"):  # log-probabilities below float32 are -inf
        return Automaton(
            initial_state=jnp.asarray(initial, jnp.int32),
            arc_keys=jnp.asarray(keys[order]),
            arc_weight=jnp.asarray(weights[order].astype(np.float32)),
            arc_next=jnp.asarray(nexts[order], jnp.int32),
            bucket_start=jnp.asarray(np.cumsum(filled) - filled, jnp.int32),
            fail_state=jnp.asarray(fails[0], jnp.int32),
            fail_weight=jnp.asarray(fails[1].astype(np.float32)),
            final_weight=jnp.asarray(final.astype(np.float32)),
            missing_state=jnp.asarray(missing[0], jnp.int32),
            missing_weight=jnp.asarray(missing[1], jnp.float32),
            attempts=jnp.arange(attempts, dtype=jnp.int32),
            probes=jnp.arange(filled.max(), dtype=jnp.int32),
        )


def _bucket(keys, buckets: int):
    """Bucket of each state and token, by the finaliser of MurmurHash3; for NumPy and JAX."""
    state, token = (keys[..., part].astype(np.uint32) for part in (0, 1))
    mixed = state * np.uint32(0x9E3779B1) ^ token
    for multiplier, shift in ((0x85EBCA6B, 16), (0xC2B2AE35, 13), (1, 16)):
        mixed = (mixed ^ (mixed >> np.uint32(shift))) * np.uint32(multiplier)
    return (mixed & np.uint32(buckets - 1)).astype(np.int32)
