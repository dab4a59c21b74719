"""Beam searches of utterances of any lengths, on the host's side: few shapes, narrow beams first.

XLA compiles for each shape. So utterances of like length go together, a power of two of them at a
time; frames are rounded up to 2ⁿ or 3 · 2ⁿ, and likely tokens to 2ⁿ.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxctc.alignment import forced_align
from jaxctc.decoding.beam_search import beam_init, beam_scores, beam_step
from jaxctc.decoding.likely_tokens import LikelyFrames

_LARGEST_BATCH = 16
_NARROW = (8, 32)


class Found(NamedTuple):
    """The prefixes in the beam after one utterance, on the host, in any order."""

    labels: Int[np.ndarray, "W L"]
    """Class ids, -1 after the last."""
    log_probs: Float[np.ndarray, "W"]
    """log p(labels | logits) in nats; -inf in unused slots."""
    scores: Float[np.ndarray, "W"]
    """The same with what models add."""
    model_states: Any
    """The states of the models, `[W, …]` in every leaf."""


def search(
    frames: Sequence[LikelyFrames],
    guide: dict[str, Any],
    *,
    blank_id: int,
    beam_width: int,
    beam_threshold: float,
) -> list[Found]:
    """The prefixes that `beam_step` finds in each utterance.

    Where all prefixes within the threshold fit into a narrow beam, a wider one holds no others.
    So a narrow one goes first, and a wider one only over what did not fit.

    Args:
      frames: the utterances.
      guide: `language_model`, `hot_words` and `lexicon` of `beam_step`, as far as there are any.
      blank_id, beam_width, beam_threshold: as of `beam_step`.

    Returns:
      `Found` for each utterance.
    """
    found: dict[int, Found] = {}
    threshold = jnp.asarray(beam_threshold, jnp.float32)
    for width in [*(narrow for narrow in _NARROW if narrow < beam_width), beam_width]:
        left = [place for place in range(len(frames)) if place not in found]
        for places in _batches(frames, left):
            batch = [frames[place] for place in places]
            is_full, *results = jax.device_get(
                _search(
                    *_stacked(batch),
                    guide,
                    threshold,
                    blank_id=blank_id,
                    beam_width=width,
                    top_k=_power_of_two(max(part.most for part in batch)),
                )
            )
            for row, place in enumerate(places):
                if width == beam_width or not is_full[row]:
                    found[place] = Found(*_rows(results, row))
    return [found[place] for place in range(len(frames))]


def align(
    frames: Sequence[LikelyFrames], labels: Sequence[Sequence[Int[np.ndarray, "_"]]], blank_id: int
) -> list[tuple[Int[np.ndarray, "H L"], Int[np.ndarray, "H L"]]]:
    """First and last frame of each label of the hypotheses of each utterance, padded.

    They are those of `forced_align`, as frames that the utterance came in.
    """
    spans: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for places in _batches(frames, range(len(frames))):
        log_probs, is_padded = _stacked([frames[place] for place in places])
        most = _power_of_two(max(len(labels[place]) for place in places))
        longest = max((len(row) for place in places for row in labels[place]), default=0)
        padded = np.full((len(log_probs), most, _round_up(longest)), -1, np.int32)
        for row, place in enumerate(places):
            for slot, ids in enumerate(labels[place]):
                padded[row, slot, : len(ids)] = ids
        starts, ends = jax.device_get(_align(log_probs, is_padded, padded, blank_id=blank_id))
        for row, place in enumerate(places):
            first, last = (np.append(part, -1) for part in frames[place][1:3])
            spans[place] = first[starts[row]], last[ends[row]]
    return [spans[place] for place in range(len(frames))]


@functools.partial(jax.jit, static_argnames=("blank_id", "beam_width", "top_k"))
def _search(
    log_probs: Float[Array, "B T K"],
    is_padded: Bool[Array, "B T"],
    guide: dict[str, Any],
    beam_threshold: Float[Array, ""],
    *,
    blank_id: int,
    beam_width: int,
    top_k: int,
) -> tuple[Array, Array, Array, Array, Any]:
    """Whether the beams were full, and the fields of `Found`."""
    batch, frames, _ = log_probs.shape
    state = beam_init(frames, batch=(batch,), beam_width=beam_width, **guide)
    state = beam_step(
        state,
        log_probs,
        is_padded,
        blank_id=blank_id,
        logits_normalized=True,
        top_k=top_k,
        beam_threshold=beam_threshold,
        **guide,
    )
    states = state.prefixes.model_states
    return state.is_full, state.labels, *beam_scores(state, **guide), states


@functools.partial(jax.jit, static_argnames=("blank_id",))
def _align(
    log_probs: Float[Array, "B T K"],
    is_padded: Bool[Array, "B T"],
    labels: Int[Array, "B H L"],
    *,
    blank_id: int,
) -> tuple[Int[Array, "B H L"], Int[Array, "B H L"]]:
    def one(labels):
        best = forced_align(
            log_probs, is_padded, labels, labels < 0, blank_id=blank_id, logits_normalized=True
        )
        return best.starts, best.ends

    return jax.vmap(one, in_axes=1, out_axes=1)(labels)


def _rows(tree: Any, row: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[row], tree)


def _batches(frames: Sequence[LikelyFrames], places: Iterable[int]) -> list[list[int]]:
    """Utterances of like length, a few at a time."""
    order = sorted(places, key=lambda place: len(frames[place].first))
    return [order[at : at + _LARGEST_BATCH] for at in range(0, len(order), _LARGEST_BATCH)]


def _stacked(
    batch: Sequence[LikelyFrames],
) -> tuple[Float[np.ndarray, "B T K"], Bool[np.ndarray, "B T"]]:
    """Log-probabilities in one of few shapes, and what is padding there."""
    longest = _round_up(max(len(part.first) for part in batch))
    shape = _power_of_two(len(batch)), longest, batch[0].log_probs.shape[1]
    log_probs, is_padded = np.zeros(shape, np.float32), np.ones(shape[:2], bool)
    for row, part in enumerate(batch):
        log_probs[row, : len(part.first)] = part.log_probs
        is_padded[row, : len(part.first)] = False
    return log_probs, is_padded


def _power_of_two(size: int) -> int:
    return 1 << max(size - 1, 0).bit_length()


def _round_up(size: int, least: int = 16) -> int:
    """The next 2ⁿ or 3 · 2ⁿ, 16 or more."""
    power = _power_of_two(max(size, least))
    return 3 * power // 4 if power > least and size <= 3 * power // 4 else power
