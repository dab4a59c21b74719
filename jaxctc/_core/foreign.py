"""Values from outside JAX, as those of Python, NumPy and PyTorch. Nothing here imports PyTorch."""

import contextlib
import reprlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Shaped


def is_tensor(values: Any) -> bool:
    """Whether it is a tensor of PyTorch."""
    return hasattr(values, "detach") and hasattr(values, "requires_grad")


def from_tensor(tensor: Any) -> Shaped[Array, "..."] | None:
    """A copy of a tensor that NumPy cannot read: bfloat16, or on a GPU that JAX has, too.

    None for one that requires a gradient, that JAX cannot reach, or of a kind that it has not.
    """
    with contextlib.suppress(BufferError, RuntimeError, TypeError, ValueError):
        return jnp.array(jnp.from_dlpack(tensor.contiguous()), copy=True)
    return None


def known(values: Any) -> np.ndarray | None:
    """Numbers of Python, NumPy or a CPU's tensor; None where JAX or a GPU holds them.

    Those may be traced, or on a device that is at work: nobody waits for it.
    """
    if any(isinstance(leaf, Array) for leaf in jax.tree.leaves(values)):
        return None
    if is_tensor(values) and str(values.device) != "cpu":
        return None
    return np.asarray(values)


def remedy(values: Any) -> str:
    """What to do about a value that is no array."""
    if is_tensor(values):
        if values.requires_grad:
            return (
                "Pass its .detach(). No gradient goes back to PyTorch by itself: "
                "docs/coming-from.md says how."
            )
        if str(values.device) == "cpu":
            return "Pass a dense one, of a type that JAX has."
        return f"Pass its .cpu(), as this JAX cannot read a tensor on {values.device}."
    if "labels" in getattr(values, "_fields", ()):
        return "Pass a field of it, such as .labels."
    if isinstance(values, np.ma.MaskedArray):
        return "Pass its .filled(0). Paddings, like its mask, are True where padded."
    return (
        "Pad rows of different lengths and say so in the paddings; "
        "jaxctc.Vocabulary maps strings to ids."
    )


def kind(value: Any) -> str:
    """What it is, in a few words."""
    if isinstance(value, Array | np.ndarray):
        article = "a masked" if isinstance(value, np.ma.MaskedArray) else "an"
        return f"{article} array of {value.dtype}{list(value.shape)}"
    if is_tensor(value):
        what = "requires grad" if value.requires_grad else f"is on {value.device}"
        return f"a tensor of {value.dtype}{list(value.shape)} that {what}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return f"{reprlib.repr(value)} of type {type(value).__name__}"
