"""What must hold inside shards and index whose bytes are those of the manifest.

A hash says that nothing has changed since; these say that what was written can be true.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data_prep.causes import decode_causes
from data_prep.errors import DataError, quoted
from data_prep.geometry import image_size
from data_prep.schema import Vehicle
from data_prep.shards import hdf5, parquet
from data_prep.shards.manifest import SCHEMA, Manifest, ShardEntry
from data_prep.signals import MOST_SPEED_MPS, MOST_STEERING_RAD, inverse_turning_radius
from data_prep.split import MOST_GAP_S, PARTS, clocks, near_on_clock

MOST: Mapping[str, float] = {
    "steering_wheel_rad": MOST_STEERING_RAD,
    "steering_wheel_rad_smoothed": MOST_STEERING_RAD,
    "speed_mps": MOST_SPEED_MPS,
    "speed_mps_smoothed": MOST_SPEED_MPS,
    "inverse_turning_radius": MOST_STEERING_RAD,
}
"""Beyond these to either side a value is damage; no car has it."""


def shard_faults(
    file: Path, entry: ShardEntry, manifest: Manifest, rows: pd.DataFrame | None
) -> Iterator[str]:
    """What is wrong inside one shard, a line each.

    Args:
        file: the shard.
        entry: what the manifest says of it.
        manifest: of the whole output.
        rows: the index's rows of this shard in order; None where the index cannot be read.
    """
    try:
        if manifest.kind == "sequences":
            yield from _sequence_faults(file, entry, manifest, rows)
        else:
            yield from _image_faults(file, manifest, rows)
    except DataError as fault:
        yield str(fault)


def _sequence_faults(
    file: Path, entry: ShardEntry, manifest: Manifest, rows: pd.DataFrame | None
) -> Iterator[str]:
    found = hdf5.frame_size(file)
    wanted = tuple((manifest.geometry or {}).get(side) for side in ("height", "width"))
    if found != wanted:
        yield f"frames of {found[0]}x{found[1]} pixels, the manifest says {wanted[0]}x{wanted[1]}"
    told = hdf5.read_attributes(file)
    for name, expected in (("schema", SCHEMA), ("drive", entry.drive)):
        if told.get(name) != expected:
            yield f"its {name} is {str(told.get(name))[:60]!r}, the manifest says {expected[:60]!r}"
    yield from _attribute_faults(told, manifest)
    if fault := hdf5.cause_fault(file):
        yield fault
    columns = hdf5.read_columns(file)
    if np.any(np.diff(columns["time_ns"]) <= 0):
        yield f"time does not increase at row {1 + int(np.argmax(np.diff(columns['time_ns']) <= 0))}"
    yield from _range_faults(columns)
    yield from _label_faults(columns, manifest)
    if rows is not None:
        yield from _differences(rows, {**columns, "drive": np.full(len(rows), entry.drive, dtype=object)})


def _attribute_faults(told: Mapping[str, Any], manifest: Manifest) -> Iterator[str]:
    """What a shard says of its making must be what the manifest says."""
    expected = {
        "smoothing": manifest.config.get("smoothing"),
        **{f"vehicle_{name}": value for name, value in (manifest.vehicle or {}).items()},
        **{f"geometry_{name}": value for name, value in (manifest.geometry or {}).items()},
    }
    for name, value in expected.items():
        if not np.array_equal(np.asarray(told.get(name)), np.asarray(value)):
            yield f"its {name} is {quoted(str(told.get(name)))}, the manifest says {quoted(str(value))}"


def _range_faults(columns: Mapping[str, np.ndarray]) -> Iterator[str]:
    for name, most in MOST.items():
        with np.errstate(invalid="ignore"):
            wrong = ~np.isnan(columns[name]) & ~(np.abs(columns[name]) <= most)
        if wrong.any():
            row = int(np.argmax(wrong))
            yield f"{name} is {columns[name][row]:g} at row {row}, expected at most {most:g} to either side"


def _label_faults(columns: Mapping[str, np.ndarray], manifest: Manifest) -> Iterator[str]:
    """The label must follow from the smoothed controls and the vehicle, to the last bit."""
    try:
        vehicle = Vehicle(**(manifest.vehicle or {}))
        with np.errstate(all="ignore"):
            expected = inverse_turning_radius(
                columns["steering_wheel_rad_smoothed"], columns["speed_mps_smoothed"], vehicle
            )
    except (TypeError, OverflowError):
        yield "the manifest names no vehicle that its labels could follow from"
        return
    wrong = ~np.isclose(columns["inverse_turning_radius"], expected, rtol=1e-12, atol=0.0, equal_nan=True)
    if wrong.any():
        yield f"the label at row {int(np.argmax(wrong))} does not follow from the angle, the speed and the vehicle"


def _image_faults(file: Path, manifest: Manifest, rows: pd.DataFrame | None) -> Iterator[str]:
    names = manifest.signals.get("labels")
    if not isinstance(names, list) or tuple(names) != parquet.label_names_of(file):
        yield f"has labels {', '.join(parquet.label_names_of(file))[:200]}, the manifest says {str(names)[:200]}"
        return
    for start in range(0, parquet.count_rows(file), parquet.IMAGES_PER_GROUP):
        stop = min(start + parquet.IMAGES_PER_GROUP, parquet.count_rows(file))
        images = parquet.read_images(file, range(start, stop))
        faults = [*_group_faults(images, start, manifest, None if rows is None else rows[start:stop])]
        if faults:  # the first group is enough to know that the shard is bad
            yield from faults
            return


def _group_faults(
    images: list[parquet.LabelledImage], start: int, manifest: Manifest, rows: pd.DataFrame | None
) -> Iterator[str]:
    geometry, names = manifest.geometry, manifest.signals["labels"]
    for row, image in enumerate(images, start):
        height, width = image_size(image.data, name=f"row {row}")
        if geometry is not None and (height, width) != (geometry.get("height"), geometry.get("width")):
            yield f"the image at row {row} has {height}x{width} pixels, unlike the manifest's geometry"
            return
        if image.causes is not None and (fault := _cause_fault(image.causes, (height, width), names, row)):
            yield fault
            return
        if any(label not in (0, 1) for label in image.labels):
            yield f"labels at row {row} are {image.labels}, expected 0 and 1"
            return
    if rows is not None:
        table: dict[str, Any] = {
            name: np.array([getattr(image, name) for image in images], dtype=object)
            for name in ("key", "split", "group")
        }
        labels = np.array([image.labels for image in images], dtype=np.int64).reshape(len(images), len(names))
        yield from _differences(rows, table | {name: labels[:, k] for k, name in enumerate(names)}, start)


def _cause_fault(data: bytes, size: tuple[int, int], names: list[str], row: int) -> str | None:
    """Why the masks of an image are none of its own; their size is read before anything is allocated."""
    name = f"row {row}, causes"
    found = image_size(data, name=name)
    if found == size:
        found = decode_causes(data, labels=len(names), name=name).shape[1:]
    return (
        None
        if found == size
        else f"the causes at row {row} have {found[0]}x{found[1]} pixels, unlike their image"
    )


def _differences(rows: pd.DataFrame, columns: Mapping[str, np.ndarray], start: int = 0) -> Iterator[str]:
    """Where the index says otherwise than the shard, whose first row here is `start`."""
    for name, values in columns.items():
        if len(rows) != len(values):
            return  # `index_faults` says so
        if name not in rows:
            yield f"the index has no {name}"
            continue
        indexed = rows[name].to_numpy()
        is_number = values.dtype.kind == "f"
        unequal = (indexed != values) & ~(is_number & pd.isna(indexed) & pd.isna(values))
        if unequal.any():
            yield f"the index has another {name} for row {start + int(np.argmax(unequal))}"


def index_faults(manifest: Manifest, index: pd.DataFrame) -> Iterator[str]:
    """What is wrong with the index as a whole: rows, order of time, and who trains and who tests."""
    listed = {str(shard): rows.to_numpy() for shard, rows in index.groupby("shard", sort=False)["row"]}
    for entry in manifest.shards:
        rows = listed.pop(entry.path, np.arange(0))
        if len(rows) != entry.rows or not np.array_equal(rows, np.arange(len(rows))):
            yield f"does not list the {entry.rows} rows of {entry.path} in order"
    for shard in sorted(listed):
        yield f"lists rows of {shard[:120]!r}, which is no shard of the manifest"
    if unknown := sorted(set(index["split"]) - set(PARTS)):
        yield f"has the split {unknown[0][:60]!r}, expected one of {', '.join(PARTS)}"
    if manifest.kind == "images":
        if index["key"].duplicated().any():
            yield f"has the image {index['key'][index['key'].duplicated()].iloc[0][:120]!r} twice"
        return
    for drive, rows in index.groupby("drive", sort=False):
        if np.any(np.diff(rows["time_ns"].to_numpy()) <= 0):
            yield f"time does not increase along drive {drive}"
    yield from _seams(manifest, index)


def _seams(manifest: Manifest, index: pd.DataFrame) -> Iterator[str]:
    """Frames of two parts that are nearer in time than the gap, also in two drives."""
    gap_s = manifest.config.get("gap_s")
    if manifest.config.get("split") not in ("block", "drive"):
        return
    if not isinstance(gap_s, int | float) or not 0 <= gap_s < MOST_GAP_S:
        yield f"cannot be checked for gaps: the manifest's gap_s is {str(gap_s)[:60]}"
        return
    time_ns, part = index["time_ns"].to_numpy(), index["split"].to_numpy(dtype=str)
    clock = clocks(index["drive"].to_numpy(dtype=object), time_ns)
    for each in ("train", "val", "test"):
        mine, others = part == each, (part != each) & (part != "gap")
        near = np.flatnonzero(mine)[near_on_clock(time_ns, clock, mine, others, gap_s=gap_s)]
        if len(near):
            row = index.iloc[near[0]]
            yield (
                f"{len(near)} {each} frames are less than {gap_s} s from those of another part, the first is "
                f"row {row['row']} of {row['shard']}"
            )
