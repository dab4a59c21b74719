"""N-gram models with back-off, from files in the ARPA format."""

import gzip
import io
import math
import os
import re
import zlib
from array import array
from collections.abc import Sequence
from typing import NamedTuple, NoReturn, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from jaxctc._core import checks
from jaxctc.decoding.automata import LARGEST, MOST, Automaton, build_automaton, key_pairs
from jaxctc.decoding.memory import ARC, MAX_BYTES, NGRAM, STATE, Memory

_MARKS = (b"<s>", b"</s>")
_LONGEST_LINE = 2**16
_KENLM = b"mmap lm http://kheafield.com/code"


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
    """An n-gram model whose words are spelt by tokens."""

    ends_word: Bool[Array, " K+1"]
    """Before which class ids a word ends: the separator, and those that begin the next word."""
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


@overload
def read_arpa(
    path: str | os.PathLike[str],
    tokens: Sequence[str | None],
    *,
    separator: None = None,
    unknown_log_prob: float = ...,
    max_bytes: int = ...,
) -> TokenNGrams: ...


@overload
def read_arpa(
    path: str | os.PathLike[str],
    tokens: Sequence[str | None],
    *,
    separator: int | str,
    unknown_log_prob: float = ...,
    max_bytes: int = ...,
) -> WordNGrams: ...


