"""The ground: asphalt, its painted lines, gravel and grass, in light and shadow.

`Markings` is the one place that knows where the lines are: the painter and the mask of causes both ask it.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Literal, Protocol

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8

from data_prep.synthetic.light import Light
from data_prep.synthetic.noise import tile
from data_prep.synthetic.road import LANE_WIDTH_M
from data_prep.synthetic.view import Ground

CentreLine = Literal["double", "solid", "dashed"]

EDGE_LINE_M = LANE_WIDTH_M - 0.1
"""Where the middle of an edge line lies, to either side of the centre line."""
_EDGE_HALF_M, _CENTRE_HALF_M, _DOUBLE_M = 0.075, 0.06, 0.12
_DASH_PERIOD_M, _DASH_M = 9.0, 4.5
_MARGIN_M, _FEWEST_PIXELS = 0.06, 3.0
"""How far a cause reaches beyond its line, whose contrast is on its border, and its least width."""
_TEXEL_M = (0.06, 0.4, 3.0)


@dataclass(frozen=True, kw_only=True)
class Markings:
    """The lines of a two-lane road."""

    centre: CentreLine
    is_yellow: bool
    """The centre; edge lines are white."""
    shoulder_m: float
    """Asphalt outside the lanes, each side."""

    @property
    def asphalt_m(self) -> float:
        """From the centre line to the asphalt's edge."""
        return LANE_WIDTH_M + self.shoulder_m

    def centre_cover(self, ground: Ground, s_m: float) -> Float32[np.ndarray, "R W"]:
        """The share of each pixel that the centre line covers."""
        if self.centre == "double":
            return ground.stripes(_DOUBLE_M, _CENTRE_HALF_M)
        line = ground.stripe(0.0, _EDGE_HALF_M)
        return line * self._dashes(ground, s_m) if self.centre == "dashed" else line

    def edge_cover(self, ground: Ground) -> Float32[np.ndarray, "R W"]:
        """The share of each pixel that the edge lines cover."""
        return ground.stripes(EDGE_LINE_M, _EDGE_HALF_M)

    def own_lane(self, ground: Ground, s_m: float) -> Bool[np.ndarray, "R W"]:
        """The borders of the own lane: centre line, right edge line and right edge of the asphalt."""
        half_m = _DOUBLE_M + _CENTRE_HALF_M if self.centre == "double" else _EDGE_HALF_M
        centre = ground.within(0.0, half_m + _MARGIN_M, fewest_pixels=_FEWEST_PIXELS)
        if self.centre == "dashed":
            centre &= self._dashes(ground, s_m) >= 0.5
        line = ground.within(-EDGE_LINE_M, _EDGE_HALF_M + _MARGIN_M, fewest_pixels=_FEWEST_PIXELS)
        return centre | line | ground.within(-self.asphalt_m, 2 * _MARGIN_M, fewest_pixels=_FEWEST_PIXELS)

    @staticmethod
    def _dashes(ground: Ground, s_m: float) -> Float32[np.ndarray, "R W"]:
        return ground.dashes(float(np.mod(s_m, _DASH_PERIOD_M)), period_m=_DASH_PERIOD_M, dash_m=_DASH_M)


def random_markings(rng: np.random.Generator) -> Markings:
    """A double line as often as a dashed or a single one, yellow or white."""
    styles: tuple[CentreLine, ...] = ("double", "double", "dashed", "solid")
    return Markings(
        centre=styles[int(rng.integers(len(styles)))],
        is_yellow=bool(rng.uniform() < 0.7),
        shoulder_m=float(rng.uniform(0.3, 0.7)),
    )


class Lines(Protocol):
    """What a surface asks of a road's markings."""

    @property
    def asphalt_m(self) -> float:
        """From the centre line to the asphalt's edge."""
        ...

    def centre_cover(self, ground: Ground, s_m: float) -> Float32[np.ndarray, "R W"]:
        """The share of each pixel that the lines between lanes cover."""
        ...

    def edge_cover(self, ground: Ground) -> Float32[np.ndarray, "R W"]:
        """The share of each pixel that the edge lines cover."""
        ...


