"""One frame judged: predicted, explained, and its explanation scored by deletion beside a random order."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float32, Float64, UInt8
from torch import nn

from data_prep.schema import Vehicle
from driving_xai.data.drives import degrees_per_unit
from driving_xai.metrics.curves import deletion, rank
from driving_xai.metrics.faithfulness import DELETED
from driving_xai.metrics.quantities import STEERING_ERROR, Quantity, SteeringError
from driving_xai.perturb import Fill
from driving_xai.replay.allocator import keep_freed_memory, release_fragments
from driving_xai.replay.background import StageTimes
from driving_xai.replay.instruments import Steering
from driving_xai.replay.source import SourceFrame
from driving_xai.targets import TargetRule
from driving_xai.types import (
    Attention,
    AttentiveFrameModel,
    Explainer,
    FrameModel,
    Frames,
    RecurrentModel,
    Saliency,
    Scores,
)

FRACTIONS = DELETED
"""Of pixels removed: 0 to 25 % in steps of 1 %."""
_FRAMES_PER_TRIM = 100
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


def curve_area(curve: Float64[np.ndarray, " V"], quantity: Quantity = STEERING_ERROR) -> float:
    """The area under a deletion curve in the quantity's unit of area; of steering, degree x percent."""
    # As `faithfulness.curve.area`, without its tensors: the picture asks for several areas a frame.
    return quantity.area_factor(FRACTIONS[-1] - FRACTIONS[0]) * float(np.trapezoid(curve, FRACTIONS))


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


Submit = Callable[["Look"], Future[Judged]]


class Look(NamedTuple):
    """A frame as the model saw it: what its scores are computed from."""

    judged: Judged
    """Not scored yet."""
    past: Any
    """The state before the frame; None where a run begins."""
    frames: Frames
    saliency: Saliency
    clean: Scores
    degrees_per_unit: float
    with_control: bool


