"""From logits to what the lattice reads: one score per frame and class.

The options that every function of the lattice shares live here. Log-probabilities, label priors and
wildcards are ways to arrive at scores; what comes behind (the recursions and their derivatives)
knows scores only, so JAX differentiates through all of this by itself.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Shaped

from jaxctc import _checks
from jaxctc.semirings import LOG
from jaxctc.sharding import local_ids, max_over, number_of_classes, sum_over


class Reading(NamedTuple):
    """How scores are to be read: the static part of every call."""

    blank: int
    logits_normalized: bool
    label_loop: bool = True
    wildcard: int | None = None
    """The class that stands for whatever a wildcard absorbs; None without wildcards."""
    vocab_axis: str | None = None
    """The axis of the mesh that the classes are spread over; None for all of them in one place."""


class Options(NamedTuple):
    """What every function of the lattice can be told about its scores: see `jaxctc.ctc_loss`."""

    blank_id: int
    logits_normalized: bool
    label_loop: bool = True
    label_priors: Float[ArrayLike, "... K"] | None = None
    prior_scale: Float[ArrayLike, ""] = 1.0
    wildcard_id: int | None = None
    wildcard_penalty: Float[ArrayLike, ""] = 0.0
    vocab_axis_name: str | None = None


def read(
    function: str,
    logits: Float[ArrayLike, "*B T K"],
    logit_paddings: Shaped[ArrayLike, "*B T"] | None,
    labels: Int[ArrayLike, "*B N"],
    label_paddings: Shaped[ArrayLike, "*B N"] | None,
    options: Options,
) -> tuple[Reading, _checks.CtcInputs]:
    """The arguments of a public function, checked, as scores and how to read them."""
    inputs = _checks.ctc_inputs(function, logits, logit_paddings, labels, label_paddings)
    _checks.inputs_not_explicit(function, inputs)
    axis = _checks.vocab_axis(function, options.vocab_axis_name, inputs.logits)
    classes = number_of_classes(inputs.logits, axis)
    blank = _checks.class_id(function, "blank_id", options.blank_id, classes)
    _checks.flags(
        function, logits_normalized=options.logits_normalized, label_loop=options.label_loop
    )
    reading = Reading(blank, options.logits_normalized, options.label_loop, vocab_axis=axis)
    if options.label_priors is None and options.wildcard_id is None:
        return reading, inputs

    scores = _log_probs(inputs, reading)
    reading = reading._replace(logits_normalized=True)
    if options.label_priors is not None:
        priors = _checks.per_class(function, "label_priors", options.label_priors, scores.shape)
        scale = _checks.number(function, "prior_scale", options.prior_scale)
        scores -= _scaled(priors.astype(scores.dtype), scale.astype(scores.dtype))
    if options.wildcard_id is None:
        return reading, inputs._replace(logits=scores)

    if axis is not None:
        remedy = "A wildcard takes what all classes have together: they must lie in one place."
        _checks.fail(
            function, "wildcard_id", "be None with vocab_axis_name", options.wildcard_id, remedy
        )
    wildcard = _checks.wildcard(function, options.wildcard_id, blank)
    penalty = _checks.number(function, "wildcard_penalty", options.wildcard_penalty)
    absorbed = _score_of_all_but(blank, scores) - penalty.astype(scores.dtype)
    scores = jnp.concatenate([scores, absorbed[..., None]], axis=-1)
    ids = inputs.labels
    outside, column = jnp.full_like(ids, -1), jnp.full_like(ids, classes)
    ids = jnp.where(ids == wildcard, column, jnp.where(ids == classes, outside, ids))
    return reading._replace(wildcard=classes), inputs._replace(logits=scores, labels=ids)


def in_use(logits: Float[Array, "*B T K"], is_frame: Bool[Array, "*B T"]) -> Array:
    """The logits, 0 in padded frames whatever stood there."""
    return jnp.where(is_frame[..., None], logits, jnp.zeros_like(logits))


def widen(scores: Float[Array, "..."]) -> Float[Array, "..."]:
    """In at least float32."""
    return scores if scores.dtype == jnp.float64 else scores.astype(jnp.float32)


def log_where_possible(
    probs: Float[Array, "*S"],
) -> tuple[Float[Array, "*S"], Bool[Array, "*S"]]:
    """Logarithms of probabilities that are possible, and which are: 0 for the others.

    What is so small that its inverse, the derivative, overflows counts as impossible.
    """
    is_possible = ~((probs >= 0) & (probs < jnp.finfo(probs.dtype).tiny))
    return jnp.log(jnp.where(is_possible, probs, jnp.ones_like(probs))), is_possible


def normaliser(
    logits: Float[Array, "*F K"], blank: int, vocab_axis: str | None = None
) -> tuple[Float[Array, "*F"], Float[Array, "*F"]]:
    """`(c, s)` with `logsumexp(logits) = c + s`, kept apart because the sum would round.

    `c` is the largest logit and `s = log Σ exp(logits - c)`, in [0, log K]; where it is next to 0
    its last bits are kept if the blank is the class that is sure, else it is right to 1e-7. A frame
    of -inf alone has no distribution; (0, 0) leaves its scores at -inf.
    """
    largest = finite_scale(max_over(vocab_axis, widen(jnp.max(logits, axis=-1))))
    classes = logits.shape[-1]
    column = local_ids(jnp.asarray(blank, jnp.int32), classes, vocab_axis)
    is_blank = jnp.arange(classes, dtype=jnp.int32) == column

    # The sum of a confident frame is 1 and a little, which would be rounded away. Most such frames
    # are blanks: that one class is added last. It leaves the sum by a shift and not by a select,
    # through which XLA:CPU reduces several times slower.
    nothing = jnp.zeros_like(largest, shape=())
    out = jnp.where(is_blank, jnp.full_like(nothing, -jnp.inf), nothing)
    out = jnp.expand_dims(out, range(largest.ndim))
    rest = jnp.sum(jnp.exp((widen(logits) - largest[..., None]) + out), axis=-1)
    own = lax.dynamic_index_in_dim(logits, column, -1, keepdims=False)
    own = jnp.where(column < classes, jnp.exp(widen(own) - largest), jnp.zeros_like(rest))
    rest, own = sum_over(vocab_axis, rest), sum_over(vocab_axis, own)
    total = rest + own
    log_sum = jnp.log(jnp.where(total == 0, jnp.ones_like(total), total))
    correction = jnp.where(own == 1, jnp.log1p(rest) - log_sum, jnp.zeros_like(total))
    return largest, log_sum + lax.stop_gradient(correction)


def finite_scale(largest: Array) -> Array:
    """The largest score as something to subtract: 0 for -inf, and not part of a derivative.

    Whatever is taken off and put back again has no part in one.
    """
    largest = lax.stop_gradient(largest)
    return jnp.where(largest == -jnp.inf, jnp.zeros_like(largest), largest)


def sum_over_frames(values: Float[Array, "T *B"]) -> Float[Array, "*B"]:
    """In blocks, so that the rounding errors of T terms do not add up to T of them."""
    frames, block = values.shape[0], 128
    count = -(-frames // block)
    rest = jnp.zeros_like(values, shape=(count * block - frames, *values.shape[1:]))
    blocks = jnp.concatenate([values, rest]).reshape(count, block, *values.shape[1:])
    return jnp.sum(jnp.sum(blocks, axis=1), axis=0)


def _log_probs(inputs: _checks.CtcInputs, reading: Reading) -> Float[Array, "*B T K"]:
    logits = in_use(inputs.logits, inputs.is_frame)
    if reading.logits_normalized:
        return widen(logits)
    largest, log_sum = normaliser(logits, reading.blank, reading.vocab_axis)
    return (widen(logits) - largest[..., None]) - log_sum[..., None]


def _scaled(priors: Float[Array, "*B 1 K"], scale: Float[Array, ""]) -> Float[Array, "*B 1 K"]:
    """The product, where no infinity moves with the scale, and each is 0 at a scale of 0."""
    infinite, nothing = jnp.isinf(priors), jnp.zeros_like(priors)
    finite_part = scale * jnp.where(infinite, nothing, priors)
    rest = jnp.where(infinite & (scale != 0), priors, nothing)
    return finite_part + lax.stop_gradient(scale) * rest


def _score_of_all_but(blank: int, scores: Float[Array, "*B T K"]) -> Float[Array, "*B T"]:
    column = jnp.arange(scores.shape[-1], dtype=jnp.int32)
    is_blank = jnp.expand_dims(column == blank, range(scores.ndim - 1))
    return LOG.sum(jnp.where(is_blank, jnp.full_like(scores, -jnp.inf), scores))
