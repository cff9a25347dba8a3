"""The quality report in the manifest: what was kept, what was dropped and why, drive by drive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int64

from data_prep.errors import DataError, quoted

LABEL_EDGES_DEG = (
    -180.0,
    -90.0,
    -45.0,
    -20.0,
    -10.0,
    -5.0,
    -2.0,
    0.0,
    2.0,
    5.0,
    10.0,
    20.0,
    45.0,
    90.0,
    180.0,
)
"""Steering-wheel angle, positive to the left; the first and last bin are open."""

_EXAMPLES = 3


def of_drive(
    rows: pd.DataFrame,
    *,
    frames_read: int,
    dropped: Mapping[str, int],
    left_out: Mapping[str, tuple[str, ...]],
    signal_samples_dropped: Mapping[str, int],
    sorted_rows: int = 0,
) -> dict[str, Any]:
    """The report of one drive.

    Args:
        rows: its rows of the index, in time; one at least.
        frames_read: frames that the reader handed over.
        dropped: reason to number of those frames.
        left_out: reason to the rows of the recording that gave no frame.
        signal_samples_dropped: signal to number of its samples that could not be used.
        sorted_rows: rows of its table that had to be put into the order of their times.

    Returns:
        JSON values: counts, seconds, milliseconds and degrees as the keys say.
    """
    time_ns = rows["time_ns"].to_numpy()
    return {
        "read": frames_read,
        "kept": len(rows),
        "dropped": {reason: count for reason, count in sorted(dropped.items()) if count},
        "left_out": _left_out(left_out),
        "signal_samples_dropped": dict(signal_samples_dropped),
        **({"sorted_rows": sorted_rows} if sorted_rows else {}),
        "segments": int(rows["segment"].nunique()),
        "by_split": dict(sorted(Counter(rows["split"]).items())),
        **_timing(time_ns),
        **_labels(rows),
    }


def of_images(
    rows: pd.DataFrame,
    label_names: tuple[str, ...],
    *,
    images_read: int,
    left_out: Mapping[str, tuple[str, ...]],
    dropped: Mapping[str, int],
) -> dict[str, Any]:
    """The report of one image set: counts by split and label, and groups that more than one split holds."""
    splits = rows.groupby("group")["split"].nunique()
    return {
        "read": images_read,
        "kept": len(rows),
        "dropped": dict(sorted(dropped.items())),
        "left_out": _left_out(left_out),
        "by_split": dict(sorted(Counter(rows["split"]).items())),
        "labels": {
            name: {str(value): count for value, count in sorted(Counter(rows[name].tolist()).items())}
            for name in label_names
        },
        "groups_in_several_splits": int((splits > 1).sum()),
    }


def check(kind: str, reports: Mapping[str, Any]) -> None:
    """Refuses reports that cannot be shown, as those of a manifest that was changed by hand.

    Args:
        kind: `sequences` or `images`.
        reports: the manifest's, by drive or image set.

    Raises:
        DataError: a report lacks something, or holds something of another type.
    """
    for name, report in reports.items():
        if not isinstance(report, dict):
            raise DataError(f"the quality report of {quoted(name)} is {quoted(report)}; prepare again")
        for key, fits in _FITS["all"].items() | _FITS[kind].items():
            if key not in report or not fits(report[key]):
                found = quoted(report[key]) if key in report else "missing"
                raise DataError(
                    f"the quality report of {quoted(name)}: {key} is {found}; prepare again with --overwrite"
                )


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    return value is None or type(value) in (int, float)


def _are_counts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_count, value.values()))


def _are_lost_rows(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(found, dict) and _is_count(found.get("count")) for found in value.values()
    )


def _is_histogram(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, dict) or value.get("edges_deg") != list(LABEL_EDGES_DEG):
        return False
    counts = value.get("counts")
    return (
        isinstance(counts, list) and len(counts) == len(LABEL_EDGES_DEG) + 1 and all(map(_is_count, counts))
    )


_FITS: Mapping[str, Mapping[str, Callable[[Any], bool]]] = {
    "all": {
        "read": _is_count,
        "kept": _is_count,
        "dropped": _are_counts,
        "left_out": _are_lost_rows,
        "by_split": _are_counts,
    },
    "sequences": {
        "segments": _is_count,
        "rate_hz": _is_number,
        "jitter_ms": _is_number,
        "longest_gap_s": _is_number,
        "label_histogram": _is_histogram,
    },
    "images": {
        "labels": lambda labels: isinstance(labels, dict) and all(map(_are_counts, labels.values())),
    },
}
"""What the table and the figure need of each report."""


def _left_out(left_out: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    return {
        reason: {"count": len(names), "first": list(names[:_EXAMPLES])}
        for reason, names in sorted(left_out.items())
    }


def _timing(time_ns: Int64[np.ndarray, " T"]) -> dict[str, Any]:
    if len(time_ns) < 2:
        return {"duration_s": 0.0, "rate_hz": None, "jitter_ms": None, "longest_gap_s": None}
    steps_s = np.diff(time_ns) / 1e9
    period_s = float(np.median(steps_s))
    # Half the spread that the middle 90 % of the steps cover: holes do not count as jitter.
    low, high = np.quantile(steps_s, [0.05, 0.95])
    return {
        "duration_s": _rounded((time_ns[-1] - time_ns[0]) / 1e9),
        "rate_hz": _rounded(1.0 / period_s),
        "jitter_ms": _rounded((high - low) / 2 * 1e3),
        "longest_gap_s": _rounded(steps_s.max()),
    }


def _labels(rows: pd.DataFrame) -> dict[str, Any]:
    angle_deg = np.degrees(rows["steering_wheel_rad"].to_numpy())
    if np.isnan(angle_deg).all():
        return {"label_histogram": None, "zero_predictor_mae_deg_by_block": None}
    edges = np.concatenate([[-np.inf], LABEL_EDGES_DEG, [np.inf]])
    by_block = rows.assign(error=np.abs(angle_deg)).groupby("block")["error"].mean()
    return {
        "label_histogram": {
            "edges_deg": list(LABEL_EDGES_DEG),
            "counts": np.histogram(angle_deg, edges)[0].tolist(),
        },
        "zero_predictor_mae_deg_by_block": {str(block): _rounded(error) for block, error in by_block.items()},
    }


def _rounded(value: float) -> float:
    """Six decimals: a report for people, and the same text from every processor."""
    return round(float(value), 6)
