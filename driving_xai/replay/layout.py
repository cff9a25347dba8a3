"""Layouts as data: panels in rows and columns. A width decides all sizes, since every panel keeps its proportions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Panel(NamedTuple):
    """A part of a picture that is drawn by its name."""

    name: str
    proportion: float
    """Its height over its width."""


class Row(NamedTuple):
    """Parts from left to right, as wide as makes them equally high."""

    parts: tuple[Layout, ...]

    @property
    def proportion(self) -> float:
        return 1 / sum(1 / part.proportion for part in self.parts)


class Column(NamedTuple):
    """Parts from top to bottom, equally wide."""

    parts: tuple[Layout, ...]

    @property
    def proportion(self) -> float:
        return sum(part.proportion for part in self.parts)


Layout = Panel | Row | Column


class Box(NamedTuple):
    """Where a panel lies in a picture, in pixels."""

    left: int
    top: int
    width: int
    height: int


def place(layout: Layout, width: int) -> Mapping[str, Box]:
    """The boxes of all panels, edge to edge, in a picture of this width.

    Args:
        layout: whose panels have different names.
        width: in pixels.

    Example:
        >>> film = Column((Panel("road", 0.75), Row((Panel("wheel", 0.5), Panel("curve", 0.25)))))
        >>> for name, box in place(film, 600).items():
        ...     print(name, *box)
        road 0 0 600 450
        wheel 0 450 200 100
        curve 200 450 400 100
    """
    boxes: dict[str, Box] = {}
    _place(layout, 0.0, 0.0, float(width), boxes)
    return boxes


def extent(boxes: Mapping[str, Box]) -> tuple[int, int]:
    """Height and width of the picture that some boxes fill."""
    return (
        max(box.top + box.height for box in boxes.values()),
        max(box.left + box.width for box in boxes.values()),
    )


def _place(layout: Layout, left: float, top: float, width: float, boxes: dict[str, Box]) -> None:
    if isinstance(layout, Panel):
        # Edges are rounded and not sizes, so that neighbours touch.
        x, y = round(left), round(top)
        right, bottom = round(left + width), round(top + width * layout.proportion)
        boxes[layout.name] = Box(x, y, max(1, right - x), max(1, bottom - y))
        return
    for part in layout.parts:
        share = width if isinstance(layout, Column) else width * layout.proportion / part.proportion
        _place(part, left, top, share, boxes)
        if isinstance(layout, Column):
            top += share * part.proportion
        else:
            left += share
