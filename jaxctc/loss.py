"""The CTC loss, and the forward probabilities it is made of."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Shaped

from jaxctc import _checks
from jaxctc.derivatives import nan_where, value_semiring
from jaxctc.lattice import Lattice, build_lattice, spread_over_classes
from jaxctc.posteriors import log_rows, occupancies
from jaxctc.recursions import Shares, shares, total
from jaxctc.scores import Options, Reading, in_use, read, sum_over_frames, widen
from jaxctc.semirings import LOG, MAX, Semiring
from jaxctc.sharding import local_ids, sum_over


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
    label_loop: bool = True,
    label_priors: Float[ArrayLike, "... K"] | None = None,
    prior_scale: Float[ArrayLike, ""] = 1.0,
    wildcard_id: int | None = None,
    wildcard_penalty: Float[ArrayLike, ""] = 0.0,
    vocab_axis_name: str | None = None,
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
      wildcard_id: static id, not the blank; best `K`. Where it stands among the labels, any
        number of frames may pass unexplained, none included: in the gap between the labels
        beside it every frame is either a blank or absorbed, with the probability of all
        classes but the blank times exp(-wildcard_penalty). An alignment is then a path that
        says so; some frames can be explained in two ways, and the loss may be negative.
        Wildcards side by side are as one.
      wildcard_penalty: nats for every absorbed frame. May be traced.
      vocab_axis_name: static; within `jax.shard_map`, the axis of the mesh that the classes are
        spread over, in their order and in equal parts (fill up with -inf logits). `logits` and
        `label_priors` then hold the classes of one device, and everything else is the same on
        all devices of the axis: labels and `blank_id`, which count all classes, and the loss.
        They exchange the scores of blank and labels, `[*B, T, N + 1]`, a maximum and two sums
        per frame, once; the gradient takes nothing more. Not with `wildcard_id`.

    Returns:
      One loss per example, never negative where the logits are normalised here. Empty labels
      cost `-Σ log p(blank)`, and 0 without frames. Where no alignment exists (see
      `is_feasible`: too few frames, or a label that is the blank or no class; or -inf logits
      on every alignment) it is `inf`, with gradient exactly 0. NaN or +inf in a frame in use
      makes the loss and the gradient of that example NaN, and of no other; in a padded frame
      it has no influence.

    Raises:
      ValueError: if shapes disagree, labels are not integers, `blank_id` is not a class,
        `log_epsilon` is not one number, `wildcard_id` is negative or the blank,
        `vocab_axis_name` does not name an axis that `jax.shard_map` knows the classes to vary
        over.

    Example:
      Three of the four equally likely paths over two frames spell [1]:

      >>> ctc_loss(jnp.zeros((2, 2)), None, jnp.array([1]), None).round(4)
      Array(0.2877, dtype=float32)

      A wildcard alone explains anything:

      >>> float(ctc_loss(jnp.zeros((2, 2)), None, jnp.array([2]), None, wildcard_id=2))
      0.0

      On several devices, examples along one axis of the mesh and classes along another:

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
      Pratap et al. 2022, "Star temporal classification".
    """
    options = Options(
        blank_id,
        logits_normalized,
        label_loop,
        label_priors,
        prior_scale,
        wildcard_id,
        wildcard_penalty,
        vocab_axis_name,
    )
    _checks.flags("ctc_loss", max_approx=max_approx, zero_infinity=zero_infinity)
    epsilon = _checks.number("ctc_loss", "log_epsilon", log_epsilon)
    reading, inputs = read("ctc_loss", logits, logit_paddings, labels, label_paddings, options)
    return without_infinity(_compiled_loss(reading, max_approx, inputs), epsilon, zero_infinity)


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
    function, options = "ctc_loss_with_forward_probs", Options(blank_id, logits_normalized)
    epsilon = _checks.number(function, "log_epsilon", log_epsilon)
    reading, inputs = read(function, logits, logit_paddings, labels, label_paddings, options)
    loss, rows = _compiled_loss(reading, False, inputs), log_rows(reading, inputs, backward=False)
    epsilon = epsilon.astype(loss.dtype)
    shown = [jnp.where(row == -jnp.inf, epsilon, row) for row in rows]
    return LossAndForwardProbs(jnp.where(loss == jnp.inf, -epsilon, loss), *shown)


def without_infinity(
    loss: Float[Array, "*B"], epsilon: Float[Array, ""], zero_infinity: bool
) -> Float[Array, "*B"]:
    """What an infeasible pair costs instead, if the options say so."""
    infinite = jnp.zeros_like(loss) if zero_infinity else -epsilon.astype(loss.dtype)
    return jnp.where(loss == jnp.inf, infinite, loss)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compiled_loss(
    reading: Reading, max_approx: bool, inputs: _checks.CtcInputs
) -> Float[Array, "*B"]:
    return _plain_loss(reading, inputs, MAX) if max_approx else _loss(reading, inputs)


# Values come from WIDE, which JAX cannot differentiate, so each has its rule. The loss has two
# levels of them, both forward, from which JAX makes reverse mode and every mixture:
#
#   loss                 moves by ⟨gradient, movement of the logits⟩, where the gradient is computed
#                        in the same scans; it is all that reverse mode keeps
#   (loss, gradient)     moves as the same pair computed in LOG, through which JAX differentiates,
#                        once for second derivatives, and again for any after them


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _loss(reading: Reading, inputs: _checks.CtcInputs) -> Float[Array, "*B"]:
    semiring = value_semiring(inputs)
    lattice = build_lattice(inputs, reading)
    return _nats(semiring.decode(total(lattice, semiring)), lattice, reading)


