"""Per-frame rows to what `results.json` says of them: means with intervals, differences, descriptions."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import torch

from driving_xai.faithfulness.measures import MEASURES, CurveMeasure
from driving_xai.faithfulness.results import FRAME_COLUMNS
from driving_xai.faithfulness.statistics import BlockBootstrap


def summarise_scores(per_frame: pd.DataFrame, bootstrap: BlockBootstrap) -> list[dict[str, Any]]:
    """Each method's mean under each measure and reference, with intervals and the mean curve."""
    return [
        {"method": method, "measure": measure, "reference": reference, **_summarise(rows, bootstrap)}
        for (measure, reference, method), rows in _groups(per_frame)
    ]


def _summarise(rows: pd.DataFrame, bootstrap: BlockBootstrap) -> dict[str, Any]:
    known = rows[rows["value"].notna()]
    entry: dict[str, Any] = {
        "frames": len(known),
        "degenerate": int(known["degenerate"].sum()),
        "value": interval(known["value"], bootstrap),
    }
    if rows["curve"].notna().any():
        entry["normalised"] = interval(known["normalised"], bootstrap)
        entry["base_corrected"] = interval(known["base_corrected"], bootstrap)
        entry["curve"] = np.stack(known["curve"]).mean(0, dtype=np.float64).tolist() if len(known) else None
    else:
        entry["chance"] = float(known["chance"].mean()) if len(known) else None
    return entry


def summarise_differences(
    per_frame: pd.DataFrame, controls: Sequence[str], bootstrap: BlockBootstrap
) -> list[dict[str, Any]]:
    """The value of each method less that of each control, frame by frame, with intervals."""
    values = {key: rows.set_index(FRAME_COLUMNS)["value"] for key, rows in _groups(per_frame)}
    differences = []
    for (measure, reference, method), ours in values.items():
        for control in controls if method not in controls else ():
            paired = (ours - values[measure, reference, control].reindex(ours.index)).dropna()
            names = {"method": method, "control": control, "measure": measure, "reference": reference}
            differences.append({**names, "frames": len(paired), "value": interval(paired, bootstrap)})
    return differences


def interval(values: pd.Series, bootstrap: BlockBootstrap) -> dict[str, Any]:
    """Mean, low and high as JSON: null where unknown, with the reason."""
    if len(values) == 0:
        return {"mean": None, "low": None, "high": None, "reason": "no frame has this value"}
    found = bootstrap.interval(values.to_numpy(dtype=np.float64))
    if found is not None:
        return asdict(found)
    reason = f"{len(values)} frames are fewer than two blocks of {bootstrap.block}"
    return {"mean": math.fsum(values) / len(values), "low": None, "high": None, "reason": reason}


def describe_measure(name: str) -> dict[str, Any]:
    """What a measure's numbers mean."""
    measure = MEASURES[name]
    if not isinstance(measure, CurveMeasure):
        return {"kind": "localisation", "reference": "pixels that cause the label", "faithful": "high"}
    return {
        "kind": "curve",
        "unit": "deg x percent of pixels",
        "normalised_unit": "deg",
        "fractions": list(measure.fractions),
        "endpoints": "both included",
        "faithful": measure.faithful_error,
    }


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, as far as numbers may depend on them."""
    on_gpu = device.type == "cuda"
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("driving-xai", "torch", "numpy", "pandas", "pyarrow")},
        },
        "hardware": {
            "device": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
            "threads": torch.get_num_threads(),
        },
    }


def _groups(per_frame: pd.DataFrame) -> Iterator[tuple[tuple[str, str, str], pd.DataFrame]]:
    yield from per_frame.groupby(["measure", "reference", "method"], sort=False)
