"""The Udacity simulator: `driving_log.csv`, with or without a header, and `IMG/`.

The log's steering runs from -1 to 1, which is -25 to 25 degrees of the ROAD wheel, positive to the
right; its speed is in miles an hour; its paths are those of the machine that recorded. Times are
in the image names, as local time of that machine.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from data_prep.errors import DataError, quoted
from data_prep.geometry import Reduction
from data_prep.readers.cameras import (
    Cameras,
    check_correction,
    chosen,
    correction_of,
    name_of,
    shifted,
)
from data_prep.readers.dialects import first_row
from data_prep.readers.paths import drive_name, existing_folder, file_name
from data_prep.readers.tables import Identity, LogTable, Rows
from data_prep.schema import VEHICLES, Drive
from data_prep.signals import MOST_SPEED_MPS

NAME = "udacity-sim"

COLUMNS = ("center", "left", "right", "steering", "throttle", "brake", "speed")
LOG = "driving_log.csv"
IMAGES = "IMG"
FULL_LOCK_RAD = math.radians(25.0)
"""Road-wheel angle at steering 1. Source: udacity/self-driving-car-sim, CarController m_MaximumSteerAngle."""
SIDE_CAMERA_CORRECTION_RAD = 0.2 * FULL_LOCK_RAD
"""5 degrees of the road wheel. Source: the correction of 0.2 in Udacity's Self-Driving Car course, lesson
"Behavioral Cloning", using multiple cameras; given there as a parameter to tune."""
MPS_PER_MPH = 0.44704
_YEARS = range(1970, 2262)
"""Nanoseconds since 1970 fit 64 bits until then."""
_TIME = re.compile(r"_(\d{4})_(\d\d)_(\d\d)_(\d\d)_(\d\d)_(\d\d)_(\d{3})\.\w+$")


def recognises(source: Path) -> bool:
    """Whether the folder has the simulator's log and its images."""
    return (source / LOG).is_file() and (source / IMAGES).is_dir()


def drives(
    source: Path,
    *,
    camera: Cameras = "center",
    side_camera_correction_rad: float = SIDE_CAMERA_CORRECTION_RAD,
    reduced: Reduction = 1,
) -> list[Drive]:
    """Reads one recording of the simulator.

    Args:
        source: the folder of the log.
        camera: which of the three cameras, or `all`, a drive each.
        side_camera_correction_rad: taken from the road wheel's angle for the left camera, added for the
            right: seen from the left, the same road asks for steering more to the right. 0 is off.
        reduced: shrink while decoding, faster and not exact.

    Raises:
        DataError: the log is missing or malformed, or an image name holds no time.
    """
    cameras = chosen(camera)
    check_correction(side_camera_correction_rad)
    path = existing_folder(source) / LOG
    table = LogTable.read(path, COLUMNS, header=_has_header(path))
    steering = table.numbers("steering")
    if np.nanmax(np.abs(steering), initial=0.0) > 1.0:
        raise DataError(
            f"{path}: steering reaches {np.nanmax(np.abs(steering)):g}, expected -1 to 1; check the columns"
        )
    vehicle = VEHICLES["udacity-simulator"]
    angle = (0.0 - steering) * FULL_LOCK_RAD * vehicle.steering_ratio
    speed = table.numbers("speed", most=MOST_SPEED_MPS / MPS_PER_MPH) * MPS_PER_MPH
    found = []
    for each in cameras:
        named = [f"{IMAGES}/{file_name(text)}" for text in table.texts(each)]
        offset_rad = correction_of(each, side_camera_correction_rad)
        identity = Identity(
            name=name_of(drive_name(source), each),
            source=NAME,
            camera=each,
            recording=drive_name(source),
            vehicle=vehicle,
            provenance=table.provenance | {"side_camera_correction_rad": offset_rad},
        )
        rows = Rows(time_ns=_times(named, path), images=named, steering_wheel_rad=angle, speed_mps=speed)
        found.append(shifted(rows.drive(source, identity, reduced=reduced), offset_rad))
    return found


def _has_header(path: Path) -> bool:
    if not path.exists():
        raise DataError(f"{path}: no such log; expected {LOG} beside {IMAGES}/")
    return "".join(first_row(path, COLUMNS)[:1]).lower() == COLUMNS[0]


def _times(names: list[str], path: Path) -> Int64[np.ndarray, " N"]:
    """From `center_2018_07_19_21_36_37_500.jpg`. The zone is unknown, so the clock is read as UTC."""
    times = []
    for row, name in enumerate(names, start=1):
        found = _TIME.search(name)
        try:
            if found is None:
                raise ValueError
            year, month, day, hour, minute, second, millisecond = map(int, found.groups())
            if year not in _YEARS:
                raise ValueError
            stamp = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
        except ValueError:
            raise DataError(
                f"{path} row {row}: {quoted(name)} holds no time, expected camera_YYYY_MM_DD_hh_mm_ss_mmm.jpg; "
                "restore the image names"
            ) from None
        times.append((int(stamp.timestamp()) * 1000 + millisecond) * 1_000_000)
    return np.array(times, dtype=np.int64)
