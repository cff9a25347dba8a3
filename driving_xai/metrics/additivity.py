"""Infidelity and sensitivity-n: does the sum of a map over removed pixels say what removing them does?"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from driving_xai.metrics.base import Category, Columns, Metric
from driving_xai.metrics.batch import EvalBatch, RankedMaps
from driving_xai.metrics.quantities import Quantity
from driving_xai.perturb import FILLS, Fill, batches, blank

_ROUNDING = 64
"""Units in the last place of the largest score by which passes of the same frame may differ."""


def infidelity(
    contributions: Float[Tensor, "*maps S"], losses: Float[Tensor, "*maps S"]
) -> Float[Tensor, "*maps"]:
    """The mean squared error of predicting losses by contributions, in the best scale of the map.

    Args:
        contributions: the sum of a map over what each of S perturbations removes.
        losses: what the explained output loses by each.

    Source: Yeh et al. 2019, "On the (in)fidelity and sensitivity of explanations", definition 2.1; the scale as
    in section 4 there, and in captum with `normalize=True`.

    Example:
        >>> infidelity(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 6.0]))
        tensor(0.)
    """
    squares = contributions.square().mean(-1, keepdim=True)
    scale = (contributions * losses).mean(-1, keepdim=True) / squares
    return (torch.where(squares > 0, scale, 0.0) * contributions - losses).square().mean(-1)


def pearson(first: Float[Tensor, "*maps S"], second: Float[Tensor, "*maps S"]) -> Float[Tensor, "*maps"]:
    """The linear correlation over the last axis; NaN where one side does not vary.

    Example:
        >>> pearson(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([3.0, 5.0, 9.0]))
        tensor(1.)
    """
    first, second = (each - each.mean(-1, keepdim=True) for each in (first, second))
    return (first * second).sum(-1) / (first.square().sum(-1) * second.square().sum(-1)).sqrt()


@torch.no_grad()
def losses(
    batch: EvalBatch, removed: Bool[Tensor, "S H W"], *, fill: Fill = "black", batch_size: int = 32
) -> Float[Tensor, "B S"]:
    """What the explained output loses where each of S sets of pixels is removed.

    Of an image that is the probability of the explained output, of steering the target itself. A change no larger
    than what other batch sizes make of the same frame is none.

    Args:
        batch: the frames.
        removed: the sets of pixels, the same for every frame.
        fill: what a removed pixel shows.
        batch_size: most edited frames in one forward pass; changes results by rounding only.
    """
    frames, nothing = batch.frames[:, None], blank(batch.frames, fill)[:, None]
    removed = removed.to(frames.device)[None, :, None]
    found = []
    for part in batches(removed.shape[1], frames=len(frames), batch_size=batch_size):
        edited = torch.where(removed[:, part], nothing, frames).flatten(0, 1)
        found.append(batch.model(edited).unflatten(0, (len(frames), -1)))
    scores = torch.cat(found, 1)
    lost = _explained(batch, batch.clean[:, None]) - _explained(batch, scores)
    rounding = _ROUNDING * torch.finfo(batch.clean.dtype).eps * batch.clean.abs().amax(1)
    same = (scores - batch.clean[:, None]).abs().amax(2) <= rounding[:, None]
    return lost.masked_fill(same, 0)


def _explained(batch: EvalBatch, scores: Float[Tensor, "B v K"]) -> Float[Tensor, "B v"]:
    if batch.quantity.is_probability:
        return batch.references["target"](scores.double())
    return batch.target(scores.double().flatten(0, 1)).view(scores.shape[:2])


@dataclass(frozen=True, kw_only=True)
class _Additive(Metric):
    """Sums of a map over random sets of pixels, against what their removal does."""

    category: ClassVar[Category] = "faithfulness"

    samples: int
    fill: Fill = "black"

    def __post_init__(self) -> None:
        if self.fill not in FILLS:
            raise ValueError(f"got fill {self.fill!r}, expected one of: {', '.join(FILLS)}")
        if self.samples < 3:
            raise ValueError(f"got samples {self.samples}, expected 3 or more")

    @abstractmethod
    def sets(self, height: int, width: int) -> Bool[Tensor, "N S H W"]:
        """N kinds of S sets of pixels, the seed's, the same for every frame."""

    @abstractmethod
    def _compare(
        self, contributions: Float[Tensor, "B M N S"], lost: Float[Tensor, "B 1 N S"]
    ) -> Float[Tensor, "B M"]: ...

    def measure(self, batch: EvalBatch, ranked: RankedMaps) -> Iterator[tuple[str, Columns]]:
        """A number for each method, NaN where its map is constant or nothing changes; see `Metric.measure`."""
        sets = self.sets(*batch.frames.shape[2:])
        lost = losses(batch, sets.flatten(0, 1), fill=self.fill, batch_size=self.batch_size)
        lost = lost.double().unflatten(1, sets.shape[:2])[:, None]
        pixels = sets.flatten(2).to(ranked.saliency.device).double()
        contributions = torch.einsum("bmp,nsp->bmns", ranked.saliency.flatten(2).double(), pixels)
        found = self._compare(contributions, lost)
        yield "explained", {"value": found.masked_fill(ranked.degenerate.to(found.device), torch.nan)}

    def describe(self, quantity: Quantity) -> dict[str, Any]:
        """See `Metric.describe`."""
        return {
            "kind": "additivity",
            "quantity": quantity.name if quantity.is_probability else "explained output",
            "samples": self.samples,
            "fill": self.fill,
            "faithful": self.faithful(quantity),
        }


