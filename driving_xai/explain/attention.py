"""Maps that a model writes itself, as explanations: its attention, its selection, a layer of its own."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from driving_xai.errors import UnsupportedModelError
from driving_xai.explain.base import Explainer
from driving_xai.explain.gradient import IntegratedGradients
from driving_xai.explain.grid import repeat_on_frame_grid, to_frame_grid
from driving_xai.models.capabilities import frame_model, own_attention_of, own_map_of
from driving_xai.models.forward_trace import removed_after
from driving_xai.targets import magnitude
from driving_xai.types import (
    AttentiveFrameModel,
    FrameModel,
    Frames,
    OwnMap,
    Saliency,
    SelectiveFrameModel,
    Target,
)


@dataclass(frozen=True, kw_only=True)
class LearnedMap(Explainer):
    """A map that the model writes for each frame, whatever the target: it says where the model looked.

    Attention is >= 0 and upsampled bilinearly. Of a selection, which the prediction rests on and nothing
    else, a pixel has the value of its nearest cell: all selected cells are equal, and so are all others;
    inside either a ranking is the seeded draw of ties. A layer's output is averaged over its channels and
    upsampled bilinearly, signed as the layer is.

    Source: Tashiro and Awano 2023, eqs. 11, 12 and 15; Kim and Canny 2017 for soft attention; Baumhauer et
    al. 2021, section 3.1, for bounded logit attention, soft and hard; Chen et al. 2018; Iida et al. 2022,
    sections 4.1 and 5.2, for LABN's attention and lambda attention, the mean of lambda_c^T q over channels.
    Deviation: values are the model's own; Iida et al. stretch lambda attention to [0, 1], which no ranking sees.

    Args:
        map: its literature name, one of those the model writes (`types.WritesMaps`); None takes its attention,
            whatever it is called.

    Example:
        >>> from driving_xai.models.steering import SteeringConfig, SteeringModel
        >>> from driving_xai.targets import magnitude
        >>> model = SteeringModel(SteeringConfig(hidden_size=8, attention="soft")).eval()
        >>> LearnedMap(map="soft-attention")(model, torch.rand(2, 3, 80, 160), magnitude).shape
        torch.Size([2, 80, 160])
    """

    map: str | None = None

    def _check(self, model: object, frames: Frames) -> None:
        self._explain(frame_model(model), frames, magnitude)

    def _own_map(self, model: object, frames: Frames) -> OwnMap:
        return self._remembered(model, frames, self._find)

    def _find(self, model: object, frames: Frames) -> OwnMap:
        return own_attention_of(model) if self.map is None else own_map_of(model, self.map)

    @torch.no_grad()
    def _explain(self, model: FrameModel, frames: Frames, target: Target) -> Saliency:
        found = self._own_map(model, frames)
        if found.read == "layer":
            return to_frame_grid(_mean_of_layer(model, frames, found), frames, found.cells)
        if found.read == "selection" and isinstance(model, SelectiveFrameModel):
            return repeat_on_frame_grid(model.selection(frames), frames, found.cells)
        if found.read == "attention" and isinstance(model, AttentiveFrameModel):
            return to_frame_grid(model.attention(frames), frames, found.cells)
        raise UnsupportedModelError(
            f"{type(model).__name__} has no {found.read}(frames), which its network says it writes; add it to the view"
        )


def _mean_of_layer(model: FrameModel, frames: Frames, own: OwnMap) -> Tensor:
    assert own.layer is not None
    maps: list[Tensor] = []
    handle = own.layer.register_forward_hook(lambda _layer, _taken, given: maps.append(given))
    with removed_after([handle]):
        model(frames)
    if len(maps) != 1 or maps[0].dim() != 4:
        raise UnsupportedModelError(
            f"layer {type(own.layer).__name__} put out maps {len(maps)} times in one forward pass, expected "
            "(B, C, h, w) once; choose another"
        )
    return maps[0].mean(1)


@dataclass(frozen=True, kw_only=True)
class AttentionWeighted(Explainer):
    """A map times the model's own attention: what acts, where the model looks.

    Source: as gradients times attention in Chefer et al. 2021, here with a CNN's spatial attention.
    Deviation: attention is upsampled bilinearly to the pixels.

    Args:
        explainer: whose maps are weighted.
        attention: what weights them.

    Example:
        >>> from driving_xai.explain.gradient import Gradient
        >>> from driving_xai.models.steering import SteeringConfig, SteeringModel
        >>> from driving_xai.targets import magnitude
        >>> model = SteeringModel(SteeringConfig(hidden_size=8, attention="soft")).eval()
        >>> AttentionWeighted(explainer=Gradient())(model, torch.rand(2, 3, 80, 160), magnitude).shape
        torch.Size([2, 80, 160])
    """

    explainer: Explainer = field(default_factory=IntegratedGradients)
    attention: Explainer = field(default_factory=LearnedMap)

    def _check(self, model: object, frames: Frames) -> None:
        self.attention.check(model, frames)
        self.explainer.check(model, frames)

    def _explain(self, model: FrameModel, frames: Frames, target: Target) -> Saliency:
        return self.attention(model, frames, target) * self.explainer(model, frames, target)
