"""Losses of single frames: cross-entropies.

One number per position comes back, and no mean: see `jaxctc.reduce_loss`. What is computed is
optax's where optax has it. What differs is what happens at the edges: a probability of exactly 0
or 1, a class masked with -inf, an id that is no class and a padded position all have finite values
and finite gradients here.
"""

from typing import Literal, NamedTuple, get_args

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Shaped

from jaxctc._core import checks
from jaxctc._core.explicit_axes import over_explicit_axes
from jaxctc._core.normalizer import at_least_float32, log_where_possible

EstimatedType = Literal["logits", "log-probs", "probs"]
_TYPES = get_args(EstimatedType)


@over_explicit_axes
def cross_entropy(
    estimated: Shaped[ArrayLike, "..."],
    target: Shaped[ArrayLike, "..."],
    *,
    axis: int = -1,
    estimated_type: EstimatedType = "logits",
    class_weight: Shaped[ArrayLike, "K"] | None = None,
    label_smoothing: Float[ArrayLike, ""] = 0.0,
    ignore_id: int | None = None,
    paddings: Shaped[ArrayLike, "..."] | None = None,
    eps: Float[ArrayLike, ""] = 0.0,
    log_epsilon: Float[ArrayLike, ""] = -1e5,
) -> Float[Array, "..."]:
    r"""Cross-entropy of estimated class probabilities against targets, in nats per position.

    .. math:: -\sum_k w_k t_k \log p_k

    For logits without further ado this is optax's `softmax_cross_entropy` or, for ids, its
    `softmax_cross_entropy_with_integer_labels`. There a class at -inf makes dense targets NaN, an
    id that is no class NaN or another class.

    Args:
      estimated: scores over the classes along `axis`.
      target: integer class ids, one axis less; or weights `t` of every class, probabilities as a
        rule, in the shape of `estimated`.
      axis: static; where the classes are.
      estimated_type: static; "logits" are normalised here, "log-probs" and "probs" are taken as
        they are.
      class_weight: factors `w` of the classes; None weighs all alike. An id that is no class
        has the factor 1.
      label_smoothing: share of each target that is spread evenly over the classes, those of
        probability 0 left out.
      ignore_id: an id that costs nothing where it is the target.
      paddings: nonzero where a position costs nothing, in the shape of the result; None pads
        nothing.
      eps: probabilities ("probs" only) are first clipped to [eps, 1 - eps].
      log_epsilon: stands for log 0, without a gradient: with -1e5, a target class of
        probability 0, and an id that is no class, cost 1e5.

    Returns:
      One loss per position, in at least float32. Exactly 0 with gradient 0 where ignored or
      padded, whatever stands there; NaN where any logit is NaN, or a probability that the target
      weighs; not finite where that is +inf.

    Raises:
      ValueError: if shapes disagree, ids are not integers, or `estimated_type` is none of the
        three.

    Example:
      Half of the target is on a class of probability 1/4, half on one of 3/4:

      >>> probs, target = jnp.array([0.25, 0.75]), jnp.array([0.5, 0.5])
      >>> print(f"{cross_entropy(probs, target, estimated_type='probs'):.4f}")
      0.8370
      >>> print(f"{cross_entropy(jnp.log(probs), 1):.4f}")
      0.2877
    """
    function = "cross_entropy"
    values = classes_last(function, estimated, axis)
    targets = targets_of(function, target, values.shape, axis)
    counts = ~checks.paddings(function, "paddings", paddings, values.shape[:-1])
    if ignore_id is not None:
        counts &= _is_other(function, targets, ignore_id)
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        targets = jnp.where(counts[..., None], targets, jnp.zeros_like(targets))
    values = jnp.where(counts[..., None], values, jnp.zeros_like(values))

    scores = _class_scores(function, values, estimated_type, eps)
    weights = _class_weights(function, class_weight, values)
    log_zero = checks.number(function, "log_epsilon", log_epsilon).astype(values.dtype)
    smoothing = checks.number(function, "label_smoothing", label_smoothing).astype(values.dtype)
    loss = (1 - smoothing) * _loss_of(scores, targets, weights, log_zero)
    if not _is_zero(label_smoothing):
        possible = scores.is_possible.astype(values.dtype)
        share = possible / jnp.maximum(jnp.sum(possible, axis=-1, keepdims=True), 1)
        loss += smoothing * _loss_of(scores, share, weights, log_zero)
    return jnp.where(counts, loss, jnp.zeros_like(loss))


