"""Opens what a replay plays: shards, a recording, a video, a folder of images, or labelled images."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int, Int32, Int64

from data_prep.alignment import Alignment, align
from data_prep.geometry import ImageFiles
from data_prep.readers import READERS, entry, recognise
from data_prep.readers.paths import drive_name, visible
from data_prep.schema import VEHICLES, Drive, Image, ImageSource, Vehicle
from data_prep.shards.hdf5 import FRAMES_PER_CHUNK, read_frames
from data_prep.shards.manifest import FILE_NAME, Manifest
from data_prep.shards.parquet import read_index
from data_prep.signals import clock_faults, segments
from driving_xai.data.images import LabelledImages
from driving_xai.errors import DataError
from driving_xai.replay.frames import FrameSource, Selection, measured_rate

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
FRAMES_HZ, IMAGES_HZ = 20.0, 2.0
"""Of folders of images, as Udacity's cameras; of labelled images, so that each can be looked at."""
ANY_VEHICLE = "lincoln-mkz"
"""Of sources and models that name none: it turns curvatures into angles of a wheel."""
_IMAGES_AT_A_TIME = 16
_CONTROLS = tuple(f"{name}{end}" for name in ("steering_wheel_rad", "speed_mps") for end in ("", "_smoothed"))


class OwnShards(NamedTuple):
    """The shards that a model was trained on."""

    sha256: str
    """Of their manifest."""
    splits: Callable[[pd.DataFrame], np.ndarray]
    """train, val, test or gap for each row of their index, as the model saw it."""


def open_source(
    path: Path,
    *,
    vehicle: Vehicle,
    frame_rate: Fraction | None = None,
    selection: Selection | None = None,
    alignment: Alignment | None = None,
    own_shards: OwnShards | None = None,
    outputs: Sequence[str] | None = None,
) -> FrameSource:
    """Opens whatever lies at a path.

    Args:
        path: shards of drives or of labelled images, a recording that a reader knows, a video, or a folder
            of images in the order of their names; `-` is the synthetic route.
        vehicle: taken for sources without steering, which do not know theirs.
        frame_rate: taken for images, which have no times; None is `FRAMES_HZ` for a folder and `IMAGES_HZ`
            for labelled images.
        selection: the part to play.
        alignment: of a recording's signals; shards are aligned already.
        own_shards: the model's; of them it is known which frames were trained on.
        outputs: names of the model's outputs, whose labels shards of images may know; None for a model of
            drives, which takes no such shards.

    Raises:
        DataError: it is missing, not recognised, empty, or holds several drives and none was chosen.
    """
    selection = selection or Selection()
    if selection.reader is None and (path / FILE_NAME).is_file():
        manifest = Manifest.load(path)
        if manifest.kind == "images" and outputs is not None:
            return _from_labelled_images(path, selection, own_shards, outputs, frame_rate)
        return _from_shards(path, manifest, selection, own_shards)
    frame_rate = frame_rate or _rate(FRAMES_HZ)
    reader = selection.reader or _recognised(path)
    if reader == "image-folder":
        return _from_images(path, vehicle, frame_rate, selection)
    if entry(reader).kind != "sequences":
        raise DataError(f"reader {reader!r} reads single images, which are no drive; try image-folder")
    drives = {drive.name: drive for drive in READERS[reader](path)}
    drive = drives[_chosen(path, list(drives), selection.drive)]
    if drive.steering_wheel is None:
        drive = replace(drive, vehicle=vehicle)
    return _from_drive(path, drive, selection, alignment or Alignment(), frame_rate)


def _rate(hertz: float) -> Fraction:
    return Fraction(str(hertz)).limit_denominator(1001)


def _recognised(path: Path) -> str:
    if str(path) == "-":
        return "synthetic"
    try:
        reader = recognise(path)
    except DataError:
        if path.is_dir() and _images_in(path):
            return "image-folder"
        raise
    return reader if entry(reader).kind == "sequences" else "image-folder"


def _chosen(path: Path, names: Sequence[str], name: str | None) -> str:
    listed = ", ".join(names)
    if name is not None and name not in names:
        raise DataError(f"{path}: has no drive {name!r}; it has {listed}")
    if name is None and len(names) != 1:
        raise DataError(f"{path}: holds {len(names)} drives ({listed}); choose one with --drive")
    return name or names[0]


class _Kept(NamedTuple):
    """The part that is played of a drive's frames."""

    rows: Int64[np.ndarray, " T"]
    segment: Int32[np.ndarray, " T"]
    begins: Bool[np.ndarray, " T"]


