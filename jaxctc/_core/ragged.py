"""Ragged sequences in rectangular arrays: where they end, and how their entries move together."""

import functools

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Int, Shaped

from jaxctc._core.lean import select


def is_beyond(lengths: Int[Array, "*B"], size: int) -> Bool[Array, "*B L"]:
    """True from position `lengths` on, of `size` positions."""
    positions = jnp.arange(size, dtype=jnp.int32)
    return jnp.expand_dims(positions, range(lengths.ndim)) >= lengths[..., None]


def is_emittable(ids: Int[Array, "*B N"], classes: int, blank: int) -> Bool[Array, "*B N"]:
    """True for an id that a frame can emit as a label: a class other than the blank."""
    return (ids >= 0) & (ids < classes) & (ids != blank)


def is_repeat(packed: Int[Array, "*B N"], in_use: Bool[Array, "*B N"]) -> Bool[Array, "*B N"]:
    """True for a label in use that equals the one before it; labels packed to the left."""
    same = packed[..., 1:] == packed[..., :-1]
    first = lax.full_like(in_use, False, shape=(*packed.shape[:-1], min(1, packed.shape[-1])))
    return jnp.concatenate([first, same], axis=-1) & in_use


def pack_left(values: Shaped[Array, "*B L"], keep: Bool[Array, "*B L"], fill: int | float = 0):
    """Moves the kept entries to the front, in their order, and fills up the rest.

    One scatter per example, to places that never collide: the same bits on every run, and no
    index over the batch that would make a sharded call gather it.
    """
    return scatter_in_order(values, keep, count_along(keep) - 1, fill)


def count_along(keep: Bool[Array, "*B L"]) -> Int[Array, "*B L"]:
    """How many are True, up to and with each place."""
    return lax.cumsum(keep.astype(jnp.int32), axis=keep.ndim - 1)


@functools.partial(jnp.vectorize, signature="(l),(l),(l)->(l)", excluded=(3,))
def scatter_in_order(values, keep, places, fill):
    """`out[places[i]] = values[i]` for the kept `i`; `fill` elsewhere."""
    size = values.shape[0]
    places = select(keep, places, size)
    empty = lax.full_like(values, fill)
    return empty.at[places].set(values, mode="drop", wrap_negative_indices=False)
