"""Sequence shards: HDF5 files of consecutive frames of one drive with their controls.

The same content gives the same bytes: no times are stored, the format version is fixed, and frames
lie in uncompressed chunks, which a training window reads ten times as fast as compressed ones.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from jaxtyping import Bool, UInt8

from data_prep import places
from data_prep.errors import DataError, OutputError, StoreError, quoted
from data_prep.shards.manifest import SCHEMA

FRAMES_PER_CHUNK = 20
"""One training window of the sequence models."""

COLUMNS: Mapping[str, type] = {
    "time_ns": np.int64,
    "steering_wheel_rad": np.float64,
    "steering_wheel_rad_smoothed": np.float64,
    "speed_mps": np.float64,
    "speed_mps_smoothed": np.float64,
    "inverse_turning_radius": np.float64,
}
"""The datasets beside `frames`: one value a frame, NaN where unknown."""

# What h5py lets through for a file that is damaged inside.
_FAULTS = (
    OSError,
    RuntimeError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    NotImplementedError,
    OverflowError,
    MemoryError,
)

# Fixed bounds, so that a newer HDF5 library does not silently choose a newer layout.
_LIBRARY = ("earliest", "v110")


class PatientFile(io.FileIO):
    """A file that remembers that the disk is full instead of raising.

    HDF5 cannot close a file whose writes fail, and then ends the process with a segmentation
    fault (seen with HDF5 2.0); so it is told that all is well and the writer asks afterwards.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self.fault: OSError | None = None

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while self.fault is None and len(left):
                left = left[super().write(left) :]
        except OSError as fault:
            self.fault = fault
        return size

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as fault:
            self.fault = self.fault or fault
            return size or 0

    def check(self) -> None:
        """Raises the first fault there was."""
        if self.fault is not None:
            raise self.fault


