"""A conformer for CTC, whose large matrices may lie on several devices.

After Gulati et al. 2020, "Conformer: convolution-augmented transformer for speech recognition",
with these changes: two convolutions over time alone leave frames out; positions are told by
rotation (Su et al. 2021, "RoFormer"); what the depthwise convolution gives is normalised over the
channels of one head, so that no device needs those of another. There is no dropout: that a training
is the same on any number of devices is worth more here. No frame sees padding, so that an example
has the same scores in any bucket.

Every method is called within `jax.shard_map`, on the part of the batch that one device has. Along
the axis `MODEL` of the mesh, half of the matrices are split by what they put out and the others by
what they take in (Shoeybi et al. 2019, "Megatron-LM", section 3), so that what lies between them is
local, and the devices add up once after each pair. The derivative of that is JAX's own affair.

Parameters are float32; activations are as the frames come. The layers are stacked, and a scan goes
over them: a program is no longer for more of them.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.sharding import PartitionSpec

MODEL = "model"
"""The axis of the mesh that matrices and classes are split over."""
ALIGNED = 8
"""Classes are filled up to a multiple of this, so that as many devices can share them."""


class Size(NamedTuple):
    """How large a conformer is."""

    width: int
    layers: int
    heads: int
    kernel: int
    """Frames that the convolution of a layer sees."""
    strides: tuple[int, int]
    """Of the two convolutions in front: one frame in `prod(strides)` is kept."""


SIZES = {
    "digits": Size(64, 2, 4, 7, (1, 2)),
    "tiny": Size(128, 3, 4, 15, (1, 2)),
    "base": Size(256, 20, 4, 31, (2, 2)),
    "large": Size(512, 20, 8, 31, (2, 2)),
}
"""About 0.2, 1, 30 and 120 million parameters."""

_IN, _OUT = PartitionSpec(MODEL), PartitionSpec(None, MODEL)
_PLACES = {
    "up": _OUT,
    "up_bias": _IN,
    "down": _IN,
    "heads_in": PartitionSpec(None, None, MODEL),
    "heads_out": _IN,
    "gates": PartitionSpec(None, None, MODEL),
    "depthwise": _OUT,
    "scale": _IN,
    "mixed": _IN,
    "classes": _OUT,
    "class_bias": _IN,
}
"""Where the parameters lie that are not the same on all devices."""


def place_of(path: tuple, *, whole: bool) -> PartitionSpec:
    """Where an array of a `Conformer` lies, or one of an optimizer, which bears the same name.

    With `whole`, every device has all classes.
    """
    names = [getattr(key, "key", getattr(key, "name", None)) for key in path]
    if whole and {"classes", "class_bias"} & set(names):
        return PartitionSpec()
    found = [_PLACES[name] for name in names if name in _PLACES]
    if not found:
        return PartitionSpec()
    return PartitionSpec(None, *found[-1]) if "blocks" in names else found[-1]


def _matrix(rngs: nnx.Rngs, *shape: int, inputs: int | None = None) -> nnx.Param:
    """Uniform, with the variance that keeps that of the inputs, the first axis by default."""
    limit = math.sqrt(3 / (inputs or shape[0]))
    return nnx.Param(jax.random.uniform(rngs.params(), shape, minval=-limit, maxval=limit))


def _product(equation: str, hidden: Array, matrix: nnx.Param, **options) -> Array:
    return jnp.einsum(equation, hidden, matrix[...].astype(hidden.dtype), **options)


def _normalized(hidden: Array) -> Array:
    """Mean 0 and deviation 1 over the last axis, computed in float32."""
    values = hidden.astype(jnp.float32)
    values -= values.mean(axis=-1, keepdims=True)
    values *= lax.rsqrt(jnp.square(values).mean(axis=-1, keepdims=True) + 1e-5)
    return values.astype(hidden.dtype)


class Norm(nnx.Module):
    """Layer normalisation."""

    def __init__(self, width: int) -> None:
        """The identity after normalising."""
        self.gain, self.offset = nnx.Param(jnp.ones(width)), nnx.Param(jnp.zeros(width))

    def __call__(self, hidden: Array) -> Array:
        """Of the same shape."""
        gain, offset = (part[...].astype(hidden.dtype) for part in (self.gain, self.offset))
        return _normalized(hidden) * gain + offset


class FeedForward(nnx.Module):
    """Four times as wide in between."""

    def __init__(self, size: Size, rngs: nnx.Rngs) -> None:
        """With the biases at 0."""
        width, inner = size.width, 4 * size.width
        self.norm = Norm(width)
        self.up, self.down = _matrix(rngs, width, inner), _matrix(rngs, inner, width)
        self.up_bias = nnx.Param(jnp.zeros(inner))

    def __call__(self, hidden: Array) -> Array:
        """`[B, T, D]` to `[B, T, D]`."""
        inner = _product("btd,df->btf", self.norm(hidden), self.up)
        inner = jax.nn.silu(inner + self.up_bias[...].astype(inner.dtype))
        return lax.psum(_product("btf,fd->btd", inner, self.down), MODEL)


class Attention(nnx.Module):
    """Of every frame to all that are not padded."""

    def __init__(self, size: Size, rngs: nnx.Rngs) -> None:
        """Queries, keys and values of all heads in one array."""
        width, each = size.width, size.width // size.heads
        self.norm = Norm(width)
        self.heads_in = _matrix(rngs, width, 3, size.heads, each)
        self.heads_out = _matrix(rngs, size.heads, each, width, inputs=width)

    def __call__(self, hidden: Array, no_frame: Array) -> Array:
        """`[B, T, D]` to `[B, T, D]`."""
        parts = _product("btd,dphe->pbthe", self.norm(hidden), self.heads_in)
        queries, keys, values = _rotated(parts[0]), _rotated(parts[1]), parts[2]
        in_use = ~no_frame[:, None, None, :]
        found = jax.nn.dot_product_attention(queries, keys, values, mask=in_use)
        return lax.psum(_product("bthe,hed->btd", found, self.heads_out), MODEL)


def _rotated(heads: Array) -> Array:
    """`[B, T, H, E]`, pairs of channels turned by angles that grow with the frame."""
    half = heads.shape[-1] // 2
    rates = 10_000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = jnp.arange(heads.shape[1], dtype=jnp.float32)[:, None] * rates
    cos, sin = (turn[:, None, :].astype(heads.dtype) for turn in (jnp.cos(angles), jnp.sin(angles)))
    first, second = heads[..., :half], heads[..., half:]
    turned = first * cos - second * sin, first * sin + second * cos
    return jnp.concatenate(turned, axis=-1)


class Convolution(nnx.Module):
    """Of each channel by itself, between two layers over the channels."""

    def __init__(self, size: Size, rngs: nnx.Rngs) -> None:
        """The first layer has two halves, of which one lets the other through."""
        width = size.width
        self.each = width // size.heads
        self.norm = Norm(width)
        self.gates = _matrix(rngs, width, 2, width)
        self.depthwise = _matrix(rngs, size.kernel, width)
        self.scale = nnx.Param(jnp.ones(width))
        self.mixed = _matrix(rngs, width, width)

    def __call__(self, hidden: Array, no_frame: Array) -> Array:
        """`[B, T, D]` to `[B, T, D]`."""
        halves = _product("btd,dpe->pbte", self.norm(hidden), self.gates)
        gated = in_use(halves[0] * jax.nn.sigmoid(halves[1]), no_frame)
        channels, reach = gated.shape[-1], self.depthwise.shape[0] // 2
        found = lax.conv_general_dilated(
            gated,
            self.depthwise[...].astype(gated.dtype)[:, None, :],
            window_strides=(1,),
            padding=[(reach, reach)],
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=channels,
        )
        by_head = _normalized(found.reshape(*found.shape[:-1], -1, self.each))
        found = by_head.reshape(found.shape) * self.scale[...].astype(found.dtype)
        return lax.psum(_product("btd,de->bte", jax.nn.silu(found), self.mixed), MODEL)


class Block(nnx.Module):
    """Half a feed-forward layer, attention, convolution, the other half."""

    def __init__(self, size: Size, rngs: nnx.Rngs) -> None:
        """As the paper has them, section 2.4."""
        self.first, self.second = FeedForward(size, rngs), FeedForward(size, rngs)
        self.attention, self.convolution = Attention(size, rngs), Convolution(size, rngs)
        self.norm = Norm(size.width)

    def __call__(self, hidden: Array, no_frame: Array) -> Array:
        """`[B, T, D]` to `[B, T, D]`."""
        hidden += 0.5 * self.first(hidden)
        hidden += self.attention(hidden, no_frame)
        hidden += self.convolution(hidden, no_frame)
        hidden += 0.5 * self.second(hidden)
        return self.norm(hidden)


def in_use(hidden: Array, no_frame: Array) -> Array:
    """Zeros where padding is, as convolutions find them at the ends of what is not padded."""
    return jnp.where(no_frame[..., None], jnp.zeros_like(hidden), hidden)


class Conformer(nnx.Module):
    """Frames of features in, hidden values out, and the layer that makes logits of these."""

    def __init__(self, size: Size, features: int, classes: int, rngs: nnx.Rngs) -> None:
        """All arrays whole: `place_of` says how they are split."""
        self.strides = size.strides
        width = size.width
        self.front = nnx.List(
            [
                nnx.Conv(inputs, width, kernel_size=3, use_bias=False, rngs=rngs)
                for inputs in (features, width)
            ]
        )
        self.projection = _matrix(rngs, width, width)
        keys = jax.random.split(rngs.params(), size.layers)
        self.blocks = nnx.vmap(lambda key: Block(size, nnx.Rngs(key)))(keys)
        aligned = -(-classes // ALIGNED) * ALIGNED
        self.classes, self.class_bias = _matrix(rngs, width, aligned), nnx.Param(jnp.zeros(aligned))

    def hidden(self, frames: Array, no_frame: Array, *, remat: bool) -> tuple[Array, Array]:
        """Hidden values `[B, T', D]` and their paddings, for frames `[B, T, F]`.

        With `remat`, of every layer only what goes into it is kept for the way back.
        """
        hidden = frames
        for conv, stride in zip(self.front, self.strides, strict=True):
            # Output t is centred on frame t * stride, wherever the bucket ends.
            hidden = lax.conv_general_dilated(
                in_use(hidden, no_frame),
                conv.kernel[...].astype(hidden.dtype),
                window_strides=(stride,),
                padding=[(1, 1)],
                dimension_numbers=("NWC", "WIO", "NWC"),
            )
            hidden, no_frame = jax.nn.silu(hidden), no_frame[:, ::stride]
        hidden = _product("btd,de->bte", hidden, self.projection)

        graph, layers = nnx.split(self.blocks)

        def layer(hidden: Array, parameters: nnx.State) -> tuple[Array, None]:
            return nnx.merge(graph, parameters)(hidden, no_frame), None

        if remat:
            layer = functools.partial(jax.checkpoint, prevent_cse=False)(layer)
        return lax.scan(layer, hidden, layers)[0], no_frame

    def logits(self, hidden: Array, classes: int, *, whole: bool) -> Array:
        """Of the classes that this device has, -inf for those filled up; float32.

        With `whole`, every device has all of them.
        """
        logits = _product("btd,dk->btk", hidden, self.classes, preferred_element_type=jnp.float32)
        here = logits.shape[-1]
        first = 0 if whole else lax.axis_index(MODEL) * here
        ids = first + jnp.arange(here, dtype=jnp.int32)
        return jnp.where(ids < classes, logits + self.class_bias[...], -jnp.inf)
