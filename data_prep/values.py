"""Typed values: settings, options of readers and options of explainers, checked by one set of rules.

The rules: a bool is no number; a number is finite; a whole number is below 2^32 in size; text that reads as a
number is one where a number is expected; a list becomes a tuple, text a path, and `"none"` None where a type allows
it, because TOML has none of the three. Bounds stand in the annotation, `Annotated[int, Ge(1)]`. pydantic checks
each single value; tables are walked here, because a table changes only what it names in a field's own default.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from functools import cache, reduce
from operator import or_
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, Union, get_type_hints
from typing import get_args as arguments_of
from typing import get_origin as origin_of

from annotated_types import Ge, GroupedMetadata, Gt, Interval, Le, Lt, MaxLen, MinLen

from data_prep.errors import quoted

if TYPE_CHECKING:
    from pydantic import TypeAdapter

__all__ = [
    "BareText",
    "Checked",
    "Count",
    "Ge",
    "Gt",
    "Interval",
    "InvalidValue",
    "Le",
    "Level",
    "Lt",
    "MinLen",
    "PositiveCount",
    "Resamples",
    "Seconds",
    "Seed",
    "build",
    "checked",
    "checked_keywords",
    "keyword_types",
    "nearest",
    "sayable",
]

Recipe = TypeVar("Recipe")

_WORDS: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    NoneType: "none",
}
_BEYOND = 2**32
"""Every seed that NumPy takes is below it, and nothing has so many samples or pixels."""

Seed = Annotated[int, Interval(ge=0, lt=_BEYOND)]
"""Of a random generator: what NumPy and torch both take."""
Count = Annotated[int, Interval(ge=0, lt=_BEYOND)]
PositiveCount = Annotated[int, Interval(ge=1, lt=_BEYOND)]
Seconds = Annotated[float, Interval(gt=0, le=86_400)]
"""A length of time within one drive: at most a day."""
Resamples = Annotated[int, Interval(ge=1, le=10**7)]
"""Of a bootstrap: more cost memory and sharpen no interval."""
Level = Annotated[float, Interval(gt=0, lt=1)]
"""The share of intervals that hold what they are of."""


class InvalidValue(ValueError):
    """A value that its type does not take, or a name that is not there; the message is one line."""


class BareText(str):
    """Text of a command line that is not TOML: `left`, but also `.5`, which is a number where one is expected."""

    __slots__ = ()


class Checked:
    """Base of dataclasses whose fields are checked, and converted, whenever one is made.

    A subclass with rules across fields has a `__post_init__` of its own, which calls this one first.

    Args:
        error: the class of the error for a field that does not fit; given where the subclass is defined.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True, kw_only=True)
        ... class Recipe(Checked):
        ...     epochs: Annotated[int, Ge(1)] = 30
        ...     names: tuple[str, ...] = ()
        >>> Recipe(names=["a"])
        Recipe(epochs=30, names=('a',))
        >>> Recipe(epochs=0)
        Traceback (most recent call last):
            ...
        data_prep.values.InvalidValue: epochs is 0; expected 1 or more
    """

    _error: ClassVar[type[ValueError]] = InvalidValue

    def __init_subclass__(cls, *, error: type[ValueError] | None = None) -> None:
        super().__init_subclass__()
        if error is not None:
            cls._error = error

    def __post_init__(self) -> None:
        for name, hint in _field_types(type(self)).items():
            given = getattr(self, name)
            try:
                found = checked(hint, given, name)
            except InvalidValue as error:
                raise self._error(str(error)) from None
            if found is not given:
                object.__setattr__(self, name, found)  # The dataclass is frozen once it is made.


def build(recipe: type[Recipe], table: Mapping[str, Any], *, prefix: str = "", start: Any = None) -> Recipe:
    """A dataclass from a table of values, which may hold tables for fields that are dataclasses.

    Args:
        prefix: of the names in messages, `model.` for example.
        start: what the table changes; None starts from the defaults of the recipe's own fields.

    Raises:
        InvalidValue: a name is unknown, a field is missing, or a value does not fit.
        ValueError: the recipe's own rules refuse what fits each field.
    """
    types = _field_types(recipe)
    for name in table:
        if name not in types:
            raise InvalidValue(f"{prefix}{name} is no setting; {nearest(name, types, prefix)}")
    starts = {
        field.name: _default(field) if start is None else getattr(start, field.name)
        for field in fields(recipe)  # type: ignore[arg-type]
    }
    for name in types:
        if name not in table and starts[name] is MISSING:
            raise InvalidValue(f"{prefix}{name} is not set; give its option, or put it into --config")
    found = {
        name: checked(types[name], value, prefix + name, start=starts[name]) for name, value in table.items()
    }
    return recipe(**found) if start is None else replace(start, **found)


def checked(hint: Any, value: Any, name: str, *, start: Any = None) -> Any:
    """The value as a field or parameter of this type takes it.

    Args:
        hint: the type: bool, int, float, str, Path, None, Literal, tuples, mappings, dataclasses, unions
            of these, and `Annotated` with bounds; a text in `Annotated` is added to the message.
        name: of the value, for messages.
        start: the field's default; a table leaves what it does not name of it as it is.

    Raises:
        InvalidValue: it does not fit; the message says what was got and what is expected.

    Example:
        >>> checked(tuple[int, ...] | None, [1, 2], "sizes")
        (1, 2)
        >>> checked(Annotated[float, Interval(gt=0, le=1)], 2, "share")
        Traceback (most recent call last):
            ...
        data_prep.values.InvalidValue: share is 2; expected over 0 and at most 1
    """
    origin, arguments = origin_of(hint), arguments_of(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        found = checked(arguments[0], value, name, start=start)
        if found is not None and not _fits(hint, found):
            raise InvalidValue(f"{name} is {quoted(value)}; expected {_bounds(arguments[1:])}")
        return found
    if origin in (Union, UnionType):
        return _checked_union(hint, value, name, start)
    if origin is tuple:
        return _checked_tuple(hint, value, name)
    if _is_table(hint):
        return _checked_table(hint, value, name, start)
    converted = _converted(hint, value)
    if hint is int and type(converted) is int and not -_BEYOND < converted < _BEYOND:
        raise InvalidValue(f"{name} is {quoted(value)}; expected a whole number of less than 2**32")
    _require(_fits(hint, converted), hint, value, name)
    return float(converted) if hint is float else converted


def _checked_tuple(hint: Any, value: Any, name: str) -> tuple[Any, ...]:
    kinds = arguments_of(hint)
    _require(isinstance(value, list | tuple), hint, value, name)
    if kinds[-1] is ...:
        return tuple(checked(kinds[0], item, f"{name}[{i}]") for i, item in enumerate(value))
    _require(len(value) == len(kinds), hint, value, name)
    with suppress(InvalidValue):
        return tuple(checked(kind, item, name) for kind, item in zip(kinds, value, strict=True))
    raise InvalidValue(f"{name} is {quoted(value)}; expected {described(hint)}")


def _checked_union(hint: Any, value: Any, name: str, start: Any) -> Any:
    kinds = arguments_of(hint)
    if NoneType in kinds and (value is None or value == "none"):
        return None
    alone = [kind for kind in kinds if kind is not NoneType]
    for kind in alone:
        # A mistake inside a table or a list is named there, not as one that does not fit.
        whole = _is_table(kind) and isinstance(value, Mapping)
        if whole or (len(alone) == 1 and origin_of(kind) is tuple and isinstance(value, list | tuple)):
            return checked(kind, value, name, start=start)
    if str in alone and isinstance(value, str) and not isinstance(value, BareText):
        return value  # also where it reads like a number
    for kind in alone:
        with suppress(InvalidValue):
            return checked(kind, value, name, start=start)
    raise InvalidValue(f"{name} is {quoted(value)}; expected {described(hint)}{_near_choice(hint, value)}")


def _near_choice(hint: Any, value: Any) -> str:
    """The end of a message about a choice that is misspelt."""
    kinds = arguments_of(hint) if origin_of(hint) in (Union, UnionType) else (hint,)
    choices = [str(each) for kind in kinds if origin_of(kind) is Literal for each in arguments_of(kind)]
    near = difflib.get_close_matches(value, choices, n=1) if isinstance(value, str) else []
    return f"; did you mean {near[0]}?" if near else ""


def _checked_table(hint: Any, value: Any, name: str, start: Any) -> Any:
    if is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
        table = _require(isinstance(value, Mapping), hint, value, name)
        assert isinstance(hint, type)
        return build(hint, table, prefix=f"{name}.", start=start if isinstance(start, hint) else None)
    _require(isinstance(value, Mapping), hint, value, name)
    keys, values = arguments_of(hint) or (Any, Any)
    return {
        checked(keys, key, f"a name in {name}"): checked(values, item, f"{name}.{key}")
        for key, item in value.items()
    }


def _require(fits: bool, hint: Any, value: Any, name: str) -> Any:
    if not fits:
        raise InvalidValue(
            f"{name} is {quoted(value)}; expected {described(hint)}{_near_choice(hint, value)}"
        )
    return value


def _is_table(hint: Any) -> bool:
    kind = origin_of(hint) or hint
    return isinstance(kind, type) and (is_dataclass(kind) or issubclass(kind, Mapping))


def _converted(hint: Any, value: Any) -> Any:
    """A path or a number from the text that stands for it; of choices 2 from "2", and "32" from 32."""
    if hint is Path and isinstance(value, str):
        return Path(value)
    if isinstance(value, str) and hint in (int, float):
        with suppress(ValueError):
            return hint(value)
    if origin_of(hint) is Literal and type(value) in (int, str) and value not in arguments_of(hint):
        alike = [choice for choice in arguments_of(hint) if type(choice) in (int, str)]
        return {str(choice): choice for choice in alike}.get(str(value), value)
    return str(value) if isinstance(value, BareText) else value


def _fits(hint: Any, value: Any) -> bool:
    from pydantic import ValidationError

    if origin_of(hint) is Literal:
        # To pydantic True and 1.0 are the choice 1.
        return any(type(value) is type(choice) and value == choice for choice in arguments_of(hint))
    if hint is int and isinstance(value, int) and not -_BEYOND < value < _BEYOND:
        return False
    try:
        _adapter(hint).validate_python(value)
    except (ValidationError, OverflowError):
        return False
    return True


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    # Imported here: `driving-xai --help` checks nothing, and should not wait for it.
    from pydantic import ConfigDict, TypeAdapter

    rules = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    return TypeAdapter(hint, config=rules)


def _field_types(recipe: type[Any]) -> Mapping[str, Any]:
    types = get_type_hints(recipe, include_extras=True)
    return {field.name: types[field.name] for field in fields(recipe) if field.init}


def _default(field: Field[Any]) -> Any:
    """What the field is where nothing is given; MISSING where something must be."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def described(hint: Any) -> str:
    """What a type takes, for the end of `expected ...`.

    Example:
        >>> described(tuple[int, float] | Literal["auto"] | None)
        'a list [a whole number, a number] or one of auto or none'
    """
    origin, arguments = origin_of(hint), arguments_of(hint)
    if origin is Annotated:
        return described(arguments[0])
    if origin in (Union, UnionType):
        return " or ".join(map(_alternative, arguments))
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple:
        items = arguments[:-1] if arguments[-1] is ... else arguments
        return "a list" if arguments[-1] is ... else f"a list [{', '.join(map(described, items))}]"
    if _is_table(hint):
        return "a table"
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def _alternative(hint: Any) -> str:
    """One of several types, with its bounds, because no message of its own follows."""
    if origin_of(hint) is not Annotated:
        return described(hint)
    kind, *metadata = arguments_of(hint)
    return f"{described(kind)} of {_bounds(metadata)}"


