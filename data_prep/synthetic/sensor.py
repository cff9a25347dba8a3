"""The camera's sensor: exposure, a darker border, noise."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from data_prep.synthetic.roadside import Canvas
from data_prep.synthetic.view import Camera

_GRAIN_SHIFT = 61


class Sensor:
    """One camera; its grain is drawn once and read from a random place for each picture."""

    def __init__(self, rng: np.random.Generator, camera: Camera) -> None:
        self._camera = camera
        self._vignette = _vignette(camera)
        shape = (camera.height + _GRAIN_SHIFT, camera.width + _GRAIN_SHIFT, 3)
        self._grain = rng.standard_normal(shape).astype(np.float32)

    def expose(
        self, canvas: Canvas, rng: np.random.Generator, *, exposure: float
    ) -> UInt8[np.ndarray, "H W 3"]:
        """The picture of what the canvas holds; `rng` draws this picture's noise."""
        row, column = rng.integers(0, _GRAIN_SHIFT - 1, 2)
        grain = self._grain[row : row + self._camera.height, column : column + self._camera.width]
        bright = cv2.multiply(canvas, self._vignette, scale=exposure, dtype=cv2.CV_32F)
        return cv2.addWeighted(bright, 1.0, grain, rng.uniform(2.0, 3.4), 0.0, dtype=cv2.CV_8U)


def _vignette(camera: Camera) -> Float32[np.ndarray, "H W 3"]:
    v = (np.arange(camera.height) + 0.5) / camera.height - 0.5
    u = (np.arange(camera.width) + 0.5) / camera.width - 0.5
    falloff = (1.0 - 0.45 * (v[:, None] ** 2 + u**2)).astype(np.float32)
    return np.repeat(falloff[..., None], 3, axis=2)
