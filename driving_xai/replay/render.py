"""From scored frames to the video and the table: the stage behind the model, in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

from data_prep.schema import Image
from driving_xai.replay.background import StageTimes
from driving_xai.replay.film import Film
from driving_xai.replay.inset import CurveView
from driving_xai.replay.predict import FrameResult
from driving_xai.replay.record import Means, RowWriter
from driving_xai.replay.sink import VideoSink
from driving_xai.replay.tasks.base import Painter

Show = Callable[[Image, FrameResult, Sequence[CurveView | None]], None]
"""Takes each picture with what it shows of the first method: a curve for each explanation, None where nothing is
scored."""


class Scene:
    """Draws and stores the frames of one model: a picture for each method."""

    def __init__(
        self,
        painters: Mapping[str, Painter],
        *,
        means: Means | None,
        rows: RowWriter | None,
        reference: str,
    ) -> None:
        """Connects what draws with what stores.

        Args:
            painters: by method.
            means: of the curves; None where nothing is scored.
            rows: takes the curves; None where none are stored.
            reference: whose curve is drawn.
        """
        self.painters, self.means, self.rows = painters, means, rows
        self._reference = reference

    def draw(self, result: FrameResult) -> tuple[list[Image], list[Sequence[CurveView | None]]]:
        """The next frame's picture of each method, and the curves in it."""
        if self.means is not None:
            self.means.add(result)
        pictures, curves = [], []
        for method, painter in self.painters.items():
            own = result.by(method)
            curves.append(self._curves(own))
            pictures.append(painter.draw(own, curves[-1]))
        return pictures, curves

    def _curves(self, result: FrameResult) -> Sequence[CurveView | None]:
        if self.means is None:
            return [None] * len(result.explanations)
        return [self.means.view(each, self._reference) for each in result.explanations]


class Renderer:
    """Draws and stores each frame, in order."""

    def __init__(
        self,
        scenes: Sequence[Scene],
        film: Film,
        sink: VideoSink | None,
        *,
        original: bool = False,
        show: Show | None,
        times: StageTimes,
    ) -> None:
        """Connects what draws with what takes the pictures.

        Args:
            scenes: of each model.
            film: puts their pictures together.
            sink: takes the film; None where it is only shown.
            original: whether the camera's frame comes first.
            show: called with each picture, before it is written; may wait.
            times: `draw` and `encode` are added to.
        """
        self.scenes, self.film, self.sink = scenes, film, sink
        self._original, self._show, self._times = original, show, times

    def __call__(self, coming: Sequence[Future[FrameResult]]) -> None:
        """Takes the next frame, as each model sees it, once it is scored."""
        results = [each.result() for each in coming]
        first = results[0]
        with self._times.measure("draw"):
            drawn = [scene.draw(result) for scene, result in zip(self.scenes, results, strict=True)]
            pictures = [picture for side, _ in drawn for picture in side]
            picture = self.film.compose([first.seen.frame.image, *pictures] if self._original else pictures)
        if self._show is not None:
            method = next(iter(self.scenes[0].painters))
            self._show(picture, first.by(method), drawn[0][1][0])
        with self._times.measure("encode"):
            if self.sink is not None:
                self.sink.write(picture, at_ns=first.seen.shown_at_ns, for_ns=first.seen.shown_for_ns)
            for scene, result in zip(self.scenes, results, strict=True):
                if scene.rows is not None:
                    scene.rows.add(result)
