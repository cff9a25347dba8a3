"""The picture of a frame with its actions: a tile for each output with its bar, map and curve."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from data_prep.schema import Image
from driving_xai.data.input_rule import Region
from driving_xai.replay.config import Layout
from driving_xai.replay.inset import EVIDENCE, PROBABILITY, CurveView, Inset
from driving_xai.viz.heat import MOST_SIDE, USUAL_LOOK, HeatLook, HeatScale, Map, blend_heat, is_degenerate
from driving_xai.viz.lettering import MUTED, PANEL, Anchor, Colour, divided, fitted, lettering

LEAST_WIDTH = 1280
"""Of the picture: smaller frames are enlarged by a whole factor, so that the text can be read."""

MOST_OUTPUTS = 12
"""That are drawn; of more, as of ImageNet's classes, the most probable ones of each frame."""

_Part = UInt8[np.ndarray, "h w 3"]
"""Of a picture: drawn on in place."""

_TEXT: Colour = (236, 238, 242)
_DARK, _SEEN, _TRACK = 0.45, 0.72, (64, 69, 78)
_BAR_PX, _STRIP_PX = 30, 20
_STOPS, _PHONE_STOPS = (10, 170, 400, 412, 470), (10, 170, 310, 322, 400)
"""Where the parts of a line begin in a tile 640 pixels wide: name, bar, its end, probability, label."""
_PHONE_PX, _PHONE_LETTERS = 720, 1.5
"""Least width of layouts for phones, and how much larger their letters are."""


class Shown(NamedTuple):
    """What a tile shows of a predicted output."""

    saliency: Map
    scale: HeatScale
    curve: CurveView | None


class ActionInstant(NamedTuple):
    """What is known of one frame."""

    image: Image
    probability: Float64[np.ndarray, " K"]
    labels: Float64[np.ndarray, " K"]
    """0 or 1; NaN where unknown."""
    shown: Mapping[int, Shown]
    """Predicted outputs, by column."""
    columns: Sequence[int]
    """The outputs that have a tile or a bar, in order: `ActionViewConfig.places` of them."""
    selected: int | None
    """The column whose map is shown where there is one tile; None where nothing is predicted."""
    caption: str
    """Which frame it is: burned in at the lower right."""


@dataclass(frozen=True, kw_only=True)
class ActionViewConfig:
    """What is drawn, the same for all frames of a source."""

    names: tuple[str, ...]
    thresholds: Float64[np.ndarray, " K"]
    layout: Layout
    region: Region
    """Of a frame: what the model sees."""
    provenance: str
    last_fraction: float
    look: HeatLook = USUAL_LOOK

    @property
    def places(self) -> int:
        """Outputs that are drawn of each frame."""
        return min(len(self.names), MOST_OUTPUTS)


