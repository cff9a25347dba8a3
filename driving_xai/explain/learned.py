"""A model's own attention as an explanation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from driving_xai.errors import UnsupportedModelError
from driving_xai.explain.capture import only_in_eval_mode
from driving_xai.explain.grid import Cells, repeat_on_frame_grid, to_frame_grid
from driving_xai.explain.variants import finite
from driving_xai.models.feature_maps import removed_after
from driving_xai.types import (
    AttentiveFrameModel,
    FrameModel,
    Frames,
    Saliency,
    SelectiveFrameModel,
    Target,
)


@torch.no_grad()
def learned_attention(
    model: FrameModel, frames: Frames, target: Target, *, cells: Cells | None = None
) -> Saliency:
    """The attention map the model writes for each frame, upsampled bilinearly, >= 0.

    The map does not depend on the target: it says where the model looked, for whatever it predicted.

    Args:
        cells: where the map's cells lie; see `to_frame_grid`.

    Raises:
        UnsupportedModelError: the model writes no attention.

    Source: Tashiro and Awano 2023, eqs. 11, 12 and 15; Kim and Canny 2017 for soft attention;
    Baumhauer et al. 2021, section 3.1, for bounded logit attention, whose soft explanation it is.
    """
    if not isinstance(model, AttentiveFrameModel):
        raise UnsupportedModelError(
            f"{type(model).__name__} writes no attention map; use a method that needs none, such as grad-cam"
        )
    with only_in_eval_mode():
        return finite(to_frame_grid(model.attention(frames), frames, cells))


@torch.no_grad()
def learned_selection(
    model: FrameModel, frames: Frames, target: Target, *, cells: Cells | None = None
) -> Saliency:
    """The hard explanation of a model that selects cells: what its prediction rests on, and nothing else.

    A pixel has the value of its nearest cell, >= 0. All selected cells are equal, and so are all others: inside
    either a ranking is the seeded draw of ties. The map does not depend on the target.

    Args:
        cells: where the map's cells lie; see `repeat_on_frame_grid`.

    Raises:
        UnsupportedModelError: the model selects nothing.

    Source: Baumhauer et al. 2021, section 3.1; Chen et al. 2018.
    """
    if not isinstance(model, SelectiveFrameModel):
        raise UnsupportedModelError(
            f"{type(model).__name__} selects no cells; use a method that needs none, such as grad-cam"
        )
    with only_in_eval_mode():
        return finite(repeat_on_frame_grid(model.selection(frames), frames, cells))


class LayerMean:
    """What one layer puts out, its channels averaged, upsampled bilinearly; signed as the layer is.

    On LABN's attention this is the paper's explanation, on a lambda layer's `content` its lambda
    attention, the mean of lambda_c^T q over channels and heads. The map does not depend on the target.

    Source: Iida et al. 2022, sections 4.1 and 5.2.
    Deviation: values are the layer's own; the authors stretch lambda attention to [0, 1], which no
    ranking sees.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.Flatten(), nn.Linear(64, 2)).eval()
        >>> LayerMean(layer=net[0])(net, torch.rand(2, 3, 16, 16), lambda scores: scores[:, 0]).shape
        torch.Size([2, 16, 16])
    """

    def __init__(self, *, layer: nn.Module, cells: Cells | None = None) -> None:
        """`layer` runs once in a forward pass; `cells` says where the cells of its output lie."""
        self.layer, self.cells = layer, cells

    @torch.no_grad()
    def __call__(self, model: FrameModel, frames: Frames, target: Target) -> Saliency:
        """Explains each frame; see `types.Explainer`.

        Raises:
            UnsupportedModelError: the layer puts out no maps, or not exactly once.
        """
        maps: list[Tensor] = []
        handle = self.layer.register_forward_hook(lambda _layer, _taken, given: maps.append(given))
        with removed_after([handle]), only_in_eval_mode():
            model(frames)
        if len(maps) != 1 or maps[0].dim() != 4:
            raise UnsupportedModelError(
                f"layer {type(self.layer).__name__} put out maps {len(maps)} times in one forward pass, expected "
                "(B, C, h, w) once; choose another"
            )
        return finite(to_frame_grid(maps[0].mean(1), frames, self.cells))