class Judge:
    """Walks a recurrent model along a drive: predicts and explains each frame, in order."""

    def __init__(
        self,
        model: RecurrentModel[Any],
        method: Explainer,
        *,
        rule: TargetRule,
        vehicle: Vehicle,
        control_every: int,
        device: torch.device,
        times: StageTimes,
    ) -> None:
        """Stands at the start of a drive.

        Args:
            model: is called from one thread only, so methods may hook its layers.
            method: explains.
            rule: what is explained.
            vehicle: turns curvatures into angles.
            control_every: every n-th frame is to be scored in a random order too; 0 for none.
            device: of the model.
            times: `model` and `explain` are added to.
        """
        self._model, self._method, self._rule = model, method, rule
        self._vehicle, self._control_every = vehicle, control_every
        self._device, self._times = device, times
        self._state: Any = None
        self._with_past = 0

    def __call__(self, seen: SourceFrame, pixels: UInt8[np.ndarray, "h w 3"]) -> Look:
        """Judges the next frame.

        Args:
            seen: the source's frame.
            pixels: the same, cut to the model's input.

        Raises:
            ValueError: the method's map is not finite.
        """
        past = None if seen.begins else self._state
        with self._times.measure("model"), torch.no_grad():
            frames = self._input(pixels)
            clean, attention, self._state = self._model.step(frames, past)
            per_m = float(clean[0, 0])
        with self._times.measure("explain"):
            view = _Seen(self._model.at(past), frames, attention)
            saliency = self._method(view, frames, self._rule(clean))
            shown = saliency[0].detach().cpu().numpy().astype(np.float32, copy=False)
        if not np.isfinite(shown).all():
            raise ValueError(f"frame {seen.frame.index}: its map has NaN or infinity; check the weights")
        scale = float(degrees_per_unit(np.array(seen.speed_mps_smoothed), self._vehicle))
        truth_deg = math.degrees(seen.steering_wheel_rad_smoothed)
        predicted, measured = Steering(per_m * scale, per_m), Steering(truth_deg, truth_deg / scale)
        judged = Judged(seen, shown, predicted, measured, None, None)
        return Look(judged, past, frames, saliency, clean, scale, self._control_is_due(seen.begins))

    def remember(self, seen: SourceFrame, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
        """Takes a frame into the model's memory without judging it."""
        past = None if seen.begins else self._state
        with self._times.measure("model"), torch.no_grad():
            _, _, self._state = self._model.step(self._input(pixels), past)

    def _input(self, pixels: UInt8[np.ndarray, "h w 3"]) -> Frames:
        return torch.from_numpy(pixels).to(self._device).permute(2, 0, 1)[None].float() / 255

    def _control_is_due(self, begins: bool) -> bool:
        if begins or not self._control_every:
            return False
        self._with_past += 1
        return (self._with_past - 1) % self._control_every == 0


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Scores a frame's explanation. It keeps nothing, so that frames may be scored side by side."""

    model: RecurrentModel[Any]
    control: Explainer
    """The random order."""
    rule: TargetRule
    """What is explained."""
    fill: Fill
    seed: int
    """Of ties between equal saliencies."""
    times: StageTimes
    """`score` is added to."""

    def __call__(self, look: Look) -> Judged:
        """The frame with its curves.

        The first frame of a run is not scored: it makes the state itself, so no clean past is left.
        """
        if look.past is None:
            return look.judged
        with self.times.measure("score"):
            found = self._curves(look)
        return look.judged._replace(explained=found[0], random=found[1] if look.with_control else None)

    def _curves(self, look: Look) -> list[Curves]:
        view, maps = self.model.at(look.past), [look.saliency]
        if look.with_control:
            maps.append(self.control(view, look.frames, self.rule(look.clean)))
        # A new generator of the same seed: a map's order does not depend on the frames before it.
        ranks = rank(torch.cat(maps), torch.Generator().manual_seed(self.seed))
        scores = deletion(view, look.frames, ranks[None], FRACTIONS, fill=self.fill, clean=look.clean)
        scale = torch.tensor([look.degrees_per_unit], dtype=torch.float64, device=scores.device)
        truth_deg = torch.full_like(scale, look.judged.measured.angle_deg)
        curves = [
            SteeringError(degrees_per_unit=scale, reference_deg=reference)(scores)[0].cpu().numpy()
            for reference in (truth_deg, look.clean[:, 0].double() * scale)
        ]
        return [Curves(*both) for both in zip(*curves, strict=True)]


class _Seen:
    """The view of an instant whose attention is known from the step that was just taken."""

    def __init__(self, instant: FrameModel, frames: Frames, attention: Attention) -> None:
        self._instant, self._frames, self._attention = instant, frames, attention
        self.outputs = instant.outputs

    def __call__(self, frames: Frames) -> Scores:
        return self._instant(frames)

    def attention(self, frames: Frames) -> Attention:
        if frames is self._frames:
            return self._attention
        return cast(AttentiveFrameModel, self._instant).attention(frames)


def twin(model: nn.Module) -> nn.Module:
    """A model of the same weights, not copied, whose hooks are its own.

    Methods hook layers of the model that they explain; scores are computed meanwhile in other threads.
    """
    shared = {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared)


@contextmanager
def scoring_side_by_side(score: Callable[[Look], Judged], workers: int) -> Iterator[Submit]:
    """Yields a function that hands a frame to one of some threads and returns its future.

    Each thread computes by itself: the operations of a small model are too short to be divided, and
    wait for each other where cores are busy with decoding and encoding. The caller's own operations
    keep the threads that are left, one at least.
    """
    keep_freed_memory()
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(
        workers, thread_name_prefix="replay-score", initializer=torch.set_num_threads, initargs=(1,)
    )
    submitted = itertools.count(1)

    def submit(look: Look) -> Future[Judged]:
        if next(submitted) % _FRAMES_PER_TRIM == 0:
            release_fragments()
        return pool.submit(score, look)

    try:
        torch.set_num_threads(max(1, before - workers))
        yield submit
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)