def _bounds(metadata: Sequence[Any]) -> str:
    """Bounds in words, `over 0 and at most 1`, and what the annotation says beyond them."""
    limits: list[str] = []
    notes: list[str] = []
    flat: Iterable[Any] = (
        part for each in metadata for part in (each if isinstance(each, GroupedMetadata) else (each,))
    )
    for each in flat:
        match each:
            case Ge(ge=low):
                limits.append(f"{_number(low)} or more")
            case Gt(gt=low):
                limits.append(f"over {_number(low)}")
            case Le(le=high):
                limits.append(f"at most {_number(high)}")
            case Lt(lt=high):
                limits.append(f"under {_number(high)}")
            case MinLen(min_length=least):
                limits.append(f"{least} or more of them")
            case MaxLen(max_length=most):
                limits.append(f"at most {most} of them")
            case str():
                notes.append(each)
    return ", ".join([" and ".join(limits), *notes])


def _number(value: Any) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:,}"


def nearest(name: str, known: Collection[str], prefix: str = "") -> str:
    """The end of a message about an unknown name: the nearest one there is, or all of them.

    Example:
        >>> nearest("epoch", ["epochs", "seed"])
        'did you mean epochs?'
    """
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {prefix}{near[0]}?" if near else f"there are {', '.join(known) or 'none'}"