@_loss.defjvp
def _loss_jvp(reading, primals, tangents):
    (inputs,) = primals
    loss, gradient = loss_and_gradient(reading, inputs)
    movement = _along(gradient, tangents[0].logits, inputs.is_frame)
    return loss, sum_over(reading.vocab_axis, movement)


# The checkpoint is there for reverse mode to keep its three arguments as they are, the gradient
# in the dtype of the logits, and not what the product makes of them on the way.
@functools.partial(jax.checkpoint, prevent_cse=False)
def _along(gradient: Array, movement: Array, is_frame: Array) -> Float[Array, "*B"]:
    return jnp.sum(widen(gradient) * widen(in_use(movement, is_frame)), axis=(-2, -1))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def loss_and_gradient(
    reading: Reading, inputs: _checks.CtcInputs
) -> tuple[Float[Array, "*B"], Float[Array, "*B T K"]]:
    """Of each example, the gradient of its own loss."""
    semiring = value_semiring(inputs)
    lattice = build_lattice(inputs, reading)
    classes = inputs.logits.shape[-1]
    folded = _is_folded(reading, classes, lattice)
    whole, parts = shares(lattice, semiring, classes if folded else None)
    log_total = semiring.decode(whole)
    gradient = _gradient(reading, inputs, lattice, log_total > -jnp.inf, parts)
    return _nats(log_total, lattice, reading), gradient


@loss_and_gradient.defjvp
def _loss_and_gradient_jvp(reading, primals, tangents):
    (inputs,) = primals

    def plain(logits):
        moved = inputs._replace(logits=logits)
        loss, pullback = jax.vjp(lambda moved: _plain_loss(reading, moved, LOG), moved)
        return loss, pullback(jnp.ones_like(loss))[0].logits

    movement = in_use(tangents[0].logits, inputs.is_frame)
    _, slopes = jax.jvp(plain, (inputs.logits,), (movement,))
    return loss_and_gradient(reading, inputs), slopes


def _plain_loss(
    reading: Reading, inputs: _checks.CtcInputs, semiring: Semiring
) -> Float[Array, "*B"]:
    """The loss in operations that JAX differentiates, to any order; in LOG or MAX."""
    inputs = inputs._replace(logits=in_use(inputs.logits, inputs.is_frame))
    lattice = build_lattice(inputs, reading)
    return _nats(semiring.decode(total(lattice, semiring)), lattice, reading)


def _is_folded(reading: Reading, classes: int, lattice: Lattice) -> bool:
    """Whether the recursion sums shares of labels to shares of classes, and not the gradient.

    With few classes, tables of labels would be what takes the most memory. The recursion is the
    same on all devices that classes are spread over, the classes are not.
    """
    return classes <= lattice.labels.shape[-1] and reading.vocab_axis is None


def _nats(log_total: Float[Array, "*B"], lattice: Lattice, reading: Reading) -> Float[Array, "*B"]:
    impossible = log_total == -jnp.inf
    loss = 0 - (log_total + sum_over_frames(lattice.offsets))  # and not -0
    if not reading.logits_normalized:
        # Rounding can take a confident model's loss below 0. Subtracting the excess as a
        # constant brings back 0 and leaves the gradient alone, as a maximum would not.
        loss -= lax.stop_gradient(jnp.minimum(loss, jnp.zeros_like(loss)))
    loss = jnp.where(impossible, jnp.full_like(loss, jnp.inf), loss)
    # A factor, not a select: it makes the gradient NaN too.
    return loss * nan_where(lattice.is_broken, loss)


def _gradient(
    reading: Reading,
    inputs: _checks.CtcInputs,
    lattice: Lattice,
    feasible: Bool[Array, "*B"],
    parts: Shares,
) -> Float[Array, "*B T K"]:
    """softmax - occupancy, or -occupancy alone where the logits are log-probabilities."""
    classes, axis = inputs.logits.shape[-1], reading.vocab_axis
    found = occupancies(lattice, feasible, parts)
    column = jnp.expand_dims(jnp.arange(classes, dtype=jnp.int32), range(found.blank.ndim))
    by_class = found.label
    if not _is_folded(reading, classes, lattice):
        labels = local_ids(lattice.labels, classes, axis)
        by_class = spread_over_classes(found.label, labels, classes)
    blank = local_ids(jnp.asarray(reading.blank, jnp.int32), classes, axis)
    by_class = jnp.where(column == blank, found.blank[..., None], by_class)
    if found.gap is not None:
        absorbed = jnp.sum(found.gap, axis=-1, keepdims=True)
        by_class = jnp.where(column == reading.wildcard, absorbed, by_class)

    gradient = -by_class
    if not reading.logits_normalized:
        scale, offset = (jnp.moveaxis(part, 0, -1) for part in (lattice.scales, lattice.offsets))
        # The normaliser takes the same differences; without the barrier XLA would share them, as
        # an array the size of the logits.
        scale = lax.optimization_barrier(scale)
        gradient += jnp.exp((widen(inputs.logits) - scale[..., None]) + offset[..., None])
    broken = nan_where(lattice.is_broken, gradient)[..., None, None]
    counts = inputs.is_frame & (feasible | lattice.is_broken)[..., None]
    gradient = jnp.where(counts[..., None], gradient * broken, jnp.zeros_like(gradient))
    return gradient.astype(inputs.logits.dtype)
