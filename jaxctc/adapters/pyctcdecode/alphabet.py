"""The labels of a decoder in the form that pyctcdecode brings them into, and in its files."""

import json
import re

from jaxctc._core import checks
from jaxctc.text import Vocabulary

MARK = "▁"
"""What begins the first piece of a word."""
UNK_TOKEN, UNK_BPE_TOKEN = "⁇", "▁⁇▁"
BLANK_TOKEN_PTN, UNK_TOKEN_PTN = (
    re.compile(rf"^[<\[]{name}[>\]]$", re.IGNORECASE) for name in ("pad", "unk")
)
_SPECIAL = re.compile(r"[<\[].+[>\]]")


class Alphabet:
    """Names of all classes: "" is the blank, " " the space or "▁" the mark before a word.

    Example:
      >>> alphabet = Alphabet.build_alphabet(["<pad>", "|", "a"])
      >>> alphabet.labels, alphabet.is_bpe
      (['', ' ', 'a'], False)
      >>> Alphabet.loads(alphabet.dumps()).labels
      ['', ' ', 'a']
    """

    def __init__(self, labels: list[str], is_bpe: bool) -> None:
        """For `build_alphabet` and `loads`: nothing is changed in the labels here."""
        self._labels, self._is_bpe = list(labels), is_bpe

    @property
    def is_bpe(self) -> bool:
        """Whether the labels are pieces of words."""
        return self._is_bpe

    @property
    def labels(self) -> list[str]:
        """The labels, as a copy."""
        return list(self._labels)

    @classmethod
    def build_alphabet(cls, labels: list[str]) -> "Alphabet":
        """From names in the forms that `build_ctcdecoder` describes; it says what is refused."""
        function = "build_ctcdecoder"
        if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
            checks.fail(function, "labels", "be a list of strings", type(labels).__name__)
        names = list(labels)
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            checks.fail(function, "labels", "differ", f"{twice!r} {names.count(twice)} times")
        is_bpe = any(name.startswith(("##", MARK)) for name in names)
        if is_bpe and any(" " in name for name in names):
            requirement = 'have no space where some begin with "##" or "▁"'
            checks.fail(function, "labels", requirement, "one with a space")
        if any(name.startswith("##") for name in names):
            names = [_marked(name) for name in names]
        if not is_bpe and "|" in names and " " not in names:
            names[names.index("|")] = " "
        names = ["" if BLANK_TOKEN_PTN.match(name) else name for name in names]
        if not is_bpe and "_" in names and "" not in names:
            names[names.index("_")] = ""
        if "" not in names:
            names.append("")
        if names.count("") > 1:
            checks.fail(function, "labels", "have one blank", f"{names.count('')} of them")
        unknown = UNK_BPE_TOKEN if is_bpe else UNK_TOKEN
        return cls([unknown if UNK_TOKEN_PTN.match(name) else name for name in names], is_bpe)

    def dumps(self) -> str:
        """The text of an `alphabet.json`."""
        return json.dumps({"labels": self._labels, "is_bpe": self._is_bpe})

    @classmethod
    def loads(cls, s: str) -> "Alphabet":
        """From the text of an `alphabet.json`, of pyctcdecode's or of `dumps`.

        Raises:
          ValueError: if it is no JSON object with `labels` and `is_bpe` and nothing else.
        """
        fields = json.loads(s)
        if not isinstance(fields, dict) or fields.keys() != {"labels", "is_bpe"}:
            got = sorted(fields) if isinstance(fields, dict) else type(fields).__name__
            checks.fail("Alphabet.loads", "s", 'have "labels" and "is_bpe"', got)
        return cls(**fields)


def require_space(alphabet: Alphabet) -> None:
    """Raises ValueError if no label is between words or begins them, as a model of words needs."""
    if vocabulary_of(alphabet).separator is None:
        requirement = 'have " " or "|", or begin words with "▁", for a language model'
        checks.fail("build_ctcdecoder", "labels", requirement, "no space between words")


def vocabulary_of(alphabet: Alphabet) -> Vocabulary:
    """The labels as this library has them; those that say where words begin are the separator."""
    names = alphabet.labels
    separator = MARK if alphabet.is_bpe else " " if " " in names else None
    return Vocabulary(names, blank_id=names.index(""), separator=separator)


def written(vocabulary: Vocabulary) -> list[str]:
    """What each label adds to a text, with white space for its marks."""
    if vocabulary.separator != MARK:
        return list(vocabulary.tokens)
    return [_without_marks(name) for name in vocabulary.tokens]


def _without_marks(name: str) -> str:
    if not name.startswith(MARK):
        return name
    return f" {name.strip(MARK)}{' ' if name[1:].endswith(MARK) else ''}"


def _marked(name: str) -> str:
    """The name in which "▁" begins words, of one in which "##" goes on with them."""
    if name.startswith("##"):
        return name[2:]
    is_special = _SPECIAL.fullmatch(name) or name in ("", MARK, UNK_BPE_TOKEN)
    return name if is_special else f"{MARK}{name}"