def _kept(
    time_ns: Int64[np.ndarray, " N"],
    segment: Int32[np.ndarray, " N"],
    allowed: Bool[np.ndarray, " N"],
    selection: Selection,
    name: str,
) -> _Kept:
    """Cuts a drive to the selection, and finds where its unbroken runs begin."""
    since_s = (time_ns - time_ns[0]) / 1e9
    inside = (since_s >= selection.start_s) & (since_s < (selection.end_s or math.inf))
    rows = np.flatnonzero(inside & allowed)
    if not len(rows):
        asked = f"{selection.start_s:g} s to {selection.end_s or since_s[-1]:g} s, split {selection.split}"
        raise DataError(f"{name}: no frame in {asked}; the drive lasts {since_s[-1]:.1f} s")
    begins = np.ones(len(rows), dtype=bool)
    begins[1:] = (np.diff(segment[rows]) != 0) | (np.diff(rows) != 1)
    return _Kept(rows, segment[rows], begins)


def _from_drive(
    path: Path, drive: Drive, selection: Selection, alignment: Alignment, frame_rate: Fraction
) -> FrameSource:
    good = np.flatnonzero(~clock_faults(drive.time_ns).any)
    time_ns = drive.time_ns[good]
    if not len(time_ns):
        raise DataError(f"{path}: drive {drive.name} has no frame; check the recording")
    segment = segments(time_ns, hole_periods=alignment.hole_periods)
    kept = _kept(time_ns, segment, np.ones(len(good), bool), selection, drive.name)
    columns = {name: column[kept.rows] for name, column in _controls(drive, good, alignment).items()}
    index = good[kept.rows]
    return FrameSource(
        name=path.name,
        kind=drive.source,
        reader=drive.source,
        camera=drive.camera,
        vehicle=drive.vehicle,
        cropped=False,
        follow=True,
        shards=None,
        frame_rate=measured_rate(time_ns) if len(time_ns) > 1 else frame_rate,
        drives=np.full(len(index), drive.name),
        index=index,
        time_ns=time_ns[kept.rows],
        time_s=(time_ns[kept.rows] - time_ns[0]) / 1e9,
        segment=kept.segment,
        begins=kept.begins,
        split=np.full(len(index), ""),
        controls=columns,
        lead_s=alignment.lead_s,
        pictures=lambda: _read_runs(drive.images, index),
    )


def _controls(
    drive: Drive, good: Int64[np.ndarray, " T"], alignment: Alignment
) -> dict[str, Float64[np.ndarray, " T"]]:
    """What prep would write for these frames; NaN for those that it would drop, which are played too."""
    columns = {name: np.full(len(good), np.nan) for name in _CONTROLS}
    if drive.steering_wheel is not None or drive.speed is not None:
        aligned = align(drive, alignment)
        rows = np.searchsorted(good, aligned.frame)
        for name, column in columns.items():
            column[rows] = aligned.columns[name]
    return columns


def _read_runs(images: ImageSource, index: Int64[np.ndarray, " T"]) -> Iterator[Image]:
    for run in np.split(index, np.flatnonzero(np.diff(index) != 1) + 1):
        yield from images.read(int(run[0]), int(run[-1]) + 1)


def _from_images(path: Path, vehicle: Vehicle, frame_rate: Fraction, selection: Selection) -> FrameSource:
    names = _images_in(path) if path.is_dir() else []
    if not names:
        raise DataError(
            f"{path}: a folder of .jpg, .jpeg or .png images was expected; it holds none directly"
        )
    drive = Drive(
        name=drive_name(path),
        source="image-folder",
        camera="camera",
        vehicle=vehicle,
        # Rounded one by one, so that an odd rate does not drift.
        time_ns=np.array([round(at * 10**9 / frame_rate) for at in range(len(names))], dtype=np.int64),
        images=ImageFiles(folder=path.resolve(), names=tuple(names)),
    )
    found = _from_drive(path, drive, selection, Alignment(), frame_rate)
    return replace(found, frame_rate=frame_rate)


def _images_in(folder: Path) -> list[str]:
    """Names in the order a person expects: frame_2 before frame_10."""
    names = (each.name for each in visible(folder) if each.suffix.lower() in IMAGE_SUFFIXES)
    # As \d: a superscript is a digit that int() does not read.
    return sorted(names, key=lambda name: [int(t) if t.isdecimal() else t for t in re.split(r"(\d+)", name)])


