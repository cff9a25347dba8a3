"""The output folder while it is written: what is finished, what may be replaced, and the last step.

While a run is unfinished the folder holds `.prep/`: the plan's fingerprint, an entry for each
finished shard, and temporary files. The manifest exists only when everything else is whole.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from data_prep.errors import DataError, OutputError, StoreError
from data_prep.jobs import Job, SourceState
from data_prep.lock import exclusive
from data_prep.shards import manifest_parts
from data_prep.shards.atomic import read_bounded, replacing, sha256_of
from data_prep.shards.manifest import (
    FILE_NAME,
    FOLDER,
    MAX_MANIFEST_BYTES,
    SCHEMA,
    Manifest,
    Readable,
    ShardEntry,
    canonical_json,
)
from data_prep.shards.parquet import INDEX_NAME, write_index

STATE = ".prep"
MAX_NOTE_BYTES = 16 * 2**20
"""Of one shard: 2,000 dropped frames take 20 kB."""
_PLAN = "plan.json"
_LISTS = (INDEX_NAME, f"{manifest_parts.INDEX_FOLDER}/*.parquet", f"{manifest_parts.FOLDER}/*.json")
"""What prep writes besides shards and `manifest.json`."""
_LOCK = "lock"


@dataclass(frozen=True, kw_only=True)
class Output:
    """A folder that is being filled."""

    root: Path
    fingerprint: str
    times: str
    """When the source's files were last changed, as a hash."""
    earlier: dict[str, ShardEntry] = field(default_factory=dict, compare=False)
    """What an earlier run of this plan noted, by path."""

    @property
    def scratch(self) -> Path:
        return self.root / STATE

    @classmethod
    @contextmanager
    def open(
        cls,
        root: Path,
        *,
        fingerprint: str,
        source: SourceState,
        resume: bool,
        overwrite: bool,
        on_unlocked: Callable[[str], None] | None = None,
    ) -> Iterator[Output]:
        """Makes the folder ready.

        Args:
            root: the folder.
            fingerprint: identifies the plan; a resumed run must have the same.
            source: the files of the source; where it is unfinished, a resumed run must find them unchanged.
            resume: keep what an earlier run of this plan finished.
            overwrite: remove what an earlier run, of any plan, wrote.
            on_unlocked: called with a sentence where the file system grants no locks.

        Raises:
            DataError: the folder holds something else, or holds an output and neither `resume` nor
                `overwrite` was asked for, or the source is another than that of the run to resume.
            OutputError: the folder cannot be written, or its disk is full.
        """
        if resume and overwrite:
            raise DataError("resume and overwrite contradict each other; choose one")
        output = cls(root=root, fingerprint=fingerprint, times=source.times)
        try:
            output._check(resume=resume, overwrite=overwrite)
            with exclusive(root, file=f"{STATE}/{_LOCK}", on_unlocked=on_unlocked):
                output._begin(afresh=not resume)
                yield output
        except StoreError:
            raise
        except OSError as error:
            where = error.filename or root
            raise OutputError(
                f"{where}: cannot be written ({error.strerror or error}); free space or choose another folder"
            ) from None

    def _check(self, *, resume: bool, overwrite: bool) -> None:
        """Touches nothing, so that a refusal changes nothing."""
        earlier = self._earlier_fingerprint()
        if earlier is None:
            # A run killed in its first moments leaves an empty state folder: still ours, still fresh.
            if self.root.exists() and any(entry.name != STATE for entry in self.root.iterdir()):
                raise DataError(f"{self.root}: is not empty and not an output of prep; choose a new folder")
            return
        if not (resume or overwrite):
            raise DataError(
                f"{self.root}: holds an output, finished or not; add --resume to continue or --overwrite to replace"
            )
        if resume and earlier != self.fingerprint:
            raise DataError(
                f"{self.root}: was begun with another source, configuration or library version; "
                "use the same again, or --overwrite to replace it"
            )
        if resume and not (self.root / FILE_NAME).exists() and self._plan().get("times") != self.times:
            raise DataError(
                f"{self.root}: files of the source were changed or copied since it was begun; --overwrite starts anew"
            )

    def _earlier_fingerprint(self) -> str | None:
        """The plan of the output that lies here; None where there is none, "" where it is unreadable."""
        if (self.root / FILE_NAME).exists():
            try:
                return str(Readable.load(self.root).provenance.get("fingerprint", ""))
            except ValueError:
                return "" if self._is_ours(self.root / FILE_NAME) else None
        return str(self._plan().get("fingerprint", "")) if (self.scratch / _PLAN).exists() else None

    def _plan(self) -> dict[str, Any]:
        """What an unfinished run noted of itself; nothing where that cannot be read."""
        try:
            value = json.loads(read_bounded(self.scratch / _PLAN, most=MAX_NOTE_BYTES))
        except (ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    @staticmethod
    def _is_ours(manifest: Path) -> bool:
        with manifest.open("rb") as file:
            return SCHEMA.split("/")[0].encode() in file.read(MAX_MANIFEST_BYTES)

    def _begin(self, *, afresh: bool) -> None:
        """Clears what an earlier run left, all of it or its temporary files, and notes the plan.

        At every moment the folder is recognised as ours, and nothing old as part of the new plan.
        """
        if afresh and self._earlier_fingerprint() is not None:
            self._note_plan("")  # what lies here is being replaced
            self._remove()
        for stale in self.scratch.glob("*.tmp"):
            stale.unlink()
        self._note_plan(self.fingerprint)
        (self.root / FOLDER).mkdir(exist_ok=True)

    def _note_plan(self, fingerprint: str) -> None:
        with replacing(self.scratch / _PLAN) as temporary:
            plan = {"schema": SCHEMA, "fingerprint": fingerprint, "times": self.times}
            temporary.write_bytes(canonical_json(plan))

    def _remove(self) -> None:
        """Removes what prep writes and nothing else; the manifest first, so that no rest looks whole."""
        (self.root / FILE_NAME).unlink(missing_ok=True)
        for pattern in (*_LISTS, f"{STATE}/*.shard.json", f"{FOLDER}/*.h5", f"{FOLDER}/*.parquet"):
            for file in self.root.glob(pattern):
                file.unlink()
        for folder in (manifest_parts.INDEX_FOLDER, manifest_parts.FOLDER):
            with suppress(OSError):  # there is none, or it holds what prep did not write
                (self.root / folder).rmdir()

    def finished(self, paths: Sequence[str]) -> dict[str, ShardEntry]:
        """The shards of this plan that are whole and right by their hash; by path."""
        self.earlier.update((entry.path, entry) for entry in self._recorded())
        return {path: self.earlier[path] for path in paths if self._is_right(self.earlier.get(path))}

    def _recorded(self) -> Iterator[ShardEntry]:
        if (self.root / FILE_NAME).exists():
            yield from Readable.load(self.root).shards
        for note in sorted(self.scratch.glob("*.shard.json")):
            # A note that cannot be read is no note: its shard is written again.
            with suppress(ValueError, RecursionError):
                yield ShardEntry.from_json(json.loads(read_bounded(note, most=MAX_NOTE_BYTES)))

    def _is_right(self, entry: ShardEntry | None) -> bool:
        if entry is None:
            return False
        file = self.root / entry.path
        return file.is_file() and file.stat().st_size == entry.bytes and sha256_of(file) == entry.sha256

    def record(self, entry: ShardEntry) -> None:
        """Notes a finished shard, so that a later run need not write it again.

        Raises:
            DataError: an earlier run of the same plan made another of it, so the source has changed.
        """
        if self.earlier.get(entry.path, entry) != entry:
            raise DataError(
                f"{self.root / entry.path}: comes out otherwise than before, so the source has changed; "
                "--overwrite starts anew"
            )
        with replacing(self.scratch / f"{Path(entry.path).name}.shard.json") as temporary:
            temporary.write_bytes(canonical_json(asdict(entry)))

    def commit(self, job: Job, entries: Mapping[str, ShardEntry]) -> Manifest:
        """Writes the index and, last, the manifest; then removes what only an unfinished run needs."""
        index, schema = job.index(entries)
        shards = [entries[path] for path in job.unit_paths]
        per_part = manifest_parts.SHARDS_PER_PART if len(shards) > manifest_parts.SHARDS_PER_PART else None
        listed = self._write_index(index, schema, shards, per_part)
        manifest = job.manifest(shards, listed, index, fingerprint=self.fingerprint)
        manifest = replace(manifest, shards_per_part=per_part)
        self._check_lost_parts(manifest)
        self._remove_unlisted(manifest)
        manifest.save(self.root, scratch=self.scratch)
        shutil.rmtree(self.scratch)
        return manifest

    def _check_lost_parts(self, manifest: Manifest) -> None:
        """Shards of a lost part are made again; what they were is known by the part's hash alone.

        Raises:
            DataError: they came out otherwise than before.
        """
        if not (self.root / FILE_NAME).exists():
            return
        made = {(part.path, part.rows): part.sha256 for part in manifest.parts}
        for lost in Readable.load(self.root).lost:
            if made.get((lost.path, lost.rows), lost.sha256) != lost.sha256:
                raise DataError(
                    f"{self.root / lost.path}: its shards come out otherwise than before, so the source has changed; "
                    "--overwrite starts anew"
                )

    def _write_index(
        self, index: pd.DataFrame, schema: pa.Schema, shards: Sequence[ShardEntry], per_part: int | None
    ) -> list[ShardEntry]:
        """Writes the index, in parts where the manifest has them; a part lists the rows of its shards."""
        names, stops = [INDEX_NAME], [len(index)]
        if per_part is not None:
            names = [
                f"{manifest_parts.INDEX_FOLDER}/{name}.parquet"
                for name in manifest_parts.part_names(len(shards), per_part)
            ]
            rows = itertools.accumulate(entry.rows for entry in shards)
            stops = [*list(rows)[per_part - 1 : -1 : per_part], len(index)]
            (self.root / manifest_parts.INDEX_FOLDER).mkdir(exist_ok=True)
        listed = []
        for name, start, stop in zip(names, [0, *stops], stops, strict=False):
            write_index(self.root / name, index.iloc[start:stop], schema, scratch=self.scratch)
            listed.append(ShardEntry.of(self.root, name, rows=stop - start, drive="", dropped={}))
        return listed

    def _remove_unlisted(self, manifest: Manifest) -> None:
        """Removes index and manifest parts of an output that had other parts, and before them its manifest."""
        listed = {self.root / entry.path for entry in (*manifest.index, *manifest.parts)}
        if old := [file for pattern in _LISTS for file in self.root.glob(pattern) if file not in listed]:
            (self.root / FILE_NAME).unlink(missing_ok=True)
            for file in old:
                file.unlink()


def unfinished_shards(root: Path) -> list[ShardEntry] | None:
    """The shards that an unfinished run noted as written; None where no run was begun, or one is finished.

    Args:
        root: the folder that it writes.
    """
    if (root / FILE_NAME).exists() or not (root / STATE / _PLAN).is_file():
        return None
    return list(Output(root=root, fingerprint="", times="")._recorded())
