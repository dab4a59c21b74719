"""Lengths, paddings and what fits: ragged sequences in rectangular arrays.

A padding is 1 (or True) where an entry is *not* in use, as in optax. Padded entries may sit
anywhere: every function of this library behaves as if they were not there.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.experimental import checkify
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Shaped

from jaxctc._core import checks
from jaxctc._core.explicit_axes import over_explicit_axes
from jaxctc._core.ragged import is_beyond, is_emittable, is_repeat, pack_left


def lengths_to_paddings(lengths: Int[ArrayLike, "*B"], max_length: int) -> Bool[Array, "*B L"]:
    """Paddings of right-padded sequences: True from position `lengths` on.

    Args:
      lengths: how many entries of each sequence are in use.
      max_length: static size `L` of the padded axis. Of lengths that JAX holds, a longer one
        uses all of it, and a negative one nothing.

    Returns:
      Booleans, True where padded.

    Raises:
      ValueError: if `lengths` are not integers or `max_length` is not a static one, from 0 on; of
        lengths in Python or NumPy, if one is negative or longer than `max_length`.

    Example:
      >>> lengths_to_paddings(jnp.array([1, 3]), 3).astype(int).tolist()
      [[0, 1, 1], [0, 0, 0]]
    """
    counts = checks.as_array("lengths_to_paddings", "lengths", checks.saturated(lengths))
    if not jnp.issubdtype(counts.dtype, jnp.integer):
        remedy = "Whole frames remain of a stride: see // instead of /."
        checks.fail("lengths_to_paddings", "lengths", "be integers", counts.dtype, remedy)
    size = checks.count("lengths_to_paddings", "max_length", max_length)
    checks.known_lengths("lengths_to_paddings", "lengths", lengths, size)
    return is_beyond(checks.as_int32(counts), size)


def paddings_to_lengths(paddings: Shaped[ArrayLike, "*B L"]) -> Int[Array, "*B"]:
    """Number of entries in use, counted in int32 whatever the dtype of the paddings.

    Args:
      paddings: nonzero where padded, of any dtype (a bfloat16 sum would miscount past 256).

    Returns:
      Counts in int32. They are lengths in the usual sense when the padding is on the right.

    Raises:
      ValueError: if `paddings` has no axis.

    Example:
      >>> paddings_to_lengths(jnp.array([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])).tolist()
      [1, 3]
    """
    array = checks.as_array("paddings_to_lengths", "paddings", paddings)
    if array.ndim < 1:
        checks.fail("paddings_to_lengths", "paddings", "have shape [*B, L]", array.shape)
    return jnp.sum(~array.astype(bool), axis=-1, dtype=jnp.int32)


def label_paddings_from(
    labels: Int[ArrayLike, "*B N"], *, padding: Literal["negative"] | int = "negative"
) -> Bool[Array, "*B N"]:
    """Label paddings from the labels themselves, where a sentinel id marks the padding.

    Args:
      labels: class ids, with a sentinel where nothing stands.
      padding: "negative" takes every negative id for padding (-1, -100, …); an integer takes
        that id alone.

    Returns:
      Booleans, True where padded.

    Raises:
      ValueError: if `labels` are not integers or `padding` is neither of the two, or no int32.

    Example:
      >>> label_paddings_from(jnp.array([3, 1, -1])).astype(int).tolist()
      [0, 0, 1]
      >>> label_paddings_from(jnp.array([3, 1, 0]), padding=0).astype(int).tolist()
      [0, 0, 1]
    """
    ids = checks.class_ids("label_paddings_from", "labels", labels)
    if isinstance(padding, str):
        if padding == "negative":
            return ids < 0
        requirement = 'be "negative" or a class id'
        checks.fail("label_paddings_from", "padding", requirement, repr(padding))
    return ids == checks.some_id("label_paddings_from", "padding", padding)


@over_explicit_axes
def required_frames(
    labels: Int[ArrayLike, "*B N"],
    label_paddings: Shaped[ArrayLike, "*B N"] | None = None,
    *,
    label_loop: bool = True,
    wildcard_id: int | None = None,
) -> Int[Array, "*B"]:
    """Fewest frames that can carry the labels: one each, and a blank between equal neighbours.

    Args:
      labels: class ids.
      label_paddings: nonzero where padded; None pads nothing.
      label_loop: static; as of `ctc_loss`: without loops, neighbours need no blank.
      wildcard_id: as of `ctc_loss`. A wildcard needs no frame, and does not part equal
        neighbours: one frame between them is absorbed or a blank.

    Returns:
      `N + (adjacent repeats)` over the labels in use, wildcards left out, `N` without loops, in
      frames; 0 for empty labels.

    Raises:
      ValueError: if `labels` are not integers, the shapes differ or `wildcard_id` is negative.

    Example:
      "aab" needs a blank between its two a's:

      >>> int(required_frames(jnp.array([1, 1, 2])))
      4

    References:
      Graves et al. 2006, "Connectionist temporal classification", section 3.1.
    """
    ids = checks.class_ids("required_frames", "labels", labels)
    padded = checks.paddings("required_frames", "label_paddings", label_paddings, ids.shape)
    checks.flags("required_frames", label_loop=label_loop)
    if wildcard_id is not None:
        padded |= ids == checks.wildcard("required_frames", wildcard_id)
    packed = pack_left(ids, ~padded)
    count = paddings_to_lengths(padded)
    if not label_loop:
        return count
    return count + jnp.sum(
        is_repeat(packed, ~is_beyond(count, packed.shape[-1])), axis=-1, dtype=jnp.int32
    )


@over_explicit_axes
def is_feasible(
    logits: Float[ArrayLike, "*B T K"],
    logit_paddings: Shaped[ArrayLike, "*B T"] | None,
    labels: Int[ArrayLike, "*B N"],
    label_paddings: Shaped[ArrayLike, "*B N"] | None,
    *,
    blank_id: int = 0,
    label_loop: bool = True,
    wildcard_id: int | None = None,
) -> Bool[Array, "*B"]:
    """True where some alignment exists: enough frames, and every label a class but the blank.

    Where it is False the loss is `inf` (or what `ctc_loss` was asked to put there) and its
    gradient is zero. Only the shape of `logits` is read: a class masked with -inf can make a
    pair infeasible that this function passes.

    Args:
      logits: scores over classes; only their shape matters.
      logit_paddings: nonzero where padded; None pads nothing.
      labels: class ids.
      label_paddings: nonzero where padded; None pads nothing.
      blank_id: static class id of the blank; a negative one counts from the last class.
      label_loop, wildcard_id: as of `ctc_loss`; both static.

    Returns:
      One boolean per example.

    Raises:
      ValueError: if shapes disagree, `blank_id` is not a class, or `wildcard_id` is negative or
        the blank.

    Example:
      >>> is_feasible(jnp.zeros((3, 4)), None, jnp.array([1, 1]), None).item()
      True
      >>> is_feasible(jnp.zeros((2, 4)), None, jnp.array([1, 1]), None).item()
      False
    """
    arguments = logits, logit_paddings, labels, label_paddings
    needs = _needs("is_feasible", arguments, blank_id, label_loop, wildcard_id)
    return (needs.required <= needs.frames) & ~jnp.any(needs.is_unknown, axis=-1)


@over_explicit_axes
def validate(
    logits: Float[ArrayLike, "*B T K"],
    logit_paddings: Shaped[ArrayLike, "*B T"] | None,
    labels: Int[ArrayLike, "*B N"],
    label_paddings: Shaped[ArrayLike, "*B N"] | None,
    *,
    blank_id: int = 0,
    label_loop: bool = True,
    wildcard_id: int | None = None,
) -> None:
    """Raises if there is an example whose data would make its loss infinite or NaN.

    It looks at values, so it is for the host. Under `jit` the same call works inside a function
    given to `jax.experimental.checkify.checkify`, which then returns the same message as an error;
    without it, JAX refuses to compile "a checkify.check which was not functionalized".

    Paddings that are inverted (masks, 1 = in use) or lengths are seen where they spoil a loss, and
    the message asks after them. They pass where labels happen to fit what they leave, and where
    they leave nothing at all, which is legal and costs 0; `paddings_to_lengths` shows what is left.

    Args:
      logits: scores over classes.
      logit_paddings: nonzero where padded; None pads nothing.
      labels: class ids.
      label_paddings: nonzero where padded; None pads nothing.
      blank_id: static class id of the blank; a negative one counts from the last class.
      label_loop, wildcard_id: as of `ctc_loss`; both static.

    Raises:
      ValueError: if shapes disagree, `blank_id` is not a class, or `wildcard_id` is negative or
        the blank; if a label in use is the blank or no class at all; if there are fewer frames
        than the labels require; if a frame in use holds NaN or +inf. The message names the
        example.

    Example:
      >>> validate(jnp.zeros((1, 2, 4)), None, jnp.array([[3, 3]]), None)
      Traceback (most recent call last):
      ...
      ValueError: validate: labels of example 0 must fit into its frames; got 2 frames for \