@dataclass(frozen=True, kw_only=True)
class Infidelity(_Additive):
    """The share of the losses' mean square that the map, in its best scale, does not explain; 0 to 1, low is good.

    Random squares are removed; the map's sum over a square predicts what is lost.

    Args:
        samples: squares.
        side: of a square, as a share of the frame's shorter side.
        fill: what a removed pixel shows.
        batch_size: most edited frames in one forward pass; changes results by rounding only.
        seed: of the squares, the same for every frame.

    Source: Yeh et al. 2019, definition 2.1, with the removal of squares of section 3.
    Deviation: divided by the mean square of the losses, so that frames and units can be compared; the map is of
    pixels, so a perturbation is 1 where a pixel is removed, not its three colours' change.

    Example:
        >>> Infidelity(samples=32).label, Infidelity.higher_is_better
        ('infidelity', False)
    """

    name: ClassVar[str] = "infidelity"
    higher_is_better: ClassVar[bool] = False

    samples: int = 64
    side: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.side <= 1:
            raise ValueError(f"got side {self.side}, expected over 0 and at most 1")

    def sets(self, height: int, width: int) -> Bool[Tensor, "1 S H W"]:
        """Squares that lie wholly in the frame."""
        side_px = max(1, round(self.side * min(height, width)))
        drawn = torch.Generator().manual_seed(self.seed)
        sets = torch.zeros(self.samples, height, width, dtype=torch.bool)
        tops = torch.randint(height - side_px + 1, (self.samples,), generator=drawn).tolist()
        lefts = torch.randint(width - side_px + 1, (self.samples,), generator=drawn).tolist()
        for each, top, left in zip(sets, tops, lefts, strict=True):
            each[top : top + side_px, left : left + side_px] = True
        return sets[None]

    def _compare(
        self, contributions: Float[Tensor, "B M 1 S"], lost: Float[Tensor, "B 1 1 S"]
    ) -> Float[Tensor, "B M"]:
        lost = lost.expand_as(contributions)
        return (infidelity(contributions, lost) / lost.square().mean(-1)).squeeze(2)

    def describe(self, quantity: Quantity) -> dict[str, Any]:
        """See `Metric.describe`."""
        unit = "share of the losses' mean square"
        return {**super().describe(quantity), "unit": unit, "side": self.side}


@dataclass(frozen=True, kw_only=True)
class SensitivityN(_Additive):
    """The correlation of the map's sums over n random pixels with what their removal does; -1 to 1, high is good.

    The mean over several n.

    Args:
        fractions: of pixels that are removed, each an n.
        samples: sets of pixels for each n.
        fill: what a removed pixel shows.
        batch_size: most edited frames in one forward pass; changes results by rounding only.
        seed: of the sets, the same for every frame.

    Source: Ancona et al. 2018, "Towards better understanding of gradient-based attribution methods", section 4.
    Deviation: three n by default, where the paper draws a curve over many.

    Example:
        >>> SensitivityN(fractions=(0.1,)).label, SensitivityN.higher_is_better
        ('sensitivity-n', True)
    """

    name: ClassVar[str] = "sensitivity-n"
    higher_is_better: ClassVar[bool] = True

    fractions: tuple[float, ...] = (0.05, 0.2, 0.5)
    samples: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.fractions or not all(0 < each < 1 for each in self.fractions):
            raise ValueError(f"got fractions {self.fractions}, expected some between 0 and 1")

    def sets(self, height: int, width: int) -> Bool[Tensor, "N S H W"]:
        """Exactly the nearest whole number of pixels for each fraction, at least one."""
        drawn, pixels = torch.Generator().manual_seed(self.seed), height * width
        places = (
            torch.rand(len(self.fractions), self.samples, pixels, generator=drawn).argsort(-1).argsort(-1)
        )
        counts = torch.tensor([max(1, round(each * pixels)) for each in self.fractions])
        return (places < counts[:, None, None]).unflatten(2, (height, width))

    def _compare(
        self, contributions: Float[Tensor, "B M N S"], lost: Float[Tensor, "B 1 N S"]
    ) -> Float[Tensor, "B M"]:
        return pearson(contributions, lost.expand_as(contributions)).mean(-1)

    def describe(self, quantity: Quantity) -> dict[str, Any]:
        """See `Metric.describe`."""
        return {**super().describe(quantity), "unit": "correlation", "removed": list(self.fractions)}
