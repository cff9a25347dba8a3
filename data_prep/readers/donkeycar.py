"""Donkeycar tubs: version 2 with a manifest and catalogs, version 1 with a JSON file for each record.

A record has `user/angle` from -1 to 1, positive to the right, and names its image. Both versions are the
layouts of github.com/autorope/donkeycar (`parts/datastore_v2.py`, `parts/datastore.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_prep.errors import DataError, quoted
from data_prep.geometry import Reduction
from data_prep.readers.paths import drive_name, existing_folder, inside, printable, visible
from data_prep.readers.tables import Identity, Rows
from data_prep.readers.units import ControlUnits
from data_prep.schema import Drive, Vehicle
from data_prep.shards.atomic import read_bounded

NAME = "donkeycar"

FULL_LOCK_DEG = 25.0
"""Of the road wheel at an angle of 1. Not in the tub: the servo's ends are calibrated for each car."""
WHEELBASE_M = 0.26
"""Of touring cars in 1:10, the scale that most kits have."""
IMAGE, ANGLE = "cam/image_array", "user/angle"
MANIFEST, META = "manifest.json", "meta.json"
MAX_TUB_FILE_BYTES = 64 * 2**20
_RECORD = re.compile(r"record_(\d{1,18})\.json")


def recognises(source: Path) -> bool:
    """Whether the folder, or one directly below it, is a tub."""
    return source.is_dir() and bool(_tubs(source))


def drives(
    source: Path,
    *,
    full_lock_deg: float = FULL_LOCK_DEG,
    wheelbase_m: float = WHEELBASE_M,
    reduced: Reduction = 1,
) -> list[Drive]:
    """Reads a tub, or each of the tubs directly inside a folder. Records marked as deleted are left out.

    Args:
        source: the tub or the folder.
        full_lock_deg: the road wheel's angle at `user/angle` 1.
        wheelbase_m: of the car, for the label.
        reduced: shrink while decoding, faster and not exact.

    Raises:
        DataError: there is no tub, or one is damaged: no record has an image, a time or an angle.
    """
    if not 0.05 <= wheelbase_m <= 10.0:
        raise DataError(f"wheelbase_m is {wheelbase_m:g}; expected 0.05 to 10 m")
    car = Vehicle(name=NAME, wheelbase_m=wheelbase_m, steering_ratio=1.0, slip_s2_per_m2=0.0)
    units = ControlUnits(steering_unit="fraction", positive="right", full_lock_deg=full_lock_deg)
    tubs = _tubs(existing_folder(source))
    if not tubs:
        raise DataError(
            f"{source}: no tub found; expected {MANIFEST} with catalogs, or {META} with record_N.json, "
            "there or one level down"
        )
    return [_drive(tub, car, units, reduced) for tub in tubs]


def _tubs(source: Path) -> list[Path]:
    below = [entry for entry in visible(source) if entry.is_dir()]
    return [folder for folder in [source] if _is_tub(folder)] or [f for f in below if _is_tub(f)]


def _is_tub(folder: Path) -> bool:
    if (folder / MANIFEST).is_file():
        return any(folder.glob("catalog_*.catalog"))
    return (folder / META).is_file() and any(_RECORD.fullmatch(path.name) for path in visible(folder))


class _Record(NamedTuple):
    """What is needed of a record."""

    time_ns: int
    image: str
    angle: float


def _drive(tub: Path, car: Vehicle, units: ControlUnits, reduced: Reduction) -> Drive:
    is_v2 = (tub / MANIFEST).is_file()
    records, left_out = _split_usable(tub, _records_v2(tub) if is_v2 else _records_v1(tub))
    if not records:
        reasons = ", ".join(f"{len(names)} {reason}" for reason, names in left_out.items())
        raise DataError(f"{tub}: no record can be used ({reasons or 'it is empty'}); check the tub")
    rows = Rows(
        time_ns=np.array([record.time_ns for record in records], dtype=np.int64),
        images=[record.image for record in records],
        steering_wheel_rad=units.steering_wheel_rad(np.array([record.angle for record in records])),
    )
    identity = Identity(
        name=drive_name(tub),
        source=NAME,
        camera=IMAGE,
        vehicle=car,
        left_out={reason: tuple(names) for reason, names in left_out.items()},
        provenance={
            "folder": printable(tub.resolve().name),
            "tub": "v2" if is_v2 else "v1",
            "records": len(records) + sum(map(len, left_out.values())),
            "full_lock_deg": units.full_lock_deg,
        },
    )
    return rows.drive(tub, identity, reduced=reduced)


