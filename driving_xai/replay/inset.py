"""The deletion curve of the frame in sight, beside its running mean and the random control."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float64

from data_prep.schema import Image
from driving_xai.evaluation.verdicts import SoFar
from driving_xai.viz.lettering import MUTED, PANEL, PANEL_OPACITY, Colour, Layer, lettering, shade

SUBPIXEL_BITS = 4
"""OpenCV takes fractions of a pixel as integers with this many binary places."""

EVIDENCE: Colour = (255, 168, 46)
_DIMMED: Colour = (200, 138, 62)
_TEXT: Colour = (226, 230, 236)
_TOPS = (0.5, 1, 2, 4, 6, 10, 14, 20, 30, 40, 60, 100, 200, 400, 600, 1000, 2000, 5000)
"""Where the value axis may end, in degrees."""


class CurveUnit(NamedTuple):
    """How the numbers of a plot are written."""

    value: str
    area: str
    decimals: int
    """Of areas below ten."""


DEGREES = CurveUnit("°", " °·%", 1)
PROBABILITY = CurveUnit("", "", 2)


class CurveView(NamedTuple):
    """What the inset shows: curves over the fraction removed, and their areas, each in the plot's unit."""

    fractions: Float64[np.ndarray, " V"]
    current: Float64[np.ndarray, " V"]
    mean: Float64[np.ndarray, " V"]
    """Over the frames so far."""
    random_mean: Float64[np.ndarray, " V"]
    """Of random orderings of the same frames; NaN before the first."""
    area: float
    mean_area: float
    half_width: float
    """Of the mean area's 95 % interval; NaN while there are too few frames."""
    random_area: float
    frames: int
    """Frames scored so far."""
    verdict: SoFar | None = None
    """None where the drive allows none, as of images."""


def line(
    picture: Image, points: Float64[np.ndarray, "N 2"], colour: Colour, thickness: int, closed: bool = False
) -> None:
    """Draws an anti-aliased line through points (x, y) given in fractions of a pixel."""
    fixed = np.rint(points * (1 << SUBPIXEL_BITS)).astype(np.int32)
    cv2.polylines(picture, [fixed], closed, colour, thickness, cv2.LINE_AA, SUBPIXEL_BITS)


class AxisTop(NamedTuple):
    """The end of the value axis: follows a higher curve at once, sinks slowly. Explicit state."""

    peak_deg: float = 0.0
    top_deg: float = _TOPS[0]

    def after(self, peak_deg: float, sink: float) -> AxisTop:
        """The axis for a frame whose highest value is `peak_deg`.

        Args:
            sink: part of the way down to the frame's peak that is gone in one frame, 0 to 1.
        """
        if not math.isfinite(peak_deg):
            return self
        peak = max(peak_deg, self.peak_deg + sink * (peak_deg - self.peak_deg))
        fitting = next((top for top in _TOPS if top >= peak), _TOPS[-1])
        # Going down needs some room, so that a peak near a step does not make the axis flip.
        lower = fitting < self.top_deg and peak < 0.85 * fitting
        return AxisTop(peak, fitting if fitting > self.top_deg or lower else self.top_deg)


