"""BDD-OIA: the last frames of videos, each with every driving action that is possible in it.

Two layouts hold the same labels. The official one, a JSON file a split, lists images and
annotations apart, to be joined by id; SNNA's maps each image's name to four labels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from data_prep.errors import DataError
from data_prep.readers.paths import drive_name, existing_folder, inside, printable
from data_prep.schema import ImageItem, ImageSet

NAME = "bdd-oia"
Layout = Literal["auto", "official", "snna"]
Labels = Literal["actions", "actions-and-reasons"]

ACTIONS = ("forward", "stop", "left", "right")
"""`stop` is the paper's "stop/slow down"; `left` and `right` are turns and lane changes."""
REASONS = (
    "forward_green_light",
    "forward_follow_traffic",
    "forward_road_clear",
    "stop_traffic_light",
    "stop_traffic_sign",
    "stop_obstacle_car",
    "stop_obstacle_person",
    "stop_obstacle_rider",
    "stop_obstacle_other",
    "left_no_lane",
    "left_obstacle_in_lane",
    "left_solid_line",
    "left_turn_lane",
    "left_light_allows",
    "left_front_car_turning",
    "right_no_lane",
    "right_obstacle_in_lane",
    "right_solid_line",
    "right_turn_lane",
    "right_light_allows",
    "right_front_car_turning",
)
"""The order of the 21 explanations. Source: Xu et al. 2020, table 1."""
SPLITS = ("train", "val", "test")
MAX_JSON_BYTES = 256 * 2**20
"""The largest official file has 3 MB."""

_CONFUSE = 4
"""Position of the fifth flag: the annotators could not tell."""
_JSON_FOLDERS = (".", "labels", "annotations")
_IMAGE_FOLDERS = ("data", "images", ".")
_MOST_TRIED = 20
"""Listed images that are looked for to find their folder."""
_SNNA_START = re.compile(rb"\s*\{\s*\"[^\"]{1,300}\.(jpg|jpeg|png)\"\s*:\s*\[", re.IGNORECASE)


def recognises(source: Path) -> bool:
    """Whether the folder has a split in one of the two layouts."""
    return source.is_dir() and bool(_files(source, "official") or _files(source, "snna"))


def image_set(source: Path, *, layout: Layout = "auto", labels: Labels = "actions") -> ImageSet:
    """Reads every split that is there. Images that cannot be used are named in `left_out`.

    Reasons there: `confuse` (the fifth flag, as the official loader drops them), `missing_image`,
    `no_annotation`, `no_reason`, `duplicate` (the same labels twice), and `in_two_splits` (kept
    where it tests, rather than validates, rather than trains).

    Args:
        source: the folder of the JSON files, with the images in `data/`, or `test/` beside `test.json`.
        layout: which files to read; `auto` prefers the official ones, which flag confusion.
        labels: the four actions, or also the 21 reasons of `{split}_25k_images_reasons.json`.

    Raises:
        DataError: no split is found, a file is malformed, an annotation has no id to join by, two
            annotations of an image differ, or a name leads outside the folder.
    """
    if layout not in ("auto", "official", "snna"):
        raise DataError(f"layout is {layout!r}; choose auto, official or snna")
    if labels not in ("actions", "actions-and-reasons"):
        raise DataError(f"labels is {labels!r}; choose actions or actions-and-reasons")
    chosen, files = _layout(existing_folder(source), layout)
    listing = _Listing()
    for split in reversed([split for split in SPLITS if split in files]):
        rows = list(_official(files[split]) if chosen == "official" else _snna(files[split]))
        reasons = _reasons(files[split], split) if labels == "actions-and-reasons" else None
        images = _image_folder(source, files[split], rows)
        for row in rows:
            listing.add(split, images, row, reasons)
    if not listing.ordered() and "missing_image" in listing.reasons_left_out():
        looked = ", ".join(f"{folder}/" for folder in _IMAGE_FOLDERS if folder != ".")
        raise DataError(
            f"{source}: none of the images that {', '.join(path.name for path in files.values())} list is there; "
            f"looked in {looked}, in a folder of the split's name beside its JSON file, and in {source.name}/ itself"
        )
    names = ACTIONS if labels == "actions" else ACTIONS + REASONS
    return ImageSet(
        name=drive_name(source),
        source=NAME,
        label_names=names,
        items=listing.ordered(),
        left_out=listing.reasons_left_out(),
        provenance={
            "folder": printable(source.resolve().name),
            "layout": chosen,
            "files": [path.name for path in files.values()],
        },
    )


