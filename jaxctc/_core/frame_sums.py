"""Sums over frames of what prefixes have before a token, times its emissions: all frames, or some.

Rows are `[*B, W, T]`, one for each of W prefixes; emissions `[*B, W, T, C]` or, where all prefixes
of an example ask for the same ones, `[*B, 1, T, C]`.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from jaxctc._core.lean import broadcast, take_one
from jaxctc._core.normalizer import safe_max
from jaxctc._core.semirings import Number, Semiring


def likeliest_frames(
    once: Number, of_any: Number, window: int, semiring: Semiring
) -> Int[Array, "*B W"]:
    """Where the window begins that holds the most of all that goes on from a prefix."""
    of_any = jax.tree.map(lambda part, row: broadcast(part[..., None, :], row.shape), of_any, once)
    weights = semiring.decode(semiring.times(once, of_any))
    weights = jnp.exp(weights - safe_max(jnp.max(weights, axis=-1))[..., None])
    after = lax.cumsum(weights, axis=weights.ndim - 1)
    before = (after - weights)[..., : weights.shape[-1] - window + 1]
    return lax.argmax(after[..., window - 1 :] - before, before.ndim - 1, jnp.int32)


def sum_of_window(
    starts: Int[Array, "*B W"], window: int, rows: Number, emissions: Number, semiring: Semiring
) -> Float[Array, "*B W C"]:
    """As `sum_of_all`, over the window of each prefix.

    A CPU copies it, for one prefix after the other; such copies are loops on a TPU, and launches on
    a GPU, more of them than it takes to add zeros.
    """

    @functools.partial(jnp.vectorize, signature="(t,c),()->(w,c)")
    def cut(part: Array, start: Array) -> Array:
        return lax.dynamic_slice_in_dim(part, start, window, allow_negative_indices=False)

    def copied(rows: Number, emissions: Number) -> Array:
        def one(place: Array) -> Array:
            start = take_one(starts, place, -1)
            here = place if shape_of(emissions)[-3] > 1 else jnp.zeros_like(place)
            emission = jax.tree.map(lambda part: cut(take_one(part, here, -3), start), emissions)
            row = jax.tree.map(lambda part: cut(take_one(part, place, -2)[..., None], start), rows)
            return _weighed_sum(jax.tree.map(lambda part: part[..., 0], row), emission, semiring)

        found = lax.map(one, jnp.arange(starts.shape[-1], dtype=jnp.int32))
        return jnp.moveaxis(found, 0, -2)

    def masked(rows: Number, emissions: Number) -> Array:
        frame = lax.broadcasted_iota(jnp.int32, shape_of(rows), starts.ndim) - starts[..., None]
        rows = semiring.mask((frame >= 0) & (frame < window), rows)
        return _weighed_sum(rows, emissions, semiring)

    if 0 in (*shape_of(rows), *shape_of(emissions)):
        return masked(rows, emissions)
    return lax.platform_dependent(rows, emissions, cpu=copied, default=masked)


def sum_of_all(rows: Number, emissions: Number, semiring: Semiring) -> Float[Array, "*B W C"]:
    """log Σ_t rows_t · emissions_t(c)."""

    def one_by_one(rows: Number, emissions: Number) -> Array:
        """What one prefix needs stays in the cache of a CPU."""
        *batch, width, frames = shape_of(rows)
        shared = width // shape_of(emissions)[-3]
        rows = jax.tree.map(lambda part: part.reshape(-1, frames), rows)
        emissions = jax.tree.map(lambda part: part.reshape(-1, *part.shape[-2:]), emissions)

        def one(given: tuple[Number, Array]) -> Array:
            row, example = given
            take = functools.partial(take_one, index=example, axis=0)
            return _weighed_sum(row, jax.tree.map(take, emissions), semiring)

        places = jnp.arange(shape_of(rows)[0], dtype=jnp.int32)
        found = lax.map(one, (rows, lax.div(places, jnp.int32(shared))))
        return found.reshape(*batch, width, found.shape[-1])

    at_once = functools.partial(_weighed_sum, semiring=semiring)
    if 0 in (*shape_of(rows), *shape_of(emissions)):
        return at_once(rows, emissions)
    return lax.platform_dependent(rows, emissions, cpu=one_by_one, default=at_once)


def _weighed_sum(rows: Number, emissions: Number, semiring: Semiring) -> Float[Array, "*S C"]:
    """The sum itself, of rows `[*S, T]`."""
    shape = *shape_of(rows), shape_of(emissions)[-1]
    rows = jax.tree.map(lambda part: broadcast(part[..., None], shape), rows)
    emissions = jax.tree.map(lambda part: broadcast(part, shape), emissions)
    return semiring.decode(semiring.sum(semiring.times(rows, emissions), axis=-2))


def shape_of(number: Number) -> tuple[int, ...]:
    """Of all its parts."""
    return jax.tree.leaves(number)[0].shape
