"""The quality report of prep in lines for people."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from data_prep.split import PARTS

_LEVELS = " .:-=+*#%@"
_WIDTH = 80


def lines(kind: str, quality: Mapping[str, Any]) -> list[str]:
    """A few lines for each drive or image set, none wider than 80 columns.

    Args:
        kind: `sequences` or `images`.
        quality: the manifest's report by name.

    Example:
        >>> report = {"read": 5, "kept": 4, "left_out": {}, "dropped": {"undecodable_image": 1}}
        >>> report |= {"by_split": {"train": 4}, "labels": {"stop": {"0": 1, "1": 3}}}
        >>> print("\\n".join(lines("images", {"street": report})))
        street: 4 kept of 5 read
          split      4 train
          left out   1 undecodable_image
          positives  3 stop
    """
    found = []
    for name, report in quality.items():
        rows = {"split": _counts(_by_part(report)), "left out": _left_out(report)}
        rows |= _clock_and_angles(report) if kind == "sequences" else {"positives": _positives(report)}
        found += _wrapped(f"{name}: {report['kept']:,} kept of {report['read']:,} read", "")
        for label, text in rows.items():
            found += _wrapped(text, f"  {label:<9}  ")
    return found


def _wrapped(text: str, start: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=start, subsequent_indent=" " * max(len(start), 2), drop_whitespace=True
    )


def _clock_and_angles(report: Mapping[str, Any]) -> dict[str, str]:
    rate, jitter, gap = (_number(report[key]) for key in ("rate_hz", "jitter_ms", "longest_gap_s"))
    segments = f"{report['segments']:,} segment" + ("s" if report["segments"] != 1 else "")
    histogram = report["label_histogram"]
    angles = "unlabelled" if histogram is None else f"|{_levels(histogram['counts'])}|  -180 to 180 deg"
    clock = f"{rate} Hz, jitter {jitter} ms, longest gap {gap} s, {segments}"
    return {"clock": clock, "angles": angles}


def _positives(report: Mapping[str, Any]) -> str:
    return _counts({label: counts.get("1", 0) for label, counts in report["labels"].items()})


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
        ' .+@'
    """
    most = max([*counts, 1])
    return "".join(_LEVELS[-(-count * (len(_LEVELS) - 1) // most)] for count in counts)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.3f}"
