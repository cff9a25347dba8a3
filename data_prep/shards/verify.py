"""Checks an output against its manifest: every byte, every row, nothing more and nothing less."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.errors import DataError
from data_prep.shards import hdf5, parquet
from data_prep.shards.atomic import sha256_of
from data_prep.shards.manifest import FILE_NAME, Manifest, ShardEntry


class Problem(NamedTuple):
    """One file that is not as the manifest says."""

    path: str
    what: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `verify` found."""

    root: Path
    shards: int
    rows: int
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(root: Path) -> Report:
    """Hashes every shard again, opens it, and counts its rows; a bad shard is named, not raised.

    Raises:
        DataError: the folder has no readable manifest, so there is nothing to check against.
    """
    root = Path(root)
    manifest = Manifest.load(root)
    problems = [*_unlisted(root, manifest)]
    for entry in (*manifest.shards, manifest.index):
        problems += [Problem(entry.path, what) for what in _faults(root, entry)]
    if not any(problem.path == manifest.index.path for problem in problems):
        problems += _index_faults(root, manifest)
    return Report(
        root=root, shards=len(manifest.shards), rows=manifest.rows, problems=tuple(sorted(problems))
    )


def _unlisted(root: Path, manifest: Manifest) -> Iterator[Problem]:
    listed = {FILE_NAME, manifest.index.path, *(entry.path for entry in manifest.shards)}
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        if path.is_file() and name not in listed:
            yield Problem(name, "not in the manifest; remove it")


def _faults(root: Path, entry: ShardEntry) -> Iterator[str]:
    file = (root / entry.path).resolve()
    if not file.is_relative_to(root.resolve()):
        yield "lies outside the folder; prepare again"
        return
    if not file.is_file():
        yield "missing; prepare again with --resume"
        return
    size = file.stat().st_size
    if size != entry.bytes:
        yield f"{size} bytes, the manifest says {entry.bytes}; prepare again with --resume"
        return
    if sha256_of(file) != entry.sha256:
        yield "its bytes are not those of the manifest's hash; prepare again with --resume"
        return
    try:
        rows = (parquet if file.suffix == ".parquet" else hdf5).count_rows(file)
    except DataError as error:
        yield str(error)
        return
    if rows != entry.rows:
        yield f"{rows} rows, the manifest says {entry.rows}; prepare again with --overwrite"


def _index_faults(root: Path, manifest: Manifest) -> Iterator[Problem]:
    """The index must name each row of each shard exactly once, in order."""
    try:
        index = parquet.read_index(root)
    except DataError as error:
        yield Problem(manifest.index.path, str(error))
        return
    listed = {str(shard): rows.to_numpy() for shard, rows in index.groupby("shard", sort=False)["row"]}
    for entry in manifest.shards:
        rows = listed.get(entry.path, np.arange(0))
        if len(rows) != entry.rows or not np.array_equal(rows, np.arange(len(rows))):
            yield Problem(
                manifest.index.path, f"does not list the {entry.rows} rows of {entry.path} in order"
            )
