"""Replays of steering models: the wheel's angle, its error as evidence is removed, the projected paths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from data_prep.schema import Image
from driving_xai.checkpoint import Checkpoint
from driving_xai.data.drives import degrees_per_unit
from driving_xai.errors import DataError, UnsupportedModelError
from driving_xai.evaluation.drive_data import DriveData
from driving_xai.metrics.quantities import STEERING_ERROR, SteeringError
from driving_xai.models.declared import is_recurrent
from driving_xai.replay.config import Layout, ReplayConfig
from driving_xai.replay.frames import FrameSource, SourceFrame
from driving_xai.replay.inset import AxisTop, CurveView
from driving_xai.replay.model_input import ModelInput
from driving_xai.replay.predict import FRACTIONS, Curves, FrameResult, Output, Prediction
from driving_xai.replay.tasks.base import SEEN_AS, Legend, Painter, Task
from driving_xai.replay.tasks.instruments import CAMERAS, Camera, Steering
from driving_xai.replay.tasks.steering_view import Instant, Overlay, OverlayConfig
from driving_xai.targets import by_name
from driving_xai.types import Scores
from driving_xai.viz.heat import HeatScale


class Steered(NamedTuple):
    """How a frame is steered."""

    predicted: Steering
    measured: Steering
    """Smoothed, as the label is; NaN where unknown."""
    degrees_per_unit: float
    """Of inverse turning radius, at the frame's speed."""


class SteeringTask(Task):
    """A regression of the inverse turning radius, played as the angle of the steering wheel."""

    name = "steering"
    only = frozenset({"target", "reference", "path", "horizon"})
    layouts = ("overlay", "portrait", "compact")
    takes_images = False
    quantity = STEERING_ERROR
    references = ("truth", "clean")
    explains_every_frame = True
    legend = Legend(
        predicted="model",
        truth="driver",
        areas="Areas in degrees × percent of pixels: higher is more faithful, and has to be higher than the "
        "random order's (dashed).",
        decimals=0,
    )
    output_unit = "°"

    def __init__(
        self, checkpoint: Checkpoint, frames: FrameSource, cut: ModelInput, config: ReplayConfig
    ) -> None:
        """See `Task`.

        Raises:
            UnsupportedModelError: the model's output is in another unit than 1/m.
            DataError: the target is unknown, or the driver's steering is and the curve is against it.
        """
        super().__init__(checkpoint, frames, cut, config)
        outputs = checkpoint.model.outputs
        if outputs.unit not in (None, "1/m"):
            raise UnsupportedModelError(
                f"the model's output is in {outputs.unit!r}; expected the inverse turning radius in 1/m, positive "
                "to the left; convert it inside the model"
            )
        if config.reference == "truth" and not frames.labelled:
            raise DataError(
                f"{frames.name}: does not say how the car was steered; draw the curve against the unmodified "
                "prediction (the default), or give a recording"
            )
        self._rule = by_name(config.target, outputs)

    @property
    def reference(self) -> str:
        return self.config.reference

    @property
    def protocol(self) -> Mapping[str, Any]:
        references = {
            "truth": "the recorded angle, smoothed",
            "clean": DriveData.protocol["references"]["clean"],
        }
        if not is_recurrent(self.checkpoint.model):
            return {"edited": "the frame", "references": references}
        return {
            "edited": DriveData.protocol["edited"],
            "left_out": "the first frame of each unbroken run, which has no past",
            "references": references,
        }

    @property
    def notes(self) -> Sequence[str]:
        frames = self.frames
        return [f"wheel {frames.lead_s:g} s ahead"] if frames.lead_s and frames.labelled else []

    def read(self, clean: Scores, seen: SourceFrame) -> Prediction:
        per_m = float(clean[0, 0])
        scale = float(degrees_per_unit(np.array(seen.speed_mps_smoothed), self.frames.vehicle))
        truth_deg = math.degrees(seen.steering_wheel_rad_smoothed)
        steered = Steered(Steering(per_m * scale, per_m), Steering(truth_deg, truth_deg / scale), scale)
        output = Output(0, self.config.target, self._rule(clean), steered.predicted.angle_deg, truth_deg)
        return Prediction(steered, (output,))

    def curves(
        self, scores: Float[Tensor, "V K"], output: Output, prediction: Steered, clean: Scores
    ) -> Curves:
        device = scores.device
        scale = torch.tensor([prediction.degrees_per_unit], dtype=torch.float64, device=device)
        compared = {
            "truth": torch.full_like(scale, prediction.measured.angle_deg),
            "clean": clean[:, 0].double() * scale,
        }
        return {
            name: SteeringError(degrees_per_unit=scale, reference_deg=angle)(scores[None])[0].cpu().numpy()
            for name, angle in compared.items()
        }

    @property
    def output_names(self) -> tuple[str, ...]:
        return ("steering wheel",)

    def read_outputs(self, scores: Float[Tensor, "V K"], prediction: Steered) -> Float64[np.ndarray, "V K"]:
        return scores[:, :1].double().cpu().numpy() * prediction.degrees_per_unit

    def painter(
        self, first: FrameResult, provenance: str, *, layout: Layout, room: tuple[int, int] | None
    ) -> Painter:
        config, frames = self.config, self.frames
        height, width = first.seen.frame.image.shape[:2]
        camera = CAMERAS.get(frames.reader)
        if config.horizon is not None:
            camera = replace(camera or Camera(), horizon=config.horizon)
        scale = HeatScale.first(first.explanations[0].saliency)
        what = "error" if self.reference == "truth" else "change"
        overlay = Overlay(
            height=height,
            width=width,
            geometry=self.cut.geometry,
            cropped=frames.cropped,
            room=room,
            config=OverlayConfig(
                labelled=frames.labelled,
                speed_known=frames.speed_known,
                signed=scale.signed,
                provenance=provenance,
                camera=camera if config.path else None,
                curve_title=f"Steering {what} as evidence is removed",
                last_fraction=FRACTIONS[-1],
                look=config.look,
                layout=layout,
                scored=config.score,
            ),
        )
        weight = 1 - math.exp(-1 / float(config.heat_s * frames.frame_rate))
        return SteeringPainter(overlay, scale, weight)

    def in_words(self, result: FrameResult) -> tuple[str, str | None]:
        predicted, measured = (
            each.angle_deg for each in (result.prediction.predicted, result.prediction.measured)
        )
        return _degrees(predicted), None if math.isnan(measured) else _degrees(measured)


