"""BDD100K's still images without labels, for self-supervised training."""

from __future__ import annotations

from pathlib import Path

from data_prep.errors import DataError
from data_prep.readers.image_files import find_images, merged
from data_prep.readers.paths import drive_name, existing_folder, printable
from data_prep.schema import ImageItem, ImageSet

NAME = "bdd100k"
SPLITS = ("train", "val", "test")

# From the folder of the download down to that of the splits.
_IMAGES = (Path("images/100k"), Path("bdd100k/images/100k"), Path("100k"), Path())


def recognises(source: Path) -> bool:
    """Whether the source holds `images/100k/train`, or is one of the folders above it."""
    return _images(source) is not None


def image_set(source: Path, *, splits: str = "train") -> ImageSet:
    """Reads the images of the named splits, one image of each video.

    The training split only, unless told: a loader that takes every folder below `100k/` trains on
    the images that others are tested on.

    Args:
        source: `bdd100k/`, its `images/`, or `images/100k/` itself.
        splits: names of `SPLITS`, separated by commas.

    Raises:
        DataError: the layout is not there, or a split is unknown, missing or empty.
    """
    folder = _images(existing_folder(source))
    if folder is None:
        raise DataError(f"{source}: found no images/100k/ with train/ in it; pass the folder bdd100k/")
    items, left_out = [], []
    for split in _named(splits):
        if not (folder / split).is_dir():
            raise DataError(f"{folder}: has no {split}/; download it or leave it out of the option splits")
        found = find_images(folder / split, root=folder)
        left_out.append(found.left_out)
        if not found.images:
            raise DataError(f"{folder / split}: holds no image; extract the download again")
        items += [
            ImageItem(path=image.path, key=image.key, labels=(), split=split, group=image.path.stem)
            for image in found.images
        ]
    return ImageSet(
        name=NAME if source.resolve().name in ("100k", "images") else drive_name(source),
        source=NAME,
        label_names=(),
        items=items,
        left_out=merged(left_out),
        provenance={
            "folder": printable(source.resolve().name),
            "splits": sorted({item.split for item in items}),
        },
    )


def _images(source: Path) -> Path | None:
    """The folder of the splits; where the source itself is meant, its name must be 100k."""
    for below in _IMAGES:
        folder = source / below
        is_named = below != Path() or source.resolve().name == "100k"
        if is_named and (folder / "train").is_dir():
            return folder
    return None


def _named(splits: str) -> list[str]:
    names = [name.strip() for name in str(splits).split(",")]
    unknown = [name for name in names if name not in SPLITS]
    if unknown:
        raise DataError(
            f"split {unknown[0]!r} is unknown; choose of {', '.join(SPLITS)}, separated by commas"
        )
    return [name for name in SPLITS if name in names]
