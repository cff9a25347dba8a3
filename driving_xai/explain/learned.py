"""A model's own attention as an explanation."""

from __future__ import annotations

import torch

from driving_xai.contracts import AttentiveFrameModel, FrameModel, Frames, Saliency, Target
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

    Source: Tashiro and Awano 2023, eqs. 11, 12 and 15; Kim and Canny 2017 for soft attention.
    """
    if not isinstance(model, AttentiveFrameModel):
        raise UnsupportedModelError(
            f"{type(model).__name__} writes no attention map; use a method that needs none, such as grad-cam"
        )
    return to_frame_grid(model.attention(frames), frames, cells)
