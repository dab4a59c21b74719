"""The objectives of Dandelion: `dandelion.objective`.

Scores are probabilities, sequences run along the first axis and hold ids as floats, masks are 1
where something is in use, and the blank is the last class.

The frame-wise ones return one number per row `(B,)` of predictions `(B, N)`, or per entry. Targets
are ids `(B,)` or weights of the classes `(B, N)`; entry by entry they have the shape of the
predictions, or `(B,)` for predictions `(B, 1)`. All raise ValueError if shapes disagree.
"""

from typing import Literal

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Shaped

from jaxctc import frame_losses, loss
from jaxctc._core import checks
from jaxctc._core.normalizer import at_least_float32, log_where_possible
from jaxctc.adapters import frame_objectives
from jaxctc.decoding import greedy
from jaxctc.metrics import error_rates


def ctc_cost_logscale(
    seq: Shaped[ArrayLike, "L B"],
    sm: Float[ArrayLike, "T C+1 B"],
    seq_mask: Shaped[ArrayLike, "L B"] | None = None,
    sm_mask: Shaped[ArrayLike, "T B"] | None = None,
    blank_symbol: int | None = None,
    align: Literal["pre", "post"] = "pre",
    *,
    implementation: str | None = None,
) -> Float[Array, ""]:
    """Negative log-probability of the sequences, in nats, on average over the batch.

    As `jaxctc.ctc_loss` of the scores' logarithms, which are not normalised. Dandelion takes
    probabilities below 1e-12 for 1e-12; here 0 is 0, and the gradient with respect to it 0.

    Args:
      seq: class ids, as floats or integers; what is no whole number is no class.
      sm: probabilities of the classes.
      seq_mask: nonzero where a label is in use; None uses all.
      sm_mask: nonzero where a frame is in use, likewise.
      blank_symbol: static class id of the blank; None is the last class.
      align: static; "pre" says that the frames in use come first, "post" that they come last.
        Either is right here: the mask decides.
      implementation: as of `jaxctc.ctc_loss`.

    Returns:
      One number; `inf` if any sequence has no alignment.

    Raises:
      ValueError: if shapes disagree, `blank_symbol` is not a class, or `align` is neither.

    Example:
      Three of the four equally likely paths over two frames spell [0]:

      >>> cost = ctc_cost_logscale(jnp.array([[0.0]]), jnp.full((2, 2, 1), 0.5))
      >>> jnp.exp(-cost)
      Array(0.75, dtype=float32)
    """
    function = "adapters.dandelion.ctc_cost_logscale"
    probs = checks.as_array(function, "sm", sm)
    if probs.ndim != 3:
        checks.fail(function, "sm", "have shape (T, C+1, B)", probs.shape)
    probs = jnp.transpose(checks.class_scores(function, "sm", probs), (2, 0, 1))
    blank = -1 if blank_symbol is None else blank_symbol
    checks.choice(function, "align", align, ("pre", "post"))
    labels = _ids(function, "seq", seq)
    if labels.shape[0] != probs.shape[0]:
        requirement = f"have shape (L, B) with B = {probs.shape[0]}, as in sm"
        checks.fail(function, "seq", requirement, jnp.shape(seq))
    padded = _paddings(function, "sm_mask", sm_mask, probs.shape[:2])
    if padded is not None:  # before the logarithm, whose derivative would let NaN through
        probs = jnp.where(padded[..., None], jnp.ones_like(probs), probs)
    losses = loss.ctc_loss(
        _log(probs),
        padded,
        labels,
        _paddings(function, "seq_mask", seq_mask, labels.shape),
        blank_id=checks.class_id(function, "blank_symbol", blank, probs.shape[-1]),
        logits_normalized=True,
        implementation=implementation,
    )
    return jnp.mean(losses)


def ctc_best_path_decode(
    Y: Float[ArrayLike, "B T C+1"],
    Y_mask: Shaped[ArrayLike, "B T"] | None = None,
    blank_symbol: int | None = None,
) -> tuple[Float[Array, "T B"], Float[Array, "T B"]]:
    """The labels along the most likely path, and where there are any.

    As `jaxctc.greedy_decode`.

    Args:
      Y: scores of the classes; batch leading, unlike everywhere else.
      Y_mask: nonzero where a frame is in use; None uses all.
      blank_symbol: static class id of the blank; None is the last class.

    Returns:
      `(resultseq, resultseq_mask)`, float32: class ids, -1 after the last; and 1 where there is
      a label, else 0.

    Raises:
      ValueError: if shapes disagree or `blank_symbol` is not a class.

    Example:
      >>> labels, mask = ctc_best_path_decode(jnp.eye(3)[jnp.array([[1, 1, 2, 1, 2]])])
      >>> labels[:, 0].tolist(), mask[:, 0].tolist()
      ([1.0, 1.0, -1.0, -1.0, -1.0], [1.0, 1.0, 0.0, 0.0, 0.0])
    """
    function = "adapters.dandelion.ctc_best_path_decode"
    scores = checks.as_array(function, "Y", Y)
    if scores.ndim != 3:
        checks.fail(function, "Y", "have shape (B, T, C+1)", scores.shape)
    blank = -1 if blank_symbol is None else blank_symbol
    blank = checks.class_id(function, "blank_symbol", blank, scores.shape[-1])
    paddings = None
    if Y_mask is not None:
        paddings = ~checks.paddings(function, "Y_mask", Y_mask, scores.shape[:2])
    labels = greedy.greedy_decode(scores, paddings, blank_id=blank).labels.T
    return labels.astype(jnp.float32), (labels >= 0).astype(jnp.float32)


