"""The picture of one instant: the frame with its evidence, instruments, curve and provenance.

Drawing is pure: a new picture from the frame, the numbers and an explicit `HeatScale`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from data_prep.geometry import Geometry
from data_prep.schema import Image
from driving_xai.replay.config import Layout as Name
from driving_xai.replay.film import part_of, scaled
from driving_xai.replay.inset import EVIDENCE, CurveView, Inset
from driving_xai.replay.layout import Box, Column, Layout, Panel, Row, extent, place
from driving_xai.replay.tasks.instruments import (
    DRIVER,
    Camera,
    Steering,
    SteeringPanel,
    View,
    draw_path,
)
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
from driving_xai.viz.lettering import (
    MUTED,
    PANEL,
    PANEL_OPACITY,
    Colour,
    Layer,
    divided,
    fitted,
    lettering,
    shade,
    wrapped,
)

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
    layout: Name = "overlay"
    scored: bool = True
    """Whether instants have curves."""


_PHONE_PX = 720
"""Width of the layouts for phones, where a source's frames are as small or smaller."""
_MARGIN = 10
_VERDICT_WIDTH = 180
"""Of the words that stand for the curve, next to a wheel that is 226 wide."""
_NOTES = 0.1
"""Height of the two lines below everything in layouts for phones, over the width."""


def layout_of(name: Name, frame: float, *, scored: bool) -> Layout:
    """The panels of a layout for phones.

    Args:
        name: of the layout.
        frame: its height over its width.
        scored: whether there is a curve.
    """
    instruments = Panel("instruments", SteeringPanel.HEIGHT / SteeringPanel.WIDTH)
    below: tuple[Layout, ...] = (instruments,)
    if scored and name == "portrait":
        below = (instruments, Panel("curve", (Inset.HEIGHT + Inset.VERDICT) / Inset.WIDTH))
    elif scored:  # A curve as small as that could not be read on a phone.
        below = (Row((instruments, Panel("verdict", SteeringPanel.HEIGHT / _VERDICT_WIDTH))),)
    return Column((Panel("frame", frame), *below, Panel("notes", _NOTES)))


class Overlay:
    """Draws instants of one source; parts that never change are drawn once.

    It owns scratch memory, so one overlay serves one thread.
    """

    def __init__(
        self,
        *,
        height: int,
        width: int,
        geometry: Geometry,
        cropped: bool,
        config: OverlayConfig,
        room: tuple[int, int] | None = None,
    ) -> None:
        """Fits the drawing to a source.

        Args:
            height: of the source's frames.
            width: of the source's frames.
            geometry: the model's; it says where in the frame a map belongs.
            cropped: whether the frames are the model's input already, as shards hold them.
            config: what is drawn.
            room: height and width that the picture will have; it is drawn at least as large, so that letters stay
                sharp.
        """
        self._boxes = _placed(height, width, config, room)
        self.height, self.width = extent(self._boxes)
        self._frame = self._boxes["frame"]
        high, wide = self._frame.height, self._frame.width
        self.unit = min(high / LEAST_HEIGHT, wide / LEAST_WIDTH)
        whole = (0, high, 0, wide)
        self.region = whole if cropped else geometry.region(high, wide)
        self.view = None
        if config.camera is not None:
            self.view = View.of(config.camera, high, wide, geometry if cropped else None)
        self.panel = SteeringPanel(
            self._boxes["instruments"].width / SteeringPanel.WIDTH,
            labelled=config.labelled,
            speed_known=config.speed_known,
            legend=legend(config.signed, config.look),
        )
        curve = self._boxes.get("curve", self._boxes["instruments"])
        self.inset = Inset(
            curve.width / Inset.WIDTH, title=config.curve_title, last_fraction=config.last_fraction
        )
        self._notes = Notes(self._boxes["notes"], config.provenance, self.unit, lines=_lines(config.layout))
        self._look = config.look
        top, bottom, left, right = self.region
        self._heat = Layer.empty(bottom - top, right - left)
        # What the frame does not cover.
        self._ground = np.full((self.height, self.width, 3), PANEL, dtype=np.uint8)

    def draw(self, instant: Instant, scale: HeatScale, axis_top_deg: float) -> Image:
        """The picture of an instant, as a new array of `height` x `width`."""
        picture = self._ground.copy()
        frame = part_of(picture, self._frame)
        frame[:] = scaled(instant.image, *frame.shape[:2])
        degenerate = is_degenerate(instant.saliency)
        if not degenerate:
            top, bottom, left, right = self.region
            part = frame[top:bottom, left:right]
            blend_heat(part, instant.saliency, scale, look=self._look, scratch=self._heat)
        self._frame_region(frame)
        if self.view is not None:
            draw_path(
                frame,
                self.view,
                instant.predicted,
                instant.measured,
                self.unit,
                speed_mps=instant.speed_mps,
            )
        box = self._boxes["instruments"]
        self.panel.draw(picture, box.left, box.top, instant.predicted, instant.measured, instant.speed_mps)
        if instant.curve is not None and "verdict" in self._boxes:
            self._draw_verdict(part_of(picture, self._boxes["verdict"]), instant.curve)
        elif instant.curve is not None:
            box = self._boxes["curve"]
            self.inset.draw(picture, box.left, box.top, instant.curve, axis_top_deg)
        if degenerate:
            self._warn(frame, "no evidence: the map is the same everywhere")
        self._notes.draw(picture, instant.caption)
        return picture

    def _frame_region(self, picture: Image) -> None:
        """A hairline around what the model sees, where that is not all."""
        top, bottom, left, right = self.region
        edges = [picture[top, left:right]] if top else []
        edges += [picture[bottom - 1, left:right]] if bottom < len(picture) else []
        edges += [picture[top:bottom, left]] if left else []
        edges += [picture[top:bottom, right - 1]] if right < picture.shape[1] else []
        for edge in edges:
            edge[:] = edge // 4 * 3 + 63

    def _draw_verdict(self, part: Image, curve: CurveView) -> None:
        """The curve in words: the areas, and what the drive has shown so far."""
        unit = part.shape[1] / _VERDICT_WIDTH
        letters, room = lettering(round(12 * unit)), part.shape[1] - round(8 * unit)
        area, random = (self.inset.number(value) for value in (curve.mean_area, curve.random_area))
        said = [(f"mean area {area}, random {random}", EVIDENCE)]
        if curve.verdict is not None:
            said.append((curve.verdict.short, DRIVER))
        lines = [(line, colour) for text, colour in said for line in wrapped(text, letters, room)]
        apart = round(16.5 * unit)
        baseline = (part.shape[0] - apart * (len(lines) - 1)) // 2 + round(4.5 * unit)
        for number, (line, colour) in enumerate(lines):
            letters.draw(part, line, (0, baseline + number * apart), colour)

    def _warn(self, picture: Image, text: str) -> None:
        letters = lettering(round(14 * self.unit))
        top, bottom, left, right = self.region
        x, y = (left + right) // 2, (top + bottom) // 2
        half, pad = letters.width(text) // 2 + round(12 * self.unit), round(9 * self.unit)
        box = (x - half, y - letters.size_px - pad, x + half, y + round(0.35 * letters.size_px) + pad)
        shade(picture, box, PANEL, 0.8, round(6 * self.unit))
        letters.draw(picture, text, (x, y), WARNING, anchor="middle")


