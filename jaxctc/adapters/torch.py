"""The CTC loss of PyTorch: `torch.nn.functional.ctc_loss`."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from jaxctc import loss
from jaxctc._core import checks, foreign
from jaxctc._core.explicit_axes import over_explicit_axes
from jaxctc.padding import lengths_to_paddings, paddings_to_lengths


def ctc_loss(
    log_probs: Float[ArrayLike, "T *N C"],
    targets: Int[ArrayLike, "..."],
    input_lengths: Int[ArrayLike, "..."] | Sequence[int],
    target_lengths: Int[ArrayLike, "..."] | Sequence[int],
    blank: int = 0,
    reduction: Literal["mean", "sum", "none"] = "mean",
    zero_infinity: bool = False,
    *,
    implementation: str | None = None,
) -> Float[Array, "..."]:
    """Negative log-probability of `targets`, in nats, by default per label and on average.

    As `jaxctc.ctc_loss`, with torch's arguments. The scores are taken as they are, so the loss is
    that of torch even where they are no log-probabilities. The gradient is the derivative, minus
    the occupancy, whose rows sum to -1 in the frames in use. That of torch is `exp(log_probs)`
    more, which takes a `log_softmax` in front for granted; through one, the two are the same.

    Args:
      log_probs: log-probabilities `(T, N, C)`, or `(T, C)` of one example.
      targets: labels `(N, S)`, or those of all examples concatenated; of one example `(S,)`.
      input_lengths: frames in use, `(N,)`; of one example `()` or `(1,)`.
      target_lengths: labels in use, likewise. Where they are Python numbers or NumPy,
        concatenated targets become `(N, S)` with S the largest of them. Where JAX holds them it
        is not known while tracing, and S is the length of all targets together, so that padded
        targets are much the cheaper form.
      blank: static class id of the blank; a negative one, unlike in torch, counts from the last.
      reduction: static; "mean" divides each loss by its number of labels (by 1, if there are
        none) and takes the mean over the batch; "sum"; or "none".
      zero_infinity: static; True makes an infinite loss 0.
      implementation: as of `jaxctc.ctc_loss`.

    Returns:
      A scalar, or for "none" one loss per example, `(N,)` or `()`. Without an alignment the loss
      is `inf`, and its gradient 0, where torch has NaN. That is so for a label that is the blank,
      too, which torch takes for an ordinary one.

    Raises:
      ValueError: if shapes disagree, `targets` or lengths are not integers, `blank` is not a
        class, or `reduction` is none of the three; and, of lengths in Python or NumPy, if one is
        negative or longer than its array, or those of concatenated targets do not add up to it.
        Of lengths that JAX holds, one that is too long counts all of its array, and labels beyond
        the end of concatenated ones are no class, which makes that loss infinite.

    Example:
      One path in nine spells [1, 2], so the loss is log 9, or log 3 per label:

      >>> log_probs = jnp.log(jnp.full((2, 1, 3), 1 / 3))
      >>> ctc_loss(log_probs, jnp.array([[1, 2]]), [2], [2]).round(4)
      Array(1.0986, dtype=float32)
    """
    function = "adapters.torch.ctc_loss"
    losses, counts = per_example(
        function,
        log_probs,
        targets,
        input_lengths,
        target_lengths,
        blank,
        zero_infinity,
        implementation,
    )
    if reduction == "mean":
        losses = losses / jnp.maximum(counts, 1).astype(losses.dtype)
    return reduce(function, losses, reduction)


@dataclasses.dataclass(frozen=True)
class CTCLoss:
    """`ctc_loss` as an object, as of `torch.nn`, which is called with the first four arguments.

    Args:
      blank, reduction, zero_infinity: as of `ctc_loss`.

    Example:
      >>> criterion = CTCLoss(blank=0, zero_infinity=True)
      >>> log_probs = jnp.log(jnp.full((2, 1, 3), 1 / 3))
      >>> criterion(log_probs, jnp.array([[1, 2]]), [2], [2]).round(4)
      Array(1.0986, dtype=float32)
    """

    blank: int = 0
    reduction: Literal["mean", "sum", "none"] = "mean"
    zero_infinity: bool = False

    def __call__(
        self,
        log_probs: Float[ArrayLike, "T *N C"],
        targets: Int[ArrayLike, "..."],
        input_lengths: Int[ArrayLike, "..."] | Sequence[int],
        target_lengths: Int[ArrayLike, "..."] | Sequence[int],
        *,
        implementation: str | None = None,
    ) -> Float[Array, "..."]:
        """What `ctc_loss` returns."""
        return ctc_loss(
            log_probs,
            targets,
            input_lengths,
            target_lengths,
            **dataclasses.asdict(self),
            implementation=implementation,
        )


# What `jaxctc.adapters.lucid` builds on, too.


def per_example(
    function: str,
    log_probs: Float[ArrayLike, "T *N C"],
    targets: Int[ArrayLike, "..."],
    input_lengths: Any,
    target_lengths: Any,
    blank: int,
    zero_infinity: bool,
    implementation: str | None,
) -> tuple[Float[Array, "*N"], Int[Array, "*N"]]:
    """Of each example, the loss and the number of labels."""
    scores = checks.as_array(function, "log_probs", log_probs)
    if scores.ndim not in (2, 3):
        checks.fail(function, "log_probs", "have shape (T, N, C) or (T, C)", scores.shape)
    scores = jnp.moveaxis(checks.class_scores(function, "log_probs", scores), 0, -2)
    batch, (frames, classes) = scores.shape[:-2], scores.shape[-2:]
    per_row = checks.as_array(function, "input_lengths", checks.saturated(input_lengths)).shape
    if batch and per_row == (frames,) != batch:
        requirement = f"have shape (T, N, C) with N = {frames}, as input_lengths have"
        remedy = "If the batch is first, pass jnp.swapaxes(log_probs, 0, 1)."
        got = (frames, *batch, classes)
        checks.fail(function, "log_probs", requirement, got, remedy)
    counts = _lengths(function, "input_lengths", input_lengths, batch, frames)
    labels, label_paddings = _labels(function, targets, target_lengths, batch)
    losses = loss.ctc_loss(
        scores,
        lengths_to_paddings(counts, frames),
        labels,
        label_paddings,
        blank_id=checks.class_id(function, "blank", blank, classes),
        logits_normalized=True,
        zero_infinity=zero_infinity,
        implementation=implementation,
    )
    return losses, paddings_to_lengths(label_paddings)


def reduce(function: str, losses: Float[Array, "*N"], reduction: str) -> Float[Array, "..."]:
    """The mean, the sum or the losses themselves."""
    checks.choice(function, "reduction", reduction, ("mean", "sum", "none"))
    if reduction == "none":
        return losses
    return jnp.mean(losses) if reduction == "mean" else jnp.sum(losses)


def _labels(
    function: str, targets: Int[ArrayLike, "..."], lengths: Any, batch: tuple[int, ...]
) -> tuple[Int[Array, "*N S"], Bool[Array, "*N S"]]:
    ids = checks.class_ids(function, "targets", targets)
    if not batch and ids.ndim == 2 and ids.shape[0] == 1:
        ids = ids[0]
    concatenated = len(batch) == 1 and ids.ndim == 1
    if not concatenated and ids.shape[:-1] != batch:
        requirement = "have shape (S,)"
        if batch:
            requirement = f"have shape (N, S) with N = {batch[0]}, as in log_probs, or (S,)"
        checks.fail(function, "targets", requirement, ids.shape)
    counts = _lengths(function, "target_lengths", lengths, batch, ids.shape[-1])
    if concatenated:
        ids = _split(function, ids, counts, foreign.known(lengths))
    return ids, lengths_to_paddings(counts, ids.shape[-1])


@over_explicit_axes
def _split(
    function: str, ids: Int[Array, "M"], counts: Int[Array, "N"], known: np.ndarray | None
) -> Int[Array, "N S"]:
    """Concatenated labels as one row per example; what lies beyond their end is no class."""
    width = ids.size
    if known is not None:
        if known.sum() != ids.size:
            requirement = f"add up to the number of targets, {ids.size}"
            checks.fail(function, "target_lengths", requirement, known.sum())
        width = int(known.max(initial=0))
    first = jnp.cumsum(counts, dtype=jnp.int32) - counts
    places = first[:, None] + jnp.arange(width, dtype=jnp.int32)[None]
    return ids.at[places].get(mode="fill", fill_value=-1)


def _lengths(
    function: str, argument: str, lengths: Any, batch: tuple[int, ...], longest: int
) -> Int[Array, "*N"]:
    counts = checks.as_array(function, argument, checks.saturated(lengths))
    checks.known_lengths(function, argument, lengths, longest)
    if not batch and counts.shape == (1,):
        counts = counts[0]
    return jnp.maximum(checks.lengths(function, argument, counts, batch, longest), 0)