@over_explicit_axes
def binary_cross_entropy(
    estimated: Shaped[ArrayLike, "*S"],
    target: Shaped[ArrayLike, "*S"],
    *,
    estimated_type: EstimatedType = "logits",
    paddings: Shaped[ArrayLike, "*S"] | None = None,
    log_epsilon: Float[ArrayLike, ""] = -1e5,
) -> Float[Array, "*S"]:
    r"""Cross-entropy of independent yes-or-no estimates, in nats each.

    .. math:: -t \log p - (1 - t) \log(1 - p)

    For logits this is optax's `sigmoid_binary_cross_entropy`, which is NaN at infinite ones.

    Args:
      estimated: of the answer yes; one per entry.
      target: in [0, 1], in the same shape.
      estimated_type: static; "logits" are log-odds, "probs" probabilities, "log-probs" their
        logarithms.
      paddings, log_epsilon: as of `cross_entropy`.

    Returns:
      One loss per entry, in at least float32. A probability of exactly 0 or 1 costs 1e5 times
      the target weight of what it excludes, without a gradient from there; NaN where `estimated`
      is.

    Raises:
      ValueError: if shapes disagree or `estimated_type` is none of the three.

    Example:
      >>> print(binary_cross_entropy(jnp.array([0.0, jnp.inf]), jnp.array([1, 1])).round(4))
      [0.6931 0.    ]
    """
    function = "binary_cross_entropy"
    values, target = same_shape(function, estimated, target)
    counts = ~checks.paddings(function, "paddings", paddings, values.shape)
    log_zero = checks.number(function, "log_epsilon", log_epsilon).astype(values.dtype)
    safe = jnp.where(counts & ~jnp.isinf(values), values, -jnp.ones_like(values))
    target = jnp.where(counts, target, jnp.zeros_like(target))
    if checks.choice(function, "estimated_type", estimated_type, _TYPES) == "logits":
        loss = _optax().sigmoid_binary_cross_entropy(safe, target)
        excluded = jnp.where(values > 0, 1 - target, target)
        price = _price(~jnp.isinf(values), excluded, log_zero)
        loss = jnp.where(jnp.isinf(values), excluded * price, loss)
    else:
        values = jnp.where(counts, values, safe)
        yes, no = sides(values, estimated_type)
        loss = _cost(target, yes, log_zero) + _cost(1 - target, no, log_zero)
    return jnp.where(counts, loss, jnp.zeros_like(loss))


class _Scores(NamedTuple):
    """Log-probabilities, or logits, with what is impossible told apart."""

    values: Float[Array, "*S K"]
    """Finite where impossible: as good as -inf among logits, 0 among log-probabilities."""
    is_possible: Bool[Array, "*S K"]
    are_logits: bool


def _class_scores(
    function: str, values: Float[Array, "*S K"], kind: str, eps: ArrayLike
) -> _Scores:
    kind = checks.choice(function, "estimated_type", kind, _TYPES)
    if kind == "probs":
        if not _is_zero(eps):
            least = checks.number(function, "eps", eps).astype(values.dtype)
            values = jnp.clip(values, least, 1 - least)
        return _log(values)
    is_possible = values != -jnp.inf
    nothing = jnp.finfo(values.dtype).min / 4 if kind == "logits" else 0
    filling = jnp.full_like(values, nothing)
    return _Scores(jnp.where(is_possible, values, filling), is_possible, kind == "logits")


def _log(probs: Float[Array, "*S"]) -> _Scores:
    return _Scores(*log_where_possible(probs), False)


def sides(values: Float[Array, "*S"], kind: str) -> tuple[_Scores, _Scores]:
    """Logarithms of p and 1 - p, from p or its logarithm."""
    tiny, zero = jnp.finfo(values.dtype).tiny, jnp.zeros_like(values)
    if kind == "probs":
        may_not = values != 1
        no = jnp.log1p(-jnp.where(may_not, values, zero))
        return _log(values), _Scores(no, may_not, False)
    may, may_not = values != -jnp.inf, ~((values <= 0) & (values > -tiny))
    yes = jnp.where(may, values, zero)
    is_inside = may & may_not
    no = jnp.log(-jnp.expm1(jnp.where(is_inside, values, -jnp.ones_like(values))))
    return _Scores(yes, may, False), _Scores(jnp.where(is_inside, no, zero), may_not, False)


def _price(is_possible: Array, weight: Array, log_zero: Array) -> Array:
    """What a unit of weight costs beside its logarithm; nothing where there is no weight."""
    zero = jnp.zeros_like(weight)
    return jnp.where(is_possible | (weight == 0), zero, -log_zero)


def _cost(weight: Array, scores: _Scores, log_zero: Array) -> Array:
    """-w log p, entry by entry."""
    return weight * _price(scores.is_possible, weight, log_zero) - weight * scores.values


def _is_zero(value: ArrayLike) -> bool:
    """Whether an option is known not to be in use."""
    return isinstance(value, int | float) and value == 0


