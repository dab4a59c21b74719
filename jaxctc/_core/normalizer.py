"""Scores of single frames: their normaliser, their largest, and what padding leaves of them."""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from jaxctc._core.lean import select, take_one
from jaxctc._core.sharding import local_ids, max_over, sum_over


def at_least_float32(scores: Float[Array, "..."]) -> Float[Array, "..."]:
    """Float64 as it is, anything narrower in float32."""
    return scores if scores.dtype == jnp.float64 else scores.astype(jnp.float32)


def mask_padding(scores: Float[Array, "*B T K"], is_frame: Bool[Array, "*B T"]) -> Array:
    """The scores, 0 in padded frames whatever stood there."""
    return select(is_frame[..., None], scores, 0)


def safe_max(largest: Array) -> Array:
    """The largest score as a number that can be subtracted: 0 for -inf.

    It is no part of a derivative: what is subtracted here is added again elsewhere.
    """
    largest = lax.stop_gradient(largest)
    return select(largest != -jnp.inf, largest, 0)


def largest_or_nan(scores: Float[Array, "*S K"]) -> Float[Array, "*S"]:
    """The largest score, -inf of none; NaN if there is one. It is no part of a derivative."""
    scores = lax.stop_gradient(scores)

    def by_comparisons(scores: Array) -> Array:
        # A maximum of XLA:CPU leaves NaN out.
        least = jnp.asarray(-jnp.inf, scores.dtype)
        return lax.reduce(scores, least, _larger_or_nan, (scores.ndim - 1,))

    def maximum(scores: Array) -> Array:
        return jnp.max(scores, axis=-1, initial=-jnp.inf)

    return at_least_float32(lax.platform_dependent(scores, cpu=by_comparisons, default=maximum))


def _larger_or_nan(score: Array, other: Array) -> Array:
    return lax.select((other > score) | (other != other), other, score)


def normalizer(
    logits: Float[Array, "*F K"], blank: int, vocab_axis: str | None = None
) -> tuple[Float[Array, "*F"], Float[Array, "*F"]]:
    """`(c, s)` with `logsumexp(logits) = c + s`, kept apart because the sum would round.

    `c` is the largest logit and `s = log Σ exp(logits - c)`, in [0, log K]. Where `s` is next to 0
    its last bits are kept if the blank is the class that is sure; otherwise it is right to 1e-7. A
    frame of -inf alone has no distribution; (0, 0) leaves its scores at -inf.
    """
    classes = logits.shape[-1]
    column = local_ids(jnp.asarray(blank, jnp.int32), classes, vocab_axis)
    largest_here, rest = _largest_and_rest(logits, column)
    largest = safe_max(max_over(vocab_axis, largest_here))
    if vocab_axis is not None:
        rest *= jnp.exp(lax.stop_gradient(largest_here) - largest)
    own = jnp.exp(at_least_float32(take_one(logits, column, -1)) - largest)
    if vocab_axis is not None:
        own = select(column < classes, own, 0)
        rest, own = sum_over(vocab_axis, rest), sum_over(vocab_axis, own)
    total = rest + own
    log_sum = jnp.log(select(total != 0, total, 1))
    correction = select(own == 1, jnp.log1p(rest) - log_sum, 0)
    return largest, log_sum + lax.stop_gradient(correction)


# A rule of its own: JAX differentiates no reduction of pairs, and what is largest is no part of it.
@jax.custom_jvp
def _largest_and_rest(
    logits: Float[Array, "*F K"], blank: Int[Array, ""]
) -> tuple[Float[Array, "*F"], Float[Array, "*F"]]:
    """The largest logit and, by it, `Σ exp(logits - largest)` of all classes but the blank.

    The sum of a confident frame is 1 and a little, which would be rounded away. Most such frames
    are blanks: that one class is left out here, and added last.
    """
    return lax.platform_dependent(logits, blank, cpu=_in_two_reads, default=_in_one_read)


@_largest_and_rest.defjvp
def _largest_and_rest_jvp(primals, tangents):
    logits, blank = primals
    # In two reads everywhere: the derivative needs the exponentials themselves, and shares them.
    largest = at_least_float32(jnp.max(lax.stop_gradient(logits), axis=-1))
    shift = safe_max(largest)
    rest, movement = jax.jvp(lambda logits: _rest(logits, shift, blank), (logits,), (tangents[0],))
    return (largest, rest), (jnp.zeros_like(largest), movement)


def _in_two_reads(logits: Array, blank: Array) -> tuple[Array, Array]:
    """XLA:CPU vectorises each of the two sums, and no reduction of pairs."""
    largest = at_least_float32(jnp.max(logits, axis=-1))
    return largest, _rest(logits, safe_max(largest), blank)


def _rest(logits: Array, largest: Array, blank: Array) -> Array:
    """The blank leaves the sum by a shift, not by a select, for which XLA:CPU takes much longer."""
    is_blank = jnp.arange(logits.shape[-1], dtype=jnp.int32) == blank
    out = select(~is_blank, lax.full_like(largest, 0, shape=is_blank.shape), -jnp.inf)
    out = jnp.expand_dims(out, range(largest.ndim))
    return jnp.sum(jnp.exp((at_least_float32(logits) - largest[..., None]) + out), axis=-1)


def _in_one_read(logits: Array, blank: Array) -> tuple[Array, Array]:
    """Pairs of a largest logit and the sum by it, merged two by two: logits are read once."""
    logits = at_least_float32(logits)
    counts = lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) != blank
    return lax.reduce(
        (logits, counts.astype(logits.dtype)),
        (jnp.array(-jnp.inf, logits.dtype), jnp.array(0, logits.dtype)),
        _merge,
        (logits.ndim - 1,),
    )


def _merge(pair: tuple[Array, Array], other: tuple[Array, Array]) -> tuple[Array, Array]:
    largest = lax.max(pair[0], other[0])

    def scaled(own: Array, total: Array) -> Array:
        return select(own != -jnp.inf, total * jnp.exp(own - largest), 0)

    return largest, scaled(*pair) + scaled(*other)


def log_where_possible(
    probs: Float[Array, "*S"],
) -> tuple[Float[Array, "*S"], Bool[Array, "*S"]]:
    """Logarithms of probabilities that are possible, and which are: 0 for the others.

    A probability whose inverse, the derivative, overflows counts as impossible.
    """
    is_possible = ~((probs >= 0) & (probs < jnp.finfo(probs.dtype).tiny))
    return jnp.log(select(is_possible, probs, 1)), is_possible


def sum_over_frames(values: Float[Array, "*B T"]) -> Float[Array, "*B"]:
    """The sum, in chunks of frames, so that T rounding errors do not add up."""
    values = jnp.moveaxis(values, -1, 0)
    frames, chunk = values.shape[0], 128
    count = -(-frames // chunk)
    rest = jnp.zeros_like(values, shape=(count * chunk - frames, *values.shape[1:]))
    chunks = jnp.concatenate([values, rest]).reshape(count, chunk, *values.shape[1:])
    return jnp.sum(jnp.sum(chunks, axis=1), axis=0)