def ctc_CER(
    resultseq: Shaped[ArrayLike, "T1 B"],
    targetseq: Shaped[ArrayLike, "T2 B"],
    resultseq_mask: Shaped[ArrayLike, "T1 B"] | None = None,
    targetseq_mask: Shaped[ArrayLike, "T2 B"] | None = None,
) -> tuple[Float[Array, ""], Int[Array, ""], Int[Array, ""]]:
    """The character error rate of a batch, its errors, and the length of its references.

    As `jaxctc.cer`.

    Args:
      resultseq: decoded ids, as floats or integers.
      targetseq: reference ids, likewise.
      resultseq_mask, targetseq_mask: nonzero where an id is in use; None uses all.

    Returns:
      `(CER, TE, TG)`; `CER = TE / TG`, and the number of errors against empty references alone,
      where Dandelion divides by 0.

    Raises:
      ValueError: if shapes disagree.

    Example:
      >>> rate, errors, length = ctc_CER(jnp.array([[1.0], [2.0]]), jnp.array([[1.0], [3.0]]))
      >>> float(rate), int(errors), int(length)
      (0.5, 1, 2)
    """
    function = "adapters.dandelion.ctc_CER"
    hyp, ref = _ids(function, "resultseq", resultseq), _ids(function, "targetseq", targetseq)
    if hyp.shape[0] != ref.shape[0]:
        requirement = f"have shape (T2, B) with B = {hyp.shape[0]}, as in resultseq"
        checks.fail(function, "targetseq", requirement, jnp.shape(targetseq))
    rate, errors, length = error_rates.cer(
        hyp,
        _paddings(function, "resultseq_mask", resultseq_mask, hyp.shape),
        ref,
        _paddings(function, "targetseq_mask", targetseq_mask, ref.shape),
    )
    return rate, errors, length


def categorical_crossentropy(
    predictions: Float[ArrayLike, "B N"],
    targets: Shaped[ArrayLike, "..."],
    eps: float = 1e-7,
    m: int | None = None,
    class_weight: Shaped[ArrayLike, "N"] | None = None,
) -> Float[Array, "B"]:
    """`jaxctc.cross_entropy` of probabilities, clipped to [eps, 1 - eps], in nats per row.

    Dandelion's page says that eps is added; its code clips. `m` is the number of classes, if given.

    >>> jnp.exp(-categorical_crossentropy(jnp.array([[0.25, 0.75]]), jnp.array([0])))
    Array([0.25], dtype=float32)
    """
    scores = _scores("adapters.dandelion.categorical_crossentropy", "predictions", predictions, m)
    return frame_losses.cross_entropy(
        scores, targets, estimated_type="probs", eps=eps, class_weight=class_weight
    )


def categorical_crossentropy_log(
    log_predictions: Float[ArrayLike, "B N"],
    targets: Shaped[ArrayLike, "..."],
    m: int | None = None,
    class_weight: Shaped[ArrayLike, "N"] | None = None,
) -> Float[Array, "B"]:
    """`jaxctc.cross_entropy` of log-probabilities, in nats per row; 1e5 for a target at -inf.

    >>> jnp.exp(-categorical_crossentropy_log(jnp.log(jnp.array([[0.25, 0.75]])), jnp.array([0])))
    Array([0.25], dtype=float32)
    """
    function = "adapters.dandelion.categorical_crossentropy_log"
    scores = _scores(function, "log_predictions", log_predictions, m)
    return frame_losses.cross_entropy(
        scores, targets, estimated_type="log-probs", class_weight=class_weight
    )


def binary_crossentropy(
    predictions: Shaped[ArrayLike, "..."], targets: Shaped[ArrayLike, "..."]
) -> Float[Array, "..."]:
    """`jaxctc.binary_cross_entropy` of probabilities of yes, in nats per entry.

    >>> jnp.exp(-binary_crossentropy(jnp.array([[0.25]]), jnp.array([1])))
    Array([[0.25]], dtype=float32)
    """
    both = _aligned("binary_crossentropy", predictions=predictions, targets=targets)
    return frame_losses.binary_cross_entropy(*both, estimated_type="probs")


