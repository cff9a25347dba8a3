"""Localisation: how well a map finds the pixels that are known to cause the label, with each chance level.

Frames whose ground-truth mask is empty or full have no localisation: their values are NaN.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from driving_xai.metrics.base import Category, Columns, Metric, Need
from driving_xai.metrics.batch import EvalBatch, Mask, RankedMaps
from driving_xai.metrics.quantities import Quantity
from driving_xai.types import Saliency

Ranks = Int64[Tensor, "B P"]


class Localised(NamedTuple):
    """A measure of each frame, and what a random ranking reaches on average."""

    value: Float[Tensor, " B"]
    chance: Float[Tensor, " B"]


Localisation = Callable[[Saliency, Ranks, Mask], Localised]


def pointing_game(saliency: Saliency, ranks: Ranks, mask: Mask, *, tolerance_px: int = 5) -> Localised:
    """1 where the most salient pixel lies within `tolerance_px` of a causing pixel, else 0.

    Chance is the share of pixels that would hit.

    Source: Zhang et al. 2018, "Top-down neural attention by excitation backprop": 15 pixels on images
    of about 224.
    Deviation: 5 pixels, as frames are 80 x 160; a map without a single maximum points by the seeded
    ranking; a frame without causes is left out rather than hit.
    """
    reached = _dilated(mask, tolerance_px).flatten(1)
    pointed = ranks.argmin(1, keepdim=True)
    return _defined(reached.gather(1, pointed).squeeze(1), reached.double().mean(1), mask)


def mass_inside(saliency: Saliency, ranks: Ranks, mask: Mask) -> Localised:
    """The share of the map's positive mass that lies on causing pixels, in [0, 1].

    NaN for a map without positive mass. Chance is the share of causing pixels.

    Source: the energy-based pointing game of Wang et al. 2020 (Score-CAM).
    """
    mass, flat = saliency.flatten(1).double().clamp(min=0), mask.flatten(1)
    return _defined((mass * flat).sum(1) / mass.sum(1), flat.double().mean(1), mask)


def top_k_precision(saliency: Saliency, ranks: Ranks, mask: Mask) -> Localised:
    """The share of causing pixels among the k first-ranked, with k the number of causing pixels.

    At this k, precision equals recall. Chance is the share of causing pixels.
    """
    flat = mask.flatten(1)
    size = flat.sum(1)
    found = (flat & (ranks < size[:, None])).sum(1)
    return _defined(found / size.double(), flat.double().mean(1), mask)


def auroc(saliency: Saliency, ranks: Ranks, mask: Mask) -> Localised:
    """The probability that a causing pixel ranks before one that is not. Chance is 1/2.

    Deviation: ties are settled by the seeded ranking; on average that is the usual half.
    """
    flat = mask.flatten(1)
    inside = flat.sum(1).double()
    outside = flat.shape[1] - inside
    # The ranks of the causing pixels, less the lowest they could have, count the misordered pairs.
    misordered = (ranks * flat).sum(1).double() - inside * (inside - 1) / 2
    value = 1 - misordered / (inside * outside)
    return _defined(value, torch.full_like(value, 0.5), mask)


def average_precision(saliency: Saliency, ranks: Ranks, mask: Mask) -> Localised:
    """The precision at each causing pixel of the ranking, averaged.

    Chance is its exact expectation for a random ranking, a little above the share of causing pixels.
    """
    flat = mask.flatten(1)
    in_order = torch.zeros_like(flat).scatter_(1, ranks, flat)
    pixels = flat.shape[1]
    places = torch.arange(1, pixels + 1, device=ranks.device, dtype=torch.float64)
    inside = flat.sum(1).double()
    value = ((in_order.cumsum(1) / places) * in_order).sum(1) / inside
    harmonic = places.reciprocal().sum() / pixels
    chance = harmonic + (inside - 1) / (pixels - 1) * (1 - harmonic)
    return _defined(value, chance, mask)


def _defined(value: Tensor, chance: Tensor, mask: Mask) -> Localised:
    share = mask.flatten(1).double().mean(1)
    defined = (share > 0) & (share < 1)
    unknown = torch.full_like(share, torch.nan)
    return Localised(*(torch.where(defined, part.double(), unknown) for part in (value, chance)))


def _dilated(mask: Mask, radius: int) -> Mask:
    """The mask grown to every pixel within a Euclidean distance."""
    offsets = torch.arange(-radius, radius + 1, device=mask.device)
    disc = (offsets[:, None] ** 2 + offsets[None, :] ** 2 <= radius**2).float()
    reached = F.conv2d(mask.unsqueeze(1).float(), disc[None, None], padding=radius)
    return reached.squeeze(1) > 0.5


@dataclass(frozen=True, kw_only=True)
class _Localisation(Metric):
    """A comparison of the map with the pixels known to cause the label; high is good."""

    category: ClassVar[Category] = "localisation"
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[Need | None] = "ground truth"

    @abstractmethod
    def localise(self, saliency: Saliency, ranks: Ranks, mask: Mask) -> Localised:
        """The pure function beneath.

        Args:
            saliency: one map a frame.
            ranks: of the same maps.
            mask: the pixels that cause the label.
        """

    def measure(self, batch: EvalBatch, ranked: RankedMaps) -> Iterator[tuple[str, Columns]]:
        """Each method's maps against the mask; see `Metric.measure`."""
        assert batch.ground_truth_mask is not None
        found = [
            self.localise(saliency, ranks, batch.ground_truth_mask)
            for saliency, ranks in zip(ranked.saliency.unbind(1), ranked.ranks.unbind(1), strict=True)
        ]
        value, chance = (torch.stack(parts, 1) for parts in zip(*found, strict=True))
        yield "cause", {"value": value, "chance": chance}

    def describe(self, quantity: Quantity) -> dict[str, Any]:
        """See `Metric.describe`."""
        faithful = self.faithful(quantity)
        return {"kind": "localisation", "reference": "pixels that cause the label", "faithful": faithful}


