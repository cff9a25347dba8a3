"""What a run consists of, whatever it makes: units, their work, the index, the manifest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import h5py
import pandas as pd
import pyarrow as pa

from data_prep.errors import DataError
from data_prep.shards.manifest import Manifest, ShardEntry


class Unit(Protocol):
    """A piece of work that makes one file."""

    @property
    def path(self) -> str: ...


class SourceState(NamedTuple):
    """What a later run compares to know whether the source is still the same."""

    files: str
    """A hash of the names and sizes of its files; the same for a copy of the source."""
    times: str
    """A hash of when each was last changed, which a copy need not keep."""

    @classmethod
    def of(cls, files: Iterable[tuple[str, str]]) -> SourceState:
        """Looks at each file, and reads none.

        Args:
            files: the name of each in the source, and where it lies.
        """
        sizes, times = hashlib.sha256(), hashlib.sha256()
        for name, path in files:
            try:
                found = os.stat(path)  # noqa: PTH116 - a Path for each frame takes longer than looking
            except OSError:
                sizes.update(f"{name}\0gone\n".encode(errors="surrogateescape"))
                continue
            sizes.update(f"{name}\0{found.st_size}\n".encode(errors="surrogateescape"))
            times.update(f"{name}\0{found.st_mtime_ns}\n".encode(errors="surrogateescape"))
        return cls(sizes.hexdigest(), times.hexdigest())


def check_visible(files: Iterable[tuple[str, str]]) -> None:
    """Refuses to begin a unit whose files have gone since the run was planned.

    Without this a worker that does not see the source would leave all its frames out, and count them.

    Raises:
        DataError: a file is not there.
    """
    for name, path in files:
        if not os.path.isfile(path):  # noqa: PTH113
            raise DataError(
                f"{path}: {name} was there when the run was planned; make the source visible to every worker "
                "under the same path and --resume"
            )


class Job(Protocol):
    """A planned run."""

    @property
    def units(self) -> Sequence[Any]: ...
    @property
    def unit_paths(self) -> list[str]: ...
    @property
    def sources(self) -> int:
        """How many drives or image sets it reads."""
        ...

    @property
    def source(self) -> SourceState: ...
    @property
    def fingerprint(self) -> str: ...

    def work(self, *, root: Path, scratch: Path, threads: int) -> Callable[[Any], ShardEntry]: ...

    def index(self, entries: Mapping[str, ShardEntry]) -> tuple[pd.DataFrame, pa.Schema]:
        """The index of what the units made, and its columns."""
        ...

    def manifest(
        self, shards: list[ShardEntry], index: Sequence[ShardEntry], rows: pd.DataFrame, *, fingerprint: str
    ) -> Manifest: ...


def versions() -> dict[str, str]:
    """The versions of everything that decides the bytes of a shard or of its pixels."""
    return {
        "driving-xai": version("driving-xai"),
        "opencv": cv2.__version__,
        "hdf5": h5py.version.hdf5_version,
        **{name: version(name) for name in ("av", "h5py", "numpy", "pandas", "pyarrow")},
    }


def provenance(config: Mapping[str, Any], fingerprint: str) -> dict[str, Any]:
    """Where an output came from, for its manifest."""
    return {
        "reader": config["reader"],
        "source": config["source"],
        "versions": versions(),
        "fingerprint": fingerprint,
    }
