"""CSV files of recordings: tables of text, columns of numbers and times, and drives made of rows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64

from data_prep.errors import DataError, quoted
from data_prep.geometry import ImageFiles, Reduction
from data_prep.readers import times
from data_prep.readers.dialects import cells_of
from data_prep.readers.paths import inside, printable
from data_prep.schema import Drive, Signal, Vehicle
from data_prep.shards.atomic import sha256_of
from data_prep.signals import credible

_THOUSANDS = r"[+-]?[1-9]\d{0,2}(,\d{3})+"


@dataclass(frozen=True)
class LogTable:
    """A CSV of a recording, in whatever dialect: every cell as stripped text, the index being the line in the file."""

    path: Path
    cells: pd.DataFrame

    @classmethod
    def read(cls, path: Path, columns: Sequence[str] | None = None, *, header: bool = True) -> LogTable:
        """Reads the whole file.

        Args:
            path: the CSV file.
            columns: the columns that must be there; or, without a header, their names in order.
            header: whether the first row names the columns.

        Raises:
            DataError: as `cells_of`, or the table lacks a column or has it twice.
        """
        cells = cells_of(path, columns or ())
        names = tuple(cells.iloc[0]) if header else tuple(columns or ())
        if len(names) != cells.shape[1]:
            raise DataError(
                f"{path}: rows of {cells.shape[1]} cells, expected {len(names)}: {', '.join(names)}; check the file"
            )
        body = cells.iloc[1:] if header else cells
        _check_columns(names, columns or (), path)
        if not len(body):
            raise DataError(f"{path}: a header without rows; restore the file")
        lines = range(1 + int(header), len(cells) + 1)
        return cls(path, body.set_axis(list(names), axis=1).set_axis(lines))

    def __len__(self) -> int:
        return len(self.cells)

    def where(self, column: str, text: str) -> LogTable:
        """The rows whose cell is this text."""
        return replace(self, cells=self.cells[self.cells[column] == text])

    def texts(self, column: str) -> list[str]:
        """A column as it stands."""
        return self.cells[column].tolist()

    def numbers(self, column: str, *, most: float = np.inf) -> Float64[np.ndarray, " N"]:
        """A column of numbers; an empty cell is NaN, unknown, and so is a number beyond `most`.

        Raises:
            DataError: a cell is neither a number nor empty, or its commas may be decimal or of thousands.
        """
        cells = self.cells[column]
        text = _with_points(cells, column, self.path)
        values = pd.to_numeric(text.where(text != ""), errors="coerce").to_numpy(dtype=np.float64)
        wrong = np.flatnonzero(np.isnan(values) & ~cells.str.lower().isin(["", "nan"]).to_numpy())
        if len(wrong):
            line, first = cells.index[wrong[0]], cells.iloc[wrong[0]]
            raise DataError(
                f"{self.path} line {line}: {column} is {quoted(first)}, expected a number; correct or remove the row"
            )
        return credible(values, most=most)

    def time_ns(self, column: str, *, unit: times.Unit | None = None) -> Int64[np.ndarray, " N"]:
        """A column of times as nanoseconds, exactly; as `times.nanoseconds`."""
        return times.nanoseconds(self.cells, column, self.path, unit=unit)

    @property
    def provenance(self) -> dict[str, Any]:
        """What identifies the file a drive was read from, and how many of its rows were."""
        return {
            "folder": printable(self.path.resolve().parent.name),
            "csv": printable(self.path.name),
            "rows": len(self),
            "csv_sha256": sha256_of(self.path),
        }


def _check_columns(names: Sequence[str], columns: Sequence[str], path: Path) -> None:
    missing = [name for name in columns if name not in names]
    if missing:
        listed = quoted(", ".join(names), most=200)
        raise DataError(f"{path}: has columns {listed}; expected also {', '.join(missing)}")
    twice = [name for name in columns if names.count(name) > 1]
    if twice:
        raise DataError(f"{path}: has the column {twice[0]} twice; remove one")


def _with_points(text: pd.Series, column: str, path: Path) -> pd.Series:
    """The column with decimal commas made points."""
    with_comma = text[text.str.contains(",", regex=False)]
    if not len(with_comma):
        return text
    if text.str.contains(".", regex=False).any() or with_comma.str.fullmatch(_THOUSANDS).all():
        line, first = with_comma.index[0], with_comma.iloc[0]
        raise DataError(
            f"{path} line {line}: {column} is {quoted(first)}, whose comma may be decimal or of thousands; "
            "save the file with decimal points"
        )
    return text.str.replace(",", ".", regex=False)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of a log, an instant each: what all readers of tables find, however it is written."""

    time_ns: Int64[np.ndarray, " N"]
    images: Sequence[str | None]
    """The image of each, as the log names it; None where a row has controls only."""
    steering_wheel_rad: Float64[np.ndarray, " N"] | None
    speed_mps: Float64[np.ndarray, " N"] | None = None

    def _in_order(self, rows: Int64[np.ndarray, " N"]) -> Rows:
        return Rows(
            time_ns=self.time_ns[rows],
            images=[self.images[row] for row in rows],
            steering_wheel_rad=None if self.steering_wheel_rad is None else self.steering_wheel_rad[rows],
            speed_mps=None if self.speed_mps is None else self.speed_mps[rows],
        )

    def drive(self, folder: Path, identity: Identity, *, reduced: Reduction = 1) -> Drive:
        """The rows in the order of time, and of their images those that are there.

        Args:
            folder: what the images' names are relative to.
            identity: what the rows do not say.
            reduced: shrink while decoding, faster and not exact.

        Raises:
            DataError: a name leads outside the folder.
        """
        order = times.in_time(self.time_ns)
        rows = self._in_order(order.rows)
        with_image = np.flatnonzero([name is not None for name in rows.images])
        found = listed_images(folder, [name for name in rows.images if name is not None])
        missing = {"missing_image": found.missing} if found.missing else {}
        return Drive(
            name=identity.name,
            source=identity.source,
            camera=identity.camera,
            recording=identity.recording,
            vehicle=identity.vehicle,
            time_ns=rows.time_ns[with_image[found.rows]],
            images=ImageFiles(folder=folder.resolve(), names=found.names, reduced=reduced),
            steering_wheel=_signal(rows.time_ns, rows.steering_wheel_rad),
            speed=_signal(rows.time_ns, rows.speed_mps),
            left_out={**identity.left_out, **missing},
            sorted_rows=order.moved,
            provenance=identity.provenance,
        )


