"""Heat maps over frames: a scale that is stable over time, colours, blending.

This is the only place that normalises a saliency map, and it does so for the eye.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from data_prep.schema import Image
from driving_xai.viz.lettering import PANEL, Layer

LEAST_HEIGHT, LEAST_WIDTH = 480, 640
"""Smaller frames are enlarged by a whole factor, so that the text can be read."""
MOST_SIDE = 8192
"""Of an enlarged frame: one of a few rows would become gigabytes."""

Map = Float32[np.ndarray, "h w"]


class HeatScale(NamedTuple):
    """What a map's values mean on screen, carried from frame to frame so that colours do not flicker.

    `floor` is shown as nothing and `ceiling` at full strength. Both follow the maps' quantiles
    through an exponential average: two frames with the same map look the same, and a frame with
    little evidence looks dark beside its neighbours, where a per-frame minimum and maximum would
    light up its noise.
    """

    floor: float
    ceiling: float
    signed: bool

    @classmethod
    def first(cls, saliency: Map, *, signed: bool | None = None) -> HeatScale:
        """The scale of a drive's first map.

        Args:
            signed: whether values below zero are evidence too; None: as the first map is.
        """
        signed = bool((saliency < 0).any()) if signed is None else signed
        return cls(*_quantiles(saliency, signed), signed)

    def after(self, saliency: Map, weight: float) -> HeatScale:
        """The scale for the next map.

        Args:
            weight: of the new map's quantiles in the average, over 0 and at most 1.
        """
        floor, ceiling = _quantiles(saliency, self.signed)
        return HeatScale(
            self.floor + weight * (floor - self.floor),
            self.ceiling + weight * (ceiling - self.ceiling),
            self.signed,
        )

    def level(self, saliency: Map) -> UInt8[np.ndarray, "h w"]:
        """A map as 0 to 255; of a signed map, 128 is nothing and 0 is as strong as 255."""
        span = max(self.ceiling - self.floor, 1e-30)  # a constant map is nothing, not a division by zero
        if self.signed:
            strength = np.clip((np.abs(saliency) - self.floor) / span, 0, 1)
            return np.rint(127.5 + 127.5 * np.sign(saliency) * strength).astype(np.uint8)
        return np.rint(255 * np.clip((saliency - self.floor) / span, 0, 1)).astype(np.uint8)


def _quantiles(saliency: Map, signed: bool) -> tuple[float, float]:
    """(floor, ceiling): the median and the 99.5 % quantile; for signed maps zero and that of |map|.

    Half of every map is thus left transparent: an attention that sums to one has no natural zero.
    """
    values = np.abs(saliency).ravel() if signed else saliency.ravel()
    middle, high = len(values) // 2, min(len(values) - 1, round(0.995 * (len(values) - 1)))
    ordered = np.partition(values, [middle, high])
    return 0.0 if signed else float(ordered[middle]), float(ordered[high])


def smoothed(saliency: Map, sigma_px: float) -> Map:
    """A map blurred for the eye; what is measured is never blurred.

    Args:
        sigma_px: standard deviation of the Gaussian, in pixels of the map, cut off at four of them; 0 leaves the
            map as it is.

    Raises:
        ValueError: it is below zero or not finite.

    Source: Tashiro and Awano 2023, Fig. 4, which does not say how wide its blur is.

    Example:
        >>> spike = np.zeros((9, 9), dtype=np.float32)
        >>> spike[4, 4] = 1
        >>> bool(smoothed(spike, 1.0)[4, 4] < 0.2), smoothed(spike, 0) is spike
        (True, True)
    """
    if not 0 <= sigma_px < math.inf:
        raise ValueError(f"got a blur of {sigma_px} px; expected 0 or more")
    if sigma_px == 0:
        return saliency
    return cv2.GaussianBlur(saliency, (0, 0), sigma_px, borderType=cv2.BORDER_REFLECT_101)


def is_degenerate(saliency: Map) -> bool:
    """Whether a map says nothing: the same value everywhere, up to rounding."""
    low, high = float(saliency.min()), float(saliency.max())
    return high - low <= 1e-5 * max(abs(low), abs(high))


Colormap = Literal["inferno", "plasma", "viridis", "turbo"]
_CV2_COLORMAPS: Mapping[Colormap, tuple[int, int]] = {
    "inferno": (cv2.COLORMAP_INFERNO, 104),
    "plasma": (cv2.COLORMAP_PLASMA, 80),
    "viridis": (cv2.COLORMAP_VIRIDIS, 80),
    "turbo": (cv2.COLORMAP_TURBO, 48),
}
"""OpenCV's number, and the entry where it starts: below, colours vanish on a dark road."""
COLORMAPS: tuple[Colormap, ...] = tuple(_CV2_COLORMAPS)


