"""A run over drives: align, cut into shards of HDF5, write, index and describe them."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from data_prep import quality
from data_prep.alignment import AlignedDrive, Alignment, align
from data_prep.decoding import Decoded, Dropped, Unusable, decoded
from data_prep.errors import DataError, SettingNeededError
from data_prep.geometry import Geometry
from data_prep.jobs import SourceState, check_visible, provenance, versions
from data_prep.policy import Policy
from data_prep.schema import Drive
from data_prep.shards.atomic import replacing
from data_prep.shards.hdf5 import FRAMES_PER_CHUNK, SequenceWriter
from data_prep.shards.manifest import FOLDER, Manifest, ShardEntry, canonical_json
from data_prep.shards.parquet import SEQUENCE_INDEX
from data_prep.signals import segments
from data_prep.split import BlockSplit, SplitRule, Timeline, clock_names

MOST_CARRIED = 0.02
"""Of a smoothed label, the part that may come from the other side of a gap. The defaults, alpha 0.2 and 2 s, carry
0.013 % at 20 Hz and 1.2 % at 10 Hz."""


@dataclass(frozen=True, kw_only=True)
class DriveUnit:
    """The kept frames `start` to `stop` (exclusive) of one drive, and where they go."""

    drive: int
    start: int
    stop: int
    path: str
    """Relative to the output."""


@dataclass(frozen=True, kw_only=True)
class DriveWork:
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

    def __call__(self, unit: DriveUnit) -> ShardEntry:
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
        """Writes what can be read; returns the numbers of the frames that could and could not."""
        good: list[int] = []
        dropped = Dropped(self.policy)
        usable = _usable(images, dropped)
        while chunk := list(islice(usable, FRAMES_PER_CHUNK)):
            causes = [item.cause for item in chunk if item.cause is not None]
            writer.append(np.stack([item.image for item in chunk]), np.stack(causes) if causes else None)
            good += [item.frame for item in chunk]
        return good, dropped.by_reason

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


def _usable(images: Iterator[Decoded | Unusable], dropped: Dropped) -> Iterator[Decoded]:
    for item in images:
        if isinstance(item, Decoded):
            yield item
        else:
            dropped.add(item.frame, item.fault)


@dataclass(frozen=True, kw_only=True)
class DriveJob:
    """Drives to HDF5 shards."""

    config: dict[str, Any]
    drives: Sequence[Drive]
    aligned: Sequence[AlignedDrive]
    units: Sequence[DriveUnit]
    geometry: Geometry
    alignment: Alignment
    policy: Policy
    split: SplitRule

    @classmethod
    def plan(
        cls,
        drives: Sequence[Drive],
        *,
        config: dict[str, Any],
        geometry: Geometry,
        alignment: Alignment,
        policy: Policy,
        split: SplitRule,
        frames_per_shard: int,
    ) -> DriveJob:
        """Aligns the drives and cuts them into units.

        Raises:
            DataError: drives cannot be told apart or share no vehicle, nothing is left of one, or
                the policy refuses a fault that was found.
        """
        _check_drives(drives)
        aligned = [align(drive, alignment) for drive in drives]
        for drive, kept in zip(drives, aligned, strict=True):
            policy.check(f"drive {drive.name}", kept.dropped, drive.left_out)
            policy.check_gaps(f"drive {drive.name}", kept.time_ns, hole_periods=alignment.hole_periods)
        job = cls(
            config=config,
            drives=drives,
            aligned=aligned,
            units=_units(drives, aligned, frames_per_shard=frames_per_shard),
            geometry=geometry,
            alignment=alignment,
            policy=policy,
            split=split,
        )
        job._check_smoothing()
        job.split.divide(job.timelines)  # what cannot be is told before hours of work
        return job

    def _check_smoothing(self) -> None:
        """Refuses blocks so near that the smoothed labels of one hold those of another.

        Raises:
            DataError: more than `MOST_CARRIED` of a label would come from across the gap.
        """
        if not isinstance(self.split, BlockSplit) or self.alignment.smoothing == 1.0:
            return
        smoothing = self.alignment.smoothing
        for drive, kept in zip(self.drives, self.aligned, strict=True):
            if len(kept) < 2 or (drive.steering_wheel is None and drive.speed is None):
                continue
            rate_hz = 1e9 / float(np.median(np.diff(kept.time_ns)))
            carried = (1.0 - smoothing) ** (self.split.gap_s * rate_hz)
            if carried > MOST_CARRIED:
                needed_s = math.ceil(10 * math.log(MOST_CARRIED) / math.log1p(-smoothing) / rate_hz) / 10
                raise SettingNeededError(
                    f"drive {drive.name}: smoothing {smoothing:g} at {rate_hz:.3g} Hz carries {carried:.1%} of a "
                    f"label over a gap_s of {self.split.gap_s:g}, into another block; "
                    f"use gap_s {needed_s:g} or more, or a larger smoothing (1 is off)",
                    settings={"smoothing": least_smoothing(self.split.gap_s * rate_hz)},
                )

    @property
    def unit_paths(self) -> list[str]:
        return [unit.path for unit in self.units]

    @property
    def sources(self) -> int:
        return len(self.drives)

    @cached_property
    def source(self) -> SourceState:
        return SourceState.of(file for drive in self.drives for file in drive.images.files(0, len(drive)))

    @property
    def fingerprint(self) -> str:
        told = [[drive.name, dict(drive.provenance)] for drive in self.drives]
        digest = hashlib.sha256(
            canonical_json([self.config, versions(), self.unit_paths, told, self.source.files])
        )
        for aligned in self.aligned:
            digest.update(aligned.frame.tobytes())
            for name in sorted(aligned.columns):
                digest.update(np.ascontiguousarray(aligned.columns[name]).tobytes())
        return digest.hexdigest()

    def work(self, *, root: Path, scratch: Path, threads: int) -> DriveWork:
        return DriveWork(
            drives=self.drives,
            aligned=self.aligned,
            geometry=self.geometry,
            smoothing=self.alignment.smoothing,
            policy=self.policy,
            root=root,
            scratch=scratch,
            threads=threads,
        )

    def index(self, entries: Mapping[str, ShardEntry]) -> tuple[pd.DataFrame, pa.Schema]:
        """Every frame that was written, with its segment, block and split.

        Raises:
            DataError: no image of a drive could be used, or those that could not left a gap that is refused.
        """
        units = defaultdict(list)
        for unit in self.units:
            units[unit.drive].append(unit)
        tables = []
        for number, (drive, kept) in enumerate(zip(self.drives, self.aligned, strict=True)):
            rows = _index_rows(drive, kept, entries, units[number])
            if not len(rows):
                raise self._nothing_usable(number)
            tables.append(rows)
        times = [rows["time_ns"].to_numpy() for rows in tables]
        for drive, time_ns in zip(self.drives, times, strict=True):  # images that failed may have left a hole
            self.policy.check_gaps(f"drive {drive.name}", time_ns, hole_periods=self.alignment.hole_periods)
        divided = [
            rows.assign(
                segment=segments(time_ns, hole_periods=self.alignment.hole_periods),
                block=how.block,
                split=how.part,
            )
            for rows, time_ns, how in zip(
                tables, times, self.split.divide(self._timelines(times)), strict=True
            )
        ]
        return pd.concat(divided, ignore_index=True), SEQUENCE_INDEX

    @property
    def timelines(self) -> list[Timeline]:
        """When the frames were taken that alignment keeps; some images may yet turn out unusable."""
        return self._timelines([kept.time_ns for kept in self.aligned])

    def _timelines(self, times: Sequence[np.ndarray]) -> list[Timeline]:
        return [
            Timeline(drive=drive.name, recording=drive.recording or drive.name, time_ns=time_ns)
            for drive, time_ns in zip(self.drives, times, strict=True)
        ]

    def _nothing_usable(self, number: int) -> DataError:
        drive, kept = self.drives[number], self.aligned[number]
        first = next(decoded(drive, kept.frame[:1], self.geometry, threads=1))
        reason = first.fault if isinstance(first, Unusable) else "unreadable"
        return DataError(
            f"drive {drive.name}: none of its {len(kept)} images can be used; the first: {reason}"
        )

    def manifest(
        self, shards: list[ShardEntry], index: Sequence[ShardEntry], rows: pd.DataFrame, *, fingerprint: str
    ) -> Manifest:
        vehicle = self.drives[0].vehicle
        return Manifest(
            kind="sequences",
            config=self.config,
            vehicle=asdict(vehicle),
            geometry=asdict(self.geometry),
            drives=[
                {"name": d.name, "source": d.source, "camera": d.camera, "provenance": dict(d.provenance)}
                for d in self.drives
            ],
            shards=shards,
            index=list(index),
            signals=self._signals(),
            quality=self._quality(shards, rows),
            provenance=provenance(self.config, fingerprint),
        )

    def _signals(self) -> dict[str, Any]:
        """By drive where drives may differ: a speed that is not recorded turns the slip term off."""
        return {
            "label": "inverse_turning_radius",
            "label_unit": "1/m, positive to the left",
            "smoothing_alpha": self.alignment.smoothing,
            "lead_s": self.alignment.lead_s,
            "tolerance_s": self.alignment.tolerance_s,
            "hole_periods": self.alignment.hole_periods,
            "clock": clock_names(self.timelines),
            "steering_present": {drive.name: drive.steering_wheel is not None for drive in self.drives},
            "speed_present": {drive.name: drive.speed is not None for drive in self.drives},
            "slip_term": {drive.name: "off" if drive.speed is None else "on" for drive in self.drives},
        }

    def _quality(self, shards: Sequence[ShardEntry], rows: pd.DataFrame) -> dict[str, Any]:
        """The report of each drive."""
        unusable: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for shard in shards:
            for reason, frames in shard.dropped.items():
                unusable[shard.drive][reason] += len(frames)
        of_drive = dict(iter(rows.groupby("drive", sort=False)))
        reports = {}
        for drive, kept in zip(self.drives, self.aligned, strict=True):
            dropped = Counter({reason: len(frames) for reason, frames in kept.dropped.items()})
            dropped.update(unusable[drive.name])
            reports[drive.name] = quality.of_drive(
                of_drive[drive.name],
                frames_read=len(drive),
                dropped=dropped,
                left_out=drive.left_out,
                sorted_rows=drive.sorted_rows,
                signal_samples_dropped=kept.signal_samples_dropped,
            )
        return reports


def least_smoothing(frames: float) -> float:
    """The smoothing that carries at most `MOST_CARRIED` of a label over so many frames, to two digits."""
    return round(min(math.ceil(100 * (1.0 - MOST_CARRIED ** (1.0 / frames))) / 100 + 0.01, 1.0), 2)


def _units(
    drives: Sequence[Drive], aligned: Sequence[AlignedDrive], *, frames_per_shard: int
) -> list[DriveUnit]:
    """Cuts every drive into shards of `frames_per_shard` frames; the last may be shorter."""
    units = []
    for number, (drive, kept) in enumerate(zip(drives, aligned, strict=True)):
        for part, start in enumerate(range(0, len(kept), frames_per_shard)):
            stop = min(start + frames_per_shard, len(kept))
            path = f"{FOLDER}/{drive.name}-{part:05d}.h5"
            units.append(DriveUnit(drive=number, start=start, stop=stop, path=path))
    return units


def _index_rows(
    drive: Drive,
    aligned: AlignedDrive,
    entries: Mapping[str, ShardEntry],
    units: Sequence[DriveUnit],
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


def _check_drives(drives: Sequence[Drive]) -> None:
    if not drives:
        raise DataError("the source holds no drive; check the path and the reader")
    require_names_differ(drives)
    vehicles = sorted({drive.vehicle.name for drive in drives})
    if len(vehicles) > 1:
        raise DataError(f"drives of {', '.join(vehicles)} together; prepare each vehicle into its own output")


def require_names_differ(drives: Sequence[Drive]) -> None:
    """Refuses drives that cannot be told apart.

    Raises:
        DataError: two have one name; the message says where they lie.
    """
    names = Counter(drive.name for drive in drives)
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice is not None:
        files = [next(drive.images.files(0, 1), None) for drive in drives if drive.name == twice]
        where = " and ".join(dict.fromkeys(file[1] for file in files[:3] if file))
        raise DataError(
            f"{names[twice]} drives would be named {twice} ({where or 'without images'}); "
            "rename one file or folder, or give each by itself"
        )
