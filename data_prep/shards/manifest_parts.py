"""A manifest of many shards in parts: `manifest.json` names them, each lists so many shards and drives.

Here are the JSON values; `manifest` checks what they may be, reads and writes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from data_prep.errors import DataError, quoted

Content = dict[str, Any]
"""The object that a JSON file holds."""
SCHEMA = "driving-xai-shards/2"
FOLDER, INDEX_FOLDER = "manifest", "index"
"""Where the parts of the manifest and of the index lie, relative to `manifest.json`."""
SHARDS_PER_PART = 2_000
"""An output with more shards has parts. By default that is 4 million frames: up to 3 MB of JSON, and 400 MB of index."""
_DIVIDED = ("drives", "shards", "quality")
"""Members of the whole manifest that only its parts hold, and with them what `signals` says of each drive."""
_OWN = ("parts", "shards_per_part")
"""Members that only a manifest in parts has."""


def part_names(shards: int, per_part: int) -> Iterator[str]:
    """The name of each part of an output, as the manifest's and the index's files have it before the ending.

    Example:
        >>> list(part_names(5, 2))
        ['00000', '00001', '00002']
    """
    return (f"{number:05d}" for number in range(-(-shards // per_part)))


def divide(whole: Content, per_part: int) -> tuple[Content, Iterator[Content]]:
    """What `manifest.json` holds but for the entries of its parts, and what each part holds.

    Args:
        whole: a manifest's members.
        per_part: shards in each part, and drives.
    """
    names = {drive["name"] for drive in whole["drives"]}
    signals = whole["signals"]
    of_drives = {
        name: value for name, value in signals.items() if isinstance(value, dict) and value.keys() == names
    }
    top = {name: value for name, value in whole.items() if name not in _DIVIDED}
    top |= {"signals": {name: {} if name in of_drives else value for name, value in signals.items()}}
    top |= {"shards_per_part": per_part}
    return top, _parts(whole, of_drives, per_part)


def _parts(whole: Content, of_drives: Mapping[str, Content], per_part: int) -> Iterator[Content]:
    quality = sorted(whole["quality"].items())
    by_name = {name: sorted(value.items()) for name, value in of_drives.items()}
    for start in range(0, len(whole["shards"]), per_part):
        part = slice(start, start + per_part)
        yield {
            "schema": SCHEMA,
            "drives": whole["drives"][part],
            "shards": whole["shards"][part],
            "quality": dict(quality[part]),
            "signals": {name: dict(value[part]) for name, value in by_name.items()},
        }


def join(top: Content, parts: Iterable[object], *, where: object) -> Content:
    """The members of the whole manifest.

    Args:
        top: what `manifest.json` holds.
        parts: what each of its parts holds.
        where: it lies, for messages.

    Raises:
        DataError: a part has other members than a part of a manifest, or parts do not fit each other.
    """
    whole = {name: value for name, value in top.items() if name not in _OWN}
    whole |= {"drives": [], "shards": [], "quality": {}, "signals": dict(top["signals"])}
    for number, part in enumerate(parts):
        members = {"drives": list, "shards": list, "quality": dict, "signals": dict}
        if not isinstance(part, dict) or part.keys() != {"schema", *members} or part["schema"] != SCHEMA:
            raise DataError(
                f"{where}: part {number} is no part of a manifest (got {_form_of(part)}, expected keys "
                f"{sorted({'schema', *members})}, schema {SCHEMA!r}); prepare again with --overwrite"
            )
        wrong = [name for name, kind in members.items() if type(part[name]) is not kind]
        if wrong or any(type(value) is not dict for value in part["signals"].values()):
            raise DataError(
                f"{where}: {quoted(wrong or 'signals')} of part {number} cannot be; prepare again with --overwrite"
            )
        whole["drives"] += part["drives"]
        whole["shards"] += part["shards"]
        whole["quality"].update(part["quality"])
        for name, value in part["signals"].items():
            of_drives = whole["signals"].get(name)
            if type(of_drives) is not dict:
                raise DataError(
                    f"{where}: part {number} has signals that it does not name; prepare again with --overwrite"
                )
            whole["signals"][name] = of_drives | value
    return whole


def _form_of(part: object) -> str:
    """What a message says of a JSON value that should be a part."""
    if not isinstance(part, dict):
        return quoted(part)
    return f"keys {quoted(sorted(part), most=200)}, schema {quoted(part.get('schema'))}"
