"""The CTC loss, and the forward probabilities it is made of."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Shaped

from jaxctc import _checks
from jaxctc.lattice import Lattice, build_lattice
from jaxctc.recursions import forward, forward_rows
from jaxctc.semirings import LOG, MAX


class LossAndForwardProbs(NamedTuple):
    """What `ctc_loss_with_forward_probs` returns."""

    loss: Float[Array, "*B"]
    """Negative log-probability of the labels, in nats."""
    logalpha_blank: Float[Array, "T *B N+1"]
    """log α_t of the blank before each label and of the one behind the last."""
    logalpha_nonblank: Float[Array, "T *B N"]
    """log α_t of each label."""


def ctc_loss(
    logits: Float[ArrayLike, "*B T K"],
    logit_paddings: Shaped[ArrayLike, "*B T"] | None,
    labels: Int[ArrayLike, "*B N"],
    label_paddings: Shaped[ArrayLike, "*B N"] | None,
    *,
    blank_id: int = 0,
    log_epsilon: Float[ArrayLike, ""] = -jnp.inf,
    logits_normalized: bool = False,
    max_approx: bool = False,
    zero_infinity: bool = False,
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

    Returns:
      One loss per example, never negative where the logits are normalised here. Empty labels
      cost `-Σ log p(blank)`, and 0 without frames. Where no alignment exists (see
      `is_feasible`: too few frames, or a label that is the blank or no class; or -inf logits
      on every alignment) it is `inf`, with gradient exactly 0. NaN or +inf in a frame in use
      makes the loss and the gradient of that example NaN, and of no other; in a padded frame
      it has no influence.

    Raises:
      ValueError: if shapes disagree, labels are not integers or `blank_id` is not a class.

    Example:
      Three of the four equally likely paths over two frames spell [1]:

      >>> ctc_loss(jnp.zeros((2, 2)), None, jnp.array([1]), None).round(4)
      Array(0.2877, dtype=float32)

    References:
      Graves et al. 2006, "Connectionist temporal classification", section 4.1.
    """
    inputs = _checks.ctc_inputs("ctc_loss", logits, logit_paddings, labels, label_paddings)
    lattice = _lattice("ctc_loss", inputs, blank_id, logits_normalized)
    total = forward(lattice, MAX if max_approx else LOG)
    epsilon = jnp.zeros_like(total) if zero_infinity else _like(log_epsilon, total)
    return _loss(total, lattice, epsilon, clamp=not logits_normalized)


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
    optax the last row alone also holds the step behind it).

    Args:
      logits: arguments and options as of `ctc_loss`.
      logit_paddings: as there.
      labels: as there.
      label_paddings: as there.
      blank_id: as there.
      log_epsilon: as there; it stands for log 0 in the rows, too.
      logits_normalized: as there.

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
    inputs = _checks.ctc_inputs(function, logits, logit_paddings, labels, label_paddings)
    lattice = _lattice(function, inputs, blank_id, logits_normalized)
    total, rows = forward_rows(lattice, LOG)
    epsilon = _like(log_epsilon, total)

    def shown(row: Float[Array, "T *B S"]) -> Float[Array, "T *B S"]:
        row = jnp.where(row == -jnp.inf, epsilon[None, ..., None], row)
        return row * _nan_where(lattice.is_broken, row)[None, ..., None]

    return LossAndForwardProbs(
        _loss(total, lattice, epsilon, clamp=not logits_normalized),
        shown(rows.blank),
        shown(rows.label),
    )


def _lattice(
    function: str, inputs: _checks.CtcInputs, blank_id: int, logits_normalized: bool
) -> Lattice:
    blank = _checks.class_id(function, "blank_id", blank_id, inputs.logits.shape[-1])
    return build_lattice(inputs, blank_id=blank, logits_normalized=logits_normalized)


def _loss(
    total: Float[Array, "*B"], lattice: Lattice, log_epsilon: Float[Array, "*B"], *, clamp: bool
) -> Float[Array, "*B"]:
    loss = jnp.where(total == -jnp.inf, -log_epsilon, -total)
    if clamp:
        # Rounding can take a confident model's loss below 0. Subtracting the excess as a
        # constant brings back 0 and leaves the gradient alone, as a maximum would not.
        loss -= lax.stop_gradient(jnp.minimum(loss, jnp.zeros_like(loss)))
    # A factor, not a select: it makes the gradient NaN too.
    return loss * _nan_where(lattice.is_broken, loss)


def _nan_where(is_broken: Array, like: Array) -> Array:
    """NaN for a broken example, 1 for others."""
    return jnp.where(is_broken, jnp.asarray(jnp.nan, like.dtype), jnp.asarray(1, like.dtype))


def _like(value: ArrayLike, total: Array) -> Array:
    return jnp.broadcast_to(jnp.asarray(value, total.dtype), total.shape)
