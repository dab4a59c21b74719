"""A loss that makes alignments of your choice likelier: Align With Purpose."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int, PRNGKeyArray, Shaped

from jaxctc._core import checks
from jaxctc._core.derivatives import nan_where
from jaxctc._core.explicit_axes import over_explicit_axes
from jaxctc.frame_losses import cross_entropy
from jaxctc.posteriors import sample_alignments

# In an eager call `jax_debug_nans` would stop at the NaN that nobody takes.
_nan_where = jax.jit(nan_where)


@over_explicit_axes
def purpose_loss(
    key: PRNGKeyArray,
    logits: Float[ArrayLike, "*B T K"],
    logit_paddings: Shaped[ArrayLike, "*B T"] | None,
    labels: Int[ArrayLike, "*B N"],
    label_paddings: Shaped[ArrayLike, "*B N"] | None,
    *,
    improve: Callable[[Int[Array, "*B S T"]], Int[Array, "*B S T"]],
    num_samples: int = 5,
    margin: Float[ArrayLike, ""] = 0.0,
    blank_id: int = 0,
) -> Float[Array, "*B"]:
    r"""How much likelier alignments are than better ones that you make of them.

    .. math:: \frac{1}{S} \sum_s \max(\log p(a_s) - \log p(\bar a_s) + m, 0)

    where a are alignments of the labels, drawn by `sample_alignments`, and ā what `improve` makes
    of them: earlier ones, for instance. The paper draws paths from the frames, whatever they spell.

    Args:
      key: a key of `jax.random`.
      logits, logit_paddings, labels, label_paddings, blank_id: as of `ctc_loss`.
      improve: a pure function from class ids per frame, -1 in padded frames, to others; where it
        leaves -1 in a frame in use, that is a blank.
      num_samples: static number S of alignments per example.
      margin: nats by which the better ones are to be likelier, m.

    Returns:
      One loss per example, differentiable (the draw is not part of the derivative); 0 where the
      labels cannot be aligned; NaN where a frame in use holds NaN or +inf. A better alignment
      costs 1e5 for each frame in which it is impossible.

    Raises:
      ValueError: as `sample_alignments`; if `improve` returns another shape.

    Example:
      The label is likely in the second frame alone, and moved one frame to the left it is not:

      >>> def earlier(ids):
      ...     moved = jnp.concatenate([ids[..., 1:], jnp.full_like(ids[..., :1], -1)], axis=-1)
      ...     return jnp.where(ids[..., :1] == 0, moved, ids)
      >>> logits = jnp.array([[3.0, 0.0], [0.0, 0.0]])
      >>> example = (logits, None, jnp.array([1]), None)
      >>> loss = purpose_loss(jax.random.key(1), *example, improve=earlier, num_samples=64)
      >>> print(loss > 1.5)
      True

    References:
      Segev et al. 2023, "Align With Purpose: optimize desired properties in CTC models with a
      general plug-and-play framework".
    """
    function = "purpose_loss"
    inputs = checks.ctc_inputs(function, logits, logit_paddings, labels, label_paddings)
    example = inputs.logits, ~inputs.is_frame, inputs.labels, ~inputs.is_label
    drawn = sample_alignments(key, *example, num_samples=num_samples, blank_id=blank_id)
    better = improve(drawn)
    if jnp.shape(better) != drawn.shape:
        requirement = f"return the shape that it is given, {drawn.shape}"
        checks.fail(function, "improve", requirement, jnp.shape(better))
    blank = checks.class_id(function, "blank_id", blank_id, inputs.logits.shape[-1])
    better = jnp.where(better < 0, jnp.full_like(better, blank), better)
    scores = jnp.broadcast_to(
        inputs.logits[..., None, :, :], (*drawn.shape, inputs.logits.shape[-1])
    )

    def cost(ids: Array) -> Array:
        return jnp.sum(cross_entropy(scores, ids, paddings=drawn < 0), axis=-1)

    gap = cost(better) - cost(drawn)
    gap = jax.nn.relu(gap + checks.number(function, "margin", margin).astype(gap.dtype))
    is_drawn = jnp.any(drawn >= 0, axis=-1)
    gap = jnp.sum(jnp.where(is_drawn, gap, jnp.zeros_like(gap)), axis=-1) / max(num_samples, 1)
    is_nan = jnp.any(~(inputs.logits < jnp.inf) & inputs.is_frame[..., None], axis=(-2, -1))
    return gap * _nan_where(is_nan, gap)
