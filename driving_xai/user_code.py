"""The user's own code, imported by `module:name` from the working directory, and what is said where it fails."""

from __future__ import annotations

import difflib
import importlib
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def importable() -> Iterator[None]:
    """The working directory first, so that the user's modules are found, and last from then on, so that what
    they import later is found too and nothing of ours is hidden. A console script does not search there."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
        if here not in sys.path:
            sys.path.append(here)


def imported(text: str, *, error: type[ValueError] = ValueError) -> Any:
    """What a text names: a model's factory, an explainer, a metric.

    Args:
        text: `package.module:name`, where the name may have dots.
        error: what is raised.

    Raises:
        ValueError: there is no such module or name, or the module raises; one line of `error`.

    Example:
        >>> imported("math:pi")
        3.141592653589793
        >>> imported("math:cosinus")
        Traceback (most recent call last):
        ValueError: math:cosinus: math has no cosinus; did you mean ...?
    """
    module, _, name = text.partition(":")
    with importable(), contained(f"importing {module}", error=error):
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as missing:
            # A module that the user's module imports is missing too.
            if missing.name is None or not f"{module}.".startswith(f"{missing.name}."):
                raise
            raise error(
                f"{text}: no module {missing.name} in {Path.cwd()} nor installed; check the name, or start there"
            ) from missing
    for part in name.split("."):
        found = _part(found, part, text, error)
    return found


@contextmanager
def contained(doing: str, *, error: type[ValueError] = ValueError) -> Iterator[None]:
    """Whatever the user's code raises as one line, with the place where it happened.

    Args:
        doing: what was done, for the message.
        error: what is raised; such an error passes as it is.

    Example:
        >>> with contained("calling mine:model"):
        ...     1 / 0
        Traceback (most recent call last):
        ValueError: calling mine:model raised ZeroDivisionError: division by zero (..., line 2); correct the code
    """
    try:
        yield
    except error:
        raise
    except (Exception, SystemExit) as raised:
        said = (str(raised).strip().splitlines() or [type(raised).__name__])[0][:160]
        # A syntax error says itself where it is; its traceback ends in the import system.
        if not isinstance(raised, SyntaxError):
            place = traceback.extract_tb(raised.__traceback__)[-1]
            said += f" ({Path(place.filename).name}, line {place.lineno})"
        raise error(f"{doing} raised {type(raised).__name__}: {said}; correct the code") from raised


def _part(owner: object, name: str, text: str, error: type[ValueError]) -> object:
    if hasattr(owner, name):
        return getattr(owner, name)
    known = [each for each in dir(owner) if not each.startswith("_")]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known[:5]) or 'nothing'}"
    raise error(f"{text}: {getattr(owner, '__name__', owner)} has no {name}; {hint}")
