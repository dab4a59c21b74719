"""The CTC loss, and the forward probabilities it is made of."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Shaped

from jaxctc import _checks
from jaxctc.lattice import Lattice, build_lattice, in_use, spread_over_classes, widen
from jaxctc.recursions import forward_rows, label_shares, total
from jaxctc.semirings import LOG, MAX, WIDE, Number, Semiring


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
    scores = _scores("ctc_loss", inputs, blank_id, logits_normalized)
    loss = _plain_loss(scores, inputs, MAX) if max_approx else _loss(scores, inputs)
    infinite = jnp.zeros_like(loss) if zero_infinity else -jnp.asarray(log_epsilon, loss.dtype)
    return jnp.where(loss == jnp.inf, infinite, loss)


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
    scores = _scores(function, inputs, blank_id, logits_normalized)
    loss, rows = _loss(scores, inputs), _rows(scores, inputs)
    epsilon = jnp.asarray(log_epsilon, loss.dtype)
    shown = [jnp.where(row == -jnp.inf, epsilon, row) for row in rows]
    return LossAndForwardProbs(jnp.where(loss == jnp.inf, -epsilon, loss), *shown)


class _Scores(NamedTuple):
    """How logits are to be read: the static part of every call."""

    blank: int
    logits_normalized: bool


def _scores(
    function: str, inputs: _checks.CtcInputs, blank_id: int, logits_normalized: bool
) -> _Scores:
    blank = _checks.class_id(function, "blank_id", blank_id, inputs.logits.shape[-1])
    return _Scores(blank, logits_normalized)


def _semiring(inputs: _checks.CtcInputs) -> Semiring:
    """What values are computed in: WIDE knows float32 only, and float64 can do without."""
    return LOG if inputs.logits.dtype == jnp.float64 else WIDE


# Values come from WIDE, which JAX cannot differentiate, so each has its rule. The loss has two
# levels of them, both forward, from which JAX makes reverse mode and every mixture:
#
#   loss                 moves by ⟨gradient, movement of the logits⟩, where the gradient is computed
#                        in the same scans; it is all that reverse mode keeps
#   (loss, gradient)     moves as the same pair computed in LOG, through which JAX differentiates,
#                        once for second derivatives, and again for any after them


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _loss(scores: _Scores, inputs: _checks.CtcInputs) -> Float[Array, "*B"]:
    semiring, lattice = _semiring(inputs), build_lattice(inputs, **scores._asdict())
    return _nats(semiring.decode(total(lattice, semiring)), lattice, scores)


@_loss.defjvp
def _loss_jvp(scores, primals, tangents):
    (inputs,) = primals
    loss, gradient = _loss_and_gradient(scores, inputs)
    return loss, _along(gradient, tangents[0].logits, inputs.is_frame)


# The checkpoint is there for reverse mode to keep its three arguments as they are, the gradient
# in the dtype of the logits, and not what the product makes of them on the way.
@functools.partial(jax.checkpoint, prevent_cse=False)
def _along(gradient: Array, movement: Array, is_frame: Array) -> Float[Array, "*B"]:
    return jnp.sum(widen(gradient) * widen(in_use(movement, is_frame)), axis=(-2, -1))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _loss_and_gradient(
    scores: _Scores, inputs: _checks.CtcInputs
) -> tuple[Float[Array, "*B"], Float[Array, "*B T K"]]:
    semiring, lattice = _semiring(inputs), build_lattice(inputs, **scores._asdict())
    whole, shares = label_shares(lattice, semiring)
    log_total = semiring.decode(whole)
    gradient = _gradient(scores, inputs, lattice, log_total > -jnp.inf, shares)
    return _nats(log_total, lattice, scores), gradient


@_loss_and_gradient.defjvp
def _loss_and_gradient_jvp(scores, primals, tangents):
    (inputs,) = primals

    def plain(logits):
        moved = inputs._replace(logits=logits)
        loss, pullback = jax.vjp(lambda moved: _plain_loss(scores, moved, LOG), moved)
        return loss, pullback(jnp.ones_like(loss))[0].logits

    movement = in_use(tangents[0].logits, inputs.is_frame)
    _, slopes = jax.jvp(plain, (inputs.logits,), (movement,))
    return _loss_and_gradient(scores, inputs), slopes


def _plain_loss(
    scores: _Scores, inputs: _checks.CtcInputs, semiring: Semiring
) -> Float[Array, "*B"]:
    """The loss in operations that JAX differentiates, to any order; in LOG or MAX."""
    inputs = inputs._replace(logits=in_use(inputs.logits, inputs.is_frame))
    lattice = build_lattice(inputs, **scores._asdict())
    return _nats(semiring.decode(total(lattice, semiring)), lattice, scores)


def _nats(log_total: Float[Array, "*B"], lattice: Lattice, scores: _Scores) -> Float[Array, "*B"]:
    impossible = log_total == -jnp.inf
    loss = -(log_total + _sum_over_frames(lattice.offsets))
    if not scores.logits_normalized:
        # Rounding can take a confident model's loss below 0. Subtracting the excess as a
        # constant brings back 0 and leaves the gradient alone, as a maximum would not.
        loss -= lax.stop_gradient(jnp.minimum(loss, jnp.zeros_like(loss)))
    loss = jnp.where(impossible, jnp.full_like(loss, jnp.inf), loss)
    # A factor, not a select: it makes the gradient NaN too.
    return loss * _nan_where(lattice.is_broken, loss)


def _sum_over_frames(offsets: Float[Array, "T *B"]) -> Float[Array, "*B"]:
    """In blocks, so that the rounding errors of T terms do not add up to T of them."""
    frames, block = offsets.shape[0], 128
    count = -(-frames // block)
    rest = jnp.zeros_like(offsets, shape=(count * block - frames, *offsets.shape[1:]))
    blocks = jnp.concatenate([offsets, rest]).reshape(count, block, *offsets.shape[1:])
    return jnp.sum(jnp.sum(blocks, axis=1), axis=0)


def _gradient(
    scores: _Scores,
    inputs: _checks.CtcInputs,
    lattice: Lattice,
    feasible: Bool[Array, "*B"],
    shares: Float[Array, "T *B N"],
) -> Float[Array, "*B T K"]:
    """softmax - occupancy, or -occupancy alone where the logits are log-probabilities."""
    classes = inputs.logits.shape[-1]
    counts = inputs.is_frame & feasible[..., None]
    occupancies = jnp.moveaxis(shares, 0, -2)
    occupancies = jnp.where(counts[..., None], occupancies, jnp.zeros_like(occupancies))
    # Blanks have what labels leave. Below the rounding of that sum it is nothing.
    left = 1 - jnp.sum(occupancies, axis=-1)
    left = jnp.where(left > 8 * jnp.finfo(left.dtype).eps, left, jnp.zeros_like(left))
    column = jnp.arange(classes, dtype=jnp.int32)
    is_blank = jnp.expand_dims(column == scores.blank, range(left.ndim))
    by_class = spread_over_classes(occupancies, lattice.labels, classes)
    by_class = jnp.where(is_blank, left[..., None], by_class)

    gradient = -by_class
    if not scores.logits_normalized:
        scale, offset = (jnp.moveaxis(part, 0, -1) for part in (lattice.scales, lattice.offsets))
        gradient += jnp.exp((widen(inputs.logits) - scale[..., None]) + offset[..., None])
    broken = _nan_where(lattice.is_broken, gradient)[..., None, None]
    counts |= inputs.is_frame & lattice.is_broken[..., None]
    gradient = jnp.where(counts[..., None], gradient * broken, jnp.zeros_like(gradient))
    return gradient.astype(inputs.logits.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _rows(scores: _Scores, inputs: _checks.CtcInputs) -> tuple[Array, Array]:
    return _log_rows(scores, inputs, _semiring(inputs))


@_rows.defjvp
def _rows_jvp(scores, primals, tangents):
    (inputs,) = primals

    def plain(logits):
        logits = in_use(logits, inputs.is_frame)
        return _log_rows(scores, inputs._replace(logits=logits), LOG)

    movement = in_use(tangents[0].logits, inputs.is_frame)
    _, slopes = jax.jvp(plain, (inputs.logits,), (movement,))
    return _rows(scores, inputs), slopes


def _log_rows(
    scores: _Scores, inputs: _checks.CtcInputs, semiring: Semiring
) -> tuple[Array, Array]:
    """log α after every frame, NaN throughout for a broken example."""
    lattice = build_lattice(inputs, **scores._asdict())
    offsets = jnp.cumsum(lattice.offsets, axis=0)[..., None]
    factor = _nan_where(lattice.is_broken, offsets)[None, ..., None]

    def in_nats(number: Number) -> Array:
        row = semiring.decode(number)
        return jnp.where(row == -jnp.inf, row, row + offsets) * factor

    rows = forward_rows(lattice, semiring)
    return in_nats(rows.blank), in_nats(rows.label)


def _nan_where(is_broken: Array, like: Array) -> Array:
    """NaN for a broken example, 1 for others."""
    return jnp.where(is_broken, jnp.asarray(jnp.nan, like.dtype), jnp.asarray(1, like.dtype))
