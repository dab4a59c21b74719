"""Array operations as the one or two equations that they are.

`jnp.where`, `jnp.flip` and indexing come wrapped in a `jit` each, broadcast what need not be, and
ask of every index whether it is negative. That made a third of all equations of the loss, and the
time to trace and to compile a program grows with their number.
"""

from collections.abc import Sequence

from jax import Array, lax
from jaxtyping import Bool, Int, Shaped


def select(
    condition: Bool[Array, "..."], values: Shaped[Array, "..."], otherwise: Array | float | int
) -> Shaped[Array, "..."]:
    """The values where the condition holds, elsewhere a number or others of the same shape.

    The condition is one for all, or has the axes of the values, each as long as theirs or 1.
    """
    if not isinstance(otherwise, Array):
        otherwise = lax.full_like(values, otherwise)
    if condition.ndim > 0:
        condition = broadcast(condition, values.shape)
    return lax.select(condition, values, otherwise)


def broadcast(values: Shaped[Array, "..."], shape: Sequence[int]) -> Shaped[Array, "..."]:
    """The values in a shape with as many axes, of which those of length 1 may become longer."""
    shape = tuple(shape)
    same = values.shape == shape
    return values if same else lax.broadcast_in_dim(values, shape, tuple(range(len(shape))))


def take_one(values: Shaped[Array, "..."], index: Int[Array, ""], axis: int) -> Array:
    """`values[index]` along an axis, for an index that is not negative."""
    axis %= values.ndim
    part = lax.dynamic_slice_in_dim(values, index, 1, axis, allow_negative_indices=False)
    return lax.squeeze(part, (axis,))


def put_one(values: Shaped[Array, "..."], part: Array, index: Int[Array, ""], axis: int) -> Array:
    """The values with `values[index]` replaced along an axis; the index is not negative."""
    part = lax.expand_dims(part, (axis % values.ndim,))
    return lax.dynamic_update_slice_in_dim(values, part, index, axis, allow_negative_indices=False)


def reverse(values: Shaped[Array, "..."], *axes: int) -> Shaped[Array, "..."]:
    """Read from the other end along some axes."""
    return lax.rev(values, tuple(axis % values.ndim for axis in axes))
