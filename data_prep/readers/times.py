"""Times in tables: their unit told from their size, and rows in the order of time."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Int64

from data_prep.errors import DataError, quoted

Unit = Literal["s", "ms", "us", "ns"]
NANOSECONDS_OF: dict[str, int] = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_UNIT_OF_DIGITS: dict[int, Unit] = {10: "s", 13: "ms", 16: "us", 19: "ns"}
"""Digits of a time since 1970, from 2001 up to 2286."""
_TIME = re.compile(r"(\d+)(?:[.,](\d*))?")
_FLOAT = re.compile(r"\d+(\.\d*)?[eE]\+?\d+")
_FLOAT_SPACING_NS = 256
"""Distance between neighbouring float64 values near 1.4e18, the nanoseconds of the years since 2014."""


def nanoseconds(
    table: pd.DataFrame, column: str, path: Path, *, unit: Unit | None = None
) -> Int64[np.ndarray, " N"]:
    """A column of times as nanoseconds, exactly: no digit passes through a float.

    Args:
        table: cells as text; its index is the line in the file.
        column: the column's name.
        path: the file, for messages.
        unit: of the column; None takes the times for Unix times and tells it from their number of digits.

    Raises:
        DataError: a cell is no time, or of another unit than the first, or its digits went through a float.
    """
    chosen = unit or _unit_of(table, column, path)
    scale, digits = NANOSECONDS_OF[chosen], len(str(NANOSECONDS_OF[chosen])) - 1
    times = []
    for line, text in table[column].items():
        found = _TIME.fullmatch(text)
        if found is None or (unit is None and _UNIT_OF_DIGITS.get(len(found[1])) != chosen):
            raise _not_a_time(text, f"{path} line {line}: {column}", chosen, is_told=unit is None)
        whole, fraction = found[1], found[2]
        if fraction is not None and chosen == "ns":
            raise _damaged(text, f"{path} line {line}: {column}")
        part = int(((fraction or "") + "0" * digits)[:digits] or 0)
        times.append(int(whole) * scale + part if len(whole) < 20 else 2**63)
    if max(times, default=0) >= 2**63:
        raise DataError(f"{path}: a {column} is beyond 64 bits of nanoseconds; correct it")
    result = np.array(times, dtype=np.int64)
    if chosen == "ns":
        _check_spacing(result, column, path)
    return result


def _unit_of(table: pd.DataFrame, column: str, path: Path) -> Unit:
    text, line = table[column].iloc[0], table.index[0]
    found = _TIME.fullmatch(text)
    unit = _UNIT_OF_DIGITS.get(len(found[1])) if found else None
    if unit is None:
        raise _not_a_time(text, f"{path} line {line}: {column}", "ns", is_told=True)
    return unit


def _not_a_time(text: str, where: str, unit: Unit, *, is_told: bool) -> DataError:
    damaged = _FLOAT.fullmatch(text) or re.fullmatch(r"\d\.\d{10,}", text)
    if damaged:
        return _damaged(text, where)
    digits = {name: count for count, name in _UNIT_OF_DIGITS.items()}
    expected = f"{digits[unit]} digits of {unit} since 1970" if is_told else f"a time in {unit}"
    if is_told and unit == "ns":
        expected = "19 digits of nanoseconds since 1970, or 16 of us, 13 of ms, 10 of s"
    return DataError(f"{where} is {quoted(text)}, expected {expected}; correct it")


def _damaged(text: str, where: str) -> DataError:
    return DataError(
        f"{where} {quoted(text)} was damaged by a float (a spreadsheet or float64 column); "
        "expected 19 digits; restore the original CSV"
    )


def _check_spacing(times: Int64[np.ndarray, " N"], column: str, path: Path) -> None:
    # Clocks that tick in whole milliseconds give multiples too, but of a million.
    ticks = np.any(times % 1_000_000)
    if len(times) >= 8 and ticks and not np.any(times % _FLOAT_SPACING_NS):
        raise DataError(
            f"{path}: every {column} is a multiple of {_FLOAT_SPACING_NS}, so all were damaged by a float64; "
            "restore the original CSV"
        )


class Order(NamedTuple):
    """Rows of a table in the order of time."""

    rows: Int64[np.ndarray, " N"]
    moved: int
    """How many of them stood elsewhere in the table."""


_MOST_SWAPS = 0.1
"""Of all steps between rows; with more steps back in time the order of a table means nothing."""


def in_time(time_ns: Int64[np.ndarray, " N"]) -> Order:
    """Sorts rows that each name their own time: sessions that were joined out of order, or shuffled rows.

    The order stays where sorting could mix moments that a clock gives the same time: where it was set back
    in the middle of a drive, or a few stamps are damaged. Those are left to `signals.clock_faults`.

    Example:
        >>> in_time(np.array([30, 40, 50, 10, 20])).rows.tolist()
        [3, 4, 0, 1, 2]
        >>> in_time(np.array([10, 20, 30, 40, 25, 35, 45, 55, 65, 75, 85, 95])).moved
        0
    """
    unmoved = np.arange(len(time_ns))
    back = np.flatnonzero(np.diff(time_ns) < 0)
    if not len(back):
        return Order(unmoved, 0)
    starts, ends = np.r_[0, back + 1], np.r_[back, len(time_ns) - 1]
    by_start = np.argsort(time_ns[starts], kind="stable")
    are_apart = np.all(time_ns[ends[by_start[:-1]]] < time_ns[starts[by_start[1:]]])
    is_shuffled = len(back) > _MOST_SWAPS * len(time_ns) and len(back) > 2
    if not (are_apart or is_shuffled):
        return Order(unmoved, 0)
    rows = np.argsort(time_ns, kind="stable")
    return Order(rows, int(np.sum(rows != unmoved)))
