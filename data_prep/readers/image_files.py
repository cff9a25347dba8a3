"""Image files in a folder, in an order that is the same on every machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data_prep.readers.paths import printable, visible

SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
"""What is decoded."""
_OTHER_SUFFIXES = frozenset({".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})


class ImageFile(NamedTuple):
    """One image file below a folder."""

    path: Path
    """Resolved."""
    key: str
    """The path below the root, with `/` on every system, as text."""


class Found(NamedTuple):
    """The image files of a folder, and those that were not taken by reason."""

    images: list[ImageFile]
    left_out: dict[str, tuple[str, ...]]


def find_images(folder: Path, *, root: Path) -> Found:
    """The images in a folder and its subfolders by name; hidden files are passed over.

    Args:
        folder: inside `root`.
        root: what keys are relative to, and what no link may lead out of.
    """
    resolved_root = root.resolve()
    images: list[ImageFile] = []
    left_out: dict[str, list[str]] = {}
    for path in _files(folder):
        key, suffix = printable(path.relative_to(root).as_posix()), path.suffix.lower()
        resolved = path.resolve()
        if suffix in _OTHER_SUFFIXES:
            left_out.setdefault("unsupported_format", []).append(key)
        elif suffix in SUFFIXES and not resolved.is_relative_to(resolved_root):
            left_out.setdefault("leads_outside", []).append(key)
        elif suffix in SUFFIXES:
            images.append(ImageFile(resolved, key))
    return Found(images, {reason: tuple(keys) for reason, keys in left_out.items()})


def has_images(folder: Path) -> bool:
    """Whether there is an image that would be decoded in the folder or below it."""
    return any(path.suffix.lower() in SUFFIXES for path in _files(folder))


def merged(parts: list[dict[str, tuple[str, ...]]]) -> dict[str, tuple[str, ...]]:
    """The left-out files of several folders, by reason."""
    reasons = sorted({reason for part in parts for reason in part})
    return {reason: tuple(key for part in parts for key in part.get(reason, ())) for reason in reasons}


def _files(folder: Path) -> Iterator[Path]:
    """Files by name; a linked folder is not entered, so that no link makes a circle."""
    for entry in visible(folder):
        if entry.is_dir() and not entry.is_symlink():
            yield from _files(entry)
        elif entry.is_file():
            yield entry
