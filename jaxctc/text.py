"""Between text and class ids: what the tokens are called, and which of them spell a text.

All of it runs in Python and NumPy, on the host. Nothing here normalises Unicode or changes case:
"é" as one character and as two are different texts, and a model knows only one of them.
Pass `normalize=` to bring a text into the form of the tokens.
"""

import dataclasses
import functools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Int

from jaxctc._core import checks

WILDCARD_NAME = "*"
_NO_TEXT = re.compile(r"<[^<>]+>|\[[^\[\]]+\]")
"""Names such as <unk> and [PAD]: no text spells them."""
_NUMBERED = re.compile(r"(.+)[ \t]+(-?\d+(?:\.\d+)?)")
"""A line of a list that has a number after each token."""


class EncodedText(NamedTuple):
    """Texts as class ids, on the host."""

    labels: Int[np.ndarray, "*B N"]
    """Class ids in int32, -1 after the last."""
    label_paddings: Bool[np.ndarray, "*B N"]
    """True after the labels of a text."""
    word_ids: Int[np.ndarray, "*B N"]
    """Place, among `words`, of the word that each label belongs to; -1 for none."""
    words: list[Any]
    """The words that have labels, as they were written: a list of strings for each text."""
    unknown: Counter[str]
    """How often each character came that no token spells, over all texts."""


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    r"""The names of the classes, and how they spell text.

    With a `separator` text is words with white space between them. If some token begins with the
    separator and goes on ("▁the"), the separator marks the beginning of words, as SentencePiece's
    "▁" does; otherwise it is a token that stands between words, as " " or "|".

    Attributes:
      tokens: the names of all K classes in the order of their ids, that of the blank included.
        Names in angle or square brackets, such as `<unk>`, and the blank's stand for no text:
        no text is spelt with them.
      blank_id: class id of the blank; a negative one counts from the last class.
      separator: what stands for the space between words. "" says that nothing does: the labels
        of words follow each other, as with the tokens of torchaudio's MMS_FA, and only
        `encode` knows where words begin (`word_ids`). None takes white space for characters
        like all others, and text for one word.

    Raises:
      ValueError: if tokens are not different strings, or one that is not the blank is empty; if
        `blank_id` is no class; if no token has the separator.

    Example:
      >>> vocabulary = Vocabulary(["-", " ", "a", "b", "c"], separator=" ")
      >>> vocabulary.encode("cab a").labels.tolist()
      [4, 2, 3, 1, 2]
      >>> vocabulary.decode([4, 2, 3, 1, 2])
      'cab a'
      >>> Vocabulary(["-", "▁a", "▁", "b", "▁ab"], separator="▁").encode("ab b").labels.tolist()
      [4, 2, 3]
    """

    tokens: Sequence[str]
    _: dataclasses.KW_ONLY
    blank_id: int = 0
    separator: str | None = None

    def __post_init__(self) -> None:
        """Checks the tokens; they become a tuple, and the blank's id counts from the first."""
        function, tokens = "Vocabulary", self.tokens
        if isinstance(tokens, str):
            remedy = f"list({tokens[:9]!r}) has one token per character."
            checks.fail(function, "tokens", "be a sequence of strings", "one string", remedy)
        if not isinstance(tokens, Sequence) or not all(isinstance(t, str) for t in tokens):
            is_map = isinstance(tokens, dict)
            remedy = "Those of ids by token are sorted(ids, key=ids.get)." if is_map else ""
            got = type(tokens).__name__
            checks.fail(function, "tokens", "be a sequence of strings", got, remedy)
        blank = checks.class_id(function, "blank_id", self.blank_id, len(tokens))
        object.__setattr__(self, "tokens", tuple(tokens))
        object.__setattr__(self, "blank_id", blank)
        for token, count in Counter(tokens).items():
            if count > 1:
                checks.fail(function, "tokens", "differ", f"{token!r} {count} times")
        if "" in tokens and tokens[blank] != "":
            requirement = "have a name for every class but the blank"
            checks.fail(function, "tokens", requirement, f"'' at {list(tokens).index('')}")
        if self.separator is not None and not any(t.startswith(self.separator) for t in tokens):
            remedy = 'Pass "|" or "▁" if that stands there, "" if nothing does, None without words.'
            got = f"{self.separator!r}, which none is"
            checks.fail(function, "separator", "be a token or begin some", got, remedy)

    @classmethod
    def from_file(
        cls, path: str | os.PathLike[str], *, blank_id: int = 0, separator: str | None = None
    ) -> "Vocabulary":
        """The vocabulary whose tokens stand in a file, in UTF-8.

        Args:
          path: one token a line, in the order of the ids; or on every line a token, white space
            and a number: whole numbers 0 to K-1 in any order are the ids (`tokens.txt` of
            icefall), others are left out (`.vocab` of SentencePiece). Or JSON, if the name ends
            in `.json`: an object from tokens to ids (`vocab.json` of Hugging Face), or an array.
          blank_id, separator: as of `Vocabulary`.

        Returns:
          A `Vocabulary`.

        Raises:
          ValueError: if the file is not of these forms or its tokens are not a vocabulary's.
          OSError: if the file cannot be read.

        Example:
          >>> from tempfile import NamedTemporaryFile
          >>> with NamedTemporaryFile("w", suffix=".json") as file:
          ...     print('{"|": 1, "<pad>": 0, "E": 2}', file=file, flush=True)
          ...     Vocabulary.from_file(file.name, separator="|").tokens
          ('<pad>', '|', 'E')
        """
        function = "Vocabulary.from_file"
        try:
            with open(path, encoding="utf-8-sig", newline="") as file:
                text = file.read()
            if os.fspath(path).endswith(".json"):
                tokens = _from_json(json.loads(text))
            else:
                tokens = _from_lines([line.removesuffix("\r") for line in text.split("\n")])
        except (ValueError, RecursionError) as error:  # of UTF-8, of JSON or of ids
            checks.fail(function, os.fspath(path), "be a list of tokens", str(error))
        return cls(tokens, blank_id=blank_id, separator=separator)

    def encode(
        self,
        texts: str | Sequence[str],
        *,
        unknown: Literal["raise", "drop", "wildcard"] = "raise",
        open_ends: bool = False,
        normalize: Callable[[str], str] | None = None,
    ) -> EncodedText:
        """The class ids that spell a text, or each of several, padded to the longest.

        Among several spellings the one with the fewest characters left over is taken, then the
        one with the fewest tokens, then the one with the longest first. For word pieces this
        need not be what the model's own tokenizer makes of the text. White space around words
        does not matter: one separator is written between two words, and none at the ends.

        Args:
          texts: one text, or a sequence of them.
          unknown: what happens to a character that no token spells. "raise" refuses the text;
            "drop" leaves it out, and words of which nothing is left, too; "wildcard" puts
            `wildcard_id` in its place, one for several side by side within a word.
          open_ends: True puts `wildcard_id` before and after every text, for a recording in which
            other things are said before and after it.
          normalize: applied to every word before it is looked up, such as `str.lower`; `words`
            stay as they were written. It may make several words of one ("£5", "five pounds"),
            which are then one word in `word_ids`.

        Returns:
          `EncodedText`, with `[N]` arrays for one text and `[B, N]` arrays for a sequence.

        Raises:
          ValueError: if `texts` are not strings, or a character is unknown and may not be.

        Example:
          >>> vocabulary = Vocabulary(["-", " ", "a", "b", "c"], separator=" ")
          >>> one = vocabulary.encode("a £5 cab", unknown="wildcard")
          >>> one.labels.tolist(), one.words, dict(one.unknown)
          ([2, 1, 5, 1, 4, 2, 3], ['a', '£5', 'cab'], {'£': 1, '5': 1})
          >>> one.word_ids.tolist()
          [0, -1, 1, -1, 2, 2, 2]
          >>> vocabulary.encode(["a b", "c"]).labels.tolist()
          [[2, 1, 3], [4, -1, -1]]
        """
        function = "Vocabulary.encode"
        checks.choice(function, "unknown", unknown, ("raise", "drop", "wildcard"))
        several = [texts] if isinstance(texts, str) else texts
        if not isinstance(several, Sequence) or not all(isinstance(t, str) for t in several):
            checks.fail(function, "texts", "be a string, or a sequence of them", repr(texts)[:40])
        counts: Counter[str] = Counter()
        rows = [self._encode(text, unknown, open_ends, normalize, counts) for text in several]
        if counts and unknown == "raise":
            self._refuse(counts)
        size = max((len(row.labels) for row in rows), default=0)
        labels, word_ids = np.full((2, len(rows), size), -1, np.int32)
        for place, row in enumerate(rows):
            labels[place, : len(row.labels)] = row.labels
            word_ids[place, : len(row.labels)] = row.word_ids
        words = [row.words for row in rows]
        if isinstance(texts, str):
            labels, word_ids, words = labels[0], word_ids[0], words[0]
        return EncodedText(labels, labels < 0, word_ids, words, counts)

    def decode(self, labels: Int[ArrayLike, "*B N"] | Sequence[Any]) -> Any:
        """The text that class ids spell.

        Args:
          labels: class ids; negative ones are padding and, as the blank, spell nothing.
            `wildcard_id` is written as "*".

        Returns:
          A string for `[N]` labels; nested lists of strings for `[*B, N]`. With a separator it
          is the words with one space between each two.

        Raises:
          ValueError: if an id is neither a class nor `wildcard_id`.

        Example:
          >>> Vocabulary(["-", "▁a", "b", "▁c"], separator="▁").decode([[1, 2, 3], [3, -1, -1]])
          ['ab c', 'c']
        """
        return self._by_row(labels, self._text)

    def words(self, labels: Int[ArrayLike, "*B N"] | Sequence[Any]) -> Any:
        """The words that class ids spell: as many as `word_spans` finds with `word_options`.

        Args:
          labels: as of `decode`.

        Returns:
          A list of strings for `[N]` labels; nested lists of them for `[*B, N]`.

        Raises:
          ValueError: as `decode`, and without a separator.

        Example:
          >>> Vocabulary(["-", " ", "a", "b"], separator=" ").words([2, 3, 1, 1, 2, -1])
          ['ab', 'a']
        """
        self._require_separator("Vocabulary.words")
        return self._by_row(labels, self._runs)

    @property
    def names(self) -> tuple[str, ...]:
        """Names for plots and for `format_errors`: blank "–", space "␣", last the wildcard "*"."""
        shown = {" ": "␣", self.tokens[self.blank_id]: "–"}
        return (*(shown.get(token, token) for token in self.tokens), WILDCARD_NAME)

    @property
    def wildcard_id(self) -> int:
        """The id for what is not in the transcript: K, which no class has."""
        return len(self.tokens)

    @functools.cached_property
    def separator_id(self) -> int | None:
        """Class id of the token between words; None if there is no such token."""
        if not self.separator or self.marks_words:
            return None
        return self.tokens.index(self.separator)

    @functools.cached_property
    def marks_words(self) -> bool:
        """True if words begin with the separator, and it does not stand between them."""
        mark = self.separator
        return bool(mark) and any(t.startswith(mark) and t != mark for t in self.tokens)

    @property
    def word_options(self) -> dict[str, Any]:
        """What tells `word_spans` where words begin: `separator` or `word_starts`."""
        self._require_separator("Vocabulary.word_options")
        if not self.marks_words:
            return {"separator": self.separator_id}
        return {"word_starts": np.array([t.startswith(str(self.separator)) for t in self.tokens])}

    @functools.cached_property
    def spelling_ids(self) -> dict[str, int]:
        """Ids of the tokens that spell text, by name: no blank, no `separator_id`, no `<unk>`."""
        left_out = {self.blank_id, self.separator_id}
        return {
            token: place
            for place, token in enumerate(self.tokens)
            if place not in left_out and not _NO_TEXT.fullmatch(token)
        }

    @functools.cached_property
    def _longest(self) -> int:
        return max(map(len, self.spelling_ids), default=0)

    def _encode(
        self,
        text: str,
        unknown: str,
        open_ends: bool,
        normalize: Callable[[str], str] | None,
        counts: Counter[str],
    ) -> "_Row":
        row = _Row([], [], [])
        end = [self.wildcard_id] if open_ends else []
        row.extend(end, -1)
        for word in self._split(text):
            ids: list[int] = []
            for part in self._split(word if normalize is None else normalize(word)):
                spelling = list(self._spell(part, unknown, counts))
                if ids and spelling and self.separator_id is not None:
                    ids.append(self.separator_id)
                ids += spelling
            if not ids:
                continue
            if row.words and self.separator_id is not None:
                row.extend([self.separator_id], -1)
            row.extend(ids, len(row.words))
            row.words.append(word)
        row.extend(end, -1)
        return row

    def _split(self, text: str) -> list[str]:
        return [text] if self.separator is None else text.split()

    def _spell(self, word: str, unknown: str, counts: Counter[str]) -> Iterator[int]:
        """Ids of one word, the characters that none spells counted."""
        if self.marks_words:
            word = f"{self.separator}{word}"
        is_open = False  # after a wildcard, which takes in unknown neighbours
        for piece in self._pieces(word):
            if piece in self.spelling_ids:
                is_open = False
                yield self.spelling_ids[piece]
                continue
            counts[piece] += 1
            if unknown == "wildcard" and not is_open:
                is_open = True
                yield self.wildcard_id

    def _pieces(self, word: str) -> Iterator[str]:
        """Tokens, and single characters that are none: few of these first of all."""
        costs = [(0, 0)] * (len(word) + 1)  # unknown characters and tokens from a place on
        ends = [0] * len(word)
        for start in reversed(range(len(word))):
            unknown, count = costs[start + 1]
            costs[start], ends[start] = (unknown + 1, count), start + 1
            for end in range(start + 1, min(len(word), start + self._longest) + 1):
                unknown, count = costs[end]
                if word[start:end] in self.spelling_ids and (unknown, count + 1) <= costs[start]:
                    costs[start], ends[start] = (unknown, count + 1), end
        start = 0
        while start < len(word):
            yield word[start : ends[start]]
            start = ends[start]

    def _refuse(self, counts: Counter[str]) -> None:
        some = ", ".join(f"{sign!r} ({count} times)" for sign, count in counts.most_common(5))
        more = f" and {len(counts) - 5} others" if len(counts) > 5 else ""
        remedy = 'Pass unknown="wildcard" or "drop", or normalize= to replace them.'
        for change in ("lower", "upper"):
            if all(getattr(sign, change)() in self.spelling_ids for sign in counts):
                remedy = f"normalize=str.{change} makes them known."
        if self.separator is None and all(map(str.isspace, counts)):
            remedy = 'If nothing stands between words, say Vocabulary(..., separator="").'
        requirement = "have a token for every character"
        checks.fail("Vocabulary.encode", "texts", requirement, some + more, remedy)

    def _by_row(self, labels: Any, of_row: Callable[[list[int]], Any]) -> Any:
        """Applies a function to the labels in use of each example, blanks left out."""
        function, requirement = "Vocabulary.decode", f"be ids up to {self.wildcard_id}"
        ids = checks.host_array(function, "labels", labels, "be class ids [*B, N]")
        if ids.size and ids.dtype.kind not in "iu":
            checks.fail(function, "labels", "be class ids [*B, N]", ids.dtype)
        if ids.ndim < 1:
            checks.fail(function, "labels", "have shape [*B, N]", ids.shape)
        if ids.ndim > 1:
            return [self._by_row(part, of_row) for part in ids]
        if ids.size and ids.max() > self.wildcard_id:
            remedy = f"There are {len(self.tokens)} tokens."
            checks.fail(function, "labels", requirement, ids.max(), remedy)
        return of_row([int(label) for label in ids if label >= 0 and label != self.blank_id])

    def _text(self, labels: list[int]) -> str:
        if self.separator:
            return " ".join(filter(None, self._runs(labels)))
        return "".join(map(self._token, labels))

    def _runs(self, labels: list[int]) -> list[str]:
        """The words: what stands between separators, or from mark to mark."""
        runs: list[str] = []
        begins = True
        for label in labels:
            token = self._token(label)
            if self.marks_words:
                begins = not runs or token.startswith(str(self.separator))
                token = token.removeprefix(str(self.separator))
            elif label == self.separator_id:
                begins = True
                continue
            if begins:
                runs.append("")
            runs[-1] += token
            begins = False
        return runs

    def _token(self, label: int) -> str:
        return WILDCARD_NAME if label == self.wildcard_id else self.tokens[label]

    def _require_separator(self, function: str) -> None:
        if not self.separator:
            remedy = "Labels do not show where words begin; EncodedText.word_ids does."
            got = repr(self.separator)
            checks.fail(function, "separator", "be what stands between words", got, remedy)