class HeatLook(NamedTuple):
    """How evidence is coloured."""

    colormap: Colormap = "inferno"
    """Of unsigned maps. All but turbo are perceptually uniform; turbo shows best on dark roads."""
    opacity: float = 0.72
    """Of the strongest evidence, over 0 and at most 1."""


USUAL_LOOK = HeatLook()


@lru_cache(maxsize=8)
def heat_colours(
    signed: bool, look: HeatLook = USUAL_LOOK
) -> tuple[UInt8[np.ndarray, "256 1 3"], UInt8[np.ndarray, "256 1 3"]]:
    """(colour times opacity, what shows through) for each level.

    Opacity rises with the level, so that the road stays visible under weak evidence. Signed maps take red for
    more and blue for less, whatever the colour map.
    """
    levels = np.linspace(0, 1, 256)
    if signed:
        strength = np.abs(2 * levels - 1)
        ends = np.where(levels[:, None] < 0.5, [[70, 150, 255]], [[255, 92, 60]]).astype(float)
    else:
        strength = levels
        colormap, start = _CV2_COLORMAPS[look.colormap]
        colours = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], colormap)
        ends = colours[np.rint(start + (242 - start) * levels).astype(int), 0, ::-1].astype(float)
    opacity = look.opacity * strength**0.85
    colour = np.rint(ends * opacity[:, None]).astype(np.uint8)
    passes = np.rint(255 * (1 - opacity)).astype(np.uint8)
    return colour[:, None], np.repeat(passes[:, None, None], 3, 2)


def legend(signed: bool, look: HeatLook = USUAL_LOOK) -> UInt8[np.ndarray, "256 3"]:
    """The heat map's colours over a dark ground, in the order of the levels."""
    colour, passes = heat_colours(signed, look)
    ground = np.array(PANEL, dtype=np.float32) * passes[:, 0] / 255
    return (colour[:, 0] + ground).astype(np.uint8)


def blend_heat(
    picture: Image,
    saliency: Map,
    scale: HeatScale,
    *,
    look: HeatLook = USUAL_LOOK,
    scratch: Layer | None = None,
) -> None:
    """Lays a map over a picture of any size, in place.

    Args:
        look: its colours.
        scratch: a layer of the picture's size, written over, so that no memory is asked for.
    """
    layer = Layer.empty(*picture.shape[:2]) if scratch is None else scratch
    level = cv2.cvtColor(scale.level(saliency), cv2.COLOR_GRAY2RGB)
    # Coloured small, then enlarged: colours multiplied by their opacity may be interpolated.
    for small, large in zip(heat_colours(scale.signed, look), layer, strict=True):
        size = (large.shape[1], large.shape[0])
        cv2.resize(cv2.LUT(level, small), size, dst=large, interpolation=cv2.INTER_LINEAR)
    layer.lay(picture, left=0, top=0)


def enlargement(height: int, width: int) -> int:
    """The whole factor that makes a frame large enough for legible text, without a side over `MOST_SIDE`.

    Example:
        >>> enlargement(240, 320), enlargement(540, 960), enlargement(80, 160)
        (2, 1, 6)
    """
    wanted = max(math.ceil(LEAST_HEIGHT / height), math.ceil(LEAST_WIDTH / width))
    return max(1, min(wanted, MOST_SIDE // max(height, width)))
