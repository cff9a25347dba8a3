"""Numbers and findings as text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from driving_xai.report.edited import what_is_edited
from driving_xai.report.sources import Board, Source, Standing, Verdict

SAID: Mapping[Verdict, str] = {
    "better": "better than",
    "worse": "worse than",
    "better by interval": "by its interval better than",
    "worse by interval": "by its interval worse than",
    "not shown": "not shown beside",
    "unknown": "no interval beside",
}


def number(value: float | None, *, digits: int = 4) -> str:
    """A number with as many digits as it deserves; a dash where it is unknown.

    Example:
        >>> number(1234.567), number(0.012345), number(-3.0), number(None)
        ('1,235', '0.01235', '−3.000', '–')
    """
    if value is None:
        return "–"
    text = f"{value:,.0f}" if abs(value) >= 1000 or value == 0 else f"{value:#.{digits}g}".rstrip(".")
    return text.replace("-", "−")


def count(value: int) -> str:
    """A number of things."""
    return f"{value:,}"


def likeness(value: float | None) -> str:
    """A correlation or another number around 1, to two places.

    Example:
        >>> likeness(0.00044), likeness(-0.471), likeness(None)
        ('0.00', '−0.47', '–')
    """
    return "–" if value is None else f"{value + 0.0:.2f}".replace("-0.00", "0.00").replace("-", "−")


def share(value: float | None) -> str:
    """A share in percent."""
    return "–" if value is None else f"{100 * value:.3g} %"


def interval(value: Mapping[str, Any]) -> str:
    """The ends of an interval, or that there is none."""
    if value["low"] is None:
        return "no interval"
    return f"{number(value['low'])} to {number(value['high'])}"


def chance(p: float | None) -> str:
    """A p-value as papers print it.

    Example:
        >>> chance(0.00001), chance(0.0312), chance(None)
        ('< 0.001', '0.031', '–')
    """
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def place(standing: Standing) -> str:
    """A method's place and where it moves."""
    found = standing.place
    if found is None:
        return "–"
    low, high = (f"{found[end]:g}" for end in ("low", "high"))
    return (
        f"{found['rank']:g}" if low == high == f"{found['rank']:g}" else f"{found['rank']:g} ({low}–{high})"
    )


def board(found: Board) -> str:
    """A measure and what it is against."""
    return found.measure if found.reference == "cause" else f"{found.measure}, against {found.reference}"


def direction(found: Board) -> str:
    return f"{'higher' if found.higher_is_faithful else 'lower'} is more faithful"


def curves(found: Board) -> str:
    """What the mean curves show."""
    return f"Mean curves: {found.height}, over the share of {what_is_edited(found.about)}, with the controls behind."


def verdict(standing: Standing) -> str:
    """A method beside all controls, in a few words."""
    if standing.is_control:
        return "control"
    if not standing.beside:
        return "no control"
    by_verdict: dict[str, list[str]] = {}
    for control, found in standing.beside.items():
        by_verdict.setdefault(found, []).append(control)
    return "; ".join(
        f"{said} {' and '.join(by_verdict[found])}" for found, said in SAID.items() if found in by_verdict
    )


def finding(found: Board) -> str:
    """What a board says, in one sentence."""
    methods = [each for each in found.standings if not each.is_control]
    better = [each.method for each in methods if each.beats_all]
    unknown = [each for each in methods if set(each.beside.values()) == {"unknown"}]
    if not methods:
        return "Only controls were scored."
    if len(unknown) == len(methods):
        return " ".join([*without_interval(found), "Nothing is shown either way."])
    if not better:
        return f"{_listed([each.method for each in methods])}: not shown to beat every control."
    said = f"{_listed(better)} {'beat' if len(better) > 1 else 'beats'} every control"
    said += " by the interval alone, without a test" if found.untested else ""
    others = [each.method for each in methods if each.method not in better]
    return f"{said}; {_listed(others)} not shown to." if others else f"{said}."


def without_interval(found: Board) -> list[str]:
    """Why intervals are missing, a sentence for each reason, and for whom where others have one."""
    return [
        f"No {of}{'' if len(names) == len(found.standings) else f' for {_listed(names)}'}: {_why(reason)}."
        for (of, reason), names in found.without_interval.items()
    ]


def _why(reason: str) -> str:
    return (
        f"too few independent blocks ({reason})" if "fewer than" in reason else reason or "no reason is saved"
    )


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def settings(source: Source) -> list[tuple[str, str]]:
    """What decided the numbers, flat, in the order of the file."""
    summary = source.summary
    found: list[tuple[str, str]] = []
    for section in ("plan", "data", "intervals", "model", "versions", "hardware", "video", "files"):
        given = summary.get(section)
        if section == "video" and given is not None:
            # As long as the drive, and no setting.
            given = {name: value for name, value in given.items() if name != "pictures"}
        found += _flat(section, given)
    return found


def _flat(name: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [line for key, each in value.items() for line in _flat(f"{name}.{key}", each)]
    if value is None:
        return []
    return [(name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]
