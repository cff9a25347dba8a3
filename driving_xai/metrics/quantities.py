"""What curves are drawn of: the steering error in degrees, or the probability of an output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Float64
from torch import Tensor

from driving_xai.types import Scores

Value = Callable[[Float[Tensor, "B *variants K"]], Float[Tensor, "B *values"]]
"""Scores of a frame's variants to the numbers a curve is drawn of: `variants` of them, or R times as many with
the references first, see `EvalBatch.values`."""


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """What a model's curves are drawn of, and how their areas are stated.

    Example:
        >>> STEERING_ERROR.area_unit, STEERING_ERROR.area_factor(0.25)
        ('deg x percent of pixels', 100.0)
    """

    name: str
    unit: str
    area: Literal["times percent", "mean height"]
    """Whether an area is in the unit times percent of pixels, or divided by the range it was taken over."""
    without_evidence: Literal["rises", "falls"]
    """What it does when the pixels that matter are gone: an error rises, a probability falls."""
    is_probability: bool = False

    @property
    def area_unit(self) -> str:
        """The unit of an area under a curve of this quantity."""
        return f"{self.unit} x percent of pixels" if self.area == "times percent" else self.unit

    def area_factor(self, span: float) -> float:
        """The factor from an area over a range of fractions to `area_unit`.

        Args:
            span: the length of the range, 0.25 for a quarter of the pixels.
        """
        return 100.0 if self.area == "times percent" else 1 / span


STEERING_ERROR = Quantity(
    name="absolute error of the steering-wheel angle",
    unit="deg",
    area="times percent",
    without_evidence="rises",
)
PROBABILITY = Quantity(
    name="probability of the explained output",
    unit="probability",
    area="mean height",
    without_evidence="falls",
    is_probability=True,
)


@dataclass(frozen=True, kw_only=True)
class SteeringError:
    """How far a predicted steering-wheel angle is from a reference, in degrees; a `Value`.

    NaN where the reference is.

    Source: Tashiro and Awano 2023, eq. 3 solved for the angle.

    Example:
        >>> import torch
        >>> angle = torch.tensor([5.0], dtype=torch.float64)
        >>> error = SteeringError(degrees_per_unit=torch.tensor([1000.0], dtype=torch.float64), reference_deg=angle)
        >>> error(torch.tensor([[[0.25], [0.5]]])).tolist()
        [[245.0, 495.0]]
    """

    degrees_per_unit: Float64[Tensor, " B"]
    """Of inverse turning radius; see `drives.degrees_per_unit`."""
    reference_deg: Float64[Tensor, " B"]
    """The measured angle, or the prediction for the unedited frame; positive to the left."""

    def __call__(self, scores: Float[Tensor, "B *variants 1"]) -> Float64[Tensor, "B *variants"]:
        """The absolute error of each variant, in degrees."""
        shape = (-1, *[1] * (scores.dim() - 2))
        angles = scores[..., 0].double() * self.degrees_per_unit.view(shape)
        return (angles - self.reference_deg.view(shape)).abs()


def angle_deg(scores: Scores, degrees_per_unit: Float64[Tensor, " B"]) -> Float64[Tensor, " B"]:
    """Steering-wheel angles of scores in 1/m, positive to the left."""
    return scores[:, 0].double() * degrees_per_unit