class SteeringPainter:
    """Draws frames with their wheel, paths and curve; the heat's scale and the curve's axis follow slowly."""

    def __init__(self, overlay: Overlay, scale: HeatScale, weight: float) -> None:
        """`weight` is that of a new frame in the scales; `scale` is the first map's."""
        self._overlay, self._scale, self._weight = overlay, scale, weight
        self._axis = AxisTop()
        self.height, self.width = overlay.height, overlay.width

    def draw(self, result: FrameResult, curves: Sequence[CurveView | None]) -> Image:
        """See `Painter`."""
        (explanation,), (curve,) = result.explanations, curves
        self._scale = self._scale.after(explanation.saliency, self._weight)
        if curve is not None:
            self._axis = self._axis.after(_peak(curve), self._weight)
        instant = Instant(
            image=result.seen.frame.image,
            saliency=explanation.saliency,
            predicted=result.prediction.predicted,
            measured=result.prediction.measured,
            speed_mps=result.seen.frame.speed_mps,
            curve=curve,
            caption=caption_of(result.seen),
        )
        return self._overlay.draw(instant, self._scale, self._axis.top_deg)


def caption_of(seen: SourceFrame) -> str:
    """What the lower right corner says of a frame of a drive."""
    drive = seen.drive if len(seen.drive) <= 20 else f"{seen.drive[:18]}.."
    parts = [drive, SEEN_AS.get(seen.split, seen.split), f"frame {seen.frame.index}", f"{seen.time_s:.2f} s"]
    return " · ".join(part for part in parts if part)


def _peak(curve: CurveView) -> float:
    values = np.concatenate([curve.current, curve.mean, curve.random_mean])
    known = values[np.isfinite(values)]
    return float(known.max()) if len(known) else math.nan


def _degrees(angle_deg: float) -> str:
    return f"{angle_deg:.1f}°".replace("-", "−")
