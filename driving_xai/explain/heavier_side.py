"""Signed maps turned towards their heavier side, and weighed by a model's own attention."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from driving_xai.explain.grid import Cells
from driving_xai.explain.learned import learned_attention
from driving_xai.types import Explainer, FrameModel, Frames, Saliency, Target


class HeavierSide:
    """A signed map, negated where its negative side weighs more.

    A steering angle can go wrong both ways. The pixels that speak for a turn and those that speak
    against it pull in opposite directions, so removing both moves the output little; a ranking has to
    choose. This one takes the side whose first pixels, a `share` of the frame, sum to more.

    The map does not depend on the target's sign: left and right give the same one.

    Deviation: ours, not from a paper. It settles for an output of either sign what Grad-CAM's ReLU
    settles for a class.

    Example:
        >>> from driving_xai.explain.gradient import Gradient
        >>> from driving_xai.models.steering import SteeringConfig, SteeringModel
        >>> from driving_xai.targets import magnitude
        >>> model = SteeringModel(SteeringConfig(hidden_size=8)).eval()
        >>> explain = HeavierSide(Gradient(times="input"))
        >>> explain(model.at(None), torch.rand(2, 3, 80, 160), magnitude).shape
        torch.Size([2, 80, 160])
    """

    def __init__(self, signed: Explainer, *, share: float = 0.25) -> None:
        """`signed` gives maps with a sign; `share` of the pixels is what a side is weighed by.

        Raises:
            ValueError: the share is out of range.
        """
        if not 0 < share <= 1:
            raise ValueError(f"got share {share}, expected over 0 up to 1")
        self.signed, self.share = signed, share

    def __call__(self, model: FrameModel, frames: Frames, target: Target) -> Saliency:
        """Explains each frame; see `types.Explainer`. Positive is the side that was chosen."""
        maps = self.signed(model, frames, target)
        for_it, against_it = self._weight(maps), self._weight(-maps)
        return torch.where((for_it >= against_it)[:, None, None], maps, -maps)

    def _weight(self, maps: Saliency) -> Float[Tensor, " B"]:
        first = max(1, round(self.share * maps[0].numel()))
        return maps.flatten(1).topk(first).values.clamp(min=0).sum(1)


class AttentionWeighted:
    """A map times the model's own attention: what acts, where the model looks.

    Source: as gradients times attention in Chefer et al. 2021, here with a CNN's spatial attention.
    Deviation: attention is upsampled bilinearly to the pixels.
    """

    def __init__(self, explainer: Explainer, *, cells: Cells | None = None) -> None:
        self.explainer, self.cells = explainer, cells

    def __call__(self, model: FrameModel, frames: Frames, target: Target) -> Saliency:
        """Explains each frame; see `types.Explainer`.

        Raises:
            UnsupportedModelError: the model writes no attention.
        """
        attention = learned_attention(model, frames, target, cells=self.cells)
        return attention * self.explainer(model, frames, target)
