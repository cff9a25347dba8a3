"""Any CSV whose columns are named by options: times, image files, steering, speed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from data_prep.errors import DataError, quoted
from data_prep.geometry import ImageFiles, Reduction
from data_prep.readers.dialects import first_row
from data_prep.readers.image_files import SUFFIXES
from data_prep.readers.paths import drive_name, visible
from data_prep.readers.tables import listed_images, numbers, read_csv, table_provenance
from data_prep.readers.times import Unit, in_time, nanoseconds
from data_prep.readers.units import AngleUnit, ControlUnits, Side, SpeedUnit, Wheel, vehicle_named
from data_prep.schema import Drive, Signal

NAME = "csv"


def recognises(source: Path) -> bool:
    """Never: which column means what must be said."""
    del source
    return False


def drives(
    source: Path,
    *,
    time: str | None = None,
    steering: str | None = None,
    image: str | None = None,
    speed: str | None = None,
    images: str = ".",
    time_unit: Unit | None = None,
    steering_unit: AngleUnit = "rad",
    steering_of: Wheel = "steering",
    positive: Side = "left",
    full_lock_deg: float | None = None,
    speed_unit: SpeedUnit = "m/s",
    vehicle: str = "lincoln-mkz",
    reduced: Reduction = 1,
) -> list[Drive]:
    """Reads one CSV with a header: a row is an instant, with an image, with controls, or with both.

    Args:
        source: the CSV, or a folder with one in it.
        time: the column of times.
        steering: the column of angles; without it the drive has no labels.
        image: the column of image files; None takes the only one whose cells end as images do.
        speed: the column of speeds.
        images: the folder that the image files are relative to, itself relative to the CSV's.
        time_unit: None tells Unix times from their digits; other times need their unit.
        steering_unit: of the angles; `fraction` is -1 to 1 of `full_lock_deg`.
        steering_of: the wheel that the angles are of.
        positive: the side that positive angles turn to.
        full_lock_deg: the angle of a fraction of 1.
        speed_unit: of the speeds.
        vehicle: a name in `VEHICLES`, for the label and for angles of the road wheel.
        reduced: shrink while decoding, faster and not exact.

    Raises:
        DataError: a column is not named or not there, a cell cannot be read, or no row has an image.
    """
    path = _table_of(source)
    if time is None:
        raise DataError(
            f"{path}: name the columns, as --option time=COLUMN --option steering=COLUMN; it has {_listed(path)}"
        )
    named = {"time": time, "steering": steering, "image": image, "speed": speed}
    wanted = [column for column in named.values() if column is not None]
    table = read_csv(path, list(dict.fromkeys(wanted)))
    image_column = image or _image_column(table, path)
    units = ControlUnits(
        angle=steering_unit,
        wheel=steering_of,
        positive=positive,
        full_lock_deg=full_lock_deg,
        speed=speed_unit,
        vehicle=vehicle_named(vehicle),
    )
    return [_drive(path, table, named | {"image": image_column}, units, images, time_unit, reduced)]


def _table_of(source: Path) -> Path:
    if source.is_file():
        return source
    tables = [path for path in visible(source) if path.suffix.lower() in (".csv", ".tsv", ".txt")]
    if len(tables) != 1:
        names = ", ".join(path.name for path in tables[:5]) or "none"
        raise DataError(f"{source}: holds {len(tables)} tables ({names}); pass the path of one")
    return tables[0]


def _listed(path: Path) -> str:
    return quoted(", ".join(first_row(path, ())) or "no header", most=200)


def _image_column(table: pd.DataFrame, path: Path) -> str:
    """The only column whose cells, where they are not empty, end as image files do."""

    def holds_images(cells: pd.Series) -> bool:
        given = cells[cells != ""].str.lower()
        return len(given) > 0 and bool(given.str.endswith(tuple(SUFFIXES)).all())

    found = [name for name in table.columns if holds_images(table[name])]
    if len(found) != 1:
        which = f"{', '.join(found)} all name images" if found else "no column names images"
        columns = quoted(", ".join(table.columns), most=200)
        raise DataError(f"{path}: {which}; add --option image=COLUMN, of {columns}")
    return found[0]


def _drive(
    path: Path,
    table: pd.DataFrame,
    columns: Mapping[str, str | None],
    units: ControlUnits,
    images: str,
    time_unit: Unit | None,
    reduced: Reduction,
) -> Drive:
    assert columns["time"] is not None
    assert columns["image"] is not None
    time_ns = nanoseconds(table, columns["time"], path, unit=time_unit)
    order = in_time(time_ns)
    table, time_ns = table.iloc[order.rows], time_ns[order.rows]
    files = table[columns["image"]]
    with_image = np.flatnonzero((files != "").to_numpy())
    folder = path.parent / images
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; correct --option images={images}")
    found = listed_images(folder, files.iloc[with_image].tolist())
    if not len(found.rows):
        first = quoted(files.iloc[with_image[0]], most=120) if len(with_image) else "none is named"
        raise DataError(
            f"{path}: none of its {len(with_image)} images is in {folder} (the first: {first}); "
            "add --option images=FOLDER"
        )
    steering, speed = columns["steering"], columns["speed"]
    return Drive(
        name=drive_name(path),
        source=NAME,
        camera=columns["image"],
        vehicle=units.vehicle,
        time_ns=time_ns[with_image[found.rows]],
        images=ImageFiles(folder=folder.resolve(), names=found.names, reduced=reduced),
        steering_wheel=None
        if steering is None
        else Signal(time_ns=time_ns, value=units.steering_wheel_rad(numbers(table, steering, path))),
        speed=None
        if speed is None
        else Signal(time_ns=time_ns, value=units.speed_mps(numbers(table, speed, path))),
        left_out={"missing_image": found.missing} if found.missing else {},
        sorted_rows=order.moved,
        provenance=table_provenance(path, len(table)) | {"columns": dict(columns)},
    )
