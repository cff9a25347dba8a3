"""From judged frames to the video and the table: the stage behind the model, in a thread of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from data_prep.schema import Image
from driving_xai.replay.background import StageTimes
from driving_xai.replay.inset import AxisTop, CurveView
from driving_xai.replay.overlay import Instant, Overlay
from driving_xai.replay.record import ScoreLog, Tally
from driving_xai.replay.scoring import Judged
from driving_xai.replay.sink import VideoSink
from driving_xai.viz.heat import HeatScale

Show = Callable[[Image, Judged, CurveView | None], None]
"""Takes each picture with what it shows; its curve is None where nothing is scored."""

SEEN_AS = {"train": "seen in training", "val": "validation", "test": "held out", "gap": "next to training"}
"""How the picture says what a split of the model's own shards means."""


@dataclass(frozen=True, kw_only=True)
class Captions:
    """What the lower right corner says of a frame."""

    drive: str
    first_time_ns: int

    def of(self, judged: Judged) -> str:
        """Names the instant."""
        frame, split = judged.seen.frame, judged.seen.split
        drive = self.drive if len(self.drive) <= 20 else f"{self.drive[:18]}.."
        since_s = (frame.time_ns - self.first_time_ns) / 1e9
        parts = [drive, SEEN_AS.get(split, split), f"frame {frame.index}", f"{since_s:.2f} s"]
        return " · ".join(part for part in parts if part)


class Renderer:
    """Draws and stores each judged frame. It carries what must be stable over time: scales and means."""

    def __init__(
        self,
        overlay: Overlay,
        sink: VideoSink | None,
        *,
        captions: Captions,
        scale: HeatScale,
        weight: float,
        tally: Tally | None,
        log: ScoreLog | None,
        reference: str,
        show: Show | None,
        times: StageTimes,
    ) -> None:
        """Connects what draws with what stores.

        Args:
            overlay: draws.
            sink: takes the pictures; None where they are only shown.
            captions: of the instants.
            scale: of the first map.
            weight: of a new frame in the scales of the heat map and of the curve's axis.
            tally: means of the curves; None where nothing is scored.
            log: takes the curves; None where nothing is scored.
            reference: whose curve is drawn, `truth` or `clean`.
            show: called with each picture, before it is written; may wait.
            times: `draw` and `encode` are added to.
        """
        self._overlay, self._sink, self._captions = overlay, sink, captions
        self._scale, self._weight, self._axis = scale, weight, AxisTop()
        self.tally, self._log, self._reference = tally, log, reference
        self._show, self._times = show, times

    def __call__(self, coming: Future[Judged]) -> None:
        """Takes the next frame, once it is scored."""
        judged = coming.result()
        with self._times.measure("draw"):
            curve = self._curve(judged)
            picture = self._draw(judged, curve)
        if self._show is not None:
            self._show(picture, judged, curve)
        with self._times.measure("encode"):
            if self._sink is not None:
                self._sink.write(picture)
            if self._log is not None:
                self._log.add(judged)

    def _draw(self, judged: Judged, curve: CurveView | None) -> Image:
        self._scale = self._scale.after(judged.saliency, self._weight)
        if curve is not None:
            self._axis = self._axis.after(_peak(curve), self._weight)
        instant = Instant(
            image=judged.seen.frame.image,
            saliency=judged.saliency,
            predicted=judged.predicted,
            measured=judged.measured,
            speed_mps=judged.seen.frame.speed_mps,
            curve=curve,
            caption=self._captions.of(judged),
        )
        return self._overlay.draw(instant, self._scale, self._axis.top_deg)

    def _curve(self, judged: Judged) -> CurveView | None:
        if self.tally is None:
            return None
        self.tally.add(judged)
        return self.tally.view(judged, self._reference)


def _peak(curve: CurveView) -> float:
    values = np.concatenate([curve.current, curve.mean, curve.random_mean])
    known = values[np.isfinite(values)]
    return float(known.max()) if len(known) else math.nan
