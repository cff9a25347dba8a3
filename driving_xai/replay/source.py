"""Opens what a replay plays: shards, a recording, a video, a folder of images, or labelled images."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int, Int32, Int64

from data_prep.alignment import Alignment, align
from data_prep.decoding import Dropped
from data_prep.drive_job import require_names_differ
from data_prep.geometry import ImageFiles
from data_prep.policy import Policy
from data_prep.readers import READERS, checked_options, entry, recognise
from data_prep.readers.paths import drive_name, visible
from data_prep.schema import VEHICLES, Drive, Image, Vehicle
from data_prep.shards.hdf5 import FRAMES_PER_CHUNK, read_frames
from data_prep.shards.manifest import FILE_NAME, Manifest
from data_prep.shards.parquet import read_index
from data_prep.signals import clock_faults, segments
from data_prep.video import frame_durations_ns
from driving_xai.data.images import LabelledImages
from driving_xai.errors import DataError
from driving_xai.replay.frames import FrameSource, Selection, measured_rate, regular_times, shown_times

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
    policy: Policy | None = None,
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
        policy: which faults of a recording, a video or a folder of images stop the replay; None drops and counts
            the frames. Shards are whole, or refused.
        own_shards: the model's; of them it is known which frames were trained on.
        outputs: names of the model's outputs, whose labels shards of images may know; None for a model of
            drives, which takes no such shards.

    Raises:
        DataError: it is missing, not recognised, empty, holds several drives and none was chosen, has a fault that is
            refused, or takes no such options.
    """
    selection, policy = selection or Selection(), policy or Policy()
    if selection.reader is None and (path / FILE_NAME).is_file():
        _refuse_options(path, selection, "shards take none")
        manifest = Manifest.load(path)
        if manifest.kind == "images" and outputs is not None:
            return _from_labelled_images(path, selection, own_shards, outputs, frame_rate)
        return _from_shards(path, manifest, selection, own_shards)
    frame_rate = frame_rate or _rate(FRAMES_HZ)
    reader = selection.reader or _recognised(path)
    if reader == "image-folder":
        _refuse_options(path, selection, "a folder of images takes its rate by --set frame_rate=20")
        return _from_images(path, vehicle, frame_rate, selection, policy)
    if entry(reader).kind != "sequences":
        raise DataError(f"reader {reader!r} reads single images, which are no drive; try image-folder")
    drive = _drive(path, reader, selection)
    if drive.steering_wheel is None and "vehicle" not in selection.reader_options:
        drive = replace(drive, vehicle=vehicle)
    return _from_drive(path, drive, selection, alignment or Alignment(), frame_rate, policy)


def _drive(path: Path, reader: str, selection: Selection) -> Drive:
    read = READERS[reader]
    drives = read(path, **checked_options(reader, read, selection.reader_options))
    if selection.drive is None:
        require_names_differ(drives)
    name = _chosen(path, [drive.name for drive in drives], selection.drive)
    found = [drive for drive in drives if drive.name == name]
    require_names_differ(found)
    return found[0]


def _refuse_options(path: Path, selection: Selection, because: str) -> None:
    if selection.reader_options:
        named = ", ".join(selection.reader_options)
        raise DataError(f"{path}: got --option {named}, which is for readers; {because}")


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
    path: Path,
    drive: Drive,
    selection: Selection,
    alignment: Alignment,
    frame_rate: Fraction,
    policy: Policy,
) -> FrameSource:
    faults = clock_faults(drive.time_ns)
    good = np.flatnonzero(~faults.any)
    time_ns = drive.time_ns[good]
    if not len(time_ns):
        raise DataError(f"{path}: drive {drive.name} has no frame; check the recording")
    segment = segments(time_ns, hole_periods=alignment.hole_periods)
    kept = _kept(time_ns, segment, np.ones(len(good), bool), selection, drive.name)
    controls = _controls(drive, good, alignment)
    dropped = {name: np.flatnonzero(which) for name, which in faults._asdict().items()}
    _check(drive, policy, dropped, good, time_ns, alignment, controls)
    frame_rate = measured_rate(time_ns) if len(time_ns) > 1 else frame_rate
    # A video shows a frame until the next one comes, however long; of a recording, the hole is passed over.
    begins = np.zeros_like(kept.begins) if drive.source == "video" else kept.begins
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
        frame_rate=frame_rate,
        drives=np.full(len(index), drive.name),
        index=index,
        time_ns=time_ns[kept.rows],
        time_s=(time_ns[kept.rows] - time_ns[0]) / 1e9,
        shown_ns=_shown(time_ns, kept.rows, begins, frame_rate),
        segment=kept.segment,
        begins=kept.begins,
        split=np.full(len(index), ""),
        controls={name: column[kept.rows] for name, column in controls.items()},
        lead_s=alignment.lead_s,
        pictures=lambda dropped: _readable(drive, index, dropped),
        policy=policy,
        left_out=_counts(dropped, drive, index),
    )


def _check(
    drive: Drive,
    policy: Policy,
    dropped: Mapping[str, Int64[np.ndarray, " _"]],
    good: Int64[np.ndarray, " T"],
    time_ns: Int64[np.ndarray, " T"],
    alignment: Alignment,
    controls: Mapping[str, Float64[np.ndarray, " T"]],
) -> None:
    """Stops at a fault that the policy refuses and that is known before any image is read."""
    name = f"drive {drive.name}"
    policy.check(name, dropped, drive.left_out)
    policy.check_gaps(name, time_ns, hole_periods=alignment.hole_periods)
    # Without its control a frame is played all the same.
    if "no_control" in policy.refuse and (drive.steering_wheel is not None or drive.speed is not None):
        recorded = controls["speed_mps" if drive.steering_wheel is None else "steering_wheel_rad"]
        policy.check(name, {"no_control": good[np.isnan(recorded)]}, {})


