"""What is added to the plain loss in training: small compositions of the library's functions.

Each returns one number per example, `[*B]`, to be weighed and added to `ctc_loss`:

    loss = ctc_loss(...) + 0.1 * delay_penalty(...) - 0.2 * alignment_entropy(...)
    loss = 0.9 * ctc_loss(...) + 0.1 * smoothing_penalty(...)

and `reduce_loss` makes the mean of a batch that may be spread over devices.
"""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Shaped

from jaxctc._core import checks
from jaxctc._core.explicit_axes import over_explicit_axes
from jaxctc._core.normalizer import at_least_float32, mask_padding
from jaxctc._core.semirings import LOG
from jaxctc.decoding.beam_search import prefix_beam_search
from jaxctc.frame_losses import cross_entropy
from jaxctc.loss import ctc_loss
from jaxctc.metrics.error_rates import edit_distance
from jaxctc.padding import paddings_to_lengths
from jaxctc.posteriors import posteriors

Per = Literal["example", "label", "frame", "example_and_label", "none"]


class WeightedSum(NamedTuple):
    """A sum and what to divide it by, kept apart so that they can be added up first.

    `a + b` adds batches, `lax.psum` devices; only then does `mean` divide, so that every example
    counts alike wherever it was.
    """

    sum: Float[Array, "*B"]
    """Of the losses that count."""
    weight: Float[Array, "*B"]
    """How many examples, labels or frames they are about."""
    dropped: Float[Array, "*B"] | float = 0.0
    """How many losses were `inf`, and are not in the sum."""

    @property
    def mean(self) -> Float[Array, "*B"]:
        """Sum by weight. Where nothing counts: `inf` if losses were dropped, and else 0."""
        nothing = self.weight == 0
        mean = self.sum / jnp.where(nothing, jnp.ones_like(self.weight), self.weight)
        return jnp.where(nothing & (self.dropped > 0), jnp.full_like(mean, jnp.inf), mean)

    @classmethod
    def zero(cls) -> "WeightedSum":
        """Of nothing: where a scan over batches starts."""
        return cls(*(jnp.zeros((), jnp.float32) for _ in cls._fields))

    def __add__(self, other: "WeightedSum") -> "WeightedSum":  # pyright: ignore[reportIncompatibleMethodOverride]  # sums, not tuples
        """Adds sum to sum, weight to weight and dropped to dropped."""
        dropped = self.dropped + other.dropped
        return WeightedSum(self.sum + other.sum, self.weight + other.weight, dropped)


def reduce_loss(
    loss: Float[ArrayLike, "*B"],
    logit_paddings: Shaped[ArrayLike, "*B T"] | None = None,
    label_paddings: Shaped[ArrayLike, "*B N"] | None = None,
    *,
    per: Per = "example",
    example_paddings: Shaped[ArrayLike, "*B"] | None = None,
    drop_infeasible: bool = True,
) -> WeightedSum:
    """The sum of a batch of losses, and the weight that makes it a mean.

    Args:
      loss: one per example or, for losses of single frames, per position.
      logit_paddings: nonzero where a frame is padded; only needed per "frame".
      label_paddings: nonzero where a label is padded; only needed per "label".
      per: static; what the mean is over. "example": all examples alike. "label", "frame": all
        labels or frames alike, long examples count for more. "example_and_label": every loss is
        first divided by its number of labels (at least 1), which is torch's "mean". "none": one
        sum and weight per example.
      example_paddings: nonzero where an example counts nothing, whatever its loss; None counts
        all.
      drop_infeasible: static; True gives no weight to examples whose loss is `inf`, and counts
        them in `dropped`. False leaves the sum infinite.

    Returns:
      `WeightedSum`, scalars, or `[*B]` for "none", in at least float32. NaN losses stay NaN. The
      mean of nothing but dropped losses is `inf`, with gradient 0.

    Raises:
      ValueError: if shapes disagree, `per` is none of the above, or the paddings it needs are
        missing.

    Example:
      The third pair was infeasible:

      >>> result = reduce_loss(jnp.array([1.0, 3.0, jnp.inf]))
      >>> print(result.mean, result.sum, result.weight, result.dropped)
      2.0 4.0 2.0 1.0
    """
    function = "reduce_loss"
    checks.flags(function, drop_infeasible=drop_infeasible)
    values = at_least_float32(checks.real(function, "loss", loss))
    in_use = ~checks.paddings(function, "example_paddings", example_paddings, values.shape)
    counts = in_use & (values != jnp.inf) if drop_infeasible else in_use
    values = jnp.where(counts, values, jnp.zeros_like(values))
    weight, dropped = counts.astype(values.dtype), (in_use & ~counts).astype(values.dtype)
    kind = checks.choice(function, "per", per, get_args(Per))
    if kind in ("label", "example_and_label"):
        labels = _lengths(function, "label_paddings", label_paddings, values)
        if kind == "label":
            weight *= labels
        else:
            values /= jnp.maximum(labels, jnp.ones_like(labels))
    elif kind == "frame":
        weight *= _lengths(function, "logit_paddings", logit_paddings, values)
    elif kind == "none":
        return WeightedSum(values, weight, dropped)
    return WeightedSum(jnp.sum(values), jnp.sum(weight), jnp.sum(dropped))


