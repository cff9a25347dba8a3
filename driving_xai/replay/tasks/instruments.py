"""The steering wheel and the projected path: what the model and the driver do, drawn in place.

Angles are of the steering wheel in degrees, curvatures in 1/m; both are positive to the left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from data_prep.geometry import Geometry
from data_prep.schema import Image
from driving_xai.replay.inset import SUBPIXEL_BITS, line
from driving_xai.viz.lettering import MUTED, PANEL, PANEL_OPACITY, Colour, Layer, lettering, shade

MODEL: Colour = (77, 208, 255)
DRIVER: Colour = (255, 255, 255)


class Steering(NamedTuple):
    """One opinion on the steering."""

    angle_deg: float
    """Of the wheel; NaN where unknown."""
    per_m: float
    """Inverse turning radius; NaN where unknown."""


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A pinhole camera looking straight ahead: enough to show where a curvature leads.

    The path is an illustration, not a measurement: sources do not tell their calibration.
    """

    horizon: float = 0.45
    """Row of the horizon, as a fraction of the picture's height from the top."""
    focal: float = 0.9
    """Focal length over the picture's width."""
    height_m: float = 1.4
    """Of the camera above the road."""


_UDACITY = Camera(horizon=0.39, focal=0.95)

CAMERAS: Mapping[str, Camera] = {
    # Exactly: data_prep.synthetic.view.Camera.
    "synthetic": Camera(horizon=0.42, focal=0.866, height_m=1.35),
    # By eye: straight road runs into this row, and lanes are 3.5 m wide.
    "udacity-csv": _UDACITY,
    "udacity-bag": _UDACITY,
    "udacity-sim": Camera(horizon=0.42, focal=0.75, height_m=1.6),
    # comma.ai's public calibration of the camera: 910 px for a width of 1164.
    "comma2k19": Camera(horizon=0.5, focal=0.782, height_m=1.22),
}
"""By reader; of other sources the camera is unknown, and no path is drawn unless a horizon is given."""

PATH_S = 2.0
"""How far ahead paths lead, in seconds at the measured speed."""
_USUAL_MPS, _FARTHEST_M = 12.5, 45.0
"""The speed where none was measured; beyond that distance the road is a few pixels high."""


def path_length_m(speed_mps: float) -> float:
    """How far a path leads: two seconds at the measured speed.

    Args:
        speed_mps: NaN where unknown.

    Example:
        >>> path_length_m(10.0), path_length_m(40.0), path_length_m(math.nan)
        (20.0, 45.0, 25.0)
    """
    speed = abs(speed_mps) if math.isfinite(speed_mps) else _USUAL_MPS
    return min(_FARTHEST_M, PATH_S * speed)


class View(NamedTuple):
    """A camera in the pixels of a picture, which may be cut out of a larger one."""

    horizon_px: float
    centre_px: float
    focal_x_px: float
    focal_y_px: float
    height_m: float

    @classmethod
    def of(cls, camera: Camera, height: int, width: int, cut: Geometry | None) -> View:
        """The camera in a picture of this height and width; `cut` is the crop that made it, if any."""
        whole_h, whole_w, squeeze = float(height), float(width), 1.0
        if cut is None:
            cut = Geometry()
        else:
            whole_h = height / (1 - cut.crop_top - cut.crop_bottom)
            whole_w = width / (1 - cut.crop_left - cut.crop_right)
            # A model's input may be squeezed; what it was cut from is taken for a 4:3 camera.
            squeeze = (whole_w / whole_h) / (4 / 3)
        return cls(
            horizon_px=(camera.horizon - cut.crop_top) * whole_h,
            centre_px=(0.5 - cut.crop_left) * whole_w,
            focal_x_px=camera.focal * whole_w,
            focal_y_px=camera.focal * whole_w / squeeze,
            height_m=camera.height_m,
        )

    def depth_m(self, row_px: Float64[np.ndarray, " R"]) -> Float64[np.ndarray, " R"]:
        """How far away the road is that is seen in some rows below the horizon."""
        return self.focal_y_px * self.height_m / np.maximum(row_px - self.horizon_px, 1e-3)

    def ribbon(
        self,
        per_m: float,
        bottom_px: int,
        *,
        offset_m: float,
        width_m: float,
        least_px: float,
        length_m: float = _FARTHEST_M,
    ) -> Float64[np.ndarray, "N 2"]:
        """The outline (x, y) of a ribbon on the road along a circle of curvature `per_m`.

        Args:
            bottom_px: the row where it starts, the picture's lower edge.
            offset_m: of its middle to the left of the circle that the camera drives.
            width_m: on the road.
            least_px: how narrow it may get in the distance.
            length_m: how far it leads, from the camera on.
        """
        nearest = self.focal_y_px * self.height_m / max(bottom_px - self.horizon_px, 1.0)
        # The circle is left before it turns back.
        farthest = max(min(length_m, 0.7 / abs(per_m) if per_m else math.inf), 1.5 * nearest)
        depth = np.geomspace(nearest, farthest, 32)
        curved = per_m * depth**2
        aside = curved / (1 + np.sqrt(np.maximum(1 - per_m * curved, 0))) + offset_m
        per_metre = self.focal_x_px / depth
        middle, half = self.centre_px - per_metre * aside, np.maximum(width_m * per_metre, least_px) / 2
        row = self.horizon_px + self.focal_y_px * self.height_m / depth
        left, right = np.stack([middle - half, row], 1), np.stack([middle + half, row], 1)
        return np.concatenate([left, right[::-1]])


