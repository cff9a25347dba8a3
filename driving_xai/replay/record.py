"""The scores of a replay: running means for the picture, rows on disk, the summary at the end.

Rows have the columns of `faithfulness.results`, which reads a replay's scores as it reads those of
`driving-xai score`. Rows leave memory group by group while the drive plays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float64
from scipy import stats

from data_prep.shards.atomic import replacing
from driving_xai.evaluation.data import DriveData
from driving_xai.evaluation.results import PER_FRAME_SCHEMA
from driving_xai.evaluation.summary import describe_intervals, describe_protocol, interval
from driving_xai.metrics.quantities import STEERING_ERROR, Quantity
from driving_xai.metrics.registry import build
from driving_xai.metrics.statistics import BlockBootstrap
from driving_xai.perturb import Fill
from driving_xai.replay.inset import CurveView
from driving_xai.replay.scoring import FRACTIONS, REFERENCES, Curves, Judged, curve_area
from driving_xai.viz.heat import is_degenerate

MEASURE, CONTROL = "deletion", "random"
_PROTOCOL: Mapping[str, Any] = {
    "edited": DriveData.protocol["edited"],
    "left_out": "the first frame of each unbroken run, which has no past",
    "references": {
        "truth": "the recorded angle, smoothed",
        "clean": DriveData.protocol["references"]["clean"],
    },
}
_ROWS_PER_GROUP = 4096
_NUMBERS = ["time_ns", "error", "value", "normalised", "base_corrected", "degenerate"]


@dataclass
class RunningMean:
    """A mean of curves and an interval of their mean area, in memory that does not grow.

    Neighbouring frames are alike, so the interval is that of the means of whole blocks of frames
    (non-overlapping batch means, Student's t). The saved results use a moving-block bootstrap.
    """

    block: int | None = None
    """Frames in a block; None where no interval is asked for."""
    quantity: Quantity = STEERING_ERROR
    """What the curves are of, which says the unit of their areas."""
    frames: int = 0
    curve: Float64[np.ndarray, " V"] = field(default_factory=lambda: np.full(len(FRACTIONS), np.nan))
    area: float = math.nan
    _block_sum: float = 0.0
    _blocks: int = 0
    _block_mean: float = 0.0
    _block_squares: float = 0.0

    def add(self, curve: Float64[np.ndarray, " V"]) -> None:
        """Takes in one frame's curve; one with NaN is of a frame without a reference, and left out."""
        if not np.isfinite(curve).all():
            return
        self.frames += 1
        known = self.curve if self.frames > 1 else np.zeros_like(curve)
        self.curve = known + (curve - known) / self.frames
        self.area = curve_area(self.curve, self.quantity)
        if self.block is None:
            return
        self._block_sum += curve_area(curve, self.quantity)
        if self.frames % self.block == 0:
            self._close_block(self._block_sum / self.block)
            self._block_sum = 0.0

    def half_width(self) -> float:
        """Of the mean area's 95 % interval, in its unit; NaN before the fifth block."""
        if self._blocks < 5:
            return math.nan
        variance = self._block_squares / (self._blocks - 1)
        return _students_t(self._blocks - 1) * math.sqrt(variance / self._blocks)

    def _close_block(self, mean: float) -> None:
        """Welford's update."""
        self._blocks += 1
        from_old = mean - self._block_mean
        self._block_mean += from_old / self._blocks
        self._block_squares += from_old * (mean - self._block_mean)


@lru_cache(maxsize=4)
def _students_t(degrees: int) -> float:
    return float(stats.t.ppf(0.975, degrees))


def view_of(curve: Float64[np.ndarray, " V"], mean: RunningMean, random: RunningMean) -> CurveView:
    """What the inset shows of a curve beside its method's mean and the control's."""
    return CurveView(
        fractions=np.array(FRACTIONS),
        current=curve,
        mean=mean.curve,
        random_mean=random.curve,
        area=curve_area(curve, mean.quantity),
        mean_area=mean.area,
        half_width=mean.half_width(),
        random_area=random.area,
        frames=mean.frames,
    )


class Tally:
    """The running means of both orderings against both references."""

    def __init__(self, block: int, control_every: int) -> None:
        self.means = {
            (ordering, reference): RunningMean(
                block if ordering == "method" else max(1, block // control_every)
            )
            for ordering in ("method", CONTROL)
            for reference in REFERENCES
        }
        self.control_every = control_every

    def add(self, judged: Judged) -> None:
        """Takes in one frame."""
        for ordering, curves in (("method", judged.explained), (CONTROL, judged.random)):
            if curves is not None:
                for reference, curve in zip(REFERENCES, curves, strict=True):
                    self.means[ordering, reference].add(curve)

    def view(self, judged: Judged, reference: str) -> CurveView:
        """What the inset shows for a frame that was added."""
        curve = np.full(len(FRACTIONS), np.nan)
        if judged.explained is not None:
            curve = getattr(judged.explained, reference)
        return view_of(curve, self.means["method", reference], self.means[CONTROL, reference])


class ScoreLog:
    """Writes per-frame rows in groups; made by `open_log`."""

    def __init__(
        self, writer: pq.ParquetWriter, *, method: str, target: str, drive: str, camera: str
    ) -> None:
        self.method, self.target, self.drive, self.camera = method, target, drive, camera
        self._writer = writer
        self._rows: list[dict[str, Any]] = []

    def add(self, judged: Judged) -> None:
        """Adds a frame's rows: each ordering that was scored, against each reference."""
        for ordering, curves in ((self.method, judged.explained), (CONTROL, judged.random)):
            if curves is not None:
                self._rows += self._of(judged, ordering, curves)
        if len(self._rows) >= _ROWS_PER_GROUP:
            self.flush()

    def flush(self) -> None:
        """Writes what is pending as one row group."""
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=PER_FRAME_SCHEMA))
            self._rows = []

    def _of(self, judged: Judged, ordering: str, curves: Curves) -> Iterator[dict[str, Any]]:
        predicted, measured = judged.predicted.angle_deg, judged.measured.angle_deg
        frame = {
            "drive": self.drive,
            "camera": self.camera,
            "segment": judged.seen.segment,
            "frame": judged.seen.frame.index,
            "time_ns": judged.seen.frame.time_ns,
            "key": "",
            "target": self.target,
            "method": ordering,
            "measure": MEASURE,
            "prediction": predicted,
            "truth": _known(measured),
            "error": _known(abs(predicted - measured)),
            "degenerate": ordering == self.method and is_degenerate(judged.saliency),
        }
        span = FRACTIONS[-1] - FRACTIONS[0]
        for reference, curve in zip(REFERENCES, curves, strict=True):
            value = curve_area(curve)
            yield {
                **frame,
                "reference": reference,
                "value": _known(value),
                "normalised": _known(value / 100 / span),
                "base_corrected": _known(value - 100 * span * float(curve[0])),
                "curve": curve.astype(np.float32) if math.isfinite(value) else None,
            }


