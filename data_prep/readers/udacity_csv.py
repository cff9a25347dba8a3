"""Udacity's car: `interpolated.csv` with three cameras, or challenge 2's `center/` and its CSV.

Angles are of the steering wheel in rad, positive to the left; speed is in m/s. Both layouts stamp
each row with nanoseconds since 1970.
"""

from __future__ import annotations

from pathlib import Path

from data_prep.errors import DataError, quoted
from data_prep.geometry import Reduction
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
from data_prep.readers.tables import Identity, LogTable, Rows
from data_prep.schema import VEHICLES, Drive
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
        table, rows = _interpolated(path, camera)
    elif camera == "center":
        table, rows = _challenge(path)
    else:
        raise DataError(f"{folder}: challenge 2 has no {camera} camera; leave camera out")
    recording = drive_name(folder)
    identity = Identity(
        name=name_of(recording, camera),
        source=NAME,
        camera=camera,
        recording=recording,
        vehicle=VEHICLES["lincoln-mkz"],
        provenance=table.provenance | {"side_camera_correction_rad": offset_rad},
    )
    drive = rows.drive(folder, identity, reduced=reduced)
    return shifted(drive, offset_rad)


def _interpolated(path: Path, camera: Camera) -> tuple[LogTable, Rows]:
    """One camera's rows."""
    whole = LogTable.read(path, INTERPOLATED_COLUMNS)
    table = whole.where("frame_id", f"{camera}_camera")
    if not len(table):
        cameras = quoted(", ".join(sorted(set(whole.texts("frame_id")))[:5]), most=120)
        raise DataError(f"{path}: no row of {camera}_camera, there are {cameras}; choose another --camera")
    is_speed_recorded = any(table.texts("speed"))
    return table, Rows(
        time_ns=table.time_ns("timestamp"),
        images=table.texts("filename"),
        steering_wheel_rad=table.numbers("angle", most=MOST_STEERING_RAD),
        speed_mps=table.numbers("speed", most=MOST_SPEED_MPS) if is_speed_recorded else None,
    )


def _challenge(path: Path) -> tuple[LogTable, Rows]:
    table = LogTable.read(path, CHALLENGE_COLUMNS)
    time_ns, written = table.time_ns("frame_id"), table.texts("frame_id")
    stamps = written if (path.parent / "center" / f"{written[0]}.jpg").is_file() else time_ns.tolist()
    return table, Rows(
        time_ns=time_ns,
        images=[f"center/{stamp}.jpg" for stamp in stamps],
        steering_wheel_rad=table.numbers("steering_angle", most=MOST_STEERING_RAD),
    )
