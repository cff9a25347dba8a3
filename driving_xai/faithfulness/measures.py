"""The measures by their literature names, and what a score is worth to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from driving_xai.contracts import Scores
from driving_xai.faithfulness import curve, localisation
from driving_xai.faithfulness.batch import Batch, Editing, Maps, Quantity
from driving_xai.faithfulness.localisation import Localisation
from driving_xai.perturb import pixel_counts

Columns = Mapping[str, Tensor]
"""Of `results.PER_FRAME_SCHEMA`: a `value` for each frame and method, and what goes with it."""


class Measure(Protocol):
    """Judges the maps of a batch."""

    @property
    def needs_causes(self) -> bool: ...

    def __call__(self, batch: Batch, maps: Maps, how: Editing) -> Iterator[tuple[str, Columns]]:
        """The columns for each reference."""
        ...

    def describe(self, quantity: Quantity) -> dict[str, Any]:
        """What its numbers mean, as JSON."""
        ...


@dataclass(frozen=True, kw_only=True)
class CurveMeasure:
    """The area under a quantity, as a growing part of the frame is edited."""

    scores: Callable[..., Float[Tensor, "B *methods V K"]]
    """`curve.deletion` or `curve.insertion`."""
    fractions: tuple[float, ...]
    """Of pixels edited, rising."""
    salient: Literal["removed", "shown"]
    """What happens to the most salient pixels first."""
    needs_causes = False

    def __call__(self, batch: Batch, maps: Maps, how: Editing) -> Iterator[tuple[str, Columns]]:
        """The quantity along each method's curve; see `Measure`."""
        scores = self.scores(
            batch.model,
            batch.frames,
            maps.ranks,
            self.fractions,
            fill=how.fill,
            batch_size=how.batch_size,
            clean=batch.clean,
        )
        pixels = maps.ranks.shape[-1]
        # As edited: a percent of a small frame is no whole number of pixels.
        fractions = (pixel_counts(self.fractions, pixels).double() / pixels).tolist()
        span = fractions[-1] - fractions[0]
        factor = batch.quantity.area_factor(span)
        for reference, value in batch.references.items():
            curves = value(scores)
            under, unedited = curve.area(fractions, curves), value(batch.clean[:, None])
            yield (
                reference,
                {
                    "value": factor * under,
                    "normalised": under / span,
                    "base_corrected": factor * (under - span * unedited),
                    "curve": curves,
                },
            )

    def describe(self, quantity: Quantity) -> dict[str, Any]:
        """See `Measure`."""
        rises = (quantity.without_evidence == "rises") == (self.salient == "removed")
        return {
            "kind": "curve",
            "quantity": quantity.name,
            "unit": quantity.area_unit,
            "normalised_unit": quantity.unit,
            "fractions": list(self.fractions),
            "endpoints": "both included",
            "faithful": "high" if rises else "low",
        }


@dataclass(frozen=True, kw_only=True)
class LocalisationMeasure:
    """A comparison of the map with the pixels known to cause the label; high is good."""

    localise: Localisation
    needs_causes = True

    def __call__(self, batch: Batch, maps: Maps, how: Editing) -> Iterator[tuple[str, Columns]]:
        """Each method's maps against the causes; see `Measure`."""
        assert batch.causes is not None
        found = [
            self.localise(saliency, ranks, batch.causes)
            for saliency, ranks in zip(maps.saliency.unbind(1), maps.ranks.unbind(1), strict=True)
        ]
        value, chance = (torch.stack(parts, 1) for parts in zip(*found, strict=True))
        yield "cause", {"value": value, "chance": chance}

    def describe(self, quantity: Quantity) -> dict[str, Any]:
        """See `Measure`."""
        return {"kind": "localisation", "reference": "pixels that cause the label", "faithful": "high"}


MEASURES: Mapping[str, Measure] = {
    # Tashiro and Awano 2023, Fig. 6: 0 to 25 % in steps of 1 %.
    "deletion": CurveMeasure(
        scores=curve.deletion,
        fractions=tuple(percent / 100 for percent in range(26)),
        salient="removed",
    ),
    # RISE's range, in as many points as deletion.
    "insertion": CurveMeasure(
        scores=curve.insertion,
        fractions=tuple(percent / 100 for percent in range(0, 101, 4)),
        salient="shown",
    ),
    "pointing-game": LocalisationMeasure(localise=localisation.pointing_game),
    "mass-inside": LocalisationMeasure(localise=localisation.mass_inside),
    "top-k-precision": LocalisationMeasure(localise=localisation.top_k_precision),
    "auroc": LocalisationMeasure(localise=localisation.auroc),
    "average-precision": LocalisationMeasure(localise=localisation.average_precision),
}


STEERING_ERROR = Quantity(
    name="absolute error of the steering-wheel angle",
    unit="deg",
    area="times percent",
    without_evidence="rises",
)


@dataclass(frozen=True, kw_only=True)
class SteeringError:
    """How far a predicted steering-wheel angle is from a reference, in degrees; a `Value`.

    NaN where the reference is.

    Source: Tashiro and Awano 2023, eq. 3 solved for the angle.
    """

    degrees_per_unit: Float64[Tensor, " B"]
    """Of inverse turning radius; see `data.degrees_per_unit`."""
    reference_deg: Float64[Tensor, " B"]
    """The measured angle, or the prediction for the unedited frame; positive to the left."""

    def __call__(self, scores: Float[Tensor, "B *variants 1"]) -> Float64[Tensor, "B *variants"]:
        shape = (-1, *[1] * (scores.dim() - 2))
        angles = scores[..., 0].double() * self.degrees_per_unit.view(shape)
        return (angles - self.reference_deg.view(shape)).abs()


def angle_deg(scores: Scores, degrees_per_unit: Float64[Tensor, " B"]) -> Float64[Tensor, " B"]:
    """Steering-wheel angles of scores in 1/m, positive to the left."""
    return scores[:, 0].double() * degrees_per_unit