def _loss_of(
    scores: _Scores, target: Array, weights: Float[Array, "K"] | None, log_zero: Float[Array, ""]
) -> Float[Array, "*S"]:
    """-Σ w t log p, for a target of ids or of weights."""
    if jnp.issubdtype(target.dtype, jnp.integer):
        return _loss_of_ids(scores, target, weights, log_zero)
    if weights is not None:
        target *= jnp.expand_dims(weights, range(target.ndim - 1))
    if not scores.are_logits:
        return jnp.sum(_cost(target, scores, log_zero), axis=-1)
    possible = jnp.where(scores.is_possible, target, jnp.zeros_like(target))
    loss = jnp.asarray(_optax().softmax_cross_entropy(scores.values, possible))
    return loss + jnp.sum(target * _price(scores.is_possible, target, log_zero), axis=-1)


def _loss_of_ids(
    scores: _Scores, target: Array, weights: Float[Array, "K"] | None, log_zero: Float[Array, ""]
) -> Float[Array, "*S"]:
    ids, exists = ids_of(target, scores.values.shape[-1])
    is_possible = (exists & jnp.take_along_axis(scores.is_possible, ids, axis=-1))[..., 0]
    ids, exists = ids[..., 0], exists[..., 0]
    if scores.are_logits:
        loss = _optax().softmax_cross_entropy_with_integer_labels(scores.values, ids)
    else:
        loss = 0 - jnp.take_along_axis(scores.values, ids[..., None], axis=-1)[..., 0]
    if weights is None:
        return jnp.where(is_possible, loss, -log_zero)
    # What is no class has no weight to take anything off its price.
    weight = jnp.where(exists, jnp.take(weights, ids), jnp.ones_like(loss))
    return weight * jnp.where(is_possible, loss, _price(is_possible, weight, log_zero))


def classes_last(function: str, estimated: ArrayLike, axis: int) -> Float[Array, "*S K"]:
    """Scores in at least float32, the classes along the last axis."""
    values = checks.real(function, "estimated", estimated)
    axis = checks.static_int(function, "axis", axis)
    if not -values.ndim <= axis < values.ndim:
        checks.fail(function, "axis", f"be an axis of estimated {values.shape}", axis)
    if values.shape[axis] == 0:
        checks.fail(function, "estimated", "have at least one class", values.shape)
    return jnp.moveaxis(at_least_float32(values), axis, -1)


def targets_of(function: str, target: ArrayLike, shape: tuple[int, ...], axis: int) -> Array:
    """Ids as int32, or weights with the classes last."""
    array = checks.as_array(function, "target", checks.saturated(target))
    if array.shape == shape[:-1]:
        return checks.class_ids(function, "target", array[..., None])[..., 0]
    given = list(shape[:-1])
    given.insert(axis if axis >= 0 else len(shape) + axis, shape[-1])
    if array.shape != tuple(given):
        requirement = f"have shape {shape[:-1]}, class ids, or {tuple(given)}, weights of classes"
        checks.fail(function, "target", requirement, array.shape)
    return jnp.moveaxis(at_least_float32(checks.real(function, "target", array)), axis, -1)


def ids_of(target: Array, classes: int) -> tuple[Int[Array, "*S 1"], Bool[Array, "*S 1"]]:
    """Ids that exist, the largest entry of weights, and whether they did; ready to gather."""
    if not jnp.issubdtype(target.dtype, jnp.integer):
        target = jnp.argmax(target, axis=-1).astype(jnp.int32)
    exists = (target >= 0) & (target < classes)
    return jnp.where(exists, target, jnp.zeros_like(target))[..., None], exists[..., None]


def _is_other(function: str, targets: Array, ignore_id: int) -> Bool[Array, "*S"]:
    number = checks.some_id(function, "ignore_id", ignore_id)
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        remedy = "For weights of classes, pass paddings."
        checks.fail(function, "ignore_id", "be None unless target holds ids", number, remedy)
    return targets != number


def _class_weights(
    function: str, class_weight: ArrayLike | None, values: Float[Array, "*S K"]
) -> Float[Array, "K"] | None:
    if class_weight is None:
        return None
    weights = checks.real(function, "class_weight", class_weight)
    if weights.shape != values.shape[-1:]:
        checks.fail(function, "class_weight", f"have shape {values.shape[-1:]}", weights.shape)
    return weights.astype(values.dtype)


def same_shape(
    function: str, estimated: ArrayLike, target: ArrayLike
) -> tuple[Float[Array, "*S"], Float[Array, "*S"]]:
    """Estimates and targets of one shape, in at least float32."""
    values = at_least_float32(checks.real(function, "estimated", estimated))
    truth = checks.real(function, "target", target)
    if truth.shape != values.shape:
        requirement = f"have the shape of estimated, {values.shape}"
        checks.fail(function, "target", requirement, truth.shape)
    return values, truth.astype(values.dtype)


def _optax():
    """Only when it is needed: importing it takes as long as all of this package."""
    import optax

    return optax
