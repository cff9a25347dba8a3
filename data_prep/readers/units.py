"""Controls in the units of other logs: to radians of the steering wheel, left positive, and metres a second."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64

from data_prep.errors import DataError
from data_prep.schema import VEHICLES, Signal, Vehicle
from data_prep.signals import MOST_SPEED_MPS, MOST_STEERING_RAD, credible

AngleUnit = Literal["rad", "deg", "fraction"]
"""`fraction`: -1 to 1 of full lock."""
Wheel = Literal["steering", "road"]
Side = Literal["left", "right"]
SpeedUnit = Literal["m/s", "km/h", "mph"]

MPS_OF: dict[str, float] = {"m/s": 1.0, "km/h": 1.0 / 3.6, "mph": 0.44704}


@dataclass(frozen=True, kw_only=True)
class ControlUnits:
    """How a log states its controls. Its fields are options of every reader that takes it.

    Raises:
        DataError: a fraction without its full lock, a full lock that is no angle, or an unknown vehicle.

    Example:
        >>> units = ControlUnits(
        ...     steering_unit="fraction", steering_of="road", positive="right", full_lock_deg=25.0
        ... )
        >>> np.degrees(units.steering_wheel_rad(np.array([0.1]))).round(3).tolist()
        [-37.0]
    """

    steering_unit: AngleUnit = "rad"
    """Of the angles; `fraction` is -1 to 1 of `full_lock_deg`."""
    steering_of: Wheel = "steering"
    """Which wheel the angles are of; one of the road wheel is multiplied by the vehicle's ratio."""
    positive: Side = "left"
    """The side that positive angles turn to; `left` in ROS (REP 103)."""
    full_lock_deg: float | None = None
    """The angle, of that wheel, of a fraction of 1."""
    speed_unit: SpeedUnit = "m/s"
    vehicle: str = "lincoln-mkz"
    """A name in `VEHICLES`, for the label and for angles of the road wheel."""

    def __post_init__(self) -> None:
        vehicle_named(self.vehicle)
        if (self.steering_unit == "fraction") != (self.full_lock_deg is not None):
            raise DataError(
                "a steering of -1 to 1 needs --option steering_unit=fraction and --option full_lock_deg=DEGREES, "
                "and other units need neither"
            )
        if self.full_lock_deg is not None and not 0.0 < self.full_lock_deg <= 1000.0:
            raise DataError(f"full_lock_deg is {self.full_lock_deg:g}; expected degrees, over 0 up to 1000")

    @property
    def car(self) -> Vehicle:
        """The vehicle that was named."""
        return VEHICLES[self.vehicle]

    def steering_wheel_rad(self, value: Float64[np.ndarray, " N"]) -> Float64[np.ndarray, " N"]:
        """The angle of the steering wheel in rad, positive to the left; what no car has is NaN.

        Raises:
            DataError: fractions reach beyond 1 to either side.
        """
        if self.steering_unit == "fraction" and np.nanmax(np.abs(value), initial=0.0) > 1.0:
            raise DataError(
                f"steering reaches {np.nanmax(np.abs(value)):g}, expected -1 to 1; choose another steering_unit"
            )
        scale = {"rad": 1.0, "deg": math.radians(1.0)}.get(
            self.steering_unit, math.radians(self.full_lock_deg or 0.0)
        )
        sign = 1.0 if self.positive == "left" else -1.0
        ratio = 1.0 if self.steering_of == "steering" else self.car.steering_ratio
        return credible(0.0 + value * (sign * scale * ratio), most=MOST_STEERING_RAD)

    def speed_mps(self, value: Float64[np.ndarray, " N"]) -> Float64[np.ndarray, " N"]:
        """The speed in m/s; what no car has is NaN."""
        return credible(value * MPS_OF[self.speed_unit], most=MOST_SPEED_MPS)

    def steering(self, recorded: Signal | None) -> Signal | None:
        """Recorded angles as those of the steering wheel; None where none are recorded."""
        if recorded is None:
            return None
        return Signal(time_ns=recorded.time_ns, value=self.steering_wheel_rad(recorded.value))

    def speed(self, recorded: Signal | None) -> Signal | None:
        """Recorded speeds in m/s; None where none are recorded."""
        if recorded is None:
            return None
        return Signal(time_ns=recorded.time_ns, value=self.speed_mps(recorded.value))


def vehicle_named(name: str) -> Vehicle:
    """The vehicle of this name.

    Raises:
        DataError: there is none.
    """
    if name not in VEHICLES:
        raise DataError(f"vehicle {name!r} is unknown; choose one of {', '.join(VEHICLES)}")
    return VEHICLES[name]


AS_ROS = ControlUnits()
"""rad of the steering wheel, positive to the left, and m/s. Source: REP 103."""
