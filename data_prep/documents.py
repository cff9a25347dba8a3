"""JSON and TOML files of any content: read whole, or refused with a reason that fits into one line."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_prep.shards.atomic import read_bounded

MOST_BYTES = 2**28
"""Far above what any command writes; a larger file is not read."""
_DEEPEST = 50
_TOO_DEEP = f"nested more than {_DEEPEST} deep"


def read_json(path: Path, *, most: int = MOST_BYTES) -> Any:
    """The value in a JSON file.

    Raises:
        ValueError: it is no UTF-8 or no JSON, is too large or nested too deeply, or holds what JSON has no
            words for: NaN, infinity, half a character. The message has one line.
        OSError: it cannot be read.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "a.json"
        >>> _ = file.write_text('{"mean": 1e999}')
        >>> read_json(file)
        Traceback (most recent call last):
            ...
        ValueError: Out of range float values are not JSON compliant
    """
    try:
        value = json.loads(read_bounded(path, most=most).decode())
        _require_shallow(value)
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except ValueError as error:
        # Newer versions of Python add the number.
        raise ValueError(" ".join(str(error).split())[:160].partition(": inf")[0]) from None
    return value


def parse_toml(text: str) -> dict[str, Any]:
    """The table that TOML text says.

    Raises:
        ValueError: it is no TOML, or nested too deeply.

    Example:
        >>> parse_toml("a = 1")
        {'a': 1}
    """
    try:
        value = tomllib.loads(text)
        _require_shallow(value)
        return value
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


def _require_shallow(value: Any) -> None:
    """Raises ValueError where a walk through the value might end at Python's own limit."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(_DEEPEST):
        level = [part for each in level for part in _parts(each) if isinstance(part, dict | list)]
    if level:
        raise ValueError(_TOO_DEEP)


def _parts(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value
