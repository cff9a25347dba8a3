"""The scores of a replay: running means for the picture, rows on disk, the summary at the end.

Rows have the columns of `evaluation.results`, which reads a replay's scores as it reads those of
`driving-xai score`. Rows leave memory group by group while the drive plays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float64
from scipy import stats

from data_prep.shards.atomic import replacing
from driving_xai.evaluation.results import PER_FRAME_SCHEMA, Rows, arrow_table, frame_rows
from driving_xai.evaluation.summary import summarise
from driving_xai.evaluation.verdicts import SoFar
from driving_xai.metrics.curves import areas
from driving_xai.metrics.quantities import STEERING_ERROR, Quantity
from driving_xai.metrics.registry import build
from driving_xai.metrics.statistics import LEAST_BLOCKS, BlockBootstrap
from driving_xai.perturb import Fill
from driving_xai.replay.inset import CurveView
from driving_xai.replay.predict import CONTROL, FRACTIONS, MEASURE, Curve, Explanation, FrameResult
from driving_xai.viz.heat import is_degenerate

_ROWS_PER_GROUP = 4096
_NUMBERS = [name for name in PER_FRAME_SCHEMA.names if name != "curve"]


def area_of(curve: Curve, quantity: Quantity) -> float:
    """The area under a deletion curve in the quantity's unit of area; of steering, degree x percent."""
    return float(areas(FRACTIONS, curve, curve[0], quantity=quantity).value)


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
        self.area = area_of(self.curve, self.quantity)
        if self.block is None:
            return
        self._block_sum += area_of(curve, self.quantity)
        if self.frames % self.block == 0:
            self._close_block(self._block_sum / self.block)
            self._block_sum = 0.0

    def half_width(self) -> float:
        """Of the mean area's 95 % interval, in its unit; NaN before the fifth block."""
        if self._blocks < 5:
            return math.nan
        variance = self._block_squares / (self._blocks - 1)
        return _students_t(self._blocks - 1) * math.sqrt(variance / self._blocks)

    def half_width_at_any_time(self) -> float:
        """As `half_width`, of an interval that approximately holds however often one looks; half as wide again or more.

        Someone who watches a drive looks after every block and stops at what pleases: of intervals that hold
        at one look each, several times as many as 5 % would leave the mean out at some look. The bound is asymptotic,
        for many independent blocks: skewed or correlated ones leave the mean out more often, see docs/replay.md.

        Source: Waudby-Smith et al. 2024, Time-uniform central limit theory, theorem 2.2, narrowest at eight blocks.

        Deviation: widened by Student's t over the normal, as the variance is that of few blocks.
        """
        if self._blocks < LEAST_BLOCKS:
            return math.nan
        return self.half_width() * widening(self._blocks)

    @property
    def blocks(self) -> int:
        """That are complete."""
        return self._blocks

    def _close_block(self, mean: float) -> None:
        """Welford's update."""
        self._blocks += 1
        from_old = mean - self._block_mean
        self._block_mean += from_old / self._blocks
        self._block_squares += from_old * (mean - self._block_mean)


@lru_cache(maxsize=4)
def _students_t(degrees: int) -> float:
    return float(stats.t.ppf(0.975, degrees))


def widening(looks: int, *, alpha: float = 0.05) -> float:
    """By how much an interval widens that has to hold at every look and not at one alone.

    Args:
        looks: the block after which it is looked at.
        alpha: how often the mean may be left out.

    Example:
        >>> round(widening(8), 2), round(widening(100), 2)
        (1.55, 1.68)
    """
    spread = (1 - 2 * math.log(alpha) + math.log(1 - 2 * math.log(alpha))) / LEAST_BLOCKS
    seen = looks * spread
    return math.sqrt(2 * (seen + 1) / seen * math.log(math.sqrt(seen + 1) / alpha)) / float(
        stats.norm.ppf(1 - alpha / 2)
    )


