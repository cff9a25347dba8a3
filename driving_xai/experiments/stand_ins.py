"""Stand-ins for the papers' images: handwritten digits in clutter for photographs, spotted discs for fundus images.

scikit-learn carries 1,797 digits of 8 x 8 pixels (UCI, Alpaydin and Kaynak 1998), so that nothing needs
to be fetched. No digit is used twice: training, testing and pretraining draw from their own. What tells spotted
discs apart covers one or two percent of the picture, and where it lies is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8

from driving_xai.errors import DataError
from driving_xai.experiments.image_sets import MemoryImages


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


def digits_in_clutter(*, train: int, val: int, test: int, how: Clutter, seed: int) -> MemoryImages:
    """Real handwritten digits among fragments of others; no digit serves two splits.

    Raises:
        DataError: scikit-learn, which brings the digits, is not installed.
    """
    learnt, tested = handwritten_digits().split(0.6, seed=seed)
    learnt, validated = learnt.split(0.8, seed=seed)
    parts = {"train": (learnt, train), "val": (validated, val), "test": (tested, test)}
    drawn = {
        split: cluttered(digits, count, how, seed=seed + place)
        for place, (split, (digits, count)) in enumerate(parts.items())
    }
    return MemoryImages(
        label_names=tuple(f"digit {k}" for k in range(10)),
        pixels=torch.from_numpy(np.concatenate([pictures for pictures, _ in drawn.values()])),
        classes=torch.from_numpy(np.concatenate([labels for _, labels in drawn.values()])),
        splits=np.repeat(list(drawn), [len(labels) for _, labels in drawn.values()]),
    )


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


SPOT_CLASSES = ("clear", "spotted")


@dataclass(frozen=True, kw_only=True)
class Spots:
    """How the pictures look."""

    size_px: int = 48
    most_spots: int = 5
    radius_px: tuple[float, ...] = (1.5, 2.5)
    """Smallest and largest of a spot."""
    contrast: float = 0.35
    """By how much a spot is darker than the disc."""
    texture: float = 0.08
    """Standard deviation of the disc's smooth unevenness."""
    noise: float = 0.03
    """Standard deviation of the grain on every pixel."""

    def __post_init__(self) -> None:
        if self.size_px < 16 or self.most_spots < 1 or len(self.radius_px) != 2:
            raise ValueError(
                f"size_px is {self.size_px}, most_spots {self.most_spots}, radius_px {list(self.radius_px)}; "
                "expected 16 or more, 1 or more, and two radii"
            )


def spotted_discs(*, train: int, val: int, test: int, how: Spots, seed: int) -> MemoryImages:
    """So many pictures for each split, half of them with spots; causes are the spots' pixels."""
    draw = np.random.default_rng(seed)
    count = train + val + test
    spotted = np.arange(count) % 2 == 1
    pictures, causes = zip(*(_disc(bool(each), how, draw) for each in spotted), strict=True)
    levels = np.round(np.stack(pictures).clip(0, 1) * 255).astype(np.uint8)
    return MemoryImages(
        label_names=SPOT_CLASSES,
        pixels=torch.from_numpy(levels).permute(0, 3, 1, 2).contiguous(),
        classes=torch.from_numpy(spotted.astype(np.int64)),
        splits=np.repeat(["train", "val", "test"], [train, val, test]),
        causes=torch.from_numpy(np.stack(causes)),
    )


def _disc(
    spotted: bool, how: Spots, draw: np.random.Generator
) -> tuple[Float[np.ndarray, "H W 3"], Bool[np.ndarray, "H W"]]:
    side = how.size_px
    rows, columns = np.mgrid[:side, :side] + 0.5
    away = np.hypot(rows - side / 2, columns - side / 2) / (side / 2)
    uneven = cv2.GaussianBlur(draw.normal(size=(side, side)).astype(np.float32), (0, 0), side / 10)
    grey = 0.6 + how.texture * uneven / uneven.std() - 0.2 * away**2
    bright = draw.uniform(-0.5, 0.5, 2) * side / 2 + side / 2  # A large bright place in either class.
    grey += 0.25 * np.exp(-((rows - bright[0]) ** 2 + (columns - bright[1]) ** 2) / (2 * (side / 12) ** 2))
    cause = np.zeros((side, side), dtype=bool)
    if spotted:
        for _ in range(int(draw.integers(1, how.most_spots + 1))):
            angle, far = draw.uniform(0, 2 * np.pi), 0.75 * side / 2 * np.sqrt(draw.uniform())
            centre = side / 2 + far * np.sin(angle), side / 2 + far * np.cos(angle)
            radius = draw.uniform(how.radius_px[0], how.radius_px[1])
            cause |= np.hypot(rows - centre[0], columns - centre[1]) <= radius
        grey = grey - how.contrast * cause
    grey = np.where(away <= 0.95, grey, 0.02)
    colours = grey[..., None] * np.array([1.0, 0.6, 0.35])
    return colours + draw.normal(0, how.noise, colours.shape), cause & (away <= 0.95)
