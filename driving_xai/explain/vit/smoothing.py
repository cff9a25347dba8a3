"""Attention relevance masked by a gradient averaged over edited inputs: SNNA and AttIG.

The average is of the last block's attention alone, whose gradient needs forward passes and one token's
way to the target, but no backward pass through the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from driving_xai.explain.base import require_at_least
from driving_xai.explain.seeding import generators
from driving_xai.explain.vit.capture import Normalised, TokenGrid, normalised_input
from driving_xai.explain.vit.flow import (
    AttentionExplainer,
    Product,
    Relevance,
    ValueNorms,
    cls_relevance,
    in_order,
    require_tile_rows,
)
from driving_xai.explain.vit.gradient import (
    Memory,
    attention_gradients,
    input_gradient,
    last_attention_gradient,
)
from driving_xai.explain.vit.tiles import tile_rows_for
from driving_xai.perturb import batches
from driving_xai.targets import held_at
from driving_xai.types import FrameModel, Frames, Target

Sign = Literal["positive", "signed"]
"""What is kept of an averaged gradient before the mean over heads."""

_Edit = Callable[[slice, Normalised], Normalised]
"""Turns repeated frames into the variants of a range; a frame's variants stand together."""


@dataclass(frozen=True, kw_only=True)
class SNNA(AttentionExplainer):
    """Smooth noise norm attention: row 0 of Π_l Ā^l times a smoothed gradient of the last attention.

    Ā = I + mean_h (A ⊙ ν ⊙ ∇A)⁺ with ν_j = ‖v_j W_O‖, and SG = mean_h (mean over noise of ∇A^L)⁺, the
    noise Gaussian on the normalised frame. Ā is of the clean frame. The map is >= 0 unless `signed`.

    Source: Zhu et al. 2024, eqs. 6 to 8.
    Deviation: the product runs from the last block down, as information flows and as the authors' code
    has it, where eq. 8 prints the reverse (`product="literal"`). The smoothed gradient is clamped and
    averaged over heads as in their code, where eq. 7 does neither (`smoothing="signed"`). Norms are of
    the token attended to, as printed; their code takes the attending one's (`norms="query"`). Their code
    draws 3 samples, the paper 5.

    Args:
        samples: m, noisy forward passes; 0 leaves the smoothing out: the authors' "norm_att".
        noise_std: as a fraction of each normalised frame's range, its largest less its smallest value; 0 or more.
        seed: of the noise.
        noise_on: what draws the noise: the CPU, so that a map is the same on every device, or the frames' own
            device, which saves a GPU the wait for 3 m H W numbers.
        norms: whose lengths weigh the attention.
        product: the order of the blocks.
        smoothing: what is kept of the smoothed gradient before the mean over heads.
        memory: whether activations are kept for the backward pass or computed again.
        batch_size: most frames in one noisy forward pass, see `perturb.batches`; changes no map.
        tile_rows: query rows of attention that are computed at a time; None takes what suits the device. Changes
            maps by rounding only.

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> from driving_xai.models.actions import ActionConfig, ActionModel
        >>> from driving_xai.targets import output
        >>> config = ActionConfig(backbone="vit_tiny_patch16_224", depth=2, blocks=2, image_size=(32, 64))
        >>> model = ActionModel(config).eval()
        >>> SNNA(samples=3)(model, torch.rand(1, 3, 32, 64), output(0)).shape
        torch.Size([1, 32, 64])
    """

    samples: int = 5
    noise_std: float = 0.15
    seed: int = 0
    noise_on: Literal["cpu", "frames"] = "cpu"
    norms: ValueNorms = "key"
    product: Product = "flow"
    smoothing: Sign = "positive"
    memory: Memory = "keep"
    batch_size: int = 1
    tile_rows: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_tile_rows(self.tile_rows)
        require_at_least(
            {
                "samples": (self.samples, 0),
                "noise_std": (self.noise_std, 0),
                "batch_size": (self.batch_size, 1),
            }
        )

    def tokens(
        self, model: FrameModel, frames: Frames, targets: Sequence[Target]
    ) -> tuple[TokenGrid, Relevance]:
        vit = self.transformer(model, frames)
        grid, scores, states = attention_gradients(vit, model, frames, targets, memory=self.memory)
        relevance = cls_relevance(
            in_order(states, self.product), norms=self.norms, tile_rows=tile_rows_for(frames, self.tile_rows)
        )
        if self.samples == 0:
            return grid, relevance
        held = [held_at(target, scores) for target in targets]
        drawn = generators(frames, seed=self.seed, device="cpu" if self.noise_on == "cpu" else frames.device)

        def add_noise(_chosen: slice, inputs: Normalised) -> Normalised:
            return inputs + self.noise_std * _extent(inputs) * _normal(inputs, drawn)

        mean = _mean_gradient(
            vit, model, frames, held, add_noise, count=self.samples, batch_size=self.batch_size
        )
        return grid, relevance * _over_heads(mean, self.smoothing)


