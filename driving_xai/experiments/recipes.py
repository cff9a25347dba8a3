"""What all recipes of experiments share: their plan, and settings that would have no effect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from operator import attrgetter
from typing import Any

from driving_xai.errors import OptionError


def planned(recipe: Any) -> dict[str, Any]:
    """A recipe as the plan of its runs keeps it.

    Without `seeds`, of which more may be asked for later; and without `methods` and `options` where they are
    the usual ones, as plans were before they could be chosen.
    """
    plan, usual = asdict(recipe), asdict(type(recipe)())
    chosen = {name: plan.pop(name) for name in ("methods", "options") if name in plan}
    plan.pop("seeds", None)
    return {**plan, **{name: value for name, value in chosen.items() if value != usual[name]}}


def require_unset(recipe: Any, reasons: Mapping[str, str]) -> None:
    """Refuses settings that would have no effect.

    Args:
        reasons: by the dotted name of each setting that is not read, why it is not.

    Raises:
        OptionError: one of them is not what it is by default.

    Example:
        >>> from driving_xai.experiments.zhu_accuracy import ZhuAccuracy
        >>> require_unset(ZhuAccuracy(folds=3), {"seed": "nothing is drawn"})
        >>> require_unset(ZhuAccuracy(folds=3), {"folds": "prep's split is taken"})
        Traceback (most recent call last):
        driving_xai.errors.OptionError: folds is set, but prep's split is taken; leave it out
    """
    usual = type(recipe)()
    for name, reason in reasons.items():
        of = attrgetter(name)
        if of(recipe) != of(usual):
            raise OptionError(f"{name} is set, but {reason}; leave it out")
