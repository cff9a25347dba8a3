"""A recipe's configuration from three places: its defaults, a TOML file, the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from data_prep.documents import parse_toml
from data_prep.shards.atomic import read_bounded
from data_prep.values import BareText, build
from driving_xai.cli.console import SettingsError

Config = TypeVar("Config")
_MOST_BYTES = 2**22


def resolve(
    recipe: type[Config],
    file: Path | None = None,
    *,
    preset: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    assignments: Sequence[str] = (),
) -> Config:
    """A recipe's configuration: defaults, over them a preset, then the file, then the command line.

    Args:
        recipe: a dataclass; its fields may be dataclasses, which are tables in the file. A table changes
            what it names in the field's own default, which need not be the nested class's. What values
            fit is in `data_prep.values`.
        file: TOML. `"none"` stands for None, which TOML cannot say.
        preset: a table as of a file.
        options: by dotted name; None means that the option was not given.
        assignments: `name=value` texts from --set, the value as in TOML or bare text.

    Raises:
        SettingsError: an unknown name, with the nearest one there is, or a value of the wrong type.
    """
    values = _merged(preset or {}, {} if file is None else _read(file))
    for name, value in (options or {}).items():
        if value is not None:
            _put(values, name, value)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise SettingsError(f"--set got {assignment!r}; expected NAME=VALUE, for example epochs=3")
        _put(values, name.strip(), _parsed(text.strip()))
    try:
        return build(recipe, values)
    except ValueError as error:
        raise SettingsError(str(error)) from None


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Two tables as one; the second says what both say."""
    found = {
        name: _merged(value, {}) if isinstance(value, Mapping) else value for name, value in under.items()
    }
    for name, value in over.items():
        both = isinstance(value, Mapping) and isinstance(found.get(name, {}), Mapping)
        found[name] = _merged(found.get(name, {}), value) if both else value
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        return parse_toml(read_bounded(file, most=_MOST_BYTES).decode())
    except FileNotFoundError:
        raise SettingsError(f"{file}: no such configuration file; check --config") from None
    except ValueError as error:
        raise SettingsError(f"{file}: not TOML ({error}); correct it") from None
    except OSError as error:
        raise SettingsError(f"{file}: cannot be read ({error.strerror}); check --config") from None


def _parsed(text: str) -> Any:
    try:
        table = parse_toml(f"value = {text}")
    except ValueError:
        return BareText(text)
    # A second line would be another setting, and lost.
    return table["value"] if len(table) == 1 else BareText(text)


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    *tables, last = name.split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise SettingsError(f"{name}: {table} is a value in the file, not a table; correct one of them")
    values[last] = value
