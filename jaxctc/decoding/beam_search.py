"""Prefix beam search: the most likely label sequences, over all their paths, within a beam.

What stays from frame to frame has no room for whole label sequences: a scan over frames writes
down from which prefix each one came and by which token, and reading that backwards extends the
sequences once per chunk. The frames themselves are in `jaxctc.decoding.prefixes`.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Bool, Float, Int, Shaped

from jaxctc._core import checks
from jaxctc._core.lean import take_one
from jaxctc._core.normalizer import largest_or_nan, mask_padding, normalizer
from jaxctc._core.sharding import is_varying, varying_like
from jaxctc.alignment import forced_align
from jaxctc.decoding.fusion import Fusion, fusion_of
from jaxctc.decoding.greedy import Hypotheses
from jaxctc.decoding.histories import read_back
from jaxctc.decoding.language_models import LanguageModel
from jaxctc.decoding.lexicon import Lexicon
from jaxctc.decoding.prefixes import (
    Prefixes,
    Pruning,
    cond_as_select,
    next_prefixes,
    precision_of,
    pruning_of,
    where,
)


class BeamState(NamedTuple):
    """All that a beam search remembers between chunks of frames."""

    labels: Int[Array, "*B W L"]
    """The prefixes, -1 after the last label."""
    prefixes: Prefixes
    """What else there is to know of them."""
    is_nan: Bool[Array, "*B"]
    """True once a frame in use held NaN or +inf."""
    is_full: Bool[Array, "*B"]
    """True once so many prefixes came within a `beam_threshold` that a wider beam may hold more."""


def prefix_beam_search(
    logits: Float[ArrayLike, "*B T K"],
    logit_paddings: Shaped[ArrayLike, "*B T"] | None,
    *,
    blank_id: int = 0,
    logits_normalized: bool = False,
    beam_width: int = 16,
    num_hypotheses: int = 1,
    max_length: int | None = None,
    top_k: int | None = None,
    min_log_prob: Float[ArrayLike, ""] = -jnp.inf,
    blank_threshold: Float[ArrayLike, ""] | None = None,
    beam_threshold: Float[ArrayLike, ""] | None = None,
    language_model: Any = None,
    lm_weight: Float[ArrayLike, ""] = 1.0,
    length_bonus: Float[ArrayLike, ""] = 0.0,
    hot_words: LanguageModel | None = None,
    lexicon: Lexicon | None = None,
    times: bool = False,
) -> Hypotheses:
    """The most likely label sequences: each adds up all its paths, not only the best one.

    A search for the best of `log p(labels | logits) + lm_weight · log p(labels) + length_bonus ·
    length + hot words`, among words of the lexicon if there is one. It is exact while the beam
    holds every prefix that matters: with a beam as wide as there are label sequences, scores are
    those of `ctc_loss`; with a narrower one they are lower bounds. Equal sequences never come
    twice. Of equally good prefixes the beam keeps those that were there before, then those from
    the better parent.

    Args:
      logits: scores over classes, the blank included.
      logit_paddings: nonzero where a frame is padded, anywhere; None pads nothing.
      blank_id: static class id of the blank; a negative one counts from the last class.
      logits_normalized: static; True takes `logits` for log-probabilities.
      beam_width: static; how many prefixes to keep, W.
      num_hypotheses: static; how many of them to return, at most W.
      max_length: static; L, the longest label sequence to consider; None is T.
      top_k: static; how many tokens a frame may add, the most likely ones. None is as many as
        can make a difference to W prefixes without a model, 2 W + 1.
      min_log_prob: log-probability, in nats, below which a frame does not add a token.
      blank_threshold: probability of the blank above which a frame adds no token and repeats
        none. For one utterance at a time, such frames also cost less. None skips nothing.
      beam_threshold: nats; a prefix whose score is further below the best one is dropped.
      language_model: a model of `read_arpa`, or the tuple `(initial_state, score_and_advance)`
        of pure functions of one hypothesis, see `jaxctc.decoding.language_models.LanguageModel`.
      lm_weight: factor of its log-probabilities.
      length_bonus: nats to add for every label. A language model alone favours short sequences;
        1 or 2 often make up for that.
      hot_words: what `hot_words` returns.
      lexicon: what `read_lexicon` or `build_lexicon` returns: the words that hypotheses may
        consist of. As it forbids tokens, `top_k` may have to be larger than its default.
      times: static; True aligns every hypothesis again, by `forced_align`.

    Returns:
      `Hypotheses` with `[*B, num_hypotheses, L]` labels, the best first. `scores` is what they
      are ranked by. Slots that no sequence fills have score -inf and no labels; if a frame in
      use holds NaN or +inf, all are empty and their scores NaN. `starts`, `ends` and
      `confidences` are None unless `times`; then they are those of `forced_align`. No
      derivative: for one, score the labels with `ctc_loss`.

    Raises:
      ValueError: if shapes disagree, `blank_id` is not a class, a count is less than 1 (0 for
        `max_length`), `num_hypotheses` exceeds `beam_width`, or the model is none.

    Note:
      XLA does not split `top_k`: under `jit`, a batch on several devices exchanges its candidates
      at every frame. Within `jax.shard_map` every device searches for itself.

    Example:
      Most likely frame by frame are two blanks. But "1" has three paths:

      >>> from jaxctc import greedy_decode
      >>> log_probs = jnp.log(jnp.array([[0.6, 0.4], [0.6, 0.4]]))
      >>> greedy_decode(log_probs, None).labels.tolist()
      [-1, -1]
      >>> best = prefix_beam_search(log_probs, None, num_hypotheses=2)
      >>> best.labels.tolist(), [f"{p:.2f}" for p in jnp.exp(best.scores)]
      ([[1, -1], [-1, -1]], ['0.64', '0.36'])

    References:
      Hannun et al. 2014, "First-pass large vocabulary continuous speech recognition using
      bi-directional recurrent DNNs", algorithm 1; Graves 2012, "Supervised sequence labelling
      with recurrent neural networks", section 7.5.
    """
    function = "prefix_beam_search"
    checks.flags(function, times=times)
    scores = checks.class_scores(function, "logits", logits)
    longest = scores.shape[-2] if max_length is None else max_length
    width = checks.count(function, "beam_width", beam_width, least=1)
    number = checks.count(function, "num_hypotheses", num_hypotheses, least=1)
    fusion = fusion_of(function, language_model, lm_weight, length_bonus, hot_words, lexicon)
    options = blank_id, logits_normalized, top_k, min_log_prob, blank_threshold, beam_threshold
    pruning = pruning_of(function, scores, fusion, width, longest, *options)
    is_frame = _frames_in_use(function, scores, logit_paddings)
    search = _compiled_search if _is_argument(fusion) else _search
    best = search(width, number, scores, is_frame, fusion, pruning)
    if not times:
        return best

    def align(labels):
        found = forced_align(
            logits,
            logit_paddings,
            labels,
            labels < 0,
            blank_id=blank_id,
            logits_normalized=logits_normalized,
        )
        return found.starts, found.ends, found.confidences

    starts, ends, sure = jax.vmap(align, in_axes=-2, out_axes=-2)(best.labels)
    return best._replace(starts=starts, ends=ends, confidences=sure)


def beam_init(
    max_length: int,
    *,
    batch: Sequence[int] = (),
    beam_width: int = 16,
    language_model: Any = None,
    hot_words: LanguageModel | None = None,
    lexicon: Lexicon | None = None,
    dtype: DTypeLike = jnp.float32,
) -> BeamState:
    """A beam that has seen no frame, for `beam_step`.

    Args:
      max_length: static; L, the longest label sequence to consider.
      batch: static; `*B`, the axes of a batch.
      beam_width: static; how many prefixes to keep, W.
      language_model, hot_words, lexicon: as of `prefix_beam_search`, and the same at every step.
      dtype: what to compute in, whatever the logits are: float32, or float64.

    Returns:
      `BeamState` with the empty prefix in its first slot.

    Raises:
      ValueError: if a count is less than 1 (0 for `max_length`), `batch` is no tuple, or the
        model is none.

    Example:
      >>> state = beam_init(5, beam_width=2)
      >>> for chunk in (jnp.eye(3)[jnp.array([1, 1])], jnp.eye(3)[jnp.array([0, 2])]):
      ...     state = beam_step(state, 9.0 * chunk, None)
      >>> beam_finish(state).labels.tolist()
      [[1, 2, -1, -1, -1]]
    """
    if not isinstance(batch, Sequence):
        checks.fail("beam_init", "batch", "be a tuple of sizes", batch, f"One axis is ({batch},).")
    fusion = fusion_of("beam_init", language_model, 1.0, 0.0, hot_words, lexicon)
    return _first_state("beam_init", tuple(batch), beam_width, max_length, fusion, dtype)


def beam_step(
    state: BeamState,
    logits: Float[ArrayLike, "*B T K"],
    logit_paddings: Shaped[ArrayLike, "*B T"] | None,
    *,
    blank_id: int = 0,
    logits_normalized: bool = False,
    top_k: int | None = None,
    min_log_prob: Float[ArrayLike, ""] = -jnp.inf,
    blank_threshold: Float[ArrayLike, ""] | None = None,
    beam_threshold: Float[ArrayLike, ""] | None = None,
    language_model: Any = None,
    lm_weight: Float[ArrayLike, ""] = 1.0,
    length_bonus: Float[ArrayLike, ""] = 0.0,
    hot_words: LanguageModel | None = None,
    lexicon: Lexicon | None = None,
) -> BeamState:
    """Takes the next frames into the beam, any number of them at a time.

    Args:
      state: of `beam_init` or the last `beam_step`; it is not changed.
      logits, logit_paddings: the next frames, as of `prefix_beam_search`.
      blank_id, logits_normalized, top_k: as there.
      min_log_prob, blank_threshold, beam_threshold: as there.
      language_model, lm_weight, length_bonus, hot_words, lexicon: as there.

    Returns:
      The next `BeamState`. After the last frame it is the one that `prefix_beam_search` ends
      with, bit by bit, however the frames were cut into chunks.

    Raises:
      ValueError: as `prefix_beam_search`, or if batch or models are not those of `state`.

    Example:
      See `beam_init`.

      >>> state = beam_step(beam_init(3, beam_width=2), jnp.array([[0.0, 3.0]]), None)
      >>> state.labels.tolist()
      [[1, -1, -1], [-1, -1, -1]]
    """
    scores = checks.class_scores("beam_step", "logits", logits)
    if scores.shape[:-2] != state.is_nan.shape:
        requirement = f"have shape [*B, T, K] with *B = {state.is_nan.shape}, as in state"
        checks.fail("beam_step", "logits", requirement, scores.shape)
    fusion = fusion_of("beam_step", language_model, lm_weight, length_bonus, hot_words, lexicon)
    _check_models("beam_step", state, fusion)
    options = blank_id, logits_normalized, top_k, min_log_prob, blank_threshold, beam_threshold
    width, longest = state.labels.shape[-2:]
    pruning = pruning_of("beam_step", scores, fusion, width, longest, *options)
    checks.not_explicit("beam_step", state=state.labels)
    is_frame = _frames_in_use("beam_step", scores, logit_paddings)
    return _advance(state, scores, is_frame, fusion, pruning)


def beam_finish(
    state: BeamState,
    *,
    num_hypotheses: int = 1,
    language_model: Any = None,
    lm_weight: Float[ArrayLike, ""] = 1.0,
    hot_words: LanguageModel | None = None,
    lexicon: Lexicon | None = None,
) -> Hypotheses:
    """The best label sequences in the beam, if the utterance ends here.

    Args:
      state: of the last `beam_step`; it may go on from there.
      num_hypotheses: static; how many to return, at most W.
      language_model, lm_weight, hot_words, lexicon: as of the steps; what they say to the end.
        A lexicon forbids to end within a word: to see one that is not over yet, pass
        `lexicon._replace(unfinished_score=jnp.zeros(()))`.

    Returns:
      `Hypotheses` as of `prefix_beam_search`, without times.

    Raises:
      ValueError: if `num_hypotheses` exceeds the width of the beam, or the models are not those
        of `state`.

    Example:
      See `beam_init`.

      >>> float(beam_finish(beam_init(3)).scores[0])
      0.0
    """
    fusion = fusion_of("beam_finish", language_model, lm_weight, 0.0, hot_words, lexicon)
    return _best("beam_finish", state, fusion, num_hypotheses)


def _check_models(function: str, state: BeamState, fusion: Fusion) -> None:
    ours, theirs = map(jax.tree.structure, (fusion.initial_state, state.prefixes.model_states))
    if ours != theirs:
        requirement = "come from calls with the same language_model, hot_words and lexicon"
        got = f"model states {theirs}, where those of this call are {ours}"
        checks.fail(function, "state", requirement, got)


def _first_state(
    function: str,
    batch: tuple[int, ...],
    width: Any,
    longest: Any,
    fusion: Fusion,
    dtype: DTypeLike,
) -> BeamState:
    width = checks.count(function, "beam_width", width, least=1)
    longest = checks.count(function, "max_length", longest)
    dtype = precision_of(dtype)
    nothing = jnp.full((*batch, width), -jnp.inf, dtype)
    none = jnp.zeros((*batch, width), jnp.int32)
    keys = jnp.zeros((*batch, width, 2), jnp.uint32)
    prefixes = Prefixes(
        last=none - 1,
        lengths=none,
        blank=nothing.at[..., 0].set(0),
        label=nothing,
        offset=(jnp.zeros(batch, dtype), jnp.zeros(batch, dtype)),
        keys=keys,
        parent_keys=keys,
        model_scores=jnp.zeros_like(nothing),
        model_states=jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (*batch, width, *jnp.shape(leaf))),
            fusion.initial_state,
        ),
    )
    labels = jnp.full((*batch, width, longest), -1, jnp.int32)
    return BeamState(labels, prefixes, jnp.zeros(batch, bool), jnp.zeros(batch, bool))


def _frames_in_use(
    function: str, scores: Float[Array, "*B T K"], logit_paddings: ArrayLike | None
) -> Bool[Array, "*B T"]:
    padded = checks.paddings(function, "logit_paddings", logit_paddings, scores.shape[:-1])
    checks.not_explicit(function, logits=scores, logit_paddings=padded)
    return ~padded


def _is_argument(fusion: Fusion) -> bool:
    """Not so models that are no pytrees of arrays: they can be called, but not be arguments."""
    return all(isinstance(leaf, Array | np.ndarray) for leaf in jax.tree.leaves(fusion))


def _search(
    width: int,
    number: int,
    scores: Float[Array, "*B T K"],
    is_frame: Bool[Array, "*B T"],
    fusion: Fusion,
    pruning: Pruning,
) -> Hypotheses:
    """All of it, from the empty beam to the best hypotheses."""
    function, longest = "prefix_beam_search", pruning.max_length
    state = _first_state(function, scores.shape[:-2], width, longest, fusion, scores.dtype)
    return _best(function, _advance(state, scores, is_frame, fusion, pruning), fusion, number)


# One program for an eager call, and no impossible prefix on the way for `jax_debug_infs` to see.
_compiled_search = jax.jit(_search, static_argnums=(0, 1))


def _advance(
    state: BeamState,
    scores: Float[Array, "*B T K"],
    is_frame: Bool[Array, "*B T"],
    fusion: Fusion,
    pruning: Pruning,
) -> BeamState:
    """Goes over the frames, all examples on one axis."""
    *batch, frames, classes = scores.shape
    examples, depth = math.prod(batch), len(batch)
    flat = jax.tree.map(lambda leaf: leaf.reshape(examples, *leaf.shape[depth:]), state)
    scores = lax.stop_gradient(scores).reshape(examples, frames, classes)
    chunk = _compiled_chunk if _is_argument(fusion) else _chunk
    flat = chunk(flat, scores, is_frame.reshape(examples, frames), fusion, pruning)
    return jax.tree.map(lambda leaf: leaf.reshape(*batch, *leaf.shape[1:]), flat)


def _chunk(
    state: BeamState,
    scores: Float[Array, "X T K"],
    is_frame: Bool[Array, "X T"],
    fusion: Fusion,
    pruning: Pruning,
) -> BeamState:
    """Scans the frames of a chunk, then appends the labels that they have added."""
    if scores.shape[1] == 0:
        return state
    width, log_sums = jnp.asarray(state.labels.shape[-2], jnp.int32), None
    if not pruning.logits_normalized:
        log_sums = normalizer(scores.astype(state.prefixes.blank.dtype), pruning.blank)
        log_sums = tuple(where(is_frame, part, 0) for part in log_sums)

    def one(prefixes, log_probs, used, choose=cond_as_select):
        return next_prefixes(prefixes, log_probs, used, fusion, pruning, choose)

    def alone(*batched):
        # Without vmap, the branch that a frame does not take is not computed.
        single = one(*jax.tree.map(lambda leaf: leaf[0], batched), choose=lax.cond)
        return jax.tree.map(lambda leaf: leaf[None], single)

    # Within `jax.shard_map`, somebody may map over this: see `cond_as_select`.
    is_alone = scores.shape[0] == 1 and not is_varying(scores)
    advance = alone if is_alone else jax.vmap(one)

    def step(prefixes, at):
        frame, used = take_one(scores, at, 1), take_one(is_frame, at, 1)
        log_probs = mask_padding(frame, used).astype(prefixes.blank.dtype)
        if log_sums is not None:
            largest, log_sum = (take_one(part, at, 1)[:, None] for part in log_sums)
            log_probs = (log_probs - largest) - log_sum
        prefixes, (parents, tokens) = advance(prefixes, log_probs, used)
        origins = (tokens + 1) * width + parents  # one array is one write a frame
        if pruning.beam_threshold is None:
            return prefixes, (origins, None)
        last = jnp.maximum(prefixes.blank[:, -1], prefixes.label[:, -1])
        return prefixes, (origins, last > -jnp.inf)

    places = jnp.arange(scores.shape[1], dtype=jnp.int32)
    first = varying_like(state.prefixes, scores, is_frame)
    prefixes, (origins, is_full) = lax.scan(step, first, places)
    bad = jnp.any(~(largest_or_nan(scores) < jnp.inf) & is_frame, axis=-1)
    labels = read_back(state.labels, state.prefixes.lengths, origins)
    full = state.is_full if is_full is None else state.is_full | jnp.any(is_full, axis=0)
    return BeamState(labels, prefixes, state.is_nan | bad, full)


_compiled_chunk = jax.jit(_chunk)


def beam_scores(
    state: BeamState,
    *,
    language_model: Any = None,
    lm_weight: Float[ArrayLike, ""] = 1.0,
    hot_words: LanguageModel | None = None,
    lexicon: Lexicon | None = None,
) -> tuple[Float[Array, "*B W"], Float[Array, "*B W"]]:
    """Log p(labels | logits) of each prefix in the beam, in nats, and its score if it ends here.

    Arguments are those of `beam_finish`; the order is that of `state.labels`.
    """
    fusion = fusion_of("beam_scores", language_model, lm_weight, 0.0, hot_words, lexicon)
    _check_models("beam_scores", state, fusion)
    offset = jnp.expand_dims(functools.reduce(jnp.add, state.prefixes.offset), -1)
    acoustic = jnp.logaddexp(state.prefixes.blank, state.prefixes.label) + offset
    bad = state.is_nan[..., None]
    return where(~bad, acoustic, jnp.nan), where(~bad, _ranks(state, fusion) + offset, jnp.nan)


def _ranks(state: BeamState, fusion: Fusion) -> Float[Array, "*B W"]:
    """Scores of the prefixes if they end here, less `offset`."""
    prefixes = state.prefixes
    ranks = jnp.logaddexp(prefixes.blank, prefixes.label) + prefixes.model_scores
    if not fusion.models:
        return ranks
    final = functools.reduce(lambda f, _: jax.vmap(f), ranks.shape, fusion.final_score)
    return ranks + final(prefixes.model_states).astype(ranks.dtype)


def _best(function: str, state: BeamState, fusion: Fusion, num_hypotheses: Any) -> Hypotheses:
    """The best prefixes, final scores of the models included."""
    _check_models(function, state, fusion)
    width = state.labels.shape[-2]
    number = checks.count(function, "num_hypotheses", num_hypotheses, least=1)
    if number > width:
        checks.fail(function, "num_hypotheses", f"be at most the beam width {width}", number)
    hypotheses = _compiled_hypotheses if _is_argument(fusion) else _hypotheses
    return hypotheses(number, state, fusion)


def _hypotheses(number: int, state: BeamState, fusion: Fusion) -> Hypotheses:
    ranks, order = lax.top_k(_ranks(state, fusion), number)
    prefixes = state.prefixes
    offset = jnp.expand_dims(functools.reduce(jnp.add, prefixes.offset), -1)
    scores = where(~state.is_nan[..., None], ranks + offset, jnp.nan)
    is_there = scores > -jnp.inf
    labels = jnp.take_along_axis(state.labels, order[..., None], axis=-2)
    lengths = jnp.take_along_axis(prefixes.lengths, order, axis=-1)
    return Hypotheses(
        labels=where(is_there[..., None], labels, -1),
        lengths=where(is_there, lengths, 0),
        scores=scores,
        starts=None,
        ends=None,
        confidences=None,
    )


_compiled_hypotheses = jax.jit(_hypotheses, static_argnums=0)
