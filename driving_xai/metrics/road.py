"""ROAD: removed pixels are imputed from those around them, so that no edge gives away what was removed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from scipy.sparse import csc_matrix
from scipy.sparse.linalg import splu
from torch import Tensor

from driving_xai.metrics.base import Category, Columns, Metric
from driving_xai.metrics.batch import EvalBatch, RankedMaps
from driving_xai.metrics.perturbation_curves import Stretch, scores_of_stretches
from driving_xai.metrics.quantities import Quantity
from driving_xai.perturb import pixel_counts
from driving_xai.types import Frames

_NEIGHBOURS = tuple(
    ((down, right), 1 / 6 if 0 in (down, right) else 1 / 12)
    for down in (-1, 0, 1)
    for right in (-1, 0, 1)
    if (down, right) != (0, 0)
)
"""Offsets with their weights: those beside a pixel count twice those at its corners."""


def imputed(frame: Float[Tensor, "C H W"], removed: Bool[Tensor, "H W"]) -> Float[Tensor, "C H W"]:
    """The frame with its removed pixels replaced by the weighted means of their neighbours, all at once.

    Where a neighbour is removed too, its imputed value counts: one sparse system of linear equations. A frame
    without a single pixel left has nothing to be imputed from, and is its own mean colour.

    Source: Rong et al. 2022, "A consistent and efficient evaluation strategy for attribution methods", section 4.
    """
    gone = removed.cpu().numpy()
    if not gone.any():
        return frame
    if gone.all():
        return frame.mean((1, 2), keepdim=True).expand_as(frame)
    values = frame.detach().double().cpu().numpy()
    number = np.full(gone.shape, -1)
    number[gone] = np.arange(gone.sum())
    rows, columns = np.nonzero(gone)
    known = np.zeros((len(rows), len(values)))
    diagonal = np.zeros(len(rows))
    entries: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for (down, right), weight in _NEIGHBOURS:
        above, beside = rows + down, columns + right
        inside = (above >= 0) & (above < gone.shape[0]) & (beside >= 0) & (beside < gone.shape[1])
        here, there = np.flatnonzero(inside), (above[inside], beside[inside])
        diagonal[here] += weight
        unknown = gone[there]
        entries.append((here[unknown], number[there][unknown], np.full(unknown.sum(), -weight)))
        known[here[~unknown]] += weight * values[:, there[0][~unknown], there[1][~unknown]].T
    entries.append((np.arange(len(rows)), np.arange(len(rows)), diagonal))
    at, of, weights = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    solved = splu(csc_matrix((weights, (at, of)), shape=(len(rows),) * 2)).solve(known)
    filled = values.copy()
    filled[:, rows, columns] = solved.T
    return torch.from_numpy(filled).to(frame)


@dataclass(frozen=True, kw_only=True)
class ROAD(Metric):
    """Half of what is left without the least salient pixels less what is left without the most; high of a probability.

    Removed pixels are imputed from their neighbours, with a little noise.

    Args:
        fractions: of pixels that are removed; the value is the mean over them.
        noise_std: of what is added to imputed pixels, in the frame's unit.
        batch_size: most edited frames in one forward pass; changes results by rounding only.
        seed: of ties and of the noise, the same for every frame.

    Source: Rong et al. 2022; combined as in pytorch-grad-cam's `ROADCombined`.
    Deviation: exactly k pixels by a seeded ranking; frames are imputed in RGB, before the model normalises them.

    Example:
        >>> ROAD(fractions=(0.5,)).label, ROAD.higher_is_better
        ('road', True)
    """

    name: ClassVar[str] = "road"
    category: ClassVar[Category] = "faithfulness"
    higher_is_better: ClassVar[bool] = True

    fractions: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    noise_std: float = 0.01

    def __post_init__(self) -> None:
        if not self.noise_std >= 0:
            raise ValueError(f"got noise_std {self.noise_std}, expected 0 or more")
        if not self.fractions or not all(0 < each < 1 for each in self.fractions):
            raise ValueError(f"got fractions {self.fractions}, expected some between 0 and 1")

    def prefers_high(self, quantity: Quantity) -> bool:
        """`higher_is_better` of a probability, its opposite of an error, which rises without evidence."""
        return quantity.without_evidence == "falls"

    def measure(self, batch: EvalBatch, ranked: RankedMaps) -> Iterator[tuple[str, Columns]]:
        """The difference for each method; see `Metric.measure`."""
        along = self._along(batch, ranked)
        for reference, value in batch.references.items():
            least, most = value(along).mean(-1).unbind(2)
            yield reference, {"value": (least - most) / 2}

    @torch.no_grad()
    def _along(self, batch: EvalBatch, ranked: RankedMaps) -> Float[Tensor, "B M 2 V K"]:
        """The scores without the least salient pixels, then without the most."""
        pixels = ranked.ranks.shape[-1]
        counts = pixel_counts(self.fractions, pixels)

        def removed(order: Int64[Tensor, "B P"], start: int, stop: int) -> Float[Tensor, "B v 3 H W"]:
            some = counts[start:stop].tolist()
            return torch.stack([self._edited(batch.frames, order < count) for count in some], 1)

        stretches = (
            Stretch(len(counts), partial(removed, order))
            for ranks in ranked.ranks.unbind(1)
            for order in (pixels - 1 - ranks, ranks)
        )
        scores = scores_of_stretches(
            batch.model, stretches, frames=len(batch.frames), batch_size=self.batch_size
        )
        return torch.stack(scores, 1).unflatten(1, (ranked.ranks.shape[1], 2))

    def _edited(self, frames: Frames, removed: Bool[Tensor, "B P"]) -> Frames:
        drawn = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(frames.shape[1:], generator=drawn).to(frames) * self.noise_std
        gone = removed.unflatten(1, frames.shape[2:])
        filled = torch.stack([imputed(frame, each) for frame, each in zip(frames, gone, strict=True)])
        return torch.where(gone[:, None].to(frames.device), filled + noise, frames)

    def describe(self, quantity: Quantity) -> dict[str, Any]:
        """See `Metric.describe`."""
        return {
            "kind": "imputation",
            "quantity": quantity.name,
            "unit": quantity.unit,
            "removed": list(self.fractions),
            "noise_std": self.noise_std,
            "fill": "means of the neighbours left, with noise",
            "faithful": self.faithful(quantity),
        }
