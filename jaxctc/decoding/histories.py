"""The labels of prefixes, from what a scan over frames wrote down of where each one came from."""

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Int

from jaxctc._core.sharding import varying_like
from jaxctc.decoding.prefixes import take, where


def read_back(
    labels: Int[Array, "X W L"], lengths: Int[Array, "X W"], origins: Int[Array, "T X W"]
) -> Int[Array, "X W L"]:
    """The labels of the prefixes after a chunk, followed back from frame to frame.

    `labels` and `lengths` are those before the chunk; `origins` are (token + 1) · W + slot of the
    parent, with token -1 for none.
    """
    slots = jnp.broadcast_to(jnp.arange(origins.shape[-1], dtype=jnp.int32), origins.shape[1:])
    slots, added = lax.scan(one_back, varying_like(slots, origins), origins, reverse=True)
    labels = jnp.take_along_axis(labels, slots[..., None], axis=1)
    lengths = jnp.take_along_axis(lengths, slots, axis=1)
    return _append(labels, lengths, jnp.moveaxis(added, 0, -1))


def one_back(
    slots: Int[Array, "X W"], origins: Int[Array, "X W"]
) -> tuple[Int[Array, "X W"], Int[Array, "X W"]]:
    """The slots of the parents of the prefixes in some slots, and the tokens added to them."""
    width = jnp.asarray(origins.shape[-1], jnp.int32)
    (origin,) = jax.vmap(take)([origins], slots)
    return lax.rem(origin, width), lax.div(origin, width) - 1


@functools.partial(jnp.vectorize, signature="(l),(),(t)->(l)")
def _append(labels, length, added):
    """Appends what was added to the labels, -1 left out."""
    is_label = added >= 0
    places = length + jnp.cumsum(is_label, dtype=jnp.int32) - 1
    places = where(is_label, places, labels.shape[0])
    return labels.at[places].set(added, mode="drop")
