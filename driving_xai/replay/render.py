"""From scored frames to the video and the table: the stage behind the model, in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future

from data_prep.schema import Image
from driving_xai.replay.background import StageTimes
from driving_xai.replay.inset import CurveView
from driving_xai.replay.predict import FrameResult
from driving_xai.replay.record import Means, RowWriter
from driving_xai.replay.sink import VideoSink
from driving_xai.replay.tasks.base import Painter

Show = Callable[[Image, FrameResult, Sequence[CurveView | None]], None]
"""Takes each picture with what it shows: a curve for each explanation, None where nothing is scored."""


class Renderer:
    """Draws and stores each frame, in order."""

    def __init__(
        self,
        painter: Painter,
        sink: VideoSink | None,
        *,
        means: Means | None,
        rows: RowWriter | None,
        reference: str,
        show: Show | None,
        times: StageTimes,
    ) -> None:
        """Connects what draws with what stores.

        Args:
            painter: draws.
            sink: takes the pictures; None where they are only shown.
            means: of the curves; None where nothing is scored.
            rows: takes the curves; None where none are stored.
            reference: whose curve is drawn.
            show: called with each picture, before it is written; may wait.
            times: `draw` and `encode` are added to.
        """
        self._painter, self.sink = painter, sink
        self.means, self.rows, self._reference = means, rows, reference
        self._show, self._times = show, times

    def __call__(self, coming: Future[FrameResult]) -> None:
        """Takes the next frame, once it is scored."""
        result = coming.result()
        with self._times.measure("draw"):
            curves = self._curves(result)
            picture = self._painter.draw(result, curves)
        if self._show is not None:
            self._show(picture, result, curves)
        with self._times.measure("encode"):
            if self.sink is not None:
                self.sink.write(picture, at_ns=result.seen.shown_at_ns, for_ns=result.seen.shown_for_ns)
            if self.rows is not None:
                self.rows.add(result)

    def _curves(self, result: FrameResult) -> Sequence[CurveView | None]:
        if self.means is None:
            return [None] * len(result.explanations)
        self.means.add(result)
        return [self.means.view(each, self._reference) for each in result.explanations]
