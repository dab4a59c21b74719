"""Logits and lists of words as callers hand them over, and what to say of other things."""

from typing import Any

import numpy as np
from jaxtyping import Float

from jaxctc._core import checks


def require_list(function: str, argument: str, words: Any) -> None:
    """Raises ValueError for a string, which would be a list of its letters."""
    if isinstance(words, str):
        checks.fail(function, argument, "be a list of words", repr(words), "Put words into a list.")


def utterance(function: str, logits: Any, classes: int) -> Float[np.ndarray, "T K"]:
    """The logits of one utterance; raises ValueError if they are not of shape `(T, classes)`."""
    scores = checks.host_array(function, "logits", logits, "be an array")
    if scores.ndim != 2 or scores.shape[1] != classes:
        requirement = f"have shape (T, {classes}), a column for each label and the blank"
        checks.fail(function, "logits", requirement, scores.shape, _remedy(scores.shape, classes))
    return scores


def _remedy(shape: tuple[int, ...], classes: int) -> str:
    if len(shape) == 3:
        return "Several utterances go to decode_batch or decode_beams_batch, as a list."
    if len(shape) == 1:
        return "One utterance is a matrix; decode_batch takes a list of them."
    if shape and shape[0] == classes:
        return "Frames lead: transpose it."
    if shape and shape[-1] == classes - 1:
        return 'Without a label "", "_", "<pad>" or "[PAD]", the blank is one class more, the last.'
    return ""
