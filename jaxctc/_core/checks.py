"""What a call must look like, checked at trace time: the only place that words errors.

Shapes, dtypes and static arguments can be checked while JAX traces, so a mistake in one of
them raises `ValueError` before anything runs. What only the data can show (a label that does
not exist, too few frames) cannot raise under `jit`; it gets a documented value instead, and
`jaxctc.validate` to find it on the host.
"""

import contextlib
import operator
import os
import warnings
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.dtypes import canonicalize_dtype
from jax.errors import ConcretizationTypeError
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Shaped

from jaxctc._core import foreign
from jaxctc._core.foreign import kind as _kind

_INT32 = np.iinfo(np.int32)


class CtcInputs(NamedTuple):
    """The four arguments every CTC function starts with, checked and in one form."""

    logits: Float[Array, "*B T K"]
    is_frame: Bool[Array, "*B T"]
    labels: Int[Array, "*B N"]
    """Class ids as int32; one that int32 cannot hold ends at its limit, where no class is."""
    is_label: Bool[Array, "*B N"]


class Choices(NamedTuple):
    """Labels of several alternatives each, checked."""

    labels: Int[Array, "*B N A"]
    is_label: Bool[Array, "*B N"]
    log_weights: Float[Array, "*B N A"]


def message(function: str, argument: str, requirement: str, got: Any, remedy: str = "") -> str:
    """The one form of every error: which call, which argument, what came, what to do."""
    return f"{function}: {argument} must {requirement}; got {got}. {remedy}".rstrip()


def fail(function: str, argument: str, requirement: str, got: Any, remedy: str = "") -> NoReturn:
    """Raises the one kind of error this library has."""
    raise ValueError(message(function, argument, requirement, got, remedy))


def ctc_inputs(
    function: str,
    logits: ArrayLike,
    logit_paddings: ArrayLike | None,
    labels: ArrayLike,
    label_paddings: ArrayLike | None,
    scores_name: str = "logits",
) -> CtcInputs:
    """Checks the four arguments against each other, naming `function` in every message."""
    logits = as_array(function, scores_name, logits)
    labels = as_array(function, "labels", saturated(labels))
    if _is(logits, jnp.integer) and _is(labels, jnp.floating) and labels.size:
        requirement = "be scores, and labels class ids"
        got = f"{_kind(logits)} and {_kind(labels)}"
        fail(function, scores_name, requirement, got, "Are the two swapped?")
    scores = class_scores(function, scores_name, logits)
    batch, frames = scores.shape[:-2], scores.shape[-2]
    ids = class_ids(function, "labels", labels)
    if ids.shape[:-1] != batch:
        requirement = f"have shape [*B, N] with *B = {batch}, as in {scores_name} {scores.shape}"
        remedy = _remedy_for_labels(ids.shape, scores.shape, scores_name)
        fail(function, "labels", requirement, ids.shape, remedy)
    return CtcInputs(
        scores,
        ~paddings(function, "logit_paddings", logit_paddings, (*batch, frames)),
        ids,
        ~paddings(function, "label_paddings", label_paddings, ids.shape),
    )


def alternatives(
    function: str,
    logits: ArrayLike,
    labels: ArrayLike,
    label_paddings: ArrayLike | None,
    log_weights: ArrayLike,
) -> Choices:
    """Labels with an axis of alternatives, and a weight for each of them."""
    batch = class_scores(function, "logits", logits).shape[:-2]
    ids = class_ids(function, "labels", labels)
    if ids.ndim != len(batch) + 2 or ids.shape[:-2] != batch or ids.shape[-1] < 1:
        requirement = f"have shape [*B, N, A] with *B = {batch} and A ≥ 1, with label_log_weights"
        remedy = "Fill up with -1 where a label has fewer alternatives than others."
        fail(function, "labels", requirement, ids.shape, remedy)
    weights = as_array(function, "label_log_weights", log_weights)
    if weights.shape != ids.shape:
        requirement = f"have shape {ids.shape}, as labels have"
        fail(function, "label_log_weights", requirement, weights.shape)
    if not _is(weights, jnp.floating):
        requirement, remedy = "be real numbers", "They are logarithms: 0 for a weight of 1."
        fail(function, "label_log_weights", requirement, _kind(weights), remedy)
    is_label = ~paddings(function, "label_paddings", label_paddings, ids.shape[:-1])
    return Choices(ids, is_label, weights)


