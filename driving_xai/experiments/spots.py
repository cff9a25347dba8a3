"""Pictures of a disc with or without a few small spots: a stand-in for fundus images and magnetograms.

What tells the classes apart covers one or two percent of the picture, and where it lies is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float

from driving_xai.experiments.held_images import HeldImages

CLASSES = ("clear", "spotted")


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


def spotted_discs(*, train: int, val: int, test: int, how: Spots, seed: int) -> HeldImages:
    """So many pictures for each split, half of them with spots; causes are the spots' pixels."""
    draw = np.random.default_rng(seed)
    count = train + val + test
    spotted = np.arange(count) % 2 == 1
    pictures, causes = zip(*(_picture(bool(each), how, draw) for each in spotted), strict=True)
    levels = np.round(np.stack(pictures).clip(0, 1) * 255).astype(np.uint8)
    return HeldImages(
        label_names=CLASSES,
        pixels=torch.from_numpy(levels).permute(0, 3, 1, 2).contiguous(),
        classes=torch.from_numpy(spotted.astype(np.int64)),
        splits=np.repeat(["train", "val", "test"], [train, val, test]),
        causes=torch.from_numpy(np.stack(causes)),
    )


def _picture(
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
