"""Files and folders of a recording: what is listed, what a row may name, what a drive is called."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from pathlib import Path, PurePosixPath, PureWindowsPath

from data_prep.errors import DataError, quoted

MOST_NAME_BYTES = 200
"""Of a drive's name; file systems take 255, of which a shard's number and suffix need some."""
_OF_SYSTEMS = frozenset({"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "@eadir"})


def inside(root: Path, untrusted_path: str) -> Path:
    """Resolves a path that a CSV, JSON or bag names, without ever leaving the source folder.

    A relative path is taken below `root`. An absolute path, `/home/...` or `C:\\...`, belongs to
    the machine that recorded: its base name is taken directly below `root`. The file need not exist.

    Raises:
        DataError: the path is empty, climbs out with `..`, or leaves through a symbolic link.
    """
    text = untrusted_path.strip()
    is_foreign = (
        PurePosixPath(text).is_absolute() or bool(PureWindowsPath(text).drive) or text.startswith("\\")
    )
    parts = re.split(r"[\\/]+", text)
    relative = parts[-1] if is_foreign else "/".join(parts)
    if relative in ("", ".", "..") or "\0" in relative:
        raise DataError(f"{quoted(untrusted_path, most=120)} names no file; correct or remove its row")
    base = root.resolve()
    resolved = (base / relative).resolve()
    if resolved == base:
        raise DataError(f"{quoted(untrusted_path, most=120)} names no file; correct or remove its row")
    if not resolved.is_relative_to(base):
        raise DataError(
            f"{quoted(untrusted_path, most=120)} leads outside {root.name}/; only files inside the source are read"
        )
    return resolved


def file_name(text: str) -> str:
    """The base name of a path written on any system."""
    return re.split(r"[\\/]+", text.strip())[-1]


def printable(name: str) -> str:
    """A file's name as text that any file can hold: bytes that are not UTF-8 become `\\xNN`.

    Example:
        >>> printable(os.fsdecode(b"caf\\xe9"))
        'caf\\\\xe9'
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def drive_name(source: Path) -> str:
    """A drive's name after its folder or file: letters and digits of any alphabet, `-`, `_` and `.` only.

    The same on every system: accents are composed (NFC), whatever the file system does. A name without
    any letter or digit, or one too long for the shards that bear it, is told by a hash.
    """
    resolved = source.resolve()
    own = unicodedata.normalize("NFC", resolved.name if resolved.is_dir() else resolved.stem)
    kept = "".join(each if each in "._-" or unicodedata.category(each)[0] in "LMN" else " " for each in own)
    name = re.sub(r"\s+", "-", kept).strip("-.")
    if name and len(name.encode()) <= MOST_NAME_BYTES:
        return name
    digest = hashlib.sha256(os.fsencode(own)).hexdigest()[:8]
    short = name.encode()[: MOST_NAME_BYTES - 9].decode("utf-8", "ignore")
    return f"{short or 'drive'}-{digest}"


def visible(folder: Path) -> list[Path]:
    """What a folder holds, by name, without what systems leave there for themselves.

    Left out are hidden files (`.DS_Store`, the `._NAME` of macOS), `__MACOSX`, `Thumbs.db` and the like.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from None
    return [entry for entry in entries if not is_hidden(entry.name)]


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is no part of a recording."""
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def existing_folder(source: Path) -> Path:
    """The folder itself.

    Raises:
        DataError: it is missing or not a folder.
    """
    if not source.exists():
        raise DataError(f"{source}: no such folder; check the path")
    if not source.is_dir():
        raise DataError(f"{source}: a file, expected a folder; pass the folder that holds it")
    return source
