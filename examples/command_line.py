"""What the examples ask of their command lines, answered in one line where it is not met."""

import argparse
import math
from pathlib import Path
from typing import NoReturn


class OneLine(argparse.ArgumentParser):
    """A parser that does not repeat its usage at every mistake."""

    def __init__(self, description: str | None) -> None:
        """The description stands in `--help` line by line as it is given."""
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=formatter)

    def error(self, message: str) -> NoReturn:
        """Says what is wrong in one line, without the usage."""
        self.exit(2, f"{self.prog}: {message}\n")


def positive(text: str) -> int:
    """An option's value from 1 on."""
    return _integer(text, 1, "a positive integer")


def seed(text: str) -> int:
    """An option's value from 0 on."""
    return _integer(text, 0, "an integer that is not negative")


def share(text: str) -> float:
    """An option's value from 0 to 1."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1; got {text!r}")
    return value


def rate(text: str) -> float:
    """An option's value above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number; got {text!r}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _integer(text: str, least: int, kind: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be {kind}; got {text!r}")
    return int(text)


def folder(text: str) -> Path:
    """A folder to write to, made if it is not there."""
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"must be a folder to write to; got {text!r}") from error
    return path
