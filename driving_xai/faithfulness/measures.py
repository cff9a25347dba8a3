"""The measures by their literature names, and what a score is worth to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Float64
from torch import Tensor

from driving_xai.contracts import Scores
from driving_xai.faithfulness import curve, localisation
from driving_xai.faithfulness.localisation import Localisation

Value = Callable[[Float[Tensor, "B *variants K"]], Float[Tensor, "B *variants"]]
"""Scores of a frame's variants to the numbers a curve is drawn of. For a classifier that is, say, the
softmax probability of a class."""


@dataclass(frozen=True, kw_only=True)
class CurveMeasure:
    """A score as a function of how much of the frame is edited."""

    scores: Callable[..., Float[Tensor, "B *methods V K"]]
    """`curve.deletion` or `curve.insertion`."""
    fractions: tuple[float, ...]
    """Of pixels edited, rising."""
    faithful_error: Literal["high", "low"]
    """Whether the area under the error is high or low where the map is faithful."""


@dataclass(frozen=True, kw_only=True)
class LocalisationMeasure:
    """A comparison of the map with the pixels known to cause the label; high is good."""

    localise: Localisation


MEASURES: Mapping[str, CurveMeasure | LocalisationMeasure] = {
    # Tashiro and Awano 2023, Fig. 6: 0 to 25 % in steps of 1 %.
    "deletion": CurveMeasure(
        scores=curve.deletion,
        fractions=tuple(percent / 100 for percent in range(26)),
        faithful_error="high",
    ),
    # RISE's range, in as many points as deletion.
    "insertion": CurveMeasure(
        scores=curve.insertion,
        fractions=tuple(percent / 100 for percent in range(0, 101, 4)),
        faithful_error="low",
    ),
    "pointing-game": LocalisationMeasure(localise=localisation.pointing_game),
    "mass-inside": LocalisationMeasure(localise=localisation.mass_inside),
    "top-k-precision": LocalisationMeasure(localise=localisation.top_k_precision),
    "auroc": LocalisationMeasure(localise=localisation.auroc),
    "average-precision": LocalisationMeasure(localise=localisation.average_precision),
}


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
