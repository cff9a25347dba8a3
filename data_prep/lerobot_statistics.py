"""The statistics that a LeRobot data set keeps of each episode, by which policies normalise what they read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_prep.schema import Image

Statistics = Mapping[str, Mapping[str, object]]
"""Of an episode: by feature, lists of `min`, `max`, `mean`, `std` in the feature's shape, and its `count`."""


def aggregate(episodes: Sequence[Statistics]) -> Statistics:
    """The statistics of all episodes together, from those of each.

    Example:
        >>> halves = [{"speed": of_numbers(np.array(part))} for part in ([1.0, 2.0], [6.0])]
        >>> whole = of_numbers(np.array([1.0, 2.0, 6.0]))
        >>> all(np.allclose(aggregate(halves)["speed"][name], value) for name, value in whole.items())
        True
    """
    return {name: _together([each[name] for each in episodes]) for name in episodes[0]}


def _together(parts: Sequence[Mapping[str, object]]) -> Mapping[str, object]:
    least, most, mean, std = (
        np.stack([np.asarray(part[name], dtype=np.float64) for part in parts])
        for name in ("min", "max", "mean", "std")
    )
    counts = np.concatenate([np.asarray(part["count"], dtype=np.int64) for part in parts])
    share = (counts / counts.sum()).reshape(-1, *(1,) * (mean.ndim - 1))
    whole = (share * mean).sum(axis=0)
    variance = (share * (std**2 + (mean - whole) ** 2)).sum(axis=0)
    named = {"min": least.min(axis=0), "max": most.max(axis=0), "mean": whole, "std": np.sqrt(variance)}
    return {name: value.tolist() for name, value in named.items()} | {"count": [int(counts.sum())]}


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
