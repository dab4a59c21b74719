"""The CTC loss of Theano: `theano.tensor.nnet.ctc`, its wrapper of warp-ctc."""

import dataclasses

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from jaxctc import loss
from jaxctc._core import checks
from jaxctc.padding import label_paddings_from, lengths_to_paddings


def ctc(
    activations: Float[ArrayLike, "t m p"],
    labels: Int[ArrayLike, "m n"],
    input_lengths: Int[ArrayLike, "m"],
    *,
    implementation: str | None = None,
) -> Float[Array, "m"]:
    """Negative log-probability of `labels`, in nats.

    As `jaxctc.ctc_loss`, with Theano's arguments. The blank is class 0.

    Args:
      activations: logits, time leading.
      labels: class ids; negative ones are padding, wherever they stand.
      input_lengths: how many frames of each example are in use. A longer length uses all.
      implementation: as of `jaxctc.ctc_loss`.

    Returns:
      One cost per example; `inf`, with gradient 0, where no alignment exists or a label is the
      blank.

    Raises:
      ValueError: if shapes disagree, or `labels` or `input_lengths` are not integers.

    Example:
      One of five equally likely paths over one frame spells [1]:

      >>> cost = ctc(jnp.zeros((1, 1, 5)), jnp.array([[1, -1]]), jnp.array([1]))
      >>> jnp.exp(cost).round(4)
      Array([5.], dtype=float32)
    """
    function = "adapters.theano.ctc"
    logits = checks.as_array(function, "activations", activations)
    if logits.ndim != 3:
        checks.fail(function, "activations", "have shape (t, m, p)", logits.shape)
    logits = jnp.swapaxes(checks.class_scores(function, "activations", logits), 0, 1)
    batch, frames, _ = logits.shape
    ids = checks.class_ids(function, "labels", labels)
    if ids.ndim != 2 or ids.shape[0] != batch:
        requirement = f"have shape (m, n) with m = {batch}, as in activations"
        checks.fail(function, "labels", requirement, ids.shape)
    counts = checks.lengths(function, "input_lengths", input_lengths, (batch,), frames)
    return loss.ctc_loss(
        logits,
        lengths_to_paddings(counts, frames),
        ids,
        label_paddings_from(ids),
        implementation=implementation,
    )


@dataclasses.dataclass(frozen=True)
class ConnectionistTemporalClassification:
    """`ctc` as an object, which is called with the same arguments.

    Args:
      compute_grad: static; False makes the gradient 0.
      openmp: None; how many threads to use is for XLA to decide.

    Raises:
      ValueError: if `openmp` is not None.

    Example:
      >>> import jax
      >>> cost = ConnectionistTemporalClassification(compute_grad=False)
      >>> jax.grad(lambda scores: cost(scores, [[1]], [1]).sum())(jnp.zeros((1, 1, 2)))
      Array([[[0., 0.]]], dtype=float32)
    """

    compute_grad: bool = True
    openmp: bool | None = None

    def __post_init__(self):
        """Checks `openmp`."""
        if self.openmp is not None:
            remedy = "XLA decides how many threads to use."
            function = "adapters.theano.ConnectionistTemporalClassification"
            checks.fail(function, "openmp", "be None", repr(self.openmp), remedy)

    def __call__(
        self,
        activations: Float[ArrayLike, "t m p"],
        labels: Int[ArrayLike, "m n"],
        input_lengths: Int[ArrayLike, "m"],
        *,
        implementation: str | None = None,
    ) -> Float[Array, "m"]:
        """What `ctc` returns."""
        if not self.compute_grad:
            array = checks.as_array("adapters.theano.ctc", "activations", activations)
            activations = lax.stop_gradient(array)
        return ctc(activations, labels, input_lengths, implementation=implementation)
