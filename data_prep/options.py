"""A reader's own options, checked against the types in its signature."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from data_prep.errors import DataError, quoted

_WORDS: Mapping[Any, str] = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "text",
    NoneType: "nothing",
}


def check_options(reader: str, read: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuses an option that the reader does not have, or a value of another type.

    Args:
        reader: its name, for the message.
        read: its function, whose keyword-only arguments are the options.
        options: as given by the user.

    Raises:
        DataError: an option is unknown or its value does not fit; the message says what does.
    """
    known = [p.name for p in inspect.signature(read).parameters.values() if p.kind is p.KEYWORD_ONLY]
    unknown = sorted(set(options) - set(known))
    if unknown:
        has = ", ".join(known) or "none"
        raise DataError(f"reader {reader} has no option {', '.join(unknown)}; its options: {has}")
    hints = get_type_hints(read)
    for name, value in options.items():
        if not _fits(value, hints[name]):
            raise DataError(
                f"reader {reader}: option {name} is {quoted(value)}; expected {_described(hints[name])}; "
                f"correct --option {name}=VALUE"
            )


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(hint))
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    # Not isinstance: True is an int to Python, and not to whoever writes seed=true.
    return type(value) is hint


def _described(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_described(part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        choices = [str(choice) for choice in get_args(hint)]
        return " or ".join([", ".join(choices[:-1]), choices[-1]] if len(choices) > 1 else choices)
    return _WORDS[hint]