@contextmanager
def open_log(path: Path, *, method: str, target: str, drive: str, camera: str) -> Iterator[ScoreLog]:
    """Opens a table of per-frame rows for writing; it appears under its name when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            replacing(path) as temporary,
            pq.ParquetWriter(temporary, PER_FRAME_SCHEMA, compression="zstd") as writer,
        ):
            log = ScoreLog(writer, method=method, target=target, drive=drive, camera=camera)
            yield log
            log.flush()
    finally:
        if not any(path.parent.iterdir()):  # Nothing came of it: no empty folder is left.
            path.parent.rmdir()


def summarise(
    table: Path, tally: Tally, method: str, bootstrap: BlockBootstrap, *, fill: Fill
) -> dict[str, Any]:
    """What `results.json` says of the rows: means with intervals, and the method less its control.

    Reads the table without its curves, whose means are known already.

    Args:
        bootstrap: its block counts the method's frames; the control has fewer of them.
        fill: what took a removed pixel's place.
    """
    sparse = replace(bootstrap, block=max(1, bootstrap.block // tally.control_every))
    orderings = {method: bootstrap} if method == CONTROL else {method: bootstrap, CONTROL: sparse}
    scores, differences = [], []
    for reference in REFERENCES:
        names = {"measure": MEASURE, "reference": reference}
        rows = {name: _rows(table, name, reference) for name in orderings}
        for name, drawn in orderings.items():
            mean = tally.means["method" if name == method else CONTROL, reference]
            scores.append({"method": name, **names, **_score(rows[name], mean, drawn)})
        if method != CONTROL:
            difference = _difference(rows[method], rows[CONTROL], sparse)
            differences.append({"method": method, **names, **difference})
    errors = _rows(table, method, REFERENCES[0])["error"].dropna()
    return {
        "protocol": describe_protocol(STEERING_ERROR, _PROTOCOL),
        "measures": {MEASURE: build(MEASURE, fill=fill).describe(STEERING_ERROR)},
        "methods": [name for name in orderings if name != CONTROL],
        "controls": [CONTROL],
        "prediction": {"unit": "deg", "error": interval(errors, bootstrap)},
        "scores": scores,
        "differences": differences,
        "intervals": describe_intervals(bootstrap),
    }


def _rows(table: Path, method: str, reference: str) -> pd.DataFrame:
    chosen = [("method", "=", method), ("reference", "=", reference)]
    return pq.read_table(table, columns=_NUMBERS, filters=chosen).to_pandas()


def _score(rows: pd.DataFrame, mean: RunningMean, bootstrap: BlockBootstrap) -> dict[str, Any]:
    known = rows[rows["value"].notna()]
    return {
        "frames": len(known),
        "degenerate": int(known["degenerate"].sum()),
        "value": interval(known["value"], bootstrap),
        "normalised": interval(known["normalised"], bootstrap),
        "base_corrected": interval(known["base_corrected"], bootstrap),
        "curve": mean.curve.tolist() if mean.frames else None,
    }


def _difference(ours: pd.DataFrame, control: pd.DataFrame, bootstrap: BlockBootstrap) -> dict[str, Any]:
    """On the frames where the control was scored too."""
    paired = ours.set_index("time_ns")["value"].reindex(control["time_ns"]).to_numpy()
    apart = pd.Series(paired - control["value"].to_numpy()).dropna()
    return {"control": CONTROL, "frames": len(apart), "value": interval(apart, bootstrap)}


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
