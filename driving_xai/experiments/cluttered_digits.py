"""Real handwritten digits, alone or among fragments of others: a stand-in for the papers' photographs.

scikit-learn carries 1,797 digits of 8 x 8 pixels (UCI, Alpaydin and Kaynak 1998), so that nothing needs
to be fetched. No digit serves two ends: training, testing and pretraining draw from their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from driving_xai.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Digits:
    """Handwritten digits and what they are."""

    images: Float[np.ndarray, "N 8 8"]
    """Ink from 0 to 1."""
    labels: Int[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.labels)

    def only(self, classes: tuple[int, ...]) -> Digits:
        """The digits of these classes, labelled by their place among them."""
        kept = np.isin(self.labels, classes)
        places = np.array([classes.index(label) for label in self.labels[kept]])
        return Digits(images=self.images[kept], labels=places)

    def split(self, share: float, *, seed: int = 0) -> tuple[Digits, Digits]:
        """Two parts without a digit in common; the first has this share of every class."""
        order = np.random.default_rng(seed).permutation(len(self))
        first = np.zeros(len(self), dtype=bool)
        for label in np.unique(self.labels):
            rows = order[self.labels[order] == label]
            first[rows[: round(share * len(rows))]] = True
        parts = (Digits(images=self.images[part], labels=self.labels[part]) for part in (first, ~first))
        return next(parts), next(parts)


def handwritten_digits() -> Digits:
    """scikit-learn's bundled digits, in its order.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError(
            "the stand-in digits come with scikit-learn, which is not installed; "
            "pip install scikit-learn, or give a folder of shards"
        ) from None
    images, labels = load_digits(return_X_y=True)
    return Digits(images=images.reshape(-1, 8, 8).astype(np.float32) / 16, labels=labels.astype(np.int64))


def alone(digits: Digits, *, size_px: int = 28) -> UInt8[np.ndarray, "N 3 H W"]:
    """Each digit by itself, enlarged bilinearly, grey on black."""
    return _rgb(np.stack([cv2.resize(image, (size_px, size_px)) for image in digits.images]))


@dataclass(frozen=True, kw_only=True)
class Clutter:
    """How a digit is hidden among fragments of others."""

    size_px: int = 56
    digit_px: tuple[int, ...] = (22, 28)
    """Smallest and largest side of the digit."""
    fragments: int = 6
    fragment_px: int = 9
    noise: float = 0.05
    """Standard deviation of the grain on every pixel."""


def cluttered(
    digits: Digits, count: int, how: Clutter, *, seed: int
) -> tuple[UInt8[np.ndarray, "N 3 H W"], Int[np.ndarray, " N"]]:
    """`count` pictures of one digit each, somewhere among quarters of others; and which digit it is.

    Every digit is used about equally often. Fragments come from the same digits.
    """
    draw = np.random.default_rng(seed)
    chosen = np.resize(draw.permutation(len(digits)), count)
    pictures = np.stack([_picture(digits, int(row), how, draw) for row in chosen])
    return _rgb(pictures), digits.labels[chosen]


def _picture(digits: Digits, row: int, how: Clutter, draw: np.random.Generator) -> Float[np.ndarray, "H W"]:
    picture = np.zeros((how.size_px, how.size_px), dtype=np.float32)
    for other in draw.integers(len(digits), size=how.fragments):
        top, left = draw.integers(0, 5, size=2)
        _paste(picture, digits.images[other, top : top + 4, left : left + 4], how.fragment_px, draw)
    side = int(draw.integers(how.digit_px[0], how.digit_px[-1] + 1))
    _paste(picture, digits.images[row], side, draw)
    return picture + draw.normal(0, how.noise, picture.shape).astype(np.float32)


def _paste(
    picture: Float[np.ndarray, "H W"],
    ink: Float[np.ndarray, "h w"],
    side_px: int,
    draw: np.random.Generator,
) -> None:
    """Draws over a random place, with a random contrast; the stronger ink stays."""
    top, left = draw.integers(0, len(picture) - side_px + 1, size=2)
    place = picture[top : top + side_px, left : left + side_px]
    np.maximum(place, draw.uniform(0.6, 1.0) * cv2.resize(ink, (side_px, side_px)), out=place)


def _rgb(pictures: Float[np.ndarray, "N H W"]) -> UInt8[np.ndarray, "N 3 H W"]:
    levels = np.round(pictures.clip(0, 1) * 255).astype(np.uint8)
    return np.repeat(levels[:, None], 3, axis=1)
