"""Configurations from three places: the recipe's defaults, a TOML file, the command line."""

from __future__ import annotations

import difflib
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from driving_xai.cli.console import SettingsError

Config = TypeVar("Config")


def resolve(
    recipe: type[Config],
    file: Path | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    assignments: Sequence[str] = (),
) -> Config:
    """A recipe's configuration: defaults, over them the file, over it the command line.

    Args:
        recipe: a dataclass; its fields may be dataclasses, which are tables in the file. A table changes
            what it names in the field's own default, which need not be the nested class's.
        file: TOML. `"none"` stands for None, which TOML cannot say.
        options: by dotted name; None means that the option was not given.
        assignments: `name=value` texts from --set, the value as in TOML or bare text.

    Raises:
        SettingsError: an unknown name, with the nearest one there is, or a value of the wrong type.
    """
    values = {} if file is None else _read(file)
    for name, value in (options or {}).items():
        if value is not None:
            _put(values, name, value)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise SettingsError(f"--set got {assignment!r}; expected NAME=VALUE, for example epochs=3")
        _put(values, name.strip(), _parsed(text.strip()))
    return _build(recipe, values, "")


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{file}: no such configuration file; check --config") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{file}: not TOML ({error}); correct it") from None
    except OSError as error:
        raise SettingsError(f"{file}: cannot be read ({error.strerror}); check --config") from None


def _parsed(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    *tables, last = name.split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise SettingsError(f"{name}: {table} is a value in the file, not a table; correct one of them")
    values[last] = value


def _build(recipe: type[Config], values: Mapping[str, Any], prefix: str, start: Any = None) -> Config:
    """`start` with these values; None starts from the defaults of the recipe's own fields."""
    types = get_type_hints(recipe)
    known = {field.name: field for field in fields(recipe)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise SettingsError(f"{prefix}{name} is no setting; {_nearest(name, list(known), prefix)}")
    starts = {
        name: _default(field) if start is None else getattr(start, name) for name, field in known.items()
    }
    for name in known:
        if name not in values and starts[name] is MISSING:
            raise SettingsError(f"{prefix}{name} is not set; give its option, or put it into --config")
    typed = {name: _typed(types[name], value, prefix + name, starts[name]) for name, value in values.items()}
    try:
        return recipe(**typed) if start is None else replace(start, **typed)
    except ValueError as error:
        raise SettingsError(str(error)) from None


def _default(field: Field[Any]) -> Any:
    """What the field is where nothing is given; MISSING where something must be."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def _nearest(name: str, known: Sequence[str], prefix: str) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {prefix}{near[0]}?" if near else f"there are {', '.join(known)}"


def _typed(kind: Any, value: Any, name: str, start: Any = None) -> Any:
    """The value as the field wants it: TOML knows no tuples, paths or None.

    Args:
        start: the field's default; a table leaves what it does not name of it as it is.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _typed_optional(arguments, value, name, start)
    if origin is Literal:
        return _checked(value in arguments, value, name, f"one of {', '.join(map(str, arguments))}")
    if origin is tuple:
        items = _checked(isinstance(value, list | tuple), value, name, "a list")
        return tuple(_typed(arguments[0], item, f"{name}[{i}]") for i, item in enumerate(items))
    if isinstance(kind, type) and is_dataclass(kind):
        table = _checked(isinstance(value, dict), value, name, "a table")
        return _build(kind, table, f"{name}.", start if isinstance(start, kind) else None)
    if kind is Path:
        return Path(_checked(isinstance(value, str | Path), value, name, "a path"))
    if kind is float:
        # Neither NaN nor infinity, nor a whole number beyond every float.
        fits = type(value) in (int, float) and abs(value) <= sys.float_info.max
        return float(_checked(fits, value, name, "a number"))
    plain = origin or kind
    if plain is Any:
        return value
    words = {bool: "true or false", int: "a whole number", str: "text"}.get(plain, "a table")
    # bool is a subclass of int, and `epochs = true` is a mistake.
    fits = type(value) is plain if plain in (bool, int, str) else isinstance(value, plain)
    return _checked(fits, value, name, words)


def _typed_optional(kinds: Sequence[Any], value: Any, name: str, start: Any) -> Any:
    if NoneType in kinds and (value is None or value == "none"):
        return None
    problems = []
    for kind in kinds:
        if kind is not NoneType:
            try:
                return _typed(kind, value, name, start)
            except SettingsError as error:
                problems.append(error)
    raise problems[0]


def _checked(fits: bool, value: Any, name: str, expected: str) -> Any:
    if not fits:
        raise SettingsError(f"{name} is {value!r}; expected {expected}")
    return value
