"""The picture of one instant: the frame with its evidence, instruments, curve and provenance.

Drawing is pure: a new picture from the frame, the numbers and an explicit `HeatScale`. This is the
only place that normalises a saliency map, and it does so for the eye.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from data_prep.images import Geometry
from data_prep.records import Image
from driving_xai.replay.inset import CurveView, Inset
from driving_xai.replay.instruments import (
    MUTED,
    PANEL,
    PANEL_OPACITY,
    Camera,
    Steering,
    SteeringPanel,
    View,
    draw_path,
)
from driving_xai.replay.lettering import Colour, Layer, lettering, shade

WARNING: Colour = (255, 112, 96)
LEAST_HEIGHT, LEAST_WIDTH = 480, 640
"""Smaller frames are enlarged by a whole factor, so that the text can be read."""

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


def is_degenerate(saliency: Map) -> bool:
    """Whether a map says nothing: the same value everywhere, up to rounding."""
    low, high = float(saliency.min()), float(saliency.max())
    return high - low <= 1e-5 * max(abs(low), abs(high))


@lru_cache(maxsize=2)
def heat_colours(signed: bool) -> tuple[UInt8[np.ndarray, "256 1 3"], UInt8[np.ndarray, "256 1 3"]]:
    """(colour times opacity, what shows through) for each level.

    Unsigned maps take OpenCV's inferno, perceptually uniform, from its violet on; opacity rises with
    the level, so that the road stays visible under weak evidence. Signed maps take red for more and
    blue for less.
    """
    levels = np.linspace(0, 1, 256)
    if signed:
        strength = np.abs(2 * levels - 1)
        ends = np.where(levels[:, None] < 0.5, [[70, 150, 255]], [[255, 92, 60]]).astype(float)
    else:
        strength = levels
        inferno = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_INFERNO)
        ends = inferno[np.rint(64 + 178 * levels).astype(int), 0, ::-1].astype(float)
    opacity = 0.72 * strength**0.85
    colour = np.rint(ends * opacity[:, None]).astype(np.uint8)
    passes = np.rint(255 * (1 - opacity)).astype(np.uint8)
    return colour[:, None], np.repeat(passes[:, None, None], 3, 2)


def legend(signed: bool) -> UInt8[np.ndarray, "256 3"]:
    """The heat map's colours over a dark ground, in the order of the levels."""
    colour, passes = heat_colours(signed)
    ground = np.array(PANEL, dtype=np.float32) * passes[:, 0] / 255
    return (colour[:, 0] + ground).astype(np.uint8)


def blend_heat(picture: Image, saliency: Map, scale: HeatScale, *, scratch: Layer | None = None) -> None:
    """Lays a map over a picture of any size, in place.

    Args:
        scratch: a layer of the picture's size, written over, so that no memory is asked for.
    """
    layer = Layer.empty(*picture.shape[:2]) if scratch is None else scratch
    level = cv2.cvtColor(scale.level(saliency), cv2.COLOR_GRAY2RGB)
    # Coloured small, then enlarged: colours multiplied by their opacity may be interpolated.
    for small, large in zip(heat_colours(scale.signed), layer, strict=True):
        size = (large.shape[1], large.shape[0])
        cv2.resize(cv2.LUT(level, small), size, dst=large, interpolation=cv2.INTER_LINEAR)
    layer.lay(picture, left=0, top=0)


@dataclass(frozen=True, kw_only=True)
class Instant:
    """What is known of one frame."""

    image: Image
    saliency: Map
    predicted: Steering
    measured: Steering
    """NaN where unknown."""
    speed_mps: float
    """NaN where unknown."""
    curve: CurveView | None
    caption: str
    """Which instant it is: burned in at the lower right."""


@dataclass(frozen=True, kw_only=True)
class OverlayConfig:
    """What is drawn, the same for all frames of a source."""

    labelled: bool
    """Whether the source says how the car was steered."""
    speed_known: bool
    signed: bool
    """Whether maps have evidence below zero."""
    provenance: str
    """What made the picture: burned in at the lower left."""
    camera: Camera | None = None
    """For the projected path; None leaves the path out."""
    curve_title: str = "Steering error as evidence is removed"
    last_fraction: float = 0.25
    """Of pixels removed, where the curve ends."""


def enlargement(height: int, width: int) -> int:
    """The whole factor that makes a frame large enough for legible text.

    Example:
        >>> enlargement(240, 320), enlargement(540, 960), enlargement(80, 160)
        (2, 1, 6)
    """
    return max(1, math.ceil(LEAST_HEIGHT / height), math.ceil(LEAST_WIDTH / width))