@dataclass(frozen=True, kw_only=True)
class PointingGame(_Localisation):
    """1 where the most salient pixel lies within a tolerance of the mask, else 0; see `pointing_game`.

    Args:
        tolerance_px: the distance at which a pixel still hits.
        batch_size: unused; no frame is edited.
        seed: of ties between equal saliencies.

    Source: Zhang et al. 2018, "Top-down neural attention by excitation backprop".

    Example:
        >>> PointingGame(tolerance_px=15).label
        'pointing-game'
    """

    name: ClassVar[str] = "pointing-game"

    tolerance_px: int = 5

    def __post_init__(self) -> None:
        if self.tolerance_px < 0:
            raise ValueError(f"got tolerance_px {self.tolerance_px}, expected 0 or more")

    def localise(self, saliency: Saliency, ranks: Ranks, mask: Mask) -> Localised:
        """See `pointing_game`."""
        return pointing_game(saliency, ranks, mask, tolerance_px=self.tolerance_px)


@dataclass(frozen=True, kw_only=True)
class MassInside(_Localisation):
    """The share of the map's positive mass that lies on the mask, in [0, 1]; high is good.

    Args:
        batch_size: unused; no frame is edited.
        seed: of ties between equal saliencies.

    Source: the energy-based pointing game of Wang et al. 2020 (Score-CAM).

    Example:
        >>> MassInside().label, MassInside.higher_is_better
        ('mass-inside', True)
    """

    name: ClassVar[str] = "mass-inside"

    def localise(self, saliency: Saliency, ranks: Ranks, mask: Mask) -> Localised:
        """See `mass_inside`."""
        return mass_inside(saliency, ranks, mask)


@dataclass(frozen=True, kw_only=True)
class TopKPrecision(_Localisation):
    """The share of the mask's k pixels among the k first-ranked, in [0, 1]; high is good.

    Args:
        batch_size: unused; no frame is edited.
        seed: of ties between equal saliencies.

    Source: the relevance rank accuracy of Arras et al. 2022 (CLEVR-XAI).

    Example:
        >>> TopKPrecision().label, TopKPrecision.higher_is_better
        ('top-k-precision', True)
    """

    name: ClassVar[str] = "top-k-precision"

    def localise(self, saliency: Saliency, ranks: Ranks, mask: Mask) -> Localised:
        """See `top_k_precision`."""
        return top_k_precision(saliency, ranks, mask)


@dataclass(frozen=True, kw_only=True)
class AUROC(_Localisation):
    """The probability that a pixel of the mask ranks before one outside it, in [0, 1]; high is good.

    Args:
        batch_size: unused; no frame is edited.
        seed: of ties between equal saliencies.

    Source: Hanley and McNeil 1982.

    Example:
        >>> AUROC().label, AUROC.higher_is_better
        ('auroc', True)
    """

    name: ClassVar[str] = "auroc"

    def localise(self, saliency: Saliency, ranks: Ranks, mask: Mask) -> Localised:
        """See `auroc`."""
        return auroc(saliency, ranks, mask)


@dataclass(frozen=True, kw_only=True)
class AveragePrecision(_Localisation):
    """The precision at each pixel of the mask, in the order of the ranking, averaged; high is good.

    Args:
        batch_size: unused; no frame is edited.
        seed: of ties between equal saliencies.

    Source: the usual area under precision and recall, as scikit-learn computes it.

    Example:
        >>> AveragePrecision().label, AveragePrecision.higher_is_better
        ('average-precision', True)
    """

    name: ClassVar[str] = "average-precision"

    def localise(self, saliency: Saliency, ranks: Ranks, mask: Mask) -> Localised:
        """See `average_precision`."""
        return average_precision(saliency, ranks, mask)
