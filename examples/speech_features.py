"""What a network hears: log-mel features of sound, and masks over them, as array functions."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

WINDOW, HOP, POINTS = 200, 80, 256
"""Samples of a window, from one window to the next, and of its Fourier transform."""
BANDS = 40
FLOOR = 1e-5
"""Power that is added to each band: about what the quietest recordings have as noise."""


def num_frames(num_samples: Any) -> Any:
    """How many frames so many samples have, a number or an array of them: ⌈S / HOP⌉."""
    return -(-num_samples // HOP)


def log_mel(samples: ArrayLike, rate: int) -> jax.Array:
    """The logarithm of the power in BANDS bands, `[*B, ⌈S / HOP⌉, BANDS]` for samples `[*B, S]`.

    Frame t is centred on the samples from t · HOP to (t + 1) · HOP; before the first and after the
    last sample there is silence.
    """
    power = power_spectra(samples)
    return jnp.log(power @ mel_filters(rate) + FLOOR)


def power_spectra(samples: ArrayLike) -> jax.Array:
    """The power at POINTS / 2 + 1 frequencies, of frames under a Hann window."""
    samples = jnp.asarray(samples)
    size = samples.shape[-1]
    frames = num_frames(size)
    before = (WINDOW - HOP) // 2
    after = (frames - 1) * HOP + WINDOW - before - size
    padded = jnp.pad(samples, [(0, 0)] * (samples.ndim - 1) + [(before, after)])
    places = HOP * np.arange(frames)[:, None] + np.arange(WINDOW)
    window = np.hanning(WINDOW + 1)[:-1].astype(np.float32)
    return jnp.abs(jnp.fft.rfft(padded[..., places] * window, n=POINTS)) ** 2


@functools.cache
def mel_filters(rate: int, lowest: float = 60.0) -> np.ndarray:
    """Weights `[POINTS / 2 + 1, BANDS]`: triangles over the mel scale, each from peak to peak."""
    highest = rate / 2
    frequencies = np.linspace(0, highest, POINTS // 2 + 1)
    edges = np.linspace(_mel(lowest), _mel(highest), BANDS + 2)
    places = _mel(frequencies)[:, None]
    left, peak, right = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (places - left) / (peak - left), (right - places) / (right - peak)
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


def _mel(hertz: ArrayLike) -> np.ndarray:
    return 2595 * np.log10(1 + np.asarray(hertz) / 700)


def hide_stretches(
    key: jax.Array, features: jax.Array, no_frame: jax.Array, *, share: float = 0.1
) -> jax.Array:
    """SpecAugment: random bands and random stretches of time of each example become 0.

    Args:
      key: of `jax.random`.
      features: `[B, T, F]`, normalized, so that 0 is what they are on average.
      no_frame: `[B, T]`, True where padded.
      share: how much of the frames is hidden, about, in stretches of up to 30.

    Returns:
      Features of the same shape, two stretches of up to 8 bands hidden as well.

    References:
      Park et al. 2019, "SpecAugment: a simple data augmentation method for automatic speech
      recognition", section 2.
    """
    frames, width = features.shape[1:]
    in_time, in_bands = jax.random.split(key)
    in_use = jnp.sum(~no_frame, axis=1, keepdims=True)
    hidden = _stretches(in_time, frames, in_use, count=math.ceil(share * frames / 15), longest=30)
    whole = jnp.full_like(in_use, width)
    hidden_bands = _stretches(in_bands, width, whole, count=2, longest=8)
    return jnp.where(hidden[:, :, None] | hidden_bands[:, None, :], 0.0, features)


def _stretches(
    key: jax.Array, size: int, in_use: jax.Array, *, count: int, longest: int
) -> jax.Array:
    """Where any of so many random stretches lies, `[B, size]`; each begins within `in_use`."""
    length_key, start_key = jax.random.split(key)
    shape = len(in_use), count
    lengths = jax.random.randint(length_key, shape, 0, longest + 1)
    starts = jnp.floor(jax.random.uniform(start_key, shape) * in_use)
    places = jnp.arange(size)
    begun = places >= starts[:, :, None]
    return jnp.any(begun & (places < (starts + lengths)[:, :, None]), axis=1)
