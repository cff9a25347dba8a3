"""What one region of a frame does: the scores without it, and without the same area moved elsewhere.

Any edit changes a model's scores a little. So a region's effect stands with a control of the same shape and size at
other places of the same frame, drawn with a seed: several, because one place proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from driving_xai.errors import NonFiniteError
from driving_xai.metrics.regions import PLACES, moved, other_places
from driving_xai.models.capabilities import scores_of
from driving_xai.perturb import Fill, blank
from driving_xai.types import FrameModel, Frames, Scores

FILLED: tuple[Fill, ...] = ("black", "mean", "blur")


class RegionRemoval(NamedTuple):
    """The scores of one frame without a region."""

    clean: Float[Tensor, " K"]
    """Of the unedited frame."""
    removed: Mapping[Fill, Float[Tensor, " K"]]
    """Without the region, by what takes its place."""
    elsewhere: Mapping[Fill, Float[Tensor, "N K"]]
    """Without the same area at each other place; none where the frame has no room for it."""
    offsets: Int64[np.ndarray, "N 2"]
    """Of the other places: rows down and columns to the right."""


@torch.no_grad()
def remove_region(
    model: FrameModel,
    frames: Frames,
    mask: np.ndarray,
    *,
    fills: Sequence[Fill] = FILLED,
    places: int = PLACES,
    seed: int = 0,
    batch_size: int = 32,
) -> RegionRemoval:
    """Predicts a frame without a region, and without the same area at other places.

    Args:
        model: of frames; of a recurrent one its view of the instant, `model.at(state)`.
        frames: one frame.
        mask: the region, H x W, bool.
        fills: what takes a removed pixel's place; see `perturb.blank`.
        places: other places, at most.
        seed: of the other places.
        batch_size: most edited frames in one forward pass.

    Raises:
        ValueError: the mask does not fit the frame, or is empty; or there are several frames.
        NonFiniteError: a score is not finite.

    Example:
        >>> bright = lambda frames: frames.mean((1, 2, 3))[:, None]
        >>> mask = np.arange(16).reshape(4, 4) < 4
        >>> found = remove_region(bright, torch.ones(1, 3, 4, 4), mask, fills=["black"])
        >>> found.clean.tolist(), found.removed["black"].tolist(), len(found.elsewhere["black"])
        ([1.0], [0.75], 3)
    """
    if len(frames) != 1 or mask.shape != tuple(frames.shape[2:]) or mask.dtype != np.bool_:
        raise ValueError(
            f"got a mask of {mask.dtype} {mask.shape} for frames {tuple(frames.shape)}; expected one frame, and a "
            "mask of bool with its height and width"
        )
    offsets = other_places(mask, most=places, seed=seed)
    masks = torch.from_numpy(np.stack([mask, *(moved(mask, offset) for offset in offsets)])).to(frames.device)
    clean = _finite(scores_of(model, frames))[0]
    found = {
        fill: torch.cat([_finite(model(edited)) for edited in _edited(frames, masks, fill, batch_size)])
        for fill in fills
    }
    return RegionRemoval(
        clean=clean,
        removed={fill: scores[0] for fill, scores in found.items()},
        elsewhere={fill: scores[1:] for fill, scores in found.items()},
        offsets=offsets,
    )


def _edited(
    frames: Frames, masks: Bool[Tensor, "M H W"], fill: Fill, batch_size: int
) -> Iterator[Float[Tensor, "m 3 H W"]]:
    gone = blank(frames, fill)
    for part in masks.split(batch_size):
        yield torch.where(part[:, None], gone, frames)


def _finite(scores: Scores) -> Scores:
    if not bool(scores.isfinite().all()):
        raise NonFiniteError(
            "got a prediction with NaN or infinity; expected finite scores; check the weights"
        )
    return scores
