"""One frame of a prefix beam search, for one example.

A prefix is a label sequence so far; its probability is that of all paths that collapse to it,
kept in two parts, for those that end in a blank and those that end in its last label. Each frame
extends every prefix by every candidate token and keeps the W best of what results.

A new prefix may be in the beam already, by another way: it is, if some prefix has this one's
last token and a parent like this one's. Parents are compared by hashes of 64 bits, and by
length. Equal prefixes have equal hashes, so no hypothesis ever comes twice; two different ones
are taken for one with a probability of 2⁻⁶⁴ a comparison, and never if they differ in one token.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, UInt32

from jaxctc._core.normalizer import safe_max
from jaxctc._core.sharding import varying_like
from jaxctc.decoding.fusion import Fusion


class Prefixes(NamedTuple):
    """The W prefixes in the beam, the best first; all a frame needs to know of them."""

    last: Int[Array, "*B W"]
    """Last label, -1 without any."""
    lengths: Int[Array, "*B W"]
    """Labels so far."""
    blank: Float[Array, "*B W"]
    """Log-probability, less `offset`, of the paths that end in a blank; -inf in unused slots."""
    label: Float[Array, "*B W"]
    """Log-probability, less `offset`, of the paths that end in the last label."""
    offset: tuple[Float[Array, "*B"], Float[Array, "*B"]]
    """Log-probability of the best prefix, as a sum of a number and its rounding error."""
    keys: UInt32[Array, "*B W 2"]
    """Hash of the labels."""
    parent_keys: UInt32[Array, "*B W 2"]
    """Hash of the labels without the last."""
    model_scores: Float[Array, "*B W"]
    """What language model, hot words, lexicon and length bonus have added."""
    model_states: Any
    """The states of the language models, `[*B, W, …]` in every leaf."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["min_log_prob", "blank_threshold", "beam_threshold"],
    meta_fields=["blank", "logits_normalized", "candidates", "max_length"],
)
@dataclasses.dataclass(frozen=True)
class Pruning:
    """Which tokens a frame may add, and to what."""

    blank: int
    logits_normalized: bool
    candidates: int
    max_length: int
    min_log_prob: Float[Array, ""]
    blank_threshold: Float[Array, ""] | None
    beam_threshold: Float[Array, ""] | None


def next_prefixes(
    prefixes: Prefixes,
    log_probs: Float[Array, "K"],
    used: Bool[Array, ""],
    fusion: Fusion,
    pruning: Pruning,
    choose: Callable[..., Any] = lax.cond,
) -> tuple[Prefixes, tuple[Int[Array, "W"], Int[Array, "W"]]]:
    """The beam after one frame of one example.

    A frame that may add tokens extends the prefixes; any other only lengthens their paths by a
    blank. `choose(is_so, one, other)` computes one of the two, or both and selects.

    Returns:
      The new prefixes and, for each, the slot of the prefix that it came from and the token that
      was added, -1 for none.
    """
    adds = used
    if pruning.blank_threshold is not None:
        certainty = jnp.exp(log_probs[pruning.blank])
        adds &= certainty <= pruning.blank_threshold

    def stay():
        blank = jnp.logaddexp(prefixes.blank, prefixes.label) + log_probs[pruning.blank]
        label = jnp.full_like(blank, -jnp.inf)
        kept = _centred(prefixes._replace(blank=blank, label=label))
        kept = jax.tree.map(lambda new, old: jnp.where(used, new, old), kept, prefixes)
        slots = varying_like(jnp.arange(blank.shape[0], dtype=jnp.int32), kept.last)
        return kept, (slots, jnp.full_like(slots, -1))

    def go_on():
        return extended(prefixes, log_probs, fusion, pruning)

    return choose(adds, go_on, stay)


def cond_as_select(is_so: Bool[Array, ""], one: Callable[[], Any], other: Callable[[], Any]) -> Any:
    """Computes both branches and selects, as `vmap` makes of `lax.cond`.

    Written out, because `jax.shard_map` does not accept what `vmap` makes of it.
    """
    return jax.tree.map(lambda yes, no: jnp.where(is_so, yes, no), one(), other())


