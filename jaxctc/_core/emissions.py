"""From the arguments of a public function to the problem that the recursion solves.

Log-probabilities, label priors and wildcards are ways to arrive at scores. What comes after them
(the recursion and its derivatives) knows scores only, so JAX differentiates through
`prepare_inputs` by itself.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Shaped

from jaxctc._core import checks
from jaxctc._core.classes import classes_innermost, read_columns
from jaxctc._core.kernels import PUBLIC_NAMES, refusal
from jaxctc._core.lean import broadcast, select
from jaxctc._core.normalizer import (
    at_least_float32,
    largest_or_nan,
    mask_padding,
    normalizer,
    safe_max,
)
from jaxctc._core.problem import Alternatives, Bias, Problem, Wildcards
from jaxctc._core.ragged import count_along, is_beyond, is_emittable, is_repeat, pack_left
from jaxctc._core.semirings import LOG
from jaxctc._core.sharding import local_ids, number_of_classes, sum_over, varying_like


class Config(NamedTuple):
    """The static part of a call."""

    blank: int
    logits_normalized: bool
    label_loop: bool = True
    wildcard: int | None = None
    """The id that stands for a wildcard among the labels; None without wildcards."""
    vocab_axis: str | None = None
    """The axis of the mesh that the classes are sharded over; None for all of them in one place."""
    implementation: str | None = None
    """Which of `kernels.IMPLEMENTATIONS` computes the loss; None leaves the choice to them."""
    num_frames: int = -1
    """As given; 0 where one padded frame stands for none."""


class Scores(NamedTuple):
    """What is differentiated."""

    logits: Float[Array, "*B T K"]
    """Log-probabilities, of any sum, if the config says `logits_normalized`."""
    wildcard: Float[Array, "*B T"] | None
    """What a frame in which a wildcard absorbs everything but the blank scores more than the
    largest class; None without wildcards."""
    label_bias: Float[Array, "*B T N"] | None = None
    """What is added for a label in a frame; 0 where either is padded. None adds nothing."""
    label_log_weights: Float[Array, "*B N A"] | None = None
    """Finite; None where every label is one class."""


class Inputs(NamedTuple):
    """The arrays of a call, checked."""

    scores: Scores
    is_frame: Bool[Array, "*B T"]
    labels: Int[Array, "*B N"]
    """As given, wildcards among them. With A alternatives each, all in one row, `[*B, N·A]`, and -1
    for those that do not exist."""
    is_label: Bool[Array, "*B N"]
    """False for padding."""


class Lattice(NamedTuple):
    """A problem, and what belongs to it beside the recursion."""

    problem: Problem
    labels: Int[Array, "*B N"]
    """Class ids, packed to the left, without padding and wildcards; alternatives in one row."""
    log_normalizer: Float[Array, "*B T"]
    """Nats by which every path scores too much in the frame, so that log p(class) is
    (score - frame_max) - log_normalizer. 0 in padded frames."""
    has_nan: Bool[Array, "*B"]
    """True where NaN or +inf stands among the scores of the frames in use."""
    is_own: Bool[Array, "*B N"]
    """Of the labels as given: neither padding nor wildcard."""
    is_wildcard: Bool[Array, "*B N"] | None
    """Likewise; None without wildcards."""

    @property
    def log_excess(self) -> Float[Array, "*B T"]:
        """Nats by which weights are too large in the frame; 0 in padded frames."""
        bias = self.problem.bias
        if bias is None:
            return self.log_normalizer
        return self.log_normalizer + select(self.problem.is_frame, bias.blank, 0)


def prepare_inputs(
    function: str,
    logits: Float[ArrayLike, "*B T K"],
    logit_paddings: Shaped[ArrayLike, "*B T"] | None,
    labels: Int[ArrayLike, "*B N"],
    label_paddings: Shaped[ArrayLike, "*B N"] | None,
    *,
    blank_id: int,
    logits_normalized: bool,
    label_loop: bool = True,
    label_priors: Float[ArrayLike, "... K"] | None = None,
    prior_scale: Float[ArrayLike, ""] = 1.0,
    wildcard_id: int | None = None,
    wildcard_penalty: Float[ArrayLike, ""] = 0.0,
    label_log_weights: Float[ArrayLike, "*B N A"] | None = None,
    label_bias: Float[ArrayLike, "*B T N"] | None = None,
    vocab_axis_name: str | None = None,
    implementation: str | None = None,
) -> tuple[Config, Inputs]:
    """The arguments of a public function, checked; see `jaxctc.ctc_loss` for what they mean."""
    if label_log_weights is not None:
        single = {"wildcard_id": wildcard_id, "vocab_axis_name": vocab_axis_name}
        if label_bias is not None:
            checks.fail(function, "label_bias", "be None with label_log_weights", "both")
        checks.none_with(function, "label_log_weights", **single)
        choices = checks.alternatives(function, logits, labels, label_paddings, label_log_weights)
        labels, label_paddings, label_log_weights = _in_one_row(choices)
    given = checks.ctc_inputs(function, logits, logit_paddings, labels, label_paddings)
    refuse_symbolic_sizes(function, given)
    num_frames, given = given.logits.shape[-2], pad_empty_time_axis(given)
    axis = checks.vocab_axis(function, vocab_axis_name, given.logits)
    blank = checks.class_id(function, "blank_id", blank_id, number_of_classes(given.logits, axis))
    checks.flags(function, logits_normalized=logits_normalized, label_loop=label_loop)
    checks.implementation(function, implementation, PUBLIC_NAMES)
    config = Config(
        blank,
        logits_normalized,
        label_loop,
        vocab_axis=axis,
        implementation=implementation,
        num_frames=num_frames,
    )
    if wildcard_id is not None:
        if axis is not None:
            remedy = "A wildcard takes what all classes have together: they must lie in one place."
            checks.fail(
                function, "wildcard_id", "be None with vocab_axis_name", wildcard_id, remedy
            )
        config = config._replace(wildcard=checks.wildcard(function, wildcard_id, blank))
    scores, is_frame = given.logits, given.is_frame
    if label_priors is not None:
        scores = _log_probs(mask_padding(scores, is_frame), config)
        config = config._replace(logits_normalized=True)
        priors = checks.per_class(function, "label_priors", label_priors, scores.shape)
        scale = checks.number(function, "prior_scale", prior_scale)
        scores -= _scaled(priors.astype(scores.dtype), scale.astype(scores.dtype))
    wildcard = None
    if config.wildcard is not None:
        penalty = checks.number(function, "wildcard_penalty", wildcard_penalty)
        wildcard = _score_of_all_but(blank, mask_padding(scores, is_frame))
        wildcard -= penalty.astype(wildcard.dtype)
    bias = None
    if label_bias is not None:
        if wildcard is not None:
            remedy = "A wildcard has no state of its own that a bias could count for."
            checks.fail(function, "label_bias", "be None with wildcard_id", "both", remedy)
        bias = _label_bias(function, label_bias, given, num_frames)
    weights = None
    if label_log_weights is not None:
        weights = jnp.asarray(label_log_weights, at_least_float32(scores).dtype)
    differentiated = Scores(scores, wildcard, bias, weights)
    inputs = Inputs(differentiated, is_frame, given.labels, given.is_label)
    refuse_unsupported(function, config, inputs)
    return config, inputs


def _in_one_row(
    choices: checks.Choices,
) -> tuple[Int[Array, "*B L"], Bool[Array, "*B L"], Float[Array, "*B N A"]]:
    """Alternatives as labels and their paddings, and weights that are 0 where there is none.

    A label is padded if nothing is given for it. One whose alternatives all have no weight is not,
    and then there is no alignment.
    """
    labels, weights = choices.labels, choices.log_weights
    is_label = choices.is_label & jnp.any(labels != -1, axis=-1)
    exists = is_label[..., None] & (labels != -1) & (weights != -jnp.inf)
    row = (*labels.shape[:-2], labels.shape[-2] * labels.shape[-1])
    return (
        select(exists, labels, -1).reshape(row),
        broadcast(~is_label[..., None], labels.shape).reshape(row),
        select(exists, weights, 0),
    )


def _label_bias(
    function: str, values: ArrayLike, given: checks.CtcInputs, num_frames: int
) -> Float[Array, "*B T N"]:
    """The bias in the dtype of the recursion, 0 for padding whatever stood there."""
    shape = (*given.labels.shape[:-1], num_frames, given.labels.shape[-1])
    bias = checks.per_frame_and_label(function, "label_bias", values, shape)
    bias = bias.astype(at_least_float32(given.logits).dtype)
    counts = given.is_frame[..., None] & given.is_label[..., None, :]
    if num_frames == 0:
        bias = lax.full_like(bias, 0, shape=counts.shape)
    return select(counts, bias, 0)


def refuse_unsupported(function: str, config: Config, inputs: Inputs) -> None:
    """Raises where the implementation that was asked for cannot solve the problem."""
    if config.implementation != "pallas":
        return
    if not all(isinstance(size, int) for size in inputs.labels.shape):
        reason = "Kernels are made for a batch of known size."
        checks.implementation_can(function, config.implementation, reason)
    problem = jax.eval_shape(lambda inputs: build_lattice(inputs, config).problem, inputs)
    reason = refusal(problem, label_loop=config.label_loop)
    checks.implementation_can(function, config.implementation, reason)


def refuse_symbolic_sizes(
    function: str, given: checks.CtcInputs, scores_name: str = "logits"
) -> None:
    """Only a batch may be of any size in `jax.export`: schedules are made for the other sizes."""
    sizes = {scores_name: given.logits.shape[-2:], "labels": given.labels.shape[-1:]}
    for argument, shape in sizes.items():
        if not all(isinstance(size, int) for size in shape):
            whole = given.logits.shape if argument == scores_name else given.labels.shape
            requirement = "be of known size, but for batch axes"
            remedy = "Export one program for each size: see pad_to_bucket."
            checks.fail(function, argument, requirement, whole, remedy)


def pad_empty_time_axis(given: checks.CtcInputs) -> checks.CtcInputs:
    """One padded frame for an input without frames: scans have to index something."""
    if given.logits.shape[-2] > 0:
        return given
    *batch, _, classes = given.logits.shape
    return given._replace(
        logits=jnp.zeros_like(given.logits, shape=(*batch, 1, classes)),
        is_frame=jnp.zeros_like(given.is_frame, shape=(*batch, 1)),
    )


def mask_scores(scores: Scores, is_frame: Bool[Array, "*B T"]) -> Scores:
    """The scores, or their tangents, 0 in padded frames whatever stood there."""
    wildcard = scores.wildcard
    if wildcard is not None:
        wildcard = select(is_frame, wildcard, 0)
    return scores._replace(logits=mask_padding(scores.logits, is_frame), wildcard=wildcard)


def build_lattice(inputs: Inputs, config: Config) -> Lattice:
    """The graphs of a batch, and what their states score.

    Padding is taken off what is left of K classes, not off the logits, which spares a pass over
    them. That is right for values. For JAX to differentiate through here, NaN in padded frames
    has to be gone before (`mask_scores`), because a select does not stop it in a derivative.
    """
    logits, is_frame = inputs.scores.logits, inputs.is_frame
    is_wildcard, is_own = None, inputs.is_label
    if config.wildcard is not None:
        is_wildcard = inputs.is_label & (inputs.labels == config.wildcard)
        is_own = inputs.is_label & ~is_wildcard
    labels = pack_left(inputs.labels, is_own)
    scores, columns, blank = _scores_in_one_place(logits, labels, config)
    count = varying_like(jnp.sum(is_own, axis=-1, dtype=jnp.int32), scores, is_frame, labels)
    classes = number_of_classes(logits, config.vocab_axis)
    in_use = ~is_beyond(count, labels.shape[-1])

    is_label = in_use & is_emittable(labels, classes, config.blank)
    blank_scores = at_least_float32(scores[..., blank])
    if not config.logits_normalized:
        # NaN if any class is NaN or +inf
        frame_max, log_normalizer = normalizer(logits, config.blank, config.vocab_axis)
        is_sound = log_normalizer > -jnp.inf
    else:
        read = scores
        if config.wildcard is None:
            read = _scores_of_labels(scores, columns, is_label)
        largest = largest_or_nan(read)
        frame_max = safe_max(jnp.maximum(blank_scores, largest))
        log_normalizer = -frame_max
        is_sound = (blank_scores < jnp.inf) & (largest < jnp.inf)
    wildcards = None
    if inputs.scores.wildcard is not None and is_wildcard is not None:
        wildcards = Wildcards(inputs.scores.wildcard, _gaps(is_wildcard, is_own))
    has_nan = jnp.any(~is_sound & is_frame, axis=-1)
    bias = None
    if inputs.scores.label_bias is not None:
        bias = _bias_up_to_0(inputs.scores.label_bias, is_own)
        has_nan |= jnp.any(~(inputs.scores.label_bias < jnp.inf), axis=(-2, -1))
    problem = Problem(
        scores=scores,
        columns=columns,
        frame_max=frame_max,
        blank_scores=blank_scores,
        wildcards=wildcards,
        bias=bias,
        is_label=is_label,
        # Without loops, two frames of a class are two labels.
        can_skip=~is_repeat(labels, in_use) if config.label_loop else jnp.ones_like(in_use),
        is_frame=is_frame,
        label_count=count,
    )
    lattice = Lattice(
        problem=problem,
        labels=labels,
        log_normalizer=select(is_frame, log_normalizer, 0),
        has_nan=has_nan,
        is_own=is_own,
        is_wildcard=is_wildcard,
    )
    if inputs.scores.label_log_weights is None:
        return lattice
    return _with_alternatives(lattice, inputs.scores.label_log_weights, config)


def _with_alternatives(lattice: Lattice, given: Float[Array, "*B N A"], config: Config) -> Lattice:
    """The graph of a row of alternatives: their weights, and which of them follow each other."""
    problem = lattice.problem
    weights = pack_left(given.reshape(lattice.is_own.shape), lattice.is_own).reshape(given.shape)
    ids, is_some = (part.reshape(given.shape) for part in (lattice.labels, problem.is_label))
    largest = safe_max(jnp.max(select(is_some, weights, -jnp.inf), axis=-1))
    differ = ids[..., 1:, :, None] != ids[..., :-1, None, :]
    if not config.label_loop:
        differ = jnp.ones_like(differ)  # two frames of a class are two labels
    number = given.shape[-1]
    first = jnp.zeros_like(is_some[..., :1, :, None], shape=(*ids.shape[:-2], 1, number, number))
    alternatives = Alternatives(
        log_weights=select(is_some, weights - largest[..., None], -jnp.inf),
        can_skip=jnp.concatenate([first, differ], axis=-3)[..., : ids.shape[-2], :, :],
        log_scale=jnp.sum(largest, axis=-1),
    )
    return lattice._replace(
        problem=problem._replace(
            alternatives=alternatives, label_count=problem.label_count // number
        ),
        has_nan=lattice.has_nan | jnp.any(~(given < jnp.inf), axis=(-2, -1)),
    )


def in_given_order(
    lattice: Lattice, values: Shaped[Array, "*B R P"], fill: int | float
) -> Shaped[Array, "*B R N"]:
    """Values of packed labels (and, after them, of gaps) where the labels were given.

    `fill` where there is none: for padding, and for wildcards if there are no values of gaps.
    """
    width = values.shape[-1]
    last = jnp.full_like(values, fill, shape=(*values.shape[:-1], 1))
    index = jnp.minimum(_packed_index(lattice), width)
    return read_columns(jnp.concatenate([values, last], axis=-1), index)


def _scores_in_one_place(
    logits: Float[Array, "*B T K"], labels: Int[Array, "*B N"], config: Config
) -> tuple[Float[Array, "*B T M"], Int[Array, "*B N"], int]:
    """Scores, and the columns in which the labels and the blank stand.

    They are the logits themselves or, if classes are sharded, blank and labels alone, each from
    the one device that has it.
    """
    classes, axis = logits.shape[-1], config.vocab_axis
    if axis is None:
        return logits, jnp.minimum(jnp.maximum(labels, 0), classes - 1), config.blank
    blank = jnp.full_like(labels, config.blank, shape=(*labels.shape[:-1], 1))
    ids = local_ids(jnp.concatenate([blank, labels], axis=-1), classes, axis)
    here = read_columns(logits, ids)
    here = select((ids < classes)[..., None, :], here, 0)
    columns = jnp.broadcast_to(jnp.arange(1, ids.shape[-1], dtype=jnp.int32), labels.shape)
    return sum_over(axis, here), columns, 0


def packed_bias(
    bias: Float[Array, "*B T N"], is_own: Bool[Array, "*B N"]
) -> Float[Array, "*B T N"]:
    """That of labels packed to the left; anything after the last one."""
    places = lax.broadcasted_iota(jnp.int32, is_own.shape, is_own.ndim - 1)
    return read_columns(bias, pack_left(places, is_own))


def _bias_up_to_0(bias: Float[Array, "*B T N"], is_own: Bool[Array, "*B N"]) -> Bias:
    """All states of a frame brought down by its largest bias, if that is positive.

    So no state emits more than 1, and sums of exponents do not overflow.
    """
    largest = lax.stop_gradient(jnp.max(bias, axis=-1, initial=0))
    return Bias(packed_bias(bias, is_own) - largest[..., None], -largest)


def _scores_of_labels(
    scores: Float[Array, "*B T M"], columns: Int[Array, "*B N"], is_label: Bool[Array, "*B N"]
) -> Float[Array, "*B T _"]:
    """The scores that labels read, -inf for others: the shorter of two tables."""
    classes = scores.shape[-1]
    if classes <= columns.shape[-1]:
        counts = _is_spelt(columns, is_label, classes)
    else:
        counts, scores = is_label, read_columns(scores, columns)
    return select(counts[..., None, :], scores, -jnp.inf)


def _is_spelt(columns: Array, is_label: Array, classes: int) -> Bool[Array, "*B K"]:
    @functools.partial(jnp.vectorize, signature="(n),(n)->(k)")
    def one(columns, is_label):
        return jnp.zeros_like(is_label, shape=(classes,)).at[columns].max(is_label, mode="drop")

    return one(columns, is_label)


def _gaps(is_wildcard: Bool[Array, "*B N"], is_own: Bool[Array, "*B N"]) -> Bool[Array, "*B N+1"]:
    """Whether a wildcard stands in gap g, which comes after g labels."""

    @functools.partial(jnp.vectorize, signature="(n),(n)->(m)")
    def one(is_wildcard, gap):
        gaps = jnp.zeros_like(is_wildcard, shape=(gap.shape[0] + 1,))
        return gaps.at[gap].max(is_wildcard, mode="drop")

    return one(is_wildcard, count_along(is_own))


def _packed_index(lattice: Lattice) -> Int[Array, "*B N"]:
    """Where each label as given stands: a label among the packed ones; the wildcard of gap g at
    N + g; padding, and all wildcards of a gap but the first, at 2 N + 1.
    """
    is_own, is_wildcard = lattice.is_own, lattice.is_wildcard
    labels = is_own.shape[-1]
    before = count_along(is_own)
    nowhere = lax.full_like(before, 2 * labels + 1)
    if is_wildcard is not None:
        wildcards = count_along(is_wildcard) - is_wildcard.astype(jnp.int32)
        at_the_last_label = lax.cummax(select(is_own, wildcards, 0), wildcards.ndim - 1)
        is_first = is_wildcard & (wildcards == at_the_last_label)
        nowhere = select(is_first, labels + before, nowhere)
    return select(is_own, before - 1, nowhere)


# Jitted, because an eager call would run one program for each operation, and `jax_debug_infs` would
# look into each of them, where blanks of score -inf are on their way to a sum.
@functools.partial(jax.jit, static_argnums=1)
def _log_probs(logits: Float[Array, "*B T K"], config: Config) -> Float[Array, "*B T K"]:
    if config.wildcard is not None:
        logits = classes_innermost(logits)
    if config.logits_normalized:
        return at_least_float32(logits)
    largest, log_sum = normalizer(logits, config.blank, config.vocab_axis)
    return (at_least_float32(logits) - largest[..., None]) - log_sum[..., None]


def _scaled(priors: Float[Array, "*B 1 K"], scale: Float[Array, ""]) -> Float[Array, "*B 1 K"]:
    """The product, where no infinity moves with the scale, and each is 0 at a scale of 0."""
    infinite = jnp.isinf(priors)
    finite_part = scale * select(~infinite, priors, 0)
    rest = select(infinite & (scale != 0), priors, 0)
    return finite_part + lax.stop_gradient(scale) * rest


@functools.partial(jax.jit, static_argnums=0)
def _score_of_all_but(blank: int, scores: Float[Array, "*B T K"]) -> Float[Array, "*B T"]:
    """Of all classes but the blank together, less the largest score of a frame."""
    scores = at_least_float32(scores)
    scores -= safe_max(jnp.max(scores, axis=-1))[..., None]
    column = jnp.arange(scores.shape[-1], dtype=jnp.int32)
    is_blank = jnp.expand_dims(column == blank, range(scores.ndim - 1))
    return LOG.sum(select(~is_blank, scores, -jnp.inf))