@dataclass(frozen=True, kw_only=True)
class AttentionIG(AttentionExplainer):
    """Generic attention, masked by a gradient averaged along the path from the mean colour to the frame.

    x is the normalised frame: its zero is the mean colour of the training images. The mask is
    mean_h (mean_α ∇A^L(αx))⁺ over α = 0 ... 1 in equal steps (`attention`), or the integrated gradients of
    the pixels, x ∫ ∂f/∂x dα by the midpoint rule, signed and summed over colours (`pixels`).

    Source: Zhu et al. 2024, section 4.2 (AttIG); Sundararajan et al. 2017.
    Deviation: the paper prints the pixels' mask and leaves colours and sign open; the authors' code takes
    the attention's, which is the default here.

    Args:
        mask: what is averaged along the path.
        steps: points on the path, 1 or more.
        product: the order of the blocks.
        memory: whether activations are kept for the backward pass or computed again.
        batch_size: most frames in one forward pass along the path, see `perturb.batches`; changes no map.
        tile_rows: see `SNNA`.

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> from driving_xai.models.actions import ActionConfig, ActionModel
        >>> from driving_xai.targets import output
        >>> config = ActionConfig(backbone="vit_tiny_patch16_224", depth=2, blocks=2, image_size=(32, 64))
        >>> AttentionIG(steps=2)(ActionModel(config).eval(), torch.rand(1, 3, 32, 64), output(0)).shape
        torch.Size([1, 32, 64])
    """

    mask: Literal["attention", "pixels"] = "attention"
    steps: int = 20
    product: Product = "flow"
    memory: Memory = "keep"
    batch_size: int = 1
    tile_rows: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_tile_rows(self.tile_rows)
        require_at_least({"steps": (self.steps, 1), "batch_size": (self.batch_size, 1)})

    def _explain_each(
        self, model: FrameModel, frames: Frames, targets: Sequence[Target]
    ) -> Float[Tensor, "B C H W"]:
        maps = super()._explain_each(model, frames, targets)
        if self.mask == "attention":
            return maps
        vit = self.transformer(model, frames)
        pixels = integrated_gradients(
            vit, model, frames, targets, steps=self.steps, batch_size=self.batch_size
        )
        summed = pixels.sum(2).transpose(0, 1)
        return maps * F.interpolate(summed, size=maps.shape[-2:], mode="bilinear", align_corners=False)

    def tokens(
        self, model: FrameModel, frames: Frames, targets: Sequence[Target]
    ) -> tuple[TokenGrid, Relevance]:
        vit = self.transformer(model, frames)
        grid, scores, states = attention_gradients(vit, model, frames, targets, memory=self.memory)
        relevance = cls_relevance(
            in_order(states, self.product), norms="none", tile_rows=tile_rows_for(frames, self.tile_rows)
        )
        if self.mask == "pixels":
            return grid, relevance
        path = torch.linspace(0, 1, self.steps).tolist()
        held = [held_at(target, scores) for target in targets]
        mean = _mean_gradient(
            vit, model, frames, held, _shrink(path), count=self.steps, batch_size=self.batch_size
        )
        return grid, relevance * _over_heads(mean, "positive")


def integrated_gradients(
    vit: nn.Module,
    model: FrameModel,
    frames: Frames,
    targets: Sequence[Target],
    *,
    steps: int,
    batch_size: int = 1,
) -> Float[Tensor, "C B 3 h w"]:
    """x ∫ ∂f(αx)/∂x dα by the midpoint rule, of the frames as the model has normalised them.

    Source: Sundararajan et al. 2017, eq. 1, with the baseline 0: the mean colour.
    """
    path = [(step + 0.5) / steps for step in range(steps)]
    total: Tensor | float = 0.0
    with torch.inference_mode(False), torch.no_grad():
        inputs, scores = normalised_input(vit, model, frames)
        held = [held_at(target, scores) for target in targets]
        for chosen in batches(steps, frames=len(frames), batch_size=batch_size):
            edit = partial(_shrink(path), chosen)
            variants = chosen.stop - chosen.start
            total = total + input_gradient(vit, model, frames, held, edit, variants=variants).sum(2)
    return inputs * total / steps


def _mean_gradient(
    vit: nn.Module,
    model: FrameModel,
    frames: Frames,
    targets: Sequence[Target],
    change: _Edit,
    *,
    count: int,
    batch_size: int,
) -> Float[Tensor, "C B h N"]:
    """∇A^L of CLS, averaged over `count` variants of each frame."""
    total: Tensor | float = 0.0
    for chosen in batches(count, frames=len(frames), batch_size=batch_size):
        edit = partial(change, chosen)
        variants = chosen.stop - chosen.start
        total = total + last_attention_gradient(vit, model, frames, targets, edit, variants=variants).sum(2)
    assert isinstance(total, Tensor)
    return total / count


def _shrink(path: Sequence[float]) -> _Edit:
    """Scales each variant of the frames to its place on the path."""

    def scaled(chosen: slice, inputs: Normalised) -> Normalised:
        scales = inputs.new_tensor(path[chosen])
        return inputs * scales.repeat(len(inputs) // len(scales)).view(-1, 1, 1, 1)

    return scaled


def _extent(inputs: Normalised) -> Float[Tensor, "B 1 1 1"]:
    return inputs.amax((1, 2, 3), keepdim=True) - inputs.amin((1, 2, 3), keepdim=True)


def _normal(inputs: Normalised, drawn: Sequence[torch.Generator]) -> Normalised:
    """Each frame's variants, a sample at a time from the frame's own generator: batches change nothing."""
    variants, shape = len(inputs) // len(drawn), inputs.shape[1:]
    noise = [torch.randn(shape, generator=own, device=own.device) for own in drawn for _ in range(variants)]
    return torch.stack(noise).to(inputs)


def _over_heads(gradient: Float[Tensor, "C B h N"], sign: Sign) -> Relevance:
    return (gradient.clamp_min(0) if sign == "positive" else gradient).mean(2)
