"""The work on drives: plan the shards, write one of them, list what came out.

One shard is one unit of work with a fixed name, so that an interrupted run knows what is missing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int64, UInt8

from data_prep.alignment import AlignedDrive
from data_prep.errors import DataError
from data_prep.geometry import Geometry, MissingImageError
from data_prep.jobs import check_visible
from data_prep.policy import Policy
from data_prep.schema import Drive
from data_prep.shards.atomic import replacing
from data_prep.shards.hdf5 import FRAMES_PER_CHUNK, SequenceWriter
from data_prep.shards.manifest import ShardEntry

FOLDER = "shards"


@dataclass(frozen=True, kw_only=True)
class SequenceUnit:
    """The kept frames `start` to `stop` (exclusive) of one drive, and where they go."""

    drive: int
    start: int
    stop: int
    path: str
    """Relative to the output."""


@dataclass(frozen=True, kw_only=True)
class SequenceWork:
    """Writes units; sent to each worker once."""

    drives: Sequence[Drive]
    aligned: Sequence[AlignedDrive]
    geometry: Geometry
    smoothing: float
    policy: Policy
    root: Path
    scratch: Path
    """For temporary files, on the file system of `root`."""
    threads: int

    def __call__(self, unit: SequenceUnit) -> ShardEntry:
        """Decodes, resizes and writes one shard, whole or not at all.

        Raises:
            DataError: the source is not there, or an image cannot be used and the policy refuses that.
        """
        drive, aligned = self.drives[unit.drive], self.aligned[unit.drive]
        wanted = aligned.frame[unit.start : unit.stop]
        check_visible(drive.images.files(int(wanted[0]), int(wanted[-1]) + 1))
        images = decoded(drive, wanted, self.geometry, threads=self.threads)
        with (
            replacing(self.root / unit.path, scratch=self.scratch) as temporary,
            SequenceWriter(
                temporary,
                most_rows=len(wanted),
                height=self.geometry.height,
                width=self.geometry.width,
                causes=drive.causes is not None,
            ) as writer,
        ):
            good, dropped = self._append(writer, images)
            # `good` are source frames in order; the aligned rows are found by them.
            rows = unit.start + np.searchsorted(wanted, good)
            columns = {name: values[rows] for name, values in aligned.columns.items()}
            writer.finish(columns, self._attributes(drive))
        return ShardEntry.of(self.root, unit.path, rows=len(good), drive=drive.name, dropped=dropped)

    def _append(
        self, writer: SequenceWriter, images: Iterator[Decoded | Unusable]
    ) -> tuple[list[int], dict[str, list[int]]]:
        good: list[int] = []
        dropped: dict[str, list[int]] = {}
        usable = self._usable(images, good, dropped)
        while chunk := list(islice(usable, FRAMES_PER_CHUNK)):
            causes = [item.cause for item in chunk if item.cause is not None]
            writer.append(np.stack([item.image for item in chunk]), np.stack(causes) if causes else None)
        return good, dropped

    def _usable(
        self, images: Iterator[Decoded | Unusable], good: list[int], dropped: dict[str, list[int]]
    ) -> Iterator[Decoded]:
        """Passes on the images that could be read, and notes which could and which could not."""
        for item in images:
            if isinstance(item, Decoded):
                good.append(item.frame)
                yield item
                continue
            reason = "missing_image" if isinstance(item.fault, MissingImageError) else "undecodable_image"
            if self.policy.stops_at(reason):
                raise item.fault
            dropped.setdefault(reason, []).append(item.frame)

    def _attributes(self, drive: Drive) -> dict[str, Any]:
        return {
            "drive": drive.name,
            "source": drive.source,
            "camera": drive.camera,
            "smoothing": self.smoothing,
            "speed_known": drive.speed is not None,
            "steering_known": drive.steering_wheel is not None,
            **{f"vehicle_{name}": value for name, value in asdict(drive.vehicle).items()},
            **{f"geometry_{name}": value for name, value in asdict(self.geometry).items()},
        }


class Decoded(NamedTuple):
    """One frame on the output grid."""

    frame: int
    image: UInt8[np.ndarray, "h w 3"]
    cause: Bool[np.ndarray, "h w"] | None


class Unusable(NamedTuple):
    """A frame whose image cannot be read, and why."""

    frame: int
    fault: DataError


def plan(
    drives: Sequence[Drive], aligned: Sequence[AlignedDrive], *, frames_per_shard: int
) -> list[SequenceUnit]:
    """Cuts every drive into shards of `frames_per_shard` frames; the last may be shorter."""
    units = []
    for number, (drive, kept) in enumerate(zip(drives, aligned, strict=True)):
        for part, start in enumerate(range(0, len(kept), frames_per_shard)):
            stop = min(start + frames_per_shard, len(kept))
            path = f"{FOLDER}/{drive.name}-{part:05d}.h5"
            units.append(SequenceUnit(drive=number, start=start, stop=stop, path=path))
    return units


def decoded(
    drive: Drive, frames: Int64[np.ndarray, " n"], geometry: Geometry, *, threads: int
) -> Iterator[Decoded | Unusable]:
    """The images of some frames of a drive, in order, cropped and resized.

    A source that can only be read front to back says so with an attribute `sequential = True` and
    is read once, here. Others are read by `threads` threads in short ranges.

    Args:
        drive: where the images come from.
        frames: indices in the drive, increasing.
        geometry: what to make of each image.
        threads: how many threads may decode; OpenCV does so without the interpreter's lock.
    """
    wanted = [int(frame) for frame in frames]
    if not wanted:
        return
    if getattr(drive.images, "sequential", False):
        chosen = set(wanted)
        yield from (
            item for item in _read(drive, wanted[0], wanted[-1] + 1, geometry) if item.frame in chosen
        )
        return
    # One thread is worth a pool too: glibc's allocator hands the main thread's images back to the system
    # after every frame, and faulting their pages in again costs as much as decoding.
    with ThreadPoolExecutor(threads) as pool:
        yield from _read_ahead(pool, drive, _spans(wanted), geometry, ahead=2 * threads)


def _read_ahead(
    pool: ThreadPoolExecutor,
    drive: Drive,
    spans: Iterator[tuple[int, int]],
    geometry: Geometry,
    *,
    ahead: int,
) -> Iterator[Decoded | Unusable]:
    """Keeps `ahead` spans in flight, so that memory is bounded, and yields them in order."""

    def submit(span: tuple[int, int]) -> Future[list[Decoded | Unusable]]:
        return pool.submit(lambda: list(_read(drive, *span, geometry)))

    waiting = deque(submit(span) for span in islice(spans, ahead))
    while waiting:
        done = waiting.popleft().result()
        waiting.extend(submit(span) for span in islice(spans, 1))
        yield from done


def _spans(wanted: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of consecutive frames, at most a chunk long."""
    start = previous = wanted[0]
    for frame in wanted[1:]:
        if frame != previous + 1 or frame - start == FRAMES_PER_CHUNK:
            yield start, previous + 1
            start = frame
        previous = frame
    yield start, previous + 1


