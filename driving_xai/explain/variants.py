"""Evaluate a target on many edited variants of each frame, in batches that bound memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from driving_xai.explain.base import finite
from driving_xai.models.capabilities import require_eval_mode, scores_of
from driving_xai.perturb import batches
from driving_xai.targets import held_at
from driving_xai.types import FrameModel, Frames, Scores, Target

Edit = Callable[[slice], Frames]
"""The asked variants of every frame, frame by frame, as `RecurrentModel.at` takes them."""


class ReferenceScores:
    """The target of unedited frames, which those of their edited variants are compared with.

    Raises:
        UnsupportedModelError: the model is in training mode.
        NonFiniteError: the target of a frame is not finite.
    """

    def __init__(self, model: FrameModel, frames: Frames, target: Target) -> None:
        require_eval_mode(model)
        scores = scores_of(model, frames)
        self.model, self.count = model, len(frames)
        self.target = held_at(target, scores)
        """The target at the clean prediction; see `targets.held_at`."""
        with torch.no_grad():
            self.values: Float[Tensor, " B"] = finite(self.target(scores))

    @torch.no_grad()
    def of_variants(self, edit: Edit, variants: int, *, batch_size: int) -> Float[Tensor, "B V"]:
        """The target of each frame's variants.

        Args:
            variants: how many each frame has.
            batch_size: most edited frames in one forward pass, but never fewer than B; changes values
                by rounding only.
        """
        # Written into one place: small results that stay would keep freed batches from being joined again.
        values = self.values.new_empty(self.count, variants)
        for part in batches(variants, frames=self.count, batch_size=batch_size):
            found = self.per_variant(self.model(edit(part)))
            values[:, part] = found.unflatten(0, (self.count, -1))
        return finite(values)

    def per_variant(self, scores: Scores) -> Float[Tensor, " N"]:
        """The target of N scores, N a multiple of B: a frame's variants stand together."""
        per_frame = scores.unflatten(0, (self.count, -1))
        return torch.stack([self.target(each) for each in per_frame.unbind(1)], 1).flatten()


def keep(
    frames: Frames, fill: Frames, kept: Bool[Tensor, "#B V H W"] | Float[Tensor, "#B V H W"]
) -> Float[Tensor, "N 3 H W"]:
    """V variants of each frame that show it where `kept` is one, and the fill where it is zero."""
    weights = kept.unsqueeze(2).to(frames.dtype)
    return torch.lerp(fill.unsqueeze(1), frames.unsqueeze(1), weights).flatten(0, 1)
