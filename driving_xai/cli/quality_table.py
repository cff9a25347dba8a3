"""The quality report of prep as a table for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from data_prep.split import PARTS

_LEVELS = " .:-=+*#%@"
_PLAIN_WIDTH = 10_000
"""Of a file or a pipe, where a row stays one line."""


def lines(kind: str, quality: Mapping[str, Any]) -> list[str]:
    """A row for each drive or image set, as the terminal is wide.

    Args:
        kind: `sequences` or `images`.
        quality: the manifest's report by name.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PLAIN_WIDTH)
    table = _sequences(quality) if kind == "sequences" else _images(quality)
    with console.capture() as captured:
        console.print(table)
    return [line.rstrip() for line in captured.get().rstrip("\n").split("\n")]


def _sequences(quality: Mapping[str, Any]) -> Table:
    table = Table("drive", title_justify="left", pad_edge=False, box=None)
    for name in ("read", "kept", "Hz", "jitter ms", "longest gap s", "segments"):
        table.add_column(name, justify="right")
    for name in ("split", "angle -180 to 180 deg", "left out"):
        table.add_column(name)
    for name, report in quality.items():
        numbers = [f"{report['read']:,}", f"{report['kept']:,}"]
        numbers += [_number(report[key]) for key in ("rate_hz", "jitter_ms", "longest_gap_s")]
        histogram = report["label_histogram"]
        table.add_row(
            name,
            *numbers,
            str(report["segments"]),
            _counts(_by_part(report)),
            "unlabelled" if histogram is None else f"|{_levels(histogram['counts'])}|",
            _left_out(report),
        )
    return table


def _images(quality: Mapping[str, Any]) -> Table:
    table = Table("set", pad_edge=False, box=None)
    table.add_column("read", justify="right")
    table.add_column("kept", justify="right")
    for name in ("split", "positives", "left out"):
        table.add_column(name)
    for name, report in quality.items():
        positives = {label: counts.get("1", 0) for label, counts in report["labels"].items()}
        table.add_row(
            name,
            f"{report['read']:,}",
            f"{report['kept']:,}",
            _counts(_by_part(report)),
            _counts(positives),
            _left_out(report),
        )
    return table


def _by_part(report: Mapping[str, Any]) -> dict[str, int]:
    return {part: report["by_split"][part] for part in PARTS if part in report["by_split"]}


def _left_out(report: Mapping[str, Any]) -> str:
    """What gave no frame, of the source's rows and of the frames read."""
    lost = {reason: found["count"] for reason, found in report["left_out"].items()}
    for reason, count in report["dropped"].items():
        lost[reason] = lost.get(reason, 0) + count
    moved = report.get("sorted_rows")
    return _counts(lost) + (f"; {moved:,} rows sorted by time" if moved else "")


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items()) or "-"


def _levels(counts: list[int]) -> str:
    """A character for each bin, in plain ASCII: some terminals have no blocks.

    Example:
        >>> _levels([0, 1, 5, 10])
        ' .-@'
    """
    most = max([*counts, 1])
    return "".join(_LEVELS[-(-count * (len(_LEVELS) - 1) // most)] for count in counts)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.3f}"
