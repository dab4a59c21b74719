"""Which frames belong to which label: the best alignment of known labels."""

import functools
import warnings
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Shaped

from jaxctc._core import checks
from jaxctc._core.derivatives import nan_where, with_log_derivative
from jaxctc._core.emissions import (
    Config,
    Inputs,
    Lattice,
    build_lattice,
    in_given_order,
    mask_scores,
    packed_bias,
    prepare_inputs,
)
from jaxctc._core.explicit_axes import over_explicit_axes
from jaxctc._core.frames import MAX_RESIDENT_BYTES
from jaxctc._core.lean import broadcast, select
from jaxctc._core.normalizer import at_least_float32, normalizer, sum_over_frames
from jaxctc._core.occupancies import solve
from jaxctc._core.paths import Paths, best_path, frame_classes, frame_ids, occupancies_along
from jaxctc._core.problem import expected_size
from jaxctc._core.semirings import WIDE, Semiring

_BAND = (
    "forced_align: band goes in version 0.3, because it saves a quarter of the time at best. "
    "Leave it out; checkpoint_every bounds the memory."
)


class Alignment(NamedTuple):
    """The best path through known labels; -1 wherever there is no frame or no label."""

    frame_labels: Int[Array, "*B T"]
    """The class of each frame, blanks included."""
    starts: Int[Array, "*B N"]
    """First frame of each label."""
    ends: Int[Array, "*B N"]
    """Last frame of each label, itself included."""
    confidences: Float[Array, "*B N"]
    """In [0, 1]: the largest posterior probability of the label in a frame of its own."""
    score: Float[Array, "*B"]
    """Log-probability of the path, in nats."""


class AlignmentOfChoices(NamedTuple):
    """The best path where each label is one of several classes (`label_log_weights`)."""

    frame_labels: Int[Array, "*B T"]
    """As of `Alignment`, and so for the next three."""
    starts: Int[Array, "*B N"]
    """First frames."""
    ends: Int[Array, "*B N"]
    """Last frames."""
    confidences: Float[Array, "*B N"]
    """In [0, 1], each of the alternative that was taken."""
    score: Float[Array, "*B"]
    """Log-probability of the path, in nats, with the weights of the alternatives that it takes."""
    alternatives: Int[Array, "*B N"]
    """Which alternative of each label the path takes, from 0 on; -1 where there is no label."""


