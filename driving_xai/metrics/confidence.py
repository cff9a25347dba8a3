"""What a classifier still says of a frame that shows only what a map points at.

Average drop and rate of increase weight the frame with the whole map; percentage-in shows its most
salient pixels. All are per frame; means over frames are the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from driving_xai.metrics.curves import insertion
from driving_xai.metrics.quantities import Value
from driving_xai.types import FrameModel, Frames, Saliency, Scores

SHOWN_FRACTIONS = (0.05, 0.10, 0.20, 0.25, 0.50)
"""Of the pixels, in An and Joe 2022, section 4.2."""


@dataclass(frozen=True, kw_only=True)
class OfClass:
    """The score of one class a frame, as a logit or as a probability; a `Value`."""

    classes: Int64[Tensor, " B"]
    scale: Literal["logit", "probability", "independent probability"] = "probability"
    """Softmax over all classes, or the sigmoid of each, where several may be true at once."""

    def __call__(self, scores: Float[Tensor, "B *variants K"]) -> Float[Tensor, "B *variants"]:
        scaled = _SCALES[self.scale](scores)
        chosen = self.classes.to(scores.device).view(-1, *[1] * (scores.dim() - 1))
        return scaled.gather(-1, chosen.expand(*scores.shape[:-1], 1)).squeeze(-1)


_SCALES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "logit": lambda scores: scores,
    "probability": lambda scores: scores.softmax(-1),
    "independent probability": torch.sigmoid,
}


def soft_mask(saliency: Saliency) -> Saliency:
    """Each map stretched to [0, 1]: what a frame is multiplied with; a constant map becomes 1.

    A constant map prefers no pixel and leaves the frame as it is.
    """
    low, high = saliency.amin((1, 2), keepdim=True), saliency.amax((1, 2), keepdim=True)
    span = high - low
    return torch.where(span > 0, (saliency - low) / torch.where(span > 0, span, 1.0), 1.0)


@torch.no_grad()
def scores_of_weighted(
    model: FrameModel, frames: Frames, saliency: Saliency, *, batch_size: int = 32
) -> Scores:
    """The scores of frames multiplied, before any normalisation, with their stretched maps.

    Args:
        batch_size: frames in one forward pass; it changes no score.

    Source: An and Joe 2022, section 4.2; Chattopadhay et al. 2018, section 4.1.
    Deviation: neither says how a map becomes a factor; it is stretched to [0, 1] within the frame.
    """
    weighted = frames * soft_mask(saliency).unsqueeze(1).to(frames.dtype)
    return torch.cat([model(part) for part in weighted.split(batch_size)])


def average_drop(clean: Float[Tensor, " B"], shown: Float[Tensor, "B *more"]) -> Float[Tensor, "B *more"]:
    """max(0, Y - O) / Y in percent, 0 to 100 where O >= 0; low is good.

    Args:
        clean: Y, the score of the whole frame: a probability, or any score above 0.
        shown: O, the score of what the map leaves of it.

    Raises:
        ValueError: a clean score is not above 0, where the quotient says nothing.

    Source: An and Joe 2022, eq. 8; Chattopadhay et al. 2018, section 4.1.

    Example:
        >>> average_drop(torch.tensor([0.8, 0.5]), torch.tensor([0.6, 0.7]))
        tensor([25.,  0.])
    """
    if not (clean > 0).all():
        raise ValueError(
            f"got a clean score of {float(clean.min()):g}; expected scores above 0, for example probabilities"
        )
    whole = clean.view(-1, *[1] * (shown.dim() - 1))
    return 100 * (whole - shown).clamp_min(0) / whole


def increase(clean: Float[Tensor, " B"], shown: Float[Tensor, "B *more"]) -> Float[Tensor, "B *more"]:
    """100 where the map leaves a higher score than the whole frame has, 0 elsewhere; high is good.

    Source: An and Joe 2022, eq. 9.

    Example:
        >>> increase(torch.tensor([0.8, 0.5]), torch.tensor([0.6, 0.7]))
        tensor([  0., 100.])
    """
    whole = clean.view(-1, *[1] * (shown.dim() - 1))
    return 100 * (whole < shown).to(shown.dtype)


def percentage_in(
    model: FrameModel,
    frames: Frames,
    ranks: Int64[Tensor, "B *methods P"],
    value: Value,
    *,
    fractions: Sequence[float] = SHOWN_FRACTIONS,
    batch_size: int = 32,
) -> Float[Tensor, "B *values V"]:
    """The value of frames that show exactly these fractions of their most salient pixels, on black.

    Args:
        value: `OfClass(...)` as a logit is the reading that fits the paper's Table 4, as a
            probability the one that its text suggests; `Batch.values` gives several references' values
            side by side, before the methods.

    Source: An and Joe 2022, section 4.2.3.
    Deviation: exactly k pixels by a seeded ranking; the paper gives no unit.
    """
    return value(insertion(model, frames, ranks, fractions, fill="black", batch_size=batch_size))