def focal_loss(
    loss: Float[ArrayLike, "*B"], *, gamma: Float[ArrayLike, ""] = 2.0
) -> Float[Array, "*B"]:
    r"""Losses weighed by how unlikely the labels still are, so that easy examples count less.

    .. math:: (1 - p)^\gamma \, L, \quad p = e^{-L}

    Args:
      loss: negative log-probabilities L, of `ctc_loss` say.
      gamma: how much less; 0 leaves the loss as it is.

    Returns:
      One loss per example, in at least float32, right also where p rounds to 1. 0 where the loss
      is not positive; `inf` and NaN stay.

    Raises:
      ValueError: if `loss` is not real.

    Example:
      >>> print(focal_loss(jnp.log(jnp.array([2.0, 4.0])), gamma=1.0).round(4))
      [0.3466 1.0397]

    References:
      Lin et al. 2017, "Focal loss for dense object detection", section 3; Feng, Yao and Zhang
      2019, "Focal CTC loss for Chinese optical character recognition on unbalanced datasets",
      section 3.
    """
    values = at_least_float32(checks.real("focal_loss", "loss", loss))
    gamma = checks.number("focal_loss", "gamma", gamma).astype(values.dtype)
    # Where the power has no derivative, or 0 times infinity is in the way, it is not taken.
    is_inside = (values > 0) & (values < jnp.inf)
    inside = jnp.where(is_inside, values, jnp.ones_like(values))
    outside = jnp.where(values <= 0, jnp.zeros_like(values), values)
    return jnp.where(is_inside, (-jnp.expm1(-inside)) ** gamma * inside, outside)


@over_explicit_axes
def smoothing_penalty(
    logits: Float[ArrayLike, "*B T K"], logit_paddings: Shaped[ArrayLike, "*B T"] | None
) -> Float[Array, "*B"]:
    r"""Cross-entropy of every frame against the uniform distribution, summed, in nats.

    .. math:: -\sum_t \frac{1}{K} \sum_k \log p_t(k)

    In `(1 - ε) ctc_loss + ε smoothing_penalty` it smooths the posteriors that CTC trains on: the
    gradient is `softmax - ((1 - ε) occupancy + ε / K)`.

    Args:
      logits: scores over classes.
      logit_paddings: nonzero where padded; None pads nothing.

    Returns:
      One penalty per example. Classes at -inf are left out, and frames of -inf alone; NaN where a
      frame in use holds NaN or +inf.

    Raises:
      ValueError: if shapes disagree.

    Example:
      >>> print(f"{smoothing_penalty(jnp.zeros((2, 4)), None):.4f}")  # 2 log 4
      2.7726

    References:
      Kim et al. 2017, "Improved training for online end-to-end speech recognition systems",
      section 2.3; Szegedy et al. 2016, "Rethinking the Inception architecture", section 7.
    """
    scores, padded = _distributions("smoothing_penalty", logits, logit_paddings)
    any_id = jnp.zeros(padded.shape, jnp.int32)
    return jnp.sum(cross_entropy(scores, any_id, label_smoothing=1.0, paddings=padded), axis=-1)


