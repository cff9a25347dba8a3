"""Options of methods by name: the keywords of their explainers that text can say, checked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, is_dataclass
from functools import cache
from typing import Any

import numpy as np

from data_prep.values import InvalidValue, checked_keywords, keyword_types
from driving_xai.errors import OptionError

Options = Mapping[str, Any]
"""The options of one method, as TOML gives them: a list stands for a tuple, and `"none"` for None."""
OptionsOf = Mapping[str, Options]
"""Options by the names under which methods run."""

OF_THE_RUN = ("seed", "batch_size")
"""Parameters that a run sets for all its methods."""


def sayable_options(explainer: Callable[..., object]) -> dict[str, Any]:
    """The options of an explainer's class with their types: keywords that a line of text can say.

    Example:
        >>> def explainer(*, layer: object, samples: int = 5, seed: int = 0) -> None: ...
        >>> sayable_options(explainer)
        {'samples': <class 'int'>}
    """
    return keyword_types(explainer, apart=OF_THE_RUN)


def checked(method: str, options: Options, known: Mapping[str, Any]) -> dict[str, Any]:
    """A method's options as its explainer takes them.

    Args:
        known: types by name, of `sayable_options`.

    Raises:
        OptionError: an option is unknown, or its value of another type; the message says what there is.
    """
    try:
        return checked_keywords(options, known, owner=method, prefix=f"options.{method}.")
    except InvalidValue as error:
        raise OptionError(str(error)) from None


def checked_fields(explainer: object) -> dict[str, Any]:
    """The values of an explainer's own keywords, by the rules of options, where those say something else.

    NumPy's numbers count as Python's. What no text can say, a layer or `types.Cells`, is left as it is.

    Raises:
        OptionError: a value does not fit; the message says what there is.
    """
    if not is_dataclass(explainer) or isinstance(explainer, type):
        return {}
    given = {name: getattr(explainer, name) for name in _fields_of(type(explainer))}
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in given.items()}
    said = {name: value for name, value in plain.items() if is_sayable(value)}
    try:
        found = checked_keywords(
            said,
            _fields_of(type(explainer)),
            owner=type(explainer).__name__,
            prefix=f"{type(explainer).__name__}.",
        )
    except InvalidValue as error:
        raise OptionError(str(error)) from None
    return {name: value for name, value in found.items() if value is not given[name]}


@cache
def _fields_of(explainer: type) -> Mapping[str, Any]:
    try:
        return keyword_types(explainer)
    # A class of somebody else's may import names for type checkers only, or annotate with what is no type: nothing
    # can be said of its fields.
    except (NameError, AttributeError, TypeError, SyntaxError):
        return {}


def is_sayable(value: object) -> bool:
    """Whether a line of text or TOML can say a value; if not, it is an object that Python hands over.

    Example:
        >>> from driving_xai.types import Cells
        >>> is_sayable([16, 16]), is_sayable("even"), is_sayable(Cells(1.0, 4.0))
        (True, True, False)
    """
    if type(value) in (list, tuple):
        return all(map(is_sayable, value))  # type: ignore[call-overload]
    return value is None or isinstance(value, str | bool | int | float | Mapping)


def require_tables(options: OptionsOf, methods: Collection[str]) -> None:
    """Raises OptionError where options are no table, or belong to a method that does not run."""
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
