"""An explained frame with growing parts removed or shown, as pictures, and what the model says of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from driving_xai.metrics.curves import rank
from driving_xai.metrics.perturbation_curves import Edit, PerturbationCurve
from driving_xai.models.capabilities import outputs_of
from driving_xai.perturb import FILLS, Fill, Mixture, batches, blank
from driving_xai.targets import probabilities
from driving_xai.types import FrameModel, Frames, Saliency, Target
from driving_xai.viz.heat import enlargement
from driving_xai.viz.lettering import PANEL, Colour, lettering

_TEXT: Colour = (235, 235, 235)
_STRIP_PX = 26
_GAP_PX = 4


@dataclass(frozen=True, kw_only=True)
class Edits:
    """Which edited frames are wanted.

    Args:
        percents: of the pixels, most salient first, rising.
        edit: deletion removes them, insertion shows them alone.
        fill: what a removed pixel shows.

    Raises:
        ValueError: percents do not rise from 0 or more to at most 100, or there is no such edit or fill.
    """

    percents: tuple[float, ...]
    edit: Edit = "deletion"
    fill: Fill = "black"

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in zip(self.percents, self.percents[1:], strict=False))
        if not self.percents or not rising or not 0 <= self.percents[0] <= self.percents[-1] <= 100:
            raise ValueError(
                f"got edited {list(self.percents)}; expected rising percents from 0 to 100: 0,5,10,25"
            )
        if self.edit not in ("deletion", "insertion") or self.fill not in FILLS:
            raise ValueError(
                f"got edit {self.edit!r}, fill {self.fill!r}; expected deletion or insertion, and one of: "
                f"{', '.join(FILLS)}"
            )


class EditedFrames(NamedTuple):
    """A frame as it is edited, point by point."""

    edits: Edits
    frames: Float[Tensor, "V 3 H W"]
    values: Float[Tensor, " V"]
    """The target's probability of classes and labels, its output of a regression."""
    unit: str

    def describe(self) -> list[Mapping[str, Any]]:
        """The values as JSON."""
        pairs = zip(self.edits.percents, self.values.tolist(), strict=True)
        return [{"percent": percent, "value": value} for percent, value in pairs]

    def drawn(self, caption: str) -> UInt8[np.ndarray, "rows columns 3"]:
        """The frames side by side, each over its percent and value, and a line below."""
        height, width = self.frames.shape[2:]
        factor = enlargement(height, width)
        height, width = height * factor, width * factor
        across = len(self.frames) * (width + _GAP_PX) - _GAP_PX
        picture = np.full((height + 2 * _STRIP_PX, across, 3), PANEL, dtype=np.uint8)
        pixels = (self.frames.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        for number, (frame, each) in enumerate(zip(pixels, self.describe(), strict=True)):
            left = number * (width + _GAP_PX)
            # Edited pixels stay squares: smoothing would blend them with what is left.
            picture[:height, left : left + width] = cv2.resize(
                frame, (width, height), interpolation=cv2.INTER_NEAREST
            )
            said = f"{each['percent']:g} %   {each['value']:.4g} {self.unit}"
            lettering(13).draw(picture, said, (left + 10, height + _STRIP_PX - 8), _TEXT)
        lettering(13).draw(picture, caption, (10, height + 2 * _STRIP_PX - 8), _TEXT)
        return picture


@torch.no_grad()
def edited_frames(
    model: FrameModel,
    frame: Frames,
    saliency: Saliency,
    target: Target,
    edits: Edits,
    *,
    seed: int = 0,
    batch_size: int = 32,
) -> EditedFrames:
    """One frame with its most salient pixels removed, or shown alone, and what the model says of each.

    Args:
        model: with `outputs`.
        frame: one.
        saliency: its map.
        target: what was explained.
        edits: which edited frames.
        seed: of ties, as in scoring.
        batch_size: most edited frames in one forward pass.

    Raises:
        ValueError: two percents are the same number of pixels.

    Source: Tashiro and Awano 2023, Fig. 5; An and Joe 2022, Figs. 6 and 7, with insertion.
    """
    fractions = [percent / 100 for percent in edits.percents]
    pixels = saliency[0].numel()
    curve = PerturbationCurve.of_pixels(edits.edit, fractions, pixels=pixels, fill=edits.fill)
    empty = blank(frame, edits.fill)
    mixture = Mixture(frame, empty) if edits.edit == "deletion" else Mixture(empty, frame)
    ranks = rank(saliency, torch.Generator().manual_seed(seed))
    found = mixture(ranks, torch.tensor(curve.counts))
    scores = torch.cat(
        [model(found[part].clone()) for part in batches(len(found), frames=1, batch_size=batch_size)]
    )
    outputs = outputs_of(model)
    classes = outputs.kind != "regression"
    if classes:
        values = target(probabilities(scores, outputs))
    else:
        # One output is shown with its sign; of several, what the target takes of them.
        values = scores[:, 0] if scores.shape[1] == 1 else target(scores)
    return EditedFrames(edits, found, values, "" if classes else outputs.unit or "")
