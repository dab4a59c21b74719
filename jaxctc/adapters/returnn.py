"""Losses and the edit distance of the RETURNN frontend: `returnn.frontend`.

A spatial dimension is the array of its lengths, and the class dimension an axis. Arguments are by
name, as there.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Bool, Float, Int, Shaped

from jaxctc import frame_losses, loss
from jaxctc._core import checks
from jaxctc.frame_losses import EstimatedType
from jaxctc.metrics import error_rates
from jaxctc.padding import lengths_to_paddings


def cross_entropy(
    *,
    estimated: Shaped[ArrayLike, "..."],
    target: Shaped[ArrayLike, "..."],
    axis: int,
    estimated_type: EstimatedType,
) -> Float[Array, "..."]:
    """Cross-entropy in nats, one per position.

    As `jaxctc.cross_entropy`, with RETURNN's arguments. A target class of probability 0 costs 1e5,
    with gradient 0, where RETURNN has `inf`.

    Args:
      estimated, target, axis, estimated_type: as of `jaxctc.cross_entropy`.

    Returns:
      The shape of `estimated` without `axis`.

    Raises:
      ValueError: as `jaxctc.cross_entropy`.

    Example:
      >>> probs = jnp.array([[0.25, 0.75]])
      >>> target = jnp.array([1])
      >>> loss = cross_entropy(estimated=probs, target=target, axis=-1, estimated_type="probs")
      >>> jnp.exp(-loss)
      Array([0.75], dtype=float32)
    """
    return frame_losses.cross_entropy(estimated, target, axis=axis, estimated_type=estimated_type)


def ctc_loss(
    *,
    logits: Float[ArrayLike, "*B T K"],
    logits_normalized: bool = False,
    targets: Int[ArrayLike, "*B N"],
    input_spatial_dim: Int[ArrayLike, "*B"],
    targets_spatial_dim: Int[ArrayLike, "*B"],
    blank_index: int,
    max_approx: bool = False,
    use_native_op: bool | None = None,
    label_loop: bool = True,
    implementation: str | None = None,
) -> Float[Array, "*B"]:
    """Negative log-probability of `targets`, in nats.

    As `jaxctc.ctc_loss`, with RETURNN's arguments.

    Args:
      logits, logits_normalized, max_approx, label_loop, implementation: as of `jaxctc.ctc_loss`.
      targets: class ids.
      input_spatial_dim: how many frames of each example are in use.
      targets_spatial_dim: how many labels, likewise.
      blank_index: static class id of the blank; a negative one counts from the last class.
      use_native_op: None or False; there is no native op.

    Returns:
      One loss per example; `inf`, with gradient 0, where no alignment exists.

    Raises:
      ValueError: as `jaxctc.ctc_loss`, or if `use_native_op` is True.

    Example:
      Of four equally likely paths over two frames, two give [1] one frame:

      >>> options = {"targets": jnp.array([1]), "targets_spatial_dim": 1, "blank_index": 0}
      >>> loss = ctc_loss(
      ...     logits=jnp.zeros((2, 2)), input_spatial_dim=2, label_loop=False, **options
      ... )
      >>> jnp.exp(-loss)
      Array(0.5, dtype=float32)
    """
    function = "adapters.returnn.ctc_loss"
    if use_native_op:
        checks.fail(function, "use_native_op", "be None or False", use_native_op)
    scores = checks.class_scores(function, "logits", logits)
    ids = checks.class_ids(function, "targets", targets)
    batch, (frames, classes) = scores.shape[:-2], scores.shape[-2:]
    if ids.shape[:-1] != batch:
        checks.fail(function, "targets", f"have shape [*B, N] with *B = {batch}", ids.shape)
    return loss.ctc_loss(
        scores,
        _paddings(function, "input_spatial_dim", input_spatial_dim, (*batch, frames)),
        ids,
        _paddings(function, "targets_spatial_dim", targets_spatial_dim, ids.shape),
        blank_id=checks.class_id(function, "blank_index", blank_index, classes),
        logits_normalized=logits_normalized,
        max_approx=max_approx,
        label_loop=label_loop,
        implementation=implementation,
    )


def edit_distance(
    a: Int[ArrayLike, "*B L"],
    a_spatial_dim: Int[ArrayLike, "*B"],
    b: Int[ArrayLike, "*B M"],
    b_spatial_dim: Int[ArrayLike, "*B"],
    *,
    dtype: DTypeLike = "int32",
) -> Shaped[Array, "*B"]:
    """Fewest substitutions, insertions and deletions between two sequences.

    As `jaxctc.edit_distance`, with RETURNN's arguments.

    Args:
      a, b: token ids.
      a_spatial_dim: how many tokens of each example of `a` are in use.
      b_spatial_dim: likewise, of `b`.
      dtype: static; of the result.

    Returns:
      One distance per example, in tokens.

    Raises:
      ValueError: as `jaxctc.edit_distance`, or if `dtype` has no room for the distance.

    Example:
      >>> int(edit_distance(jnp.array([1, 2, 3]), 3, jnp.array([1, 3, 9]), 2))
      1
    """
    function = "adapters.returnn.edit_distance"
    sides = []
    for name, ids, lengths in (("a", a, a_spatial_dim), ("b", b, b_spatial_dim)):
        ids = checks.token_ids(function, name, ids)
        sides += [ids, _paddings(function, f"{name}_spatial_dim", lengths, ids.shape)]
    if sides[0].shape[:-1] != sides[2].shape[:-1]:
        requirement = f"have shape [*B, M] with *B = {sides[0].shape[:-1]}, as in a"
        checks.fail(function, "b", requirement, sides[2].shape)
    kind, longest = jnp.dtype(dtype), max(side.shape[-1] for side in sides)
    most = -1
    if jnp.issubdtype(kind, jnp.integer):
        most = jnp.iinfo(kind).max
    elif jnp.issubdtype(kind, jnp.floating):
        most = 2 ** (jnp.finfo(kind).nmant + 1)
    if most < longest or jax.dtypes.canonicalize_dtype(kind) != kind:
        requirement = f"hold distances up to {longest} (and 64 bits only under jax_enable_x64)"
        checks.fail(function, "dtype", requirement, kind)
    return error_rates.edit_distance(*sides).astype(kind)


def _paddings(
    function: str, argument: str, lengths: ArrayLike, shape: tuple[int, ...]
) -> Bool[Array, "*B L"]:
    *batch, longest = shape
    counts = checks.lengths(function, argument, lengths, tuple(batch), longest)
    return lengths_to_paddings(counts, longest)
