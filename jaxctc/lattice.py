"""The CTC graph as arrays: what each frame pays for each state, and which steps exist.

For N labels the graph has N + 1 blank states around N label states,

    blank 0 → label 0 → blank 1 → label 1 → … → label N-1 → blank N,

every state may be repeated, and a blank may be skipped between two labels that differ (without
label loops, a label may not be repeated, and any blank may be skipped). Blanks
and labels are kept in two arrays: all blanks of a frame cost the same, and all that a step
needs is the labels shifted by one place.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Shaped

from jaxctc import _checks
from jaxctc.gathers import read_frames
from jaxctc.padding import (
    is_emittable,
    is_repeat,
    lengths_to_paddings,
    pack_left,
    paddings_to_lengths,
    scatter_in_order,
)
from jaxctc.scores import Reading, finite_scale, normaliser, widen
from jaxctc.sharding import local_ids, number_of_classes, sum_over, varying_like


class Wildcards(NamedTuple):
    """Where a lattice has wildcards, and what a frame pays for being absorbed by one."""

    scores: Float[Array, "T *B"]
    in_gap: Bool[Array, "*B N+1"]
    """True for the blank of a gap between labels in which a wildcard stands."""


class Lattice(NamedTuple):
    """One CTC graph per example, labels packed to the left.

    The log-probability of a class in a frame is `(score - scale) + offset`. Scores keep what they
    came with, however large; the scale takes that off, and the offset, which is common to all
    paths, is added up beside the recursion.

    A wildcard is no state of its own. It stands in the gap between two labels, where the blank's
    state is, and lets that state emit its own class as well, at every frame: a gap may be empty
    or not, so the wildcard may absorb nothing, and no step has to know of it.
    """

    scores: Float[Array, "*B T K"]
    """As given. Frames are read at their labels when their turn comes (`frame_scores`): a table for
    all of them would be N / K times as large, and takes longer to make. Where the classes lie on
    several devices, there is one nevertheless, `[*B, T, N + 1]`, the same on all of them."""
    columns: Int[Array, "*B N"]
    """Where in the scores each label stands; some column for what is no label."""
    blank_scores: Float[Array, "T *B"]
    scales: Float[Array, "T *B"]
    """No score of a blank or a label in the frame is larger."""
    offsets: Float[Array, "T *B"]
    """0 in padded frames."""
    labels: Int[Array, "*B N"]
    is_label: Bool[Array, "*B N"]
    """False behind the last label, and for ids that are no label."""
    label_loop: bool
    """Static: whether a label may take more frames than one."""
    can_skip: Bool[Array, "*B N"]
    """True where a label may follow the one before it without a blank."""
    is_frame: Bool[Array, "T *B"]
    label_count: Int[Array, "*B"]
    is_broken: Bool[Array, "*B"]
    """True where NaN or +inf stands among the scores of the frames in use."""
    wildcards: Wildcards | None
    places: Int[Array, "*B N"]
    """For each label as given, its place among the packed ones; for the wildcard of gap g, N + g;
    2 N + 1 for padding, and for all wildcards of a gap but the first."""


def build_lattice(inputs: _checks.CtcInputs, reading: Reading) -> Lattice:
    """The graphs of a batch.

    Padding is taken off what is left of K classes, not off the logits, which spares a pass over
    them. That is right for values; for JAX to differentiate through here, NaN in padded frames
    has to be gone before (`in_use`), for a select does not stop it in a derivative.
    """
    is_wildcard = jnp.zeros_like(inputs.is_label)
    if reading.wildcard is not None:
        is_wildcard = inputs.is_label & (inputs.labels == reading.wildcard)
    is_own = inputs.is_label & ~is_wildcard
    labels = pack_left(inputs.labels, is_own)
    scores, columns, blank = _table(inputs.logits, labels, reading)
    count = varying_like(paddings_to_lengths(~is_own), scores, inputs.is_frame, labels)
    classes = number_of_classes(inputs.logits, reading.vocab_axis)
    is_label = is_emittable(labels, classes, reading.blank)
    is_label &= ~lengths_to_paddings(count, labels.shape[-1])

    blank_scores = widen(scores[..., blank])
    wildcards = None
    if reading.wildcard is not None:
        absorbed = widen(inputs.logits[..., reading.wildcard])
        wildcards = Wildcards(jnp.moveaxis(absorbed, -1, 0), _gaps(is_wildcard, is_own))
    if reading.logits_normalized:
        largest = jnp.maximum(blank_scores, _largest(scores, columns, is_label))
        if reading.wildcard is not None:
            largest = jnp.maximum(largest, widen(inputs.logits[..., reading.wildcard]))
        scales = offsets = finite_scale(largest)  # NaN and +inf pass into it
    else:
        # NaN if any class is NaN or +inf
        scales, log_sum = normaliser(inputs.logits, reading.blank, reading.vocab_axis)
        offsets = -log_sum
    return Lattice(
        scores=scores,
        columns=columns,
        blank_scores=jnp.moveaxis(blank_scores, -1, 0),
        scales=jnp.moveaxis(scales, -1, 0),
        offsets=jnp.moveaxis(jnp.where(inputs.is_frame, offsets, jnp.zeros_like(offsets)), -1, 0),
        labels=labels,
        is_label=is_label,
        label_loop=reading.label_loop,
        # Without loops, two frames of a class are two labels.
        can_skip=~is_repeat(labels, count) | (not reading.label_loop),
        is_frame=jnp.moveaxis(inputs.is_frame, -1, 0),
        label_count=count,
        is_broken=jnp.any(~(offsets < jnp.inf) & inputs.is_frame, axis=-1),
        wildcards=wildcards,
        places=_places(is_own, is_wildcard),
    )


def frame_scores(lattice: Lattice, first: Int[Array, "*D"], frames: int) -> Float[Array, "... F N"]:
    """The scores of the labels in some frames from the first one on, -inf for what is no label.

    Where a lattice and its mirror image lie side by side (`jaxctc.steps`), each has its own frames.
    """
    columns, single = lattice.columns, first.ndim == 0
    if single:
        first, columns = first[None], columns[None]

    columns = jnp.moveaxis(columns, 0, -2)
    scores = jnp.moveaxis(read_frames(lattice.scores, first, columns, frames), -3, 0)
    # XLA:CPU would not vectorise what it computes along with a gather.
    scores = widen(lax.optimization_barrier(scores[0] if single else scores))
    return jnp.where(lattice.is_label[..., None, :], scores, jnp.full_like(scores, -jnp.inf))


def as_given(
    lattice: Lattice, values: Shaped[Array, "*B R P"], nothing: int | float
) -> Shaped[Array, "*B R N"]:
    """What belongs to places, in the order in which the labels were given."""
    width = values.shape[-1]
    last = jnp.full_like(values, nothing, shape=(*values.shape[:-1], 1))
    places = jnp.minimum(lattice.places, jnp.asarray(width, jnp.int32))
    return _columns(jnp.concatenate([values, last], axis=-1), places)


def _table(
    logits: Float[Array, "*B T K"], labels: Int[Array, "*B N"], reading: Reading
) -> tuple[Float[Array, "*B T M"], Int[Array, "*B N"], int]:
    """Scores, and in which of their columns the labels and the blank stand.

    They are the logits themselves or, if no device has all of those, blank and labels alone, each
    from the one device that has it.
    """
    classes, axis = logits.shape[-1], reading.vocab_axis
    if axis is None:
        last_class = jnp.asarray(classes - 1, jnp.int32)
        return logits, jnp.clip(labels, jnp.zeros_like(last_class), last_class), reading.blank
    blank = jnp.full_like(labels, reading.blank, shape=(*labels.shape[:-1], 1))
    ids = local_ids(jnp.concatenate([blank, labels], axis=-1), classes, axis)
    here = _columns(logits, ids)
    here = jnp.where((ids < classes)[..., None, :], here, jnp.zeros_like(here))
    columns = jnp.broadcast_to(jnp.arange(1, ids.shape[-1], dtype=jnp.int32), labels.shape)
    return sum_over(axis, here), columns, 0


def _largest(
    logits: Float[Array, "*B T K"], labels: Int[Array, "*B N"], is_label: Bool[Array, "*B N"]
) -> Float[Array, "*B T"]:
    """Largest score of a label, by way of the shorter of two tables."""
    classes = logits.shape[-1]
    if classes <= labels.shape[-1]:
        counts, scores = _is_spelt(labels, is_label, classes), logits
    else:
        counts, scores = is_label, _columns(logits, labels)
    scores = jnp.where(counts[..., None, :], scores, jnp.full_like(scores, -jnp.inf))
    return widen(jnp.max(scores, axis=-1, initial=-jnp.inf))


def _is_spelt(labels: Array, is_label: Array, classes: int) -> Bool[Array, "*B K"]:
    @functools.partial(jnp.vectorize, signature="(n),(n)->(k)")
    def one(labels, is_label):
        return jnp.zeros_like(is_label, shape=(classes,)).at[labels].max(is_label, mode="drop")

    return one(labels, is_label)


def _gaps(is_wildcard: Bool[Array, "*B N"], is_own: Bool[Array, "*B N"]) -> Bool[Array, "*B N+1"]:
    """Gap g lies behind g labels."""

    @functools.partial(jnp.vectorize, signature="(n),(n)->(m)")
    def one(is_wildcard, gap):
        gaps = jnp.zeros_like(is_wildcard, shape=(gap.shape[0] + 1,))
        return gaps.at[gap].max(is_wildcard, mode="drop")

    return one(is_wildcard, jnp.cumsum(is_own, axis=-1, dtype=jnp.int32))


def _places(is_own: Bool[Array, "*B N"], is_wildcard: Bool[Array, "*B N"]) -> Int[Array, "*B N"]:
    labels = is_own.shape[-1]
    before = jnp.cumsum(is_own, axis=-1, dtype=jnp.int32)
    wildcards = jnp.cumsum(is_wildcard, axis=-1, dtype=jnp.int32) - is_wildcard.astype(jnp.int32)
    at_the_last_label = lax.cummax(
        jnp.where(is_own, wildcards, jnp.zeros_like(wildcards)), wildcards.ndim - 1
    )
    is_first = is_wildcard & (wildcards == at_the_last_label)
    nowhere = jnp.full_like(before, 2 * labels + 1)
    return jnp.where(is_own, before - 1, jnp.where(is_first, labels + before, nowhere))


# Values of labels become values of classes by a product with a matrix of zeros and ones, in full
# precision, and not by a scatter, whose order of adding is not the same on every run of every
# device.


def sum_by_class(
    values: Float[Array, "*B T N"], labels: Int[Array, "*B N"], classes: int
) -> Float[Array, "*B T K"]:
    """Adds up what belongs to labels of the same class. For no more classes than labels."""
    columns = jnp.expand_dims(jnp.arange(classes, dtype=jnp.int32), range(labels.ndim))
    return _product(values, labels[..., None] == columns)


def spread_over_classes(
    values: Float[Array, "*B T N"], labels: Int[Array, "*B N"], classes: int
) -> Float[Array, "*B T K"]:
    """The same for more classes than labels.

    Labels of one class are merged, in the place of the first one, and classes look up their place.
    Those without a label find a column of zeros; it comes out of the product because XLA:CPU
    vectorises nothing that it computes along with a concatenation.
    """
    none = jnp.full_like(labels, -1, shape=(*labels.shape[:-1], 1, 1))
    columns = jnp.concatenate([labels[..., None, :], none], axis=-1)
    is_same = (labels[..., None] == columns) & (labels[..., None] >= 0)
    return _look_up(_product(values, is_same), labels, classes)


def _product(values: Array, matrix: Bool[Array, "*B N M"]) -> Array:
    return jnp.matmul(values, matrix.astype(values.dtype), precision=lax.Precision.HIGHEST)


@functools.partial(jnp.vectorize, signature="(t,m),(n)->(t,k)", excluded={2})
def _look_up(merged, labels, classes):
    nowhere = labels.shape[0]
    place = jnp.full(classes, nowhere, jnp.int32)
    place = place.at[labels].min(jnp.arange(nowhere, dtype=jnp.int32), mode="drop")
    return merged.at[:, place].get(mode="promise_in_bounds")


@functools.partial(jnp.vectorize, signature="(t,k),(n)->(t,n)")
def _columns(scores, ids):
    return jnp.take(scores, ids, axis=1, mode="clip")


class Runs(NamedTuple):
    """The labels that a path of frame labels spells, and where each stands; -1 behind the last."""

    labels: Int[Array, "*B T"]
    lengths: Int[Array, "*B"]
    starts: Int[Array, "*B T"]
    ends: Int[Array, "*B T"]
    owner: Int[Array, "*B T"]
    """For each frame in use, packed to the left, its place in `labels`; T for none."""


def find_runs(
    path: Int[Array, "*B T"], is_frame: Bool[Array, "*B T"], blank: int, label_loop: bool
) -> Runs:
    """Merges equal neighbours, if they may, then drops blanks; padded frames part nothing."""
    frame = jnp.broadcast_to(jnp.arange(path.shape[-1], dtype=jnp.int32), path.shape)
    order = pack_left(frame, is_frame)
    packed = pack_left(path, is_frame, fill=blank)
    edge = jnp.full_like(packed[..., :1], blank)
    before = jnp.concatenate([edge, packed[..., :-1]], axis=-1)
    after = jnp.concatenate([packed[..., 1:], edge], axis=-1)
    is_start = is_end = packed != blank
    if label_loop:
        is_start, is_end = is_start & (packed != before), is_end & (packed != after)
    place = jnp.cumsum(is_start, axis=-1, dtype=jnp.int32) - 1

    nowhere = path.shape[-1]
    owner = jnp.where(packed == blank, jnp.full_like(place, nowhere), place)
    return Runs(
        labels=scatter_in_order(packed, is_start, place, -1),
        lengths=jnp.sum(is_start, axis=-1, dtype=jnp.int32),
        starts=scatter_in_order(order, is_start, place, -1),
        ends=scatter_in_order(order, is_end, place, -1),
        owner=owner,
    )


def collapse(
    frame_labels: Int[ArrayLike, "*B T"],
    logit_paddings: Shaped[ArrayLike, "*B T"] | None = None,
    *,
    blank_id: int = 0,
    label_loop: bool = True,
) -> tuple[Int[Array, "*B T"], Int[Array, "*B"]]:
    """The labels that a path spells: equal neighbours merged, then blanks dropped.

    This is the map ℬ of the paper.

    Args:
      frame_labels: one class id per frame, blanks included; a negative id counts as padding.
      logit_paddings: nonzero where the frame is padded; None pads nothing.
      blank_id: static class id of the blank, from 0 on: here none counts from the last class.
      label_loop: static; False only drops blanks, as every frame is a label of its own.

    Returns:
      `(labels, lengths)`: labels packed to the left, -1 behind them, and how many there are.

    Raises:
      ValueError: if `frame_labels` are not integers, the shapes differ, or `blank_id` is not
        a static id, from 0 on.

    Example:
      >>> labels, length = collapse(jnp.array([3, 3, 0, 3, 1, 0]))
      >>> labels.tolist(), int(length)
      ([3, 3, 1, -1, -1, -1], 3)

    References:
      Graves et al. 2006, "Connectionist temporal classification", section 3.1.
    """
    path = _checks.class_ids("collapse", "frame_labels", frame_labels)
    padded = _checks.paddings("collapse", "logit_paddings", logit_paddings, path.shape)
    remedy = "How many classes there are is not known here, so none can be counted from the last."
    blank = _checks.some_id("collapse", "blank_id", blank_id, least=0, remedy=remedy)
    _checks.flags("collapse", label_loop=label_loop)
    _checks.not_explicit("collapse", frame_labels=path, logit_paddings=padded)
    runs = find_runs(path, ~padded & (path >= 0), blank, label_loop)
    return runs.labels, runs.lengths
