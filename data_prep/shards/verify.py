"""Checks an output against its manifest: every byte, every row, nothing more and nothing less.

What the files hold must also be possible: see `contents`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from data_prep import places
from data_prep.errors import DataError, quoted
from data_prep.shards import hdf5, parquet
from data_prep.shards.atomic import sha256_of
from data_prep.shards.contents import index_faults, shard_faults
from data_prep.shards.manifest import FILE_NAME, FOLDER, Manifest, ShardEntry
from data_prep.shards.manifest_parts import INDEX_FOLDER, part_names
from data_prep.shards.parquet import INDEX_NAME


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
    """Hashes every shard again and looks into it; a bad shard is named, not raised.

    Looked at are the size of frames and images, ranges of values, labels against what they follow from, the
    order of time, the index against each shard, and the gap in time between the parts of the split.

    Raises:
        DataError: the folder has no readable manifest, so there is nothing to check against.
    """
    root = Path(root)
    manifest = Manifest.load(root)
    problems = [*_unlisted(root, manifest)]
    for part in manifest.parts:
        problems += [Problem(part.path, what) for what in _byte_faults(root, part)]
    faults = [*_index_part_faults(root, manifest)]
    index = None
    if not faults:
        index, where = parquet.read_index(root, manifest), _index_place(manifest)
        problems += [Problem(where, what) for what in index_faults(manifest, index)]
        problems += _uncounted(manifest, index)
    problems += faults
    rows = None if index is None else _Rows(index)
    for entry in manifest.shards:
        problems += [Problem(entry.path, what) for what in _shard_faults(root, entry, manifest, rows)]
    return Report(
        root=root, shards=len(manifest.shards), rows=manifest.rows, problems=tuple(sorted(problems))
    )


def _unlisted(root: Path, manifest: Manifest) -> Iterator[Problem]:
    listed = {FILE_NAME, *(entry.path for entry in manifest.files)}
    for name in places.names_below(root):
        if name not in listed:
            yield Problem(name, "not in the manifest; remove it")


def _index_place(manifest: Manifest) -> str:
    """What a fault of the whole index is said of."""
    return INDEX_NAME if manifest.shards_per_part is None else INDEX_FOLDER


def _index_part_faults(root: Path, manifest: Manifest) -> Iterator[Problem]:
    """What is wrong with the files of the index, each by itself."""
    expected = [INDEX_NAME]
    if manifest.shards_per_part is not None:
        names = part_names(len(manifest.shards), manifest.shards_per_part)
        expected = [f"{INDEX_FOLDER}/{name}.parquet" for name in names]
    found = [entry.path for entry in manifest.index]
    if found != expected:
        yield Problem(FILE_NAME, f"names {quoted(found)} as its index, expected {quoted(expected)}")
    for entry in manifest.index:
        for what in _file_faults(root, entry):
            yield Problem(entry.path, what)


class _Rows:
    """The index by shard, grouped once."""

    def __init__(self, index: pd.DataFrame) -> None:
        self._index = index
        self._of_shard = index.groupby("shard", sort=False).indices

    def of(self, path: str) -> pd.DataFrame:
        return self._index.iloc[self._of_shard.get(path, [])]


def _shard_faults(root: Path, entry: ShardEntry, manifest: Manifest, rows: _Rows | None) -> Iterator[str]:
    faults = [*_file_faults(root, entry)]
    yield from faults
    if not faults:
        mine = None if rows is None else rows.of(entry.path)
        yield from shard_faults(root / entry.path, entry, manifest, mine)


def _uncounted(manifest: Manifest, index: pd.DataFrame) -> Iterator[Problem]:
    """Drives whose quality report counts other rows than there are."""
    kept = {name: report.get("kept") for name, report in manifest.quality.items() if isinstance(report, dict)}
    names = (
        index["drive"] if manifest.kind == "sequences" else pd.Series([*kept][:1] * len(index), dtype=object)
    )
    counted = names.value_counts().to_dict()
    if counted != kept:
        yield Problem(
            FILE_NAME, f"its quality report counts {quoted(kept)} rows, the index has {quoted(counted)}"
        )


def _byte_faults(root: Path, entry: ShardEntry) -> Iterator[str]:
    """Whether a file lies there with the bytes that the manifest names."""
    file = (root / entry.path).resolve()
    if not file.is_relative_to(root.resolve()):
        yield "lies outside the folder; prepare again"
        return
    try:
        places.renewed(root / entry.path)
    except DataError as error:
        yield str(error)
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


def _file_faults(root: Path, entry: ShardEntry) -> Iterator[str]:
    faults = [*_byte_faults(root, entry)]
    yield from faults
    if faults:
        return
    file = root / entry.path
    try:
        rows = (parquet if file.suffix == ".parquet" else hdf5).count_rows(file)
        if not entry.path.startswith(f"{FOLDER}/"):
            parquet.read_index_part(file)
    except DataError as error:
        yield str(error)
        return
    if rows != entry.rows:
        yield f"{rows} rows, the manifest says {entry.rows}; prepare again with --overwrite"