class Overlay:
    """Draws instants of one source; parts that never change are drawn once.

    It owns scratch memory, so one overlay serves one thread.
    """

    def __init__(
        self, *, height: int, width: int, geometry: Geometry, cropped: bool, config: OverlayConfig
    ) -> None:
        """Fits the drawing to a source.

        Args:
            height: of the source's frames.
            width: of the source's frames.
            geometry: the model's; it says where in the frame a map belongs.
            cropped: whether the frames are the model's input already, as shards hold them.
            config: what is drawn.
        """
        self.factor = enlargement(height, width)
        self.height, self.width = height * self.factor, width * self.factor
        self.unit = min(self.height / LEAST_HEIGHT, self.width / LEAST_WIDTH)
        whole = (0, self.height, 0, self.width)
        self.region = whole if cropped else geometry.region(self.height, self.width)
        self.view = None
        if config.camera is not None:
            self.view = View.of(config.camera, self.height, self.width, geometry if cropped else None)
        self.panel = SteeringPanel(
            self.unit, labelled=config.labelled, speed_known=config.speed_known, legend=legend(config.signed)
        )
        self.inset = Inset(self.unit, title=config.curve_title, last_fraction=config.last_fraction)
        self._small = lettering(round(11 * self.unit))
        self._strip = Layer.record(
            round(18 * self.unit), self.width, lambda part: self._draw_strip(part, config.provenance)
        )
        top, bottom, left, right = self.region
        self._heat = Layer.empty(bottom - top, right - left)

    def draw(self, instant: Instant, scale: HeatScale, axis_top_deg: float) -> Image:
        """The picture of an instant, as a new array of `height` x `width`."""
        picture = self._enlarged(instant.image)
        degenerate = is_degenerate(instant.saliency)
        if not degenerate:
            top, bottom, left, right = self.region
            blend_heat(picture[top:bottom, left:right], instant.saliency, scale, scratch=self._heat)
        self._frame_region(picture)
        if self.view is not None:
            draw_path(picture, self.view, instant.predicted, instant.measured, self.unit)
        margin = round(10 * self.unit)
        self.panel.draw(picture, margin, margin, instant.predicted, instant.measured, instant.speed_mps)
        if instant.curve is not None:
            left = self.width - margin - self.inset.width
            self.inset.draw(picture, left, margin, instant.curve, axis_top_deg)
        if degenerate:
            self._warn(picture, "no evidence: the map is the same everywhere")
        self._strip.lay(picture, 0, self.height - len(self._strip.colour))
        at = (self.width - margin, self._strip_baseline(picture))
        self._small.draw(picture, instant.caption, at, MUTED, anchor="right")
        return picture

    def _enlarged(self, image: Image) -> UInt8[np.ndarray, "h w 3"]:
        if self.factor == 1:
            return image.copy()
        return cv2.resize(image, (self.width, self.height), interpolation=cv2.INTER_CUBIC)

    def _frame_region(self, picture: Image) -> None:
        """A hairline around what the model sees, where that is not all."""
        top, bottom, left, right = self.region
        edges = [picture[top, left:right]] if top else []
        edges += [picture[bottom - 1, left:right]] if bottom < self.height else []
        edges += [picture[top:bottom, left]] if left else []
        edges += [picture[top:bottom, right - 1]] if right < self.width else []
        for edge in edges:
            edge[:] = edge // 4 * 3 + 63

    def _warn(self, picture: Image, text: str) -> None:
        letters = lettering(round(14 * self.unit))
        top, bottom, left, right = self.region
        x, y = (left + right) // 2, (top + bottom) // 2
        half, pad = letters.width(text) // 2 + round(12 * self.unit), round(9 * self.unit)
        box = (x - half, y - letters.size_px - pad, x + half, y + round(0.35 * letters.size_px) + pad)
        shade(picture, box, PANEL, 0.8, round(6 * self.unit))
        letters.draw(picture, text, (x, y), WARNING, anchor="middle")

    def _draw_strip(self, picture: Image, provenance: str) -> None:
        shade(picture, (0, 0, picture.shape[1], picture.shape[0]), PANEL, PANEL_OPACITY, 0)
        at = (round(10 * self.unit), self._strip_baseline(picture))
        self._small.draw(picture, provenance, at, MUTED)

    def _strip_baseline(self, picture: Image) -> int:
        return picture.shape[0] - round(5 * self.unit)