@over_explicit_axes
def confidence_penalty(
    logits: Float[ArrayLike, "*B T K"], logit_paddings: Shaped[ArrayLike, "*B T"] | None
) -> Float[Array, "*B"]:
    r"""Negative entropy of the frames' distributions, summed, in nats.

    .. math:: \sum_t \sum_k p_t(k) \log p_t(k)

    Args:
      logits: scores over classes.
      logit_paddings: nonzero where padded; None pads nothing.

    Returns:
      One penalty per example, from -T log K for uniform frames up to 0 for sure ones. Classes at
      -inf add nothing, nor do frames of -inf alone; NaN where a frame in use holds NaN or +inf.

    Raises:
      ValueError: if shapes disagree.

    Example:
      >>> print(f"{confidence_penalty(jnp.zeros((2, 4)), None):.4f}")
      -2.7726

    References:
      Pereyra et al. 2017, "Regularizing neural networks by penalizing confident output
      distributions", section 3.
    """
    scores, padded = _distributions("confidence_penalty", logits, logit_paddings)
    probs = jax.nn.softmax(scores, axis=-1)
    return -jnp.sum(cross_entropy(scores, probs, paddings=padded), axis=-1)


@over_explicit_axes
def delay_penalty(
    logits: Float[ArrayLike, "*B T K"],
    logit_paddings: Shaped[ArrayLike, "*B T"] | None,
    labels: Int[ArrayLike, "*B N"],
    label_paddings: Shaped[ArrayLike, "*B N"] | None,
    *,
    blank_id: int = 0,
    logits_normalized: bool = False,
) -> Float[Array, "*B"]:
    r"""How late the labels are, in frames, summed over them.

    .. math:: \sum_n \left(\frac{\sum_t t \, \gamma_t(n)}{\sum_t \gamma_t(n)}
              - \frac{T - 1}{2}\right)

    where γ are the `posteriors`: the mean frame of each label over all alignments, against the
    middle of the input. Its gradient moves labels to earlier frames, for streaming. (The paper
    rewards every alignment by its own earliness within the sum over them; to first order in the
    reward that is an expectation like this one, there of the labels' first frames.)

    Args:
      logits, logit_paddings, labels, label_paddings: as of `ctc_loss`.
      blank_id, logits_normalized: as there.

    Returns:
      One penalty per example; padded frames take no time. 0 for empty labels and where the labels
      cannot be aligned; NaN where the loss is.

    Raises:
      ValueError: as `ctc_loss`.

    Example:
      The label is surely in the last of three frames, one after the middle:

      >>> logits = jnp.array([[50.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
      >>> print(delay_penalty(logits, None, jnp.array([1]), None))
      1.0

    References:
      Yao et al. 2023, "Delay-penalized CTC implemented based on finite state transducer",
      section 3.
    """
    function = "delay_penalty"
    inputs = checks.ctc_inputs(function, logits, logit_paddings, labels, label_paddings)
    checks.class_id(function, "blank_id", blank_id, inputs.logits.shape[-1])
    checks.flags(function, logits_normalized=logits_normalized)
    share = posteriors(
        inputs.logits,
        ~inputs.is_frame,
        inputs.labels,
        ~inputs.is_label,
        blank_id=blank_id,
        logits_normalized=logits_normalized,
    ).label
    # Frames in use are counted from 1; what padded ones are given meets a share of 0.
    frame = jnp.cumsum(inputs.is_frame, axis=-1, dtype=jnp.int32).astype(share.dtype)
    count = jnp.sum(inputs.is_frame, axis=-1, keepdims=True, dtype=jnp.int32)
    late = frame - (count + 1).astype(share.dtype) / 2
    duration = jnp.sum(share, axis=-2)
    moment = jnp.sum(share * late[..., None], axis=-2)
    # A label that is aligned has a whole frame at least; others have none.
    return jnp.sum(moment / jnp.maximum(duration, jnp.full_like(duration, 0.5)), axis=-1)


