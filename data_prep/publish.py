"""Outputs in object stores: a finished one copied there, and one that is sent shard by shard while it is made.

Stores cannot rename, so a shard is made on a disk and then sent, and the manifest goes last: where a manifest lies,
everything that it names lies too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_prep.errors import DataError, OutputError, StoreError
from data_prep.shards.atomic import sha256_of
from data_prep.shards.manifest import (
    FILE_NAME,
    FOLDER,
    Manifest,
    Readable,
    ShardEntry,
    canonical_json,
)
from data_prep.stores import Store

NOTES = ".published"
"""Folder of an object for each file that is there, while a publication is unfinished.

The first is the plan's, so that it is continued by its own output only; the others hold the shard's entry."""
_PROBE = f"{NOTES}/probe"


@dataclass(frozen=True)
class Publication:
    """An output's folder in a store, from the first shard to the manifest."""

    store: Store
    plan: str
    """Identifies the output."""
    times: str = ""
    """When the source's files were changed, which the plan does not say; of what is made while it is sent."""

    def begin(self) -> None:
        """Notes which output is coming, in a folder that holds nothing or what an earlier try sent of it.

        Raises:
            DataError: it holds anything else.
            StoreError: it cannot be written.
        """
        if self.is_begun():
            return
        if any(name != _PROBE for name in self.store.listing()):
            raise DataError(
                f"{self.store.url}: holds other files, or an unfinished publication of another output; "
                "publish to a new folder, or empty that one"
            )
        self.store.write(self._note_of_plan, self.times.encode())

    def is_begun(self) -> bool:
        """Whether an earlier try was this output's."""
        return self.store.exists(self._note_of_plan)

    def is_of_these_files(self) -> bool:
        """Whether the earlier try read the source's files as they are now."""
        return self.store.read(self._note_of_plan) == self.times.encode()

    def sent(self, *, connections: int = 8) -> dict[str, ShardEntry]:
        """What lies there whole, by path: it has a note, written after it, and its size."""
        lying = self.store.listing()
        notes = [name for name in lying if name.startswith(f"{NOTES}/entry-")]
        found = {}
        with ThreadPoolExecutor(connections) as pool:
            for data in pool.map(self.store.read, notes):
                with suppress(ValueError, RecursionError):  # a note that cannot be read is none
                    entry = ShardEntry.from_json(json.loads(data))
                    found[entry.path] = entry
        return {
            path: entry for path, entry in found.items() if path in lying and lying[path].bytes == entry.bytes
        }

    def send(self, root: Path, entry: ShardEntry) -> None:
        """Sends one file below `root`, and then its note; it is hashed first, so that no damage is passed on.

        Raises:
            DataError: it is not what its entry says.
            StoreError: it cannot be written.
        """
        file = root / entry.path
        if not file.is_file() or file.stat().st_size != entry.bytes or sha256_of(file) != entry.sha256:
            raise DataError(
                f"{file}: is not what the manifest says; run `driving-xai verify`, then prep with --resume"
            )
        self.store.send(file, entry.path)
        if (arrived := self.store.size(entry.path)) != entry.bytes:
            raise StoreError(
                f"{self.store.url}/{entry.path}: arrived with {arrived} bytes of {entry.bytes}; run it again"
            )
        self.store.write(
            f"{NOTES}/entry-{entry.sha256}-{Path(entry.path).name}", canonical_json(asdict(entry))
        )

    def lacking(self, manifest: Manifest) -> list[ShardEntry] | None:
        """The files that a finished publication of this very output has lost; None where none is finished.

        Files are compared by size, parts of the manifest by hash, since nothing opens without them.

        Raises:
            DataError: another output lies there.
        """
        try:
            found = self.store.read(FILE_NAME)
        except FileNotFoundError:
            return None
        if found != manifest.to_bytes():
            raise DataError(
                f"{self.store.url}: holds another output; publish to a new folder, or remove that one"
            )
        lying = self.store.listing()
        lost = [
            entry
            for entry in manifest.files
            if entry.path not in lying or lying[entry.path].bytes != entry.bytes
        ]
        return lost + [
            part
            for part in manifest.parts
            if part not in lost and hashlib.sha256(self.store.read(part.path)).hexdigest() != part.sha256
        ]

    def finish(self, manifest: Manifest) -> None:
        """Writes the manifest, and removes the notes."""
        self.store.write(FILE_NAME, manifest.to_bytes())
        self.store.remove(NOTES)

    @property
    def _note_of_plan(self) -> str:
        return f"{NOTES}/plan-{self.plan}"


