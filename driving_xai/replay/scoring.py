"""One frame judged: predicted, explained, and its explanation scored by deletion beside a random order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float32, Float64, UInt8

from data_prep.records import Vehicle
from driving_xai.contracts import Explainer, FrameModel, Frames, RecurrentModel, Saliency, Scores, Target
from driving_xai.data import degrees_per_unit
from driving_xai.faithfulness.curve import area, deletion, rank
from driving_xai.faithfulness.measures import MEASURES, CurveMeasure, SteeringError
from driving_xai.faithfulness.perturb import Fill
from driving_xai.replay.background import StageTimes
from driving_xai.replay.instruments import Steering
from driving_xai.replay.source import SourceFrame

FRACTIONS = cast(CurveMeasure, MEASURES["deletion"]).fractions
"""Of pixels removed: 0 to 25 % in steps of 1 %."""
REFERENCES = ("truth", "clean")
"""What an edited frame's angle is compared with: the recorded one, or the unedited frame's."""


class Curves(NamedTuple):
    """One ordering's deletion curves, in degrees of steering wheel, by `REFERENCES`."""

    truth: Float64[np.ndarray, " V"]
    """NaN where the angle was not recorded."""
    clean: Float64[np.ndarray, " V"]

    def areas(self) -> tuple[float, float]:
        """Under both curves, in degree x percent."""
        return cast(tuple[float, float], tuple(curve_area(curve) for curve in self))


def curve_area(curve: Float64[np.ndarray, " V"]) -> float:
    """The area under a deletion curve, in degree x percent."""
    return 100 * float(area(FRACTIONS, torch.from_numpy(curve)))


class Judged(NamedTuple):
    """What came of one frame."""

    seen: SourceFrame
    saliency: Float32[np.ndarray, "h w"]
    predicted: Steering
    measured: Steering
    """Smoothed, as the label is; NaN where unknown."""
    explained: Curves | None
    """Of the method's ordering; None where the frame was not scored."""
    random: Curves | None
    """Of a random ordering; None where it was not scored."""


@dataclass(frozen=True, kw_only=True)
class Judging:
    """What every frame is judged by."""

    method: Explainer
    control: Explainer | None
    """The random order; None where it is the method itself."""
    target: Target
    fill: Fill
    score: bool
    control_every: int
    """Scores the random order on every n-th frame: it costs as much as the method's."""
    seed: int
    """Of ties between equal saliencies."""
    vehicle: Vehicle


class Judge:
    """Walks a recurrent model along a drive and judges each frame with the state before it."""

    def __init__(
        self, model: RecurrentModel[Any], how: Judging, *, device: torch.device, times: StageTimes
    ) -> None:
        self._model, self._how, self._device, self._times = model, how, device, times
        self._state: Any = None
        self._scored = 0

    def __call__(self, seen: SourceFrame, pixels: UInt8[np.ndarray, "h w 3"]) -> Judged:
        """Judges the next frame.

        Args:
            seen: the source's frame.
            pixels: the same, cut to the model's input.

        Raises:
            ValueError: the method's map is not finite.
        """
        frames = torch.from_numpy(pixels).to(self._device).permute(2, 0, 1)[None].float() / 255
        past = None if seen.begins else self._state
        with self._times.measure("model"), torch.no_grad():
            clean, _, self._state = self._model.step(frames, past)
            scale = float(degrees_per_unit(np.array(seen.speed_mps_smoothed), self._how.vehicle))
            predicted_per_m = float(clean[0, 0])
        view, truth_deg = self._model.at(past), math.degrees(seen.steering_wheel_rad_smoothed)
        with self._times.measure("explain"):
            saliency = self._how.method(view, frames, self._how.target)
        explained = random = None
        # The first frame of a run makes the state itself: it has no past to keep clean.
        if self._how.score and not seen.begins:
            with self._times.measure("score"):
                explained, random = self._score(view, frames, saliency, clean, scale, truth_deg)
        return Judged(
            seen,
            saliency[0].cpu().numpy().astype(np.float32, copy=False),
            Steering(predicted_per_m * scale, predicted_per_m),
            Steering(truth_deg, truth_deg / scale),
            explained,
            random,
        )

    def _score(
        self,
        view: FrameModel,
        frames: Frames,
        saliency: Saliency,
        clean: Scores,
        degrees_per_unit: float,
        truth_deg: float,
    ) -> tuple[Curves, Curves | None]:
        how = self._how
        maps = [saliency]
        if how.control is not None and self._scored % how.control_every == 0:
            maps.append(how.control(view, frames, how.target))
        self._scored += 1
        # A new generator of the same seed: a map's order does not depend on the frames before it.
        ranks = rank(torch.cat(maps), torch.Generator().manual_seed(how.seed))
        scores = deletion(view, frames, ranks[None], FRACTIONS, fill=how.fill, clean=clean).double()
        scale = torch.tensor([degrees_per_unit], dtype=torch.float64, device=scores.device)
        curves = [
            SteeringError(degrees_per_unit=scale, reference_deg=reference)(scores)[0].cpu().numpy()
            for reference in (torch.full_like(scale, truth_deg), clean[:, 0].double() * scale)
        ]
        found = [Curves(truth, against_clean) for truth, against_clean in zip(*curves, strict=True)]
        return found[0], found[1] if len(found) == 2 else None
