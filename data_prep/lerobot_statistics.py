"""The statistics that a LeRobot data set keeps of each episode, by which policies normalise what they read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from data_prep.schema import Image


class Moments:
    """Statistics of the images that pass by, a channel each, in [0, 1]."""

    def __init__(self) -> None:
        self._least, self._most = np.full(3, 255.0), np.zeros(3)
        self._sum, self._squares, self._pixels, self._images = np.zeros(3), np.zeros(3), 0, 0

    def watched(self, images: Iterator[Image]) -> Iterator[Image]:
        """The images, each taken into account as it passes."""
        for image in images:
            pixels = image.reshape(-1, 3)
            self._least = np.minimum(self._least, pixels.min(axis=0))
            self._most = np.maximum(self._most, pixels.max(axis=0))
            self._sum += pixels.sum(axis=0, dtype=np.float64)
            self._squares += np.square(pixels, dtype=np.float64).sum(axis=0)
            self._pixels += len(pixels)
            self._images += 1
            yield image

    def stats(self) -> dict[str, Any]:
        """Of shape [3, 1, 1], as LeRobot keeps them for images."""
        mean = self._sum / self._pixels
        std = np.sqrt(np.maximum(self._squares / self._pixels - mean**2, 0.0))
        named = {"min": self._least, "max": self._most, "mean": mean, "std": std}
        found = {name: (value / 255.0).reshape(3, 1, 1).tolist() for name, value in named.items()}
        return found | {"count": [self._images]}


def of_numbers(values: np.ndarray) -> dict[str, Any]:
    """Of a feature's values, one row a frame."""
    rows = values.reshape(len(values), -1).astype(np.float64)
    named = {
        "min": rows.min(axis=0),
        "max": rows.max(axis=0),
        "mean": rows.mean(axis=0),
        "std": rows.std(axis=0),
    }
    return {name: value.tolist() for name, value in named.items()} | {"count": [len(rows)]}