def draw_path(
    picture: Image,
    view: View,
    predicted: Steering,
    measured: Steering,
    unit: float,
    *,
    speed_mps: float = math.nan,
) -> None:
    """The predicted path as a lane of a car's width, the driven one as a line in its middle.

    Both fade with the distance and end where the car is in two seconds. A car that stands has none.
    """
    height, least, length = picture.shape[0], 1.2 * unit, path_length_m(speed_mps)
    near = float(view.depth_m(np.array([float(height)]))[0])
    if length <= near:
        return
    away = (view.depth_m(np.arange(height, dtype=float)) - near) / (length - near)
    fading = np.clip(1.15 * (1 - away), 0, 1)
    if math.isfinite(predicted.per_m):
        for offset, width, opacity in ((0.0, 1.8, 0.16), (0.9, 0.03, 0.9), (-0.9, 0.03, 0.9)):
            shape = view.ribbon(
                predicted.per_m, height, offset_m=offset, width_m=width, least_px=least, length_m=length
            )
            _fill(picture, shape, MODEL, opacity * fading)
    if math.isfinite(measured.per_m):
        middle = view.ribbon(
            measured.per_m, height, offset_m=0.0, width_m=0.04, least_px=1.3 * least, length_m=length
        )
        _fill(picture, middle, DRIVER, 0.95 * fading)


def _fill(
    picture: Image,
    outline: Float64[np.ndarray, "N 2"],
    colour: Colour,
    opacity: Float64[np.ndarray, " rows"],
) -> None:
    """Fills a shape, anti-aliased, each row with its opacity; what lies outside the picture is cut off."""
    height, width = picture.shape[:2]
    low = np.clip(np.floor(outline.min(0)) - 1, 0, [width, height]).astype(int)
    high = np.clip(np.ceil(outline.max(0)) + 1, 0, [width, height]).astype(int)
    part = picture[low[1] : high[1], low[0] : high[0]]
    if not part.size:
        return
    covered = np.zeros(part.shape[:2], dtype=np.uint8)
    fixed = np.rint((outline - low) * (1 << SUBPIXEL_BITS)).astype(np.int32)
    cv2.fillPoly(covered, [fixed], 255, cv2.LINE_AA, SUBPIXEL_BITS)
    rows = np.rint(255 * opacity[low[1] : high[1]]).astype(np.uint8)
    shares = np.ascontiguousarray(np.broadcast_to(rows[:, None], covered.shape))
    weight = cv2.cvtColor(cv2.multiply(covered, shares, scale=1 / 255), cv2.COLOR_GRAY2RGB)
    paint = cv2.multiply(weight, np.full_like(part, colour), scale=1 / 255)
    cv2.multiply(part, cv2.bitwise_not(weight), dst=part, scale=1 / 255)
    cv2.add(part, paint, dst=part)


