"""What stands on or over a street and decides what a driver may do: walkers, barriers, a signal."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from jaxtyping import Float32

from data_prep.synthetic.light import Colour
from data_prep.synthetic.roadside import Rgb, Sprite, sprite_from

Lamp = Literal["red", "green"]

PORTAL_WIDTH_M, PORTAL_HEIGHT_M = 13.2, 5.9
HEAD_FOOT_M, HEAD_HEIGHT_M = 3.7, 2.1
"""A signal's head hangs from a portal over the road; its lower end is so high above the street."""

_SKINS: tuple[Rgb, ...] = ((0.86, 0.66, 0.53), (0.62, 0.43, 0.32), (0.38, 0.26, 0.19))
_CLOTHES: tuple[Rgb, ...] = (
    (0.78, 0.14, 0.12), (0.12, 0.25, 0.55), (0.85, 0.84, 0.80), (0.13, 0.13, 0.15),
    (0.80, 0.62, 0.13), (0.20, 0.42, 0.25), (0.55, 0.30, 0.50),
)  # fmt: skip
_SHIFT = 4


class _Pad:
    """A transparent picture to draw a sprite on, in shares of its height."""

    def __init__(self, height: int, width: int) -> None:
        self.colour = np.zeros((height, width, 3), np.float32)
        self.alpha = np.zeros((height, width), np.float32)

    def _fixed(self, corners: list[tuple[float, float]]) -> np.ndarray:
        return np.rint(np.array(corners) * self.alpha.shape[0] * 2**_SHIFT).astype(np.int32)

    def polygon(self, corners: list[tuple[float, float]], rgb: Rgb) -> None:
        cv2.fillPoly(self.colour, [self._fixed(corners)], rgb, cv2.LINE_8, _SHIFT)
        cv2.fillPoly(self.alpha, [self._fixed(corners)], (1.0,), cv2.LINE_8, _SHIFT)

    def limb(self, corners: list[tuple[float, float]], rgb: Rgb, thick: float) -> None:
        width = max(round(thick * self.alpha.shape[0]), 1)
        cv2.polylines(self.colour, [self._fixed(corners)], False, rgb, width, cv2.LINE_8, _SHIFT)
        cv2.polylines(self.alpha, [self._fixed(corners)], False, (1.0,), width, cv2.LINE_8, _SHIFT)

    def disc(self, centre: tuple[float, float], radius: float, rgb: Rgb) -> None:
        angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        self.polygon([(centre[0] + radius * np.cos(a), centre[1] + radius * np.sin(a)) for a in angle], rgb)

    def sprite(self, *, height_m: float, light: Colour | float, shade_m: float = 0.0) -> Sprite:
        lit: Float32[np.ndarray, "h w 3"] = self.colour * np.float32(light)
        return sprite_from(lit, self.alpha, height_m=height_m, shade_m=shade_m)


def walker(rng: np.random.Generator, *, light: Colour) -> Sprite:
    """A person of 1.6 to 1.85 m in mid-stride, seen from the side."""
    pad = _Pad(192, 110)
    skin = _SKINS[int(rng.integers(len(_SKINS)))]
    coat, trousers = (_CLOTHES[int(rng.integers(len(_CLOTHES)))] for _ in range(2))
    dark: Rgb = (trousers[0] * 0.6, trousers[1] * 0.6, trousers[2] * 0.6)
    side = float(rng.choice([-1.0, 1.0]))
    middle, stride = 0.286, float(rng.uniform(0.10, 0.15))

    def at(x: float, y: float) -> tuple[float, float]:
        return middle + side * x, y

    pad.limb([at(0.0, 0.52), at(-0.04, 0.75), at(-stride - 0.03, 0.96)], dark, 0.085)
    pad.limb([at(-0.01, 0.24), at(0.09, 0.38), at(0.13, 0.50)], skin, 0.05)
    pad.limb([at(0.0, 0.52), at(0.06, 0.74), at(stride, 0.97)], trousers, 0.095)
    pad.limb([at(stride - 0.02, 0.97), at(stride + 0.06, 0.97)], (0.1, 0.1, 0.1), 0.045)
    pad.polygon([at(-0.10, 0.20), at(0.08, 0.19), at(0.09, 0.56), at(-0.09, 0.56)], coat)
    pad.limb([at(-0.02, 0.23), at(-0.11, 0.38), at(-0.09, 0.51)], coat, 0.06)
    pad.disc(at(0.01, 0.10), 0.072, skin)
    pad.polygon(
        [at(-0.07, 0.10), at(-0.06, 0.035), at(0.01, 0.02), at(0.07, 0.06), at(-0.01, 0.075)],
        (0.12, 0.09, 0.07),
    )
    return pad.sprite(height_m=float(rng.uniform(1.6, 1.85)), light=light)


