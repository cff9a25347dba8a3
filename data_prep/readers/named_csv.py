"""Any CSV whose columns are named by options: times, image files, steering, speed."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from data_prep.errors import DataError, quoted
from data_prep.geometry import Reduction
from data_prep.readers.dialects import first_row
from data_prep.readers.image_files import SUFFIXES
from data_prep.readers.paths import drive_name, visible
from data_prep.readers.tables import Identity, LogTable, Rows
from data_prep.readers.times import Unit
from data_prep.readers.units import AS_ROS, ControlUnits
from data_prep.schema import Drive

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
    controls: ControlUnits = AS_ROS,
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
        controls: units of the angles and speeds; each of its fields is an option.
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
    table = LogTable.read(path, list(dict.fromkeys(wanted)))
    camera = image or _image_column(table)
    rows = Rows(
        time_ns=table.time_ns(time, unit=time_unit),
        images=[name or None for name in table.texts(camera)],
        steering_wheel_rad=None if steering is None else controls.steering_wheel_rad(table.numbers(steering)),
        speed_mps=None if speed is None else controls.speed_mps(table.numbers(speed)),
    )
    folder = path.parent / images
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; correct --option images={images}")
    identity = Identity(
        name=drive_name(path),
        source=NAME,
        camera=camera,
        vehicle=controls.car,
        provenance=table.provenance | {"columns": named | {"image": camera}},
    )
    drive = rows.drive(folder, identity, reduced=reduced)
    if not len(drive):
        missing = drive.left_out.get("missing_image", ())
        first = quoted(missing[0], most=120) if missing else "none is named"
        raise DataError(
            f"{path}: none of its {len(missing)} images is in {folder} (the first: {first}); "
            "add --option images=FOLDER"
        )
    return [drive]


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


def _image_column(table: LogTable) -> str:
    """The only column whose cells, where they are not empty, end as image files do."""

    def holds_images(cells: pd.Series) -> bool:
        given = cells[cells != ""].str.lower()
        return len(given) > 0 and bool(given.str.endswith(tuple(SUFFIXES)).all())

    once = table.cells.columns[~table.cells.columns.duplicated(keep=False)]
    found = [name for name in once if holds_images(table.cells[name])]
    if len(found) != 1:
        which = f"{', '.join(found)} all name images" if found else "no column names images"
        columns = quoted(", ".join(table.cells.columns), most=200)
        raise DataError(f"{table.path}: {which}; add --option image=COLUMN, of {columns}")
    return found[0]