class _Row(NamedTuple):
    """One image as a file lists it."""

    name: str
    category: tuple[int, ...] | None
    """Four actions, and the flag of confusion where the file has it; None without an annotation."""


class _Listing:
    """Collects images over the splits and says what was not taken."""

    def __init__(self) -> None:
        self._items: dict[str, ImageItem] = {}
        self._left_out: dict[str, list[str]] = {}

    def add(self, split: str, images: Path, row: _Row, reasons: Mapping[str, tuple[int, ...]] | None) -> None:
        """Takes an image out of the folder `images`, or notes why not."""
        fault = self._fault(split, images, row, reasons)
        if fault is not None:
            self._left_out.setdefault(fault, []).append(f"{split}/{row.name}")
            return
        assert row.category is not None
        path = inside(images, row.name)
        actions = row.category[:_CONFUSE]
        self._items[row.name] = ImageItem(
            path=path,
            key=path.relative_to(images).as_posix(),
            labels=actions if reasons is None else actions + reasons[row.name],
            split=split,
            group=path.stem.rpartition("_")[0] or path.stem,
        )

    def _fault(
        self, split: str, images: Path, row: _Row, reasons: Mapping[str, tuple[int, ...]] | None
    ) -> str | None:
        if row.category is None:
            return "no_annotation"
        if any(row.category[_CONFUSE:]):
            return "confuse"
        if not inside(images, row.name).is_file():
            return "missing_image"
        if reasons is not None and row.name not in reasons:
            return "no_reason"
        known = self._items.get(row.name)
        if known is None:
            return None
        if known.split != split:
            return "in_two_splits"
        if known.labels[:_CONFUSE] != row.category[:_CONFUSE]:
            raise DataError(f"{split}: {row.name} has two different annotations; remove the wrong one")
        return "duplicate"

    def ordered(self) -> list[ImageItem]:
        """By split and name, so that the order of a file's lists changes nothing."""
        return sorted(self._items.values(), key=lambda item: (SPLITS.index(item.split), item.key))

    def reasons_left_out(self) -> dict[str, tuple[str, ...]]:
        return {reason: tuple(sorted(names)) for reason, names in sorted(self._left_out.items())}


def _layout(source: Path, layout: Layout) -> tuple[str, dict[str, Path]]:
    for candidate in ("official", "snna") if layout == "auto" else (layout,):
        if files := _files(source, candidate):
            return candidate, files
    raise DataError(
        f"{source}: found neither train_25k_images_actions.json nor a train.json of image names (nor of val or test), "
        "there or in labels/ or annotations/; expected the folder that holds them, with the images in data/"
    )


def _files(source: Path, layout: str) -> dict[str, Path]:
    """Split to its file, all from the first folder that has one."""
    for folder in _JSON_FOLDERS:
        suffix = "_25k_images_actions.json" if layout == "official" else ".json"
        files = {split: source / folder / f"{split}{suffix}" for split in SPLITS}
        found = {s: p for s, p in files.items() if p.is_file() and (layout == "official" or _is_snna(p))}
        if found:
            return found
    return {}