def mwer_loss(
    logits: Float[ArrayLike, "*B T K"],
    logit_paddings: Shaped[ArrayLike, "*B T"] | None,
    labels: Int[ArrayLike, "*B N"],
    label_paddings: Shaped[ArrayLike, "*B N"] | None,
    *,
    separator: int | None = None,
    hypotheses: Int[ArrayLike, "*B W L"] | None = None,
    beam_width: int = 8,
    num_hypotheses: int = 4,
    blank_id: int = 0,
    logits_normalized: bool = False,
) -> Float[Array, "*B"]:
    r"""Expected number of wrong words, or labels, among the most likely hypotheses.

    .. math:: \sum_i \hat p_i \, E_i, \quad \hat p_i = \frac{p_i}{\sum_j p_j}

    where p are the probabilities by `ctc_loss` and E the edit distances from the labels. Its
    gradient is that of the paper, which subtracts the mean of E as a constant. The paper adds
    the plain loss with a factor of 0.01, lest all hypotheses become unlikely.

    Args:
      logits, logit_paddings, labels, label_paddings: as of `ctc_loss`.
      separator: as of `edit_distance`: the label between words; None counts labels.
      hypotheses: label sequences to compare, -1 after the last label, different from each other
        (a slot of -1 alone is the empty sequence); None searches for them.
      beam_width, num_hypotheses: of that search, as of `prefix_beam_search`.
      blank_id, logits_normalized: as of `ctc_loss`.

    Returns:
      One expectation per example, in words or labels, differentiable (the search is not part of
      the derivative). Hypotheses that no alignment spells count nothing; 0 if none is left. NaN
      where a frame in use holds NaN or +inf.

    Raises:
      ValueError: as `ctc_loss`, `edit_distance` and `prefix_beam_search`.

    Example:
      Of the hypotheses "1", of probability 3/4, and "", of 1/4, one is wrong:

      >>> loss = mwer_loss(jnp.zeros((2, 2)), None, jnp.array([1]), None, num_hypotheses=2)
      >>> print(f"{loss:.4f}")
      0.2500

    References:
      Prabhavalkar et al. 2018, "Minimum word error rate training for attention-based
      sequence-to-sequence models", section 3.2.
    """
    function = "mwer_loss"
    inputs = checks.ctc_inputs(function, logits, logit_paddings, labels, label_paddings)
    checks.class_id(function, "blank_id", blank_id, inputs.logits.shape[-1])
    checks.flags(function, logits_normalized=logits_normalized)
    frames = inputs.logits, ~inputs.is_frame
    reference = inputs.labels, ~inputs.is_label
    options = {"blank_id": blank_id, "logits_normalized": logits_normalized}
    if hypotheses is None:
        checks.not_explicit(function, logits=frames[0], logit_paddings=frames[1])
        found = prefix_beam_search(
            *frames,
            beam_width=beam_width,
            num_hypotheses=num_hypotheses,
            **options,
        )
        ids, is_found = found.labels, found.scores > -jnp.inf
    else:
        ids = checks.class_ids(function, "hypotheses", hypotheses)
        batch = inputs.labels.shape[:-1]
        if ids.ndim < 2 or ids.shape[:-2] != batch:
            requirement = f"have shape [*B, W, L] with *B = {batch}, as in logits"
            checks.fail(function, "hypotheses", requirement, ids.shape)
        is_found = jnp.ones(ids.shape[:-1], bool)

    def compare(ids: Array) -> tuple[Array, Array]:
        score = -ctc_loss(*frames, ids, ids < 0, **options)
        errors = edit_distance(ids, ids < 0, *reference, separator=separator)
        return score, errors

    scores, errors = jax.vmap(compare, in_axes=-2, out_axes=-1)(ids)
    return _expectation(scores, is_found, errors)


