"""Model-independent baselines, which any explanation has to beat: random order and centre prior."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from driving_xai.explain.base import Explainer
from driving_xai.explain.seeding import generators
from driving_xai.types import FrameModel, Frames, Saliency, Target


@dataclass(frozen=True, kw_only=True)
class RandomOrder(Explainer):
    """Independent uniform values in [0, 1) for every pixel.

    A frame's draw depends on the seed and on the frame's own pixels only: batch size, order, device
    and resumed runs change nothing. Model and target are ignored.

    Args:
        seed: of the draw.

    Example:
        >>> maps = RandomOrder()(lambda frames: frames.mean((2, 3)), torch.zeros(1, 3, 4, 6), lambda scores: scores[:, 0])
        >>> maps.shape, bool((maps >= 0).all() and (maps < 1).all())
        (torch.Size([1, 4, 6]), True)
    """

    seed: int = 0

    def _explain(self, model: FrameModel, frames: Frames, target: Target) -> Saliency:
        size = frames.shape[-2:]
        maps = [torch.rand(*size, generator=drawn) for drawn in generators(frames, seed=self.seed)]
        return torch.stack(maps).to(frames.device)


@dataclass(frozen=True, kw_only=True)
class CentrePrior(Explainer):
    """A fixed Gaussian, stretched to the frame's shape: 1 at its centre, the same for every frame.

    The default is the literature's, in the middle of the frame. For a camera on a car,
    `CentrePrior(row=0.7)` puts it on the road ahead: a harder control.

    Source: Judd et al. 2012, "A benchmark of computational models of saliency".
    Deviation: the Gaussian's width is not fitted to data. An order of pixels does not depend on it.

    Args:
        row: the centre's distance from the top, as a fraction of the height.
        column: the centre's distance from the left, as a fraction of the width.
        spread: standard deviation as a fraction of height and of width; over 0, at most 100.

    Raises:
        ValueError: the spread is out of range.

    Example:
        >>> maps = CentrePrior()(lambda frames: frames.mean((2, 3)), torch.zeros(1, 3, 5, 5), lambda scores: scores[:, 0])
        >>> divmod(int(maps.argmax()), 5)
        (2, 2)
    """

    row: float = 0.5
    column: float = 0.5
    spread: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.spread <= 100:
            raise ValueError(f"got spread {self.spread}, expected over 0 and at most 100")

    def _explain(self, model: FrameModel, frames: Frames, target: Target) -> Saliency:
        count, _, height, width = frames.shape
        rows = (torch.arange(height, device=frames.device) + 0.5) / height - self.row
        columns = (torch.arange(width, device=frames.device) + 0.5) / width - self.column
        squares = rows[:, None] ** 2 + columns[None, :] ** 2
        return torch.exp(-squares / (2 * self.spread**2)).expand(count, -1, -1)
