"""CSV files of recordings: tables of text, columns of numbers, and the images that rows name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64

from data_prep.errors import DataError, quoted
from data_prep.readers.dialects import cells_of
from data_prep.readers.paths import inside, printable
from data_prep.shards.atomic import sha256_of
from data_prep.signals import credible

_THOUSANDS = r"[+-]?[1-9]\d{0,2}(,\d{3})+"


def read_csv(path: Path, columns: Sequence[str] | None = None, *, header: bool = True) -> pd.DataFrame:
    """Every cell as stripped text, the index being the line in the file.

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
    table = cells.iloc[1:] if header else cells
    _check_columns(names, columns or (), path)
    if not len(table):
        raise DataError(f"{path}: a header without rows; restore the file")
    return table.set_axis(list(names), axis=1).set_axis(range(1 + int(header), len(cells) + 1))


def _check_columns(names: Sequence[str], columns: Sequence[str], path: Path) -> None:
    missing = [name for name in columns if name not in names]
    if missing:
        listed = quoted(", ".join(names), most=200)
        raise DataError(f"{path}: has columns {listed}; expected also {', '.join(missing)}")
    twice = [name for name in columns if names.count(name) > 1]
    if twice:
        raise DataError(f"{path}: has the column {twice[0]} twice; remove one")


def numbers(
    table: pd.DataFrame, column: str, path: Path, *, most: float = np.inf
) -> Float64[np.ndarray, " N"]:
    """A column of numbers; an empty cell is NaN, unknown, and so is a number beyond `most`.

    Raises:
        DataError: a cell is neither a number nor empty, or its commas may be decimal or of thousands.
    """
    text = _with_points(table[column], column, path)
    values = pd.to_numeric(text.where(text != ""), errors="coerce").to_numpy(dtype=np.float64)
    wrong = np.flatnonzero(np.isnan(values) & ~table[column].str.lower().isin(["", "nan"]).to_numpy())
    if len(wrong):
        line, text = table.index[wrong[0]], table[column].iloc[wrong[0]]
        raise DataError(
            f"{path} line {line}: {column} is {quoted(text)}, expected a number; correct or remove the row"
        )
    return credible(values, most=most)


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


def table_provenance(path: Path, rows: int) -> dict[str, Any]:
    """What identifies the CSV a drive was read from."""
    return {
        "folder": printable(path.resolve().parent.name),
        "csv": printable(path.name),
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