def _counts(
    dropped: Mapping[str, Int64[np.ndarray, " _"]], drive: Drive, index: Int64[np.ndarray, " T"]
) -> dict[str, int]:
    """Reason to how many frames it cost within the part that is played; of rows without a place, in all."""
    inside = {
        reason: int(((frames > index[0]) & (frames < index[-1])).sum()) for reason, frames in dropped.items()
    }
    inside |= {reason: len(rows) for reason, rows in drive.left_out.items()}
    return {reason: count for reason, count in inside.items() if count}


def _shown(
    time_ns: Int64[np.ndarray, " N"],
    rows: Int64[np.ndarray, " T"],
    begins: Bool[np.ndarray, " T"],
    frame_rate: Fraction,
) -> Int64[np.ndarray, " edges"]:
    """When the frames `rows` of a drive are shown: each until the next one, or for a period before a hole."""
    period_ns = round(10**9 / frame_rate)
    duration_ns = frame_durations_ns(time_ns)[rows] if len(time_ns) > 1 else np.array([period_ns])
    duration_ns[:-1][begins[1:]] = period_ns
    return shown_times(duration_ns, frame_rate)


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


def _readable(drive: Drive, index: Int64[np.ndarray, " T"], dropped: Dropped) -> Iterator[tuple[int, Image]]:
    """The frames `index` of a drive that can be read, each with its place among them.

    Raises:
        DataError: the policy refuses one that cannot be read, or none can.
    """
    first: DataError | None = None
    given = 0
    for run in np.split(np.arange(len(index)), np.flatnonzero(np.diff(index) != 1) + 1):
        at, stop = int(run[0]), int(run[-1]) + 1
        while at < stop:
            try:
                for image in drive.images.read(int(index[at]), int(index[stop - 1]) + 1):
                    yield at, image
                    at, given = at + 1, given + 1
                if at < stop:
                    raise DataError(f"frame {index[at]} is not in the recording; check the source")
            except DataError as fault:
                dropped.add(int(index[at]), fault)
                at, first = at + 1, first or fault
    if not given:
        raise DataError(
            f"drive {drive.name}: none of its {len(index)} images can be used; the first: {first}"
        )


def _from_images(
    path: Path, vehicle: Vehicle, frame_rate: Fraction, selection: Selection, policy: Policy
) -> FrameSource:
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
        time_ns=regular_times(frame_rate, len(names))[:-1],
        images=ImageFiles(folder=path.resolve(), names=tuple(names)),
    )
    found = _from_drive(path, drive, selection, Alignment(), frame_rate, policy)
    return replace(found, frame_rate=frame_rate, shown_ns=regular_times(frame_rate, len(found)))


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
    whole = read_index(root, manifest)
    own = own if own is not None and own.sha256 == manifest.sha256 else None
    if own is not None:
        whole["split"] = own.splits(whole)
    name = _chosen(root, list(dict.fromkeys(whole["drive"])), selection.drive)
    table = whole[whole["drive"] == name].sort_values("time_ns", ignore_index=True)
    time_ns, split = table["time_ns"].to_numpy(), table["split"].to_numpy(dtype=str)
    allowed = np.ones(len(table), bool) if selection.split == "all" else split == selection.split
    kept = _kept(time_ns, table["segment"].to_numpy(), allowed, selection, name)
    played = table.iloc[kept.rows]
    frame_rate = measured_rate(time_ns) if len(time_ns) > 1 else _rate(FRAMES_HZ)
    return FrameSource(
        name=root.resolve().name,
        kind="shards",
        reader=str(manifest.config["reader"]),
        camera=str(table["camera"].iloc[0]),
        vehicle=Vehicle(**manifest.vehicle),
        cropped=True,
        follow=True,
        shards=manifest,
        frame_rate=frame_rate,
        drives=np.full(len(kept.rows), name),
        index=played["frame"].to_numpy(),
        time_ns=played["time_ns"].to_numpy(),
        time_s=(played["time_ns"].to_numpy() - time_ns[0]) / 1e9,
        shown_ns=_shown(time_ns, kept.rows, kept.begins, frame_rate),
        segment=kept.segment,
        begins=kept.begins,
        split=split[kept.rows] if own is not None else np.full(len(kept.rows), ""),
        lead_s=float(manifest.signals.get("lead_s", 0.0)),
        controls={each: played[each].to_numpy(dtype=np.float64) for each in _CONTROLS},
        pictures=lambda _: enumerate(
            _read_shards(root, played["shard"].to_numpy(), played["row"].to_numpy())
        ),
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
        shown_ns=regular_times(rate, len(rows)),
        segment=np.zeros(len(rows), dtype=np.int32),
        begins=np.ones(len(rows), dtype=bool),
        split=splits[rows] if known else np.full(len(rows), ""),
        controls=dict.fromkeys(_CONTROLS, unknown),
        lead_s=0.0,
        pictures=lambda _: enumerate(_read_images(images, rows)),
        keys=index["key"].to_numpy(dtype=str)[rows],
        labels=labels,
    )


def _read_images(images: LabelledImages, rows: Int64[np.ndarray, " T"]) -> Iterator[Image]:
    for start in range(0, len(rows), _IMAGES_AT_A_TIME):
        yield from images.arrays(rows[start : start + _IMAGES_AT_A_TIME])