class Inset:
    """A small plot with axes; what does not change with the frame is drawn once for each axis."""

    HEIGHT, WIDTH = 136, 256
    VERDICT = 16
    """Height of the line with the verdict."""

    def __init__(
        self,
        unit: float,
        *,
        title: str,
        last_fraction: float,
        curve_unit: CurveUnit = DEGREES,
        verdict: Literal["below", "none"] = "below",
    ) -> None:
        """Fits the plot to a picture.

        Args:
            unit: scale of the drawing.
            title: names the value axis.
            last_fraction: ends the other one.
            curve_unit: how the numbers are written.
            verdict: whether there is a line for it below the numbers.
        """
        self.unit, self.title, self.last_fraction = unit, title, last_fraction
        self.curve_unit = curve_unit
        self._below = self.VERDICT if verdict == "below" else 0
        self.height, self.width = round((self.HEIGHT + self._below) * unit), round(self.WIDTH * unit)
        self._small, self._text = lettering(round(10.5 * unit)), lettering(round(12 * unit))
        self._static: dict[float, Layer] = {}

    def draw(self, picture: Image, left: int, top: int, view: CurveView, axis_top_deg: float) -> None:
        """Draws the plot with its corner at (left, top)."""
        if axis_top_deg not in self._static:
            self._static[axis_top_deg] = Layer.record(
                self.height, self.width, lambda part: self._draw_static(part, axis_top_deg)
            )
        self._static[axis_top_deg].lay(picture, left, top)
        part = picture[top : top + self.height, left : left + self.width]
        u = self.unit
        for values, colour, thickness in (
            (view.random_mean, MUTED, u),
            (view.mean, _DIMMED, u),
            (view.current, EVIDENCE, 2 * u),
        ):
            if np.isfinite(values).all():
                points = self._points(view.fractions, values, axis_top_deg)
                line(part, points, colour, max(1, round(thickness)))
        self._areas(part, view)

    def _areas(self, picture: Image, view: CurveView) -> None:
        known = math.isfinite(view.half_width)
        interval = f" ±{self.number(view.half_width, view.mean_area)}" if known else ""
        texts = (
            (f"area {self.number(view.area)}{self.curve_unit.area}", EVIDENCE, 10),
            (f"mean {self.number(view.mean_area)}{interval}", _DIMMED, 94),
            (f"random {self.number(view.random_area)}", MUTED, 187),
        )
        baseline = self.height - round((8 + self._below) * self.unit)
        room, gap = self.width - round(8 * self.unit), round(6 * self.unit)
        for text, colour, x in reversed(
            texts
        ):  # From the right: the mean has no more room than the last one leaves.
            left = min(round(x * self.unit), room - self._text.width(text))
            self._text.draw(picture, text, (left, baseline), colour)
            room = left - gap
        if self._below and view.verdict is not None:
            at = (round(10 * self.unit), self.height - round(8 * self.unit))
            self._text.draw(picture, view.verdict.short, at, _TEXT)

    @property
    def _box(self) -> tuple[float, float, float, float]:
        """The plotting area: left, top, right, bottom."""
        u = self.unit
        return 34 * u, 25 * u, self.width - 22 * u, self.height - (37 + self._below) * u

    def _points(
        self, fractions: Float64[np.ndarray, " V"], values: Float64[np.ndarray, " V"], top_deg: float
    ) -> Float64[np.ndarray, "V 2"]:
        left, top, right, bottom = self._box
        x = left + (right - left) * fractions / self.last_fraction
        return np.stack([x, bottom - (bottom - top) * np.clip(values / top_deg, 0, 1)], 1)

    def _draw_static(self, picture: Image, top_deg: float) -> None:
        u = self.unit
        shade(picture, (0, 0, self.width, self.height), PANEL, PANEL_OPACITY, round(6 * u))
        self._text.draw(picture, self.title, (round(10 * u), round(16 * u)), _TEXT)
        left, top, right, bottom = self._box
        for part in (0.0, 0.5, 1.0):
            y = bottom - part * (bottom - top)
            shadow = (98, 104, 114) if part == 0 else (58, 63, 71)
            line(picture, np.array([[left, y], [right, y]]), shadow, 1)
            label = f"{part * top_deg:g}{self.curve_unit.value}"
            self._small.draw(picture, label, (round(left - 5 * u), round(y + 4 * u)), MUTED, anchor="right")
        for fraction in np.linspace(0, self.last_fraction, 6):
            x = left + (right - left) * fraction / self.last_fraction
            line(picture, np.array([[x, bottom], [x, bottom + 3 * u]]), (98, 104, 114), 1)
            label = f"{100 * fraction:g}" + (" %" if fraction == self.last_fraction else "")
            self._small.draw(picture, label, (round(x), round(bottom + 14 * u)), MUTED, anchor="middle")

    def number(self, value: float, beside: float | None = None) -> str:
        """With decimals where it, or the value that it stands beside, is below ten."""
        if not math.isfinite(value):
            return "-"
        decimals = self.curve_unit.decimals
        few = abs(value if beside is None else beside) < 10 - 0.5 * 10**-decimals
        return f"{value:.{decimals if few else 0}f}"
