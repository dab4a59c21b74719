"""How likely the labels would be with one of them changed, left out, or one more put in."""

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Shaped

from jaxctc._core.changes import changed_totals
from jaxctc._core.classes import read_columns
from jaxctc._core.derivatives import nan_where, with_log_derivative
from jaxctc._core.emissions import (
    Config,
    Inputs,
    Lattice,
    build_lattice,
    in_given_order,
    prepare_inputs,
)
from jaxctc._core.explicit_axes import over_explicit_axes
from jaxctc._core.lean import select
from jaxctc._core.normalizer import at_least_float32, safe_max, sum_over_frames
from jaxctc._core.semirings import Semiring


@over_explicit_axes
def substitution_scores(
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
) -> Float[Array, "*B N K+1"]:
    r"""Log-probability of the labels with one of them replaced by each class, or left out, in nats.

    Entry `[n, k]` is `-ctc_loss` of the labels with label n replaced by class k, and `[n, K]` that
    of the labels without label n: N · (K + 1) losses from one pass over the frames. The label's own
    column beside the others is its goodness of pronunciation, without a segmentation.

    Args:
      logits, logit_paddings, labels, label_paddings: as of `jaxctc.ctc_loss`.
      blank_id, logits_normalized, label_loop, label_priors, prior_scale: as there.

    Returns:
      Scores in the places where labels were given, differentiable. In the blank's column, for
      padded labels, and where the changed labels cannot be aligned: -inf. NaN throughout where
      the loss of the labels is NaN. Beside the result and the logits, memory holds N changes to
      128 classes each, or 2^18 changes if these are more, some 32 bytes for each, and √T · N rows;
      to differentiate, T times as much.

    Raises:
      ValueError: as `jaxctc.ctc_loss`.

    Example:
      Of four equally likely paths over two frames, three spell [1], and one spells nothing:

      >>> scores = substitution_scores(jnp.zeros((2, 2)), None, jnp.array([1]), None)
      >>> jnp.exp(scores).round(4).tolist()  # blank, class 1, left out
      [[0.0, 0.75, 0.25]]

    References:
      arXiv 2507.16838, goodness of pronunciation without a segmentation.
    """
    config, inputs = prepare_inputs(
        "substitution_scores",
        logits,
        logit_paddings,
        labels,
        label_paddings,
        blank_id=blank_id,
        logits_normalized=logits_normalized,
        label_loop=label_loop,
        label_priors=label_priors,
        prior_scale=prior_scale,
    )
    return _scores(config, inputs, insert=False)


@over_explicit_axes
def insertion_scores(
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
) -> Float[Array, "*B N+1 K"]:
    r"""Log-probability of the labels with one more of each class in each place, in nats.

    Entry `[n, k]` is `-ctc_loss` of the labels with class k put in front of label n; the last row
    puts it after all labels.

    Args:
      logits, logit_paddings, labels, label_paddings: as of `jaxctc.ctc_loss`.
      blank_id, logits_normalized, label_loop, label_priors, prior_scale: as there.

    Returns:
      Scores as of `substitution_scores`, with its -inf, NaN and memory.

    Raises:
      ValueError: as `jaxctc.ctc_loss`.

    Example:
      Of eight equally likely paths over three frames one spells [1, 1]:

      >>> scores = insertion_scores(jnp.zeros((3, 2)), None, jnp.array([1]), None)
      >>> jnp.exp(scores).round(4).tolist()
      [[0.0, 0.125], [0.0, 0.125]]
    """
    config, inputs = prepare_inputs(
        "insertion_scores",
        logits,
        logit_paddings,
        labels,
        label_paddings,
        blank_id=blank_id,
        logits_normalized=logits_normalized,
        label_loop=label_loop,
        label_priors=label_priors,
        prior_scale=prior_scale,
    )
    return _scores(config, inputs, insert=True)


@with_log_derivative
def _scores(
    config: Config, inputs: Inputs, semiring: Semiring, *, insert: bool
) -> Float[Array, "*B P C"]:
    lattice = build_lattice(inputs, config)
    if config.logits_normalized:
        lattice = _with_largest_of_all(inputs, lattice)
    totals = changed_totals(
        lattice.problem, lattice.labels, semiring, label_loop=config.label_loop, insert=insert
    )
    found = semiring.decode(totals)
    log_normalizer = sum_over_frames(lattice.log_normalizer)[..., None, None]
    found = select(found != -jnp.inf, found - log_normalizer, -jnp.inf)
    if not config.logits_normalized:
        # As of the loss: rounding can take a confident model's probability above 1.
        found -= lax.stop_gradient(jnp.maximum(found, 0))
    factor = nan_where(lattice.has_nan, found)[..., None, None]
    if config.logits_normalized:
        factor = factor * _nan_of_classes(inputs, found)
    found = _without_blank(found * factor, config.blank)
    return _where_given(lattice, found, insert=insert)


def _with_largest_of_all(inputs: Inputs, lattice: Lattice) -> Lattice:
    """The same, with a `frame_max` of all classes: any may become a label here."""
    problem = lattice.problem
    scores = at_least_float32(inputs.scores.logits)
    largest = jnp.max(select(scores < jnp.inf, scores, -jnp.inf), axis=-1)
    largest = jnp.maximum(problem.frame_max, safe_max(largest))
    return lattice._replace(
        problem=problem._replace(frame_max=largest),
        log_normalizer=select(inputs.is_frame, -largest, 0),
    )


def _nan_of_classes(inputs: Inputs, like: Array) -> Float[Array, "*B 1 C"]:
    """NaN for classes with NaN or +inf in a frame in use, labels or not; 1 for others."""
    logits = inputs.scores.logits
    has_nan = jnp.any(~(logits < jnp.inf) & inputs.is_frame[..., None], axis=-2)
    more = like.shape[-1] - logits.shape[-1]
    none = lax.full_like(has_nan, False, shape=(*has_nan.shape[:-1], more))
    return nan_where(jnp.concatenate([has_nan, none], axis=-1), like)[..., None, :]


def _without_blank(found: Float[Array, "*B P C"], blank: int) -> Array:
    column = jnp.expand_dims(jnp.arange(found.shape[-1], dtype=jnp.int32), range(found.ndim - 1))
    return select(column != blank, found, -jnp.inf)


def _where_given(lattice: Lattice, found: Float[Array, "*B P C"], *, insert: bool) -> Array:
    """Rows of packed labels where the labels were given; -inf for padding."""
    by_class = jnp.swapaxes(found, -1, -2)
    labels = lattice.labels.shape[-1]
    rows = in_given_order(lattice, by_class[..., :labels], -jnp.inf)
    if insert:
        last = read_columns(by_class, lattice.problem.label_count[..., None])
        rows = jnp.concatenate([rows, last], axis=-1)
    return jnp.swapaxes(rows, -1, -2)
