"""Gradients with respect to the pixels: plain, times the input, smoothed, integrated along a path."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from driving_xai.errors import OptionError
from driving_xai.explain.capture import input_gradient
from driving_xai.explain.seeding import generators
from driving_xai.explain.variants import Clean, finite
from driving_xai.perturb import Fill, batches, blank
from driving_xai.types import FrameModel, Frames, Saliency, Target

Channels = Literal["sum", "abs"]
"""How the three values of a pixel become one: added with their signs, or their sizes added."""
Rule = Literal["gauss-legendre", "left", "right", "middle", "trapezoid"]
"""How the integral along a path is approximated; all but the first are Riemann sums in equal steps."""


class Gradient:
    """The gradient of the target: how much each pixel would change it, by itself or times the pixel.

    Source: Simonyan et al. 2014, section 3; times the input, Shrikumar et al. 2016.
    Deviation: a pixel's three channels are added with their signs, where Simonyan et al. take the
    largest size.

    Example:
        >>> from driving_xai.models.steering import SteeringConfig, SteeringModel
        >>> from driving_xai.targets import magnitude
        >>> model = SteeringModel(SteeringConfig(hidden_size=8)).eval()
        >>> Gradient()(model.at(None), torch.rand(2, 3, 80, 160), magnitude).shape
        torch.Size([2, 80, 160])
    """

    def __init__(self, *, times: Literal["one", "input"] = "one", channels: Channels = "sum") -> None:
        """A bare gradient's sign says which way a pixel's brightness moves the target; with `abs` the map
        says how much, either way."""
        self.times, self.channels = times, channels

    def __call__(self, model: FrameModel, frames: Frames, target: Target) -> Saliency:
        """Explains each frame; see `types.Explainer` and `capture.input_gradient`."""
        gradient = input_gradient(model, frames, target)
        return _one_a_pixel(gradient * frames if self.times == "input" else gradient, self.channels)


class SmoothGrad:
    """The gradient averaged over noisy copies of the frame.

    M = (1 / n) sum_i dy/dx at x + e_i, e_i ~ N(0, sigma^2). The noise of a frame is drawn from the seed
    and its own pixels.

    Source: Smilkov et al. 2017, section 3.
    Deviation: noisy pixels are cut to [0, 1], outside of which a model promises nothing; `noisy="free"` is
    the paper's. Channels are added with their signs; the paper leaves that open.

    Example:
        >>> from driving_xai.models.steering import SteeringConfig, SteeringModel
        >>> from driving_xai.targets import magnitude
        >>> model = SteeringModel(SteeringConfig(hidden_size=8)).eval()
        >>> SmoothGrad(samples=4)(model.at(None), torch.rand(2, 3, 80, 160), magnitude).shape
        torch.Size([2, 80, 160])
    """

    def __init__(
        self,
        *,
        samples: int = 50,
        sigma: float = 0.15,
        noisy: Literal["cut", "free"] = "cut",
        channels: Channels = "sum",
        seed: int = 0,
        batch_size: int = 32,
    ) -> None:
        """`sigma` is a fraction of each frame's range, its largest minus its smallest value; `noisy` says
        whether noisy pixels are cut to [0, 1]; `batch_size` is the most noisy frames in one pass, see
        `perturb.batches`.

        Raises:
            ValueError: an option is out of range.
        """
        if samples < 1 or batch_size < 1 or not sigma >= 0:
            raise ValueError(
                f"got samples {samples}, batch_size {batch_size}, sigma {sigma}; expected 1 or more, 0 or more"
            )
        self.samples, self.sigma, self.noisy, self.channels = samples, sigma, noisy, channels
        self.seed, self.batch_size = seed, batch_size

    def __call__(self, model: FrameModel, frames: Frames, target: Target) -> Saliency:
        """Explains each frame; see `types.Explainer` and `capture.input_gradient`."""
        clean = Clean(model, frames, target)
        drawn = generators(frames, seed=self.seed)
        spread = self.sigma * (frames.amax((1, 2, 3)) - frames.amin((1, 2, 3)))
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


class IntegratedGradients:
    """(x - x') times the gradient averaged along the straight path from a baseline x' to the frame x.

    Attributions add up to y(x) - y(x'), by as much as the steps approximate the integral and the
    model's gradient is a derivative: that of a sign or of a quantiser is not.

    Source: Sundararajan et al. 2017, eqs. 1 and 3; Gauss-Legendre points as in captum.
    Deviation: captum's trapezoid weights add up to 1 - 1/n, ours to 1.

    Example:
        >>> from driving_xai.models.steering import SteeringConfig, SteeringModel
        >>> from driving_xai.targets import magnitude
        >>> model = SteeringModel(SteeringConfig(hidden_size=8)).eval()
        >>> IntegratedGradients(steps=4)(model.at(None), torch.rand(2, 3, 80, 160), magnitude).shape
        torch.Size([2, 80, 160])
    """

    def __init__(
        self,
        *,
        baseline: Fill = "black",
        steps: int = 50,
        rule: Rule = "gauss-legendre",
        channels: Channels = "sum",
        max_gap: float | None = None,
        batch_size: int = 32,
    ) -> None:
        """`baseline` is what the frame is compared with, see `perturb.blank`; `max_gap` the largest
        distance of a frame's total from its change, as a fraction of the change, None for any;
        `batch_size` the most points of paths in one pass, see `perturb.batches`.

        Raises:
            ValueError: an option is out of range.
        """
        if steps < (2 if rule == "trapezoid" else 1) or batch_size < 1:
            raise ValueError(
                f"got steps {steps}, batch_size {batch_size}; expected 1 or more (trapezoid: 2 steps or more)"
            )
        if max_gap is not None and max_gap < 0:
            raise ValueError(f"got max_gap {max_gap}; expected 0 or more")
        self.baseline, self.rule, self.steps = baseline, rule, steps
        self.channels, self.max_gap, self.batch_size = channels, max_gap, batch_size

    def __call__(self, model: FrameModel, frames: Frames, target: Target) -> Saliency:
        """Explains each frame; see `types.Explainer` and `capture.input_gradient`.

        Raises:
            OptionError: a frame's attributions miss their sum by more than `max_gap`.
        """
        found = self.attribute(model, frames, target)
        if self.max_gap is not None:
            missed = (found.total - found.change).abs()
            if not (missed <= self.max_gap * found.change.abs()).all():
                raise OptionError(
                    f"attributions miss the change of the target by {missed.amax():.3g}, expected {self.max_gap} "
                    "of it or less; take more steps, or a model whose gradient is its derivative"
                )
        return found.saliency

    def attribute(self, model: FrameModel, frames: Frames, target: Target) -> Attribution:
        """Explains each frame, and says how complete that is."""
        clean = Clean(model, frames, target)
        start = blank(frames, self.baseline)
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


def _one_a_pixel(attribution: Frames, channels: Channels) -> Saliency:
    return finite(attribution.abs().sum(1) if channels == "abs" else attribution.sum(1))


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
