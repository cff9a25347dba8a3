"""Paths that a recording names: found inside the source folder, or refused."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath, PureWindowsPath

from data_prep.errors import DataError, quoted


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


def drive_name(source: Path) -> str:
    """A drive's name after its folder or file: letters, digits, `-`, `_` and `.` only.

    Raises:
        DataError: nothing usable is left of the name.
    """
    resolved = source.resolve()
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", resolved.name if resolved.is_dir() else resolved.stem).strip("-.")
    if not name:
        raise DataError(f"{source}: its name has no letter or digit to name the drive by; rename it")
    return name


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
