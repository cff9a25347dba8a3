"""Where a replay's frames come from: shards, a recording, a video, or a folder of images.

Frames are RGB and come one at a time, so memory does not grow with the drive. Controls are on the
frames' clock, as prep puts them into shards: the steering wheel in rad, positive to the left.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int, Int32, Int64

from data_prep.alignment import align
from data_prep.geometry import ImageFiles
from data_prep.readers import READERS, entry, recognise
from data_prep.readers.paths import drive_name
from data_prep.schema import Drive, Frame, Image, ImageSource, Vehicle
from data_prep.shards.hdf5 import FRAMES_PER_CHUNK, read_frames
from data_prep.shards.manifest import FILE_NAME, Manifest
from data_prep.shards.parquet import read_index
from data_prep.signals import clock_faults, segments
from driving_xai.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
SLOWEST_HZ, FASTEST_HZ = 0.01, 1000.0
_CONTROLS = tuple(f"{name}{end}" for name in ("steering_wheel_rad", "speed_mps") for end in ("", "_smoothed"))


class OwnShards(NamedTuple):
    """The shards that a model was trained on."""

    sha256: str
    """Of their manifest."""
    splits: Callable[[pd.DataFrame], np.ndarray]
    """train, val, test or gap for each row of their index, as the model saw it."""


class SourceFrame(NamedTuple):
    """One instant of a source."""

    frame: Frame
    steering_wheel_rad_smoothed: float
    """What the label was made of; NaN where unknown."""
    speed_mps_smoothed: float
    segment: int
    """Number of the unbroken run of camera frames."""
    begins: bool
    """Whether frames are missing before this one: what a model remembers ends there."""
    split: str
    """train, val, test or gap, where the model's shards say; otherwise empty."""


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """How a recording's signals are put on the camera's clock; the defaults are those of prep."""

    smoothing: float = 0.2
    lead_s: float = 0.0
    tolerance_s: float = 0.1
    hole_periods: float = 2.5


@dataclass(frozen=True, kw_only=True)
class FrameSource:
    """The frames of one drive, or a part of it, in order; iterate as often as needed."""

    name: str
    """Base name of what was opened."""
    kind: str
    """`shards`, a reader's name, or `image-folder`."""
    reader: str
    """What read the recording, also where shards were made of it."""
    drive: str
    camera: str
    vehicle: Vehicle
    cropped: bool
    """Whether frames are a model's input already, as shards hold them, or the camera's."""
    shards: Manifest | None
    frame_rate: Fraction
    """Frames a second: known, or the median of the camera's times."""
    index: Int64[np.ndarray, " T"]
    """Of each frame in the source drive."""
    time_ns: Int64[np.ndarray, " T"]
    first_time_ns: int
    """Of the whole drive: zero of the time that is shown."""
    segment: Int32[np.ndarray, " T"]
    begins: Bool[np.ndarray, " T"]
    split: np.ndarray
    controls: Mapping[str, Float64[np.ndarray, " T"]]
    """By the column names of shards; NaN where unknown."""
    lead_s: float
    """How long after a frame its controls are taken: what the driver does then, the model says now."""
    pictures: Callable[[], Iterator[Image]]

    def __len__(self) -> int:
        return len(self.index)

    @property
    def labelled(self) -> bool:
        """Whether the steering is known anywhere."""
        return bool(np.isfinite(self.controls["steering_wheel_rad"]).any())

    @property
    def speed_known(self) -> bool:
        return bool(np.isfinite(self.controls["speed_mps"]).any())

    def __iter__(self) -> Iterator[SourceFrame]:
        """Yields the frames.

        Raises:
            DataError: an image cannot be read, or has another size than the first.
        """
        size = None
        for at, image in enumerate(self.pictures()):
            size = size or image.shape
            if image.shape != size:
                raise DataError(
                    f"frame {self.index[at]} of {self.drive} is {image.shape[1]}x{image.shape[0]}, the first "
                    f"{size[1]}x{size[0]}; a replay needs one size"
                )
            value = {name: float(column[at]) for name, column in self.controls.items()}
            frame = Frame(
                index=int(self.index[at]),
                time_ns=int(self.time_ns[at]),
                image=image,
                steering_wheel_rad=value["steering_wheel_rad"],
                speed_mps=value["speed_mps"],
            )
            yield SourceFrame(
                frame,
                value["steering_wheel_rad_smoothed"],
                value["speed_mps_smoothed"],
                int(self.segment[at]),
                bool(self.begins[at]),
                str(self.split[at]),
            )


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which part of a source is played."""

    reader: str | None = None
    """Forces a reader's name; None recognises the source from its files."""
    drive: str | None = None
    """Needed where the source holds several."""
    split: Literal["all", "train", "val", "test"] = "all"
    """Of shards: as the model saw them, where they are those it was trained on."""
    start_s: float = 0.0
    """In the drive's own time."""
    end_s: float | None = None

    def __post_init__(self) -> None:
        if self.start_s < 0 or (self.end_s is not None and self.end_s <= self.start_s):
            raise DataError(f"got start {self.start_s} s, end {self.end_s} s; expected 0 <= start < end")


