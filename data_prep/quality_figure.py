"""The quality report as a picture: a panel for each drive, drawn with OpenCV.

A drive's panel shows its steering over time in the colours of the split, with holes left blank, and
the histogram of the angle; an image set's the number of positives of each label. RGB throughout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
from jaxtyping import Float64, UInt8

from data_prep.schema import Image
from data_prep.split import PARTS

MOST_PANELS = 12
"""Drives that are drawn; the others are named by their number."""

_WIDTH, _PANEL = 960, 190
_MARGIN, _TRACK, _BARS_LEFT = 16, 620, 690
_TOP, _FOOT = 30, 44
_INK, _PALE, _PAPER = (40, 40, 40), (120, 120, 120), (255, 255, 255)
# Told apart with every common colour blindness. Source: Okabe and Ito 2008.
_COLOURS: Mapping[str, tuple[int, int, int]] = {
    "train": (0, 114, 178),
    "val": (230, 159, 0),
    "test": (0, 158, 115),
    "gap": (150, 150, 150),
}
_ALL = "all"


class _Box(NamedTuple):
    """Where in a panel to draw, in pixels."""

    left: int
    top: int
    width: int
    height: int


def draw(kind: str, quality: Mapping[str, Any], index: pd.DataFrame) -> Image:
    """The picture of a whole output.

    Args:
        kind: `sequences` or `images`.
        quality: a report for each drive or image set, as in the manifest.
        index: the index of the same output.
    """
    names = list(quality)[:MOST_PANELS]
    panel = _drive if kind == "sequences" else _images
    rows = {name: index[index["drive"] == name] if kind == "sequences" else index for name in names}
    panels = [panel(name, quality[name], rows[name]) for name in names]
    return np.concatenate([*panels, _legend(len(quality) - len(names))])


def _drive(name: str, report: Mapping[str, Any], rows: pd.DataFrame) -> Image:
    image = _panel(name, report)
    time_s = (rows["time_ns"].to_numpy() - rows["time_ns"].iloc[0]) / 1e9
    box = _Box(_MARGIN, _TOP, _TRACK, _PANEL - _TOP - _FOOT)
    angle_deg = np.degrees(rows["steering_wheel_rad"].to_numpy(dtype=np.float64))
    most = float(np.nanmax(np.abs(angle_deg))) if np.isfinite(angle_deg).any() else 0.0
    _track(image, box, time_s, angle_deg, rows, most)
    below = box.top + box.height + 14
    _write(image, f"0 to {time_s[-1]:.1f} s, +-{most:.1f} deg, left is up", (_MARGIN, below), _PALE, 0.36)
    histogram = report["label_histogram"]
    if histogram is None:
        _write(image, "no steering recorded", (_BARS_LEFT, _TOP + 50), _PALE)
        return image
    bars = _Box(_BARS_LEFT, _TOP, _WIDTH - _BARS_LEFT - _MARGIN, box.height)
    _bars(image, bars, [[count] for count in histogram["counts"]], [_ALL])
    edges = histogram["edges_deg"]
    _write(
        image, f"deg, bins from {edges[0]:.0f} to {edges[-1]:.0f}, not even", (bars.left, below), _PALE, 0.36
    )
    return image


def _track(
    image: Image,
    box: _Box,
    time_s: Float64[np.ndarray, " T"],
    angle_deg: Float64[np.ndarray, " T"],
    rows: pd.DataFrame,
    most: float,
) -> None:
    """A line for each unbroken run of one part; a band at its foot shows the parts without angles too."""
    across = box.left + np.round(time_s / max(time_s[-1], 1e-9) * (box.width - 1)).astype(np.int32)
    middle = box.top + box.height // 2
    cv2.line(image, (box.left, middle), (box.left + box.width, middle), _PALE, 1)
    down = middle - np.round(np.nan_to_num(angle_deg) / max(most, 1e-9) * (box.height // 2 - 6)).astype(
        np.int32
    )
    part, segment = rows["split"].to_numpy(dtype=str), rows["segment"].to_numpy()
    starts = np.flatnonzero((part[1:] != part[:-1]) | (np.diff(segment) != 0)) + 1
    for run in np.split(np.arange(len(part)), starts):
        colour = _COLOURS[part[run[0]]]
        foot = box.top + box.height
        cv2.rectangle(image, (int(across[run[0]]), foot - 3), (int(across[run[-1]]), foot), colour, -1)
        known = run[np.isfinite(angle_deg[run])]
        points = np.stack([across[known], down[known]], axis=1).reshape(-1, 1, 2)
        cv2.polylines(image, [points], False, colour, 1, cv2.LINE_AA)


def _images(name: str, report: Mapping[str, Any], rows: pd.DataFrame) -> Image:
    image = _panel(name, report)
    labels = list(report["labels"])
    if not labels:
        _write(image, "images without labels", (_MARGIN, _TOP + 50), _PALE)
        return image
    parts = [part for part in PARTS if part in set(rows["split"])]
    counts = [[int(((rows["split"] == part) & (rows[name] > 0)).sum()) for part in parts] for name in labels]
    box = _Box(_MARGIN, _TOP, _WIDTH - 2 * _MARGIN, _PANEL - _TOP - _FOOT)
    _bars(image, box, counts, parts)
    step = box.width / len(labels)
    for number, label in enumerate(labels):
        place = (box.left + round((number + 0.1) * step), box.top + box.height + 14)
        _write(image, label[: max(int(step / 7), 1)], place, _INK, 0.36)
    return image


def _panel(name: str, report: Mapping[str, Any]) -> Image:
    """White, with the name, what was kept, and what was not and why."""
    image = np.full((_PANEL, _WIDTH, 3), _PAPER, dtype=np.uint8)
    title = f"{name[:40]}   {report['kept']:,} kept of {report['read']:,}"
    if report.get("rate_hz"):
        title += (
            f"   {report['rate_hz']:.2f} Hz   jitter {report['jitter_ms']:.1f} ms   "
            f"longest gap {report['longest_gap_s']:.3f} s   {report['segments']} segments"
        )
    _write(image, title, (_MARGIN, 20), _INK)
    lost = {reason: found["count"] for reason, found in report["left_out"].items()} | report["dropped"]
    said = ", ".join(f"{count:,} {reason}" for reason, count in lost.items()) or "nothing"
    _write(image, f"left out: {said}"[:150], (_MARGIN, _PANEL - 12), _INK, 0.38)
    return image


def _bars(image: Image, box: _Box, counts: Sequence[Sequence[int]], parts: Sequence[str]) -> None:
    """Stacked bars; the highest fills the box."""
    most = max(max(sum(stack) for stack in counts), 1)
    step = box.width / len(counts)
    foot = box.top + box.height
    for number, stack in enumerate(counts):
        left, right = (box.left + round((number + side) * step) for side in (0.1, 0.9))
        base = foot
        for part, count in zip(parts, stack, strict=True):
            top = base - round(count / most * (box.height - 14))
            if count:  # a bin with one frame shows
                cv2.rectangle(
                    image,
                    (left, min(top, base - 1)),
                    (max(right, left + 1), base),
                    _COLOURS.get(part, _INK),
                    -1,
                )
            base = top
    cv2.line(image, (box.left, foot), (box.left + box.width, foot), _PALE, 1)
    _write(image, f"{most:,}", (box.left, box.top + 10), _PALE, 0.36)


def _legend(others: int) -> Image:
    image = np.full((30, _WIDTH, 3), _PAPER, dtype=np.uint8)
    for number, (part, colour) in enumerate(_COLOURS.items()):
        left = _MARGIN + 90 * number
        cv2.rectangle(image, (left, 10), (left + 12, 20), colour, -1)
        _write(image, part, (left + 18, 20), _INK)
    if others > 0:
        _write(image, f"and {others} more drives", (_WIDTH - 200, 20), _INK)
    return image


def _write(
    image: UInt8[np.ndarray, "H W 3"],
    text: str,
    place: tuple[int, int],
    colour: tuple[int, int, int],
    scale: float = 0.42,
) -> None:
    cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, 1, cv2.LINE_AA)


def encode(image: Image) -> bytes:
    """The picture as a PNG file."""
    written, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert written
    return data.tobytes()
