"""Explainers of other libraries and of the user's own, by name.

`captum:DeepLift`, `grad-cam:ScoreCAM`, `zennit:EpsilonPlus` and `lxt:AttnLRP` are the library's own methods under
this project's contract; `another-image:METHOD` is a control of any method; `package.module:Class` is the user's; a
bare name is an entry point of the group `driving_xai.explainers`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib.metadata import entry_points
from inspect import signature
from pkgutil import resolve_name
from types import MappingProxyType
from typing import Any

from driving_xai.errors import OptionError
from driving_xai.explain.base import Explainer, Function
from driving_xai.explain.registry import ENTRY_POINTS, near_method
from driving_xai.user_code import contained, imported

LIBRARIES: Mapping[str, str] = {
    "captum": "driving_xai.explain.adapters.captum:Captum",
    "grad-cam": "driving_xai.explain.adapters.grad_cam:LibraryCAM",
    "zennit": "driving_xai.explain.adapters.zennit:Zennit",
    "lxt": "driving_xai.explain.adapters.lxt:AttnLRP",
    "another-image": "driving_xai.explain.another_image:of_method",
}
"""Each library's adapter, which takes the method's name and its options; importing it needs the library. The last is this
project's own control, of any method."""
_EXTRAS = {"captum": "peers", "grad-cam": "peers", "zennit": "peers", "lxt": "lxt"}


def load_explainer(
    text: str, *, of_run: Mapping[str, Any] = MappingProxyType({}), **options: Any
) -> Explainer:
    """The explainer that a text names.

    Args:
        text: `LIBRARY:METHOD`, `package.module:Class`, or the name of an entry point.
        of_run: what a run sets for all its methods, such as a seed; given to those that take it.
        options: the explainer's own, by keyword.

    Raises:
        OptionError: it has no such option, or does not take the value.
        ValueError: nothing has that name, a library is missing, or the user's class cannot be imported.

    Example:
        >>> load_explainer("captum:Nothing")
        Traceback (most recent call last):
        ValueError: captum has no method 'Nothing' here; it has ...
    """
    library, colon, method = text.partition(":")
    if colon and library in LIBRARIES:
        return _called(_class_of(library), text, of_run, {"method": method, **options})
    return _called(imported(text) if colon else _entry_point(text), text, of_run, options)


def _class_of(library: str) -> Any:
    try:
        return resolve_name(LIBRARIES[library])
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{library} is not installed ({error.name} is missing); pip install 'driving-xai[{_EXTRAS[library]}]'"
        ) from error


def _entry_point(name: str) -> Any:
    known = {each.name: each for each in entry_points(group=ENTRY_POINTS)}
    if name not in known:
        raise ValueError(
            f"explainer {name!r} is unknown; expected {', '.join(f'{each}:METHOD' for each in LIBRARIES)}, "
            f"package.module:Class, or an entry point of {ENTRY_POINTS} ({', '.join(known) or 'there is none'})"
            f"{near_method(name)}"
        )
    return imported(known[name].value)


def _called(made: Any, text: str, of_run: Mapping[str, Any], options: Mapping[str, Any]) -> Explainer:
    if not callable(made):
        raise ValueError(
            f"{text} is a {type(made).__name__}; expected a class of explainers, or a function that makes one"
        )
    given = {name: value for name, value in of_run.items() if name in _takes(made)} | dict(options)
    try:
        with contained(f"making explainer {text!r}"):
            found = made(**given)
    except ValueError as error:
        if isinstance(error.__cause__, TypeError):
            raise OptionError(f"explainer {text!r}: {error.__cause__}") from error
        raise
    if isinstance(found, Explainer):
        return found
    if not callable(found):
        raise ValueError(
            f"explainer {text!r} gave a {type(found).__name__}; expected a class whose objects are called with "
            "(model, frames, target)"
        )
    return Function(function=found)


def _takes(made: Any) -> Collection[str]:
    try:
        return signature(made).parameters
    except ValueError:  # Built into Python, without a signature.
        return ()