def _read(drive: Drive, start: int, stop: int, geometry: Geometry) -> Iterator[Decoded | Unusable]:
    """Frames `start` to `stop` (exclusive); after one that cannot be read, reading starts anew behind it."""
    frame = start
    while frame < stop:
        try:
            causes = None if drive.causes is None else drive.causes.read(frame, stop)
            for image in drive.images.read(frame, stop):
                cause = None if causes is None else geometry.apply_mask(next(causes))
                small = geometry.apply(image)
                # Two full images at a time would make the allocator give pages back and fault them in again.
                del image
                yield Decoded(frame, small, cause)
                frame += 1
            if frame < stop:
                raise DataError(
                    f"drive {drive.name}: frame {frame} is not in the recording; check the source"
                )
        except DataError as fault:
            yield Unusable(frame, fault)
            frame += 1


def index_rows(
    drive: Drive,
    aligned: AlignedDrive,
    entries: Mapping[str, ShardEntry],
    units: Sequence[SequenceUnit],
) -> pd.DataFrame:
    """The index of one drive before segments and splits: its units' rows without the frames that failed."""
    parts = []
    for unit in units:
        entry = entries[unit.path]
        frame = aligned.frame[unit.start : unit.stop]
        kept = ~np.isin(frame, [f for frames in entry.dropped.values() for f in frames])
        columns = {name: values[unit.start : unit.stop][kept] for name, values in aligned.columns.items()}
        row = np.arange(int(kept.sum()), dtype=np.int32)
        parts.append(pd.DataFrame({"shard": unit.path, "row": row, "frame": frame[kept], **columns}))
    return pd.concat(parts, ignore_index=True).assign(drive=drive.name, camera=drive.camera)
