"""What is scored together: a batch of frames with all that is known of them, and the maps that explain them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from driving_xai.metrics.localisation import Causes
from driving_xai.metrics.quantities import Quantity, Value
from driving_xai.perturb import Fill
from driving_xai.types import FrameModel, Frames, Scores, Target


class Batch(NamedTuple):
    """Frames that are scored together."""

    rows: Int64[np.ndarray, " B"]
    """Positions in the subject's index."""
    model: FrameModel
    frames: Frames
    clean: Scores
    """Of the unedited frames."""
    target: Target
    """What is explained."""
    targets: Sequence[str]
    """Its name for each frame."""
    quantity: Quantity
    references: Mapping[str, Value]
    """The quantity of each frame, by what it compares with."""
    known: Mapping[str, Float[np.ndarray, " B"]]
    """Columns `prediction`, `truth` and `error`; NaN where unknown."""
    causes: Causes | None
    """The pixels that cause the label, where they are known and asked for."""
    labels: Float[Tensor, "B K"] | None = None
    """0 or 1 for each output, of several that may be true at once; None where unknown."""

    def values(self, scores: Float[Tensor, "B *variants K"]) -> Float[Tensor, "B R *variants"]:
        """The quantity by each of the R references, in their order.

        As a measure's `value` it serves all of them with one run of the model.
        """
        return torch.stack([value(scores) for value in self.references.values()], 1)


class Maps(NamedTuple):
    """The maps of several methods for the same frames."""

    saliency: Float[Tensor, "B M H W"]
    ranks: Int64[Tensor, "B M P"]
    degenerate: Bool[Tensor, "B M"]
    """Whether a map is constant, zero everywhere included: it says nothing, and its order is the draw's."""


@dataclass(frozen=True, kw_only=True)
class Editing:
    """How frames are edited, and how many at a time."""

    fill: Fill
    batch_size: int
    """Most edited frames in one forward pass; changes results by rounding only."""
    seed: int
    """Of ties, and of measures that draw."""
