"""Small vector drawings: the same shapes as an SVG document and as a PNG picture.

Lengths are in pixels of the drawing, from the upper left; the PNG has twice as many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

from data_prep.shards.atomic import replacing

Point = tuple[float, float]
Anchor = Literal["start", "middle", "end"]

_FONT_PX = 13
_PNG_SCALE = 2
_SMOOTHING = 2
"""The PNG is drawn so much larger again and scaled down: Pillow's lines have no soft edges."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """An open line through points."""

    points: tuple[Point, ...]
    colour: str = "#444444"
    width: float = 1.0
    dash: float = 0.0
    """Length of dashes and of the spaces between them; 0 draws a solid line."""


@dataclass(frozen=True, kw_only=True)
class Area:
    """A filled polygon."""

    points: tuple[Point, ...]
    colour: str
    opacity: float = 0.15


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A filled circle, or a ring."""

    centre: Point
    colour: str
    radius: float = 3.0
    filled: bool = True


@dataclass(frozen=True, kw_only=True)
class Label:
    """A line of text, its middle at the height of the point."""

    at: Point
    text: str
    anchor: Anchor = "start"
    colour: str = "#222222"
    upright: bool = True
    """False turns it a quarter to the left."""


Shape = Line | Area | Dot | Label


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Shapes on white, drawn in their order.

    Example:
        >>> line = Line(points=((0, 0), (9, 9)))
        >>> Drawing(width=10, height=10, shapes=(line,)).svg().count("polyline")
        1
    """

    width: int
    height: int
    shapes: tuple[Shape, ...]

    def save(self, stem: Path) -> None:
        """Writes `stem`.svg and `stem`.png, each whole or not at all."""
        stem.parent.mkdir(parents=True, exist_ok=True)
        with replacing(stem.with_suffix(".svg")) as temporary:
            temporary.write_text(self.svg(), encoding="utf-8")
        with replacing(stem.with_suffix(".png")) as temporary:
            self.png().save(temporary, format="PNG", optimize=True)

    def svg(self) -> str:
        """An SVG document that needs nothing outside itself."""
        body = "\n".join(_element(shape) for shape in self.shapes)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}" '
            f'viewBox="0 0 {self.width} {self.height}" font-family="sans-serif" font-size="{_FONT_PX}">\n'
            f'<rect width="100%" height="100%" fill="#ffffff"/>\n{body}\n</svg>\n'
        )

    def png(self) -> Image.Image:
        """The same as a picture, `_PNG_SCALE` pixels to one."""
        scale = _PNG_SCALE * _SMOOTHING
        picture = Image.new("RGB", (self.width * scale, self.height * scale), "#ffffff")
        for shape in self.shapes:
            _paint(picture, shape, scale)
        return picture.reduce(_SMOOTHING)


def _coordinates(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in points)


def _element(shape: Shape) -> str:
    if isinstance(shape, Line):
        dash = f' stroke-dasharray="{shape.dash:g}"' if shape.dash else ""
        return (
            f'<polyline points="{_coordinates(shape.points)}" fill="none" stroke="{shape.colour}" '
            f'stroke-width="{shape.width:g}"{dash}/>'
        )
    if isinstance(shape, Area):
        return (
            f'<polygon points="{_coordinates(shape.points)}" fill="{shape.colour}" '
            f'fill-opacity="{shape.opacity:g}"/>'
        )
    if isinstance(shape, Dot):
        fill = shape.colour if shape.filled else "#ffffff"
        x, y = shape.centre
        return (
            f'<circle cx="{x:.2f}" cy="{y:.2f}" r="{shape.radius:g}" fill="{fill}" '
            f'stroke="{shape.colour}" stroke-width="1.5"/>'
        )
    x, y = shape.at
    turn = "" if shape.upright else f' transform="rotate(-90 {x:.2f} {y:.2f})"'
    return (
        f'<text x="{x:.2f}" y="{y:.2f}" dy="0.35em" text-anchor="{shape.anchor}" '
        f'fill="{shape.colour}"{turn}>{escape(shape.text)}</text>'
    )


def _paint(picture: Image.Image, shape: Shape, scale: int) -> None:
    if isinstance(shape, Area):
        mask = Image.new("L", picture.size, 0)
        ImageDraw.Draw(mask).polygon(_scaled(shape.points, scale), fill=round(255 * shape.opacity))
        picture.paste(shape.colour, (0, 0, *picture.size), mask)
        return
    if isinstance(shape, Label):
        _write(picture, shape, scale)
        return
    draw = ImageDraw.Draw(picture)
    if isinstance(shape, Dot):
        (x, y), reach = _scaled((shape.centre,), scale)[0], shape.radius * scale
        fill = shape.colour if shape.filled else "#ffffff"
        box = (x - reach, y - reach, x + reach, y + reach)
        draw.ellipse(box, fill=fill, outline=shape.colour, width=round(1.5 * scale))
        return
    for part in _dashes(shape):
        draw.line(
            _scaled(part, scale), fill=shape.colour, width=max(1, round(shape.width * scale)), joint="curve"
        )


def _scaled(points: Sequence[Point], scale: int) -> list[Point]:
    return [(x * scale, y * scale) for x, y in points]


def _dashes(line: Line) -> list[tuple[Point, ...]]:
    """The pieces of a line that are drawn; Pillow knows no dashes."""
    if not line.dash:
        return [line.points]
    pieces, travelled = [], 0.0
    for (x0, y0), (x1, y1) in zip(line.points, line.points[1:], strict=False):
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        at = 0.0
        while at < length:
            phase = (travelled + at) % (2 * line.dash)
            until = min(length, at + (line.dash if phase < line.dash else 2 * line.dash) - phase)
            if phase < line.dash:
                ends = (at / length, until / length)
                pieces.append(tuple((x0 + (x1 - x0) * t, y0 + (y1 - y0) * t) for t in ends))
            at = until if until > at else length
        travelled += length
    return pieces


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _write(picture: Image.Image, label: Label, scale: int) -> None:
    font = _font(_FONT_PX * scale)
    (x, y), anchor = _scaled((label.at,), scale)[0], {"start": "l", "middle": "m", "end": "r"}[label.anchor]
    if label.upright:
        ImageDraw.Draw(picture).text((x, y), label.text, fill=label.colour, font=font, anchor=f"{anchor}m")
        return
    reach = round(font.getlength(label.text)) + 4 * scale
    mask = Image.new("L", (reach, 2 * _FONT_PX * scale), 0)
    ImageDraw.Draw(mask).text((reach / 2, _FONT_PX * scale), label.text, fill=255, font=font, anchor="mm")
    turned = mask.rotate(90, expand=True)
    shift = {"start": -turned.height, "middle": -turned.height / 2, "end": 0}[label.anchor]
    picture.paste(label.colour, (round(x - turned.width / 2), round(y + shift)), turned)