def extended(
    prefixes: Prefixes, log_probs: Float[Array, "K"], fusion: Fusion, pruning: Pruning
) -> tuple[Prefixes, tuple[Int[Array, "W"], Int[Array, "W"]]]:
    """The best of all prefixes as they are and of all that a candidate extends.

    Returns:
      As `next_prefixes`.
    """
    total = jnp.logaddexp(prefixes.blank, prefixes.label)
    is_child = _is_child(prefixes, total)

    # As they are: after a blank, after the last label again, or as a child of one in the beam.
    blank = total + log_probs[pruning.blank]
    through = where(is_child, _extendable_mass(prefixes, total, prefixes.last), -jnp.inf)
    again = log_probs.at[prefixes.last].get(mode="clip")
    again = where(prefixes.last >= 0, again, -jnp.inf)
    label = again + jnp.logaddexp(prefixes.label, jnp.max(through, axis=0))

    # Extended by a candidate: W · C sequences, less those that are in the beam already.
    tokens, added = _candidates(log_probs, pruning)
    new = _extendable_mass(prefixes, total, tokens) + added[None]
    is_there = _in_beam(is_child, prefixes.last, tokens)
    is_full = prefixes.lengths >= pruning.max_length
    new = where(~is_there & ~is_full[:, None], new, -jnp.inf)
    worth = prefixes.model_scores[:, None] + _model_scores(prefixes, tokens, fusion).astype(
        new.dtype
    )

    ranks = jnp.logaddexp(blank, label) + prefixes.model_scores
    best, chosen = lax.top_k(jnp.concatenate([ranks, (new + worth).ravel()]), ranks.shape[0])
    as_they_are = prefixes._replace(blank=blank, label=label)
    kept, choice = _chosen(prefixes, total, as_they_are, (tokens, added), chosen, fusion)
    alive = best > -jnp.inf
    if pruning.beam_threshold is not None:
        # Not best[0]: XLA sorts all places on a CPU, if it needs fewer values than slots.
        alive &= best >= jnp.max(best) - pruning.beam_threshold
    kept = kept._replace(
        blank=where(alive, kept.blank, -jnp.inf), label=where(alive, kept.label, -jnp.inf)
    )
    return _centred(kept), choice


def appended(
    prefixes: Prefixes,
    labels: Int[Array, "R"],
    last: Int[Array, ""],
    log_prob: Float[Array, ""],
    fusion: Fusion,
    blank: int,
) -> Prefixes:
    """The beam after frames that leave no choice: all prefixes grow by the same labels.

    Args:
      prefixes: the beam before them.
      labels: the labels, -1 after the last.
      last: the token of the last of these frames; -1 for no frames, which change nothing.
      log_prob: log-probability of the frames.
      fusion: what the labels are worth.
      blank: class id of the blank.
    """
    total = jnp.logaddexp(prefixes.blank, prefixes.label)
    in_blank, in_label = (
        jnp.where(is_so, total, -jnp.inf) for is_so in (last == blank, last != blank)
    )
    grown = prefixes._replace(
        blank=jnp.where(last >= 0, in_blank, prefixes.blank),
        label=jnp.where(last >= 0, in_label, prefixes.label),
        offset=_plus(prefixes.offset, log_prob),
    )
    for label in labels:
        token = jnp.broadcast_to(label, grown.last.shape)
        worth, states = jax.vmap(fusion.score_and_advance)(grown.model_states, token)
        after = grown._replace(
            last=token,
            lengths=grown.lengths + 1,
            keys=_extend_keys(grown.keys, token),
            parent_keys=grown.keys,
            model_scores=grown.model_scores + worth.astype(grown.model_scores.dtype),
            model_states=states,
        )
        grown = jax.tree.map(functools.partial(jnp.where, label >= 0), after, grown)
    return grown


