"""The two charts of the experiments: curves with bands, and values with their intervals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from driving_xai.experiments.drawing import Area, Dot, Drawing, Label, Line, Point, Shape

# Okabe and Ito 2008: told apart without colour vision too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_GRID, _PAPER = "#dddddd", "#888888"
_ROW_PX = 22


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One curve of a chart."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    """Of a band around the curve."""
    theirs: bool = False
    """A paper's own numbers: grey and dashed."""
    marked: bool = False
    """With a dot at each value."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One value of a chart of intervals."""

    name: str
    mean: float
    low: float | None = None
    high: float | None = None
    theirs: float | None = None
    """The paper's number, drawn as a ring."""


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """Data to pixels along one direction."""

    low: float
    high: float
    start_px: float
    end_px: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start_px + (at - low) / (high - low or 1) * (self.end_px - self.start_px)


def curves(
    series: Sequence[Curve],
    *,
    title: str,
    x_title: str,
    y_title: str,
    x_ticks: Sequence[float] | None = None,
    x_log: bool = False,
    width: int = 640,
    height: int = 400,
) -> Drawing:
    """Curves over a common axis, each with its name beside its end.

    Args:
        x_ticks: where the horizontal axis is labelled; None chooses round numbers.
        x_log: logarithmic; every x must be over 0.
    """
    margin_right = 12 + 8 * max(len(curve.name) for curve in series)
    all_x = [x for curve in series for x in curve.x]
    all_y = [y for curve in series for part in (curve.y, curve.low, curve.high) for y in part or ()]
    y_marks = ticks(min(all_y), max(all_y))
    x_axis = _Axis(low=min(all_x), high=max(all_x), start_px=64, end_px=width - margin_right, log=x_log)
    y_axis = _Axis(low=y_marks[0], high=y_marks[-1], start_px=height - 52, end_px=36)
    shapes: list[Shape] = [Label(at=(64, 16), text=title)]
    for mark in y_marks:
        shapes.append(Line(points=((64, y_axis(mark)), (x_axis.end_px, y_axis(mark))), colour=_GRID))
        shapes.append(Label(at=(58, y_axis(mark)), text=f"{mark:g}", anchor="end"))
    shown = ticks(x_axis.low, x_axis.high) if x_ticks is None else x_ticks
    for mark in shown:
        if x_axis.low <= mark <= x_axis.high:
            shapes.append(Label(at=(x_axis(mark), height - 36), text=f"{mark:g}", anchor="middle"))
    shapes.append(Label(at=((64 + x_axis.end_px) / 2, height - 14), text=x_title, anchor="middle"))
    middle = (y_axis.start_px + y_axis.end_px) / 2
    shapes.append(Label(at=(16, middle), text=y_title, anchor="middle", upright=False))
    ends = _apart([y_axis(curve.y[-1]) for curve in series])
    for number, (curve, end) in enumerate(zip(series, ends, strict=True)):
        shapes += _curve(curve, COLOURS[number % len(COLOURS)], x_axis, y_axis, end)
    return Drawing(width=width, height=height, shapes=tuple(shapes))


def _curve(curve: Curve, colour: str, x_axis: _Axis, y_axis: _Axis, end: float) -> list[Shape]:
    colour = _PAPER if curve.theirs else colour
    points = [(x_axis(x), y_axis(y)) for x, y in zip(curve.x, curve.y, strict=True)]
    shapes: list[Shape] = []
    if curve.low is not None and curve.high is not None:
        upper = [(x_axis(x), y_axis(y)) for x, y in zip(curve.x, curve.high, strict=True)]
        lower = [(x_axis(x), y_axis(y)) for x, y in zip(curve.x, curve.low, strict=True)]
        shapes.append(Area(points=tuple(upper + lower[::-1]), colour=colour))
    shapes.append(Line(points=tuple(points), colour=colour, width=2, dash=5 if curve.theirs else 0))
    if curve.marked:
        shapes += [Dot(centre=point, colour=colour) for point in points]
    shapes.append(Label(at=(points[-1][0] + 8, end), text=curve.name, colour=colour))
    return shapes


def intervals(rows: Sequence[Row], *, title: str, x_title: str, width: int = 640) -> Drawing:
    """Values with their intervals, one below the other; rings are a paper's."""
    left = 16 + 7.5 * max(len(row.name) for row in rows)
    values = [v for row in rows for v in (row.mean, row.low, row.high, row.theirs) if v is not None]
    marks = ticks(min(values), max(values))
    height = 84 + _ROW_PX * len(rows)
    axis = _Axis(low=marks[0], high=marks[-1], start_px=left, end_px=width - 24)
    shapes: list[Shape] = [Label(at=(8, 16), text=title)]
    for mark in marks:
        shapes.append(Line(points=((axis(mark), 34), (axis(mark), height - 46)), colour=_GRID))
        shapes.append(Label(at=(axis(mark), height - 34), text=f"{mark:g}", anchor="middle"))
    shapes.append(Label(at=((left + width) / 2, height - 14), text=x_title, anchor="middle"))
    for number, row in enumerate(rows):
        y = 46 + _ROW_PX * number
        shapes.append(Label(at=(left - 8, y), text=row.name, anchor="end"))
        if row.low is not None and row.high is not None:
            ends: tuple[Point, Point] = ((axis(row.low), y), (axis(row.high), y))
            shapes.append(Line(points=ends, colour=COLOURS[0], width=2))
        if row.theirs is not None:
            shapes.append(Dot(centre=(axis(row.theirs), y), colour=COLOURS[1], radius=6, filled=False))
        shapes.append(Dot(centre=(axis(row.mean), y), colour=COLOURS[0], radius=4))
    return Drawing(width=width, height=height, shapes=tuple(shapes))


def ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round numbers in equal steps that reach from `low` or below to `high` or above.

    Example:
        >>> ticks(3.2, 9.1)
        [2.0, 4.0, 6.0, 8.0, 10.0]
    """
    span = (high - low) or abs(high) or 1.0
    magnitude = 10.0 ** math.floor(math.log10(span / most))
    steps = (factor * magnitude for factor in (1, 2, 5, 10, 20))
    step = next(s for s in steps if math.ceil(high / s) - math.floor(low / s) < most)
    first, last = math.floor(low / step), math.ceil(high / step)
    last = max(last, first + 1)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _apart(heights: Sequence[float], least: float = 15) -> list[float]:
    """Heights of labels, moved so that none covers another."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    placed = list(heights)
    for before, after in itertools.pairwise(order):
        placed[after] = max(placed[after], placed[before] + least)
    return placed