def _is_snna(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return _SNNA_START.match(file.read(1024)) is not None
    except OSError:
        return False


def _image_folder(source: Path, listed_in: Path, rows: Sequence[_Row]) -> Path:
    """Where the images of one split lie, resolved: `data/` and the like, or `test/` beside `test.json`."""
    split = listed_in.name.split("_")[0].removesuffix(".json")
    candidates = [source / name for name in _IMAGE_FOLDERS]
    candidates[2:2] = [listed_in.parent / split, source / split]
    folders = [folder.resolve() for folder in candidates if folder.is_dir()]
    first = [row.name for row in rows[:_MOST_TRIED]]
    holding = (folder for folder in folders if any(inside(folder, name).is_file() for name in first))
    return next(holding, folders[0])


def _snna(path: Path) -> Iterator[_Row]:
    content = _json(path)
    if not isinstance(content, dict):
        raise DataError(
            f"{path}: holds a {_kind(content)}, expected image names with their labels; restore it"
        )
    for name, category in content.items():
        yield _Row(name, _flags(category, (4,), path, name))


def _official(path: Path) -> Iterator[_Row]:
    """Joined by id: the two lists need not be in the same order."""
    content = _json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {_kind(content)}, expected images and annotations; restore it")
    categories: dict[Any, tuple[int, ...]] = {}
    for row in _rows(content, "annotations", path):
        key = _id(row, ("image_id", "img_id", "id"), path)
        category = _flags(row.get("category"), (4, 5), path, f"annotation {key}")
        if categories.setdefault(key, category) != category:
            raise DataError(f"{path}: image {key} has two different annotations; remove the wrong one")
    seen = set()
    for row in _rows(content, "images", path):
        key, name = _id(row, ("id",), path), row.get("file_name")
        if key in seen:
            raise DataError(
                f"{path}: two images have the id {key}, so annotations cannot be joined; restore it"
            )
        seen.add(key)
        if not isinstance(name, str):
            raise DataError(f"{path}: image {key} has no file_name; restore the file")
        yield _Row(name, categories.get(key))
    for key in categories.keys() - seen:
        yield _Row(f"annotation {key}", categories[key])


def _reasons(actions: Path, split: str) -> dict[str, tuple[int, ...]]:
    """File name to its 21 flags."""
    path = actions.with_name(f"{split}_25k_images_reasons.json")
    content = _json(path)
    reasons = {}
    for row in _rows({"reasons": content}, "reasons", path):
        name = row.get("file_name")
        if not isinstance(name, str):
            raise DataError(f"{path}: a row has no file_name; restore the file")
        reasons[name] = _flags(row.get("reason"), (len(REASONS),), path, name)
    return reasons


def _rows(content: dict, key: str, path: Path) -> list[dict]:
    rows = content.get(key)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: {key} is no list of records; restore the official file")
    return rows


def _id(row: dict, names: tuple[str, ...], path: Path) -> int | str:
    """What images and annotations are joined by. Their positions in the lists mean nothing."""
    for name in names:
        if isinstance(row.get(name), int | str):
            return row[name]
    raise DataError(
        f"{path}: a record has no {' or '.join(names)}, so images and annotations cannot be joined; restore it"
    )


def _flags(value: Any, lengths: tuple[int, ...], path: Path, name: str) -> tuple[int, ...]:
    is_flags = isinstance(value, list) and len(value) in lengths and all(flag in (0, 1) for flag in value)
    if not is_flags:
        raise DataError(
            f"{path}: {name[:80]} has labels {str(value)[:80]}, expected {' or '.join(map(str, lengths))} "
            "of 0 and 1; correct the row"
        )
    return tuple(int(flag) for flag in value)


def _kind(value: Any) -> str:
    return {list: "list", str: "text", type(None): "null"}.get(type(value), "single value")


def _json(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
        if len(data) > MAX_JSON_BYTES:
            raise MemoryError(f"over {MAX_JSON_BYTES:,} bytes")
        return json.loads(data)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; restore it from the data set") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"{path}: not the JSON expected ({str(error)[:80]}); restore the file") from None