def keyword_types(*takers: Callable[..., object], apart: Collection[str] = ()) -> dict[str, Any]:
    """The types of functions' or classes' keyword-only parameters, where text or TOML can say a value.

    Args:
        apart: names that are left out.

    Example:
        >>> def explainer(*, layer: object, samples: int = 5, seed: int = 0) -> None: ...
        >>> keyword_types(explainer, apart=["seed"])
        {'samples': <class 'int'>}
    """
    found = {}
    for taker in takers:
        own_init = inspect.isclass(taker) and not is_dataclass(taker)
        hints = get_type_hints(taker.__init__ if own_init else taker, include_extras=True)
        for name, parameter in inspect.signature(taker).parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY and name not in apart:
                kind = sayable(hints[name])
                if kind not in (None, NoneType):
                    found[name] = kind
    return found


def checked_keywords(
    given: Mapping[str, Any], types: Mapping[str, Any], *, owner: str, prefix: str
) -> dict[str, Any]:
    """Options by name as a function takes them.

    Args:
        types: of all options there are, from `keyword_types`.
        owner: whose options they are, for messages.
        prefix: of the names in messages.

    Raises:
        InvalidValue: an option is unknown, or its value of another type.

    Example:
        >>> checked_keywords({"sample": 3}, {"samples": int}, owner="rise", prefix="options.rise.")
        Traceback (most recent call last):
            ...
        data_prep.values.InvalidValue: options.rise.sample is no option; rise has samples; did you mean samples?
    """
    for name in given:
        if name not in types:
            has = ", ".join(types) or "no options"
            near = difflib.get_close_matches(name, types, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InvalidValue(f"{prefix}{name} is no option; {owner} has {has}{hint}")
    return {name: checked(types[name], value, prefix + name) for name, value in given.items()}


def sayable(hint: Any) -> Any:
    """A type without the parts that neither text nor TOML can say, a network's layer say; None if none is left.

    Example:
        >>> sayable(str | bytearray)
        <class 'str'>
        >>> sayable(tuple[Literal["black", "mean"], ...])
        tuple[typing.Literal['black', 'mean'], ...]
    """
    origin, arguments = origin_of(hint), arguments_of(hint)
    if origin in (Union, UnionType):
        kinds = [kind for each in arguments if (kind := sayable(each)) is not None]
        return reduce(or_, kinds) if kinds else None
    if origin is Annotated:
        kind = sayable(arguments[0])
        return None if kind is None else Annotated[(kind, *arguments[1:])]
    plain = hint in _WORDS or origin is Literal
    return hint if plain or (origin is tuple and all(map(_plain_item, arguments))) else None


def _plain_item(kind: Any) -> bool:
    return kind is ... or kind in _WORDS or origin_of(kind) is Literal
