"""Gradients with respect to the pixels: plain, times the input, smoothed, integrated along a path; and the
heavier side of a signed map."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from driving_xai.errors import OptionError
from driving_xai.explain.base import Explainer, require_at_least
from driving_xai.explain.capture import input_gradient, require_pixel_gradient
from driving_xai.explain.seeding import generators
from driving_xai.explain.variants import ReferenceScores
from driving_xai.perturb import Fill, batches, blank
from driving_xai.types import FrameModel, Frames, Saliency, Target

Channels = Literal["sum", "abs"]
"""How the three values of a pixel become one: added with their signs, or their sizes added."""
Rule = Literal["gauss-legendre", "left", "right", "middle", "trapezoid"]
"""How the integral along a path is approximated; all but the first are Riemann sums in equal steps."""


class PixelGradients(Explainer):
    """An explainer that needs the gradient of a model's scores with respect to its pixels."""

    def _check(self, model: object, frames: Frames) -> None:
        require_pixel_gradient(model, frames)


@dataclass(frozen=True, kw_only=True)
class Gradient(PixelGradients):
    """The gradient of the target: how much each pixel would change it, by itself or times the pixel.

    Source: Simonyan et al. 2014, section 3; times the input, Shrikumar et al. 2016.
    Deviation: a pixel's three channels are added with their signs, where Simonyan et al. take the
    largest size.

    Args:
        times: `input` multiplies the gradient with the pixel.
        channels: `sum` keeps the sign, which says which way a pixel's brightness moves the target; `abs` says
            how much, either way.

    Example:
        >>> from driving_xai.models.steering import SteeringConfig, SteeringModel
        >>> from driving_xai.targets import magnitude
        >>> model = SteeringModel(SteeringConfig(hidden_size=8)).eval()
        >>> Gradient()(model.at(None), torch.rand(2, 3, 80, 160), magnitude).shape
        torch.Size([2, 80, 160])
    """

    times: Literal["one", "input"] = "one"
    channels: Channels = "sum"

    def _explain(self, model: FrameModel, frames: Frames, target: Target) -> Saliency:
        gradient = input_gradient(model, frames, target)
        return _one_a_pixel(gradient * frames if self.times == "input" else gradient, self.channels)


@dataclass(frozen=True, kw_only=True)
class SmoothGrad(PixelGradients):
    """The gradient averaged over noisy copies of the frame.

    M = (1 / n) sum_i dy/dx at x + e_i, e_i ~ N(0, sigma^2). The noise of a frame is drawn from the seed
    and its own pixels.

    Source: Smilkov et al. 2017, section 3.
    Deviation: noisy pixels are cut to [0, 1], outside of which a model promises nothing; `noisy="free"` is
    the paper's. Channels are added with their signs; the paper leaves that open.

    Args:
        samples: n, 1 or more.
        noise_std: sigma, as a fraction of each frame's range, its largest less its smallest value; 0 or more.
        noisy: `cut` limits noisy pixels to [0, 1].
        channels: how the three values of a pixel become one.
        seed: of the noise.
        batch_size: most noisy frames in one pass, see `perturb.batches`.

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> from driving_xai.models.steering import SteeringConfig, SteeringModel
        >>> from driving_xai.targets import magnitude
        >>> model = SteeringModel(SteeringConfig(hidden_size=8)).eval()
        >>> SmoothGrad(samples=4)(model.at(None), torch.rand(2, 3, 80, 160), magnitude).shape
        torch.Size([2, 80, 160])
    """

    samples: int = 50
    noise_std: float = 0.15
    noisy: Literal["cut", "free"] = "cut"
    channels: Channels = "sum"
    seed: int = 0
    batch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(
            {
                "samples": (self.samples, 1),
                "noise_std": (self.noise_std, 0),
                "batch_size": (self.batch_size, 1),
            }
        )

    def _explain(self, model: FrameModel, frames: Frames, target: Target) -> Saliency:
        clean = ReferenceScores(model, frames, target)
        drawn = generators(frames, seed=self.seed)
        spread = self.noise_std * (frames.amax((1, 2, 3)) - frames.amin((1, 2, 3)))
        total = torch.zeros_like(frames)
        for part in batches(self.samples, frames=len(frames), batch_size=self.batch_size):
            noise = _noise(frames, drawn, part.stop - part.start)
            noisy = (frames[:, None] + spread[:, None, None, None, None] * noise).flatten(0, 1)
            noisy = noisy.clamp(0, 1) if self.noisy == "cut" else noisy
            gradient = input_gradient(model, noisy, clean.per_variant)
            total += gradient.unflatten(0, (len(frames), -1)).sum(1)
        return _one_a_pixel(total / self.samples, self.channels)