@over_explicit_axes
def forced_align(
    logits: Float[ArrayLike, "*B T K"],
    logit_paddings: Shaped[ArrayLike, "*B T"] | None,
    labels: Int[ArrayLike, "*B N"] | Int[ArrayLike, "*B N A"],
    label_paddings: Shaped[ArrayLike, "*B N"] | None,
    *,
    blank_id: int = 0,
    logits_normalized: bool = False,
    label_loop: bool = True,
    label_priors: Float[ArrayLike, "... K"] | None = None,
    prior_scale: Float[ArrayLike, ""] = 1.0,
    wildcard_id: int | None = None,
    wildcard_penalty: Float[ArrayLike, ""] = 0.0,
    label_log_weights: Float[ArrayLike, "*B N A"] | None = None,
    label_bias: Float[ArrayLike, "*B T N"] | None = None,
    checkpoint_every: int | None = None,
    band: int | None = None,
) -> Alignment:
    """The most likely path that spells `labels` (Viterbi), and where each label lies on it.

    Of equally likely paths one is returned: going back from the end, a path stays in its state
    while that is as good as any other way. Memory is 3 / 8 byte per frame and label, or grows
    with √T · N (see `checkpoint_every`): hours of audio fit. Confidences take 4 bytes per frame and
    label while that is less than 64 MB, and else √T · N again.

    Args:
      logits, logit_paddings, labels, label_paddings: as of `jaxctc.ctc_loss`.
      blank_id, logits_normalized, label_loop, label_priors, prior_scale: as there.
      wildcard_id: as there. On the best path, a frame in a wildcard's gap is absorbed where that
        costs less than the blank. The wildcard's frames run from the first such one to the last;
        blanks between them belong to it, and cost no penalty.
      wildcard_penalty, label_bias: as there. The score of the path counts its biases.
      label_log_weights: as there. The best path takes one alternative of each label, whose weight
        the score includes, and whose frames the confidence is about. Not with `band`; memory for
        confidences is always that of a number per frame and alternative.
      checkpoint_every: static number of frames. Back-pointers are kept for so many frames at a
        time, and the states at these distances; all pointers are then computed twice. None keeps
        all pointers while they take less than 64 MB, and else those of 2 √T frames. The path is
        the same.
      band: deprecated, goes in version 0.3: a band a tenth as wide as the labels saves a quarter
        of the time, for there are as many steps as frames in any case. Static number of labels.
        At each frame only so many labels on either side of the diagonal (from the first label in
        the first frame to the last in the last) can be passed, and a step must begin among those
        of the frame it leads to. None lets paths pass anywhere.

    Returns:
      `Alignment`, with labels in the places where they were given; with `label_log_weights`,
      `AlignmentOfChoices`. Spans are ordered and
      disjoint, and `frame_labels` spells the labels (`jaxctc.collapse`, with the same
      `label_loop`); a wildcard that absorbs nothing has no frames. The confidence of a label is
      the largest value that `jaxctc.posteriors` (of all alignments, in the band or not) has for
      it in a frame that is its own on the path. Confidences are differentiable, and the score
      is, as that of its path. Where the labels cannot be aligned all is -1 and the score -inf;
      where the loss is NaN all is -1 and the score NaN.

    Raises:
      ValueError: as `jaxctc.ctc_loss`; if `checkpoint_every` is not positive or `band` is
        negative.

    Example:
      >>> path = jnp.array([0, 2, 2, 0, 1])
      >>> best = forced_align(9.0 * jax.nn.one_hot(path, 3), None, jnp.array([2, 1]), None)
      >>> best.frame_labels.tolist(), best.starts.tolist(), best.ends.tolist()
      ([0, 2, 2, 0, 1], [1, 4], [2, 4])

    References:
      Kürzinger et al. 2020, "CTC-segmentation of large corpora for German end-to-end speech
      recognition", section 2; Hirschberg 1975 and Grice, Hughey and Speck 1997, "Reduced space
      sequence alignment", for the checkpoints.
    """
    config, inputs = prepare_inputs(
        "forced_align",
        logits,
        logit_paddings,
        labels,
        label_paddings,
        blank_id=blank_id,
        logits_normalized=logits_normalized,
        label_loop=label_loop,
        label_priors=label_priors,
        prior_scale=prior_scale,
        wildcard_id=wildcard_id,
        wildcard_penalty=wildcard_penalty,
        label_log_weights=label_log_weights,
        label_bias=label_bias,
    )
    if checkpoint_every is not None:
        checkpoint_every = checks.count("forced_align", "checkpoint_every", checkpoint_every, 1)
    if band is not None:
        warnings.warn(_BAND, DeprecationWarning, stacklevel=3)  # 2 is over_explicit_axes
        band = checks.count("forced_align", "band", band)
        if label_log_weights is not None:
            checks.none_with("forced_align", "label_log_weights", band=band)
    return _aligned(config, checkpoint_every, band, inputs)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _aligned(
    config: Config, checkpoint_every: int | None, band: int | None, inputs: Inputs
) -> Alignment:
    lattice = build_lattice(jax.tree.map(lax.stop_gradient, inputs), config)
    paths, found = best_path(
        lattice.problem,
        label_loop=config.label_loop,
        checkpoint_every=checkpoint_every,
        band=band,
    )
    places = _places(lattice, paths)
    starts, ends = _spans(places, 2 * lattice.labels.shape[-1] + 1)
    shown = frame_ids(lattice, config, _with_whole_stretches(paths, starts, ends), found)
    sure = _largest(_occupancies_along(config, inputs, places), places, starts)

    counts = (found & ~lattice.has_nan)[..., None]
    starts, ends, sure = (
        jnp.where(
            counts,
            in_given_order(lattice, part[..., None, :], -1)[..., 0, :],
            jnp.full_like(part[..., :1], -1),
        )
        for part in (starts, ends, sure)
    )
    score = _score(inputs, config, lattice, paths, found)
    best = Alignment(shown[..., 0, : config.num_frames], starts, ends, sure, score)
    weights = inputs.scores.label_log_weights
    if weights is None:
        return best
    # Checkers of types are told what nearly all callers get, who unpack it.
    return cast(Alignment, _of_labels(best, weights))


def _of_labels(best: Alignment, log_weights: Float[Array, "*B N A"]) -> AlignmentOfChoices:
    """The alignment of a row of alternatives as that of the labels, of which each took one."""
    starts, ends, sure = (
        part.reshape(log_weights.shape) for part in (best.starts, best.ends, best.confidences)
    )
    is_taken = starts >= 0
    which = jnp.argmax(is_taken, axis=-1).astype(jnp.int32)
    which = jnp.where(jnp.any(is_taken, axis=-1), which, jnp.full_like(which, -1))
    paid = jnp.sum(jnp.where(is_taken, log_weights, jnp.zeros_like(log_weights)), axis=(-2, -1))
    starts, ends, sure = (jnp.max(part, axis=-1) for part in (starts, ends, sure))
    return AlignmentOfChoices(best.frame_labels, starts, ends, sure, best.score + paid, which)


def _places(lattice: Lattice, paths: Paths) -> Int[Array, "*B T"]:
    """Where the label or wildcard of each frame stands (`in_given_order`); 2 N + 1 for none."""
    labels = lattice.labels.shape[-1]
    states, absorbed = (part[..., 0, :] for part in paths)
    nowhere = jnp.full_like(states, 2 * labels + 1)
    places = jnp.where(states & 1 == 1, states >> 1, nowhere)
    places = jnp.where(absorbed, (states >> 1) + labels, places)
    return jnp.where(lattice.problem.is_frame, places, nowhere)


