"""Ragged sequences in rectangular arrays: where they end, and how their entries move together."""

import functools

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Int, Shaped


def is_beyond(lengths: Int[Array, "*B"], size: int) -> Bool[Array, "*B L"]:
    """True from position `lengths` on, of `size` positions."""
    positions = jnp.arange(size, dtype=jnp.int32)
    return jnp.expand_dims(positions, range(lengths.ndim)) >= lengths[..., None]


def is_emittable(ids: Int[Array, "*B N"], classes: int, blank: int) -> Bool[Array, "*B N"]:
    """True for an id that a frame can emit as a label: a class other than the blank."""
    return (ids >= 0) & (ids < classes) & (ids != blank)


def is_repeat(packed: Int[Array, "*B N"], count: Int[Array, "*B"]) -> Bool[Array, "*B N"]:
    """True for a label in use that equals the one before it; labels packed to the left."""
    same = packed[..., 1:] == packed[..., :-1]
    same = jnp.concatenate([jnp.zeros_like(packed[..., :1], bool), same], axis=-1)
    return same & ~is_beyond(count, packed.shape[-1])


def pack_left(values: Shaped[Array, "*B L"], keep: Bool[Array, "*B L"], fill: int | float = 0):
    """Moves the kept entries to the front, in their order, and fills up the rest.

    One scatter per example, to places that never collide: the same bits on every run, and no
    index over the batch that would make a sharded call gather it.
    """
    return scatter_in_order(values, keep, jnp.cumsum(keep, axis=-1, dtype=jnp.int32) - 1, fill)


@functools.partial(jnp.vectorize, signature="(l),(l),(l)->(l)", excluded=(3,))
def scatter_in_order(values, keep, places, fill):
    """`out[places[i]] = values[i]` for the kept `i`; `fill` elsewhere."""
    size = values.shape[0]
    places = jnp.where(keep, places, jnp.asarray(size, places.dtype))
    return jnp.full_like(values, fill).at[places].set(values, mode="drop", unique_indices=False)
