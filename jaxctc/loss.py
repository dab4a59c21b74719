"""The CTC loss, and the forward probabilities it is made of."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Shaped

from jaxctc._core import checks
from jaxctc._core.derivatives import negative_log_likelihood
from jaxctc._core.emissions import prepare_inputs
from jaxctc._core.explicit_axes import batch_second, over_explicit_axes, over_explicit_axes_to
from jaxctc._core.lean import select
from jaxctc.posteriors import state_log_probs


class LossAndForwardProbs(NamedTuple):
    """What `ctc_loss_with_forward_probs` returns."""

    loss: Float[Array, "*B"]
    """Negative log-probability of the labels, in nats."""
    logalpha_blank: Float[Array, "T *B N+1"]
    """log α_t of the blank before each label and of the one after the last."""
    logalpha_nonblank: Float[Array, "T *B N"]
    """log α_t of each label."""


@over_explicit_axes
def ctc_loss(
    logits: Float[ArrayLike, "*B T K"],
    logit_paddings: Shaped[ArrayLike, "*B T"] | None,
    labels: Int[ArrayLike, "*B N"] | Int[ArrayLike, "*B N A"],
    label_paddings: Shaped[ArrayLike, "*B N"] | None,
    *,
    blank_id: int = 0,
    log_epsilon: Float[ArrayLike, ""] = -jnp.inf,
    logits_normalized: bool = False,
    max_approx: bool = False,
    zero_infinity: bool = False,
    label_loop: bool = True,
    label_priors: Float[ArrayLike, "... K"] | None = None,
    prior_scale: Float[ArrayLike, ""] = 1.0,
    wildcard_id: int | None = None,
    wildcard_penalty: Float[ArrayLike, ""] = 0.0,
    label_log_weights: Float[ArrayLike, "*B N A"] | None = None,
    label_bias: Float[ArrayLike, "*B T N"] | None = None,
    vocab_axis_name: str | None = None,
    implementation: str | None = None,
) -> Float[Array, "*B"]:
    r"""Negative log-probability of `labels`, summed over all their alignments, in nats.

    .. math:: -\log \sum_{\pi \in \mathcal{B}^{-1}(y)} \prod_t p_t(\pi_t)

    The gradient is `softmax(logits) - occupancy` in the frames in use, so its rows sum to 0,
    and exactly 0 in padded frames. Computed in float32 for narrower inputs, whose gradient
    comes back in their own dtype, and in float64 for float64.

    Args:
      logits: scores over classes, the blank included.
      logit_paddings: nonzero where a frame is padded, of any dtype, at the end or anywhere
        else; None pads nothing.
      labels: class ids.
      label_paddings: nonzero where a label is padded, likewise; None pads nothing.
      blank_id: static class id of the blank; a negative one counts from the last class.
      log_epsilon: stands for log 0 in the result. With -1e5 an infeasible pair costs 1e5, as
        in optax. May be traced.
      logits_normalized: static; True takes `logits` for log-probabilities. No softmax is
        applied, the gradient is `-occupancy`, and rows that sum to more than 1 can give a
        negative loss.
      max_approx: static; True scores the best alignment alone, with the gradient of that one.
      zero_infinity: static; True makes the loss of an infeasible pair 0.
      label_loop: static; False gives every label exactly one frame, and then equal neighbours
        need no blank between them (the topology of recurrent neural aligners).
      label_priors: log-probabilities of the classes, the blank included, `[K]` or `[*B, K]`:
        the log of their average posterior, say. Alignments are then weighed by
        p(class) / prior(class)^prior_scale, which takes labels off their peaks; the loss may
        be negative. A class with prior -inf is as one with score +inf, unless the scale is 0.
      prior_scale: how much of them counts. May be traced.
      wildcard_id: static id, not the blank; `K`, one past the last class, is a good one. Where
        it stands among the labels, any number of frames may pass unexplained, none included:
        in the gap between the labels beside it every frame is either a blank or absorbed, with
        the probability of all classes but the blank times exp(-wildcard_penalty). An alignment
        then also says which frames are absorbed. As an absorbed frame may be one that a label
        explains, too, probabilities can sum to more than 1, and the loss may be negative.
        Wildcards side by side are as one.
      wildcard_penalty: nats for every absorbed frame. May be traced.
      label_log_weights: with weights `[*B, N, A]`, labels are `[*B, N, A]`, too (and their paddings
        `[*B, N]`): each label is any one of A classes, -1 for none, and the loss is of the sum over
        all choices, exp(weights) included, which need not sum to 1: it may be negative. Two
        alternatives of a class are two choices. A label of -1 alone is padded; a weight of -inf
        rules an alternative out, as an id that is no label does, and NaN or +inf make the example
        NaN. The gradient is minus the probability that the alternative was taken. Not with
        `wildcard_id`, `label_bias`, `vocab_axis_name` or a kernel; `required_frames` and
        `is_feasible` know no alternatives. The gradient takes memory for T · N · A numbers.
      label_bias: nats added to an alignment for every frame that it gives to a label, `[*B, T, N]`,
        in the places where frames and labels are given; -inf where a label may not be. Blanks have
        none. What stands at padded frames and labels has no influence. The loss may be negative;
        its gradient with respect to the bias is minus the occupancy, `-posteriors(…).label`. Not
        with `wildcard_id` or `label_log_weights`.
      vocab_axis_name: static; within `jax.shard_map`, the axis of the mesh that the classes are
        spread over, in their order and in equal parts (fill up with -inf logits). `logits` and
        `label_priors` then hold the classes of one device, and everything else is the same on
        all devices of the axis: labels and `blank_id`, which count all classes, and the loss.
        They exchange the scores of blank and labels, `[*B, T, N + 1]`, a maximum and two sums
        per frame, once; the gradient takes nothing more. Not with `wildcard_id`.
      implementation: static; which schedule of the recursion computes the loss. "xla" is plain
        operations, for every platform; "pallas" is a kernel for TPUs and one for NVIDIA GPUs from
        the H100 on, which compute in float32, know no wildcards, no biases and no alternatives, and
        have not run on a device yet: on many devices, within `jax.shard_map` alone (else "xla"
        runs, with a warning), and on no other platform, but in a program that is exported for
        several. None leaves the choice to the library, which is "xla" today. Values agree to
        rounding.

    Returns:
      One loss per example, never negative where the logits are normalised here. Empty labels
      cost `-Σ log p(blank)`, and 0 without frames. Where no alignment exists (see
      `is_feasible`: too few frames, or a label that is the blank or no class; or -inf logits or
      biases on every alignment) it is `inf`, with gradient exactly 0. NaN or +inf in a frame in
      use makes the loss and the gradient of that example NaN, and of no other; in a padded frame
      it has no influence.

    Raises:
      ValueError: if shapes disagree, labels are not integers, `blank_id` is not a class,
        `log_epsilon` is not one number, `wildcard_id` is negative or the blank, two options come
        together that exclude each other, `vocab_axis_name` does not name an axis that
        `jax.shard_map` knows the classes to vary over, `implementation` is not known or cannot do
        what it is asked for.

    Example:
      Three of the four equally likely paths over two frames spell [1]:

      >>> ctc_loss(jnp.zeros((2, 2)), None, jnp.array([1]), None).round(4)
      Array(0.2877, dtype=float32)

      Kept out of the first frame, the label is left with one of them:

      >>> window = jnp.array([[-jnp.inf], [0.0]])
      >>> ctc_loss(jnp.zeros((2, 2)), None, jnp.array([1]), None, label_bias=window).round(4)
      Array(1.3863, dtype=float32)

      A wildcard alone explains anything:

      >>> float(ctc_loss(jnp.zeros((2, 2)), None, jnp.array([2]), None, wildcard_id=2))
      0.0

      On several devices, examples along one axis of the mesh and classes along another:

      >>> import functools, jax
      >>> batch, axis_types = jax.P("batch"), (jax.sharding.AxisType.Auto,) * 2
      >>> spread = jax.shard_map(
      ...     functools.partial(ctc_loss, vocab_axis_name="vocab"),
      ...     mesh=jax.make_mesh((1, 1), ("batch", "vocab"), axis_types),
      ...     in_specs=(jax.P("batch", None, "vocab"), batch, batch, batch),
      ...     out_specs=batch,
      ... )
      >>> spread(jnp.zeros((1, 2, 2)), None, jnp.array([[1]]), None).round(4)
      Array([0.2877], dtype=float32)

    References:
      Graves et al. 2006, "Connectionist temporal classification", section 4.1. Without loops:
      Sak et al. 2017, "Recurrent neural aligner", section 2. Priors: Huang et al. 2024, "Less
      peaky and more accurate CTC forced alignment by label priors". Wildcard: after the star of
      Pratap et al. 2022, "Star temporal classification". Alternatives: after Kišš et al. 2022,
      "SoftCTC: semi-supervised learning for text recognition using soft pseudo-labels".
    """
    checks.flags("ctc_loss", max_approx=max_approx, zero_infinity=zero_infinity)
    epsilon = checks.log_zero("ctc_loss", log_epsilon)
    config, inputs = prepare_inputs(
        "ctc_loss",
        logits,
        logit_paddings,
        labels,
        label_paddings,
        blank_id=blank_id,
        logits_normalized=logits_normalized,
        label_loop=label_loop,
        label_priors=label_priors,
        prior_scale=prior_scale,
        wildcard_id=wildcard_id,
        wildcard_penalty=wildcard_penalty,
        label_log_weights=label_log_weights,
        label_bias=label_bias,
        vocab_axis_name=vocab_axis_name,
        implementation=implementation,
    )
    loss = negative_log_likelihood(config, max_approx, inputs)
    return without_infinity(loss, epsilon, zero_infinity)


def _beside_each_other(batch: PartitionSpec) -> Any:
    """How loss and rows are sharded."""
    rows = batch_second(batch)
    return LossAndForwardProbs._make((batch, rows, rows))


@over_explicit_axes_to(_beside_each_other)
def ctc_loss_with_forward_probs(
    logits: Float[ArrayLike, "*B T K"],
    logit_paddings: Shaped[ArrayLike, "*B T"] | None,
    labels: Int[ArrayLike, "*B N"],
    label_paddings: Shaped[ArrayLike, "*B N"] | None,
    *,
    blank_id: int = 0,
    log_epsilon: Float[ArrayLike, ""] = -jnp.inf,
    logits_normalized: bool = False,
) -> LossAndForwardProbs:
    r"""The loss, and the log-probability of every path beginning, per frame and state.

    `logalpha_blank[t, ..., n]` is the log-probability of all beginnings over the frames up to
    t that have spelt the first n labels and are in a blank at frame t;
    `logalpha_nonblank[t, ..., n]` of those in label n. Both include frame t, for every t (in
    optax the last row alone also holds the step after it).

    Args:
      logits, logit_paddings, labels, label_paddings: as of `ctc_loss`.
      blank_id, logits_normalized: as there.
      log_epsilon: as there; it stands for log 0 in the rows, too.

    Returns:
      `(loss, logalpha_blank, logalpha_nonblank)`, time leading. A padded frame repeats the row
      before it; before the first frame in use that is 0 for blank 0 and log 0 elsewhere.
      Labels count without their padding; entries beyond the last one are log 0. All rows of
      an example whose loss is NaN are NaN.

    Raises:
      ValueError: as `ctc_loss`.

    Example:
      The three paths of `ctc_loss`, after the second frame: one ends in a blank, two in [1].

      >>> loss, blank, label = ctc_loss_with_forward_probs(
      ...     jnp.zeros((2, 2)), None, jnp.array([1]), None
      ... )
      >>> jnp.exp(blank[-1]).round(4).tolist(), jnp.exp(label[-1]).round(4).tolist()
      ([0.25, 0.25], [0.5])

    References:
      Graves et al. 2006, "Connectionist temporal classification", section 4.1, α.
    """
    function = "ctc_loss_with_forward_probs"
    epsilon = checks.log_zero(function, log_epsilon)
    config, inputs = prepare_inputs(
        function,
        logits,
        logit_paddings,
        labels,
        label_paddings,
        blank_id=blank_id,
        logits_normalized=logits_normalized,
    )
    loss = negative_log_likelihood(config, False, inputs)
    rows = state_log_probs(config, inputs, backward=False)
    if epsilon is None:
        return LossAndForwardProbs(loss, *rows)
    epsilon = epsilon.astype(loss.dtype)
    shown = [jnp.where(row == -jnp.inf, epsilon, row) for row in rows]
    return LossAndForwardProbs(jnp.where(loss == jnp.inf, -epsilon, loss), *shown)


def without_infinity(
    loss: Float[Array, "*B"], epsilon: Float[Array, ""] | None, zero_infinity: bool
) -> Float[Array, "*B"]:
    """What an infeasible pair costs instead, if the options say so."""
    if zero_infinity:
        return select(loss != jnp.inf, loss, 0)
    if epsilon is None:
        return loss
    instead = jnp.broadcast_to(-epsilon.astype(loss.dtype), loss.shape)
    return select(loss != jnp.inf, loss, instead)
