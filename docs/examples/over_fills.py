"""Integrated gradients from several baselines, as an explainer of one's own: an equal match for removal pursuit.

    driving-xai score MODEL SHARDS --fill black,mean,blur \
        --method removal-pursuit,docs.examples.over_fills:HeavierSideOverFills -o scores
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from driving_xai.explain.base import Explainer
from driving_xai.explain.gradient import HeavierSide, IntegratedGradients
from driving_xai.perturb import Fill
from driving_xai.types import FrameModel, Frames, Saliency, Target


@dataclass(frozen=True, kw_only=True)
class IntegratedGradientsOverFills(Explainer):
    """Attributions from several baselines added, each divided by its mean size, as removal pursuit adds its estimates."""

    fills: tuple[Fill, ...] = ("black", "mean", "blur")
    steps: int = 50
    batch_size: int = 32

    def _explain(self, model: FrameModel, frames: Frames, target: Target) -> Saliency:
        total = torch.zeros_like(frames[:, 0])
        for fill in self.fills:
            one = IntegratedGradients(fill=fill, steps=self.steps, batch_size=self.batch_size)
            found = one(model, frames, target)
            total += found / found.abs().mean((1, 2), keepdim=True).clamp_min(torch.finfo(found.dtype).tiny)
        return total


@dataclass(frozen=True, kw_only=True)
class HeavierSideOverFills(HeavierSide):
    """The side of these attributions that weighs more: removal pursuit chooses a direction too."""

    signed: Explainer = field(default_factory=IntegratedGradientsOverFills)
