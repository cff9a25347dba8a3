"""Options of methods by name: what an explainer's parameters take of numbers and words, checked."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from driving_xai.errors import OptionError

Options = Mapping[str, Any]
"""Of one method: option to value, as TOML says it; a list is a tuple, and `"none"` is None."""
OptionsOf = Mapping[str, Options]
"""By the names under which methods run."""

OF_THE_RUN = ("seed", "batch_size")
"""Parameters that a run sets for all its methods."""
_PLAIN = {int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "none"}


def options_of(*takers: Callable[..., object]) -> dict[str, Any]:
    """The options of functions or classes with their types: keywords that a line of text can say.

    Example:
        >>> def explainer(*, layer: object, samples: int = 5, seed: int = 0) -> None: ...
        >>> options_of(explainer)
        {'samples': <class 'int'>}
    """
    found = {}
    for taker in takers:
        hints = get_type_hints(taker.__init__ if _has_own_init(taker) else taker)
        for name, parameter in inspect.signature(taker).parameters.items():
            by_keyword = parameter.kind is parameter.KEYWORD_ONLY and name not in OF_THE_RUN
            if by_keyword and set(_choices(hints[name])) - {NoneType}:
                found[name] = hints[name]
    return found


def checked(method: str, options: Options, known: Mapping[str, Any]) -> dict[str, Any]:
    """A method's options as its explainer takes them.

    Args:
        known: types by name, of `options_of`.

    Raises:
        OptionError: an option is unknown, or its value of another type; the message says what there is.
    """
    for name in options:
        if name not in known:
            has = f"has {', '.join(known)}" if known else "has no options"
            raise OptionError(f"options.{method}.{name} is no option; {method} {has}")
    return {name: _value(known[name], value, f"options.{method}.{name}") for name, value in options.items()}


def require_tables(options: OptionsOf, methods: Collection[str]) -> None:
    """Raises OptionError where options are no table, or of a method that does not run."""
    for method, given in options.items():
        if method not in methods:
            runs = ", ".join(methods) or "none is named"
            raise OptionError(
                f"options.{method} is of no method of this run ({runs}); add it, or correct the name"
            )
        if not isinstance(given, Mapping):
            raise OptionError(
                f"options.{method} is {given!r}; expected a table, for example options.snna.samples=3"
            )


def planned(config: Any) -> dict[str, Any]:
    """A recipe as a plan keeps it: without options, as plans were before there were any."""
    plan = asdict(config)
    options = {method: given for method, given in plan.pop("options").items() if given}
    return {**plan, "options": options} if options else plan


def described(method: str, options: OptionsOf) -> str:
    """A method and what is particular to this run, for a caption."""
    return " ".join([method, *(f"{name}={value}" for name, value in options.get(method, {}).items())])


def _has_own_init(taker: Callable[..., object]) -> bool:
    return inspect.isclass(taker) and not is_dataclass(taker)


def _choices(kind: Any) -> tuple[Any, ...]:
    """The parts of a type that a text can say."""
    arms = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return tuple(arm for arm in arms if arm in _PLAIN or _is_literal(arm) or _is_plain_tuple(arm))


def _is_literal(kind: Any) -> bool:
    return get_origin(kind) is Literal


def _is_plain_tuple(kind: Any) -> bool:
    return get_origin(kind) is tuple and all(each in _PLAIN for each in get_args(kind))


def _value(kind: Any, value: Any, name: str) -> Any:
    choices = _choices(kind)
    # None comes first: where text is possible too, "none" would be one.
    for each in sorted(choices, key=lambda choice: choice is not NoneType):
        if _fits(each, value):
            return _as(each, value)
    raise OptionError(f"{name} is {value!r}; expected {' or '.join(map(_words, choices))}")


def _fits(kind: Any, value: Any) -> bool:
    if _is_literal(kind):
        return isinstance(value, str) and value in get_args(kind)
    if kind is NoneType:
        return value is None or value == "none"
    if kind is float:
        # Neither NaN nor infinity, nor a whole number beyond every float.
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        same = isinstance(value, list | tuple) and len(value) == len(kinds)
        return same and all(map(_fits, kinds, value))
    if kind is int:
        # A bool is an int, and `samples = true` a mistake; nothing has so many samples or pixels.
        return type(value) is int and abs(value) < 2**31
    return type(value) is kind


def _as(kind: Any, value: Any) -> Any:
    if kind is NoneType:
        return None
    if get_origin(kind) is tuple:
        return tuple(map(_as, get_args(kind), value))
    return float(value) if kind is float else value


def _words(kind: Any) -> str:
    if _is_literal(kind):
        return f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) is tuple:
        return f"a list [{', '.join(map(_words, get_args(kind)))}]"
    return _PLAIN[kind]