def _from_shards(root: Path, manifest: Manifest, selection: Selection, own: OwnShards | None) -> FrameSource:
    if manifest.kind != "sequences" or manifest.vehicle is None:
        raise DataError(
            f"{root}: shards of {manifest.kind}, expected sequences of a vehicle; prepare a drive"
        )
    whole = read_index(root)
    own = own if own is not None and own.sha256 == manifest.sha256 else None
    if own is not None:
        whole["split"] = own.splits(whole)
    name = _chosen(root, list(dict.fromkeys(whole["drive"])), selection.drive)
    table = whole[whole["drive"] == name].sort_values("time_ns", ignore_index=True)
    time_ns, split = table["time_ns"].to_numpy(), table["split"].to_numpy(dtype=str)
    allowed = np.ones(len(table), bool) if selection.split == "all" else split == selection.split
    kept = _kept(time_ns, table["segment"].to_numpy(), allowed, selection, name)
    played = table.iloc[kept.rows]
    return FrameSource(
        name=root.resolve().name,
        kind="shards",
        reader=str(manifest.config["reader"]),
        camera=str(table["camera"].iloc[0]),
        vehicle=Vehicle(**manifest.vehicle),
        cropped=True,
        follow=True,
        shards=manifest,
        frame_rate=measured_rate(time_ns) if len(time_ns) > 1 else _rate(FRAMES_HZ),
        drives=np.full(len(kept.rows), name),
        index=played["frame"].to_numpy(),
        time_ns=played["time_ns"].to_numpy(),
        time_s=(played["time_ns"].to_numpy() - time_ns[0]) / 1e9,
        segment=kept.segment,
        begins=kept.begins,
        split=split[kept.rows] if own is not None else np.full(len(kept.rows), ""),
        lead_s=float(manifest.signals.get("lead_s", 0.0)),
        controls={each: played[each].to_numpy(dtype=np.float64) for each in _CONTROLS},
        pictures=lambda: _read_shards(root, played["shard"].to_numpy(), played["row"].to_numpy()),
    )


def _read_shards(root: Path, shard: np.ndarray, row: Int[np.ndarray, " T"]) -> Iterator[Image]:
    breaks = np.flatnonzero((np.diff(row) != 1) | (shard[1:] != shard[:-1])) + 1
    for part in np.split(np.arange(len(row)), breaks):
        first, last = int(row[part[0]]), int(row[part[-1]]) + 1
        for start in range(first, last, FRAMES_PER_CHUNK):
            stop = min(start + FRAMES_PER_CHUNK, last)
            yield from read_frames(root / shard[part[0]], start, stop)


def _from_labelled_images(
    root: Path,
    selection: Selection,
    own: OwnShards | None,
    outputs: Sequence[str],
    frame_rate: Fraction | None,
) -> FrameSource:
    images = LabelledImages(root)
    index, manifest = images.index, images.manifest
    known = own is not None and own.sha256 == manifest.sha256
    splits = own.splits(index) if own is not None and known else index["split"].to_numpy(dtype=str)
    chosen = np.ones(len(index), bool) if selection.split == "all" else splits == selection.split
    if selection.drive is not None:
        chosen &= (index["group"] == selection.drive).to_numpy()
    rate = frame_rate or _rate(IMAGES_HZ)
    since_s = np.arange(int(chosen.sum())) / float(rate)
    inside = (since_s >= selection.start_s) & (since_s < (selection.end_s or math.inf))
    rows = np.flatnonzero(chosen)[inside]
    if not len(rows):
        raise DataError(
            f"{root}: no image of split {selection.split} in that time; it holds {len(index)} images"
        )
    labels = None
    if set(outputs) <= set(images.label_names):
        labels = images.labels(tuple(outputs)).double().numpy()[rows]
    unknown = np.full(len(rows), np.nan)
    return FrameSource(
        name=root.resolve().name,
        kind="shards",
        reader=str(manifest.config["reader"]),
        camera="",
        vehicle=VEHICLES[ANY_VEHICLE],
        cropped=True,
        follow=False,
        shards=manifest,
        frame_rate=rate,
        drives=index["group"].to_numpy(dtype=str)[rows],
        index=rows,
        time_ns=np.zeros(len(rows), dtype=np.int64),
        time_s=since_s[inside],
        segment=np.zeros(len(rows), dtype=np.int32),
        begins=np.ones(len(rows), dtype=bool),
        split=splits[rows] if known else np.full(len(rows), ""),
        controls=dict.fromkeys(_CONTROLS, unknown),
        lead_s=0.0,
        pictures=lambda: _read_images(images, rows),
        keys=index["key"].to_numpy(dtype=str)[rows],
        labels=labels,
    )


def _read_images(images: LabelledImages, rows: Int64[np.ndarray, " T"]) -> Iterator[Image]:
    for start in range(0, len(rows), _IMAGES_AT_A_TIME):
        yield from images.arrays(rows[start : start + _IMAGES_AT_A_TIME])