class ActionView:
    """Draws frames of one source. In a grid, outputs that are not predicted are dark and have no map."""

    def __init__(
        self, *, height: int, width: int, config: ActionViewConfig, room: tuple[int, int] | None = None
    ) -> None:
        """Fits the drawing to a source.

        Args:
            height: of the source's frames.
            width: of the source's frames.
            config: what is drawn.
            room: height and width that the picture will have; it is drawn at least as wide.
        """
        self.config = config
        phone = config.layout in ("portrait", "compact")
        self._tiled = config.layout in ("grid", "portrait")
        tiles = config.places if self._tiled else 1
        self.columns = 1 if phone else math.ceil(math.sqrt(tiles))
        rows = math.ceil(tiles / self.columns)
        least = max(_PHONE_PX if phone else LEAST_WIDTH, 0 if room is None else room[1])
        factor = max(1, min(math.ceil(least / (width * self.columns)), MOST_SIDE // max(height, width)))
        self._frame = (height * factor, width * factor)
        self._region = Region(*(edge * factor for edge in config.region))
        self._unit = self._frame[1] / 640
        self._letters = self._unit * (_PHONE_LETTERS if phone else 1)
        self._stops = _PHONE_STOPS if phone else _STOPS
        self._bar = round(_BAR_PX * self._letters)
        # Bars stand above the frame, not on it: traffic lights hang near its upper edge.
        self._head = self._bar * (1 if self._tiled else config.places)
        self._strip = round(_STRIP_PX * max(1.0, self._letters))
        self.height = rows * (self._head + self._frame[0]) + self._strip
        self.width = self.columns * self._frame[1]
        self._inset = Inset(
            0.9 * self._letters,
            title="Probability as evidence is removed",
            last_fraction=config.last_fraction,
            curve_unit=PROBABILITY,
            verdict="none",
        )

    def draw(self, instant: ActionInstant) -> Image:
        """The picture of a frame, as a new array of `height` x `width`."""
        picture = np.full((self.height, self.width, 3), PANEL, dtype=np.uint8)
        base = cv2.resize(instant.image, self._frame[::-1], interpolation=cv2.INTER_CUBIC)
        if self._tiled:
            for place, column in enumerate(instant.columns):
                self._draw_tile(self._place(picture, place), base, instant, column)
        else:
            self._draw_selected(self._place(picture, 0), base, instant)
        self._draw_strip(picture, instant.caption)
        return picture

    def _place(self, picture: Image, tile: int) -> _Part:
        """The part of the picture that is a tile's: its bars, then the frame."""
        height, width = self._head + self._frame[0], self._frame[1]
        row, column = divmod(tile, self.columns)
        return picture[row * height : (row + 1) * height, column * width : (column + 1) * width]

    def _draw_tile(self, tile: _Part, base: Image, instant: ActionInstant, column: int) -> None:
        shown = instant.shown.get(column)
        # Darker where the model looks elsewhere for something else: colour must stand out from the road.
        frame = tile[self._head :]
        frame[:] = cv2.convertScaleAbs(base, alpha=_DARK if shown is None else _SEEN)
        if shown is not None:
            self._draw_evidence(frame, shown)
        self._draw_bar(tile[: self._bar], instant, column)
        tile[:, -1] = tile[-1] = PANEL

    def _draw_selected(self, tile: _Part, base: Image, instant: ActionInstant) -> None:
        frame = tile[self._head :]
        frame[:] = base
        if instant.selected is not None:
            frame[:] = cv2.convertScaleAbs(base, alpha=_SEEN)
            self._draw_evidence(frame, instant.shown[instant.selected])
        for place, column in enumerate(instant.columns):
            self._draw_bar(tile[place * self._bar :][: self._bar], instant, column)

    def _draw_evidence(self, frame: _Part, shown: Shown) -> None:
        top, bottom, left, right = self._region
        if is_degenerate(shown.saliency):
            letters = lettering(round(14 * self._unit))
            at = ((left + right) // 2, (top + bottom) // 2)
            letters.draw(frame, "no evidence: the map is the same everywhere", at, EVIDENCE, anchor="middle")
        else:
            blend_heat(frame[top:bottom, left:right], shown.saliency, shown.scale, look=self.config.look)
        if shown.curve is not None:
            margin = round(8 * self._unit)
            at = (frame.shape[1] - self._inset.width - margin, frame.shape[0] - self._inset.height - margin)
            self._inset.draw(frame, *at, shown.curve, 1.0)

    def _draw_bar(self, header: _Part, instant: ActionInstant, column: int) -> None:
        """Name, probability with its threshold, and what the label says."""
        u, across, config = self._letters, self._unit, self.config
        letters, baseline = lettering(round(14 * u)), round(20 * u)
        name_x, left, right, chance_x, label_x = (round(stop * across) for stop in self._stops)
        predicted = column in instant.shown
        colour = EVIDENCE if predicted else MUTED
        marker = "> " if not self._tiled and column == instant.selected else ""
        own, name = fitted(
            marker + config.names[column],
            round(14 * u),
            left - name_x - round(8 * across),
            least_px=round(11 * u),
        )
        own.draw(header, name, (name_x, baseline), colour)
        bar = header[round(11 * u) : round(19 * u), left:right]
        bar[:] = _TRACK
        chance = float(instant.probability[column])
        bar[:, : round(chance * bar.shape[1])] = colour
        tick = round(float(config.thresholds[column]) * (bar.shape[1] - 1))
        header[round(8 * u) : round(22 * u), left + tick : left + tick + max(1, round(u))] = _TEXT
        letters.draw(header, f"{chance:.2f}", (chance_x, baseline), _TEXT if predicted else MUTED)
        label = instant.labels[column]
        said = "" if math.isnan(label) else "label: yes" if label else "label: no"
        wrong = not math.isnan(label) and bool(label) != predicted
        said += "  (missed)" if wrong and label else "  (false alarm)" if wrong else ""
        letters.draw(header, said, (label_x, baseline), _TEXT if label == 1 else MUTED)

    def _draw_strip(self, picture: Image, caption: str) -> None:
        size = round(11 * max(1.0, self._letters))
        baseline = self.height - round(0.3 * self._strip)
        rows = divided(self.config.provenance, caption, size, self.width - 20)
        ends: tuple[tuple[int, Anchor], ...] = ((10, "left"), (self.width - 10, "right"))
        for (letters, text), (x, anchor) in zip(rows, ends, strict=True):
            letters.draw(picture, text, (x, baseline), MUTED, anchor=anchor)