class _Row(NamedTuple):
    """One text while it is encoded."""

    labels: list[int]
    word_ids: list[int]
    words: list[str]

    def extend(self, labels: list[int], word_id: int) -> None:
        """Adds labels of one word."""
        self.labels.extend(labels)
        self.word_ids.extend([word_id] * len(labels))


def _from_json(value: Any) -> list[str]:
    """Tokens from an object of ids, or as they stand in an array."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__} of JSON")
    return _by_id(value)


def _by_id(ids: dict[str, Any]) -> list[str]:
    if sorted(map(str, ids.values())) != sorted(map(str, range(len(ids)))):
        raise ValueError(f"{len(ids)} tokens whose ids are not 0 to {len(ids) - 1}")
    return sorted(ids, key=lambda token: int(ids[token]))


def _from_lines(lines: list[str]) -> list[str]:
    """Tokens one a line, with or without a number after each."""
    while lines and not lines[-1]:
        lines.pop()
    fields = [_NUMBERED.fullmatch(line) for line in lines]
    pairs = [(field[1], field[2]) for field in fields if field]
    if not lines or len(pairs) < len(lines):
        return lines
    tokens = [token for token, _ in pairs]
    is_id = sorted(number for _, number in pairs) == sorted(map(str, range(len(pairs))))
    return _by_id(dict(pairs)) if is_id and len(set(tokens)) == len(tokens) else tokens