class SteeringPanel:
    """The wheel with both angles, the numbers beside it, and the legend of all colours."""

    HEIGHT, WIDTH = 108, 226
    _ROW, _FEW, _FEW_ROW = 18.5, 3, 26.0
    """Between two lines of text; of few lines, which are larger then, so that the panel is not half empty."""

    def __init__(
        self, unit: float, *, labelled: bool, speed_known: bool, legend: UInt8[np.ndarray, "256 3"]
    ) -> None:
        """Fits the panel to a source.

        Args:
            unit: scale of the drawing; 1 for a picture 480 pixels high.
            labelled: whether the source says how the car was steered.
            speed_known: whether the source knows the speed.
            legend: the heat map's colours, from no evidence to the most.
        """
        self.unit, self.labelled, self.speed_known = unit, labelled, speed_known
        self.height, self.width = round(self.HEIGHT * unit), round(self.WIDTH * unit)
        names = [("model", MODEL)]
        names += [("driver", DRIVER), ("error", MUTED)] if labelled else []
        names += [("speed", MUTED)] if speed_known else []
        self._rows = [*names, ("evidence", MUTED)]
        few = len(self._rows) <= self._FEW
        self._row = self._FEW_ROW if few else self._ROW
        self._names, self._figures = (
            lettering(round(size * unit)) for size in ((13, 18) if few else (12, 14))
        )
        self._static = Layer.record(self.height, self.width, lambda part: self._draw_static(part, legend))

    def draw(
        self, picture: Image, left: int, top: int, predicted: Steering, measured: Steering, speed_mps: float
    ) -> None:
        """Draws the panel with its corner at (left, top)."""
        self._static.lay(picture, left, top)
        part = picture[top : top + self.height, left : left + self.width]
        if math.isfinite(predicted.angle_deg):
            self._wheel(part, predicted.angle_deg)
        if math.isfinite(measured.angle_deg):
            self._mark(part, measured.angle_deg)
        figures = [_turn(predicted.angle_deg)]
        if self.labelled:
            error = abs(predicted.angle_deg - measured.angle_deg)
            figures += [_turn(measured.angle_deg), (_figure(error, "°"), "")]
        if self.speed_known:
            figures.append((_figure(speed_mps, ""), "m/s"))
        for row, (figure, unit) in enumerate(figures):
            colour, baseline = self._rows[row][1], self._baseline(row)
            edge = self.width - round(46 * self.unit)
            self._figures.draw(part, figure, (edge, baseline), colour, anchor="right")
            self._names.draw(part, unit, (edge + round(6 * self.unit), baseline), colour)

    @property
    def _hub(self) -> tuple[float, float, float]:
        """Centre and radius of the wheel's ring."""
        return 51 * self.unit, self.HEIGHT / 2 * self.unit, 36 * self.unit

    def _baseline(self, row: int) -> int:
        first = (self.HEIGHT - self._row * (len(self._rows) - 1)) / 2 + 4.5
        return round((first + self._row * row) * self.unit)

    def _draw_static(self, picture: Image, legend: UInt8[np.ndarray, "256 3"]) -> None:
        u = self.unit
        shade(picture, (0, 0, self.width, self.height), PANEL, PANEL_OPACITY, round(6 * u))
        x, y, radius = self._hub
        line(picture, _arc(x, y, radius, 0, 360), (92, 98, 108), max(1, round(4 * u)), closed=True)
        line(picture, _stroke(x, y, radius + 4 * u, 0, 6 * u), MUTED, max(1, round(u)))
        left, right = round(104 * u), self.width - round(12 * u)
        for row, (name, colour) in enumerate(self._rows):
            self._names.draw(picture, name, (left, self._baseline(row)), colour)
        start, baseline = (
            left + self._names.width("evidence") + round(8 * u),
            self._baseline(len(self._rows) - 1),
        )
        bar = cv2.resize(legend[None], (right - start, round(7 * u)), interpolation=cv2.INTER_AREA)
        picture[baseline - len(bar) : baseline, start:right] = bar

    def _wheel(self, picture: Image, angle_deg: float) -> None:
        """The model's wheel: a part of the rim and three spokes, turned by the predicted angle."""
        x, y, radius = self._hub
        u, thick = self.unit, max(1, round(3 * self.unit))
        line(picture, _arc(x, y, radius, angle_deg - 24, angle_deg + 24), MODEL, max(1, round(4 * u)))
        for spoke in (90, -90, 180):
            line(picture, _stroke(x, y, 9 * u, angle_deg + spoke, radius - 11 * u), MODEL, thick)
        line(picture, _arc(x, y, 8 * u, 0, 360), MODEL, thick, closed=True)

    def _mark(self, picture: Image, angle_deg: float) -> None:
        """The driver's wheel: a mark across the rim."""
        x, y, radius = self._hub
        u = self.unit
        line(picture, _stroke(x, y, radius - 6 * u, angle_deg, 12 * u), DRIVER, max(1, round(3 * u)))


def _turn(angle_deg: float) -> tuple[str, str]:
    """An angle as a viewer reads it: how far and which way. The typeface has no minus sign."""
    side = "left" if angle_deg >= 0.05 else "right" if angle_deg <= -0.05 else ""
    return _figure(abs(angle_deg), "°"), side


def _figure(value: float, unit: str) -> str:
    return f"{value:.1f}{unit}" if math.isfinite(value) else "-"


def _arc(x: float, y: float, radius: float, start_deg: float, stop_deg: float) -> Float64[np.ndarray, "N 2"]:
    """Points of an arc around (x, y); 0 is at the top, angles rise to the left."""
    turn = np.radians(np.linspace(start_deg, stop_deg, 49))
    return np.stack([x - radius * np.sin(turn), y - radius * np.cos(turn)], 1)


def _stroke(x: float, y: float, radius: float, angle_deg: float, length: float) -> Float64[np.ndarray, "2 2"]:
    """The two ends of a line that leaves a circle outwards."""
    outwards = np.array([-math.sin(math.radians(angle_deg)), -math.cos(math.radians(angle_deg))])
    return np.array([x, y]) + np.outer([radius, radius + length], outwards)