def none_with(function: str, option: str, **others: Any) -> None:
    """Refuses options that do not go together with another one."""
    for argument, value in others.items():
        if value is not None:
            fail(function, argument, f"be None with {option}", value)


def _remedy_for_labels(ids: tuple[int, ...], scores: tuple[int, ...], scores_name: str) -> str:
    batch, classes = scores[:-2], scores[-1]
    if len(ids) == len(scores) and ids[-1] == classes:
        return "Labels are class ids, not one-hot rows: see jnp.argmax(labels, axis=-1)."
    if len(ids) > len(batch) + 1:
        return f"{scores_name} have fewer batch axes; jax.vmap has to map over both (in_axes)."
    if ids == batch:
        return "One number per example looks like lengths: are the arguments in their order?"
    if len(ids) == 1:
        alike = f"Labels that all examples share are jnp.broadcast_to(labels, {(*batch, *ids)})"
        return f"{alike}; for concatenated ones see jaxctc.adapters.torch."
    if len(scores) == 3 and ids[0] == scores[1]:
        return f"If {scores_name} are time-major [T, B, K], pass jnp.swapaxes({scores_name}, 0, 1)."
    if ids[1:] == batch:
        return "If labels are [N, B], pass jnp.swapaxes(labels, 0, 1)."
    return ""


def as_array(function: str, argument: str, values: Any) -> Shaped[Array, "..."]:
    """One array of whatever numbers JAX has."""
    try:
        return jnp.asarray(values)
    except OverflowError:
        remedy = "64 bits come with jax_enable_x64."
        fail(function, argument, "hold integers of 32 bits", _kind(values), remedy)
    except (RuntimeError, TypeError, ValueError) as error:
        if foreign.is_tensor(values):
            array = foreign.from_tensor(values)
            if array is not None:
                return array
        elif isinstance(error, RuntimeError):  # JAX's: donated arrays, no memory left
            raise
        remedy = foreign.remedy(values)
        fail(function, argument, "be one array of numbers", _kind(values), remedy)


def saturated(values: Any) -> Any:
    """NumPy's integers of 64 bits as JAX has them: without x64, which would drop upper bits."""
    if not isinstance(values, np.ndarray | np.generic) or values.dtype.kind not in "iu":
        return values
    dtype = canonicalize_dtype(values.dtype)
    if dtype == values.dtype:
        return values
    return np.clip(values, np.iinfo(dtype).min, np.iinfo(dtype).max).astype(dtype)


def host_array(
    function: str, argument: str, values: Any, requirement: str, dtype: Any = None
) -> Shaped[np.ndarray, "..."]:
    """An array of NumPy."""
    try:
        return np.asarray(values, dtype)
    except (RuntimeError, TypeError, ValueError) as error:
        if foreign.is_tensor(values):
            array = foreign.from_tensor(values)
            if array is not None:
                return np.asarray(array, dtype)
            fail(function, argument, requirement, _kind(values), foreign.remedy(values))
        if isinstance(error, RuntimeError):  # JAX's: a donated array
            raise
        if isinstance(values, Tracer):
            got, remedy = _kind(values).replace("an", "a traced", 1), "call it outside of jit."
            fail(function, argument, requirement, got, f"It is for the host: {remedy}")
        fail(function, argument, requirement, _kind(values))


def class_scores(function: str, argument: str, scores: ArrayLike) -> Float[Array, "*B T K"]:
    """Scores over classes as a floating array of rank two or more."""
    array = as_array(function, argument, scores)
    if array.ndim < 2:
        remedy = "One example has shape [T, K]."
        fail(function, argument, "have shape [*B, T, K]", array.shape, remedy)
    if _is(array, jnp.floating):
        return array
    if _is(array, jnp.integer):
        return array.astype(jnp.float32)
    remedy = "A model gives one score for each frame and class."
    fail(function, argument, "be real numbers", _kind(array), remedy)