labels that require 3. Repeated labels need a blank between them: see required_frames.
    """
    arguments = logits, logit_paddings, labels, label_paddings
    needs = _needs("validate", arguments, blank_id, label_loop, wildcard_id)
    inputs = needs.inputs
    batch, classes = inputs.logits.ndim - 2, inputs.logits.shape[-1]
    remedy = (
        "If this entry is padding, say so in label_paddings (see label_paddings_from); if not, "
        "the model needs a class for it, beside the blank; a wildcard is named by wildcard_id."
    )
    for faults, doubt in _by_doubt(needs.is_unknown, inputs.is_label, "label_paddings"):
        _demand(
            faults,
            batch,
            "labels",
            f"be class ids in [0, {classes}) other than the blank {needs.blank}",
            "{id} at position {at0}",
            remedy + doubt,
            id=inputs.labels,
        )
    too_short = needs.required > needs.frames
    for faults, doubt in _by_doubt(too_short, inputs.is_frame, "logit_paddings"):
        _demand(
            faults,
            batch,
            "labels",
            "fit into its frames",
            "{frames} frames for labels that require {required}",
            "Repeated labels need a blank between them: see required_frames." + doubt,
            frames=needs.frames,
            required=needs.required,
        )
    _demand(
        ~(inputs.logits < jnp.inf) & inputs.is_frame[..., None],
        batch,
        "logits",
        "be finite or -inf in the frames in use",
        "{score} at frame {at0}, class {at1}",
        "The loss of this example is NaN.",
        score=inputs.logits.astype(jnp.float32),
    )


class _Needs(NamedTuple):
    """What decides whether labels have an alignment."""

    inputs: checks.CtcInputs
    blank: int
    is_unknown: Bool[Array, "*B N"]
    """True for a label in use that no frame can emit."""
    required: Int[Array, "*B"]
    frames: Int[Array, "*B"]
    """How many are in use."""


def _needs(
    function: str,
    arguments: tuple[ArrayLike, ArrayLike | None, ArrayLike, ArrayLike | None],
    blank_id: int,
    label_loop: bool,
    wildcard_id: int | None,
) -> _Needs:
    inputs = checks.ctc_inputs(function, *arguments)
    classes = inputs.logits.shape[-1]
    blank = checks.class_id(function, "blank_id", blank_id, classes)
    checks.flags(function, label_loop=label_loop)
    is_own = inputs.is_label  # labels but for wildcards
    if wildcard_id is not None:
        is_own &= inputs.labels != checks.wildcard(function, wildcard_id, blank)
    return _Needs(
        inputs,
        blank,
        is_own & ~is_emittable(inputs.labels, classes, blank),
        required_frames(inputs.labels, ~is_own, label_loop=label_loop),
        paddings_to_lengths(~inputs.is_frame),
    )


def _by_doubt(
    faults: Bool[Array, "..."], is_used: Bool[Array, "*B L"], paddings: str
) -> tuple[tuple[Bool[Array, "..."], str], tuple[Bool[Array, "..."], str]]:
    """Faults of examples that begin with padding, which is legal and unusual, and the others."""
    begins_padded = jnp.any(~is_used[..., :1], axis=-1)
    begins_padded = jnp.expand_dims(begins_padded, range(begins_padded.ndim, faults.ndim))
    doubt = f" Its first entry is padded: are {paddings} a mask, or lengths? Nonzero is padding."
    return (faults & begins_padded, doubt), (faults & ~begins_padded, "")


def _demand(
    faults: Bool[Array, "..."],
    batch: int,
    argument: str,
    requirement: str,
    got: str,
    remedy: str,
    **values: Shaped[Array, "..."],
) -> None:
    """Raises for the first fault or, while tracing, has checkify do it.

    The message may name what `values` hold where the fault is, and the places `at0`, `at1` … of
    the fault within its example; the first `batch` axes of `faults` count examples.
    """
    if faults.size == 0:
        return
    first = jnp.argmax(faults.ravel())
    place = jnp.unravel_index(first, faults.shape)
    fields = {f"example{axis}": index for axis, index in enumerate(place[:batch])}
    fields |= {f"at{axis}": index for axis, index in enumerate(place[batch:])}
    fields |= {name: value.ravel()[first] for name, value in values.items()}
    example = ", ".join(f"{{example{axis}}}" for axis in range(batch))
    subject = f"{argument} of example {example}" if batch else argument
    message = checks.message("validate", subject, requirement, got, remedy)
    if isinstance(faults, Tracer):
        checkify.check(~faults.any(), message, **fields)  # pyright: ignore[reportArgumentType]  # `debug` is not among the fields
    elif faults.any():
        raise ValueError(message.format(**{name: value.item() for name, value in fields.items()}))