class SequenceWriter:
    """Writes one shard, chunk by chunk, so that memory does not grow with its length.

    Use as a context manager: `append` frames in order, then `finish` once with the columns.
    """

    def __init__(self, path: Path, *, most_rows: int, height: int, width: int, causes: bool) -> None:
        """Creates the file.

        Args:
            path: a temporary name; the caller renames it when the writer is closed.
            most_rows: how many frames there can be at most.
            height: of a frame in pixels.
            width: of a frame in pixels.
            causes: whether each frame comes with the mask of the pixels that cause its label.
        """
        self._disk = PatientFile(path)
        self._file = h5py.File(self._disk, "w", libver=_LIBRARY, track_order=False)
        self._rows = 0
        self._frames = self._create("frames", most_rows, (height, width, 3))
        self._causes = self._create("cause", most_rows, (height, width)) if causes else None

    def _create(self, name: str, most_rows: int, shape: tuple[int, ...]) -> h5py.Dataset:
        return self._file.create_dataset(
            name,
            shape=(most_rows, *shape),
            maxshape=(most_rows, *shape),
            chunks=(min(FRAMES_PER_CHUNK, max(most_rows, 1)), *shape),
            dtype=np.uint8,
            track_times=False,
        )

    def __enter__(self) -> SequenceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._disk.close()
        if error is None:
            self._disk.check()

    def append(self, frames: UInt8[np.ndarray, "n h w 3"], causes: Bool[np.ndarray, "n h w"] | None) -> None:
        """Adds frames; multiples of `FRAMES_PER_CHUNK` are written without being read back."""
        end = self._rows + len(frames)
        self._frames[self._rows : end] = frames
        if self._causes is not None:
            assert causes is not None
            self._causes[self._rows : end] = causes
        self._rows = end
        self._disk.check()

    def finish(self, columns: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> None:
        """Adds the columns of `COLUMNS` and the attributes, and cuts the frames to those appended."""
        for dataset in (self._frames, self._causes):
            if dataset is not None:
                dataset.resize(self._rows, axis=0)
        for name, kind in COLUMNS.items():
            assert len(columns[name]) == self._rows, name
            self._file.create_dataset(name, data=np.asarray(columns[name], dtype=kind), track_times=False)
        for name in sorted(attributes):
            value = attributes[name]
            # Fixed-length text: variable-length text goes through a heap that need not be repeatable.
            self._file.attrs[name] = np.bytes_(value.encode()) if isinstance(value, str) else value
        self._file.attrs["schema"] = np.bytes_(SCHEMA.encode())


def read_frames(path: Path, start: int, stop: int) -> UInt8[np.ndarray, "T h w 3"]:
    """The RGB frames of rows `start` to `stop` (exclusive).

    Raises:
        DataError: the shard is missing or damaged, or has no such rows.
    """
    return _read(path, "frames", start, stop, dimensions=4)


def read_causes(path: Path, start: int, stop: int) -> Bool[np.ndarray, "T h w"]:
    """Which pixels cause the label, for rows `start` to `stop` (exclusive).

    Raises:
        DataError: the shard is missing or damaged, has no such rows, or does not know the causes.
    """
    with open_shard(path) as file:
        if "cause" not in file:
            raise DataError(f"{path}: has no 'cause'; only synthetic drives know the causes")
    return _read(path, "cause", start, stop, dimensions=3).astype(bool)


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """Every dataset of `COLUMNS`, whole.

    Raises:
        DataError: the shard is missing or damaged.
    """
    with open_shard(path) as file:
        columns = {name: _dataset(file, path, name, kind, dimensions=1) for name, kind in COLUMNS.items()}
        _one_length(columns, path)
        return {name: column[:] for name, column in columns.items()}


def count_rows(path: Path) -> int:
    """The frames of a shard; each has a value in every column.

    Raises:
        DataError: the shard is missing or damaged, or its datasets differ in length.
    """
    with open_shard(path) as file:
        columns = {name: _dataset(file, path, name, kind, dimensions=1) for name, kind in COLUMNS.items()}
        frames = {"frames": _dataset(file, path, "frames", np.uint8, dimensions=4)}
        causes = {"cause": _dataset(file, path, "cause", np.uint8, dimensions=3)} if "cause" in file else {}
        return _one_length(columns | frames | causes, path)


def frame_size(path: Path) -> tuple[int, int]:
    """(height, width) of the frames in pixels.

    Raises:
        DataError: the shard is missing or damaged.
    """
    with open_shard(path) as file:
        _, height, width, _ = _dataset(file, path, "frames", np.uint8, dimensions=4).shape
        return int(height), int(width)


def cause_fault(path: Path) -> str | None:
    """What is wrong with the masks of the pixels that cause the label; None where nothing is, or there are none.

    Raises:
        DataError: the shard is missing or damaged.
    """
    with open_shard(path) as file:
        if "cause" not in file:
            return None
        causes = _dataset(file, path, "cause", np.uint8, dimensions=3)
        frames = _dataset(file, path, "frames", np.uint8, dimensions=4)
        if causes.shape != frames.shape[:3]:
            return f"causes of {causes.shape[1]}x{causes.shape[2]} pixels, unlike its frames"
        for start in range(0, len(causes), FRAMES_PER_CHUNK):
            most = causes[start : start + FRAMES_PER_CHUNK].max(axis=(1, 2), initial=0)
            if (most > 1).any():
                row = int(np.argmax(most > 1))
                return f"a cause at row {start + row} is {most[row]}, expected 0 and 1"
    return None


def read_attributes(path: Path) -> dict[str, Any]:
    """The shard's attributes, text as `str`.

    Raises:
        DataError: the shard is missing or damaged.
    """
    with open_shard(path) as file:
        return {k: v.decode() if isinstance(v, bytes) else v for k, v in sorted(file.attrs.items())}


@contextmanager
def open_shard(path: Path) -> Iterator[h5py.File]:
    """Opens a shard for reading; use it to read many ranges from one open file.

    Raises:
        DataError: it is missing, not HDF5, or damaged, also when that shows only while reading.
        StoreError: it lies in a store that cannot be reached.
    """
    try:
        # No lock: shards never change, and some network file systems have no locks.
        with places.opened(path, lambda here: h5py.File(here, "r", locking=False)) as file:
            yield file
    except (DataError, OutputError, StoreError):
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: no such shard; run `driving-xai verify` on its folder") from None
    except _FAULTS as error:
        raise _damaged(path, str(error)) from None


def _damaged(path: Path, reason: str) -> DataError:
    first = (reason.splitlines() or ["no reason given"])[0]
    return DataError(
        f"{path}: damaged shard ({quoted(first, most=120)}); run `driving-xai verify` on its folder"
    )


def _dataset(file: h5py.File, path: Path, name: str, kind: type, *, dimensions: int) -> h5py.Dataset:
    """A dataset as `SequenceWriter` makes it: in this file, raw, and no larger than the file.

    Nothing has been allocated for its values when this refuses it.
    """
    if name not in file:
        raise _damaged(path, f"lacks {name}")
    # Links and external or virtual storage would read other files.
    dataset = file[name] if isinstance(file.get(name, getlink=True), h5py.HardLink) else None
    if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external:
        raise _damaged(path, f"{name} is no dataset of this file")
    if dataset.dtype != np.dtype(kind) or dataset.ndim != dimensions:
        raise _damaged(path, f"{name} is {dataset.dtype} in {dataset.ndim} dimensions")
    if name == "frames" and dataset.shape[-1] != 3:
        raise _damaged(path, f"frames have {dataset.shape[-1]} channels, expected 3")
    if dataset.id.get_create_plist().get_nfilters():
        raise _damaged(path, f"{name} is packed by a filter")
    most = path.stat().st_size
    for shape in (dataset.shape, dataset.chunks or (0,)):
        if math.prod(int(length) for length in shape) * dataset.dtype.itemsize > most:
            raise _damaged(path, f"{name} claims more than the file's {most} bytes")
    return dataset


def _one_length(datasets: Mapping[str, h5py.Dataset], path: Path) -> int:
    lengths = sorted({len(dataset) for dataset in datasets.values()})
    if len(lengths) != 1:
        raise DataError(
            f"{path}: columns of {quoted(lengths)} rows, expected one length; prepare again with --overwrite"
        )
    return lengths[0]


def _read(path: Path, name: str, start: int, stop: int, *, dimensions: int) -> np.ndarray:
    with open_shard(path) as file:
        dataset = _dataset(file, path, name, np.uint8, dimensions=dimensions)
        if not 0 <= start <= stop <= len(dataset):
            raise DataError(f"{path}: rows {start} to {stop} asked for, it has 0 to {len(dataset)}")
        return dataset[start:stop]