def _split_usable(
    tub: Path, records: Iterator[tuple[str, Any]]
) -> tuple[list[_Record], dict[str, list[str]]]:
    """The records that can be used, and the names of the others by reason."""
    usable: list[_Record] = []
    left_out: dict[str, list[str]] = {}
    for name, value in records:
        reason = value if isinstance(value, str) else None
        if reason is None:
            record = _record(tub, value)
            reason = "damaged_record" if record is None else None
            if record is not None:
                usable.append(record)
        if reason is not None:
            left_out.setdefault(reason, []).append(name)
    return usable, left_out


def _record(tub: Path, value: Any) -> _Record | None:
    if not isinstance(value, dict):
        return None
    image, angle, time_ns = value.get(IMAGE), value.get(ANGLE), _time_of(value)
    if not isinstance(image, str) or not image or time_ns is None:
        return None
    if not isinstance(angle, int | float) or isinstance(angle, bool) or not abs(angle) <= 1.0:
        return None
    folder = "images/" if (tub / "images").is_dir() else ""
    inside(tub, folder + image)
    return _Record(time_ns, folder + image, float(angle))


def _time_of(value: dict[str, Any]) -> int | None:
    """Nanoseconds: `_timestamp_ms` since 1970, or of version 1 `milliseconds` since the start, or a date."""
    for key in ("_timestamp_ms", "milliseconds"):
        if type(value.get(key)) in (int, float) and 0 <= value[key] < 2**63 / 1e6:
            return int(value[key] * 1_000_000)
    try:
        stamp = datetime.fromisoformat(str(value.get("timestamp"))).replace(tzinfo=UTC)
        return int(stamp.timestamp() * 1e6) * 1000
    except (ValueError, OverflowError):
        return None


def _records_v2(tub: Path) -> Iterator[tuple[str, Any]]:
    """Each record of the catalogs in order, `deleted` in place of one that is marked so."""
    lines = _text(tub / MANIFEST).splitlines()
    try:
        catalogs = json.loads(lines[4])
        paths, deleted = catalogs["paths"], frozenset(catalogs.get("deleted_indexes", ()))
        if not all(isinstance(path, str) for path in paths):
            raise TypeError
    except (IndexError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(
            f"{tub / MANIFEST}: no manifest of a tub, expected five lines of JSON, the last with the catalogs; "
            "restore it"
        ) from None
    number = 0
    for path in paths:
        for line in _text(inside(tub, path)).splitlines():
            if not line.strip("\0 "):
                continue
            value = _json_or_none(line)
            index = value.get("_index", number) if isinstance(value, dict) else number
            is_deleted = type(index) is int and index in deleted
            yield f"{path} record {number}", "deleted" if is_deleted else value
            number += 1


def _records_v1(tub: Path) -> Iterator[tuple[str, Any]]:
    numbered = [(match, path) for path in visible(tub) if (match := _RECORD.fullmatch(path.name))]
    for _, path in sorted(numbered, key=lambda each: int(each[0][1])):
        yield path.name, _json_or_none(_text(path))


def _json_or_none(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _text(path: Path) -> str:
    try:
        return read_bounded(path, most=MAX_TUB_FILE_BYTES).decode(errors="replace")
    except FileNotFoundError:
        raise DataError(f"{path}: {quoted(path.name)} is not there; copy the tub again") from None
    except ValueError:
        raise DataError(f"{path}: over the {MAX_TUB_FILE_BYTES:,} bytes that are read; divide it") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
