"""Replays of actions and classes: each predicted output with its probability, its map and its curve."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float64
from torch import Tensor

from data_prep.schema import Image
from driving_xai.checkpoint import Checkpoint
from driving_xai.evaluation.image_data import ImageData
from driving_xai.metrics.quantities import PROBABILITY
from driving_xai.replay.config import Layout, ReplayConfig
from driving_xai.replay.frames import FrameSource, SourceFrame
from driving_xai.replay.inset import CurveView
from driving_xai.replay.model_input import ModelInput
from driving_xai.replay.predict import FRACTIONS, Curves, FrameResult, Output, Prediction
from driving_xai.replay.tasks.action_view import (
    MOST_OUTPUTS,
    ActionInstant,
    ActionView,
    ActionViewConfig,
    Shown,
)
from driving_xai.replay.tasks.base import SEEN_AS, Legend, Painter, Task
from driving_xai.targets import output, probabilities
from driving_xai.types import Scores
from driving_xai.viz.heat import HeatScale

_LONGEST = 48
"""Letters of a caption."""


class ActionTask(Task):
    """Several labels that may be true at once, or one class among all, played by their probabilities."""

    name = "actions and classes"
    only = frozenset({"cycle_s"})
    layouts = ("grid", "cycle", "portrait", "compact")
    takes_images = True
    quantity = PROBABILITY
    references = ("target",)
    explains_every_frame = False
    legend = Legend(
        predicted="predicted",
        truth="label",
        areas="Areas are mean probabilities as pixels are removed: lower is more faithful, and has to be lower "
        "than the random order's (dashed).",
        decimals=2,
    )
    output_unit = ""

    def __init__(
        self, checkpoint: Checkpoint, frames: FrameSource, cut: ModelInput, config: ReplayConfig
    ) -> None:
        """See `Task`."""
        super().__init__(checkpoint, frames, cut, config)
        self._outputs = checkpoint.model.outputs
        self.thresholds = np.array(checkpoint.thresholds)
        """Probabilities from which an output counts as predicted; of several labels only."""

    @property
    def reference(self) -> str:
        return "target"

    @property
    def protocol(self) -> Mapping[str, Any]:
        return {
            "edited": ImageData.protocol["edited"],
            "explained": "each output whose probability is over its threshold",
            "references": {"target": ImageData.protocol["references"]["target"]},
        }

    def read(self, clean: Scores, seen: SourceFrame) -> Prediction:
        chances = probabilities(clean, self._outputs)[0].double().cpu().numpy()
        names, labels = self._outputs.names, self._labels(seen)
        explained = [
            Output(column, names[column], output(column), float(chances[column]), float(labels[column]))
            for column in self._predicted(chances)
        ]
        return Prediction(chances, explained)

    def _labels(self, seen: SourceFrame) -> Float64[np.ndarray, " K"]:
        return np.full(len(self._outputs.names), np.nan) if seen.labels is None else seen.labels

    def _predicted(self, chances: Float64[np.ndarray, " K"]) -> list[int]:
        if self._outputs.kind == "multilabel":
            return np.flatnonzero(chances > self.thresholds).tolist()
        return [int(chances.argmax())]

    def curves(self, scores: Float[Tensor, "V K"], output: Output, prediction: Any, clean: Scores) -> Curves:
        return {
            "target": probabilities(scores, self._outputs)[:, output.column].double().cpu().numpy(),
        }

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(self._outputs.names)

    def read_outputs(self, scores: Float[Tensor, "V K"], prediction: Any) -> Float64[np.ndarray, "V K"]:
        return probabilities(scores, self._outputs).double().cpu().numpy()

    def painter(
        self, first: FrameResult, provenance: str, *, layout: Layout, room: tuple[int, int] | None
    ) -> Painter:
        height, width = first.seen.frame.image.shape[:2]
        config = ActionViewConfig(
            names=self._outputs.names,
            thresholds=self.thresholds,
            layout=layout,
            region=self.cut.region(height, width, cut=self.frames.cropped),
            provenance=provenance,
            last_fraction=FRACTIONS[-1],
            look=self.config.look,
        )
        return ActionPainter(ActionView(height=height, width=width, config=config, room=room), self)

    def instant(self, result: FrameResult, shown: Mapping[int, Shown], number: int) -> ActionInstant:
        """What the picture with this number shows of a frame."""
        columns = list(shown)
        turn = int(number / float(self.frames.frame_rate) / self.config.cycle_s)
        return ActionInstant(
            image=result.seen.frame.image,
            probability=result.prediction,
            labels=self._labels(result.seen),
            shown=shown,
            columns=self._drawn(result),
            selected=columns[turn % len(columns)] if columns else None,
            caption=caption_of(result.seen),
        )

    def _drawn(self, result: FrameResult) -> Sequence[int]:
        """All outputs in their order; of many, the most probable ones, the explained ones first."""
        count = len(self._outputs.names)
        if count <= MOST_OUTPUTS:
            return range(count)
        explained = [each.output.column for each in result.explanations]
        others = [column for column in np.argsort(-result.prediction).tolist() if column not in explained]
        return [*explained, *others][:MOST_OUTPUTS]

    def in_words(self, result: FrameResult) -> tuple[str, str | None]:
        said = ", ".join(f"{each.output.name} {each.output.prediction:.2f}" for each in result.explanations)
        labels = self._labels(result.seen)
        if np.isnan(labels).all():
            return said or "none", None
        true = [name for name, label in zip(self._outputs.names, labels, strict=True) if label == 1]
        return said or "none", ", ".join(true) or "none"


class ActionPainter:
    """Draws frames with a tile for each output, or one; where frames follow one another, scales do too."""

    def __init__(self, view: ActionView, task: ActionTask) -> None:
        self._view, self._task = view, task
        self._follow = task.frames.follow
        self._weight = 1 - math.exp(-1 / (task.config.heat_s * float(task.frames.frame_rate)))
        self._scales: dict[int, HeatScale] = {}
        self._drawn = 0
        self.height, self.width = view.height, view.width

    def draw(self, result: FrameResult, curves: Sequence[CurveView | None]) -> Image:
        """See `Painter`."""
        shown = {}
        for each, curve in zip(result.explanations, curves, strict=True):
            column, saliency = each.output.column, each.saliency
            known = self._scales.get(column) if self._follow else None
            scale = HeatScale.first(saliency) if known is None else known.after(saliency, self._weight)
            self._scales[column] = scale
            shown[column] = Shown(saliency, scale, curve)
        instant = self._task.instant(result, shown, self._drawn)
        self._drawn += 1
        return self._view.draw(instant)


def caption_of(seen: SourceFrame) -> str:
    """What the lower right corner says of a frame."""
    what = seen.key or f"{seen.drive} frame {seen.frame.index}"
    short = what if len(what) <= _LONGEST else f"{what[: _LONGEST - 2]}.."
    return " · ".join(part for part in (SEEN_AS.get(seen.split, seen.split), short) if part)