def token_ids(function: str, argument: str, ids: ArrayLike) -> Int[Array, "*B N"]:
    """Integers of any width, of rank one or more."""
    array = as_array(function, argument, ids)
    if array.size == 0 and not _is(array, jnp.integer):
        array = array.astype(jnp.int32)  # an empty Python list arrives as floats
    if not _is(array, jnp.integer):
        remedy = "Class ids are integers: see jnp.argmax for one-hot rows, astype for the rest."
        fail(function, argument, "be integers", _kind(array), remedy)
    if array.ndim < 1:
        fail(function, argument, "have shape [*B, N]", array.shape)
    return array


def class_ids(function: str, argument: str, ids: ArrayLike) -> Int[Array, "*B N"]:
    """Ids as int32; what it cannot hold ends at its limit: no other class, and no other sign."""
    return as_int32(token_ids(function, argument, saturated(ids)))


def as_int32(array: Int[Array, "..."]) -> Int[Array, "..."]:
    """Integers of any width as int32; what it cannot hold ends at its limit."""
    own = jnp.iinfo(array.dtype)
    if own.max > _INT32.max:
        least, most = max(own.min, _INT32.min), _INT32.max
        array = jnp.clip(array, *(jnp.asarray(limit, array.dtype) for limit in (least, most)))
    return array.astype(jnp.int32)


def some_id(
    function: str, argument: str, value: Any, least: int = _INT32.min, remedy: str = ""
) -> int:
    """A static id, of a class or not; the largest of int32 stands for all that are beyond it."""
    index = static_int(function, argument, value)
    if not least <= index < _INT32.max:
        fail(function, argument, f"be an id in [{least}, {_INT32.max})", index, remedy)
    return index


def paddings(
    function: str, argument: str, values: ArrayLike | None, shape: tuple[int, ...]
) -> Bool[Array, "..."]:
    """Paddings of any dtype as booleans (nonzero = padded); None pads nothing."""
    if values is None:
        return jnp.zeros(shape, bool)
    array = as_array(function, argument, values)
    if array.shape != shape:
        remedy = "One value per position: 0 = in use, 1 = padded."
        if array.shape == shape[:-1]:
            remedy = f"For lengths, pass lengths_to_paddings(lengths, {shape[-1]})."
        elif len(shape) == 2 and array.shape == shape[::-1]:
            remedy = "The batch comes first, in all arguments: see jnp.swapaxes."
        elif argument == "logit_paddings" and (stride := _stride(array.shape, shape)):
            remedy = f"If the model keeps one frame in {stride}, pass {argument}[..., ::{stride}]."
        fail(function, argument, f"have shape {shape}", array.shape, remedy)
    if not _is(array, jnp.bool_, jnp.integer, jnp.floating):
        fail(function, argument, "be booleans or real numbers, nonzero = padded", _kind(array))
    return array.astype(bool)


