"""How a CSV is written: its encoding, what separates its cells, and its decimal sign."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from data_prep.errors import DataError, quoted

MAX_CSV_BYTES = 256 * 2**20
"""Ten hours of Udacity's three cameras take 240 MiB."""
_SAMPLE_BYTES = 2**16
_SAMPLE_LINES = 50
_DELIMITERS = (",", ";", "\t")
_COMMA_SPACE = re.compile(r",\s+")
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
_DECIMAL_POINT = re.compile(r"[+-]?\d*\.\d+")
_RAGGED = re.compile(r"Expected (\d+) fields in line (\d+), saw (\d+)")
_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
"""Byte-order marks that spreadsheets write, and the encodings that they announce."""


class Dialect(NamedTuple):
    """What is needed to cut a file into cells."""

    encoding: str
    delimiter: str


def first_row(path: Path, columns: Sequence[str]) -> tuple[str, ...]:
    """The cells of the first line, to recognise a file by; none where it cannot be read.

    Args:
        path: the CSV file.
        columns: names that the first row may hold; they decide between delimiters.
    """
    try:
        sample = _sample(path)
    except OSError:
        return ()
    lines = _lines(sample)
    return tuple(_cut(lines[0], _delimiter(lines, columns))) if lines else ()


def cells_of(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """The whole file as stripped text, the header being a row like the others.

    Args:
        path: the CSV file.
        columns: names in the header or, without one, of the columns in order.

    Raises:
        DataError: the file is missing, empty, over `MAX_CSV_BYTES`, no table, in an unknown dialect, or has a
            row longer than its first.
    """
    try:
        if path.stat().st_size > MAX_CSV_BYTES:
            raise DataError(
                f"{path}: {path.stat().st_size:,} bytes, over the {MAX_CSV_BYTES:,} read; divide it"
            )
        dialect = _dialect(path, columns)
        cells = _read(path, dialect, columns)
    except FileNotFoundError:
        raise DataError(f"{path}: no such CSV; check the source folder") from None
    except pd.errors.EmptyDataError:
        raise DataError(f"{path}: empty, expected a CSV with rows; restore the file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    return cells.fillna("").map(str.strip)


def _dialect(path: Path, columns: Sequence[str]) -> Dialect:
    with path.open("rb") as file:
        start = file.read(4)
    marked = next((name for mark, name in _MARKS if start.startswith(mark)), None)
    return Dialect(marked or _unmarked_encoding(path), _delimiter(_lines(_sample(path)), columns))


def _unmarked_encoding(path: Path) -> str:
    """UTF-8 where all bytes are; otherwise cp1252, what Windows writes in western languages."""
    for encoding in ("utf-8", "cp1252"):
        try:
            with path.open(encoding=encoding, newline="") as file:
                while file.read(2**20):
                    pass
        except UnicodeDecodeError:
            continue
        return encoding
    raise DataError(f"{path}: neither UTF-8 nor cp1252; save it as UTF-8")


def _sample(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(_SAMPLE_BYTES)
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data.decode(encoding, errors="replace")
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(data)  # The last character may be cut.
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def _lines(sample: str) -> list[str]:
    lines = [line for line in sample.splitlines() if line.strip()]
    is_cut = len(lines) > 1 and len(sample) >= _SAMPLE_BYTES // 4
    return (lines[:-1] if is_cut else lines)[:_SAMPLE_LINES]


def _cut(line: str, delimiter: str) -> list[str]:
    try:
        row = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error:  # a cell longer than the module reads
        row = line.split(delimiter)
    return [cell.strip() for cell in row]


def _delimiter(lines: Sequence[str], columns: Sequence[str]) -> str:
    """The one that gives a header with `columns`, or rows of as many cells; the comma where none does."""
    if not lines:
        return ","
    for delimiter in _DELIMITERS:
        if columns and set(_cut(lines[0], delimiter)).issuperset(columns):
            return delimiter
    counts = {each: {len(_cut(line, each)) for line in lines} for each in _DELIMITERS}
    for delimiter in _DELIMITERS:
        if len(columns) > 1 and counts[delimiter] == {len(columns)}:
            return delimiter
    even = [each for each in _DELIMITERS if len(counts[each]) == 1 and max(counts[each]) > 1]
    return even[0] if len(even) == 1 else ","


def _read(path: Path, dialect: Dialect, columns: Sequence[str]) -> pd.DataFrame:
    def parsed() -> pd.DataFrame:
        return pd.read_csv(
            path,
            dtype=str,
            keep_default_na=False,
            skipinitialspace=True,
            header=None,
            index_col=False,
            sep=dialect.delimiter,
            encoding=dialect.encoding,
        )

    try:
        cells = parsed()
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        ragged = _RAGGED.search(str(error))
        if ragged is None:
            reason = quoted(str(error).splitlines()[0].strip(), most=120)
            raise DataError(f"{path}: not a CSV ({reason}); check the file") from None
        other = _with_decimal_commas(path, dialect, columns)
        if other is None:
            expected, line, found = ragged.groups()
            raise DataError(
                f"{path} line {line}: {found} cells, expected at most {expected} as in the first row; "
                "correct or remove the row"
            ) from None
        return other
    if cells.shape[1] > len(columns) > 0 and not set(cells.iloc[0].str.strip()).issuperset(columns):
        other = _with_decimal_commas(path, dialect, columns)
        return cells if other is None else other
    return cells


def _with_decimal_commas(path: Path, dialect: Dialect, columns: Sequence[str]) -> pd.DataFrame | None:
    """Rows of `0,05, 1,0`: cells end at a comma with a space behind it. None where it is no such file.

    Raises:
        DataError: numbers have decimal commas, and nothing tells these from those between cells.
    """
    if dialect.delimiter != ",":
        return None
    lines = [line for line in path.read_text(encoding=dialect.encoding).splitlines() if line.strip()]
    first = _cut(lines[0], ",")
    width = len(first) if set(first).issuperset(columns) else len(columns)
    rows = [_COMMA_SPACE.split(line) for line in lines]
    if width == len(first):
        rows[0] = first
    if all(len(row) == width for row in rows):
        return pd.DataFrame(rows, dtype=str)
    body = lines[1:] if width == len(first) else lines
    longer = [line for line in body if len(_cut(line, ",")) > width]
    if 2 * len(longer) > len(body) and len(body) > 1 and all(map(_has_decimal_comma(width), longer)):
        raise DataError(
            f"{path}: its numbers seem to have decimal commas, with commas between cells too, so that cells "
            "cannot be told apart; save it with decimal points, or with semicolons between cells"
        )
    return None


def _has_decimal_comma(width: int) -> Callable[[str], bool]:
    """Whether a line has at most `width` cells once the commas in its numbers are decimal ones."""

    def fits(line: str) -> bool:
        has_points = any(_DECIMAL_POINT.fullmatch(cell) for cell in _cut(line, ","))
        return not has_points and len(_cut(_DECIMAL_COMMA.sub("0", line), ",")) <= width

    return fits