class Surface:
    """Materials and textures of a drive's ground; they are fixed to the land, so they pass by."""

    def __init__(self, rng: np.random.Generator, markings: Lines, *, is_yellow: bool) -> None:
        """`is_yellow` is the colour of the lines between lanes; edge lines are white."""
        self._markings = markings
        self._tiles = [tile(rng, size=256, roughness=roughness) for roughness in (0.35, 0.7, 0.9)]
        self._gravel_m = rng.uniform(0.5, 1.6)
        green, dry = rng.uniform(0.85, 1.15, 3), rng.uniform(0.9, 1.1, 3)
        yellow, white = (0.86, 0.60, 0.14), (0.86, 0.86, 0.83)
        self._albedo = np.array(
            [
                np.array([0.335, 0.335, 0.345]) * rng.uniform(0.82, 1.15),
                np.array([0.50, 0.45, 0.37]) * rng.uniform(0.85, 1.1),
                np.array([0.30, 0.36, 0.17]) * green,
                np.array([0.53, 0.47, 0.27]) * dry,
                white,
                yellow if is_yellow else white,
            ],
            dtype=np.float32,
        )
        self._dryness = rng.uniform(-0.6, 1.1)

    def marked(self, markings: Lines) -> Surface:
        """The same ground under other lines."""
        other = copy(self)
        other._markings = markings
        return other

    def shade(
        self, ground: Ground, s_m: float, *, light: Light, sunshine: float, shadow: UInt8[np.ndarray, "R W"]
    ) -> UInt8[np.ndarray, "R W 3"]:
        """Colours of the ground's pixels.

        Args:
            ground: what each pixel sees.
            s_m: where the car is.
            light: the drive's.
            sunshine: 0 to 1.
            shadow: 0 in the sun to 255 in full shadow.
        """
        textures = [self._texture(ground, s_m, level) for level in range(3)]
        weights = self._materials(ground, s_m, *textures)
        # Colours as planes: broadcasting over the last axis of an image is many times slower.
        in_shade = self._albedo * light.ambient * np.float32(255)
        by_sun = self._albedo * light.sun * np.float32(255 * sunshine)
        lit = np.concatenate([in_shade, by_sun], axis=1).T @ weights.reshape(len(weights), -1)
        ambient, sun = lit.reshape(2, 3, *ground.d_m.shape)
        veil = light.veil(ground.ahead_m)
        sunlit = 1.0 - shadow * np.float32(0.92 / 255)
        planes = (ambient + sun * sunlit) * (1.0 - veil) + veil * light.haze[:, None, None] * np.float32(255)
        return cv2.convertScaleAbs(cv2.merge(list(planes)))

    def _texture(self, ground: Ground, s_m: float, level: int) -> Float32[np.ndarray, "R W"]:
        """Noise of one texel size; it fades where a pixel covers more than some texels."""
        texel_m = _TEXEL_M[level]
        size = self._tiles[level].shape[0]
        along = ground.s_m * np.float32(1 / texel_m) + np.float32(np.mod(s_m / texel_m, size))
        across = ground.d_m * np.float32(1 / texel_m)
        noise = cv2.remap(self._tiles[level], along, across, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        rows_m = np.gradient(ground.ahead_m[:, 0]) if len(ground.ahead_m) > 1 else np.ones(1)
        fade = np.clip(1.25 - np.abs(rows_m) / (4 * texel_m), 0.0, 1.0).astype(np.float32)
        return noise * fade[:, None]

    def _materials(
        self,
        ground: Ground,
        s_m: float,
        fine: Float32[np.ndarray, "R W"],
        medium: Float32[np.ndarray, "R W"],
        coarse: Float32[np.ndarray, "R W"],
    ) -> Float32[np.ndarray, "6 R W"]:
        """How much of each material a pixel shows, times the material's texture there."""
        marks = self._markings
        asphalt = ground.stripe(0.0, marks.asphalt_m)
        outside = np.abs(ground.d_m) - np.float32(marks.asphalt_m)
        gravel = np.clip((self._gravel_m + 0.35 * medium + 0.25 * coarse - outside) / 0.5 + 0.5, 0.0, 1.0)
        dry = np.clip(0.5 * self._dryness + 0.55 * coarse + 0.3 * medium, 0.0, 1.0)
        wear = 0.9 + 0.07 * medium + 0.06 * fine
        edge = marks.edge_cover(ground) * wear
        centre = marks.centre_cover(ground, s_m) * wear
        bare = asphalt * (1 - edge - centre)
        verge = 1 - asphalt
        return np.stack(
            [
                bare * (1 + 0.10 * fine + 0.05 * medium + 0.04 * coarse),
                verge * gravel * (1 + 0.20 * fine + 0.10 * medium),
                verge * (1 - gravel) * (1 - dry) * (1 + 0.26 * fine + 0.18 * medium + 0.06 * coarse),
                verge * (1 - gravel) * dry * (1 + 0.22 * fine + 0.16 * medium + 0.06 * coarse),
                edge,
                centre,
            ]
        )
