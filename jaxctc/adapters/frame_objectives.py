"""Squared error, hinge losses and accuracies, entry by entry: what `dandelion` has names for.

optax has losses of this kind, and well-kept ones (`optax.squared_error`, `optax.hinge_loss`,
`optax.multiclass_hinge_loss`). What these add is a margin, probabilities as scores, and finite
values where optax has none.
"""

from typing import get_args

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Shaped

from jaxctc._core import checks
from jaxctc._core.explicit_axes import over_explicit_axes
from jaxctc.frame_losses import (
    EstimatedType,
    classes_last,
    ids_of,
    same_shape,
    sides,
    targets_of,
)


@over_explicit_axes
def squared_error(
    estimated: Shaped[ArrayLike, "*S"], target: Shaped[ArrayLike, "*S"]
) -> Float[Array, "*S"]:
    """Squared difference, entry by entry: optax's `squared_error`.

    Args:
      estimated: real numbers.
      target: in the same shape.

    Returns:
      `(estimated - target)²`, in at least float32.

    Raises:
      ValueError: if the shapes differ.

    Example:
      >>> print(squared_error(jnp.array([1.0, 2.0]), jnp.array([3.0, 2.0])))
      [4. 0.]
    """
    values, target = same_shape("squared_error", estimated, target)
    return jnp.asarray(optax.squared_error(values, target))


@over_explicit_axes
def binary_hinge_loss(
    estimated: Shaped[ArrayLike, "*S"],
    target: Shaped[ArrayLike, "*S"],
    *,
    margin: Float[ArrayLike, ""] = 1.0,
    estimated_type: EstimatedType = "logits",
    log_epsilon: Float[ArrayLike, ""] = -1e5,
) -> Float[Array, "*S"]:
    r"""How far a yes-or-no score is from the right side of its margin.

    .. math:: \max(0, \delta - (2 t - 1) x)

    optax's `hinge_loss` has margin 1, and targets of -1 and 1.

    Args:
      estimated: scores x, positive for yes.
      target: 1 for yes and 0 for no, in the same shape.
      margin: δ.
      estimated_type: static; "probs" and "log-probs" are first made log-odds.
      log_epsilon: as of `cross_entropy`, in those log-odds.

    Returns:
      One loss per entry, in at least float32.

    Raises:
      ValueError: if shapes disagree or `estimated_type` is none of the three.

    Example:
      >>> print(binary_hinge_loss(jnp.array([0.25, 3.0]), jnp.array([1, 1])))
      [0.75 0.  ]
    """
    function = "binary_hinge_loss"
    values, target = same_shape(function, estimated, target)
    kind = checks.choice(function, "estimated_type", estimated_type, get_args(EstimatedType))
    if kind != "logits":
        log_zero = checks.number(function, "log_epsilon", log_epsilon).astype(values.dtype)
        yes, no = (
            jnp.where(side.is_possible, side.values, log_zero) for side in sides(values, kind)
        )
        values = yes - no
    margin = checks.number(function, "margin", margin).astype(values.dtype)
    return jax.nn.relu(margin - (2 * target - 1) * values)


