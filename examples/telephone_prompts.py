"""Recorded telephone prompts and what is said in them: real speech, 8000 samples a second.

The recordings are the English core sounds of Asterisk, one professional voice (© Allison Smith and
Digium, CC-BY-SA-3.0), as Debian packages them; their texts are in a second package. Prompts whose
text does not say how they are spoken are left out: abbreviations, numbers above nine, addresses.
"""

import argparse
import gzip
import itertools
import re
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

RATE = 8000
"""Samples per second."""
HOP = 80
"""Samples in a hundredth of a second, by which recordings are trimmed."""
PACKAGES = "asterisk-core-sounds-en-wav asterisk-core-sounds-en"
MAX_SECONDS = 20.0
RUN = 5
"""So many words in a row are a phrase."""

_RECORDINGS = Path("usr/share/asterisk/sounds/en_US_f_Allison")
_TEXTS = Path("usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
_DIGITS = dict(
    zip(
        "0123456789",
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
        strict=True,
    )
)
_REMARK = re.compile(r"\[[^]]*\]|<[^>]*>|\([^)]*\)")
_SENTENCE_END = re.compile(r"(?:[.!?:;]|\.{3})(?:\s+|$)")
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*")
_SPLIT_SEED = 28


class Prompt(NamedTuple):
    """A recording and its text."""

    name: str
    sentences: tuple[str, ...]
    """Words of lower-case letters and apostrophes, one space between them."""
    samples: np.ndarray
    """[S] in float32, from -1 to 1."""

    @property
    def text(self) -> str:
        """All that is said."""
        return " ".join(self.sentences)


def sounds(text: str) -> Path:
    """The value of an option: the folder below which the packages lie."""
    root = Path(text)
    if not (root / _RECORDINGS).is_dir() or not (root / _TEXTS).is_file():
        requirement = f"must be the folder that has {_RECORDINGS} and {_TEXTS} in it"
        remedy = f"On Debian and Ubuntu: apt-get install {PACKAGES}"
        raise argparse.ArgumentTypeError(f"{requirement}; got {text!r}. {remedy}")
    return root


def load_prompts(root: Path) -> list[Prompt]:
    """All prompts of known text, in the order of their list."""
    with gzip.open(root / _TEXTS, "rt", encoding="utf-8") as file:
        entries = [line.split(":", 1) for line in file if re.match(r"[^;\s].*:", line)]
    prompts = []
    for name, text in entries:
        path, said = root / _RECORDINGS / f"{name}.wav", spoken(text)
        if said and path.is_file():
            samples = read_wave(path)
            if len(samples) <= MAX_SECONDS * RATE:
                prompts.append(Prompt(name, said, samples))
    return prompts


def spoken(text: str) -> tuple[str, ...]:
    """The sentences of a text as they are spoken; none if the text does not say how."""
    text = _REMARK.sub(" ", text).replace("-", " ").replace(",", " ").replace('"', " ")
    sentences = []
    for sentence in _SENTENCE_END.split(text):
        words = [_DIGITS.get(word, word) for word in sentence.split() if word.strip(".")]
        is_clear = all(
            _WORD.fullmatch(word.lower()) and not (len(word) > 1 and word.isupper())
            for word in words
        )
        if not is_clear:
            return ()
        if words:
            sentences.append(" ".join(words).lower())
    return tuple(sentences)


def read_wave(path: Path) -> np.ndarray:
    """The samples of a file, from -1 to 1."""
    with wave.open(str(path)) as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (RATE, 1, 2):
            raise ValueError(f"read_wave: {path} must have one channel of 16 bits at {RATE} Hz")
        data = file.readframes(file.getnframes())
    return np.frombuffer(data, "<i2").astype(np.float32) / 2**15


def trim(samples: np.ndarray) -> np.ndarray:
    """The recording from the first to the last hundredth of a second that can be heard.

    That is within 40 dB of the loudest one.
    """
    hops = samples[: len(samples) // HOP * HOP].reshape(-1, HOP)
    power = np.mean(hops**2, axis=1)
    heard = np.flatnonzero(power > 1e-4 * power.max())
    return samples[heard[0] * HOP : (heard[-1] + 1) * HOP]


class Recording(NamedTuple):
    """Several prompts, one after the other."""

    samples: np.ndarray
    """[S]."""
    texts: list[str]
    """What each prompt says."""
    starts: np.ndarray
    """Seconds at which each prompt begins to be heard, [P]."""
    ends: np.ndarray
    """And at which it has been heard."""

    @property
    def text(self) -> str:
        """All that is said."""
        return " ".join(self.texts)


def join(prompts: Sequence[Prompt], pauses: np.ndarray) -> Recording:
    """Trimmed prompts with so many seconds of silence before each, and after the last."""
    parts = [trim(prompt.samples) for prompt in prompts]
    gaps = np.round(pauses * RATE).astype(int)
    lengths = np.array([len(part) for part in parts])
    starts = np.cumsum(gaps[:-1]) + np.concatenate([[0], np.cumsum(lengths)[:-1]])
    samples = np.zeros(gaps.sum() + lengths.sum(), np.float32)
    for start, part in zip(starts, parts, strict=True):
        samples[start : start + len(part)] = part
    texts = [prompt.text for prompt in prompts]
    return Recording(samples, texts, starts / RATE, (starts + lengths) / RATE)


def add_noise(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """With about the noise that the recordings have, so that joints cannot be heard."""
    level = 10 ** rng.uniform(-4.5, -3)
    return samples + np.float32(level) * rng.standard_normal(samples.shape, np.float32)


class Split(NamedTuple):
    """Prompts for three purposes; what is said in one of them is not said in another."""

    train: list[Prompt]
    validation: list[Prompt]
    test: list[Prompt]


def split_prompts(prompts: list[Prompt], share: float = 0.1) -> Split:
    """Holds out so much of the prompts for validation, and as much for the test.

    No sentence, and no RUN words in a row, are on two sides. Single words are, in other sentences.
    """
    groups = _by_common_phrases(prompts)
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(groups))
    parts: tuple[list[Prompt], ...] = ([], [], [])
    for group in (groups[place] for place in order):
        # A phrase that many prompts have ties all of them together; such a group is for training.
        may_be_held_out = len(group) <= 3
        room = (part for part in parts[1:] if len(part) + len(group) <= share * len(prompts))
        (next(room, parts[0]) if may_be_held_out else parts[0]).extend(group)
    return Split(*parts)


def _by_common_phrases(prompts: list[Prompt]) -> list[list[Prompt]]:
    """Groups such that prompts of different groups have no phrase in common."""
    group_of: dict[str, int] = {}
    groups: dict[int, list[Prompt]] = {}
    for place, prompt in enumerate(prompts):
        merged = {group_of[phrase] for phrase in _phrases(prompt) if phrase in group_of}
        groups[place] = [*itertools.chain(*map(groups.pop, sorted(merged))), prompt]
        group_of |= {phrase: place for member in groups[place] for phrase in _phrases(member)}
    return list(groups.values())


def _phrases(prompt: Prompt) -> set[str]:
    """The sentences, and all runs of RUN words."""
    words = prompt.text.split()
    runs = (" ".join(words[start : start + RUN]) for start in range(len(words) - RUN + 1))
    return {*prompt.sentences, *runs}
