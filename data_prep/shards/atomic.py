"""Files that are whole or absent: temporary name, fsync, rename."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

_OF_THE_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS})
"""No room, or no way to write: libraries raise these without a file's name."""
TEMPORARY = ".driving-xai.tmp"
"""The end of a temporary name, which nobody else gives a file: what has it may be removed."""


@contextmanager
def replacing(target: Path, *, scratch: Path | None = None) -> Iterator[Path]:
    """Yields a temporary path; on success it is synced to disk and renamed to `target`.

    On any failure the temporary file is removed and `target` is as it was. What a killed run leaves is
    for `remove_leftovers`.

    Args:
        target: the file to create or replace.
        scratch: folder for the temporary file, on the same file system; default the target's own.

    Raises:
        OSError: it cannot be written; it names `target`, and not the temporary file.
    """
    # Host and process keep two workers apart that were handed the same unit.
    # Absolute, because libraries take a relative name with a colon, `run:1/page`, for an address.
    temporary = (
        scratch or target.parent
    ).absolute() / f"{target.name}.{platform.node()}-{os.getpid()}{TEMPORARY}"
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, target)
        sync(target.parent)
    except OSError as fault:
        if fault.errno in _OF_THE_DISK or fault.filename in (temporary, str(temporary)):
            number = fault.errno or errno.EIO
            raise OSError(number, os.strerror(number), str(target)) from fault
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, *, of: str | None = None, whose: Literal["any", "ended"] = "any") -> None:
    """Removes the temporary files that killed runs of `replacing` left.

    Args:
        folder: where they lie.
        of: the name of the file that they were to become; None takes those of all files.
        whose: "any" is for who holds the output's lock; "ended", for folders that runs share, takes those of
            processes of this machine that are no more.
    """
    for leftover in folder.glob(f"{'*' if of is None else glob.escape(of)}.*-*{TEMPORARY}"):
        if leftover.is_file() and (whose == "any" or _has_ended(leftover)):
            leftover.unlink(missing_ok=True)


def _has_ended(leftover: Path) -> bool:
    """Whether the process that a temporary name speaks of ran here and is no more."""
    host, _, process = leftover.name.removesuffix(TEMPORARY).rpartition("-")
    if not host.endswith(f".{platform.node()}") or not process.isdecimal():
        return False
    return not Path("/proc", process).exists()


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
