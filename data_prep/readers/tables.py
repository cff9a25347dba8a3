"""CSV files of recordings: read as text first, so that no 19-digit time passes through a float."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64

from data_prep.errors import DataError, quoted
from data_prep.readers.paths import inside
from data_prep.shards.atomic import sha256_of
from data_prep.signals import credible

_NANOSECONDS = re.compile(r"\d{19}")
MAX_CSV_BYTES = 256 * 2**20
"""Ten hours of Udacity's three cameras take 240 MiB."""
MAX_HEADER_CHARACTERS = 2**16
"""What is looked at of a first line to tell what a CSV is."""
_RAGGED = re.compile(r"Expected (\d+) fields in line (\d+), saw (\d+)")
_FLOAT_SPACING_NS = 256
"""Distance between neighbouring float64 values near 1.4e18, the nanoseconds of the years since 2014."""


def read_csv(path: Path, columns: Sequence[str] | None = None, *, header: bool = True) -> pd.DataFrame:
    """Every cell as stripped text, the index being the line in the file.

    Args:
        path: the CSV file.
        columns: the columns that must be there; or, without a header, their names in order.
        header: whether the first row names the columns.

    Raises:
        DataError: the file is missing, empty, over `MAX_CSV_BYTES`, not a table, has a row longer than the first, or lacks
            a column or has it twice.
    """
    cells = _cells(path)
    names = tuple(cells.iloc[0]) if header else tuple(columns or ())
    if len(names) != cells.shape[1]:
        raise DataError(
            f"{path}: rows of {cells.shape[1]} cells, expected {len(names)}: {', '.join(names)}; check the file"
        )
    table = cells.iloc[1:] if header else cells
    _check_columns(names, columns or (), path)
    if not len(table):
        raise DataError(f"{path}: a header without rows; restore the file")
    return table.set_axis(list(names), axis=1).set_axis(range(1 + int(header), len(cells) + 1))


def _cells(path: Path) -> pd.DataFrame:
    """The whole file without regard to its header: pandas then refuses a row longer than the first."""
    try:
        if path.stat().st_size > MAX_CSV_BYTES:
            raise DataError(
                f"{path}: {path.stat().st_size:,} bytes, over the {MAX_CSV_BYTES:,} read; divide it"
            )
        cells = pd.read_csv(
            path, dtype=str, keep_default_na=False, skipinitialspace=True, header=None, index_col=False
        )
    except FileNotFoundError:
        raise DataError(f"{path}: no such CSV; check the source folder") from None
    except pd.errors.EmptyDataError:
        raise DataError(f"{path}: empty, expected a CSV with rows; restore the file") from None
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        if ragged := _RAGGED.search(str(error)):
            expected, line, found = ragged.groups()
            raise DataError(
                f"{path} line {line}: {found} cells, expected at most {expected} as in the first row; "
                "correct or remove the row"
            ) from None
        reason = quoted(str(error).splitlines()[0].strip(), most=120)
        raise DataError(f"{path}: not a CSV ({reason}); check the file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    return cells.fillna("").map(str.strip)


def _check_columns(names: Sequence[str], columns: Sequence[str], path: Path) -> None:
    missing = [name for name in columns if name not in names]
    if missing:
        listed = quoted(", ".join(names), most=200)
        raise DataError(f"{path}: has columns {listed}; expected also {', '.join(missing)}")
    twice = [name for name in columns if names.count(name) > 1]
    if twice:
        raise DataError(f"{path}: has the column {twice[0]} twice; remove one")


def nanoseconds(table: pd.DataFrame, column: str, path: Path) -> Int64[np.ndarray, " N"]:
    """A column of 19-digit times, exactly.

    Raises:
        DataError: a time is not 19 digits, or the digits show that all went through a float.
    """
    for line, text in table[column].items():
        if _NANOSECONDS.fullmatch(text):
            continue
        if re.fullmatch(r"\d+(\.\d*)?([eE]\+?\d+)?", text) and re.search(r"[.eE]", text):
            raise DataError(
                f"{path} line {line}: {column} {quoted(text)} was damaged by a float (a spreadsheet or float64 column); "
                "expected 19 digits; restore the original CSV"
            )
        raise DataError(
            f"{path} line {line}: {column} is {quoted(text)}, expected 19 digits of nanoseconds; correct it"
        )
    try:
        times = table[column].to_numpy(dtype=object).astype(np.int64)
    except OverflowError:
        raise DataError(f"{path}: a {column} is beyond 64 bits of nanoseconds; correct it") from None
    # Clocks that tick in whole milliseconds give multiples too, but of a million.
    ticks = np.any(times % 1_000_000)
    if len(times) >= 8 and ticks and not np.any(times % _FLOAT_SPACING_NS):
        raise DataError(
            f"{path}: every {column} is a multiple of {_FLOAT_SPACING_NS}, so all were damaged by a float64; "
            "restore the original CSV"
        )
    return times


def numbers(
    table: pd.DataFrame, column: str, path: Path, *, most: float = np.inf
) -> Float64[np.ndarray, " N"]:
    """A column of numbers; an empty cell is NaN, unknown, and so is a number beyond `most`.

    Raises:
        DataError: a cell is neither a number nor empty.
    """
    values = pd.to_numeric(table[column].where(table[column] != ""), errors="coerce").to_numpy(
        dtype=np.float64
    )
    wrong = np.flatnonzero(np.isnan(values) & ~table[column].str.lower().isin(["", "nan"]).to_numpy())
    if len(wrong):
        line, text = table.index[wrong[0]], table[column].iloc[wrong[0]]
        raise DataError(
            f"{path} line {line}: {column} is {quoted(text)}, expected a number; correct or remove the row"
        )
    return credible(values, most=most)


def table_provenance(path: Path, rows: int) -> dict[str, Any]:
    """What identifies the CSV a drive was read from."""
    return {
        "folder": path.resolve().parent.name,
        "csv": path.name,
        "rows": rows,
        "csv_sha256": sha256_of(path),
    }


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