def publish(
    root: Path,
    url: str,
    *,
    connections: int = 8,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Copies a finished output; an interrupted publication continues where it was.

    Args:
        root: the finished output.
        url: the folder, such as `s3://bucket/drives` or `file:///mnt/drives`: new, empty, unfinished, or
            already the same output, of which files that are missing there are sent again.
        connections: files that are sent at the same time.
        on_progress: called with the number of files that are there, and of all.

    Raises:
        DataError: the output is unfinished or damaged, the folder holds anything else, or the URL names
            no store that is known and installed.
        StoreError: the store cannot be reached, or refuses to write.
    """
    manifest = Manifest.load(root)
    publication = Publication(Store.open(url), _plan_of(manifest))
    missing = publication.lacking(manifest)
    if missing is None:
        publication.begin()
        missing = manifest.files
    _send_all(publication, root, missing, connections, on_progress)
    publication.finish(manifest)


def _plan_of(manifest: Manifest) -> str:
    return str(manifest.provenance.get("fingerprint") or manifest.sha256)


def _send_all(
    publication: Publication,
    root: Path,
    entries: Sequence[ShardEntry],
    connections: int,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    there = publication.sent(connections=connections)
    missing = [entry for entry in entries if there.get(entry.path) != entry]
    with ThreadPoolExecutor(connections) as pool:
        sending = [pool.submit(publication.send, root, entry) for entry in missing]
        try:
            for done, future in enumerate(as_completed(sending), start=len(entries) - len(missing) + 1):
                future.result()
                if on_progress is not None:
                    on_progress(done, len(entries))
        finally:
            pool.shutdown(cancel_futures=True)


def check_url(url: str) -> None:
    """Refuses a place that cannot be written, before hours of work: writes there, and removes it again.

    Raises:
        DataError: it is no URL, or its protocol is unknown, no store of its own, or not installed.
        StoreError: there are no credentials, no such bucket, no permission to write, or no answer.
    """
    store = Store.open(url)
    try:
        store.write(_PROBE, b"")
        store.remove(_PROBE)
    except FileNotFoundError:
        raise StoreError(f"{url}: cannot be written; make the bucket, or check the address") from None


@dataclass(frozen=True)
class Sent:
    """Work whose shards are sent to a store as they finish, by whoever made them; no copy stays on its disk."""

    work: Callable[[Any], ShardEntry]
    url: str
    plan: str
    root: Path
    scratch: Path

    def __call__(self, unit: Any) -> ShardEntry:
        """Makes one shard and sends it.

        Raises:
            OutputError: the folder in which it is made cannot be written.
            StoreError: the store cannot be reached, or refuses.
        """
        try:
            for folder in (self.root / FOLDER, self.scratch):  # a worker may have a disk of its own
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{self.root}: cannot be written ({error.strerror}); set DRIVING_XAI_CACHE, for this command, to a "
                "folder that every worker can write"
            ) from None
        entry = self.work(unit)
        Publication(Store.open(self.url), self.plan).send(self.root, entry)
        (self.root / entry.path).unlink()
        return entry


def sent_before(publication: Publication, *, resume: bool) -> Mapping[str, ShardEntry]:
    """What an earlier run of a plan has sent, finished or not; the folder is then this run's.

    Raises:
        DataError: the folder holds something else, or this output and `resume` was not asked for, or the
            source's files were changed since.
    """
    url = publication.store.url
    finished: Readable | None = None
    with suppress(FileNotFoundError):
        store = publication.store
        finished = Readable.parse(
            store.read(FILE_NAME), where=f"{url}/{FILE_NAME}", read=lambda part: store.read(part.path)
        )
    begun = publication.is_begun() or (
        finished is not None and finished.provenance.get("fingerprint") == publication.plan
    )
    if begun and not resume:
        raise DataError(
            f"{url}: holds this output, finished or not; add --resume to continue, or choose a new folder"
        )
    if finished is not None and begun:
        lying = publication.store.listing()
        return {
            entry.path: entry
            for entry in finished.shards
            if entry.path in lying and lying[entry.path].bytes == entry.bytes
        }
    if finished is not None:
        raise DataError(f"{url}: holds another output; choose a new folder, or remove that one")
    if begun and not publication.is_of_these_files():
        raise DataError(
            f"{url}: files of the source were changed or copied since it was begun; choose a new folder, or empty "
            "that one"
        )
    publication.begin()
    return publication.sent()