def verdict_block(block: int, control_every: int) -> int:
    """Frames in a block of the comparison with a control that is scored on some frames only.

    Args:
        block: of the method's frames.
        control_every: of how many frames one is scored in a random order too.

    Example:
        >>> verdict_block(100, 10), verdict_block(100, 200)
        (100, 200)
    """
    return BlockBootstrap(block=block).thinned(1 / control_every).block * control_every


class Means:
    """The running means of some methods and of the random order, by reference."""

    def __init__(
        self,
        *,
        methods: Sequence[str],
        quantity: Quantity,
        references: Sequence[str],
        control_every: int,
        block: int | None = None,
        block_s: float = math.nan,
    ) -> None:
        """Starts without a frame.

        Args:
            methods: whose explanations are added.
            control_every: of how many frames one is scored in a random order too.
            block: of a method's frames, for intervals; None where none are asked for.
            block_s: how long it lasts.
        """
        self.methods, self.quantity, self.references = tuple(methods), quantity, tuple(references)
        self.control_every = control_every
        sparse = None if block is None else verdict_block(block, control_every) // control_every
        keys = [(method, name) for method in methods for name in references]
        self._method = {key: RunningMean(block, quantity) for key in keys}
        self._control = {name: RunningMean(sparse, quantity) for name in references}
        self._difference = {key: RunningMean(sparse, quantity) for key in keys}
        """Of a method from the control, on the frames of both: areas are linear in the curve."""
        self._block, self._block_s = block, block_s

    def add(self, result: FrameResult) -> None:
        """Takes in the explanations of one frame."""
        for each in result.explanations:
            for name, curve in (each.curves or {}).items():
                self._method[each.method, name].add(curve)
            for name, curve in (each.random or {}).items():
                if each.method == self.methods[0]:  # The methods share the control.
                    self._control[name].add(curve)
                if each.curves is not None:
                    self._difference[each.method, name].add(each.curves[name] - curve)

    def of(self, method: str, reference: str) -> RunningMean:
        """The mean of a method or, by any other name, of the random order."""
        return self._method.get((method, reference), self._control[reference])

    def view(self, explanation: Explanation, reference: str) -> CurveView:
        """What the inset shows for an explanation that was added."""
        mean, random = self._method[explanation.method, reference], self._control[reference]
        unknown = np.full(len(FRACTIONS), np.nan)
        curve = unknown if explanation.curves is None else explanation.curves[reference]
        return CurveView(
            fractions=np.array(FRACTIONS),
            current=curve,
            mean=mean.curve,
            random_mean=random.curve,
            area=area_of(curve, mean.quantity),
            mean_area=mean.area,
            half_width=mean.half_width(),
            random_area=random.area,
            frames=mean.frames,
            verdict=self.so_far(explanation.method, reference),
        )

    def so_far(self, method: str, reference: str) -> SoFar | None:
        """What the drive has shown of a method up to now; None where there are no blocks or no control to go by."""
        mean, apart = self._method[method, reference], self._difference[method, reference]
        if self._block is None or method == CONTROL or not apart.frames:
            return None
        random, frame_s = self._control[reference].area, self._block_s / self._block
        return SoFar(
            # The method's mean of all its frames may lie on the other side of the control's of some of them.
            value=random + apart.area,
            random=random,
            difference=apart.area,
            half_width=apart.half_width_at_any_time(),
            driven_s=mean.frames * frame_s,
            block_s=verdict_block(self._block, self.control_every) * frame_s,
            higher_is_faithful=self.quantity.without_evidence == "rises",
        )


