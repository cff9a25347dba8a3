"""What a replay of actions found: rows, running means, and the summary of both."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64

from driving_xai.errors import DataError
from driving_xai.evaluation.data import ImageData
from driving_xai.evaluation.results import PER_FRAME_SCHEMA
from driving_xai.evaluation.summary import (
    describe_intervals,
    describe_protocol,
    interval,
    summarise_differences,
    summarise_scores,
)
from driving_xai.metrics.quantities import PROBABILITY
from driving_xai.metrics.registry import build
from driving_xai.metrics.statistics import BlockBootstrap
from driving_xai.perturb import Fill
from driving_xai.replay.action_judge import Explained, JudgedPicture
from driving_xai.replay.inset import CurveView
from driving_xai.replay.record import CONTROL, MEASURE, RunningMean, view_of
from driving_xai.replay.scoring import curve_area
from driving_xai.viz.heat import is_degenerate

_PROTOCOL: Mapping[str, Any] = {
    "edited": ImageData.protocol["edited"],
    "explained": "each output whose probability is over its threshold",
    "references": {"target": ImageData.protocol["references"]["target"]},
}
Curve = Float64[np.ndarray, " V"]


class ActionRecord:
    """Rows of `results.PER_FRAME_SCHEMA` for each frame, predicted output and order, in memory."""

    def __init__(self, method: str, names: tuple[str, ...]) -> None:
        """`names` are of the model's outputs."""
        self.method, self._names = method, names
        self._means = {name: RunningMean(quantity=PROBABILITY) for name in (method, CONTROL)}
        self._rows: list[dict[str, Any]] = []
        self.pictures: list[tuple[str, int, int]] = []
        """Drive, frame and the number of its picture in the video, of each frame that has rows."""

    def add(self, judged: JudgedPicture, *, picture: int) -> None:
        """Takes a frame's curves into the means and the rows; `picture` is its number in the video."""
        if any(found.curve is not None for found in judged.explained.values()):
            self.pictures.append((judged.seen.drive, judged.seen.frame, picture))
        for column, found in judged.explained.items():
            for name, curve in ((self.method, found.curve), (CONTROL, found.random)):
                if curve is not None:
                    self._means[name].add(curve)
                    self._rows.append(self._row(judged, column, found, name, curve))

    def view(self, found: Explained) -> CurveView | None:
        """What the inset shows for an output of a frame that was added."""
        if found.curve is None:
            return None
        return view_of(found.curve, self._means[self.method], self._means[CONTROL])

    def table(self) -> pd.DataFrame:
        """The rows.

        Raises:
            DataError: there are none.
        """
        if not self._rows:
            raise DataError("no frame had a predicted output, so nothing could be scored; see --no-score")
        return pd.DataFrame(self._rows, columns=PER_FRAME_SCHEMA.names)

    def summary(self, bootstrap: BlockBootstrap, *, fill: Fill, frames: int) -> dict[str, Any]:
        """What `results.json` says of the rows.

        Args:
            fill: what took a removed pixel's place.
            frames: that were played.
        """
        table = self.table()
        return {
            "data": {"frames": frames, "scored": len(table.drop_duplicates(["drive", "frame"]))},
            "protocol": describe_protocol(PROBABILITY, _PROTOCOL),
            "measures": {MEASURE: build(MEASURE, fill=fill).describe(PROBABILITY)},
            "methods": [name for name in (self.method,) if name != CONTROL],
            "controls": [CONTROL],
            "prediction": {"unit": PROBABILITY.unit, "error": interval(table["error"].dropna(), bootstrap)},
            "scores": summarise_scores(table, bootstrap),
            "differences": summarise_differences(table, [CONTROL], bootstrap),
            "intervals": describe_intervals(bootstrap),
        }

    def _row(
        self, judged: JudgedPicture, column: int, found: Explained, method: str, curve: Curve
    ) -> dict[str, Any]:
        seen, chance = judged.seen, float(judged.probability[column])
        height = curve_area(curve, PROBABILITY)
        return {
            "drive": seen.drive,
            "camera": "",
            "segment": 0,
            "frame": seen.frame,
            "time_ns": seen.time_ns,
            "key": seen.key,
            "target": self._names[column],
            "method": method,
            "measure": MEASURE,
            "reference": "target",
            "prediction": chance,
            "truth": float(seen.labels[column]),
            "error": abs(chance - float(seen.labels[column])),
            "value": height,
            "normalised": height,
            "base_corrected": height - float(curve[0]),
            "chance": math.nan,
            "curve": curve.astype(np.float32),
            "degenerate": method == self.method and is_degenerate(found.saliency),
        }
