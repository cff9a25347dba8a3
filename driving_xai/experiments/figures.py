"""Figures of experiments: lines with bands, and values with their intervals, as SVG and PNG by matplotlib.

The same numbers give the same bytes: neither file holds a date, and the SVG's identifiers come from a fixed salt.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from data_prep.shards.atomic import replacing

# Okabe and Ito 2008: distinct without colour vision too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "driving-xai",
    "savefig.dpi": 160,
}
_PAPER_COLOUR = "#777777"


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a plot."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    """Of a band around the line."""
    of_paper: bool = False
    """A paper's own numbers: grey, dashed or dotted."""
    marked: bool = False
    """With a dot at each value."""


@dataclass(frozen=True, kw_only=True)
class Value:
    """A value with its interval."""

    name: str
    mean: float
    low: float | None = None
    high: float | None = None
    paper: float | None = None
    """The paper's number, drawn as a ring."""


def line_plot(
    series: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_ticks: Sequence[float] | None = None,
    x_log: bool = False,
    width_in: float = 7.0,
    height_in: float = 4.2,
) -> Figure:
    """Lines over a common axis, with a legend to their right in the order of their ends.

    Args:
        x_label: with its unit, as `y_label`.
        x_ticks: where the horizontal axis is labelled; None chooses round numbers.
        x_log: logarithmic; every x must be over 0.

    Example:
        >>> figure = line_plot([Line(name="a", x=[0, 1], y=[2, 3])], title="t", x_label="s", y_label="m")
        >>> figure.axes[0].get_xlabel()
        's'
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(width_in, height_in)
        papers = itertools.cycle(("--", (0, (1, 1))))
        for number, line in enumerate(series):
            colour = _PAPER_COLOUR if line.of_paper else COLOURS[number % len(COLOURS)]
            dashes = next(papers) if line.of_paper else ("-", "-.")[number // len(COLOURS) % 2]
            axes.plot(
                line.x,
                line.y,
                color=colour,
                linestyle=dashes,
                marker="o" if line.marked else None,
                markersize=4,
                label=line.name,
            )
            if line.low is not None and line.high is not None:
                axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
        axes.set(title=title, xlabel=x_label, ylabel=y_label)
        if x_log:
            axes.set_xscale("log")
        if x_ticks is not None:
            axes.xaxis.set_major_locator(FixedLocator(list(x_ticks)))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ends = sorted(
            zip(*axes.get_legend_handles_labels(), series, strict=True), key=lambda each: -each[2].y[-1]
        )
        axes.legend(
            [handle for handle, _, _ in ends],
            [name for _, name, _ in ends],
            loc="center left",
            bbox_to_anchor=(1, 0.5),
        )
    return figure


def interval_plot(values: Sequence[Value], *, title: str, x_label: str, width_in: float = 7.0) -> Figure:
    """Values with their intervals, one below the other; rings are a paper's."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(width_in, 1.1 + 0.27 * len(values))
        for place, value in enumerate(values):
            if value.low is not None and value.high is not None:
                axes.plot([value.low, value.high], [place, place], color=COLOURS[0], linewidth=2)
            if value.paper is not None:
                axes.plot(
                    value.paper,
                    place,
                    "o",
                    color=COLOURS[1],
                    markersize=9,
                    markerfacecolor="none",
                    label="paper",
                )
            axes.plot(value.mean, place, "o", color=COLOURS[0], markersize=5, label="ours")
        axes.set_yticks(range(len(values)), [value.name for value in values])
        axes.invert_yaxis()
        axes.margins(y=0.5 / max(len(values), 1))
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set(title=title, xlabel=x_label)
    return figure


def save(figure: Figure, stem: Path) -> None:
    """Writes `stem`.svg and `stem`.png, each whole or not at all."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    nameless: dict[str, dict[str, str | None]] = {
        "svg": {"Date": None, "Creator": None},
        "png": {"Software": None},
    }
    with mpl.rc_context(_STYLE):
        for kind, metadata in nameless.items():
            with replacing(stem.with_suffix(f".{kind}")) as temporary:
                figure.savefig(temporary, format=kind, metadata=metadata, bbox_inches="tight")


def _figure(width_in: float, height_in: float) -> tuple[Figure, Axes]:
    """Without pyplot, which would keep every figure and choose a window system."""
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()