class Attribution(NamedTuple):
    """Integrated gradients, with what they must add up to."""

    saliency: Saliency
    total: Float[Tensor, " B"]
    """Of the attributions of all pixels and channels, with their signs."""
    change: Float[Tensor, " B"]
    """The target of the frame minus that of its baseline; the total equals it where the integral is exact."""


@dataclass(frozen=True, kw_only=True)
class IntegratedGradients(PixelGradients):
    """(x - x') times the gradient averaged along the straight path from a baseline x' to the frame x.

    Attributions add up to y(x) - y(x'), by as much as the steps approximate the integral and the
    model's gradient is a derivative: that of a sign or of a quantiser is not.

    Source: Sundararajan et al. 2017, eqs. 1 and 3; Gauss-Legendre points as in captum.
    Deviation: captum's trapezoid weights add up to 1 - 1/n, ours to 1.

    Args:
        fill: the baseline x' that the frame is compared with, see `perturb.blank`.
        steps: points on the path, 1 or more; for the trapezoid rule 2.
        rule: how the integral is approximated.
        channels: how the three values of a pixel become one.
        max_gap: largest distance of a frame's total from its change, as a fraction of the change; a larger one
            raises OptionError. None for any.
        batch_size: most points of paths in one pass, see `perturb.batches`.

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> from driving_xai.models.steering import SteeringConfig, SteeringModel
        >>> from driving_xai.targets import magnitude
        >>> model = SteeringModel(SteeringConfig(hidden_size=8)).eval()
        >>> IntegratedGradients(steps=4)(model.at(None), torch.rand(2, 3, 80, 160), magnitude).shape
        torch.Size([2, 80, 160])
    """

    fill: Fill = "black"
    steps: int = 50
    rule: Rule = "gauss-legendre"
    channels: Channels = "sum"
    max_gap: float | None = None
    batch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        least = 2 if self.rule == "trapezoid" else 1
        require_at_least(
            {
                "steps": (self.steps, least),
                "batch_size": (self.batch_size, 1),
                "max_gap": (0 if self.max_gap is None else self.max_gap, 0),
            }
        )

    def _explain(self, model: FrameModel, frames: Frames, target: Target) -> Saliency:
        found = self.attribute(model, frames, target)
        if self.max_gap is not None:
            missed, allowed = (found.total - found.change).abs(), self.max_gap * found.change.abs()
            if not (missed <= allowed).all():
                worst = int((missed - allowed).argmax())
                raise OptionError(
                    f"attributions add up to {found.total[worst]:.3g} and the target changes by "
                    f"{found.change[worst]:.3g}; max_gap allows a difference of {allowed[worst]:.3g} "
                    f"({self.max_gap:g} times the change); take more steps, or a model whose gradient is its derivative"
                )
        return found.saliency

    def attribute(self, model: FrameModel, frames: Frames, target: Target) -> Attribution:
        """Explains each frame, and says how complete that is."""
        clean = ReferenceScores(model, frames, target)
        start = blank(frames, self.fill)
        path = frames - start
        places, weights = (part.to(frames) for part in _quadrature(self.rule, self.steps))
        mean = torch.zeros_like(frames)
        for part in batches(self.steps, frames=len(frames), batch_size=self.batch_size):
            points = start[:, None] + places[part, None, None, None] * path[:, None]
            gradient = input_gradient(model, points.flatten(0, 1), clean.per_variant)
            mean += torch.einsum("bvchw,v->bchw", gradient.unflatten(0, (len(frames), -1)), weights[part])
        attribution = mean * path
        change = clean.values - clean.of_variants(lambda _: start, 1, batch_size=len(frames))[:, 0]
        return Attribution(_one_a_pixel(attribution, self.channels), attribution.sum((1, 2, 3)), change)


