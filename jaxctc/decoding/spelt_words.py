"""From labels back to the words of a lexicon, which need not be written as they are spelt."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.typing import ArrayLike
from jaxtyping import Int

from jaxctc._core import checks
from jaxctc.decoding.spellings import read_entries, spelling_of
from jaxctc.text import Vocabulary


class Spellings(NamedTuple):
    """How words are spelt in tokens, for the host: what `read_spellings` returns."""

    words_of: dict[tuple[int, ...], list[str]]
    """The words that share a spelling, in the order of the file, by its class ids."""
    vocabulary: Vocabulary
    """The tokens."""

    def words(self, labels: Int[ArrayLike, "*B N"] | Sequence[Any]) -> Any:
        """The words that class ids spell.

        Without a separator, what has been said may be cut into words in several ways; it is cut
        into the fewest, and of those cuts the one with the longest word first is taken.

        Args:
          labels: class ids; negative ones are padding.

        Returns:
          For `[N]` labels a list with an entry for each word: the words that are spelt so, in
          the order of the file, several if they sound alike, none for one that is not in the
          file. For `[*B, N]` labels, nested lists of such lists.

        Example:
          See `read_spellings`.
        """
        rows = checks.host_array("Spellings.words", "labels", labels, "be class ids")
        if rows.ndim > 1:
            return [self.words(row) for row in rows]
        ids = [label for label in rows.tolist() if label >= 0 and label != self.vocabulary.blank_id]
        return [self.words_of.get(spelling, []) for spelling in self._cut(ids)]

    def _cut(self, ids: list[int]) -> list[tuple[int, ...]]:
        """The labels of each word."""
        if not self.vocabulary.separator:
            return self._fewest(ids)
        spellings: list[tuple[int, ...]] = [()]
        mark = self.vocabulary.separator if self.vocabulary.marks_words else None
        for label in ids:
            if label == self.vocabulary.separator_id:
                spellings.append(())
                continue
            if mark is not None and self.vocabulary.tokens[label].startswith(mark):
                spellings.append(())
            spellings[-1] += (label,)
        return [spelling for spelling in spellings if spelling]

    def _fewest(self, ids: list[int]) -> list[tuple[int, ...]]:
        """The same where nothing parts words; one that is not there if no words make them up."""
        longest = max(map(len, self.words_of))
        best: list[list[tuple[int, ...]] | None] = [None] * len(ids) + [[]]
        for start in reversed(range(len(ids))):
            for end in range(min(len(ids), start + longest), start, -1):
                word, rest = tuple(ids[start:end]), best[end]
                if word in self.words_of and rest is not None:
                    here = best[start]
                    if here is None or len(rest) + 1 < len(here):
                        best[start] = [word, *rest]
        return [tuple(ids)] if best[0] is None else best[0]


def read_spellings(path: str | os.PathLike[str], vocabulary: Vocabulary) -> Spellings:
    """The words of a file of words and spellings, by what spells them.

    Args:
      path: a file as of `read_lexicon`, with a spelling on every line.
      vocabulary: the tokens, the blank and the separator.

    Returns:
      `Spellings`, whose `words` says what the labels of a hypothesis stand for.

    Raises:
      ValueError: as `read_lexicon`, or if lines have no spelling.
      OSError: if the file cannot be read.

    Example:
      >>> from tempfile import NamedTemporaryFile
      >>> vocabulary = Vocabulary(["-", "|", "T", "UW"], separator="|")
      >>> with NamedTemporaryFile("w") as file:
      ...     print("too T UW", "two T UW", "ooh UW", sep="\\n", file=file, flush=True)
      ...     spellings = read_spellings(file.name, vocabulary)
      >>> spellings.words([3, 1, 2, 3, 1, 2, -1])
      [['ooh'], ['too', 'two'], []]
    """
    function = "read_spellings"
    words_of: dict[tuple[int, ...], list[str]] = {}
    for entry in read_entries(function, path, vocabulary):
        if not entry.name:
            requirement = "have tokens after the word"
            checks.fail(function, entry.where, requirement, f"{entry.word!r} alone")
        ids = tuple(spelling_of(function, entry, vocabulary))
        words_of.setdefault(ids, []).append(entry.name)
    if not words_of:
        checks.fail(function, os.fspath(path), "have words", "none")
    return Spellings(words_of, vocabulary)