def barrier(light: Colour) -> Sprite:
    """A board of red and white stripes on two legs, 2.4 m wide."""
    pad = _Pad(100, 220)
    red, white = (0.82, 0.10, 0.08), (0.90, 0.90, 0.88)
    for x in (0.35, 1.85):
        pad.limb([(x, 0.30), (x - 0.08, 0.98)], (0.30, 0.30, 0.32), 0.05)
        pad.limb([(x, 0.30), (x + 0.08, 0.98)], (0.30, 0.30, 0.32), 0.05)
    for top in (0.08, 0.50):
        pad.polygon([(0.0, top), (2.2, top), (2.2, top + 0.28), (0.0, top + 0.28)], white)
        for x in np.arange(0.02, 2.1, 0.44):
            left, right = float(x), float(min(x + 0.22, 2.2))
            pad.polygon(
                [(left, top + 0.28), (right, top + 0.28), (min(right + 0.12, 2.2), top), (left + 0.12, top)],
                red,
            )
    return pad.sprite(height_m=1.1, light=light)


def portal(light: Colour) -> Sprite:
    """Two posts and a beam across the road, without the signal's head."""
    pad = _Pad(236, 528)
    grey: Rgb = (0.46, 0.48, 0.50)
    wide = PORTAL_WIDTH_M / PORTAL_HEIGHT_M
    for x in (0.02, wide - 0.02):
        pad.limb([(x, 0.03), (x, 1.0)], grey, 0.028)
    pad.limb([(0.0, 0.04), (wide, 0.04)], grey, 0.03)
    return pad.sprite(height_m=PORTAL_HEIGHT_M, light=light)


def signal_head(lamp: Lamp, *, light: Colour) -> Sprite:
    """A black head with a light border and one lamp lit: red above or green below."""
    pad = _Pad(126, 66)
    body = tuple(float(c) for c in np.array([0.06, 0.06, 0.07]) * light)
    rim = tuple(float(c) for c in np.array([0.85, 0.85, 0.82]) * light)
    pad.polygon([(0.0, 0.0), (0.52, 0.0), (0.52, 1.0), (0.0, 1.0)], rim)  # type: ignore[arg-type]
    pad.polygon([(0.025, 0.02), (0.495, 0.02), (0.495, 0.98), (0.025, 0.98)], body)  # type: ignore[arg-type]
    lit: dict[str, Rgb] = {"red": (1.0, 0.10, 0.06), "green": (0.10, 0.95, 0.45)}
    off: dict[str, Rgb] = {
        "red": (0.16, 0.05, 0.05),
        "amber": (0.15, 0.11, 0.04),
        "green": (0.04, 0.13, 0.08),
    }
    for place, name in enumerate(("red", "amber", "green")):
        pad.disc((0.26, 0.19 + 0.31 * place), 0.125, lit[name] if name == lamp else off[name])
    # Lamps shine by themselves: the daylight is already in the colours of the rest.
    return pad.sprite(height_m=HEAD_HEIGHT_M, light=1.0)
