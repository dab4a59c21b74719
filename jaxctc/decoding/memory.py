"""How much memory it takes to read a file of n-grams, counted before it is taken."""

from typing import Any

from jaxctc._core import checks

MAX_BYTES = 2**32
"""What reading may take unasked."""
NGRAM, STATE, ARC = 500, 250, 250
"""Bytes for an n-gram, a beginning of a word, a token that goes on with one; text comes on top."""


class Memory:
    """A limit in bytes, and an estimate of what is taken, which real use stays below."""

    def __init__(self, path: str, max_bytes: Any):
        """Nothing is taken so far."""
        self.path, self.taken = path, 0
        self.limit = checks.count("read_arpa", "max_bytes", max_bytes)

    def take(self, size: int, what: str) -> None:
        """Counts so many bytes more; refuses them beyond the limit."""
        self.taken += size
        if self.taken > self.limit:
            requirement = f"be at least {self.taken} to read {what} of {self.path}"
            remedy = "Pass more if this machine has it."
            checks.fail("read_arpa", "max_bytes", requirement, self.limit, remedy)
