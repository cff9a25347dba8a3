"""Udacity's three cameras: which to read, and what the side ones add to the steering.

Seen from the left camera the same road asks for steering more to the right, and the other way round:
so the sides teach how to come back from where the driver never went. They look along the car but
stand beside its centre, so no angle is right for every distance; the correction is a convention.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from data_prep.errors import DataError
from data_prep.schema import Drive

Camera = Literal["center", "left", "right"]
Cameras = Literal["center", "left", "right", "all"]


def chosen(cameras: Cameras) -> tuple[Camera, ...]:
    """The cameras to read, the centre first.

    Raises:
        DataError: there is no such choice.

    Example:
        >>> chosen("all")
        ('center', 'left', 'right')
    """
    if cameras == "all":
        return ("center", "left", "right")
    if cameras not in ("center", "left", "right"):
        raise DataError(f"camera {cameras!r} is unknown; choose center, left, right or all")
    return (cameras,)


def check_correction(correction_rad: float) -> None:
    """Refuses what is no angle of a wheel.

    Raises:
        DataError: it is pi or more to either side.
    """
    if not abs(correction_rad) < math.pi:
        raise DataError(f"side_camera_correction_rad is {correction_rad}; expected a steering angle below pi")


def correction_of(camera: str, correction_rad: float) -> float:
    """What a camera adds to the steering, in rad, positive to the left.

    Example:
        >>> [correction_of(camera, 0.1) for camera in chosen("all")]
        [0.0, -0.1, 0.1]
    """
    return {"left": -correction_rad, "right": correction_rad}.get(camera, 0.0)


def shifted(drive: Drive, offset_rad: float) -> Drive:
    """The drive with an offset of its steering; the same one where that is zero."""
    if not offset_rad or drive.steering_wheel is None:
        return drive
    steering = replace(drive.steering_wheel, value=drive.steering_wheel.value + offset_rad)
    return replace(drive, steering_wheel=steering)


def name_of(recording: str, camera: str) -> str:
    """The drive's name: the centre camera bears that of the recording."""
    return recording if camera == "center" else f"{recording}-{camera}"
