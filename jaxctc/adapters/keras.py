"""The CTC functions of Keras: `keras.ops.ctc_loss` and `keras.ops.ctc_decode`."""

from typing import Any, Literal

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from jaxctc import loss
from jaxctc._core import checks
from jaxctc._core.explicit_axes import batch_second, over_explicit_axes_to
from jaxctc._core.normalizer import largest_or_nan, mask_padding
from jaxctc.decoding.beam_search import prefix_beam_search
from jaxctc.decoding.greedy import greedy_decode
from jaxctc.padding import lengths_to_paddings


def ctc_loss(
    target: Int[ArrayLike, "B N"],
    output: Float[ArrayLike, "B T K"],
    target_length: Int[ArrayLike, "B"],
    output_length: Int[ArrayLike, "B"],
    mask_index: int = 0,
    *,
    implementation: str | None = None,
) -> Float[Array, "B"]:
    """Negative log-probability of `target`, in nats.

    As `jaxctc.ctc_loss`, with Keras' arguments.

    Args:
      target: class ids, which have to be integers; Keras would round floats down.
      output: logits.
      target_length: how many labels of each example are in use. A longer length uses all.
      output_length: how many frames, likewise.
      mask_index: static class id of the blank; a negative one counts from the last class.
      implementation: as of `jaxctc.ctc_loss`.

    Returns:
      One loss per example. An infeasible pair, such as one with a label that is the blank, costs
      exactly 1e5, with gradient 0; in Keras it costs about that, with a gradient, and a blank
      among the labels lowers the loss.

    Raises:
      ValueError: if shapes disagree, `target` or lengths are not integers, or `mask_index` is not
        a class.

    Example:
      Three of the four equally likely paths over two frames spell [1]:

      >>> loss = ctc_loss(jnp.array([[1]]), jnp.zeros((1, 2, 2)), jnp.array([1]), jnp.array([2]))
      >>> jnp.exp(-loss)
      Array([0.75], dtype=float32)
    """
    function = "adapters.keras.ctc_loss"
    logits = _logits(function, "output", output)
    labels = checks.class_ids(function, "target", target)
    batch, frames, classes = logits.shape
    if labels.ndim != 2 or labels.shape[0] != batch:
        requirement = f"have shape (batch_size, max_length) with batch_size = {batch}, as in output"
        checks.fail(function, "target", requirement, labels.shape)
    return loss.ctc_loss(
        logits,
        _paddings(function, "output_length", output_length, (batch, frames)),
        labels,
        _paddings(function, "target_length", target_length, labels.shape),
        blank_id=checks.class_id(function, "mask_index", mask_index, classes),
        log_epsilon=-1e5,
        implementation=implementation,
    )


def ctc_decode(
    inputs: Float[ArrayLike, "B T K"],
    sequence_lengths: Int[ArrayLike, "B"],
    strategy: Literal["greedy", "beam_search"] = "greedy",
    beam_width: int = 100,
    top_paths: int = 1,
    merge_repeated: bool = True,
    mask_index: int | None = 0,
) -> tuple[Int[Array, "P B T"], Float[Array, "B P"]]:
    """The most likely labels, and their scores, by one of two strategies.

    As `jaxctc.greedy_decode` or `jaxctc.prefix_beam_search`, with Keras' arguments.

    Args:
      inputs: logits.
      sequence_lengths: how many frames of each example are in use. A longer length uses all.
        Without frames, nothing is decoded, with score 0; the beam search of Keras takes the
        first frame all the same.
      strategy: static; "greedy" or "beam_search".
      beam_width: static; how many prefixes the beam search keeps.
      top_paths: static; how many of them it returns, P.
      merge_repeated: static; for "greedy", False only drops blanks. The beam search always merges
        what no blank parts.
      mask_index: static class id of the blank; a negative one counts from the last class, None is
        the last.

    Returns:
      `(decoded, scores)`. Labels are int32, -1 after the last. Scores of "greedy" are minus the
      sum of the largest logits, which are not normalised for it; of "beam_search",
      log-probabilities, the best first. Where there are fewer sequences than `top_paths`, the
      rest are empty, with score -inf.

    Raises:
      ValueError: if shapes disagree, lengths are not integers, `strategy` is neither of the two,
        a count is less than 1, `top_paths` exceeds `beam_width`, `mask_index` is not a class; for
        what a strategy cannot do: "greedy" with more than one of `top_paths`, "beam_search"
        without `merge_repeated`, which Keras ignores.

    Example:
      >>> path = jnp.array([[2, 2, 0, 2, 1]])
      >>> decoded, scores = ctc_decode(jnp.eye(3)[path], jnp.array([4]))
      >>> decoded.tolist(), scores.tolist()
      ([[[2, 2, -1, -1, -1]]], [[-4.0]])
    """
    function = "adapters.keras.ctc_decode"
    logits = _logits(function, "inputs", inputs)
    paddings = _paddings(function, "sequence_lengths", sequence_lengths, logits.shape[:2])
    mask = -1 if mask_index is None else mask_index
    blank = checks.class_id(function, "mask_index", mask, logits.shape[-1])
    checks.choice(function, "strategy", strategy, ("greedy", "beam_search"))
    checks.flags(function, merge_repeated=merge_repeated)
    if checks.count(function, "top_paths", top_paths, 1) > 1 and strategy == "greedy":
        checks.fail(function, "top_paths", 'be 1 for strategy="greedy"', top_paths)
    if strategy == "greedy":
        return _best_paths(logits, paddings, blank, merge_repeated)
    if not merge_repeated:
        checks.fail(function, "merge_repeated", 'be True for strategy="beam_search"', False)
    if top_paths > checks.count(function, "beam_width", beam_width, 1):
        checks.fail(function, "top_paths", f"be at most beam_width, {beam_width}", top_paths)
    best = prefix_beam_search(
        logits, paddings, blank_id=blank, beam_width=beam_width, num_hypotheses=top_paths
    )
    return jnp.moveaxis(best.labels, 1, 0), best.scores


@over_explicit_axes_to(lambda batch: (batch_second(batch), batch))
def _best_paths(
    logits: Float[Array, "B T K"], logit_paddings: Bool[Array, "B T"], blank: int, merge: bool
) -> tuple[Int[Array, "1 B T"], Float[Array, "B 1"]]:
    best = greedy_decode(logits, logit_paddings, blank_id=blank, label_loop=merge)
    largest = largest_or_nan(mask_padding(logits, ~logit_paddings))
    return best.labels[None], -jnp.sum(largest, axis=-1, keepdims=True)


def _logits(function: str, argument: str, logits: ArrayLike) -> Float[Array, "B T K"]:
    array = checks.as_array(function, argument, logits)
    if array.ndim != 3:
        requirement = "have shape (batch_size, max_length, num_classes)"
        checks.fail(function, argument, requirement, array.shape)
    return checks.class_scores(function, argument, array)


def _paddings(
    function: str, argument: str, lengths: Any, shape: tuple[int, ...]
) -> Bool[Array, "B L"]:
    counts = checks.lengths(function, argument, lengths, shape[:1], shape[1])
    return lengths_to_paddings(counts, shape[1])
