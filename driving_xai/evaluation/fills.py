"""Measures under several fills in one run: the names under which they stand in results."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence

from driving_xai.fills import CurveFill
from driving_xai.metrics.registry import metric_class

AT = "@"
"""Between a measure and its fill: `deletion@mean`."""


def takes_fill(measure: str) -> bool:
    """Whether a measure edits with the run's fill."""
    return "fill" in inspect.signature(metric_class(measure)).parameters


def under_fills(
    measures: Sequence[str], fills: Sequence[CurveFill], *, apart: Collection[str] = ()
) -> dict[str, tuple[str, CurveFill | None]]:
    """The names under which measures stand in results, each with its measure and its fill.

    Args:
        measures: names of metrics.
        fills: several; () leaves every measure under its own name, with the run's one fill.
        apart: measures that were handed over as objects and keep their own fill.

    Example:
        >>> list(under_fills(["deletion", "auroc"], ["black", "mean"]))
        ['deletion@black', 'deletion@mean', 'auroc']
    """
    found: dict[str, tuple[str, CurveFill | None]] = {}
    for name in measures:
        if fills and name not in apart and takes_fill(name):
            found |= {f"{name}{AT}{fill}": (name, fill) for fill in fills}
        else:
            found[name] = (name, None)
    return found
