"""Files that are whole or absent: temporary name, fsync, rename."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(target: Path, *, scratch: Path | None = None) -> Iterator[Path]:
    """Yields a temporary path; on success it is synced to disk and renamed to `target`.

    On any failure the temporary file is removed and `target` is as it was.

    Args:
        target: the file to create or replace.
        scratch: folder for the temporary file, on the same file system; default the target's own.
    """
    # Host and process keep two workers apart that were handed the same unit.
    temporary = (scratch or target.parent) / f"{target.name}.{platform.node()}-{os.getpid()}.tmp"
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, target)
        sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def read_bounded(path: Path, *, most: int) -> bytes:
    """A whole file, refused before it is read where it has more than `most` bytes.

    Raises:
        ValueError: it is larger.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"over {most:,} bytes")
    return data


def sync(path: Path) -> None:
    """Waits until a file's bytes, or a folder's names, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """The hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
