"""Maps from a feature grid to the frame's own grid."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from driving_xai.contracts import Frames, Saliency


def to_frame_grid(maps: Float[Tensor, "B h w"], frames: Frames) -> Saliency:
    """Upsamples maps bilinearly to the frames' height and width; values keep their scale.

    Cell centres are aligned (`align_corners=False`), as the strided convolutions above a grid see it.
    """
    size = frames.shape[-2:]
    return F.interpolate(maps.unsqueeze(1), size=size, mode="bilinear", align_corners=False).squeeze(1)