# Jitted: one program for an eager call, and no infinity for `jax_debug_infs` to see.
@jax.jit
def _expectation(
    scores: Float[Array, "*B W"], is_found: Bool[Array, "*B W"], errors: Int[Array, "*B W"]
) -> Float[Array, "*B"]:
    """Of the errors, under the probabilities of the hypotheses that were found."""
    is_nan = jnp.any(jnp.isnan(scores), axis=-1, keepdims=True)
    scores = jnp.where(is_found | is_nan, scores, jnp.full_like(scores, -jnp.inf))
    whole = LOG.sum(scores)[..., None]
    nothing = whole == -jnp.inf
    shares = jnp.exp(scores - jnp.where(nothing, jnp.zeros_like(whole), whole))
    return jnp.sum(shares * errors.astype(shares.dtype), axis=-1)


@over_explicit_axes
def consistency_loss(
    logits: Float[ArrayLike, "*B T K"],
    other_logits: Float[ArrayLike, "*B T K"],
    logit_paddings: Shaped[ArrayLike, "*B T"] | None,
) -> Float[Array, "*B"]:
    r"""How far two views of the same frames are apart: symmetric divergence, in nats.

    .. math:: \frac{1}{2} \sum_t D(\mathrm{sg}(q_t) \| p_t) + D(\mathrm{sg}(p_t) \| q_t)

    where p and q are the views' distributions and sg stops the gradient: each view is drawn
    towards the other. CR-CTC trains on the mean of both views' `ctc_loss` plus 0.2 of this.

    Args:
      logits: scores of one view.
      other_logits: of the other, in the same shape.
      logit_paddings: nonzero where padded, for both; None pads nothing.

    Returns:
      One loss per example, at least 0 (up to rounding). A class at -inf in both views adds
      nothing, nor does a frame of -inf alone; in one of them it adds 1e5 times half its
      probability in the other. NaN where a frame in use holds NaN or +inf.

    Raises:
      ValueError: if shapes disagree.

    Example:
      >>> sure, unsure = jnp.array([[60.0, 0.0]]), jnp.array([[0.0, 0.0]])
      >>> print(f"{consistency_loss(sure, sure, None):.4f}")
      0.0000
      >>> print(f"{consistency_loss(sure, unsure, None):.4f}")  # (log 2 + 30 - log 2) / 2
      15.0000

    References:
      Yao et al. 2024, "CR-CTC: consistency regularization on CTC for improved speech
      recognition", section 3.1.
    """
    function = "consistency_loss"
    one, nothing = _distributions(function, logits, logit_paddings)
    two = checks.class_scores(function, "other_logits", other_logits)
    if two.shape != one.shape:
        requirement = f"have the shape of logits, {one.shape}"
        checks.fail(function, "other_logits", requirement, two.shape)
    two, padded = _distributions(function, two, nothing)

    def towards(target: Array, estimated: Array) -> Array:
        target = lax.stop_gradient(target)
        probs = jax.nn.softmax(target, axis=-1)
        cross = cross_entropy(estimated, probs, paddings=padded)
        return cross - cross_entropy(target, probs, paddings=padded)

    return jnp.sum(towards(two, one) + towards(one, two), axis=-1) / 2


def _distributions(
    function: str, logits: ArrayLike, logit_paddings: ArrayLike | None
) -> tuple[Float[Array, "*B T K"], Bool[Array, "*B T"]]:
    """Logits in at least float32, and where there is none or no possible class: 0 there."""
    scores = checks.class_scores(function, "logits", logits)
    padded = checks.paddings(function, "logit_paddings", logit_paddings, scores.shape[:-1])
    nothing = padded | jnp.all(scores == -jnp.inf, axis=-1)
    return at_least_float32(mask_padding(scores, ~nothing)), nothing


def _lengths(
    function: str, argument: str, paddings: ArrayLike | None, values: Array
) -> Float[Array, "*B"]:
    if paddings is None:
        checks.fail(function, argument, "be given for this `per`", None)
    array = checks.as_array(function, argument, paddings)
    if array.shape[:-1] != values.shape or array.ndim != values.ndim + 1:
        requirement = f"have one axis more than loss {values.shape}"
        checks.fail(function, argument, requirement, array.shape)
    return paddings_to_lengths(array).astype(values.dtype)
