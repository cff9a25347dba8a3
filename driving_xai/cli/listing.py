"""Readers, methods and measures by family, as help lists them; needs no import of torch."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal

from driving_xai.cli.console import SettingsError

if TYPE_CHECKING:
    from torch import nn

Kind = Literal["readers", "methods", "measures"]
Families = Mapping[str, tuple[str, ...]]
"""Names by the family that they belong to."""

_WIDTH = 78


def readers() -> Mapping[str, str]:
    """Each reader with what it reads."""
    from data_prep.readers import ENTRIES

    return {name: entry.reads for name, entry in ENTRIES.items()}


def methods() -> Families:
    """Explainers by their literature names."""
    from driving_xai.explain.registry import FAMILIES

    return FAMILIES


def measures() -> Families:
    """Metrics by their literature names."""
    from driving_xai.metrics.registry import FAMILIES

    return FAMILIES


def require_known(kind: Literal["methods", "measures"], names: Sequence[str] | None) -> None:
    """Refuses a name that is a slip of a known one; what is further off is refused where it is used.

    Raises:
        SettingsError: the message names the nearest there is.
    """
    known = [name for family in (methods() if kind == "methods" else measures()).values() for name in family]
    for name in names or ():
        base = name.partition("@")[0]
        # A colon names what is found outside these tables.
        if base not in known and ":" not in base and (near := get_close_matches(base, known, n=1)):
            raise SettingsError(f"{kind.removesuffix('s')} {name!r} is unknown; did you mean {near[0]}?")


def text(kind: Kind) -> str:
    """One block for the end of a help text."""
    if kind == "readers":
        lines = [
            line
            for name, reads in readers().items()
            for line in textwrap.wrap(
                f"{name:<17} {reads}", _WIDTH, initial_indent="  ", subsequent_indent=" " * 20
            )
        ]
    else:
        families = methods() if kind == "methods" else measures()
        wide = max(map(len, families)) + 2
        lines = []
        for family, names in families.items():
            wrapped = textwrap.wrap(", ".join(names), _WIDTH - wide - 2, break_on_hyphens=False)
            heads = [family, *[""] * (len(wrapped) - 1)]
            lines += [f"  {head:<{wide}}{part}" for head, part in zip(heads, wrapped, strict=True)]
    # \b keeps the lines as they are.
    return "\n".join(["\b", f"{kind.capitalize()}:", *lines])


def summaries(kind: Literal["methods", "measures"]) -> dict[str, str]:
    """The first line of each one's docstring; imports what they need."""
    from driving_xai.explain.registry import METHODS, summary
    from driving_xai.metrics.registry import METRICS, metric_class

    if kind == "methods":
        return {name: summary(name) for name in METHODS}
    return {name: (inspect.getdoc(metric_class(name)) or "").partition("\n")[0] for name in METRICS}


def misfit(name: str, model: nn.Module) -> str | None:
    """Why a method does not fit a model; None where it does."""
    from driving_xai.errors import UnsupportedModelError
    from driving_xai.explain.registry import fitted

    try:
        fitted(name, model)
    except UnsupportedModelError as error:
        return str(error).removeprefix(f"{name}: ")
    return None
