"""One file per kind of source. A reader is a function from a source folder or file to records.

A reader module defines `recognises(source) -> bool` and one of `drives(source, ...) -> list[Drive]`
or `image_set(source, ...) -> ImageSet`; further arguments are its options, keyword-only. Modules
are imported when first used, so a reader's dependencies cost nothing to the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from data_prep.errors import DataError
from data_prep.values import InvalidValue, checked_keywords, keyword_types, nearest

Kind = Literal["sequences", "images"]


@dataclass(frozen=True, kw_only=True)
class ReaderEntry:
    """Where a reader is found and what it hands over."""

    module: str
    kind: Kind
    reads: str
    """One line for a help text."""

    def load(self) -> ModuleType:
        return import_module(f"data_prep.{self.module}")


# The order is that of recognition: a folder is the first reader's that knows it.
ENTRIES: Mapping[str, ReaderEntry] = {
    "synthetic": ReaderEntry(
        module="synthetic.drives",
        kind="sequences",
        reads="rendered drives whose label-causing pixels are known",
    ),
    "synthetic-actions": ReaderEntry(
        module="synthetic.action_scenes",
        kind="images",
        reads="rendered streets with driving actions whose causing pixels are known",
    ),
    "udacity-bag": ReaderEntry(module="readers.udacity_bag", kind="sequences", reads="Udacity ROS bags"),
    "udacity-csv": ReaderEntry(
        module="readers.udacity_csv",
        kind="sequences",
        reads="Udacity interpolated.csv, or challenge-2 center/ and CSV",
    ),
    "udacity-sim": ReaderEntry(
        module="readers.udacity_sim", kind="sequences", reads="Udacity simulator driving_log.csv and IMG/"
    ),
    "comma2k19": ReaderEntry(module="readers.comma2k19", kind="sequences", reads="comma2k19 segments"),
    "bdd-oia": ReaderEntry(
        module="readers.bdd_oia", kind="images", reads="BDD-OIA frames with driving actions"
    ),
    "bdd100k": ReaderEntry(module="readers.bdd100k", kind="images", reads="BDD100K images without labels"),
    "video": ReaderEntry(module="readers.video", kind="sequences", reads="a video file without labels"),
    "image-folder": ReaderEntry(
        module="readers.image_folder", kind="images", reads="one folder of images per class"
    ),
}


class ReaderTable(Mapping[str, Callable[..., Any]]):
    """Reader name to its function, imported when first asked for.

    Example:
        >>> sorted(READERS)[:2]
        ['bdd-oia', 'bdd100k']
    """

    def __getitem__(self, name: str) -> Callable[..., Any]:
        entry = ENTRIES[name]
        return getattr(entry.load(), "drives" if entry.kind == "sequences" else "image_set")

    def __iter__(self) -> Iterator[str]:
        return iter(ENTRIES)

    def __len__(self) -> int:
        return len(ENTRIES)

    def __contains__(self, name: object) -> bool:
        return name in ENTRIES


READERS = ReaderTable()


def entry(name: str) -> ReaderEntry:
    """The table's row for a reader.

    Raises:
        DataError: there is no such reader; the message lists those there are.
    """
    if name not in ENTRIES:
        near = nearest(name, ENTRIES)
        hint = f"; {near}" if near.startswith("did") else ""
        raise DataError(f"reader {name!r} is unknown; choose one of {', '.join(ENTRIES)}{hint}")
    return ENTRIES[name]


def checked_options(name: str, read: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """A reader's own options as its function takes them.

    Args:
        name: the reader's, for messages.
        read: its function, whose keyword-only arguments are the options.
        options: as the user gives them.

    Raises:
        DataError: an option is unknown or its value does not fit; the message says what does.
    """
    try:
        return checked_keywords(options, keyword_types(read), owner="it", prefix=f"reader {name}: ")
    except InvalidValue as error:
        asks = str(error).endswith("?")
        raise DataError(str(error) if asks else f"{error}; correct --option NAME=VALUE") from None


def recognise(source: Path) -> str:
    """The name of the first reader whose files are found in `source`.

    Raises:
        DataError: the source is missing, or no reader knows it.
    """
    if str(source) != "-" and not source.exists():
        raise DataError(f"{source}: no such file or folder; check the path")
    for name, candidate in ENTRIES.items():
        if candidate.load().recognises(source):
            return name
    raise DataError(f"{source}: no reader recognises its files; name one of {', '.join(ENTRIES)}")
