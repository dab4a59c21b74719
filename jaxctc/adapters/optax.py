"""The CTC losses of optax: `ctc_loss` and `ctc_loss_with_forward_probs`."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Shaped

from jaxctc import loss
from jaxctc._core import checks
from jaxctc._core.semirings import LOG
from jaxctc.loss import LossAndForwardProbs


def ctc_loss(
    logits: Float[ArrayLike, "*B T K"],
    logit_paddings: Shaped[ArrayLike, "*B T"] | None,
    labels: Int[ArrayLike, "*B N"],
    label_paddings: Shaped[ArrayLike, "*B N"] | None,
    blank_id: int = 0,
    log_epsilon: Float[ArrayLike, ""] = -1e5,
    *,
    implementation: str | None = None,
) -> Float[Array, "*B"]:
    """Negative log-probability of `labels`, in nats.

    As `jaxctc.ctc_loss`, with optax's arguments. Where an alignment exists, value and gradient are
    those of optax. Unlike there, batch axes may be any number, padding may be of any dtype and
    stand anywhere, and there may be no frames.

    Args:
      logits, logit_paddings, labels, label_paddings: as of `jaxctc.ctc_loss`.
      blank_id: static class id of the blank; optax takes it by name only.
      log_epsilon: minus the loss of an infeasible pair. Nothing else depends on it, while optax
        cannot tell a loss beyond 1e5 from an infeasible pair. May be traced.
      implementation: as of `jaxctc.ctc_loss`.

    Returns:
      One loss per example. An infeasible pair, such as one with a label that is the blank, costs
      exactly `-log_epsilon`, with gradient 0; in optax it costs about that, with a gradient, and a
      blank among the labels lowers the loss.

    Raises:
      ValueError: as `jaxctc.ctc_loss`.

    Example:
      Three of the four equally likely paths over two frames spell [1], and none [1, 1]:

      >>> logits, no_padding = jnp.zeros((1, 2, 2)), jnp.zeros((1, 2))
      >>> labels = jnp.array([[1, 1]])
      >>> jnp.exp(-ctc_loss(logits, no_padding, labels, jnp.array([[0.0, 1.0]])))
      Array([0.75], dtype=float32)
      >>> ctc_loss(logits, no_padding, labels, no_padding)
      Array([100000.], dtype=float32)
    """
    return loss.ctc_loss(
        logits,
        logit_paddings,
        labels,
        label_paddings,
        blank_id=blank_id,
        log_epsilon=log_epsilon,
        implementation=implementation,
    )


def ctc_loss_with_forward_probs(
    logits: Float[ArrayLike, "*B T K"],
    logit_paddings: Shaped[ArrayLike, "*B T"] | None,
    labels: Int[ArrayLike, "*B N"],
    label_paddings: Shaped[ArrayLike, "*B N"] | None,
    blank_id: int = 0,
    log_epsilon: Float[ArrayLike, ""] = -1e5,
) -> LossAndForwardProbs:
    """The loss, and the log-probability of every path beginning, per frame and state.

    As `jaxctc.ctc_loss_with_forward_probs`, with optax's arguments and its last row: the one of
    the blanks also holds the step after it, so that `logalpha_blank[-1, ..., n]` is the
    log-probability of all paths that spell the first n labels.

    Args:
      logits, logit_paddings, labels, label_paddings, blank_id: as of `ctc_loss`.
      log_epsilon: stands for log 0 in the rows, too. May be traced.

    Returns:
      `(loss, logalpha_blank, logalpha_nonblank)`, time leading, value for value those of optax
      where a path beginning exists. Where none does they are exactly `log_epsilon`, and so are
      the entries beyond the last label, where optax goes on into the padding.

    Raises:
      ValueError: as `jaxctc.ctc_loss`.

    Example:
      After the second frame, one path has spelt nothing and three [1], two of them in label 1:

      >>> loss, blank, label = ctc_loss_with_forward_probs(
      ...     jnp.zeros((1, 2, 2)), None, jnp.array([[1]]), None
      ... )
      >>> jnp.exp(blank[-1]).round(4).tolist(), jnp.exp(label[-1]).round(4).tolist()
      ([[0.25, 0.75]], [[0.5]])
    """
    function = "adapters.optax.ctc_loss_with_forward_probs"
    number = checks.number(function, "log_epsilon", log_epsilon)
    losses, blank, label = loss.ctc_loss_with_forward_probs(
        logits, logit_paddings, labels, label_paddings, blank_id=blank_id
    )
    last = blank[-1:]  # of no frames, too
    last = jnp.concatenate([last[..., :1], LOG.plus(last[..., 1:], label[-1:])], axis=-1)
    blank = jnp.concatenate([blank[:-1], last])

    def shown(log_probs):
        return jnp.where(log_probs == -jnp.inf, number.astype(log_probs.dtype), log_probs)

    return LossAndForwardProbs(-shown(-losses), shown(blank), shown(label))
