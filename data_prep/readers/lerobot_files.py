"""The files of LeRobot data sets: tables in Parquet, and images in those or in videos."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.errors import DataError
from data_prep.geometry import Reduction, decode_image
from data_prep.schema import Image, ImageSource
from data_prep.shards.parquet import FAULTS


def read_schema(path: Path) -> pa.Schema:
    """The columns of a Parquet file.

    Raises:
        DataError: it is not there or damaged.
    """
    try:
        return pq.read_schema(path.absolute())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; restore it from the data set") from None
    except FAULTS:
        raise DataError(
            f"{path}: not a Parquet file that can be read; restore it from the data set"
        ) from None


def read_table(path: Path, columns: list[str], *, episode: int | None = None) -> pa.Table:
    """Some columns of a Parquet file, of all rows or of one episode.

    Raises:
        DataError: it is not there or damaged, or lacks a column.
    """
    known = set(read_schema(path).names)
    missing = [name for name in columns if name not in known]
    if missing:
        raise DataError(f"{path}: has no column {missing[0]}; restore it from the data set")
    try:
        filters = None if episode is None else [("episode_index", "==", episode)]
        return pq.read_table(path.absolute(), columns=columns, filters=filters, partitioning=None)
    except FAULTS:
        raise DataError(
            f"{path}: not a Parquet file that can be read; restore it from the data set"
        ) from None


@dataclass(frozen=True, kw_only=True)
class VideoPart:
    """Some frames of a video, in order: an `ImageSource`."""

    video: ImageSource
    numbers: tuple[int, ...]
    """Of each frame in the video."""
    sequential: ClassVar[bool] = True

    def read(self, start: int, stop: int) -> Iterator[Image]:
        """Yields the RGB images of frames `start` to `stop` (exclusive) in order."""
        wanted = self.numbers[start:stop]
        numbered = enumerate(self.video.read(wanted[0], wanted[-1] + 1), wanted[0])
        position = 0
        for number, image in numbered:
            while position < len(wanted) and wanted[position] == number:
                yield image
                position += 1

    def files(self, start: int, stop: int) -> Iterator[tuple[str, str]]:
        """The video."""
        wanted = self.numbers[start:stop]
        return self.video.files(wanted[0], wanted[-1] + 1) if wanted else iter(())


@dataclass(frozen=True, kw_only=True)
class ParquetImages:
    """An episode's images in a Parquet column of `{bytes, path}`: an `ImageSource`."""

    path: Path
    column: str
    episode: int
    length: int
    reduced: Reduction = 1
    sequential: ClassVar[bool] = True

    def read(self, start: int, stop: int) -> Iterator[Image]:
        """Yields the RGB images of frames `start` to `stop` (exclusive) in order.

        Raises:
            DataError: an image cannot be decoded; the message names file and frame.
        """
        table = read_table(self.path, [self.column, "episode_index"], episode=self.episode)
        for number, cell in enumerate(table[self.column].slice(start, stop - start), start):
            value = cell.as_py()
            data = value.get("bytes") if isinstance(value, dict) else value
            name = f"{self.path.name} episode {self.episode} frame {number}"
            if not isinstance(data, bytes):
                raise DataError(f"{name}: holds no image; restore the file")
            yield decode_image(data, name=name, reduced=self.reduced)

    def files(self, start: int, stop: int) -> Iterator[tuple[str, str]]:
        """The Parquet file."""
        del start, stop
        yield self.path.name, str(self.path)
