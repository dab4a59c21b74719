"""Which semiring values come from, and how JAX differentiates what it cannot see through."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool

from jaxctc._checks import CtcInputs
from jaxctc.scores import Reading, in_use
from jaxctc.semirings import LOG, WIDE, Semiring


def value_semiring(inputs: CtcInputs) -> Semiring:
    """What values are computed in: WIDE knows float32 only, and float64 can do without."""
    return LOG if inputs.logits.dtype == jnp.float64 else WIDE


def with_log_derivative(compute: Callable[..., Any]) -> Callable[..., Any]:
    """Values as computed, which JAX may be unable to differentiate; derivatives through LOG.

    `compute(reading, inputs, semiring, *more, **options)` is run in the best semiring for values,
    and in LOG for whoever differentiates with respect to the logits, to any order. Options are
    static. Outside `jit`, scans would be traced anew at every call, and so compiled anew: not
    within one of their own, which costs nothing inside another.
    """

    @functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
    def value(reading: Reading, options: tuple, inputs: CtcInputs, *more: Array) -> Any:
        return compute(reading, inputs, value_semiring(inputs), *more, **dict(options))

    @value.defjvp
    def rule(reading: Reading, options: tuple, primals: Any, tangents: Any) -> Any:
        inputs, *more = primals

        def in_log(logits: Array) -> Any:
            moved = inputs._replace(logits=in_use(logits, inputs.is_frame))
            return compute(reading, moved, LOG, *more, **dict(options))

        movement = in_use(tangents[0].logits, inputs.is_frame)
        _, slopes = jax.jvp(in_log, (inputs.logits,), (movement,))
        return value(reading, options, inputs, *more), slopes

    compiled = jax.jit(value, static_argnums=(0, 1))

    @functools.wraps(compute)
    def call(reading: Reading, inputs: CtcInputs, *more: Array, **options: Any) -> Any:
        return compiled(reading, tuple(options.items()), inputs, *more)

    return call


def nan_where(is_broken: Bool[Array, "*B"], like: Array) -> Array:
    """NaN for a broken example, 1 for others: a factor, which makes derivatives NaN too."""
    return jnp.where(is_broken, jnp.asarray(jnp.nan, like.dtype), jnp.asarray(1, like.dtype))