def read_arpa(
    path: str | os.PathLike[str],
    tokens: Sequence[str | None],
    *,
    separator: int | str | None = None,
    unknown_log_prob: float = -100.0,
    max_bytes: int = MAX_BYTES,
) -> TokenNGrams | WordNGrams:
    r"""An n-gram model with back-off, of any order, from a file in the ARPA format.

    .. math:: p(w | c) = p_{file}(cw) \text{ if it is listed, else } b(c) p(w | c_{2:})

    Words are tokens or, with a `separator`, are spelt by them: whatever tokens a hypothesis has
    between two separators, put together, is the word, so that it does not matter which of many
    pieces spell it. Partial words cost nothing. A word is scored at the separator after it or at
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
        last class. A string such as "▁" stands, as in `Vocabulary`, between words or at the
        beginning of tokens that begin a word. None takes every token for a word.
      unknown_log_prob: nats for what is not in the file, if `<unk>` is not either; back-off is
        added. -inf excludes it.
      max_bytes: the most memory that reading may take. An estimate is counted before
        anything is taken, and real use stays below it: 500 bytes for each n-gram that the file
        declares, and what its words and their spellings take. The default is 4 GiB, eight million
        n-grams of tokens.

    Returns:
      `TokenNGrams`, or with a separator `WordNGrams`: models that score tokens in nats. Any
      int32 may come for a token; what is no class is an unknown word, or part of one.

    Raises:
      ValueError: if the file is malformed or truncated or disagrees with its own counts, with
        the number of the line; if it is in KenLM's binary format, or too large for int32 or for
        `max_bytes`; if no token occurs in it, or none begins with a `separator` that is a string.
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
    names, memory = _names(tokens), Memory(os.fspath(path), max_bytes)
    if not unknown_log_prob < math.inf:
        checks.fail("read_arpa", "unknown_log_prob", "be a number below inf", unknown_log_prob)
    if separator is None:
        ngrams = read_ngrams(path, memory)
        words = ngrams.words_named(names, "Words that tokens spell need a separator=.")
        return TokenNGrams(words, ngrams.automaton(unknown_log_prob))
    if isinstance(separator, str):
        mark = separator.encode()
        ends_word = np.array([bool(mark) and name.startswith(mark) for name in names])
        if not ends_word.any():
            requirement, remedy = "begin some token", 'SentencePiece writes "▁".'
            checks.fail("read_arpa", "separator", requirement, repr(separator), remedy)
        names = [name.removeprefix(mark) for name in names]
    else:
        between = checks.class_id("read_arpa", "separator", separator, len(names))
        ends_word = np.arange(len(names)) == between
        names[between] = b""
    return word_ngrams(read_ngrams(path, memory), names, ends_word, unknown_log_prob, memory)


def word_ngrams(
    ngrams: "NGrams",
    names: list[bytes],
    ends_word: Bool[np.ndarray, " K"],
    unknown_log_prob: float,
    memory: Memory,
) -> WordNGrams:
    """The model whose words are spelt by tokens, some of which end the word before them."""
    beginnings, spelling = _spelling(names, ends_word, ngrams.vocabulary, memory)
    return WordNGrams(
        ends_word=jnp.asarray(np.append(ends_word, False)),
        spelling=spelling,
        words=ngrams.words_named(beginnings),
        ngrams=ngrams.automaton(unknown_log_prob),
    )


class NGrams:
    """N-grams by number: 0 is the empty one, and those of the file follow in its order.

    An n-gram is the context of longer ones, and a state of the automaton, under its number. As
    lines come shortest first, all that an n-gram refers to is there before it.
    """

    def __init__(self, contexts: int):
        """None so far, of which so many are to be contexts."""
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
            checks.fail("read_arpa", "tokens", "name words of the file", "none that do", remedy)
        return jnp.asarray([*words, unknown], jnp.int32)

    def automaton(self, unknown_log_prob: float) -> Automaton:
        """Contexts as states, which fail to their longest suffix."""
        log_probs, back_offs = (
            np.array(part) * math.log(10) for part in (self.log_probs, self.back_offs)
        )
        suffixes, numbers = np.array(self.suffixes), np.arange(len(self.suffixes))
        is_context = numbers < self.contexts
        start = self.find([self.vocabulary.get(b"<s>", -1)])
        return build_automaton(
            initial=start if 0 < start < self.contexts else 0,
            keys=key_pairs(self.numbers),
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

    def __init__(self, path: str | os.PathLike[str], file: io.BufferedIOBase, memory: Memory):
        self.path, self.file, self.number, self.text = os.fspath(path), file, 0, b""
        self.memory = memory

    def fail(self, requirement: str, got: str | None = None) -> NoReturn:
        """Raises for the line at hand."""
        if got is None:
            got = repr(self.text[:80].decode(errors="backslashreplace"))
        checks.fail("read_arpa", f"line {self.number} of {self.path}", requirement, got)

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
        checks.fail("read_arpa", "tokens", "be a sequence of strings", got, remedy)
    return [(name or "").encode(errors="surrogatepass") for name in tokens]


def read_ngrams(path: str | os.PathLike[str], memory: Memory) -> NGrams:
    """All n-grams of a file; never a part of them."""
    with open(path, "rb") as raw:
        if raw.peek(len(_KENLM))[: len(_KENLM)] == _KENLM:
            remedy = (
                "Pass the ARPA file that build_binary made it of; nothing makes one of it. From "
                "text, KenLM makes one by: lmplz -o 3 <TEXT >MODEL.arpa"
            )
            got = "KenLM's binary format"
            checks.fail("read_arpa", os.fspath(path), "be in the ARPA format", got, remedy)
        is_gzip = raw.peek(2)[:2] == b"\x1f\x8b"
        lines = _Lines(path, gzip.GzipFile(fileobj=raw) if is_gzip else raw, memory)
        counts = _read_counts(lines)
        memory.take(NGRAM * sum(counts), f"the {sum(counts)} n-grams")
        ngrams = NGrams(contexts=1 + sum(counts[:-1]))
        for order, count in enumerate(counts, 1):
            _read_section(lines, ngrams, order, count, has_back_offs=order < len(counts))
        if lines.skip_blank() != b"\\end\\":
            lines.fail("be \\end\\")
        while lines.is_any_left():
            if lines.text:
                lines.fail("be empty, after \\end\\")
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
        if sum(counts) > MOST:
            lines.fail(f"leave it at {MOST} n-grams, which int32 can number")
        lines.advance()
    return counts


def _read_section(
    lines: _Lines, ngrams: NGrams, order: int, count: int, *, has_back_offs: bool
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
        back_off = _number(lines, back_off, "a back-off", -LARGEST, LARGEST)
        context, word = _context_and_word(lines, ngrams, fields[1 : order + 1])
        if not ngrams.add(context, word, log_prob, back_off):
            lines.fail(f"have another {order}-gram than all lines before")
    if entries < count:
        lines.fail(f"have number {entries + 1} of {count} {order}-grams, as declared")


def _number(lines: _Lines, field: bytes, what: str, least: float, most: float) -> float:
    try:
        value = float(field.replace(b"_", b"?"))  # Python would read -0_5
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        lines.fail(f"have {what} in [{least:g}, {most:g}]")
    return value


def _context_and_word(lines: _Lines, ngrams: NGrams, words: list[bytes]) -> tuple[int, int]:
    """Numbers of an n-gram but its last word, and of that; a 1-gram is a new word."""
    if len(words) == 1:
        try:
            words[0].decode()
        except UnicodeDecodeError:
            lines.fail("be UTF-8")
        lines.memory.take(len(words[0]), "the words")
        return 0, ngrams.vocabulary.setdefault(words[0], len(ngrams.vocabulary))
    ids = [ngrams.vocabulary.get(word, -1) for word in words]
    if min(ids) < 0:
        lines.fail("have words that are 1-grams")
    context = ngrams.find(ids[:-1])
    if context < 0:
        lines.fail(f"have first words that are a {len(ids) - 1}-gram")
    return context, ids[-1]


def _spelling(
    names: list[bytes],
    ends_word: Bool[np.ndarray, " K"],
    words: dict[bytes, int],
    memory: Memory,
) -> tuple[list[bytes], Automaton]:
    """Beginnings of words that tokens can spell, and the automaton whose states they are.

    Tokens that put together the same beginning lead to the same state, whichever they are. What
    begins no word leads to a state of its own, the last.
    """
    ids: dict[bytes, list[int]] = {}
    for token, name in enumerate(names):
        ids.setdefault(name, []).append(token)
    # What is between words spells nothing: it stays at the beginning of a word.
    between = [token for token in ids.pop(b"", []) if ends_word[token]]
    lengths = sorted({len(name) for name in ids})

    states, arcs = {b"": 0}, dict.fromkeys(((0, token) for token in between), 0)
    for word in words:
        for start in range(len(word)):
            if word[:start] not in states:
                continue
            for end in (start + length for length in lengths if start + length <= len(word)):
                for token in ids.get(word[start:end], ()):
                    arc = states[word[:start]], token
                    if arc not in arcs:
                        new_state = (STATE + end) * (word[:end] not in states)
                        memory.take(ARC + new_state, "the spellings")
                        arcs[arc] = states.setdefault(word[:end], len(states))
    nowhere = np.arange(len(states) + 1)
    return list(states), build_automaton(
        keys=key_pairs(arcs),
        weights=np.zeros(len(arcs)),
        nexts=np.array(list(arcs.values())),
        fails=(nowhere, np.zeros(len(nowhere))),
        final=np.zeros(len(nowhere)),
        missing=(len(states), 0.0),
    )