def open_source(
    path: Path,
    *,
    vehicle: Vehicle,
    frame_rate: Fraction,
    selection: Selection | None = None,
    alignment: Alignment | None = None,
    own_shards: OwnShards | None = None,
) -> FrameSource:
    """Opens whatever lies at a path.

    Args:
        path: shards, a recording that a reader knows, a video, or a folder of images in the order of
            their names; `-` is the synthetic route.
        vehicle: taken for sources without steering, which do not know theirs.
        frame_rate: taken for a folder of images, which has no times.
        selection: the part to play.
        alignment: of a recording's signals; shards are aligned already.
        own_shards: the model's; of them it is known which frames were trained on.

    Raises:
        DataError: it is missing, not recognised, empty, or holds several drives and none was chosen.
    """
    selection = selection or Selection()
    if selection.reader is None and (path / FILE_NAME).is_file():
        return _from_shards(path, selection, own_shards)
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


def measured_rate(time_ns: Int64[np.ndarray, " N"]) -> Fraction:
    """Frames a second: one over the median time between frames, at least two.

    Raises:
        DataError: no video has such a rate.

    Example:
        >>> measured_rate(np.arange(10) * 33_366_667)
        Fraction(30000, 1001)
    """
    apart_ns = int(np.median(np.diff(time_ns)))
    if not 10**9 / FASTEST_HZ <= apart_ns <= 10**9 / SLOWEST_HZ:
        raise DataError(
            f"frames are {apart_ns / 1e9:g} s apart; a replay needs {SLOWEST_HZ:g} to {FASTEST_HZ:g} a second"
        )
    return Fraction(10**9, apart_ns).limit_denominator(1001)


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
        drive=drive.name,
        camera=drive.camera,
        vehicle=drive.vehicle,
        cropped=False,
        shards=None,
        frame_rate=measured_rate(time_ns) if len(time_ns) > 1 else frame_rate,
        index=index,
        time_ns=time_ns[kept.rows],
        first_time_ns=int(time_ns[0]),
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
        aligned = align(
            drive,
            smoothing=alignment.smoothing,
            tolerance_s=alignment.tolerance_s,
            hole_periods=alignment.hole_periods,
            lead_s=alignment.lead_s,
        )
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
    names = (each.name for each in folder.iterdir() if each.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(names, key=lambda name: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", name)])


def _from_shards(root: Path, selection: Selection, own: OwnShards | None) -> FrameSource:
    manifest = Manifest.load(root)
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
        drive=name,
        camera=str(table["camera"].iloc[0]),
        vehicle=Vehicle(**manifest.vehicle),
        cropped=True,
        shards=manifest,
        frame_rate=measured_rate(time_ns) if len(time_ns) > 1 else Fraction(20),
        index=played["frame"].to_numpy(),
        time_ns=played["time_ns"].to_numpy(),
        first_time_ns=int(time_ns[0]),
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
