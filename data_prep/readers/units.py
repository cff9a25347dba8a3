"""Controls in the units of other logs: to radians of the steering wheel, left positive, and metres a second."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64

from data_prep.errors import DataError
from data_prep.schema import VEHICLES, Vehicle
from data_prep.signals import MOST_SPEED_MPS, MOST_STEERING_RAD, credible

AngleUnit = Literal["rad", "deg", "fraction"]
"""`fraction`: -1 to 1 of full lock."""
Wheel = Literal["steering", "road"]
Side = Literal["left", "right"]
SpeedUnit = Literal["m/s", "km/h", "mph"]

MPS_OF: dict[str, float] = {"m/s": 1.0, "km/h": 1.0 / 3.6, "mph": 0.44704}


@dataclass(frozen=True, kw_only=True)
class ControlUnits:
    """How a log states its controls.

    Raises:
        DataError: a fraction without its full lock, a full lock that is no angle, or an unknown vehicle.

    Example:
        >>> units = ControlUnits(angle="fraction", wheel="road", positive="right", full_lock_deg=25.0)
        >>> np.degrees(units.steering_wheel_rad(np.array([0.1]))).round(3).tolist()
        [-37.0]
    """

    angle: AngleUnit = "rad"
    wheel: Wheel = "steering"
    """Which wheel the angle is of; one of the road wheel is multiplied by the vehicle's ratio."""
    positive: Side = "left"
    """Where positive angles turn to."""
    full_lock_deg: float | None = None
    """The angle, of that wheel, of a fraction of 1."""
    speed: SpeedUnit = "m/s"
    vehicle: Vehicle = VEHICLES["lincoln-mkz"]

    def __post_init__(self) -> None:
        if (self.angle == "fraction") != (self.full_lock_deg is not None):
            raise DataError(
                "a steering of -1 to 1 needs --option steering_unit=fraction and --option full_lock_deg=DEGREES, "
                "and other units need neither"
            )
        if self.full_lock_deg is not None and not 0.0 < self.full_lock_deg <= 1000.0:
            raise DataError(f"full_lock_deg is {self.full_lock_deg:g}; expected degrees, over 0 up to 1000")

    def steering_wheel_rad(self, value: Float64[np.ndarray, " N"]) -> Float64[np.ndarray, " N"]:
        """The angle of the steering wheel in rad, positive to the left; what no car has is NaN.

        Raises:
            DataError: fractions reach beyond 1 to either side.
        """
        if self.angle == "fraction" and np.nanmax(np.abs(value), initial=0.0) > 1.0:
            raise DataError(
                f"steering reaches {np.nanmax(np.abs(value)):g}, expected -1 to 1; choose another steering_unit"
            )
        scale = {"rad": 1.0, "deg": math.radians(1.0)}.get(
            self.angle, math.radians(self.full_lock_deg or 0.0)
        )
        sign = 1.0 if self.positive == "left" else -1.0
        ratio = 1.0 if self.wheel == "steering" else self.vehicle.steering_ratio
        return credible(0.0 + value * (sign * scale * ratio), most=MOST_STEERING_RAD)

    def speed_mps(self, value: Float64[np.ndarray, " N"]) -> Float64[np.ndarray, " N"]:
        """The speed in m/s; what no car has is NaN."""
        return credible(value * MPS_OF[self.speed], most=MOST_SPEED_MPS)


def vehicle_named(name: str) -> Vehicle:
    """The vehicle of this name.

    Raises:
        DataError: there is none.
    """
    if name not in VEHICLES:
        raise DataError(f"vehicle {name!r} is unknown; choose one of {', '.join(VEHICLES)}")
    return VEHICLES[name]
