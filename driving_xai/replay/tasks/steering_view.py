"""The picture of one instant: the frame with its evidence, instruments, curve and provenance.

Drawing is pure: a new picture from the frame, the numbers and an explicit `HeatScale`.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import UInt8

from data_prep.geometry import Geometry
from data_prep.schema import Image
from driving_xai.replay.inset import CurveView, Inset
from driving_xai.replay.tasks.instruments import Camera, Steering, SteeringPanel, View, draw_path
from driving_xai.viz.heat import (
    LEAST_HEIGHT,
    LEAST_WIDTH,
    USUAL_LOOK,
    HeatLook,
    HeatScale,
    Map,
    blend_heat,
    enlargement,
    is_degenerate,
    legend,
)
from driving_xai.viz.lettering import MUTED, PANEL, PANEL_OPACITY, Colour, Layer, lettering, shade

WARNING: Colour = (255, 112, 96)


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
    curve_title: str = "Steering change as evidence is removed"
    last_fraction: float = 0.25
    """Of pixels removed, where the curve ends."""
    look: HeatLook = USUAL_LOOK
    """How evidence is coloured."""


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
            self.unit,
            labelled=config.labelled,
            speed_known=config.speed_known,
            legend=legend(config.signed, config.look),
        )
        self.inset = Inset(self.unit, title=config.curve_title, last_fraction=config.last_fraction)
        self._small = lettering(round(11 * self.unit))
        self._strip = Layer.record(
            round(18 * self.unit), self.width, lambda part: self._draw_strip(part, config.provenance)
        )
        self._look = config.look
        top, bottom, left, right = self.region
        self._heat = Layer.empty(bottom - top, right - left)

    def draw(self, instant: Instant, scale: HeatScale, axis_top_deg: float) -> Image:
        """The picture of an instant, as a new array of `height` x `width`."""
        picture = self._enlarged(instant.image)
        degenerate = is_degenerate(instant.saliency)
        if not degenerate:
            top, bottom, left, right = self.region
            part = picture[top:bottom, left:right]
            blend_heat(part, instant.saliency, scale, look=self._look, scratch=self._heat)
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
