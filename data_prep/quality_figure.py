"""The quality report as a figure: steering over time and its histogram, or the positives of each label."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.gridspec import SubplotSpec
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from data_prep.sample_frames import Sample
from data_prep.split import PARTS

MOST_PANELS = 12
"""Drives that are drawn; of the others only the number is given."""

COLOURS: Mapping[str, str] = {"train": "#0072b2", "val": "#e69f00", "test": "#009e73", "gap": "#969696"}
"""Of the parts of the split; distinct with every common colour blindness. Source: Okabe and Ito 2008."""
_INK = "#282828"
_STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib, so that every machine draws the same bytes
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#787878",
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.parse_math": False,
}
_WIDTH_IN, _PANEL_IN, _HEAD_IN, _FOOT_IN, _DPI = 10.0, 2.6, 1.7, 0.4, 100


def draw(
    kind: str, quality: Mapping[str, Any], index: pd.DataFrame, samples: Sequence[Sample] = ()
) -> Figure:
    """Draws a whole output.

    Args:
        kind: `sequences` or `images`.
        quality: a report for each drive or image set, as in the manifest.
        index: the index of the same output.
        samples: frames that are shown above the report.
    """
    names = list(quality)[:MOST_PANELS]
    head_in = _HEAD_IN if samples else 0.0
    height_in = _PANEL_IN * len(names) + _FOOT_IN + head_in
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH_IN, height_in), dpi=_DPI)
        grid = figure.add_gridspec(
            len(names),
            1,
            left=0.065,
            right=0.985,
            bottom=(_FOOT_IN + 0.55) / height_in,
            top=1 - (0.45 + head_in) / height_in,
            hspace=1.15 / (_PANEL_IN - 1.0),
        )
        if samples:
            _strip(figure, samples, height_in)
        for row, name in enumerate(names):
            place = grid[row, 0]
            if kind == "sequences":
                _drive(figure, place, name, quality[name], index[index["drive"] == name])
            else:
                _images(figure.add_subplot(place), name, quality[name], index)
        _legend(figure, set(index["split"]), others=len(quality) - len(names))
        FigureCanvasAgg(figure).draw()  # lays out ticks under this style
    return figure


def _strip(figure: Figure, samples: Sequence[Sample], height_in: float) -> None:
    """The samples side by side, each with its size as ticks and its label above."""
    top, bottom = 1 - 0.4 / height_in, 1 - (_HEAD_IN - 0.3) / height_in
    grid = figure.add_gridspec(1, len(samples), left=0.035, right=0.985, top=top, bottom=bottom, wspace=0.25)
    for column, sample in enumerate(samples):
        axes = figure.add_subplot(grid[0, column])
        height, width = sample.image.shape[:2]
        axes.imshow(sample.image, extent=(0, width, height, 0), interpolation="nearest")
        axes.set_xticks([0, width])
        axes.set_yticks([0, height])
        axes.tick_params(labelsize=5.5, length=2)
        lines = (_shown(line[:34]) for line in sample.caption.split("\n"))
        axes.set_title("\n".join(lines), loc="left", fontsize=6.5)


def encode(figure: Figure) -> bytes:
    """The figure as a PNG file; the same bytes for the same report."""
    file = io.BytesIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(file, format="png", dpi=_DPI, metadata={"Software": None})
    return file.getvalue()


def _drive(
    figure: Figure, place: SubplotSpec, name: str, report: Mapping[str, Any], rows: pd.DataFrame
) -> None:
    grid = place.subgridspec(1, 2, width_ratios=(2.2, 1), wspace=0.16)
    track, histogram = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    track.set_title(_title(name, report), loc="left")
    time_s = (rows["time_ns"].to_numpy() - rows["time_ns"].iloc[0]) / 1e9
    _track(track, time_s, np.degrees(rows["steering_wheel_rad"].to_numpy(dtype=np.float64)), rows)
    if report["label_histogram"] is None:
        track.set_yticks([])
        track.set_ylabel("")
        histogram.set_axis_off()
        histogram.text(0.5, 0.5, "no steering recorded", ha="center", transform=histogram.transAxes)
    else:
        _histogram(histogram, report["label_histogram"])


def _track(
    axes: Axes, time_s: Float64[np.ndarray, " T"], angle_deg: Float64[np.ndarray, " T"], rows: pd.DataFrame
) -> None:
    """A line for each unbroken run of one part; a band at the foot shows the parts without angles too."""
    part, segment = rows["split"].to_numpy(dtype=str), rows["segment"].to_numpy()
    starts = np.flatnonzero((part[1:] != part[:-1]) | (np.diff(segment) != 0)) + 1
    axes.axhline(0.0, color="#b4b4b4", linewidth=0.6)
    for run in np.split(np.arange(len(part)), starts):
        colour = COLOURS[part[run[0]]]
        axes.plot(time_s[run], angle_deg[run], color=colour, linewidth=0.9)
        ends = time_s[[run[0], run[-1]]]
        axes.plot(
            ends, [0.0, 0.0], color=colour, linewidth=4, transform=axes.get_xaxis_transform(), clip_on=False,
            solid_capstyle="butt",
        )  # fmt: skip
    axes.set_xlim(0.0, max(float(time_s[-1]), 1e-3))
    axes.set_xlabel("time (s)")
    axes.set_ylabel("steering wheel (deg), left up")


def _histogram(axes: Axes, histogram: Mapping[str, Any]) -> None:
    """Bars of one width between the edges of their bins, which are uneven; the outer two are open."""
    counts, edges = histogram["counts"], histogram["edges_deg"]
    axes.bar(np.arange(len(counts)) + 0.5, counts, width=0.86, color=_INK)
    axes.set_xticks(range(1, len(counts)), [f"{edge:g}" for edge in edges], rotation=90)
    axes.set_xlim(0, len(counts))
    axes.set_xlabel("steering wheel (deg), edges of bins")
    axes.set_ylabel("frames")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))


def _images(axes: Axes, name: str, report: Mapping[str, Any], rows: pd.DataFrame) -> None:
    """Stacked bars of the positives of each label, by part."""
    axes.set_title(_title(name, report), loc="left")
    labels = list(report["labels"])
    if not labels:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "images without labels", ha="center", transform=axes.transAxes)
        return
    base = np.zeros(len(labels))
    for part in (part for part in PARTS if part in set(rows["split"])):
        counts = [int(((rows["split"] == part) & (rows[label] > 0)).sum()) for label in labels]
        axes.bar(range(len(labels)), counts, bottom=base, width=0.8, color=COLOURS[part])
        base += counts
    is_crowded = sum(map(len, labels)) > 110
    axes.set_xticks(
        range(len(labels)),
        [_shown(label[:24]) for label in labels],
        rotation=20 if is_crowded else 0,
        ha="right" if is_crowded else "center",
        fontsize=5.5 if is_crowded else 7.5,
    )
    axes.set_ylabel("images")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))


def _title(name: str, report: Mapping[str, Any]) -> str:
    """The name, what was kept, and what was not and why."""
    first = f"{_shown(name[:40])}   {report['kept']:,} kept of {report['read']:,}"
    if report.get("rate_hz"):
        first += (
            f"   {report['rate_hz']:.2f} Hz   jitter {report['jitter_ms']:.1f} ms   "
            f"longest gap {report['longest_gap_s']:.3f} s   {report['segments']} segments"
        )
    lost = {reason: found["count"] for reason, found in report["left_out"].items()} | report["dropped"]
    said = ", ".join(f"{count:,} {reason}" for reason, count in lost.items() if count) or "nothing"
    return f"{first}\nleft out: {_shown(said[:150])}"


def _shown(text: str) -> str:
    """The text with `?` for every character that the font lacks."""
    font = get_font(findfont(FontProperties(family=list(_STYLE["font.family"]))))
    return "".join(each if each.isprintable() and font.get_char_index(ord(each)) else "?" for each in text)


def _legend(figure: Figure, parts: set[str], *, others: int) -> None:
    handles = [Patch(color=colour, label=part) for part, colour in COLOURS.items() if part in parts]
    if handles:
        figure.legend(handles=handles, loc="lower left", ncols=len(handles), frameon=False)
    if others > 0:
        figure.text(0.985, 0.14 / figure.get_figheight(), f"and {others} more drives", ha="right")
