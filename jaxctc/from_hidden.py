"""The loss of `hidden @ kernel + bias`, without logits: for vocabularies that do not fit.

Of the logits the loss needs the logarithm of the sum of their exponentials, and those of the blank
and of the labels; its gradient is `softmax - occupancy`, of which the second part is zero in nearly
all classes. So the scores of N + 1 classes are computed, and everything else a block of classes at
a time: once on the way to the loss, and again on the way back (Wijmans et al. 2024, "Cut your
losses in large-vocabulary language models", section 4, for cross-entropy).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Shaped

from jaxctc._core import checks
from jaxctc._core.derivatives import loss_and_gradient
from jaxctc._core.emissions import (
    Config,
    Inputs,
    Scores,
    pad_empty_time_axis,
    refuse_symbolic_sizes,
    refuse_unsupported,
)
from jaxctc._core.explicit_axes import over_explicit_axes
from jaxctc._core.kernels import PUBLIC_NAMES
from jaxctc._core.normalizer import at_least_float32, mask_padding, safe_max
from jaxctc._core.sharding import varying_like
from jaxctc.loss import without_infinity


class _Layer(NamedTuple):
    """The last layer of a model; what is differentiated."""

    hidden: Float[Array, "*B T D"]
    kernel: Float[Array, "D K"]
    bias: Float[Array, "K"]


class _Targets(NamedTuple):
    labels: Int[Array, "*B N"]
    is_label: Bool[Array, "*B N"]
    is_frame: Bool[Array, "*B T"]


class _Config(NamedTuple):
    """The static part of a call."""

    blank: int
    label_loop: bool
    block_size: int
    precision: lax.PrecisionLike
    implementation: str | None


@over_explicit_axes
def ctc_loss_from_hidden(
    hidden: Float[ArrayLike, "*B T D"],
    kernel: Float[ArrayLike, "D K"],
    bias: Float[ArrayLike, "K"] | None,
    logit_paddings: Shaped[ArrayLike, "*B T"] | None,
    labels: Int[ArrayLike, "*B N"],
    label_paddings: Shaped[ArrayLike, "*B N"] | None,
    *,
    blank_id: int = 0,
    log_epsilon: Float[ArrayLike, ""] = -jnp.inf,
    zero_infinity: bool = False,
    label_loop: bool = True,
    block_size: int = 1024,
    precision: lax.PrecisionLike = None,
    implementation: str | None = None,
) -> Float[Array, "*B"]:
    r"""`ctc_loss` of `hidden @ kernel + bias`, without ever holding logits `[*B, T, K]`.

    Neither the logits nor their gradient exist as arrays, only `block_size` classes of them at a
    time. On the way back they are computed again: four products of the size of the layer where
    there are three otherwise. Worth it from some thousands of classes on.

    Args:
      hidden: what the last layer is applied to.
      kernel: its matrix.
      bias: its bias; None for none.
      logit_paddings, labels, label_paddings: as of `jaxctc.ctc_loss`.
      blank_id, log_epsilon, zero_infinity, label_loop: as there.
      block_size: static; how many classes at a time.
      precision: of the products with `kernel`, as of `jnp.matmul`.
      implementation: as of `jaxctc.ctc_loss`.

    Returns:
      The loss as `jaxctc.ctc_loss` has it, degenerate cases included. Differentiable in reverse
      mode, once, with respect to `hidden`, `kernel` and `bias`; the gradients come in their
      dtypes. Products add up in float32 (float64 for float64), and logits are not rounded to
      anything narrower; log-probabilities are, to float32, which at -1e5 nats is 0.01. NaN in a
      padded frame has no influence.

    Raises:
      ValueError: if shapes or dtypes disagree, or as `jaxctc.ctc_loss`.

    Example:
      With the identity for a kernel, hidden values are logits:

      >>> hidden, labels = jnp.zeros((2, 2)), jnp.array([1])
      >>> ctc_loss_from_hidden(hidden, jnp.eye(2), None, None, labels, None).round(4)
      Array(0.2877, dtype=float32)
    """
    function = "ctc_loss_from_hidden"
    matrix = checks.real(function, "kernel", kernel)
    if matrix.ndim != 2:
        checks.fail(function, "kernel", "have shape [D, K]", matrix.shape)
    width, classes = matrix.shape
    inputs = checks.ctc_inputs(
        function, hidden, logit_paddings, labels, label_paddings, scores_name="hidden"
    )
    refuse_symbolic_sizes(function, inputs, "hidden")
    if inputs.logits.shape[-1] != width:
        requirement = f"have shape [*B, T, D] with D = {width}, as kernel has"
        checks.fail(function, "hidden", requirement, inputs.logits.shape)
    offset = jnp.zeros(classes, matrix.dtype)
    if bias is not None:
        offset = checks.real(function, "bias", bias)
    if offset.shape != (classes,):
        checks.fail(function, "bias", f"have shape [K] with K = {classes}", offset.shape)
    checks.flags(function, zero_infinity=zero_infinity, label_loop=label_loop)
    checks.implementation(function, implementation, PUBLIC_NAMES)
    epsilon = checks.log_zero(function, log_epsilon)
    config = _Config(
        checks.class_id(function, "blank_id", blank_id, classes),
        label_loop,
        min(checks.count(function, "block_size", block_size, least=1), classes),
        precision,
        implementation,
    )
    inputs = pad_empty_time_axis(inputs)
    targets = _Targets(inputs.labels, inputs.is_label, inputs.is_frame)
    layer = _Layer(inputs.logits, matrix, offset)
    loss = _compiled_loss(config, varying_like(layer, *layer, *targets), targets)
    return without_infinity(loss, epsilon, zero_infinity)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(config: _Config, layer: _Layer, targets: _Targets) -> Float[Array, "*B"]:
    return _forward(config, layer, targets)[0]


_compiled_loss = jax.jit(_loss, static_argnums=0)


def _forward(config: _Config, layer: _Layer, targets: _Targets):
    """The loss; and for the way back what each of few classes has, and the normalizer."""
    layer = layer._replace(hidden=mask_padding(layer.hidden, targets.is_frame))
    places = _few_index(config, targets.labels, layer.bias.shape[0])
    normalizer = _normalizer(config, layer)
    log_probs = _minus_normalizer(_few_scores(config, layer, targets.labels), normalizer)
    labels = _look_up(places, targets.labels)
    inputs = Inputs(Scores(log_probs, None), targets.is_frame, labels, targets.is_label)
    few = Config(0, True, config.label_loop, implementation=config.implementation)
    refuse_unsupported("ctc_loss_from_hidden", few, inputs)
    loss, slopes = loss_and_gradient(few, inputs)
    # Rounding can take it below 0: here the few log-probabilities are rounded.
    loss = jnp.where(loss < 0, jnp.zeros_like(loss), loss)
    return loss, (layer, targets, places, normalizer, slopes.logits, loss != jnp.inf)


def _backward(config: _Config, kept, cotangent: Float[Array, "*B"]):
    layer, targets, places, normalizer, few, is_feasible = kept
    counts = targets.is_frame & is_feasible[..., None]
    # One column more, of zeros, for the classes that are not among the few.
    few = jnp.concatenate([few, jnp.zeros_like(few[..., :1])], axis=-1)
    weight = cotangent[..., None, None]

    def one(carry: tuple[Array, Array, Array], start: Array | int, size: int):
        to_hidden, to_kernel, to_bias = carry
        columns = lax.dynamic_slice_in_dim(layer.kernel, start, size, axis=1)
        probs = jnp.exp(_minus_normalizer(_logits(config, layer, start, size), normalizer))
        place = lax.dynamic_slice_in_dim(places, start, size, axis=-1)
        gradient = weight * (probs + _columns(few, place))
        gradient = jnp.where(counts[..., None], gradient, jnp.zeros_like(gradient))
        product = functools.partial(
            jnp.einsum, precision=config.precision, preferred_element_type=gradient.dtype
        )
        to_hidden += product("...tk,dk->...td", gradient, at_least_float32(columns))
        here = product("...td,...tk->dk", at_least_float32(layer.hidden), gradient)
        there = jnp.sum(gradient, axis=range(gradient.ndim - 1))
        return to_hidden, _put(to_kernel, here, start, 1), _put(to_bias, there, start, 0)

    nothing = (
        jnp.zeros_like(layer.hidden, few.dtype),
        jnp.zeros_like(layer.kernel),
        jnp.zeros_like(layer.bias),
    )
    to_hidden, to_kernel, to_bias = _over_blocks(config, one, nothing, layer.bias.shape[0])
    return _Layer(to_hidden.astype(layer.hidden.dtype), to_kernel, to_bias), None


_loss.defvjp(_forward, _backward)


def _put(whole: Array, part: Array, start: Array | int, axis: int) -> Array:
    return lax.dynamic_update_slice_in_dim(whole, part.astype(whole.dtype), start, axis)


def _over_blocks(config: _Config, one, carry, classes: int):
    """Scans whole blocks of classes, then takes what is left of them."""
    size = config.block_size
    starts = jnp.arange(classes // size, dtype=jnp.int32) * size
    carry, _ = lax.scan(lambda carry, start: (one(carry, start, size), None), carry, starts)
    if classes % size:
        start = jnp.asarray(classes - classes % size, jnp.int32)
        carry = one(carry, start, classes % size)
    return carry


def _logits(
    config: _Config, layer: _Layer, start: Array | int, size: int
) -> Float[Array, "*B T size"]:
    columns = lax.dynamic_slice_in_dim(layer.kernel, start, size, axis=1)
    offset = at_least_float32(lax.dynamic_slice_in_dim(layer.bias, start, size, axis=0))
    return _product(config, layer.hidden, columns) + jnp.expand_dims(
        offset, range(layer.hidden.ndim - 1)
    )


def _product(config: _Config, hidden: Array, columns: Array) -> Array:
    if hidden.dtype != columns.dtype:
        is_double = jnp.float64 in (hidden.dtype, columns.dtype)
        dtype = jnp.float64 if is_double else jnp.float32
        hidden, columns = hidden.astype(dtype), columns.astype(dtype)
    dtype = at_least_float32(hidden).dtype
    return jnp.matmul(hidden, columns, precision=config.precision, preferred_element_type=dtype)


def _normalizer(
    config: _Config, layer: _Layer
) -> tuple[Float[Array, "*B T"], Float[Array, "*B T"]]:
    """As `normalizer`; the sum of each block is brought to the largest logit so far."""

    def one(carry: tuple[Array, Array], start: Array | int, size: int) -> tuple[Array, Array]:
        largest, total = carry
        logits = _logits(config, layer, start, size)
        new = jnp.maximum(largest, jnp.max(logits, axis=-1))
        here = jnp.sum(jnp.exp(logits - safe_max(new)[..., None]), axis=-1)
        return new, total * jnp.exp(largest - safe_max(new)) + here

    shape = layer.hidden.shape[:-1]
    dtype = jax.eval_shape(lambda: _logits(config, layer, 0, 1)).dtype
    nothing = (
        jnp.full_like(layer.hidden, -jnp.inf, dtype, shape),
        jnp.zeros_like(layer.hidden, dtype, shape),
    )
    largest, total = _over_blocks(config, one, nothing, layer.bias.shape[0])
    return safe_max(largest), jnp.log(jnp.where(total == 0, jnp.ones_like(total), total))


def _minus_normalizer(logits: Float[Array, "*B T M"], normalizer: tuple[Array, Array]) -> Array:
    """Log-probabilities; one after the other, for their sum would round."""
    largest, log_sum = normalizer
    return (logits - largest[..., None]) - log_sum[..., None]


def _few_scores(
    config: _Config, layer: _Layer, labels: Int[Array, "*B N"]
) -> Float[Array, "*B T N+1"]:
    """Logits of the blank and of each label."""
    first = jnp.full_like(labels[..., :1], config.blank, shape=(*labels.shape[:-1], 1))
    ids = jnp.concatenate([first, labels], axis=-1)
    columns = jnp.moveaxis(layer.kernel.at[:, ids].get(mode="clip"), 0, -2)
    offset = at_least_float32(layer.bias.at[ids].get(mode="clip"))
    return _product(config, layer.hidden, columns) + offset[..., None, :]


def _few_index(config: _Config, labels: Int[Array, "*B N"], classes: int) -> Int[Array, "*B K"]:
    """For each class its place among the few: 0 for the blank, n + 1 for the first such label."""

    @functools.partial(jnp.vectorize, signature="(n)->(k)")
    def one(labels: Array) -> Array:
        number = labels.shape[0]
        places = jnp.full(classes, number + 1, jnp.int32)
        ids = jnp.where(labels < 0, jnp.full_like(labels, classes), labels)
        places = places.at[ids].min(jnp.arange(1, number + 1, dtype=jnp.int32), mode="drop")
        return places.at[config.blank].set(0)

    return one(labels)


@functools.partial(jnp.vectorize, signature="(k),(n)->(n)")
def _look_up(places: Array, labels: Array) -> Array:
    """Labels as places; -1, which is no class, for what is none."""
    found = places.at[labels].get(mode="fill", fill_value=-1)
    return jnp.where(labels < 0, jnp.full_like(found, -1), found)


@functools.partial(jnp.vectorize, signature="(t,m),(k)->(t,k)")
def _columns(few: Array, places: Array) -> Array:
    return few.at[:, places].get(mode="promise_in_bounds")