@dataclass(frozen=True, kw_only=True)
class HeavierSide(Explainer):
    """A signed map, negated where its negative side weighs more.

    A steering angle can go wrong both ways. The pixels that speak for a turn and those that speak
    against it pull in opposite directions, so removing both moves the output little; a ranking has to
    choose. This one takes the side whose first pixels, a `share` of the frame, sum to more.

    The map does not depend on the target's sign: left and right give the same one.

    Deviation: ours, not from a paper. It settles for an output of either sign what Grad-CAM's ReLU
    settles for a class.

    Args:
        signed: gives maps with a sign.
        share: of the pixels that a side is weighed by, over 0 up to 1.

    Raises:
        ValueError: the share is out of range.

    Example:
        >>> from driving_xai.models.steering import SteeringConfig, SteeringModel
        >>> from driving_xai.targets import magnitude
        >>> model = SteeringModel(SteeringConfig(hidden_size=8)).eval()
        >>> explain = HeavierSide(signed=Gradient(times="input"))
        >>> explain(model.at(None), torch.rand(2, 3, 80, 160), magnitude).shape
        torch.Size([2, 80, 160])
    """

    signed: Explainer = field(default_factory=lambda: IntegratedGradients())
    share: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise ValueError(f"got share {self.share}, expected over 0 up to 1")

    def _check(self, model: object, frames: Frames) -> None:
        self.signed.check(model, frames)

    def _explain(self, model: FrameModel, frames: Frames, target: Target) -> Saliency:
        maps = self.signed(model, frames, target)
        for_it, against_it = self._weight(maps), self._weight(-maps)
        return torch.where((for_it >= against_it)[:, None, None], maps, -maps)

    def _weight(self, maps: Saliency) -> Float[Tensor, " B"]:
        first = max(1, round(self.share * maps[0].numel()))
        return maps.flatten(1).topk(first).values.clamp(min=0).sum(1)


def _one_a_pixel(attribution: Frames, channels: Channels) -> Saliency:
    return attribution.abs().sum(1) if channels == "abs" else attribution.sum(1)


def _noise(frames: Frames, drawn: list[torch.Generator], samples: int) -> Float[Tensor, "B samples 3 H W"]:
    # A sample at a time: a longer draw is not the same as several short ones.
    noise = [
        [torch.randn(frames.shape[1:], generator=generator, dtype=frames.dtype) for _ in range(samples)]
        for generator in drawn
    ]
    return torch.stack([torch.stack(each) for each in noise]).to(frames.device)


def _quadrature(rule: Rule, steps: int) -> tuple[Float[Tensor, " steps"], Float[Tensor, " steps"]]:
    """Points in [0, 1] and their weights, in float64."""
    if rule == "gauss-legendre":
        places, weights = np.polynomial.legendre.leggauss(steps)
        return torch.from_numpy((places + 1) / 2), torch.from_numpy(weights / 2)
    if rule == "trapezoid":
        equal = torch.full((steps,), 1 / (steps - 1), dtype=torch.float64)
        equal[[0, -1]] /= 2
        return torch.linspace(0, 1, steps, dtype=torch.float64), equal
    offset = {"left": 0.0, "middle": 0.5, "right": 1.0}[rule]
    return (torch.arange(steps, dtype=torch.float64) + offset) / steps, torch.full(
        (steps,), 1 / steps, dtype=torch.float64
    )
