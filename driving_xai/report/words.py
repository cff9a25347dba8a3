"""Numbers and findings as text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from driving_xai.evaluation.claims import shows_the_model
from driving_xai.evaluation.fill_margins import by_default, sentence
from driving_xai.evaluation.judgement import Judgement
from driving_xai.evaluation.method_comparison import compare_methods
from driving_xai.evaluation.references import spoken as spoken
from driving_xai.evaluation.verdicts import TRUTH_WARNING, in_words
from driving_xai.evaluation.verdicts import chance as chance
from driving_xai.evaluation.verdicts import number as number
from driving_xai.report.edited import what_is_edited
from driving_xai.report.sources import Board, Source, Standing

_SAID: Mapping[Judgement, str] = {
    "better": "better than",
    "worse": "worse than",
    "better by interval": "by its interval better than",
    "worse by interval": "by its interval worse than",
    "not shown": "not shown better than",
    "unknown": "too few frames against",
}

COMPARED: Mapping[Judgement, str] = {
    "better": "better",
    "worse": "worse",
    "not shown": "not shown to differ",
    "unknown": "too few frames",
}
"""One model against another."""


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
    """A measure and, where there is a choice, what it is against."""
    return in_words(found.measure, found.reference)


def warning(found: Board) -> str:
    """Why a score is not shown by default; empty where it is."""
    return "" if found.is_headline else TRUTH_WARNING


def findings(found: Board) -> list[tuple[str, str]]:
    """Each method of a board with its verdict in a sentence, the most faithful first."""
    said = [(each.method, each.verdict.sentence) for each in found.standings if each.verdict is not None]
    return said or [("", "Only controls were scored.")]


def between_methods(source: Source) -> list[tuple[str, str]]:
    """Each two methods under each score that is shown by default: the score and the finding in a sentence."""
    return [(found.name, found.sentence) for found in compare_methods(source.summary)]


def direction(found: Board) -> str:
    """Which end is good, or that neither is."""
    end = "higher" if found.higher_is_faithful else "lower"
    if not shows_the_model(found.about):
        return f"{end} is more concentrated, which says nothing of the model"
    return f"{end} is more faithful"


def said(found: Board, judgement: Judgement) -> str:
    """What a method is beside a control, for the control's name to follow.

    No map is better for being concentrated.
    """
    text = _SAID[judgement]
    if not shows_the_model(found.about):
        return text.replace("better", "more concentrated").replace("worse", "less concentrated")
    return text


def is_good(found: Board, standing: Standing) -> bool:
    """Whether a row is marked as that of a method that beats every control."""
    return standing.beats_all and shows_the_model(found.about)


def curves(found: Board) -> str:
    """What the mean curves show."""
    return f"Mean curves: {found.height}, over the share of {what_is_edited(found.about)}, with the controls behind."


def verdict(found: Board, standing: Standing) -> str:
    """A method beside all controls, in a few words."""
    if standing.is_control:
        return "control"
    if not standing.beside:
        return "no control"
    by_verdict: dict[str, list[str]] = {}
    for control, judgement in standing.beside.items():
        by_verdict.setdefault(judgement, []).append(control)
    return "; ".join(
        f"{said(found, judgement)} {' and '.join(by_verdict[judgement])}"
        for judgement in _SAID
        if judgement in by_verdict
    )


class UnderFills(NamedTuple):
    """What is left of each method under every fill, of one measure and reference."""

    name: str
    warning: str
    """As of a score's."""
    entries: Sequence[Mapping[str, Any]]
    """As in `fills` of results.json."""
    sentences: Sequence[tuple[str, str]]
    """By method, in words."""


def fills(source: Source) -> list[UnderFills]:
    """The margins of a run under several fills, those shown by default first; empty of other runs."""
    found: dict[tuple[bool, str], list[Mapping[str, Any]]] = {}
    for entry, is_default in by_default(source.summary.get("fills", ())):
        found.setdefault((not is_default, in_words(entry["measure"], entry["reference"])), []).append(entry)
    return [
        UnderFills(
            name=name,
            warning=TRUTH_WARNING if folded else "",
            entries=entries,
            sentences=[(each["method"], sentence(each, source.summary)) for each in entries],
        )
        for (folded, name), entries in sorted(found.items(), key=lambda item: item[0][0])
    ]


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


_OF_PICTURES = ("pictures", "starts_s", "run_starts")
"""Of a video: as long as the drive, and no settings."""


def settings(source: Source) -> list[tuple[str, str]]:
    """What decided the numbers, flat, in the order of the file."""
    summary = source.summary
    found: list[tuple[str, str]] = []
    for section in ("plan", "data", "intervals", "model", "versions", "hardware", "video", "files"):
        given = summary.get(section)
        if section == "video" and given is not None:
            given = {name: value for name, value in given.items() if name not in _OF_PICTURES}
        found += _flat(section, given)
    return found


def _flat(name: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [line for key, each in value.items() for line in _flat(f"{name}.{key}", each)]
    if value is None:
        return []
    return [(name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]
