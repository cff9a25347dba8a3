"""Small pictures as SVG text: an interval on a common scale, a curve beside its controls.

Colours and fonts come from the page's style sheet through classes, so that light and dark need no
second picture. Text is escaped.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

_CHARACTER_PX = 6.6
"""Of a label beside a curve, at most."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Values to positions along one axis."""

    low: float
    high: float

    @classmethod
    def around(cls, values: Iterable[float | None], *, margin: float = 0.04) -> Scale:
        """A scale that holds all known values, with some room; 0 to 1 where there are none.

        Example:
            >>> Scale.around([0.0, 1.0, None], margin=0.5)
            Scale(low=-0.5, high=1.5)
        """
        known = [value for value in values if value is not None and math.isfinite(value)]
        if not known:
            return cls(low=0.0, high=1.0)
        room = (max(known) - min(known)) * margin or abs(known[0]) * margin or margin
        return cls(low=min(known) - room, high=max(known) + room)

    def __call__(self, value: float) -> float:
        """From 0 to 1."""
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int = 4) -> list[float]:
        """Round numbers within the scale: two at least, `most` and one at most.

        Example:
            >>> Scale(low=0.0, high=1.1).ticks()
            [0.0, 0.5, 1.0]
            >>> Scale(low=1.0, high=39.0).ticks(3)
            [10.0, 20.0, 30.0]
        """
        step = 10 ** math.floor(math.log10((self.high - self.low) / most))
        step = next(
            step * times for times in (1, 2, 5, 10) if (self.high - self.low) / (step * times) <= most
        )
        # One number alone tells no scale.
        while len(found := self._multiples(step)) < 2:
            step /= 2
        return found

    def _multiples(self, step: float) -> list[float]:
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [round(number * step, 12) + 0.0 for number in range(first, last + 1)]


def whisker(value: Mapping[str, Any], scale: Scale, marks: Mapping[str, float]) -> Markup:
    """A mean with its interval, and where the controls' means lie.

    Args:
        value: mean, low and high, each of which may be None.
        scale: common to the table.
        marks: means of controls, by the class name of their line.
    """
    lines = [
        f'<line class="mark {name}" x1="{_percent(scale(at))}" x2="{_percent(scale(at))}" y1="0" y2="22"/>'
        for name, at in marks.items()
    ]
    if value["low"] is not None:
        ends = f'x1="{_percent(scale(value["low"]))}" x2="{_percent(scale(value["high"]))}"'
        lines.append(f'<line class="interval" {ends} y1="11" y2="11"/>')
    if value["mean"] is not None:
        lines.append(f'<circle class="mean" cx="{_percent(scale(value["mean"]))}" cy="11" r="4.5"/>')
    return Markup(f'<svg class="whisker" height="22" aria-hidden="true">{"".join(lines)}</svg>')


def _percent(position: float) -> str:
    # Room for the mean's disc at both ends.
    return f"{2 + 96 * position:.2f}%"


def curves(
    fractions: Sequence[float],
    own: Sequence[float | None] | None,
    others: Mapping[str, Sequence[float | None]],
    scale: Scale,
    *,
    ends: tuple[str, str] | None = None,
) -> Markup:
    """A mean curve over the share of pixels edited, with the controls' behind it.

    Args:
        fractions: rising, of pixels.
        own: the method's; an unknown value leaves a gap.
        others: by class name of the line.
        scale: of the values, common to the pictures beside it.
        ends: what stands below both ends; None for percentages.
    """
    labels = {at: f"{at:g}".replace("-", "−") for at in scale.ticks(3)}
    left = max(34.0, 9 + _CHARACTER_PX * max(map(len, labels.values())))
    width, height, bottom, top = 240, 128, 18, 6
    across = Scale(low=fractions[0], high=fractions[-1])

    def x(fraction: float) -> float:
        return left + (width - left - 6) * across(fraction)

    def y(value: float) -> float:
        return height - bottom - (height - bottom - top) * scale(value)

    parts = [
        f'<line class="grid" x1="{left:.1f}" x2="{width - 6}" y1="{y(at):.1f}" y2="{y(at):.1f}"/>'
        f'<text x="{left - 5:.1f}" y="{y(at) + 3.5:.1f}" text-anchor="end">{label}</text>'
        for at, label in labels.items()
    ]
    first, last = ends or (f"{100 * fractions[0]:g} %", f"{100 * fractions[-1]:g} %")
    parts += [
        f'<text x="{x(at):.1f}" y="{height - 4}" text-anchor="{anchor}">{escape(said)}</text>'
        for at, anchor, said in ((fractions[0], "start", first), (fractions[-1], "end", last))
    ]
    for name, values in [*others.items(), *([("own", own)] if own else [])]:
        for line in _unbroken(zip(fractions, values, strict=True)):
            points = " ".join(f"{x(at):.1f},{y(each):.1f}" for at, each in line)
            parts.append(f'<polyline class="curve {name}" points="{points}"/>')
    return Markup(
        f'<svg class="curves" viewBox="0 0 {width} {height}" aria-hidden="true">{"".join(parts)}</svg>'
    )


def _unbroken(points: Iterable[tuple[float, float | None]]) -> Iterator[list[tuple[float, float]]]:
    """The stretches of points whose values are known."""
    for known, stretch in itertools.groupby(points, key=lambda point: point[1] is not None):
        if known:
            line = [(at, value) for at, value in stretch if value is not None]
            # A line of one point would not be seen.
            yield line if len(line) > 1 else line * 2
