"""Beam searches of utterances of any lengths, on the host's side: few shapes, narrow beams first.

XLA compiles for each shape. So utterances of like length go together, a power of two of them at a
time; steps and likely tokens are rounded up to 2ⁿ, and only the steps that there are take time.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from jaxctc._core.normalizer import largest_or_nan
from jaxctc.alignment import forced_align
from jaxctc.decoding.beam_search import beam_init, beam_scores
from jaxctc.decoding.fusion import fusion_of
from jaxctc.decoding.histories import one_back
from jaxctc.decoding.likely_tokens import LONGEST_RUN, LikelyFrames, Steps
from jaxctc.decoding.prefixes import Pruning, appended, extended

_LARGEST_BATCH = 16
_NARROW = (6, 32)
_NARROW_WITH_MODELS = (4, 8, 32)
"""Models spread scores, so fewer prefixes are left, and each costs more."""


class Found(NamedTuple):
    """The prefixes in the beam after one utterance, on the host, in any order."""

    labels: Int[np.ndarray, "W L"]
    """Class ids, with -1 for none anywhere among them."""
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
    """The prefixes that `beam_step` finds in each utterance, one step for several frames.

    Where all prefixes within the threshold fit into a narrow beam, a wider one holds no others.
    So a narrow one goes first, as far as all fit, and a wider one only over what did not.

    Args:
      frames: the utterances.
      guide: `language_model`, `hot_words` and `lexicon` of `beam_step`, as far as there are any.
      blank_id, beam_width, beam_threshold: as of `beam_step`.

    Returns:
      `Found` for each utterance.
    """
    found: dict[int, Found] = {}
    threshold = np.asarray(beam_threshold, np.float32)
    narrow = _NARROW_WITH_MODELS if guide else _NARROW
    for width in [*(width for width in narrow if width < beam_width), beam_width]:
        left = [place for place in range(len(frames)) if place not in found]
        for places in _batches(frames, left):
            batch = [frames[place] for place in places]
            is_full, tokens, *results = jax.device_get(
                _search(
                    *_stacked_steps([part.steps for part in batch], blank_id),
                    guide,
                    threshold,
                    blank_id=blank_id,
                    beam_width=width,
                    to_the_end=width == beam_width,
                    top_k=_power_of_two(max(part.most for part in batch)),
                )
            )
            for row, place in enumerate(places):
                if width == beam_width or not is_full[row]:
                    labels = _with_runs(tokens[:, row], frames[place].steps)
                    found[place] = Found(labels, *_rows(results, row))
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


@functools.partial(jax.jit, static_argnames=("blank_id", "beam_width", "to_the_end", "top_k"))
def _search(
    log_probs: Float[Array, "S B K"],
    run_labels: Int[Array, "S B R"],
    run_last: Int[Array, "S B"],
    run_log_prob: Float[Array, "S B"],
    counts: Int[Array, "B"],
    guide: dict[str, Any],
    beam_threshold: Float[Array, ""],
    *,
    blank_id: int,
    beam_width: int,
    to_the_end: bool,
    top_k: int,
) -> tuple[Array, Array, Array, Array, Any]:
    """Whether the beams were full, the tokens that steps searched, and the rest of `Found`.

    The first four are the fields of `Steps`, and `counts` says how many steps there are. What
    `beam_step` does for a frame, a loop of any length does here for a step. It ends with the
    last step or, if not `to_the_end`, where all beams with steps left have been full.
    """
    total, batch, classes = log_probs.shape
    models = [guide.get(name) for name in ("language_model", "hot_words", "lexicon")]
    fusion = fusion_of("search", models[0], 1.0, 0.0, *models[1:])
    pruning = Pruning(
        blank=blank_id,
        logits_normalized=True,
        candidates=min(top_k, classes - 1),
        max_length=total * (LONGEST_RUN + 1),
        min_log_prob=jnp.full_like(beam_threshold, -jnp.inf),
        blank_threshold=None,
        beam_threshold=beam_threshold,
    )

    @jax.vmap
    def advance(prefixes, log_probs, labels, last, log_prob):
        prefixes, origins = extended(prefixes, log_probs, fusion, pruning)
        return appended(prefixes, labels, last, log_prob, fusion, blank_id), origins

    def goes_on(carry):
        place, (_, is_full, _) = carry
        return jnp.any((place < counts) & (to_the_end | ~is_full))

    def forward(carry):
        place, (prefixes, is_full, origins) = carry
        step = [part[place] for part in (log_probs, run_labels, run_last, run_log_prob)]
        prefixes, (parents, tokens) = advance(prefixes, *step)
        is_full |= jnp.maximum(prefixes.blank[:, -1], prefixes.label[:, -1]) > -jnp.inf
        origins = origins.at[place].set((tokens + 1) * beam_width + parents)
        return place + 1, (prefixes, is_full, origins)

    def backward(place, carry):
        slots, tokens = carry
        slots, added = one_back(slots, origins[taken - 1 - place])
        return slots, tokens.at[taken - 1 - place].set(added)

    state = beam_init(0, batch=(batch,), beam_width=beam_width, **guide)
    origins = jnp.zeros((total, batch, beam_width), jnp.int32)
    first = state.prefixes, state.is_full, origins
    taken, (prefixes, is_full, origins) = lax.while_loop(goes_on, forward, (jnp.int32(0), first))
    slots = jnp.broadcast_to(jnp.arange(beam_width, dtype=jnp.int32), (batch, beam_width))
    _, tokens = lax.fori_loop(0, taken, backward, (slots, jnp.full_like(origins, -1)))
    largest = largest_or_nan(log_probs) + run_log_prob
    state = state._replace(prefixes=prefixes, is_nan=jnp.any(jnp.isnan(largest), axis=0))
    return is_full, tokens, *beam_scores(state, **guide), prefixes.model_states


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


def _stacked_steps(
    batch: Sequence[Steps], blank_id: int
) -> tuple[
    Float[np.ndarray, "S B K"],
    Int[np.ndarray, "S B R"],
    Int[np.ndarray, "S B"],
    Float[np.ndarray, "S B"],
    Int[np.ndarray, "B"],
]:
    """The fields of `Steps` in one of few shapes, and how many steps each utterance has.

    Those that are padding are frames of blanks alone with probability 1, which change no score.
    """
    lengths = [len(steps.run_last) for steps in batch]
    shape = _power_of_two(max(16, *lengths)), _power_of_two(len(batch))
    counts = np.zeros(shape[1], np.int32)
    counts[: len(batch)] = lengths
    log_probs = np.full((*shape, batch[0].log_probs.shape[1]), -np.inf, np.float32)
    log_probs[..., blank_id] = 0
    run_labels = np.full((*shape, LONGEST_RUN), -1, np.int32)
    run_last, run_log_prob = np.full(shape, -1, np.int32), np.zeros(shape, np.float32)
    for row, steps in enumerate(batch):
        for padded, part in zip(
            (log_probs, run_labels, run_last, run_log_prob), steps, strict=True
        ):
            padded[: len(part), row] = part
    return log_probs, run_labels, run_last, run_log_prob, counts


def _with_runs(tokens: Int[np.ndarray, "S W"], steps: Steps) -> Int[np.ndarray, "W L"]:
    """The labels of the prefixes of one utterance: what each step searched, then its run."""
    count, run = steps.run_labels.shape
    labels = np.empty((tokens.shape[1], count, 1 + run), np.int32)
    labels[..., 0] = tokens[:count].T
    labels[..., 1:] = steps.run_labels
    return labels.reshape(len(labels), -1)


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