@over_explicit_axes
def multiclass_hinge_loss(
    estimated: Shaped[ArrayLike, "..."],
    target: Shaped[ArrayLike, "..."],
    *,
    axis: int = -1,
    margin: Float[ArrayLike, ""] = 1.0,
    log_epsilon: Float[ArrayLike, ""] = -1e5,
) -> Float[Array, "..."]:
    r"""How far the target's score is from exceeding all others by a margin.

    .. math:: \max(0, \max_{j \neq t} x_j - x_t + \delta)

    optax's `multiclass_hinge_loss` is the same with margin 1.

    Args:
      estimated: scores x over the classes along `axis`, or probabilities.
      target: integer class ids, one axis less; or one-hot rows in the shape of `estimated`.
      axis: static; where the classes are.
      margin: δ.
      log_epsilon: as of `cross_entropy`: what a target at -inf, or one that is no class, costs.

    Returns:
      One loss per position, in at least float32; 0 with a single class.

    Raises:
      ValueError: if shapes disagree or ids are not integers.

    Example:
      >>> print(multiclass_hinge_loss(jnp.array([[1.0, 0.5], [0.0, 3.0]]), jnp.array([0, 1])))
      [0.5 0. ]
    """
    function = "multiclass_hinge_loss"
    values = classes_last(function, estimated, axis)
    margin = checks.number(function, "margin", margin).astype(values.dtype)
    log_zero = checks.number(function, "log_epsilon", log_epsilon).astype(values.dtype)
    ids, exists = ids_of(targets_of(function, target, values.shape, axis), values.shape[-1])
    own = jnp.take_along_axis(values, ids, axis=-1)
    exists &= own != -jnp.inf
    columns = jnp.expand_dims(jnp.arange(values.shape[-1], dtype=jnp.int32), range(values.ndim - 1))
    rivals = jnp.where(columns == ids, jnp.zeros_like(values), values - own + margin)
    loss = jax.nn.relu(jnp.max(jnp.where(exists, rivals, jnp.zeros_like(rivals)), axis=-1))
    return jnp.where(exists[..., 0], loss, -log_zero)


@over_explicit_axes
def binary_accuracy(
    estimated: Shaped[ArrayLike, "*S"],
    target: Shaped[ArrayLike, "*S"],
    *,
    threshold: Float[ArrayLike, ""] = 0.5,
) -> Bool[Array, "*S"]:
    """Whether a yes-or-no estimate is on the side of its target, entry by entry.

    Args:
      estimated: probabilities of yes, or any scores.
      target: 1 for yes and 0 for no, in the same shape.
      threshold: an estimate is a yes from here on.

    Returns:
      Booleans; False where `estimated` is NaN.

    Raises:
      ValueError: if the shapes differ.

    Example:
      >>> print(binary_accuracy(jnp.array([0.2, 0.5, 0.9]), jnp.array([0, 1, 0])))
      [ True  True False]
    """
    values, target = same_shape("binary_accuracy", estimated, target)
    threshold = checks.number("binary_accuracy", "threshold", threshold).astype(values.dtype)
    return ((values >= threshold) == (target != 0)) & ~jnp.isnan(values)


@over_explicit_axes
def categorical_accuracy(
    estimated: Shaped[ArrayLike, "..."],
    target: Shaped[ArrayLike, "..."],
    *,
    axis: int = -1,
    top_k: int = 1,
) -> Bool[Array, "..."]:
    """Whether the target is among the `top_k` classes of the largest scores.

    Args:
      estimated: scores or probabilities over the classes along `axis`.
      target: integer class ids, one axis less; or rows in the shape of `estimated`, of which the
        largest entry is meant.
      axis: static; where the classes are.
      top_k: static; how many classes count as hits. Of equal scores the lower id comes first.

    Returns:
      Booleans, one per position; False where a score is NaN, or the id is no class.

    Raises:
      ValueError: if shapes disagree, ids are not integers, or `top_k` is less than 1.

    Example:
      >>> probs = jnp.array([[0.2, 0.5, 0.3], [0.2, 0.5, 0.3]])
      >>> print(categorical_accuracy(probs, jnp.array([1, 2])))
      [ True False]
      >>> print(categorical_accuracy(probs, jnp.array([1, 2]), top_k=2))
      [ True  True]
    """
    function = "categorical_accuracy"
    values = classes_last(function, estimated, axis)
    top_k = checks.count(function, "top_k", top_k, 1)
    ids, exists = ids_of(targets_of(function, target, values.shape, axis), values.shape[-1])
    own = jnp.take_along_axis(values, ids, axis=-1)
    columns = jnp.expand_dims(jnp.arange(values.shape[-1], dtype=jnp.int32), range(values.ndim - 1))
    is_ahead = (values > own) | ((values == own) & (columns < ids))
    rank = jnp.sum(is_ahead, axis=-1, dtype=jnp.int32)
    return (rank < top_k) & exists[..., 0] & ~jnp.any(jnp.isnan(values), axis=-1)
