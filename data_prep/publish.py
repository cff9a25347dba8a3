"""A finished output copied to an object store or any other place that fsspec knows.

Workers write to a file system that they share, because a shard is renamed when it is whole; object stores
cannot rename. So the output is made there first, then published: shards, index, and the manifest last.
Where a manifest lies, everything that it names lies too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep.errors import DataError, OutputError
from data_prep.shards.atomic import sha256_of
from data_prep.shards.manifest import FILE_NAME, Manifest, ShardEntry

NOTES = ".published"
"""Folder of an empty object for each hash that is there, while a publication is unfinished.

The first is the plan's, named after the hash of the manifest, so that it is continued by its own output only."""


def publish(root: Path, url: str, *, on_progress: Callable[[int, int], None] | None = None) -> None:
    """Copies a finished output; an interrupted publication continues where it was.

    A file is taken for published only where the store has a note of its hash, written after it, and
    an object of its size. Each is hashed before it is sent, so that no damage is passed on.

    Args:
        root: the finished output.
        url: the folder, such as `s3://bucket/drives` or `file:///mnt/drives`: new, empty, unfinished, or
            already the same output.
        on_progress: called with the number of files that are there, and of all.

    Raises:
        DataError: the output is unfinished or damaged, the folder holds anything else, or the URL names
            no store that is known and installed.
        OutputError: the store refuses to write.
    """
    manifest = Manifest.load(root)
    store, folder = _store(url)
    try:
        if _is_there(store, f"{folder}/{FILE_NAME}", url, manifest):
            _remove_notes(store, folder)
            return
        _begin(store, folder, url, manifest)
        entries = [*manifest.shards, manifest.index]
        for number, entry in enumerate(entries):
            _send(store, folder, root, entry)
            if on_progress is not None:
                on_progress(number + 1, len(entries))
        store.pipe_file(f"{folder}/{FILE_NAME}", manifest.to_bytes())
        _remove_notes(store, folder)
    except OSError as error:
        raise OutputError(f"{url}: cannot be written ({error}); check access and run it again") from None


def check_url(url: str) -> None:
    """Refuses a URL of no store that is known here, before hours of work.

    Raises:
        DataError: it is no URL, or its protocol is unknown, no store of its own, or not installed.
    """
    _store(url)


def _store(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError:
        raise DataError("publishing needs fsspec; install driving-xai[cluster]") from None
    if "://" not in url or "::" in url:
        raise DataError(f"{url!r} is no URL of a folder; expected one such as s3://bucket/drives")
    try:
        store, folder = fsspec.core.url_to_fs(url)
        # An archive or a view of another store has no folder of its own to write to.
        if not isinstance(folder, str) or not folder.strip("/"):
            raise ValueError("it names no folder")
    except (ValueError, TypeError, AttributeError, OSError, ImportError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise DataError(f"{url}: no store that is known here ({first}); install its fsspec package") from None
    return store, folder.rstrip("/")


def _is_there(store: Any, path: str, url: str, manifest: Manifest) -> bool:
    """Whether this very output is published already."""
    if not store.exists(path):
        return False
    if store.cat_file(path) != manifest.to_bytes():
        raise DataError(f"{url}: holds another output; publish to a new folder, or remove that one")
    return True


def _begin(store: Any, folder: str, url: str, manifest: Manifest) -> None:
    """Notes which output is coming, in a folder that holds nothing or what an earlier try sent of it."""
    plan = f"{folder}/{NOTES}/plan-{manifest.sha256}"
    if store.exists(plan):
        return
    if store.find(folder):
        raise DataError(
            f"{url}: holds other files, or an unfinished publication of another output; "
            "publish to a new folder, or empty that one"
        )
    store.makedirs(f"{folder}/{NOTES}", exist_ok=True)
    store.pipe_file(plan, b"")


def _remove_notes(store: Any, folder: str) -> None:
    if store.exists(f"{folder}/{NOTES}"):
        store.rm(f"{folder}/{NOTES}", recursive=True)


def _send(store: Any, folder: str, root: Path, entry: ShardEntry) -> None:
    target, note = f"{folder}/{entry.path}", f"{folder}/{NOTES}/{entry.sha256}"
    if store.exists(note) and store.exists(target) and store.size(target) == entry.bytes:
        return
    file = root / entry.path
    if not file.is_file() or file.stat().st_size != entry.bytes or sha256_of(file) != entry.sha256:
        raise DataError(
            f"{file}: is not what the manifest says; run `driving-xai verify`, then prep with --resume"
        )
    store.makedirs(target.rpartition("/")[0], exist_ok=True)
    store.put_file(str(file), target)
    if store.size(target) != entry.bytes:
        raise OSError(f"{entry.path} arrived with {store.size(target)} bytes of {entry.bytes}")
    store.makedirs(f"{folder}/{NOTES}", exist_ok=True)
    store.pipe_file(note, b"")
