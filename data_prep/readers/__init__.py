"""One file per kind of source. A reader is a function from a source folder or file to records.

A reader module defines `recognises(source) -> bool` and one of `drives(source, ...) -> list[Drive]`
or `image_set(source, ...) -> ImageSet`; further arguments are its options, keyword-only. An argument that
is a dataclass stands for its fields, so that readers share options. Modules are imported when first used,
so a reader's dependencies cost nothing to the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_type_hints

from data_prep.errors import DataError
from data_prep.schema import Drive, ImageSet
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
    "ros2-bag": ReaderEntry(
        module="readers.ros2_bag",
        kind="sequences",
        reads="ROS 2 bags and MCAP, their topics named by --option",
    ),
    "udacity-csv": ReaderEntry(
        module="readers.udacity_csv",
        kind="sequences",
        reads="Udacity interpolated.csv, or challenge-2 center/ and CSV",
    ),
    "udacity-sim": ReaderEntry(
        module="readers.udacity_sim", kind="sequences", reads="Udacity simulator driving_log.csv and IMG/"
    ),
    "donkeycar": ReaderEntry(
        module="readers.donkeycar", kind="sequences", reads="Donkeycar tubs, version 1 and 2"
    ),
    "lerobot": ReaderEntry(
        module="readers.lerobot", kind="sequences", reads="LeRobot data sets, version 2 and 3"
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
    "csv": ReaderEntry(
        module="readers.named_csv", kind="sequences", reads="any CSV, its columns named by --option"
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


def read(name: str, source: Path, options: Mapping[str, Any]) -> list[Drive] | ImageSet:
    """What a reader finds in a source, with the options of a command line or a notebook.

    Args:
        name: the reader's.
        source: its folder or file; `-` for readers that render.
        options: by name; see the reader's function, and the dataclasses that it takes.

    Raises:
        DataError: an option is unknown or does not fit, or the source cannot be used.

    Example:
        >>> (drive,) = read("synthetic", Path("-"), {"drives": 1, "seconds": 1.0})
        >>> len(drive)
        20
    """
    function = READERS[name]
    return function(source, **checked_options(name, function, options))


def option_types(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of a reader's options by name, those of the dataclasses that it takes among them."""
    types = keyword_types(function)
    for shared in _dataclasses_of(function).values():
        hints = get_type_hints(shared, include_extras=True)
        types |= {field.name: hints[field.name] for field in fields(shared)}
    return types


def _dataclasses_of(function: Callable[..., Any]) -> dict[str, type]:
    hints = get_type_hints(function)
    named = {parameter: hints[parameter] for parameter in function.__kwdefaults__ or {}}
    return {
        parameter: hint for parameter, hint in named.items() if isinstance(hint, type) and is_dataclass(hint)
    }


def checked_options(name: str, function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """A reader's own options as its function takes them.

    Args:
        name: the reader's, for messages.
        function: its function, whose keyword-only arguments are the options.
        options: as the user gives them.

    Raises:
        DataError: an option is unknown or its value does not fit; the message says what does.
    """
    try:
        found = checked_keywords(options, option_types(function), owner="it", prefix=f"reader {name}: ")
    except InvalidValue as error:
        asks = str(error).endswith("?")
        raise DataError(str(error) if asks else f"{error}; correct --option NAME=VALUE") from None
    for parameter, shared in _dataclasses_of(function).items():
        own = {field.name: found.pop(field.name) for field in fields(shared) if field.name in found}
        found |= {parameter: shared(**own)} if own else {}
    return found


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
