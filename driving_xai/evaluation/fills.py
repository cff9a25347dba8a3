"""Measures under several fills in one run, and the headline of each method: its worst fill.

An order that was made for one fill may be worth nothing under another, and an area under one fill can be
doubled by such an order. What holds is what is left under the fill that suits a method least.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from driving_xai.metrics.registry import metric_class
from driving_xai.perturb import CurveFill

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


def headlines(
    scores: Sequence[Mapping[str, Any]],
    *,
    measures: Mapping[str, Mapping[str, Any]],
    named: Mapping[str, tuple[str, CurveFill | None]],
    controls: Sequence[str],
) -> list[dict[str, Any]]:
    """What is left of each method under its worst fill, beside the controls under the same fill.

    Args:
        scores: of `results.json`.
        measures: of each name, `faithful`: `high` or `low`.
        named: see `under_fills`.
        controls: names of methods.

    Returns:
        For each measure, reference and method: `fill`, the worst; `statistic`, `base_corrected` where the measure
        has it, else `value`; `mean`, `low`, `high` of it; `controls`, their means under that fill; `by_fill`, the
        method's mean under each. A method without a mean under one of the fills has no worst: `fill` is None.
    """
    found: dict[tuple[str, str, str], dict[str, Mapping[str, Any]]] = {}
    for score in scores:
        measure, fill = named[score["measure"]]
        if fill is not None:
            found.setdefault((measure, score["reference"], score["method"]), {})[fill] = score
    return [
        _headline(key, by_fill, found, measures=measures, controls=controls)
        for key, by_fill in found.items()
        if key[2] not in controls
    ]


def _headline(
    key: tuple[str, str, str],
    by_fill: Mapping[str, Mapping[str, Any]],
    found: Mapping[tuple[str, str, str], Mapping[str, Mapping[str, Any]]],
    *,
    measures: Mapping[str, Mapping[str, Any]],
    controls: Sequence[str],
) -> dict[str, Any]:
    measure, reference, method = key
    statistic = "base_corrected" if all("base_corrected" in each for each in by_fill.values()) else "value"
    means = {fill: each[statistic]["mean"] for fill, each in by_fill.items()}
    known = all(mean is not None for mean in means.values())
    entry: dict[str, Any] = {"measure": measure, "reference": reference, "method": method}
    entry |= {"statistic": statistic, "by_fill": means}
    if not known:
        return {**entry, "fill": None, "mean": None, "low": None, "high": None, "controls": {}}
    high_is_good = all(measures[each["measure"]]["faithful"] == "high" for each in by_fill.values())
    worst = min(means, key=lambda fill: means[fill] if high_is_good else -means[fill])
    beside = {
        control: found[measure, reference, control][worst][statistic]["mean"]
        for control in controls
        if (measure, reference, control) in found
    }
    interval = {name: by_fill[worst][statistic][name] for name in ("mean", "low", "high")}
    return {**entry, "fill": worst, **interval, "controls": beside}