def squared_error(a: Shaped[ArrayLike, "..."], b: Shaped[ArrayLike, "..."]) -> Float[Array, "..."]:
    """Squared difference, entry by entry.

    >>> squared_error(jnp.array([1.0, 2.0]), jnp.array([3.0, 2.0]))
    Array([4., 0.], dtype=float32)
    """
    return frame_objectives.squared_error(*_aligned("squared_error", a=a, b=b))


def binary_hinge_loss(
    predictions: Shaped[ArrayLike, "..."],
    targets: Shaped[ArrayLike, "..."],
    delta: float = 1,
    log_odds: bool = True,
    binary: bool = True,
) -> Float[Array, "..."]:
    """How far log-odds, or probabilities, are from the right side of their margin `delta`.

    Targets are 0 and 1 or, with `binary=False`, -1 and 1.

    >>> binary_hinge_loss(jnp.array([0.25, 3.0]), jnp.array([1, -1]), binary=False)
    Array([0.75, 4.  ], dtype=float32)
    """
    kind = "logits" if log_odds else "probs"
    scores, truth = _aligned("binary_hinge_loss", predictions=predictions, targets=targets)
    if not binary:
        truth = (truth.astype(jnp.float32) + 1) / 2
    return frame_objectives.binary_hinge_loss(scores, truth, margin=delta, estimated_type=kind)


def multiclass_hinge_loss(
    predictions: Float[ArrayLike, "B N"], targets: Shaped[ArrayLike, "..."], delta: float = 1
) -> Float[Array, "B"]:
    """How far the target's score is from exceeding all others by `delta`, row by row.

    >>> multiclass_hinge_loss(jnp.array([[1.0, 0.5]]), jnp.array([0]))
    Array([0.5], dtype=float32)
    """
    return frame_objectives.multiclass_hinge_loss(predictions, targets, margin=delta)


def binary_accuracy(
    predictions: Shaped[ArrayLike, "..."],
    targets: Shaped[ArrayLike, "..."],
    threshold: float = 0.5,
) -> Bool[Array, "..."]:
    """Whether predictions, a yes from `threshold` on, are right, entry by entry.

    >>> binary_accuracy(jnp.array([0.2, 0.5]), jnp.array([0, 1])).tolist()
    [True, True]
    """
    both = _aligned("binary_accuracy", predictions=predictions, targets=targets)
    return frame_objectives.binary_accuracy(*both, threshold=threshold)


def categorical_accuracy(
    predictions: Float[ArrayLike, "B N"], targets: Shaped[ArrayLike, "..."], top_k: int = 1
) -> Bool[Array, "B"]:
    """Whether the target is among the best `top_k` classes, row by row.

    Of equal predictions the lower id comes first; in Dandelion it does for `top_k=1` alone, and
    else the higher.

    >>> categorical_accuracy(jnp.array([[0.2, 0.8]]), jnp.array([0]), top_k=2).tolist()
    [True]
    """
    return frame_objectives.categorical_accuracy(predictions, targets, top_k=top_k)


def _ids(function: str, argument: str, values: ArrayLike) -> Int[Array, "B L"]:
    """Sequences along the last axis, as integers."""
    array = checks.as_array(function, argument, checks.saturated(values))
    if array.ndim != 2:
        checks.fail(function, argument, "have two axes, the second for the batch", array.shape)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return checks.class_ids(function, argument, array).T
    limit = jnp.asarray(jnp.iinfo(jnp.int32).max // 2, array.dtype)
    is_whole = (array == jnp.floor(array)) & (jnp.abs(array) < limit)
    return jnp.where(is_whole, array, -jnp.ones_like(array)).astype(jnp.int32).T


def _paddings(
    function: str, argument: str, mask: ArrayLike | None, shape: tuple[int, ...]
) -> Bool[Array, "B L"] | None:
    """Paddings `[B, L]` from a mask `(L, B)`."""
    return None if mask is None else ~checks.paddings(function, argument, mask, shape[::-1]).T


def _log(probs: Float[Array, "B T K"]) -> Float[Array, "B T K"]:
    log_probs, is_possible = log_where_possible(at_least_float32(probs))
    return jnp.where(is_possible, log_probs, jnp.full_like(log_probs, -jnp.inf))


def _scores(
    function: str, argument: str, predictions: ArrayLike, m: int | None
) -> Shaped[Array, "B N"]:
    """Scores of m classes."""
    scores = checks.as_array(function, argument, predictions)
    if m is not None and checks.static_int(function, "m", m) != scores.shape[-1]:
        checks.fail(function, "m", f"be the number of classes, {scores.shape[-1]}", m)
    return scores


def _aligned(function: str, **both: ArrayLike) -> tuple[Array, Array]:
    """Predictions and targets; a vector of targets as a column, for predictions that are one."""
    predictions, targets = (
        checks.as_array(f"adapters.dandelion.{function}", argument, values)
        for argument, values in both.items()
    )
    is_column = predictions.ndim == 2 and predictions.shape[1] == 1 and targets.ndim == 1
    return predictions, targets[:, None] if is_column else targets
