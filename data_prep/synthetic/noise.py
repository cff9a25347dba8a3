"""Smooth noise in time and on tiles that repeat without a seam."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Float64


def wandering(
    rng: np.random.Generator, time_s: Float64[np.ndarray, " T"], *, periods_s: tuple[float, float]
) -> Float64[np.ndarray, " T"]:
    """Noise of mean 0 and variance about 1: sine waves of random periods in the given range.

    The generator is used equally whatever the times, so a longer drive begins with the shorter one.
    """
    waves = 6
    period = np.exp(rng.uniform(np.log(periods_s[0]), np.log(periods_s[1]), waves))
    phase = rng.uniform(0, 2 * np.pi, waves)
    return np.sqrt(2 / waves) * np.sin(2 * np.pi * time_s[:, None] / period + phase).sum(axis=1)


def tile(rng: np.random.Generator, *, size: int, roughness: float) -> Float32[np.ndarray, "S S"]:
    """A square tile of noise that repeats without a seam, mean 0, variance 1, within -3 and 3.

    Args:
        rng: makes the tile.
        size: of its side, in texels.
        roughness: amplitude falls with frequency to the power of minus this: 0 is white, 1.5 like clouds.
    """
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)) * size
    frequency[0, 0] = np.inf
    spectrum = np.fft.fft2(rng.standard_normal((size, size))) / frequency**roughness
    field = np.fft.ifft2(spectrum).real
    return np.clip(field / field.std(), -3.0, 3.0).astype(np.float32)
