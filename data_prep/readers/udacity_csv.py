"""Udacity's car: `interpolated.csv` with three cameras, or challenge 2's `center/` and its CSV.

Angles are of the steering wheel in rad, positive to the left; speed is in m/s. Both layouts stamp
each row with nanoseconds since 1970.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from data_prep.errors import DataError, quoted
from data_prep.geometry import ImageFiles, Reduction
from data_prep.readers.cameras import (
    Camera,
    Cameras,
    check_correction,
    chosen,
    correction_of,
    name_of,
    shifted,
)
from data_prep.readers.dialects import first_row
from data_prep.readers.paths import drive_name, existing_folder, visible
from data_prep.readers.tables import listed_images, numbers, read_csv, table_provenance
from data_prep.readers.times import in_time, nanoseconds
from data_prep.schema import VEHICLES, Drive, Signal
from data_prep.signals import MOST_SPEED_MPS, MOST_STEERING_RAD

NAME = "udacity-csv"

INTERPOLATED_COLUMNS = ("timestamp", "frame_id", "filename", "angle", "speed")
CHALLENGE_COLUMNS = ("frame_id", "steering_angle")
_RANDOM_STEERING = "final_example.csv"
"""Udacity's format example: its steering values are random numbers."""


def recognises(source: Path) -> bool:
    """Whether the folder, or one directly below it, has one of the two layouts."""
    return bool(_recordings(source))


def drives(
    source: Path,
    *,
    camera: Cameras = "center",
    side_camera_correction_rad: float = 0.0,
    reduced: Reduction = 1,
) -> list[Drive]:
    """Reads every recording in a folder: the folder itself, or those directly below it.

    Args:
        source: the folder.
        camera: which of the three cameras, or `all`, a drive each; challenge 2 has the centre one only.
        side_camera_correction_rad: taken from the steering wheel's angle for the left camera, added for
            the right. None was published for this car; 0 leaves the angle as the driver steered.
        reduced: shrink while decoding, faster and not exact.

    Raises:
        DataError: nothing is found, a CSV is malformed, or its times were damaged by a float.
    """
    cameras = chosen(camera)
    check_correction(side_camera_correction_rad)
    recordings = _recordings(existing_folder(source))
    if not recordings:
        raise DataError(
            f"{source}: found neither *interpolated.csv nor center/ with a CSV of "
            f"{', '.join(CHALLENGE_COLUMNS)}; pass the folder that holds them"
        )
    return [
        _drive(folder, table, each, correction_of(each, side_camera_correction_rad), reduced)
        for folder, table in recordings
        for each in cameras
    ]


def _recordings(source: Path) -> list[tuple[Path, Path]]:
    """(folder, its CSV) of the source itself, or else of the folders below it, by name."""
    if not source.is_dir():
        return []
    folders = [source] if _table_of(source) else [entry for entry in visible(source) if entry.is_dir()]
    found = [(folder, _table_of(folder)) for folder in folders]
    return [(folder, table) for folder, table in found if table]


def _table_of(folder: Path) -> Path | None:
    tables = [path for path in visible(folder) if path.name.endswith(".csv")]
    interpolated = [path for path in tables if path.name.endswith("interpolated.csv")]
    if len(interpolated) > 1:
        names = ", ".join(path.name for path in interpolated)
        raise DataError(f"{folder}: holds {names}; expected one; put each recording into its own folder")
    if interpolated:
        return interpolated[0]
    if not (folder / "center").is_dir():
        return None
    for path in tables:
        header = first_row(path, CHALLENGE_COLUMNS)
        if path.name != _RANDOM_STEERING and set(header).issuperset(CHALLENGE_COLUMNS):
            return path
    return None


def _drive(folder: Path, path: Path, camera: Camera, offset_rad: float, reduced: Reduction) -> Drive:
    if path.name.endswith("interpolated.csv"):
        rows = _interpolated(path, camera)
    elif camera == "center":
        rows = _challenge(path)
    else:
        raise DataError(f"{folder}: challenge 2 has no {camera} camera; leave camera out")
    order = in_time(rows.time_ns)
    rows = rows.taken(order.rows)
    images = listed_images(folder, rows.images)
    recording = drive_name(folder)
    return Drive(
        name=name_of(recording, camera),
        source=NAME,
        camera=camera,
        recording=recording,
        vehicle=VEHICLES["lincoln-mkz"],
        time_ns=rows.time_ns[images.rows],
        images=ImageFiles(folder=folder.resolve(), names=images.names, reduced=reduced),
        steering_wheel=shifted(Signal(time_ns=rows.time_ns, value=rows.angle_rad), offset_rad),
        speed=None if rows.speed_mps is None else Signal(time_ns=rows.time_ns, value=rows.speed_mps),
        left_out={"missing_image": images.missing} if images.missing else {},
        sorted_rows=order.moved,
        provenance=table_provenance(path, len(rows.images)) | {"side_camera_correction_rad": offset_rad},
    )


class _Rows(NamedTuple):
    """One camera's rows of a CSV."""

    time_ns: Int64[np.ndarray, " N"]
    angle_rad: Float64[np.ndarray, " N"]
    speed_mps: Float64[np.ndarray, " N"] | None
    images: list[str]

    def taken(self, rows: Int64[np.ndarray, " M"]) -> _Rows:
        """These rows, in this order."""
        speed_mps = None if self.speed_mps is None else self.speed_mps[rows]
        return _Rows(self.time_ns[rows], self.angle_rad[rows], speed_mps, [self.images[r] for r in rows])


def _interpolated(path: Path, camera: Camera) -> _Rows:
    table = read_csv(path, INTERPOLATED_COLUMNS)
    chosen = table[table["frame_id"] == f"{camera}_camera"]
    if not len(chosen):
        cameras = quoted(", ".join(sorted(table["frame_id"].unique())[:5]), most=120)
        raise DataError(f"{path}: no row of {camera}_camera, there are {cameras}; choose another --camera")
    is_speed_recorded = bool((chosen["speed"] != "").any())
    return _Rows(
        nanoseconds(chosen, "timestamp", path),
        numbers(chosen, "angle", path, most=MOST_STEERING_RAD),
        numbers(chosen, "speed", path, most=MOST_SPEED_MPS) if is_speed_recorded else None,
        list(chosen["filename"]),
    )


def _challenge(path: Path) -> _Rows:
    table = read_csv(path, CHALLENGE_COLUMNS)
    time_ns = nanoseconds(table, "frame_id", path)
    written = table["frame_id"].tolist()
    stamps = written if (path.parent / "center" / f"{written[0]}.jpg").is_file() else time_ns.tolist()
    images = [f"center/{stamp}.jpg" for stamp in stamps]
    angle = numbers(table, "steering_angle", path, most=MOST_STEERING_RAD)
    return _Rows(time_ns, angle, None, images)