def _candidates(
    log_probs: Float[Array, "K"], pruning: Pruning
) -> tuple[Int[Array, "C"], Float[Array, "C"]]:
    """The tokens that this frame may add, and their log-probabilities."""
    classes = log_probs.shape[0]
    tokens = jnp.arange(classes, dtype=jnp.int32)
    added = where(tokens != pruning.blank, log_probs, -jnp.inf)
    if pruning.candidates < classes - 1:
        added, tokens = lax.top_k(added, max(1, pruning.candidates))
    is_likely = added >= pruning.min_log_prob
    return tokens, where(is_likely, added, -jnp.inf)


def _is_child(prefixes: Prefixes, total: Float[Array, "W"]) -> Bool[Array, "W W"]:
    """Whether the second prefix is the first with one label more; both in use."""
    same = jnp.all(prefixes.keys[:, None] == prefixes.parent_keys[None], axis=-1)
    longer = prefixes.lengths[:, None] + 1 == prefixes.lengths[None]
    in_beam = total > -jnp.inf
    return same & longer & in_beam[:, None] & in_beam[None]


def _in_beam(
    is_child: Bool[Array, "W W"], last: Int[Array, "W"], tokens: Int[Array, "C"]
) -> Bool[Array, "W C"]:
    """Whether the beam holds the prefix that a token makes of each one.

    For wide beams a CPU writes W places much faster than it compares W · W · C.
    """
    is_last = last[:, None] == tokens[None]

    def written():
        is_one = jnp.any(is_child, axis=0) & jnp.any(is_last, axis=1)
        parents, column = (
            lax.argmax(part, axis, jnp.int32) for part, axis in ((is_child, 0), (is_last, 1))
        )
        nowhere = jnp.full_like(column, tokens.shape[0])
        nothing = varying_like(jnp.zeros(is_last.shape, bool), is_last)
        return nothing.at[parents, jnp.where(is_one, column, nowhere)].set(True, mode="drop")

    def compared():
        return jnp.any(is_child[..., None] & is_last[None], axis=1)

    return lax.platform_dependent(cpu=written, default=compared)


def _extendable_mass(
    prefixes: Prefixes, total: Float[Array, "W"], tokens: Int[Array, "C"]
) -> Float[Array, "W C"]:
    """Log-probability of the paths that a token can extend: after itself, only those in a blank."""
    repeats = prefixes.last[:, None] == tokens[None]
    return jnp.where(repeats, prefixes.blank[:, None], total[:, None])


def _model_scores(
    prefixes: Prefixes, tokens: Int[Array, "C"], fusion: Fusion
) -> Float[Array, "W C"] | Float[Array, "1 1"]:
    """The models' scores of each token after each prefix, in nats."""
    if not fusion.models:
        return fusion.length_bonus[None, None]

    def score(states, token):
        return fusion.score_and_advance(states, token)[0]

    by_prefix = jax.vmap(jax.vmap(score, in_axes=(None, 0)), in_axes=(0, None))
    return by_prefix(prefixes.model_states, tokens)


def _chosen(
    before: Prefixes,
    total: Float[Array, "W"],
    as_they_are: Prefixes,
    candidates: tuple[Int[Array, "C"], Float[Array, "C"]],
    chosen: Int[Array, "W"],
    fusion: Fusion,
) -> tuple[Prefixes, tuple[Int[Array, "W"], Int[Array, "W"]]]:
    """The prefixes that were chosen: of the W as they are, then the W · C new ones.

    Returns:
      The new prefixes and, for each, the slot of the prefix that it came from and the token that
      was added, -1 for none.
    """
    width, size = chosen.shape[0], jnp.asarray(candidates[0].shape[0], jnp.int32)
    is_new = chosen >= width
    place = jnp.maximum(chosen - width, 0)
    parent = jnp.where(is_new, lax.div(place, size), chosen)
    (token,), (added,) = (take([part], lax.rem(place, size)) for part in candidates)

    integers = [before.last, before.lengths, *_halves(before.keys), *_halves(before.parent_keys)]
    numbers = [before.blank, total, as_they_are.blank, as_they_are.label, before.model_scores]
    last, lengths, *keys = take(integers, parent)
    keys, parent_keys = _joined(keys[:2]), _joined(keys[2:])
    blank, total, blank_now, label_now, model_scores = take(numbers, parent)
    states = jax.tree.map(lambda leaf: leaf[parent], before.model_states)
    worth, states_after = jax.vmap(fusion.score_and_advance)(states, token)

    def select(after: Array, before: Array) -> Array:
        return jnp.where(jnp.expand_dims(is_new, range(1, after.ndim)), after, before)

    added += jnp.where(last == token, blank, total)
    kept = Prefixes(
        last=select(token, last),
        lengths=select(lengths + 1, lengths),
        blank=where(~is_new, blank_now, -jnp.inf),
        label=select(added, label_now),
        offset=before.offset,
        keys=select(_extend_keys(keys, token), keys),
        parent_keys=select(keys, parent_keys),
        model_scores=select(model_scores + worth.astype(model_scores.dtype), model_scores),
        model_states=jax.tree.map(select, states_after, states),
    )
    return kept, (parent, where(is_new, token, -1))


