"""Images for classification: one folder for each class, in folders for each split or without."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from data_prep.errors import DataError
from data_prep.readers.image_files import ImageFile, find_images, has_images, merged
from data_prep.readers.paths import drive_name, existing_folder, printable, visible
from data_prep.schema import ImageItem, ImageSet
from data_prep.values import Seed

NAME = "image-folder"

_SPLITS: Mapping[str, str] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Folder name to split."""
_TAKEN = frozenset({"image", "key", "split", "group", "shard", "row"})
"""Columns of the shards and of their index."""


def recognises(source: Path) -> bool:
    """Whether the folder holds two class folders with images or more, or a split folder that does."""
    if not source.is_dir():
        return False
    folders = _subfolders(source)
    splits = [folder for folder in folders if folder.name.lower() in _SPLITS]
    candidates = _subfolders(splits[0]) if splits else folders
    return len(candidates) > 1 and all(has_images(folder) for folder in candidates[:2])


def image_set(
    source: Path, *, val_fraction: float = 0.1, test_fraction: float = 0.1, seed: Seed = 0
) -> ImageSet:
    """Reads `class/image` or `split/class/image`; classes are in the order of their names.

    Labels are one-hot: one column for each class.

    Args:
        source: the folder of the classes, or of `train`, `val` and `test`.
        val_fraction: of each class, where the folder has no splits of its own.
        test_fraction: likewise. A seeded choice by the images' names, so that adding an image
            moves few others.
        seed: of that choice.

    Raises:
        DataError: there are no two classes with images, split and class folders are mixed, or a
            class has the name of a column.
    """
    if min(val_fraction, test_fraction) < 0 or not val_fraction + test_fraction < 1:
        raise DataError(
            f"val_fraction is {val_fraction} and test_fraction {test_fraction}; expected 0 or more, below 1 in all"
        )
    splits = _splits(existing_folder(source))
    classes = _classes(source, splits)
    items, left_out = [], []
    for split, folder in splits.items():
        for position, name in enumerate(classes):
            if not (folder / name).is_dir():
                continue
            found = find_images(folder / name, root=source)
            left_out.append(found.left_out)
            labels = tuple(int(k == position) for k in range(len(classes)))
            parts = _divided(found.images, split, val_fraction, test_fraction, seed)
            items += [
                ImageItem(
                    path=image.path, key=image.key, labels=labels, split=parts[image.key], group=image.key
                )
                for image in found.images
            ]
    return ImageSet(
        name=drive_name(source),
        source=NAME,
        label_names=tuple(map(printable, classes)),
        items=items,
        left_out=merged(left_out),
        provenance={
            "folder": printable(source.resolve().name),
            "classes": len(classes),
            "own_splits": "" not in splits,
        },
    )


def _subfolders(folder: Path) -> list[Path]:
    return [entry for entry in visible(folder) if entry.is_dir()]


def _splits(source: Path) -> dict[str, Path]:
    """Split to its folder; one nameless split where the classes are directly in the source."""
    folders = _subfolders(source)
    named = [folder for folder in folders if folder.name.lower() in _SPLITS]
    if not named:
        return {"": source}
    others = [folder.name for folder in folders if folder not in named and has_images(folder)]
    if others:
        raise DataError(
            f"{source}: has the split {named[0].name}/ beside {', '.join(others[:5])}; "
            "expected splits only, or classes only"
        )
    splits: dict[str, Path] = {}
    for folder in named:
        split = _SPLITS[folder.name.lower()]
        if split in splits:
            raise DataError(
                f"{source}: {splits[split].name}/ and {folder.name}/ are both {split}; remove one"
            )
        splits[split] = folder
    return splits


def _classes(source: Path, splits: Mapping[str, Path]) -> tuple[str, ...]:
    """Every class with an image in any split, by name."""
    names = {folder.name for split in splits.values() for folder in _subfolders(split) if has_images(folder)}
    if len(names) < 2:
        raise DataError(
            f"{source}: found images in {len(names)} class folders, expected 2 or more; "
            "pass the folder that holds one folder for each class"
        )
    if taken := sorted(names & _TAKEN):
        raise DataError(f"{source}: the class {taken[0]!r} has the name of a column; rename its folder")
    return tuple(sorted(names))


def _divided(
    images: list[ImageFile], split: str, val_fraction: float, test_fraction: float, seed: int
) -> dict[str, str]:
    """Key to split: the folder's own, or a seeded part of each class."""
    if split:
        return dict.fromkeys((image.key for image in images), split)
    order = sorted(
        (image.key for image in images), key=lambda key: hashlib.sha256(f"{seed}/{key}".encode()).digest()
    )
    tests = round(test_fraction * len(order))
    vals = tests + round(val_fraction * len(order))
    return {
        key: "test" if place < tests else "val" if place < vals else "train"
        for place, key in enumerate(order)
    }
