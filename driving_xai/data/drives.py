"""Torch views of drive shards: windows to train on and segments to walk through."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from data_prep.schema import Vehicle
from data_prep.shards.atomic import sha256_of
from data_prep.shards.hdf5 import FRAMES_PER_CHUNK, read_causes, read_frames
from data_prep.shards.manifest import Manifest
from data_prep.shards.parquet import read_index
from data_prep.signals import steering_wheel_rad
from driving_xai.errors import DataError

_PIECE = 5 * FRAMES_PER_CHUNK
"""How many frames of a shard are read at a time where all are wanted."""


def degrees_per_unit(speed_mps: np.ndarray, vehicle: Vehicle) -> np.ndarray:
    """Steering-wheel degrees per unit of inverse turning radius; without a speed nothing slips.

    Source: Tashiro and Awano 2023, eq. 3, solved for the angle.
    """
    return np.degrees(steering_wheel_rad(np.ones_like(speed_mps), speed_mps, vehicle))


class Window(NamedTuple):
    """Consecutive frames of one segment; batched by the loader."""

    frames: UInt8[Tensor, "T 3 H W"]
    target: Float[Tensor, " T"]
    """Inverse turning radius, 1/m; NaN where unlabelled."""
    degrees_per_unit: Float[Tensor, " T"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """Rows that follow one another: one segment of one drive within one split."""

    rows: np.ndarray
    """Positions in the index, in time order."""

    def __len__(self) -> int:
        return len(self.rows)


def runs(index: pd.DataFrame, chosen: np.ndarray) -> list[Run]:
    """The unbroken runs of chosen rows, each inside one segment of one drive and camera."""
    found = []
    groups = index.groupby(["drive", "camera", "segment"], sort=True).indices
    for rows in groups.values():
        rows = rows[np.argsort(index["time_ns"].to_numpy()[rows], kind="stable")]
        edges = np.flatnonzero(np.diff(chosen[rows].astype(np.int8))) + 1
        found += [Run(rows=part) for part in np.split(rows, edges) if chosen[part[0]]]
    return found


class Route:
    """The frames and labels of a shard set, read by rows of its index.

    Args:
        keep_bytes: how much of the frames may stay in memory once read, whole shards at a time.
    """

    def __init__(self, root: Path, index: pd.DataFrame, vehicle: Vehicle, *, keep_bytes: int = 0) -> None:
        self.root, self.index = root, index
        self._kept: dict[str, np.ndarray] = {}
        self._room = keep_bytes
        self._shards = index["shard"].to_numpy()
        self._row = index["row"].to_numpy()
        self._lengths = shard_lengths(index)
        self.target = index["inverse_turning_radius"].to_numpy(dtype=np.float64)
        speed = index["speed_mps_smoothed"].to_numpy(dtype=np.float64)
        self.degrees_per_unit = degrees_per_unit(speed, vehicle)

    def frames(self, rows: np.ndarray) -> UInt8[Tensor, "T 3 H W"]:
        """The frames of rows that follow one another, RGB."""
        parts = [self._read(shard, start, stop + 1) for shard, start, stop in self._spans(rows)]
        stacked = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return torch.from_numpy(stacked).permute(0, 3, 1, 2)

    def pieces(self, rows: np.ndarray) -> list[np.ndarray]:
        """Rows that follow one another, cut so that little is read at a time and no chunk of a shard twice."""
        number, shard = self._row[rows] // _PIECE, self._shards[rows]
        return np.split(rows, np.flatnonzero((np.diff(number) != 0) | (shard[1:] != shard[:-1])) + 1)

    def forget(self) -> None:
        """Lets go of the frames that stay in memory, and keeps none from now on."""
        self._kept, self._room = {}, 0

    def window(self, rows: np.ndarray) -> Window:
        return Window(
            self.frames(rows),
            torch.from_numpy(self.target[rows]).float(),
            torch.from_numpy(self.degrees_per_unit[rows]).float(),
        )

    def causes(self, rows: np.ndarray) -> Bool[Tensor, "B H W"]:
        """Which pixels cause the label of each row.

        Raises:
            DataError: the shards do not know; only synthetic drives do.
        """
        parts = [read_causes(self.root / shard, start, stop + 1) for shard, start, stop in self._spans(rows)]
        return torch.from_numpy(np.concatenate(parts))

    def _read(self, shard: str, start: int, stop: int) -> np.ndarray:
        if shard not in self._kept and self._room > 0:
            whole = read_frames(self.root / shard, 0, self._lengths[shard])
            if whole.nbytes <= self._room:
                self._kept[shard] = whole
            self._room -= whole.nbytes
        if shard in self._kept:
            return self._kept[shard][start:stop]
        return read_frames(self.root / shard, start, stop)

    def _spans(self, rows: np.ndarray) -> Iterator[tuple[str, int, int]]:
        breaks = (np.diff(self._row[rows]) != 1) | (self._shards[rows][1:] != self._shards[rows][:-1])
        for part in np.split(rows, np.flatnonzero(breaks) + 1):
            yield self._shards[part[0]], int(self._row[part[0]]), int(self._row[part[-1]])


class DeviceFrames:
    """The frames of some rows, read once and kept as uint8 on a device.

    Args:
        route: where they are read.
        runs: all of their frames.
        device: where they are kept.
    """

    def __init__(self, route: Route, runs: list[Run], device: torch.device) -> None:
        rows = np.concatenate([run.rows for run in runs])
        self._place = np.full(len(route.index), -1)
        self._place[rows] = np.arange(len(rows))
        first = route.frames(rows[:1])
        channels, height, width = first.shape[1:]
        # With colours last, as they are read: rounding further on depends on the order in memory.
        self._frames = torch.empty(len(rows), height, width, channels, dtype=torch.uint8, device=device)
        for piece in (piece for run in runs for piece in route.pieces(run.rows)):
            start = int(self._place[piece[0]])
            self._frames[start : start + len(piece)] = route.frames(piece).permute(0, 2, 3, 1).to(device)

    def places(self, rows: np.ndarray) -> Int64[Tensor, "..."]:
        """Where frames of these rows are; on the CPU."""
        return torch.from_numpy(self._place[rows])

    def read(self, rows: np.ndarray) -> UInt8[Tensor, "T 3 H W"]:
        """As `Route.frames`, of rows that are kept."""
        return self.frames(self.places(rows))

    def frames(self, places: Int64[Tensor, "*B"]) -> UInt8[Tensor, "*B 3 H W"]:
        """Those frames, on the device."""
        found = self._frames.index_select(0, places.flatten().to(self._frames.device))
        return found.unflatten(0, places.shape).movedim(-1, -3)


class Windows(Dataset[Window]):
    """Windows of `length` frames cut from runs, one after the other from `offset` on."""

    def __init__(self, route: Route, runs: list[Run], *, length: int, stride: int, offset: int = 0) -> None:
        self.route = route
        self.windows = [
            run.rows[start : start + length]
            for run in runs
            for start in range(offset % stride, len(run) - length + 1, stride)
        ]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, position: int) -> Window:
        return self.route.window(self.windows[position])


def vehicle_of(root: Path, manifest: Manifest) -> Vehicle:
    """The vehicle whose steering a shard set holds.

    Raises:
        DataError: its manifest names none.
    """
    if manifest.vehicle is None:
        raise DataError(f"{root}: its manifest names no vehicle, which degrees need; prepare it again")
    return Vehicle(**manifest.vehicle)


def open_index(root: Path, manifest: Manifest) -> pd.DataFrame:
    """The index of a shard set, once it is the one that the manifest vouches for.

    Raises:
        DataError: it is missing, was changed, or names a file that is no shard of the set.
    """
    index = read_index(root, manifest)
    if any(sha256_of(root / part.path) != part.sha256 for part in manifest.index):
        raise DataError(
            f"{root}: its index is not the one that manifest.json lists; run `driving-xai verify`"
        )
    listed = {shard.path for shard in manifest.shards}
    if unlisted := sorted(set(index["shard"].unique()) - listed):
        raise DataError(f"{root}: its index names {unlisted[0]!r}, which is no shard of it; prepare it again")
    return index


def shard_lengths(index: pd.DataFrame) -> dict[str, int]:
    """How many rows of an index each shard has, counted in one pass.

    Example:
        >>> shard_lengths(pd.DataFrame({"shard": ["a", "b", "a"]}))
        {'a': 2, 'b': 1}
    """
    return {str(shard): int(rows) for shard, rows in index["shard"].value_counts(sort=False).items()}


def labelled(index: pd.DataFrame) -> np.ndarray:
    """Whether each row has a target."""
    return np.isfinite(index["inverse_turning_radius"].to_numpy(dtype=np.float64))