def _halves(keys: UInt32[Array, "W 2"]) -> Int[Array, "2 W"]:
    return lax.bitcast_convert_type(keys, jnp.int32).T


def _joined(halves: Sequence[Array]) -> UInt32[Array, "W 2"]:
    return lax.bitcast_convert_type(jnp.stack(halves, axis=-1), jnp.uint32)


def _extend_keys(keys: UInt32[Array, "W 2"], tokens: Int[Array, "W"]) -> UInt32[Array, "W 2"]:
    """One round of MurmurHash3 in either half, each with odd factors of its own.

    A round is one-to-one in the hash and one-to-one in the token.
    """
    mixed = tokens.astype(jnp.uint32)[:, None] * np.array([[0xCC9E2D51, 0x85EBCA6B]], np.uint32)
    mixed = _rotated(mixed, 15) * np.array([[0x1B873593, 0xC2B2AE35]], np.uint32)
    keys = _rotated(keys ^ mixed, 13)
    return keys * np.uint32(5) + np.array([[0xE6546B64, 0x9E3779B1]], np.uint32)


def _rotated(bits: UInt32[Array, "W 2"], by: int) -> UInt32[Array, "W 2"]:
    return (bits << np.uint32(by)) | (bits >> np.uint32(32 - by))


def _centred(prefixes: Prefixes) -> Prefixes:
    """Brings the best prefix to 0, where float32 is precise; `offset` counts what is subtracted."""
    total = jnp.logaddexp(prefixes.blank, prefixes.label)
    best = safe_max(jnp.max(total))
    return prefixes._replace(
        blank=prefixes.blank - best,
        label=prefixes.label - best,
        offset=_plus(prefixes.offset, best),
    )


def _plus(
    offset: tuple[Float[Array, ""], Float[Array, ""]], more: Float[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Adds to a number what rounding then takes to its rounding error (Knuth's two-sum)."""
    before, lost = offset
    after = before + more
    part = after - before
    return after, lost + ((before - (after - part)) + (more - part))


def where(is_so: Bool[ArrayLike, "..."], values: Array, otherwise: int | float) -> Array:
    """`jnp.where` with a number that has the dtype of the values, under x64 also."""
    return jnp.where(is_so, values, jnp.asarray(otherwise, values.dtype))


def take(columns: Sequence[Array], slots: Int[Array, "W"]) -> list[Array]:
    """`column[slots]` of all columns of one dtype and length.

    A TPU or a GPU takes all of them in one operation, as sums of which one term is not 0; there,
    every gather is an operation of its own. A CPU gathers rows.
    """

    def rows(columns: Sequence[Array], slots: Array) -> list[Array]:
        if len(columns) == 1:
            return [columns[0].at[slots].get(mode="clip")]
        return list(jnp.stack(columns, axis=-1)[slots].T)

    def sums(columns: Sequence[Array], slots: Array) -> list[Array]:
        is_here = slots[:, None] == jnp.arange(columns[0].shape[0], dtype=slots.dtype)[None]
        return [
            jnp.sum(where(is_here, column[None], 0), axis=-1, dtype=column.dtype)
            for column in columns
        ]

    return lax.platform_dependent(columns, slots, cpu=rows, default=sums)
