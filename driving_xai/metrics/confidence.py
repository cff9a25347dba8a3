"""Average drop, increase in confidence and percentage-in: a classifier's probability of what a map shows it.

Average drop and rate of increase weight the frame with the whole map; percentage-in shows its most
salient pixels. The functions are per frame; means over frames are the caller's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from driving_xai.metrics.base import Category, Columns, Metric, Need
from driving_xai.metrics.batch import EvalBatch, RankedMaps
from driving_xai.metrics.curves import insertion
from driving_xai.metrics.quantities import Quantity, Value
from driving_xai.types import FrameModel, Frames, Saliency, Scores

SHOWN_FRACTIONS = (0.05, 0.10, 0.20, 0.25, 0.50)
"""Of the pixels, in An and Joe 2022, section 4.2."""


@dataclass(frozen=True, kw_only=True)
class OfClass:
    """The score of one class a frame, as a logit or as a probability; a `Value`.

    Example:
        >>> OfClass(classes=torch.tensor([1]), scale="logit")(torch.tensor([[[0.0, 2.0]]]))
        tensor([[2.]])
    """

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

    A constant map prefers no pixel and leaves the frame as it is; measures give it no value.
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
        >>> average_drop(torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.7]))
        tensor([50.,  0.])
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
            probability the one that its text suggests; `EvalBatch.values` gives several references' values
            side by side, before the methods.

    Source: An and Joe 2022, section 4.2.3.
    Deviation: exactly k pixels by a seeded ranking; the paper gives no unit.
    """
    return value(insertion(model, frames, ranks, fractions, fill="black", batch_size=batch_size))


@dataclass(frozen=True, kw_only=True)
class _WeightedFrame(Metric):
    """What a classifier still says of a frame multiplied with its stretched map."""

    category: ClassVar[Category] = "confidence"
    needs: ClassVar[Need | None] = "probability"

    @abstractmethod
    def _compare(self, clean: Float[Tensor, " B"], shown: Float[Tensor, "B M"]) -> Float[Tensor, "B M"]: ...

    def measure(self, batch: EvalBatch, ranked: RankedMaps) -> Iterator[tuple[str, Columns]]:
        """The percentage for each method; see `Metric.measure`."""
        weighted = [
            scores_of_weighted(batch.model, batch.frames, saliency, batch_size=self.batch_size)
            for saliency in ranked.saliency.unbind(1)
        ]
        scores = torch.stack(weighted, 1)
        for reference, value in batch.references.items():
            found = self._compare(value(batch.clean[:, None])[:, 0], value(scores))
            # A map without an order leaves the frame as it is: no drop at all, which is the best there is.
            yield reference, {"value": found.masked_fill(ranked.degenerate.to(found.device), torch.nan)}

    def describe(self, quantity: Quantity) -> dict[str, Any]:
        """See `Metric.describe`."""
        return {
            "kind": "weighted frame",
            "quantity": quantity.name,
            "unit": "percent",
            "fill": "black",
            "faithful": self.faithful(quantity),
        }


@dataclass(frozen=True, kw_only=True)
class AverageDrop(_WeightedFrame):
    """The share of the probability, in percent, that is lost where only the map shows; low is good.

    Args:
        batch_size: frames in one forward pass.
        seed: unused; the map itself weights the frame.

    Source: An and Joe 2022, eq. 8; Chattopadhay et al. 2018, section 4.1.
    Deviation: see `scores_of_weighted`. A constant map, an empty one included, has no value: it would be perfect.

    Example:
        >>> AverageDrop.higher_is_better, AverageDrop.category
        (False, 'confidence')
    """

    name: ClassVar[str] = "average-drop"
    higher_is_better: ClassVar[bool] = False

    def _compare(self, clean: Float[Tensor, " B"], shown: Float[Tensor, "B M"]) -> Float[Tensor, "B M"]:
        return average_drop(clean, shown)


@dataclass(frozen=True, kw_only=True)
class Increase(_WeightedFrame):
    """100 where the map alone raises the probability, else 0; the mean is the rate in percent; high is good.

    Args:
        batch_size: frames in one forward pass.
        seed: unused; the map itself weights the frame.

    Source: An and Joe 2022, eq. 9.
    Deviation: see `scores_of_weighted`. A constant map, an empty one included, has no value.

    Example:
        >>> Increase.higher_is_better, Increase().label
        (True, 'increase')
    """

    name: ClassVar[str] = "increase"
    higher_is_better: ClassVar[bool] = True

    def _compare(self, clean: Float[Tensor, " B"], shown: Float[Tensor, "B M"]) -> Float[Tensor, "B M"]:
        return increase(clean, shown)


@dataclass(frozen=True, kw_only=True)
class PercentageIn(Metric):
    """The mean probability that is left where only the most salient pixels are shown, on black; high is good.

    Args:
        scale: of the explained output: its probability, as the text suggests, or its logit, with which the numbers
            of the paper's Table 4 agree.
        fractions: of the pixels that are shown, rising.
        batch_size: most edited frames in one forward pass; changes results by rounding only.
        seed: of ties between equal saliencies.

    Source: An and Joe 2022, section 4.2.3.
    Deviation: see `percentage_in`.

    Example:
        >>> PercentageIn().fractions, PercentageIn(scale="logit").label
        ((0.05, 0.1, 0.2, 0.25, 0.5), 'percentage-in-logit')
    """

    name: ClassVar[str] = "percentage-in"
    category: ClassVar[Category] = "confidence"
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[Need | None] = "probability"

    scale: Literal["probability", "logit"] = "probability"
    fractions: tuple[float, ...] = SHOWN_FRACTIONS

    def __post_init__(self) -> None:
        if self.scale not in ("probability", "logit"):
            raise ValueError(f"got scale {self.scale!r}, expected one of: probability, logit")

    @property
    def label(self) -> str:
        """The name with the scale, probability excepted."""
        return self.name if self.scale == "probability" else f"{self.name}-{self.scale}"

    def measure(self, batch: EvalBatch, ranked: RankedMaps) -> Iterator[tuple[str, Columns]]:
        """A curve over the fractions, and its mean; see `Metric.measure`."""
        shown = percentage_in(
            batch.model,
            batch.frames,
            ranked.ranks,
            batch.values if self.scale == "probability" else partial(_logits, batch),
            fractions=self.fractions,
            batch_size=self.batch_size,
        )
        fractions = torch.tensor(self.fractions, dtype=torch.float64)
        for reference, left in zip(batch.references, shown.unbind(1), strict=True):
            yield reference, {"value": left.mean(-1), "curve": left, "fractions": fractions}

    def describe(self, quantity: Quantity) -> dict[str, Any]:
        """See `Metric.describe`."""
        return {
            "kind": "shown pixels",
            "quantity": quantity.name if self.scale == "probability" else "logit of the explained output",
            "unit": quantity.unit if self.scale == "probability" else self.scale,
            "normalised_unit": quantity.unit if self.scale == "probability" else self.scale,
            "fractions": list(self.fractions),
            "fill": "black",
            "faithful": self.faithful(quantity),
        }


def _logits(batch: EvalBatch, scores: Float[Tensor, "B *variants K"]) -> Float[Tensor, "B R *variants"]:
    """The explained output's logit, the same for each of the R references."""
    found = batch.target(scores.flatten(0, -2)).view(scores.shape[:-1])
    return torch.stack([found] * len(batch.references), 1)
