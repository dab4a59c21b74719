"""How JAX differentiates values that were computed in numbers that it cannot see through.

Values come from WIDE, which takes numbers apart by their bits, so each has its rule. The loss has
two levels of them, both forward, from which JAX makes reverse mode and every mixture:

    loss                 moves by ⟨gradient, movement of the scores⟩, where the gradient is computed
                         in the same passes; it is all that reverse mode keeps
    (loss, gradient)     moves as the same pair computed in LOG, through which JAX differentiates,
                         once for second derivatives, and again for any after them

Everything else is computed in WIDE, and once more in LOG where it is differentiated.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from jaxctc._core import alternatives, kernels
from jaxctc._core.classes import sum_by_class
from jaxctc._core.emissions import (
    Config,
    Inputs,
    Lattice,
    Scores,
    build_lattice,
    in_given_order,
    mask_scores,
)
from jaxctc._core.lean import broadcast, select
from jaxctc._core.normalizer import at_least_float32, sum_over_frames
from jaxctc._core.occupancies import Occupancies, solve
from jaxctc._core.recursion import total
from jaxctc._core.semirings import LOG, MAX, WIDE, Semiring
from jaxctc._core.sharding import local_ids, sum_over


def value_semiring(inputs: Inputs) -> Semiring:
    """What values are computed in: WIDE knows float32 only, and float64 can do without."""
    return LOG if inputs.scores.logits.dtype == jnp.float64 else WIDE


def nan_where(has_nan: Bool[Array, "*B"], like: Array) -> Array:
    """NaN for an example with NaN, 1 for others: a factor, which makes derivatives NaN too."""
    return select(~has_nan, lax.full_like(like, 1, shape=has_nan.shape), jnp.nan)


def with_log_derivative(compute: Callable[..., Any]) -> Callable[..., Any]:
    """Values as computed, which JAX may be unable to differentiate; derivatives through LOG.

    `compute(config, inputs, semiring, *more, **options)` is run in the best semiring for values,
    and in LOG for whoever differentiates with respect to the scores, to any order. Options are
    static. Jitted, because an eager call would trace and compile its scans anew every time; a jit
    within another costs nothing.
    """

    @functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
    def value(config: Config, options: tuple, inputs: Inputs, *more: Array) -> Any:
        return compute(config, inputs, value_semiring(inputs), *more, **dict(options))

    @value.defjvp
    def rule(config: Config, options: tuple, primals: Any, tangents: Any) -> Any:
        inputs, *more = primals

        def in_log(scores: Scores) -> Any:
            masked = inputs._replace(scores=mask_scores(scores, inputs.is_frame))
            return compute(config, masked, LOG, *more, **dict(options))

        movement = mask_scores(tangents[0].scores, inputs.is_frame)
        _, slopes = jax.jvp(in_log, (inputs.scores,), (movement,))
        return value(config, options, inputs, *more), slopes

    compiled = jax.jit(value, static_argnums=(0, 1))

    @functools.wraps(compute)
    def call(config: Config, inputs: Inputs, *more: Array, **options: Any) -> Any:
        return compiled(config, tuple(options.items()), inputs, *more)

    return call


@functools.partial(jax.jit, static_argnums=(0, 1))
def negative_log_likelihood(config: Config, max_approx: bool, inputs: Inputs) -> Float[Array, "*B"]:
    """The loss, of all paths or of the best one alone, in nats; inf where there is no path."""
    return _plain_loss(config, inputs, MAX) if max_approx else _loss(config, inputs)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _loss(config: Config, inputs: Inputs) -> Float[Array, "*B"]:
    lattice = build_lattice(inputs, config)
    if lattice.problem.alternatives is not None:
        return _nats(_log_total(lattice, value_semiring(inputs), config), lattice, config)
    log_total = kernels.log_total(
        lattice.problem, label_loop=config.label_loop, implementation=config.implementation
    )
    return _nats(log_total, lattice, config)


@_loss.defjvp
def _loss_jvp(config, primals, tangents):
    (inputs,) = primals
    loss, gradient = loss_and_gradient(config, inputs)
    movement = tangents[0].scores
    moved = sum_over(config.vocab_axis, _along(gradient, movement, inputs.is_frame))
    if gradient.label_bias is not None:
        # The same on all devices that classes are spread over.
        moved += jnp.sum(gradient.label_bias * movement.label_bias, axis=(-2, -1))
    return loss, moved


# The checkpoint is there for reverse mode to keep its arguments as they are, the gradient in the
# dtype of the logits, and not what the product makes of them on the way.
@functools.partial(jax.checkpoint, prevent_cse=False)
def _along(gradient: Scores, movement: Scores, is_frame: Array) -> Float[Array, "*B"]:
    movement = mask_scores(movement, is_frame)
    along = jnp.sum(
        at_least_float32(gradient.logits) * at_least_float32(movement.logits), axis=(-2, -1)
    )
    if gradient.wildcard is not None and movement.wildcard is not None:
        along += jnp.sum(gradient.wildcard * movement.wildcard, axis=-1)
    if gradient.label_log_weights is not None and movement.label_log_weights is not None:
        along += jnp.sum(gradient.label_log_weights * movement.label_log_weights, axis=(-2, -1))
    return along


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def loss_and_gradient(config: Config, inputs: Inputs) -> tuple[Float[Array, "*B"], Scores]:
    """Of each example, the gradient of its own loss."""
    lattice = build_lattice(inputs, config)
    by_column = _is_by_column(config, inputs)
    log_total, found = solve(lattice.problem, config, by_column=by_column)
    gradient = _gradient(config, inputs, lattice, log_total > -jnp.inf, found)
    return _nats(log_total, lattice, config), gradient


@loss_and_gradient.defjvp
def _loss_and_gradient_jvp(config, primals, tangents):
    (inputs,) = primals

    def plain(scores):
        moved = inputs._replace(scores=scores)
        loss, pullback = jax.vjp(lambda moved: _plain_loss(config, moved, LOG), moved)
        return loss, pullback(jnp.ones_like(loss))[0].scores

    movement = mask_scores(tangents[0].scores, inputs.is_frame)
    _, slopes = jax.jvp(plain, (inputs.scores,), (movement,))
    return loss_and_gradient(config, inputs), slopes


def _plain_loss(config: Config, inputs: Inputs, semiring: Semiring) -> Float[Array, "*B"]:
    """The loss in operations that JAX differentiates, to any order; in LOG or MAX."""
    inputs = inputs._replace(scores=mask_scores(inputs.scores, inputs.is_frame))
    lattice = build_lattice(inputs, config)
    return _nats(_log_total(lattice, semiring, config), lattice, config)


def _log_total(lattice: Lattice, semiring: Semiring, config: Config) -> Float[Array, "*B"]:
    """In a semiring, and no kernel."""
    problem = lattice.problem
    if problem.alternatives is not None:
        return alternatives.log_total(
            problem, problem.alternatives, semiring, label_loop=config.label_loop
        )
    return semiring.decode(total(problem, semiring, label_loop=config.label_loop))


def _is_by_column(config: Config, inputs: Inputs) -> bool:
    """Whether the recursion sums occupancies by class, and not the gradient.

    With few classes, tables of labels would be what takes the most memory; and a TPU multiplies
    faster than it looks up. The recursion is the same on all devices that classes are sharded over,
    the classes are not.
    """
    has_few_classes = inputs.scores.logits.shape[-1] <= inputs.labels.shape[-1]
    is_one_device = config.vocab_axis is None
    if inputs.scores.label_bias is not None:  # its gradient is by label
        return False
    return is_one_device and (has_few_classes or config.implementation == "pallas")


def _nats(log_total: Float[Array, "*B"], lattice: Lattice, config: Config) -> Float[Array, "*B"]:
    impossible = log_total == -jnp.inf
    loss = sum_over_frames(lattice.log_excess) - log_total
    is_probability = not config.logits_normalized and config.wildcard is None
    is_probability = is_probability and lattice.problem.alternatives is None
    if is_probability and lattice.problem.bias is None:
        # Rounding can take a confident model's loss below 0. Subtracting the excess as a
        # constant brings back 0 and leaves the gradient alone, as a maximum would not.
        loss -= lax.stop_gradient(jnp.minimum(loss, 0))
    loss = select(~impossible, loss, jnp.inf)
    # A factor, not a select: it makes the gradient NaN too.
    return loss * nan_where(lattice.has_nan, loss)


def _gradient(
    config: Config,
    inputs: Inputs,
    lattice: Lattice,
    feasible: Bool[Array, "*B"],
    found: Occupancies,
) -> Scores:
    """softmax - occupancy, or -occupancy alone where the logits are log-probabilities."""
    logits, axis = inputs.scores.logits, config.vocab_axis
    classes = logits.shape[-1]
    by_class = found.label
    if not _is_by_column(config, inputs):
        labels = local_ids(lattice.labels, classes, axis)
        by_class = sum_by_class(found.label, labels, classes)
    column = jnp.expand_dims(jnp.arange(classes, dtype=jnp.int32), range(found.blank.ndim))
    blank = local_ids(jnp.asarray(config.blank, jnp.int32), classes, axis)
    of_blank = broadcast(found.blank[..., None], by_class.shape)
    gradient = -select(column == blank, of_blank, by_class)
    if not config.logits_normalized:
        # The normalizer takes the same differences. Without the barrier XLA would share them, as
        # an array of the size of the logits.
        frame_max = lax.optimization_barrier(lattice.problem.frame_max)[..., None]
        log_normalizer = lattice.log_normalizer[..., None]
        gradient += jnp.exp((at_least_float32(logits) - frame_max) - log_normalizer)

    factor = nan_where(lattice.has_nan, gradient)[..., None]
    counts = inputs.is_frame & (feasible | lattice.has_nan)[..., None]
    gradient = select(counts[..., None], gradient * factor[..., None], 0)
    of_wildcard = None
    if found.wildcard is not None:
        of_wildcard = select(counts, -jnp.sum(found.wildcard, axis=-1) * factor, 0)
    of_weights = None
    if found.taken is not None and inputs.scores.label_log_weights is not None:
        taken = in_given_order(lattice, found.taken[..., None, :], 0)
        of_weights = -taken.reshape(inputs.scores.label_log_weights.shape)
        of_weights *= nan_where(lattice.has_nan, of_weights)[..., None, None]
    of_bias = None
    if inputs.scores.label_bias is not None:
        # Not by the factor from above, which varies over devices as classes do.
        factor = nan_where(lattice.has_nan, found.label)[..., None, None]
        of_bias = select(counts[..., None], -found.label * factor, 0)
        of_bias = in_given_order(lattice, of_bias, 0)
    return Scores(gradient.astype(logits.dtype), of_wildcard, of_bias, of_weights)