class Notes:
    """What made the picture and which instant it is: one line over the frame, or two below everything."""

    def __init__(self, box: Box, provenance: str, unit: float, *, lines: int) -> None:
        self._box, self._unit = box, unit
        self._size = round(11 * unit) if lines == 1 else round(0.3 * box.height)
        self._least, self._lines = (self._size, 1) if lines == 1 else (round(0.2 * box.height), 2)
        self._margin = round(10 * unit)
        self._provenance = provenance
        self._static = Layer.record(box.height, box.width, self._ground)

    def draw(self, picture: Image, caption: str) -> None:
        """Draws both, the caption anew."""
        self._static.lay(picture, self._box.left, self._box.top)
        part = part_of(picture, self._box)
        if self._lines == 2:
            self._draw_line(part, self._provenance, 1)
            self._draw_line(part, caption, 0)
            return
        made, which = divided(self._provenance, caption, self._size, self._box.width - 2 * self._margin)
        made[0].draw(part, made[1], (self._margin, self._baseline(0)), MUTED)
        right = self._box.width - self._margin
        which[0].draw(part, which[1], (right, self._baseline(0)), MUTED, anchor="right")

    def _ground(self, part: Image) -> None:
        shade(part, (0, 0, part.shape[1], part.shape[0]), PANEL, PANEL_OPACITY, 0)

    def _draw_line(self, part: Image, text: str, line: int) -> None:
        letters, shown = fitted(text, self._size, self._box.width - 2 * self._margin, least_px=self._least)
        letters.draw(part, shown, (self._margin, self._baseline(line)), MUTED)

    def _baseline(self, line: int) -> int:
        if self._lines == 1:
            return self._box.height - round(5 * self._unit)
        return round((0.4 + 0.45 * line) * self._box.height)


def _lines(layout: Name) -> int:
    return 1 if layout == "overlay" else 2


def _placed(
    height: int, width: int, config: OverlayConfig, room: tuple[int, int] | None
) -> Mapping[str, Box]:
    """The boxes of a source's frame and of everything around it or on it."""
    if config.layout != "overlay":
        layout = layout_of(config.layout, height / width, scored=config.scored)
        across = _PHONE_PX if room is None else max(_PHONE_PX, min(room[1], room[0] / layout.proportion))
        return place(layout, round(across))
    factor = enlargement(height, width)
    if room is not None:
        factor = max(factor, min(math.ceil(room[0] / height), math.ceil(room[1] / width)))
    high, wide = height * factor, width * factor
    unit = min(high / LEAST_HEIGHT, wide / LEAST_WIDTH)
    margin, strip = round(_MARGIN * unit), round(18 * unit)
    panel = round(SteeringPanel.WIDTH * unit), round(SteeringPanel.HEIGHT * unit)
    inset = round(Inset.WIDTH * unit), round((Inset.HEIGHT + Inset.VERDICT) * unit)
    return {
        "frame": Box(0, 0, wide, high),
        "instruments": Box(margin, margin, *panel),
        "curve": Box(wide - margin - inset[0], margin, *inset),
        "notes": Box(0, high - strip, wide, strip),
    }
