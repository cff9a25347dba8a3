"""Rows and summaries of results made up without a model, and pictures that tell their number."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd

from driving_xai.evaluation.summary import summarise
from driving_xai.metrics.quantities import STEERING_ERROR
from driving_xai.metrics.registry import build, statistics_of_sets
from driving_xai.metrics.statistics import BlockBootstrap

RATE = Fraction(20)
BOOTSTRAP = BlockBootstrap(block=10, resamples=100)
CONTROLS = ["random", "centre-prior"]


def make_rows(
    gains: dict[str, float], *, frames: int, drive: str, measures: tuple[str, ...], seed: int = 0
) -> pd.DataFrame:
    """Values that are a common walk, a gain of each method and a little noise of its own."""
    generator = np.random.default_rng(seed)
    common = 20 + np.cumsum(generator.normal(size=frames))
    angle = 10 * np.sin(np.arange(frames) / 9)
    tables = []
    of_sets = statistics_of_sets({name: build(name) for name in measures})
    for measure in measures:
        about = build(measure).describe(STEERING_ERROR)
        points = (
            0
            if about["kind"]
            in (
                "localisation",
                "weighted frame",
                "rank correlation",
                "additivity",
                "imputation",
                "complexity",
            )
            else len(about.get("fractions", "?" * 11))
        )
        for reference in ("truth", "clean") if points else ("cause",):
            for method, gain in gains.items():
                value = common + gain + generator.normal(scale=0.1, size=frames)
                curve = np.linspace(value / 50, value / 20, points, axis=1) if points else None
                if measure in of_sets:
                    # Accuracies, which fall the sooner the more is gained; a frame has no value.
                    curve = 0.9 - np.outer(10 + gain + generator.normal(size=frames), np.arange(points)) / 200
                    value = np.full(frames, np.nan)
                tables.append(
                    pd.DataFrame(
                        {
                            "drive": drive,
                            "camera": "front",
                            "segment": 0,
                            "frame": np.arange(frames) + 1,
                            "time_ns": 1_000_000_000 + 50_000_000 * (np.arange(frames) + 1),
                            "key": "",
                            "target": "magnitude",
                            "method": method,
                            "measure": measure,
                            "reference": reference,
                            "prediction": angle + 1,
                            "truth": angle,
                            "error": 1.0,
                            "value": value,
                            "normalised": value / 25,
                            "base_corrected": value - 20,
                            "chance": 0.1,
                            "curve": list(np.float32(curve)) if curve is not None else None,
                            "degenerate": np.arange(frames) == 3,
                        }
                    )
                )
    return pd.concat(tables, ignore_index=True)


def make_summary(rows: pd.DataFrame, **more: Any) -> dict[str, Any]:
    """What `score` says of such rows."""
    measures = {name: build(name).describe(STEERING_ERROR) for name in rows["measure"].unique()}
    methods = list(rows["method"].unique())
    controls = [name for name in CONTROLS if name in methods]
    summary = {
        "plan": {"config": {"seed": 0, "every": 1}, "checkpoint_sha256": "c" * 64, "shards_sha256": "d" * 64},
        "model": {"kind": "steering", "config": {"hidden_size": 8}},
        "data": {"drives": sorted(rows["drive"].unique()), "frames": 99, "scored": 98, "seconds_apart": 0.05},
        **summarise(
            rows,
            quantity=STEERING_ERROR,
            protocol={"references": {"truth": "the recorded angle", "clean": "the prediction"}},
            measures=measures,
            methods=[name for name in methods if name not in controls],
            controls=controls,
            bootstrap=BOOTSTRAP,
            of_sets=statistics_of_sets({name: build(name) for name in measures}),
        ),
        "versions": {"driving-xai": "0"},
        "hardware": {"device": "none", "threads": 1},
    }
    return {**summary, **more}


def grey_of(number: int) -> int:
    """The brightness of a picture, which tells its number."""
    return 20 + number