class RowWriter:
    """Writes per-frame rows in groups; made by `open_rows`."""

    def __init__(self, writer: pq.ParquetWriter, *, quantity: Quantity) -> None:
        self.quantity = quantity
        self.pictures: list[tuple[str, int, int]] = []
        """Drive, frame and the number of its picture in the video, of each frame that has rows."""
        self._writer = writer
        self._frames = 0
        self._rows: list[Rows] = []
        self._pending = 0

    def add(self, result: FrameResult) -> None:
        """Adds the rows of the next frame: each explanation, ordering and reference that was scored."""
        before = len(self._rows)
        scored = [each for each in result.explanations if each.curves is not None]
        for column in dict.fromkeys(each.output.column for each in scored):
            for rows in self._rows_of(result, [each for each in scored if each.output.column == column]):
                self._rows.append(rows)
                self._pending += len(rows["frame"])
        if len(self._rows) > before:
            self.pictures.append((result.seen.drive, result.seen.frame.index, self._frames))
        self._frames += 1
        if self._pending >= _ROWS_PER_GROUP:
            self.flush()

    def flush(self) -> None:
        """Writes what is pending as one row group."""
        if self._rows:
            columns = {name: np.concatenate([row[name] for row in self._rows]) for name in self._rows[0]}
            self._writer.write_table(arrow_table(columns))
            self._rows, self._pending = [], 0

    def _rows_of(self, result: FrameResult, scored: Sequence[Explanation]) -> Iterator[Rows]:
        """Those of each reference: of the methods that explain one output, then the control's where it was scored."""
        seen, output, random = result.seen, scored[0].output, scored[0].random
        place: dict[str, list[Any]] = {
            "drive": [seen.drive],
            "camera": [seen.camera],
            "segment": [seen.segment],
            "frame": [seen.frame.index],
            "time_ns": [seen.frame.time_ns],
            "key": [seen.key],
            "target": [output.name],
        }
        known = {
            "prediction": np.array([output.prediction]),
            "truth": np.array([output.truth]),
            "error": np.array([abs(output.prediction - output.truth)]),
        }
        methods, degenerate = (
            [each.method for each in scored],
            [is_degenerate(each.saliency) for each in scored],
        )
        if random is not None:
            methods, degenerate = [*methods, CONTROL], [*degenerate, False]
        for reference in scored[0].curves or ():
            curves = [each.curves[reference] for each in scored if each.curves is not None]
            together = np.stack(curves if random is None else [*curves, random[reference]])[None]
            found = areas(FRACTIONS, together, together[..., 0], quantity=self.quantity)
            # Against an unknown reference there is no curve.
            drawn = {"curve": together} if np.isfinite(together).all() else {}
            yield frame_rows(
                place,
                methods=methods,
                measure=MEASURE,
                reference=reference,
                known=known,
                columns={**found._asdict(), **drawn},
                degenerate=np.array([degenerate]),
            )


@contextmanager
def open_rows(path: Path, *, quantity: Quantity) -> Iterator[RowWriter]:
    """Opens a table of per-frame rows for writing; it appears under its name when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            replacing(path) as temporary,
            pq.ParquetWriter(temporary, PER_FRAME_SCHEMA, compression="zstd") as writer,
        ):
            rows = RowWriter(writer, quantity=quantity)
            yield rows
            rows.flush()
    finally:
        if not any(path.parent.iterdir()):  # Nothing came of it: no empty folder is left.
            path.parent.rmdir()


def summary_of(
    path: Path, means: Means, *, protocol: Mapping[str, Any], bootstrap: BlockBootstrap, fill: Fill
) -> dict[str, Any]:
    """What `results.json` says of the rows; see `evaluation.summary.summarise`.

    Reads the table without its curves, whose means are known already.

    Args:
        path: of the rows.
        means: of the same frames.
        bootstrap: its block counts the method's frames; the control has fewer of them.
        fill: what took a removed pixel's place.
    """
    orderings = dict.fromkeys([*means.methods, CONTROL])
    curves = {
        (MEASURE, reference, name): means.of(name, reference)
        for reference in means.references
        for name in orderings
    }
    return summarise(
        pq.read_table(path.absolute(), columns=_NUMBERS).to_pandas(),
        quantity=means.quantity,
        protocol=protocol,
        measures={MEASURE: build(MEASURE, fill=fill).describe(means.quantity)},
        methods=[name for name in orderings if name != CONTROL],
        controls=[CONTROL],
        bootstrap=bootstrap,
        # A method that is the random order itself is scored on every frame.
        every={} if means.methods == (CONTROL,) else {CONTROL: means.control_every},
        mean_curves={key: mean.curve.tolist() for key, mean in curves.items() if mean.frames},
    )