def _signal(time_ns: Int64[np.ndarray, " N"], value: Float64[np.ndarray, " N"] | None) -> Signal | None:
    return None if value is None else Signal(time_ns=time_ns, value=value)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Whose rows they are; the fields of a `Drive` that no row states."""

    name: str
    source: str
    camera: str
    vehicle: Vehicle
    provenance: Mapping[str, Any]
    recording: str | None = None
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class ListedImages(NamedTuple):
    """Which rows of a CSV have their image."""

    rows: Int64[np.ndarray, " T"]
    names: tuple[str, ...]
    """Below the folder, one for each of `rows`."""
    missing: tuple[str, ...]
    """As the CSV names them."""


def listed_images(folder: Path, named: Sequence[str]) -> ListedImages:
    """Looks up the image that each row of a CSV names, without leaving the folder.

    Raises:
        DataError: a name leads outside the folder.
    """
    root = folder.resolve()
    rows, names, missing = [], [], []
    plain: dict[str, frozenset[str]] = {}
    for row, name in enumerate(named):
        parent, _, base = name.rpartition("/")
        if parent not in plain:
            inside(root, name)
            plain[parent] = _plain_files(root / parent)
        # One listing answers for all images of a folder; only links and odd names are resolved singly.
        path = None if base in plain[parent] else inside(root, name)
        if path is None or path.is_file():
            rows.append(row)
            names.append(name if path is None else path.relative_to(root).as_posix())
        else:
            missing.append(name)
    return ListedImages(np.array(rows, dtype=np.int64), tuple(names), tuple(missing))


def _plain_files(folder: Path) -> frozenset[str]:
    """Names of the regular files directly in a folder, links left out."""
    if not folder.is_dir():
        return frozenset()
    with os.scandir(folder) as entries:
        return frozenset(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
