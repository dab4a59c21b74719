"""The CTC loss of lucid: `lucid.nn.functional.ctc_loss`."""

from collections.abc import Sequence
from typing import Literal

from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from jaxctc._core import checks
from jaxctc.adapters.torch import per_example, reduce


def ctc_loss(
    log_probs: Float[ArrayLike, "T N C"],
    targets: Int[ArrayLike, "..."],
    input_lengths: Int[ArrayLike, "N"] | Sequence[int],
    target_lengths: Int[ArrayLike, "N"] | Sequence[int],
    blank: int = 0,
    reduction: Literal["mean", "sum", "none"] = "mean",
    zero_infinity: bool = False,
    *,
    implementation: str | None = None,
) -> Float[Array, "..."]:
    """Negative log-probability of `targets`, in nats, by default on average over the batch.

    As `jaxctc.adapters.torch.ctc_loss`, but "mean" does not divide by the number of labels, and a
    batch is required. It does what lucid documents, also where lucid itself does not: targets of
    different lengths may be padded (it reads them as if concatenated), and the loss has a
    gradient.

    Args:
      log_probs: log-probabilities `(T, N, C)`.
      targets, input_lengths, target_lengths, blank: as of `jaxctc.adapters.torch.ctc_loss`.
      reduction: static; "mean" over the batch, "sum" or "none".
      zero_infinity: static; True makes an infinite loss 0.
      implementation: as of `jaxctc.ctc_loss`.

    Returns:
      A scalar, or for "none" one loss per example. Without an alignment the loss is `inf`, with
      gradient 0; in lucid it is 1e30, which `zero_infinity` leaves as it is.

    Raises:
      ValueError: as `jaxctc.adapters.torch.ctc_loss`, or if there is no batch.

    Example:
      One path in nine spells [1, 2]:

      >>> import jax.numpy as jnp
      >>> log_probs = jnp.log(jnp.full((2, 1, 3), 1 / 3))
      >>> jnp.exp(ctc_loss(log_probs, jnp.array([[1, 2]]), [2], [2])).round(4)
      Array(9., dtype=float32)
    """
    function = "adapters.lucid.ctc_loss"
    scores = checks.as_array(function, "log_probs", log_probs)
    if scores.ndim != 3:
        checks.fail(function, "log_probs", "have shape (T, N, C)", scores.shape)
    losses, _ = per_example(
        function,
        scores,
        targets,
        input_lengths,
        target_lengths,
        blank,
        zero_infinity,
        implementation,
    )
    return reduce(function, losses, reduction)