def _spans(places: Int[Array, "*B T"], count: int) -> tuple[Int[Array, "*B P"], Int[Array, "*B P"]]:
    """First and last frame at each place; -1 for a place that no frame is at."""

    @functools.partial(jnp.vectorize, signature="(t)->(p),(p)")
    def one(places: Array) -> tuple[Array, Array]:
        frames = jnp.arange(places.shape[0], dtype=jnp.int32)
        far = jnp.full_like(places, places.shape[0], shape=(count,))
        first = far.at[places].min(frames, mode="drop")
        last = jnp.full_like(far, -1).at[places].max(frames, mode="drop")
        return jnp.where(last < 0, last, first), last

    return one(places)


def _with_whole_stretches(
    paths: Paths, starts: Int[Array, "*B P"], ends: Int[Array, "*B P"]
) -> Paths:
    """The paths with all frames between those that a wildcard absorbs absorbed, too."""

    @functools.partial(jnp.vectorize, signature="(p),(p),(s,t)->(s,t)")
    def is_between(starts: Array, ends: Array, gaps: Array) -> Array:
        frames = lax.broadcasted_iota(jnp.int32, gaps.shape, 1)
        places = gaps + starts.shape[0] // 2
        first, last = (part.at[places].get(mode="clip") for part in (starts, ends))
        return (first <= frames) & (frames <= last)

    in_gap = paths.states & 1 == 0
    return paths._replace(absorbed=in_gap & is_between(starts, ends, paths.states >> 1))


@with_log_derivative
def _occupancies_along(
    config: Config, inputs: Inputs, semiring: Semiring, places: Int[Array, "*B T"]
) -> Float[Array, "*B T"]:
    """Picked from a table of all while that is small, which is what a kernel makes fastest.

    With alternatives there is no other way.
    """
    lattice = build_lattice(inputs, config)
    is_small = 4 * expected_size(places) * lattice.labels.shape[-1] <= MAX_RESIDENT_BYTES
    if lattice.problem.alternatives is None and not (semiring is WIDE and is_small):
        return occupancies_along(lattice, semiring, places, label_loop=config.label_loop)
    _, found = solve(lattice.problem, config, differentiable=semiring is not WIDE)
    of_place = found.label
    if found.wildcard is not None:
        of_place = jnp.concatenate([of_place, found.wildcard], axis=-1)
    return _picked(of_place, places)


def _picked(values: Float[Array, "*B T P"], places: Int[Array, "*B T"]) -> Float[Array, "*B T"]:
    """The value at a place of its own in every frame; 0 for no place."""
    column = lax.broadcasted_iota(jnp.int32, values.shape, values.ndim - 1)
    is_here = column == broadcast(places[..., None], values.shape)
    return jnp.sum(select(is_here, values, 0), axis=-1)


def _largest(
    along: Float[Array, "*B T"], places: Int[Array, "*B T"], starts: Int[Array, "*B P"]
) -> Float[Array, "*B P"]:
    """Largest occupancy at each place, -1 where there is none. At most 1, whatever the rounding."""

    @functools.partial(jnp.vectorize, signature="(t),(t),(p)->(p)")
    def one(along: Array, places: Array, starts: Array) -> Array:
        return jnp.full_like(along, -1, shape=starts.shape).at[places].max(along, mode="drop")

    return one(jnp.minimum(along, jnp.ones_like(along)), places, starts)


def _score(
    inputs: Inputs, config: Config, lattice: Lattice, paths: Paths, found: Bool[Array, "*B"]
) -> Float[Array, "*B"]:
    """Log-probability of the path, summed anew: its gradient is that of the path's own scores."""
    masked = mask_scores(inputs.scores, inputs.is_frame)
    classes = jnp.moveaxis(frame_classes(lattice, config, paths), -2, -1)
    scores = jnp.take_along_axis(masked.logits, classes, axis=-1, mode="clip")[..., 0]
    scores = at_least_float32(scores)
    log_sum = jnp.zeros_like(scores)
    if not config.logits_normalized:
        largest, log_sum = normalizer(masked.logits, config.blank)
        scores -= largest
    if masked.wildcard is not None:
        wildcard = masked.wildcard
        if config.logits_normalized:
            wildcard += lattice.problem.frame_max
        scores = jnp.where(paths.absorbed[..., 0, :], wildcard, scores)
    if masked.label_bias is not None:
        bias = packed_bias(masked.label_bias, lattice.is_own)
        scores += _picked(bias, _places(lattice, paths))
    scores = jnp.where(inputs.is_frame, scores - log_sum, jnp.zeros_like(scores))
    score = sum_over_frames(scores)
    score = jnp.where(found, score, jnp.full_like(score, -jnp.inf))
    return score * nan_where(lattice.has_nan, score)
