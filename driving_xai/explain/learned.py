"""A model's own attention as an explanation."""

from __future__ import annotations

import torch

from driving_xai.contracts import (
    AttentiveFrameModel,
    FrameModel,
    Frames,
    Saliency,
    SelectiveFrameModel,
    Target,
)
from driving_xai.errors import UnsupportedModelError
from driving_xai.explain.grid import Cells, to_frame_grid


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
    return to_frame_grid(model.attention(frames), frames, cells)


@torch.no_grad()
def learned_selection(
    model: FrameModel, frames: Frames, target: Target, *, cells: Cells | None = None
) -> Saliency:
    """The hard explanation of a model that selects cells: what its prediction rests on, and nothing else.

    Upsampled bilinearly, >= 0. All selected cells are equal, so that a ranking orders them by chance.

    Args:
        cells: where the map's cells lie; see `to_frame_grid`.

    Raises:
        UnsupportedModelError: the model selects nothing.

    Source: Baumhauer et al. 2021, section 3.1; Chen et al. 2018.
    """
    if not isinstance(model, SelectiveFrameModel):
        raise UnsupportedModelError(
            f"{type(model).__name__} selects no cells; use a method that needs none, such as grad-cam"
        )
    return to_frame_grid(model.selection(frames), frames, cells)
