"""The options of `python -m jaxctc`, and its messages about them."""

import argparse
import math
from pathlib import Path
from typing import NoReturn

from jaxctc.decoding.memory import MAX_BYTES
from jaxctc.subtitles import FORMATS


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help says more)\n")


def new_parser() -> argparse.ArgumentParser:
    """Of `align` and `decode`."""
    parser = _Parser("python -m jaxctc", description="Connectionist Temporal Classification.")
    commands = parser.add_subparsers(required=True, metavar="align|decode")
    align = commands.add_parser("align", help="find when each word of a text is said")
    align.set_defaults(command="align")
    decode = commands.add_parser("decode", help="find what is said")
    decode.set_defaults(command="decode")
    for command in (align, decode):
        _add_inputs(command)
    align.add_argument("text", type=Path, metavar="TEXT", help="what is said, a cue on each line")
    _add_times(align, required=True)
    _add_times(decode, required=False)
    _add_align(align)
    _add_decode(decode)
    return parser


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("logits", type=Path, metavar="LOGITS", help="scores [frames, classes], a file of NumPy's")
    add("--vocabulary", type=Path, required=True, metavar="TOKENS", help="a token a line, or .json")
    add("--blank-id", type=int, default=0, metavar="ID", help="class of the blank (default: 0)")
    separator = "between words, or the mark at their beginning; '' if nothing is"
    add("--separator", metavar="TOKEN", help=f"{separator} (default: ▁, | or space, if a token)")
    add("--log-probs", action="store_true", help="the scores are log-probabilities")
    case = "change the text's case before looking it up"
    add("--case", choices=("keep", "lower", "upper"), default="keep", help=case)


def _add_times(parser: argparse.ArgumentParser, *, required: bool) -> None:
    add = parser.add_argument
    step = "from one frame to the next"
    add("--frame-seconds", type=_positive, required=required, metavar="SECONDS", help=step)
    first = "when the first frame begins (default: 0)"
    add("--offset", type=_number, default=0.0, metavar="SECONDS", help=first)
    endings = ", ".join(f".{name}" for name in FORMATS)
    add("-o", "--output", type=Path, metavar="FILE", help=f"to write, {endings} by its ending")


def _add_align(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    kinds = "what a cue is: a line of TEXT, at most 84 characters and 7 seconds, or a word"
    add("--cues", choices=("lines", "short", "words"), default="lines", help=kinds)
    unknown = "what to do about characters without a token (default: raise)"
    add("--unknown", choices=("raise", "drop", "wildcard"), default="raise", help=unknown)
    penalty = "nats per frame that a wildcard takes in (default: 1)"
    add("--wildcard-penalty", type=_number, default=1.0, metavar="NATS", help=penalty)
    add("--open-ends", action="store_true", help="more is said before and after the text")
    priors = "log-probabilities of the classes [classes], a file of NumPy's"
    add("--priors", type=Path, metavar="FILE", help=priors)
    scale = "how much of them (default: 1)"
    add("--prior-scale", type=_number, default=1.0, metavar="SCALE", help=scale)


def _add_decode(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--beam-width", type=_count, default=16, help="how many prefixes to keep (default: 16)")
    add("--best", type=_count, default=1, metavar="N", help="how many to give (default: 1)")
    add("--arpa", type=Path, help="n-grams of words, or of tokens if there is no separator")
    most = f"the most memory to read them in (default: {MAX_BYTES})"
    add("--max-bytes", type=_count, default=MAX_BYTES, metavar="BYTES", help=most)
    add("--lm-weight", type=_number, default=1.0, help="factor of their log-probabilities")
    add("--length-bonus", type=_number, default=0.0, help="nats per label (default: 0)")
    add("--hot-words", type=Path, help="a phrase a line, a tab and a bonus after it if you like")
    add("--hot-word-bonus", type=_number, default=5.0, help="nats for the others (default: 5)")
    add("--lexicon", type=Path, help="the words that may be said, one a line, or with spellings")
    price = "nats for every other word (default: -inf, which forbids them)"
    add("--unknown-score", type=float, default=-math.inf, metavar="NATS", help=price)
    unknown = "what to do about words and characters without tokens (default: raise)"
    add("--unknown", choices=("raise", "drop"), default="raise", help=unknown)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number; got {text!r}")
    return value


def _positive(text: str) -> float:
    value = _number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be a positive number; got {text!r}")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer from 1 on; got {text!r}")
    return int(text)
