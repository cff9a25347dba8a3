"""A film's pictures: those of several methods and models side by side, and the cards before and after them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from data_prep.schema import Image
from driving_xai.errors import OptionError
from driving_xai.replay.config import Layout
from driving_xai.replay.layout import Box, Column, Panel, Row, extent, place
from driving_xai.viz.lettering import MUTED, PANEL, Colour, fitted, lettering, wrapped

MOST_SIDES = 6
"""More would be too small to see anything in."""
_COLUMNS: Mapping[Layout, Sequence[int]] = {
    "portrait": (1, 1, 1, 2, 2, 2),
    "compact": (1, 1, 1, 2, 2, 2),
}
_WIDE = (1, 2, 3, 2, 3, 3)
"""How many stand in a row, by their number."""

_NAME_HEIGHT = 0.06
"""Of the strip with a side's name, over the side's width."""
_TEXT: Colour = (236, 238, 242)
_TITLE_S, _READ_S_PER_WORD, _LEAST_END_S = 2.5, 0.25, 4.0
LONGEST_CARD_S = 20.0


class Side(NamedTuple):
    """One of the pictures that stand side by side."""

    name: str
    height: int
    width: int


def columns_of(layout: Layout, sides: int) -> int:
    """How many sides stand in a row.

    Raises:
        OptionError: there are too many.

    Example:
        >>> columns_of("overlay", 3), columns_of("overlay", 4), columns_of("portrait", 3)
        (3, 2, 1)
    """
    if sides > MOST_SIDES:
        raise OptionError(f"got {sides} pictures to show side by side, expected {MOST_SIDES} at most")
    return _COLUMNS.get(layout, _WIDE)[sides - 1]


class Film:
    """Puts the pictures of an instant together. One alone, of the size that it has, is left as it is."""

    def __init__(self, sides: Sequence[Side], *, layout: Layout, size: tuple[int, int] | None = None) -> None:
        """Places everything once for all frames.

        Args:
            sides: in order, at least one.
            layout: decides how many stand in a row.
            size: width and height of the film; None takes what the sides need.

        Raises:
            OptionError: there are too many sides.
        """
        self.sides = sides
        self._boxes = self._placed(columns_of(layout, len(sides)))
        self._whole = extent(self._boxes)
        self.height, self.width = self._whole if size is None else (size[1], size[0])
        self._base = np.full((*self._whole, 3), PANEL, dtype=np.uint8)
        for number, side in enumerate(sides):
            if (box := self._boxes.get(f"name {number}")) is not None:
                _write_name(part_of(self._base, box), side.name)

    def _placed(self, columns: int) -> Mapping[str, Box]:
        """The boxes of pictures and names; the first row's pictures have their own size."""
        cells: list[Column] = []
        highest = max(side.height / side.width for side in self.sides)
        for number, side in enumerate(self.sides):
            # In rows all are equally wide too: the camera's frame, which has nothing below it, stands in its box's middle.
            picture = Panel(f"picture {number}", side.height / side.width if columns == 1 else highest)
            named = (Panel(f"name {number}", _NAME_HEIGHT),) if len(self.sides) > 1 else ()
            cells.append(Column((*named, picture)))
        if left_over := -len(cells) % columns:
            # Room that stays free, so that the last row is no larger than the others.
            free = [Panel(f"free {number}", cells[-1].proportion) for number in range(left_over)]
            cells += [Column((each,)) for each in free]
        rows = tuple(Row(tuple(cells[start : start + columns])) for start in range(0, len(cells), columns))
        share = rows[0].proportion / cells[0].proportion
        return place(Column(rows), round(self.sides[0].width / share))

    def compose(self, pictures: Sequence[Image]) -> UInt8[np.ndarray, "h w 3"]:
        """The film's picture; it may share memory with the only one that was given."""
        if len(pictures) == 1:
            return _fit(pictures[0], self.height, self.width)
        whole = self._base.copy()
        for number, picture in enumerate(pictures):
            box = self._boxes[f"picture {number}"]
            part_of(whole, box)[:] = _fit(picture, box.height, box.width)
        return _fit(whole, self.height, self.width)

    def card(self, heading: str, paragraphs: Sequence[str]) -> UInt8[np.ndarray, "h w 3"]:
        """A card of the film's size: a heading over text, in the largest letters that have room."""
        margin = max(4, round(0.06 * self.width))
        room = self.width - 2 * margin
        size = max(14, round(min(self.width / 18, self.height / 12)))
        while size > 8 and _text_height(paragraphs, size, room) > self.height - 2 * margin - 3 * size:
            size -= 1
        picture = np.full((self.height, self.width, 3), PANEL, dtype=np.uint8)
        letters, shown = fitted(heading, round(1.3 * size), room, least_px=size)
        height = 3 * size + _text_height(paragraphs, size, room)
        baseline = max(margin, (self.height - height) // 2) + round(1.3 * size)
        letters.draw(picture, shown, (margin, baseline), _TEXT)
        baseline += size
        for paragraph in paragraphs:
            for line in wrapped(paragraph, lettering(size), room):
                baseline += _line_px(size)
                lettering(size).draw(picture, line, (margin, baseline), MUTED)
            baseline += size // 2
        return picture


def card_s(paragraphs: Sequence[str], *, ends: bool) -> float:
    """How long a card stays: as long as one takes to read it."""
    words = sum(len(paragraph.split()) for paragraph in paragraphs)
    return min(LONGEST_CARD_S, max(_LEAST_END_S if ends else _TITLE_S, _READ_S_PER_WORD * words))


def scaled(picture: Image, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """A picture at another size; itself where it has that size."""
    if picture.shape[:2] == (height, width):
        return picture
    smaller = height * width < picture.shape[0] * picture.shape[1]
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)


def _fit(picture: Image, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """As large as has room, in the middle; itself where it fills the room."""
    factor = min(height / picture.shape[0], width / picture.shape[1])
    inner = [max(1, round(factor * side)) for side in picture.shape[:2]]
    # A pixel that rounding leaves over is no margin.
    high, wide = (
        full if full - side <= 1 else side for side, full in zip(inner, (height, width), strict=True)
    )
    fitting = scaled(picture, high, wide)
    if (high, wide) == (height, width):
        return fitting
    whole = np.full((height, width, 3), PANEL, dtype=np.uint8)
    top, left = (height - high) // 2, (width - wide) // 2
    whole[top : top + high, left : left + wide] = fitting
    return whole


def part_of(picture: Image, box: Box) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels in a box, to be drawn on in place."""
    return picture[box.top : box.top + box.height, box.left : box.left + box.width]


def _write_name(strip: Image, name: str) -> None:
    height, width = strip.shape[:2]
    margin = round(0.02 * width)
    letters, shown = fitted(
        name, round(0.62 * height), width - 2 * margin, least_px=max(8, round(0.4 * height))
    )
    letters.draw(strip, shown, (margin, round(0.72 * height)), _TEXT)


def _line_px(size: int) -> int:
    return math.ceil(1.35 * size)


def _text_height(paragraphs: Sequence[str], size: int, room: int) -> int:
    lines = sum(len(wrapped(paragraph, lettering(size), room)) for paragraph in paragraphs)
    return lines * _line_px(size) + len(paragraphs) * (size // 2)
