"""What is known of all alignments: probabilities of states, durations, entropy, samples."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float, Int, PRNGKeyArray, Shaped

from jaxctc._core import checks, kernels
from jaxctc._core.derivatives import nan_where, value_semiring, with_log_derivative
from jaxctc._core.emissions import Config, Inputs, build_lattice, in_given_order, prepare_inputs
from jaxctc._core.explicit_axes import batch_second, over_explicit_axes, over_explicit_axes_to
from jaxctc._core.occupancies import solve
from jaxctc._core.paths import frame_ids, sample_paths
from jaxctc._core.recursion import entropy, rows
from jaxctc._core.semirings import LOG, Semiring


class StateLogProbs(NamedTuple):
    """What `forward_log_probs` and `backward_log_probs` return."""

    blank: Float[Array, "T *B N+1"]
    """Of the blank before each label and of the one after the last."""
    label: Float[Array, "T *B N"]
    """Of each label."""


class Posteriors(NamedTuple):
    """What `posteriors` returns."""

    blank: Float[Array, "*B T"]
    """Probability that the frame is a blank."""
    label: Float[Array, "*B T N"]
    """Probability that the frame belongs to the label."""


@over_explicit_axes_to(batch_second)
def forward_log_probs(
    logits: Float[ArrayLike, "*B T K"],
    logit_paddings: Shaped[ArrayLike, "*B T"] | None,
    labels: Int[ArrayLike, "*B N"],
    label_paddings: Shaped[ArrayLike, "*B N"] | None,
    *,
    blank_id: int = 0,
    logits_normalized: bool = False,
    label_loop: bool = True,
    label_priors: Float[ArrayLike, "... K"] | None = None,
    prior_scale: Float[ArrayLike, ""] = 1.0,
    wildcard_id: int | None = None,
    wildcard_penalty: Float[ArrayLike, ""] = 0.0,
) -> StateLogProbs:
    r"""Log-probability of every path beginning, per frame and state: log α, in nats.

    `blank[t, ..., n]` is that of all beginnings over the frames up to t that have spelt the
    first n labels and are in a blank at frame t; `label[t, ..., n]` of those in label n. Both
    include frame t. The sum of α over the last blank and the last label, at the last frame, is
    the probability of the labels.

    Args:
      logits, logit_paddings, labels, label_paddings: as of `jaxctc.ctc_loss`.
      blank_id, logits_normalized, label_loop, label_priors, prior_scale: as there.
      wildcard_id, wildcard_penalty: as there. A wildcard has no row: the frames it absorbs are
        among those of its gap's blank.

    Returns:
      `(blank, label)`, time leading, differentiable. A padded frame repeats the row before it;
      before the first frame in use that is 0 for blank 0 and -inf elsewhere. Labels count
      without padding and wildcards; entries beyond the last one are -inf. NaN throughout where
      the loss is NaN.

    Raises:
      ValueError: as `jaxctc.ctc_loss`.

    Example:
      One of four equally likely paths of two frames is in the first blank at the end, one in
      the second, two in the label:

      >>> alpha = forward_log_probs(jnp.zeros((2, 2)), None, jnp.array([1]), None)
      >>> jnp.exp(alpha.blank[-1]).round(4).tolist(), jnp.exp(alpha.label[-1]).round(4).tolist()
      ([0.25, 0.25], [0.5])

    References:
      Graves et al. 2006, "Connectionist temporal classification", section 4.1, α.
    """
    config, inputs = prepare_inputs(
        "forward_log_probs",
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
    )
    return state_log_probs(config, inputs, backward=False)


@over_explicit_axes_to(batch_second)
def backward_log_probs(
    logits: Float[ArrayLike, "*B T K"],
    logit_paddings: Shaped[ArrayLike, "*B T"] | None,
    labels: Int[ArrayLike, "*B N"],
    label_paddings: Shaped[ArrayLike, "*B N"] | None,
    *,
    blank_id: int = 0,
    logits_normalized: bool = False,
    label_loop: bool = True,
    label_priors: Float[ArrayLike, "... K"] | None = None,
    prior_scale: Float[ArrayLike, ""] = 1.0,
    wildcard_id: int | None = None,
    wildcard_penalty: Float[ArrayLike, ""] = 0.0,
) -> StateLogProbs:
    r"""Log-probability of every path ending, per frame and state: log β, in nats.

    `blank[t, ..., n]` is that of all endings over the frames from t on that are in a blank at
    frame t and go on to spell the labels from n on; `label[t, ..., n]` of those that are in
    label n at frame t. Both include frame t, like the forward rows, so the log-probability of
    all paths through a state is forward + backward - (log-probability of the state's class).

    Args:
      logits, logit_paddings, labels, label_paddings: as of `jaxctc.ctc_loss`.
      blank_id, logits_normalized, label_loop, label_priors, prior_scale: as there.
      wildcard_id, wildcard_penalty: as there. A wildcard has no row: the frames it absorbs are
        among those of its gap's blank.

    Returns:
      `(blank, label)`, time leading, differentiable. A padded frame repeats the row after it;
      after the last frame in use that is 0 for the blank after the last label and -inf
      elsewhere. Labels count without padding and wildcards; entries beyond the last one are
      -inf. NaN throughout where the loss is NaN.

    Raises:
      ValueError: as `jaxctc.ctc_loss`.

    Example:
      From the first frame on, one of four equally likely paths starts in the blank and ends in
      the label; two start in the label:

      >>> beta = backward_log_probs(jnp.zeros((2, 2)), None, jnp.array([1]), None)
      >>> jnp.exp(beta.blank[0]).round(4).tolist(), jnp.exp(beta.label[0]).round(4).tolist()
      ([0.25, 0.25], [0.5])

    References:
      Graves et al. 2006, "Connectionist temporal classification", section 4.1, β.
    """
    config, inputs = prepare_inputs(
        "backward_log_probs",
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
    )
    return state_log_probs(config, inputs, backward=True)


@over_explicit_axes
def posteriors(
    logits: Float[ArrayLike, "*B T K"],
    logit_paddings: Shaped[ArrayLike, "*B T"] | None,
    labels: Int[ArrayLike, "*B N"] | Int[ArrayLike, "*B N A"],
    label_paddings: Shaped[ArrayLike, "*B N"] | None,
    *,
    blank_id: int = 0,
    logits_normalized: bool = False,
    label_loop: bool = True,
    label_priors: Float[ArrayLike, "... K"] | None = None,
    prior_scale: Float[ArrayLike, ""] = 1.0,
    wildcard_id: int | None = None,
    wildcard_penalty: Float[ArrayLike, ""] = 0.0,
    label_log_weights: Float[ArrayLike, "*B N A"] | None = None,
    label_bias: Float[ArrayLike, "*B T N"] | None = None,
    implementation: str | None = None,
) -> Posteriors:
    r"""How likely it is, given the labels, that a frame belongs to each of them or is a blank.

    .. math:: \gamma_t(s) = \frac{\sum_{\pi: \pi_t = s} p(\pi)}{\sum_\pi p(\pi)}

    where π runs over the alignments of the labels. Soft alignment targets, in other words, and
    what the gradient of the loss is made of: summed over labels of the same class it is
    `softmax(logits) - gradient`.

    Args:
      logits, logit_paddings, labels, label_paddings: as of `jaxctc.ctc_loss`.
      blank_id, logits_normalized, label_loop, label_priors, prior_scale: as there.
      wildcard_id, wildcard_penalty, label_bias, label_log_weights, implementation: as there.

    Returns:
      `(blank, label)`, differentiable, labels in the places where they were given. Blank and
      labels of a frame in use sum to 1. 0 in padded frames, for padded labels, and everywhere
      where the labels cannot be aligned; NaN throughout where the loss is NaN. Of several
      wildcards side by side the first has the probability of all. With alternatives, `label` is
      `[*B, T, N, A]`.

    Raises:
      ValueError: as `jaxctc.ctc_loss`.

    Example:
      Three equally likely paths of two frames spell [1]: `- 1`, `1 -` and `1 1`.

      >>> blank, label = posteriors(jnp.zeros((2, 2)), None, jnp.array([1]), None)
      >>> print(blank.round(4), label[:, 0].round(4))
      [0.3333 0.3333] [0.6667 0.6667]

    References:
      Graves et al. 2006, "Connectionist temporal classification", section 4.2.
    """
    config, inputs = prepare_inputs(
        "posteriors",
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
        implementation=implementation,
    )
    found = _posteriors(config, inputs)
    if inputs.scores.label_log_weights is None:
        return found
    shape = (*found.blank.shape, *inputs.scores.label_log_weights.shape[-2:])
    return found._replace(label=found.label.reshape(shape))


@over_explicit_axes
def expected_durations(
    logits: Float[ArrayLike, "*B T K"],
    logit_paddings: Shaped[ArrayLike, "*B T"] | None,
    labels: Int[ArrayLike, "*B N"],
    label_paddings: Shaped[ArrayLike, "*B N"] | None,
    *,
    blank_id: int = 0,
    logits_normalized: bool = False,
    label_loop: bool = True,
    label_priors: Float[ArrayLike, "... K"] | None = None,
    prior_scale: Float[ArrayLike, ""] = 1.0,
    wildcard_id: int | None = None,
    wildcard_penalty: Float[ArrayLike, ""] = 0.0,
) -> Float[Array, "*B N"]:
    r"""How many frames each label takes, averaged over all alignments by their probability.

    .. math:: \sum_t \gamma_t(n)

    Args:
      logits, logit_paddings, labels, label_paddings: as of `jaxctc.ctc_loss`.
      blank_id, logits_normalized, label_loop, label_priors, prior_scale: as there.
      wildcard_id, wildcard_penalty: as there.

    Returns:
      Frames per label, differentiable, in the places where labels were given. At least 1 for a
      label (not for a wildcard), and no more in all than frames in use. 0 for padded labels and
      where the labels cannot be aligned; NaN where the loss is NaN.

    Raises:
      ValueError: as `jaxctc.ctc_loss`.

    Example:
      Of the three equally likely paths `- 1`, `1 -` and `1 1`, one gives the label two frames:

      >>> expected_durations(jnp.zeros((2, 2)), None, jnp.array([1]), None).round(4)
      Array([1.3333], dtype=float32)
    """
    config, inputs = prepare_inputs(
        "expected_durations",
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
    )
    return jnp.sum(_posteriors(config, inputs).label, axis=-2)


@over_explicit_axes
def alignment_entropy(
    logits: Float[ArrayLike, "*B T K"],
    logit_paddings: Shaped[ArrayLike, "*B T"] | None,
    labels: Int[ArrayLike, "*B N"],
    label_paddings: Shaped[ArrayLike, "*B N"] | None,
    *,
    blank_id: int = 0,
    logits_normalized: bool = False,
    label_loop: bool = True,
    label_priors: Float[ArrayLike, "... K"] | None = None,
    prior_scale: Float[ArrayLike, ""] = 1.0,
    wildcard_id: int | None = None,
    wildcard_penalty: Float[ArrayLike, ""] = 0.0,
) -> Float[Array, "*B"]:
    r"""How undecided the alignment is: the entropy of its distribution, in nats.

    .. math:: -\sum_\pi p(\pi \mid y) \log p(\pi \mid y)

    over the alignments π of the labels y. Its exponential is the number of equally likely
    alignments that would be as undecided.

    Args:
      logits, logit_paddings, labels, label_paddings: as of `jaxctc.ctc_loss`.
      blank_id, logits_normalized, label_loop, label_priors, prior_scale: as there.
      wildcard_id, wildcard_penalty: as there.

    Returns:
      One entropy per example, differentiable; 0 where there is one alignment, or none; never
      negative; NaN where the loss is NaN. One scan, without stored rows.

    Raises:
      ValueError: as `jaxctc.ctc_loss`.

    Example:
      Three equally likely paths of two frames spell [1]:

      >>> entropy = alignment_entropy(jnp.zeros((2, 2)), None, jnp.array([1]), None)
      >>> jnp.exp(entropy).round(4)
      Array(3., dtype=float32)

    References:
      Liu, Jin and Zhang 2018, "Connectionist temporal classification with maximum entropy
      regularization", section 3.
    """
    config, inputs = prepare_inputs(
        "alignment_entropy",
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
    )
    return _entropy(config, inputs)


@over_explicit_axes
def sample_alignments(
    key: PRNGKeyArray,
    logits: Float[ArrayLike, "*B T K"],
    logit_paddings: Shaped[ArrayLike, "*B T"] | None,
    labels: Int[ArrayLike, "*B N"],
    label_paddings: Shaped[ArrayLike, "*B N"] | None,
    *,
    num_samples: int,
    blank_id: int = 0,
    logits_normalized: bool = False,
    label_loop: bool = True,
    label_priors: Float[ArrayLike, "... K"] | None = None,
    prior_scale: Float[ArrayLike, ""] = 1.0,
    wildcard_id: int | None = None,
    wildcard_penalty: Float[ArrayLike, ""] = 0.0,
) -> Int[Array, "*B S T"]:
    r"""Alignments drawn at random, each with its probability given the labels.

    Args:
      key: a key of `jax.random`; the same one draws the same alignments.
      logits, logit_paddings, labels, label_paddings: as of `jaxctc.ctc_loss`.
      num_samples: static number `S` of independent draws per example.
      blank_id, logits_normalized, label_loop, label_priors, prior_scale: as there.
      wildcard_id, wildcard_penalty: as there.

    Returns:
      A class id per frame, blanks included, and `wildcard_id` where a wildcard absorbs it; -1 in
      padded frames, and in all frames where the labels cannot be aligned or the loss is NaN.
      Every sample spells the labels (`jaxctc.collapse`). Memory grows with √T · N.

    Raises:
      ValueError: as `jaxctc.ctc_loss`; if `num_samples` is not a static integer from 0 on.

    Example:
      Only `1 - 1` has three frames and spells [1, 1]:

      >>> key, labels = jax.random.key(0), jnp.array([1, 1])
      >>> sample_alignments(key, jnp.zeros((3, 2)), None, labels, None, num_samples=2).tolist()
      [[1, 0, 1], [1, 0, 1]]
    """
    config, inputs = prepare_inputs(
        "sample_alignments",
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
    )
    count = checks.count("sample_alignments", "num_samples", num_samples)
    # Under `jax.disable_jit`, too, where JAX would compile its generator anew at every frame.
    with jax.disable_jit(False):
        samples = _samples(config, count, key, jax.tree.map(lax.stop_gradient, inputs))
    return samples[..., : config.num_frames]


# What the rest of the library builds on; not re-exported.


@with_log_derivative
def state_log_probs(
    config: Config, inputs: Inputs, semiring: Semiring, *, backward: bool
) -> StateLogProbs:
    """log alpha or log beta of all frames, NaN throughout where the loss is."""
    lattice = build_lattice(inputs, config)
    log_excess = jnp.moveaxis(lattice.log_excess, -1, 0)
    offsets = -lax.cumsum(log_excess, axis=0, reverse=backward)[..., None]
    factor = nan_where(lattice.has_nan, offsets)[None, ..., None]
    found = rows(
        lattice.problem,
        semiring,
        label_loop=config.label_loop,
        backward=backward,
        record=semiring.decode,
    )

    def in_nats(row: Array) -> Array:
        row = jnp.where(row == -jnp.inf, row, row + offsets) * factor
        return row[: config.num_frames]

    return StateLogProbs(*map(in_nats, found))


@with_log_derivative
def _entropy(config: Config, inputs: Inputs, semiring: Semiring) -> Float[Array, "*B"]:
    lattice = build_lattice(inputs, config)
    found = entropy(lattice.problem, semiring, label_loop=config.label_loop)
    return found * nan_where(lattice.has_nan, found)


@with_log_derivative
def _posteriors(config: Config, inputs: Inputs, semiring: Semiring) -> Posteriors:
    lattice = build_lattice(inputs, config)
    # Values are not in LOG, but for those in float64, whose reference is in LOG and differentiable.
    is_derivative = semiring is LOG and value_semiring(inputs) is not LOG
    _, found = solve(lattice.problem, config, differentiable=is_derivative)
    values = found.label
    if found.wildcard is not None:
        values = jnp.concatenate([values, found.wildcard], axis=-1)
    factor = nan_where(lattice.has_nan, values)[..., None]
    label = in_given_order(lattice, values * factor[..., None], 0)
    return Posteriors(
        (found.blank * factor)[..., : config.num_frames], label[..., : config.num_frames, :]
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _samples(config: Config, count: int, key: PRNGKeyArray, inputs: Inputs) -> Int[Array, "*B S T"]:
    lattice, semiring = build_lattice(inputs, config), value_semiring(inputs)
    problem, loop = lattice.problem, config.label_loop
    found = kernels.log_total(problem, label_loop=loop) > -jnp.inf
    drawn = sample_paths(key, problem, semiring, label_loop=loop, num_samples=count)
    return frame_ids(lattice, config, drawn, found)
