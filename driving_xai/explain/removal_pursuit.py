"""Removal pursuit: an order of regions found greedily on the frame as it is edited so far, under several fills."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from driving_xai.errors import OptionError
from driving_xai.explain.base import require_at_least
from driving_xai.explain.capture import input_gradient
from driving_xai.explain.gradient import PixelGradients
from driving_xai.explain.variants import ReferenceScores
from driving_xai.perturb import Fill, batches, blank
from driving_xai.types import FrameModel, Frames, Saliency, Target

Direction = Literal["either", "down", "up"]
"""Which way removal moves the target; `either` is the way in which a frame's target moves further."""
_SIGNS = {"either": (-1.0, 1.0), "down": (-1.0,), "up": (1.0,)}


@dataclass(frozen=True, kw_only=True)
class RemovalPursuit(PixelGradients):
    """An order of regions, each chosen on the frame from which those before it have been removed.

    With x_f the frame edited so far under fill f, x'_f the fill and s = -1 (down) or +1 (up), a step takes
    the regions left with the largest

        e = s sum_f d_f / mean |d_f|,  d_f = sum_channels dy/dx_f (x'_f - x_f), its mean over the region

    where d_f estimates to first order what the removal of a pixel does to the target. The first step's gradient
    serves all fills and directions, for nothing is removed yet. The direction is kept whose removals moved the
    target further before step `trial_steps`, in the mean over the fills. The map is 1 for the first region and
    falls by its place in the order. The regions left after the last step speak for the other direction or for little;
    they follow by the sum of |d_f| / mean |d_f| over fills and steps, averaged over 3 x 3 regions, see `rest`.

    It optimises what deletion measures: an order that wins there may be adversarial, see docs/methods.md.

    Deviation: ours, not from a paper.

    Args:
        steps: gradients one after another, 1 or more.
        share: of the frame that all steps together remove, over 0 up to 1.
        fills: what takes the place of removed pixels, see `perturb.blank`; their estimates are added.
        direction: which way removal should move the target; for a class, `down` asks what speaks for it.
        trial_steps: steps after which one of two directions is kept, once a region is removed; at least 1 and below
            `steps`.
        region_px: side of the square regions that are removed whole; 1 for pixels.
        rest: how the regions left are ordered: by size, as above, or by the last step's estimates, which puts last what
            speaks most for the other direction.
        seed: of the order of equal estimates.
        batch_size: most edited frames in one pass, see `perturb.batches`.

    Raises:
        ValueError: an option is out of range.
        OptionError: when it is called, regions are too few to choose a direction by.

    Example:
        >>> from driving_xai.models.steering import SteeringConfig, SteeringModel
        >>> from driving_xai.targets import magnitude
        >>> model = SteeringModel(SteeringConfig(hidden_size=8)).eval()
        >>> maps = RemovalPursuit(steps=3)(model.at(None), torch.rand(1, 3, 80, 160), magnitude)
        >>> maps.shape, float(maps.max())
        (torch.Size([1, 80, 160]), 1.0)
    """

    steps: int = 12
    share: float = 0.25
    fills: tuple[Fill, ...] = ("black", "mean", "blur")
    direction: Direction = "either"
    trial_steps: int = 2
    region_px: int = 1
    rest: Literal["size", "estimate"] = "size"
    seed: int = 0
    batch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(
            {
                "steps": (self.steps, 1),
                "region_px": (self.region_px, 1),
                "trial_steps": (self.trial_steps, 1),
                "batch_size": (self.batch_size, 1),
            }
        )
        if not 0 < self.share <= 1:
            raise ValueError(f"got share {self.share}; expected over 0 up to 1")
        if not self.fills or len({*self.fills}) < len(self.fills):
            raise ValueError(
                f"got fills {self.fills}; expected one or more of {', '.join(get_args(Fill))}, each once"
            )
        if self.direction == "either" and self.trial_steps >= self.steps:
            raise ValueError(
                f"got trial_steps {self.trial_steps} of {self.steps} steps; "
                "expected fewer, or a direction of down or up"
            )

    def _explain(self, model: FrameModel, frames: Frames, target: Target) -> Saliency:
        clean = ReferenceScores(model, frames, target)
        fills = torch.stack([blank(frames, fill) for fill in self.fills], 1)
        signs = frames.new_tensor(_SIGNS[self.direction]).expand(len(frames), -1)
        rows, columns = (-(-pixels // self.region_px) for pixels in frames.shape[2:])
        regions = rows * columns
        drawn = torch.randperm(regions, generator=torch.Generator().manual_seed(self.seed)).to(frames.device)
        places = drawn.new_full((*signs.shape, regions), regions)
        sizes = frames.new_zeros(*signs.shape, rows, columns)
        counts = [round(self.share * regions * step / self.steps) for step in range(self.steps + 1)]
        if signs.shape[1] > 1 and not counts[-2]:
            raise OptionError(
                f"{counts[-1]} of {regions} regions of {self.region_px} px are too few to remove in {self.steps} steps and choose "
                "a direction by; take smaller regions, a larger share, or a direction of down or up"
            )
        for step, (start, end) in enumerate(pairwise(counts)):
            removed = None
            if start:  # Known here: asking the places would wait for the device.
                removed = self._on_pixels((places < regions).view(*signs.shape, rows, columns), frames)
            looked = _look(clean, frames, fills, removed, self.batch_size)
            # Of large regions the first steps may remove none, and say nothing of a direction.
            if start and step >= self.trial_steps and signs.shape[1] > 1:
                kept = _further(clean, signs, looked)
                signs, places, sizes = signs[kept], places[kept], sizes[kept]
                looked = _Look(*(part[kept] if part.shape[1] > 1 else part for part in looked))
            changes = _changes(looked, fills, frames)
            estimates = self._in_regions(changes.sum(2) * signs[:, :, None, None])
            sizes += self._in_regions(changes.abs().sum(2))
            places = _next(places, estimates.flatten(2), drawn, start, end)
        if self.rest == "size":
            # Single pixels' gradients are noisy, and so is their order.
            estimates = F.avg_pool2d(sizes, 3, 1, 1, count_include_pad=False)
        places = _next(places, estimates.flatten(2), drawn, counts[-1], regions)
        return self._on_pixels(1 - places[:, 0].view(-1, rows, columns).to(frames) / regions, frames)

    def _in_regions(self, estimates: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D h w"]:
        return F.avg_pool2d(estimates, self.region_px, ceil_mode=True, count_include_pad=False)

    def _on_pixels(self, regions: Tensor, frames: Frames) -> Tensor:
        height, width = frames.shape[2:]
        down = regions.repeat_interleave(self.region_px, -2)
        return down.repeat_interleave(self.region_px, -1)[..., :height, :width]


class _Look(NamedTuple):
    """The model at the frames as they are edited so far; D is 1 and F is 1 where nothing is removed yet."""

    values: Float[Tensor, "B D F"]
    gradients: Float[Tensor, "B D F 3 H W"]


def _look(
    clean: ReferenceScores, frames: Frames, fills: Tensor, removed: Tensor | None, batch_size: int
) -> _Look:
    if removed is None:
        edited = frames[:, None, None]
    else:
        edited = torch.where(removed[:, :, None, None], fills[:, None], frames[:, None, None])
    variants = edited.flatten(1, 2)
    values, gradients = [], []

    def recorded(scores: Tensor) -> Tensor:
        found = clean.per_variant(scores)
        values.append(found.detach().unflatten(0, (len(frames), -1)))
        return found

    for part in batches(variants.shape[1], frames=len(frames), batch_size=batch_size):
        gradient = input_gradient(clean.model, variants[:, part].flatten(0, 1), recorded)
        gradients.append(gradient.unflatten(0, (len(frames), -1)))
    shape = edited.shape[1:3]
    return _Look(torch.cat(values, 1).unflatten(1, shape), torch.cat(gradients, 1).unflatten(1, shape))


def _further(clean: ReferenceScores, signs: Tensor, looked: _Look) -> tuple[Tensor, Tensor]:
    """Where each frame's direction stands in which removal moved the target further."""
    moved = (looked.values - clean.values[:, None, None]).mean(2) * signs
    return torch.arange(len(moved), device=moved.device)[:, None], moved.argmax(1, keepdim=True)


def _next(
    places: Int64[Tensor, "B D R"],
    estimates: Float[Tensor, "B D R"],
    drawn: Int64[Tensor, " R"],
    start: int,
    end: int,
) -> Int64[Tensor, "B D R"]:
    """Gives the places from `start` to `end` to the regions left with the largest estimates, ties as drawn."""
    left = estimates.masked_fill(places < len(drawn), -torch.inf)
    order = drawn[left[..., drawn].argsort(dim=-1, descending=True, stable=True)]
    new = torch.arange(start, end, device=places.device).expand(*places.shape[:2], -1)
    return places.scatter(-1, order[..., : end - start], new)


def _changes(looked: _Look, fills: Tensor, frames: Frames) -> Float[Tensor, "B D F H W"]:
    """What removal of each pixel does to the target under each fill, all fills on an equal scale."""
    changes = (looked.gradients * (fills - frames[:, None])[:, None]).sum(3)
    sizes = changes.abs().mean((3, 4), keepdim=True)
    return changes / sizes.clamp_min(torch.finfo(changes.dtype).tiny)