def _stride(paddings: tuple[int, ...], wanted: tuple[int, ...]) -> int | None:
    """The stride that leaves of so many paddings as many as there are scores, if there is one."""
    if paddings[:-1] != wanted[:-1] or not 1 < wanted[-1] < paddings[-1]:
        return None
    stride = -(-paddings[-1] // wanted[-1])
    return stride if -(-paddings[-1] // stride) == wanted[-1] else None


def flags(function: str, **values: Any) -> None:
    """Options that are True or False, known while tracing."""
    for argument, value in values.items():
        if not isinstance(value, bool | np.bool_):
            remedy = "Under jit, mark it static (static_argnames) or close over it."
            fail(function, argument, "be True or False, and static", _kind(value), remedy)


def static_int(function: str, argument: str, value: Any) -> int:
    """A Python integer, known while tracing; True is none."""
    if not isinstance(value, bool):
        with contextlib.suppress(TypeError, ConcretizationTypeError):
            return operator.index(value)
    remedy = "Under jit, mark it static (static_argnames) or close over it."
    fail(function, argument, "be a static integer", _kind(value), remedy)


def count(function: str, argument: str, value: Any, least: int = 0) -> int:
    """A static number of things."""
    number = static_int(function, argument, value)
    if number < least:
        fail(function, argument, f"be at least {least}", number)
    return number


def class_id(function: str, argument: str, value: Any, classes: int) -> int:
    """A static class id; a negative one counts from the last class."""
    index = static_int(function, argument, value)
    if not -classes <= index < classes:
        requirement = f"be a class id in [{-classes}, {classes})"
        remedy = f"There are K = {classes} classes, the blank included."
        fail(function, argument, requirement, index, remedy)
    return index % classes


def wildcard(function: str, value: Any, blank: int | None = None) -> int:
    """A static id for wildcards: no class has to own it, but padding and the blank do not."""
    index = static_int(function, "wildcard_id", value)
    if not 0 <= index < _INT32.max or index == blank:
        requirement = f"be an id in [0, {_INT32.max})" + (
            "" if blank is None else f", and not the blank {blank}"
        )
        fail(function, "wildcard_id", requirement, index, "The number of classes is a good one.")
    return index


def vocab_axis(function: str, value: str | None, logits: Float[Array, "*B T K"]) -> str | None:
    """An axis of the mesh that the classes are spread over, or None.

    `jax.shard_map` has to know that they are: where it does not look (`check_vma=False`), a
    gradient taken inside it would be multiplied by the number of devices.
    """
    if value is None or (_can_spread(jnp.zeros(()), value) and not _can_spread(logits, value)):
        return value
    fail(
        function,
        "vocab_axis_name",
        "name an axis of the enclosing jax.shard_map that the classes are spread over",
        repr(value),
        "The last entry of their in_specs names it, and check_vma stays True.",
    )


def not_explicit(function: str, **arrays: Array) -> None:
    """Refuses what is spread over explicit axes of a mesh.

    There JAX wants the sharding of every step to be given. Within `jax.shard_map` no axis is
    explicit, and within `jax.vmap` the one that is mapped over cannot be seen.
    """
    for argument, array in arrays.items():
        kind = jax.typeof(array)
        if any(isinstance(axes, str | tuple) for axes in kind.sharding.spec):
            requirement = "not be spread over explicit axes of a mesh"
            remedy = (
                f"Within jax.set_mesh, wrap {function} in jax.sharding.auto_axes(…, "
                "out_sharding=…), or call it within jax.shard_map."
            )
            fail(function, argument, requirement, str(kind), remedy)


def number(function: str, argument: str, value: ArrayLike) -> Float[Array, ""]:
    """One real number, traced or not."""
    if isinstance(value, float) and np.isinf(value):
        with jax.debug_infs(False):  # an infinity that was asked for is none to stop at
            return jnp.asarray(np.asarray(value, canonicalize_dtype(float)))
    try:
        array = jnp.asarray(value)
    except (OverflowError, TypeError, ValueError):
        fail(function, argument, "be one real number", _kind(value))
    if array.ndim or not _is(array, jnp.integer, jnp.floating):
        fail(function, argument, "be one real number", _kind(value))
    return array if _is(array, jnp.floating) else array.astype(jnp.float32)


def log_zero(function: str, value: ArrayLike) -> Float[Array, ""] | None:
    """What stands for log 0, one number; None for -inf, which takes no operation."""
    epsilon = number(function, "log_epsilon", value)
    return None if isinstance(value, float) and value == -np.inf else epsilon


def real(function: str, argument: str, values: ArrayLike) -> Float[Array, "..."]:
    """Real numbers of any shape; integers and booleans as float32."""
    array = as_array(function, argument, values)
    if _is(array, jnp.floating):
        return array
    if _is(array, jnp.bool_, jnp.integer):
        return array.astype(jnp.float32)
    fail(function, argument, "be real numbers", _kind(array))


def choice(function: str, argument: str, value: Any, choices: tuple[str, ...]) -> str:
    """One of several words."""
    if not isinstance(value, str) or value not in choices:
        fail(function, argument, f"be one of {', '.join(map(repr, choices))}", repr(value))
    return value


def implementation(function: str, value: Any, names: tuple[str, ...]) -> None:
    """Refuses what is not the name of an implementation."""
    if value is None or (isinstance(value, str) and value in names):
        return
    known = ", ".join(f'"{name}"' for name in names[:-1])
    remedy = '"pallas" means the kernels for TPUs and NVIDIA GPUs.'
    fail(function, "implementation", f'be None, {known} or "{names[-1]}"', value, remedy)


def implementation_can(function: str, value: Any, reason: str | None) -> None:
    """Refuses an implementation that says why it cannot do what it is asked for."""
    if reason is not None:
        fail(function, "implementation", 'be None or "xla" here', value, reason)


NOT_PARTITIONED = (
    'jaxctc: implementation="pallas" runs as plain operations here, because XLA cannot spread a '
    "kernel over devices. Call it within jax.shard_map over all axes of the mesh, and every device "
    "runs the kernel on its part of the batch."
)


def warn_unless_tokens(path: str | os.PathLike[str], words: set[bytes], names: list[bytes]) -> None:
    """A model of words, of which some are one letter, may be read for one of tokens."""
    known = len(words.intersection(names))
    if 2 * known < len(words):
        message = (
            f"read_arpa: {known} of the {len(words)} words of {os.fspath(path)} are tokens, and no "
            "decoder emits the others. If tokens spell words, pass separator=."
        )
        warnings.warn(message, stacklevel=3)


def fail_without_kernel(platform: str, variable: str) -> NoReturn:
    """Refuses to lower what was asked for by name, where there is none."""
    remedy = (
        'Use None or "xla", a TPU or an NVIDIA GPU; '
        f"on a CPU, {variable}=tpu or {variable}=gpu emulates their kernels."
    )
    fail(
        "jaxctc", "implementation", f'be None or "xla" on the platform {platform}', "pallas", remedy
    )


def known_lengths(function: str, argument: str, values: Any, longest: int) -> None:
    """Refuses lengths that are known (`foreign.known`), and that `longest` entries cannot have."""
    known = foreign.known(values)
    if known is not None and known.size and not 0 <= known.min() <= known.max() <= longest:
        remedy = "They count the frames that the model keeps, or the labels in use."
        fail(function, argument, f"lie in [0, {longest}]", known.tolist(), remedy)


def lengths(
    function: str, argument: str, values: ArrayLike, shape: tuple[int, ...], longest: int
) -> Int[Array, "..."]:
    """One integer per example: how many of `longest` entries are in use."""
    array = as_array(function, argument, saturated(values))
    if array.shape != shape or not _is(array, jnp.integer):
        requirement = f"be integers of shape {shape}, one per example"
        remedy = ""
        if _is(array, jnp.floating):
            remedy = f"Pass counts, by astype(int); shares of {longest} times {longest} first."
        fail(function, argument, requirement, _kind(array), remedy)
    known_lengths(function, argument, values, longest)
    return as_int32(array)


def per_class(
    function: str, argument: str, values: ArrayLike, shape: tuple[int, ...]
) -> Float[Array, "*B 1 K"]:
    """One number per class, for all examples or for each, ready to meet scores of `shape`."""
    array, batch, classes = as_array(function, argument, values), shape[:-2], shape[-1]
    if not _is(array, jnp.floating):
        fail(function, argument, "be real numbers", _kind(array))
    if array.shape == (classes,):
        array = jnp.broadcast_to(array, (*batch, classes))
    if array.shape != (*batch, classes):
        requirement = f"have shape {(classes,)} or {(*batch, classes)}, [*B, K]"
        fail(function, argument, requirement, array.shape)
    return array[..., None, :]


def per_frame_and_label(
    function: str, argument: str, values: ArrayLike, shape: tuple[int, ...]
) -> Float[Array, "*B T N"]:
    """One real number for each frame and label."""
    array = real(function, argument, values)
    if array.shape != shape:
        remedy = "One value per frame and label, in the places where labels are given."
        fail(function, argument, f"have shape {shape}, [*B, T, N]", array.shape, remedy)
    return array


def _is(array: Array, *kinds: Any) -> bool:
    return any(jnp.issubdtype(array.dtype, kind) for kind in kinds)


def _can_spread(array: Array, axis: str) -> bool:
    """Whether `jax.shard_map` takes an array for the same on all devices along an axis of it."""
    try:
        lax.pcast(array, axis, to="varying")
    except (AssertionError, NameError, ValueError):  # the first for an axis of no mesh
        return False
    return True
