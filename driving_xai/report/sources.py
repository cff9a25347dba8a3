"""What a report is made of: folders of results, and their scores in the order of merit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from driving_xai.errors import DataError
from driving_xai.evaluation.results import SUMMARY, Results
from driving_xai.metrics.registry import METRICS, statistics_of_sets
from driving_xai.report.edited import fractions_of

Verdict = Literal["better", "worse", "better by interval", "worse by interval", "not shown", "unknown"]
"""Of a method beside a control. Better or worse takes both: the whole interval of the difference on one side
of zero, and a corrected p no larger than the interval's level allows. With few blocks either alone is too
easily had. Where a value is of all frames together there is no test, and the verdict is by the interval.
Unknown is without an interval."""

OF_ALL_FRAMES = "the value is of all frames together, and one frame has none to test or to place"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One method under one measure and reference."""

    method: str
    is_control: bool
    score: Mapping[str, Any]
    """As in `scores` of results.json."""
    place: Mapping[str, Any] | None
    """As in `ranks` of results.json; None where too few frames have every method."""
    beside: Mapping[str, Verdict]
    """By control."""
    comparisons: Mapping[str, Mapping[str, Any]]
    """By control, as in `comparisons` of results.json, with this method first."""

    @property
    def beats_all(self) -> bool:
        """Whether the method is better than every control, by a test where there is one."""
        return bool(self.beside) and all(verdict.startswith("better") for verdict in self.beside.values())


@dataclass(frozen=True, kw_only=True)
class Board:
    """The methods under one measure and reference, the most faithful first."""

    measure: str
    reference: str
    about: Mapping[str, Any]
    """As in `measures` of results.json."""
    meaning: str
    """Of the reference."""
    standings: Sequence[Standing]
    pairs: Sequence[Mapping[str, Any]]
    """Every two methods, as in `comparisons` of results.json; if untested each method with each control."""
    untested: str
    """Why no test is made; empty where it is."""
    fractions: Sequence[float]
    """Of what is edited, at each point of the curves; empty without curves."""

    @property
    def key(self) -> str:
        """Names it within its results."""
        return f"{self.measure}/{self.reference}"

    @property
    def unit(self) -> str:
        """Of the value; a share where the measure names none."""
        return str(self.about.get("unit") or "0 to 1").replace(" x ", " × ")

    @property
    def height(self) -> str:
        """What a curve shows, with its unit."""
        unit = str(self.about.get("normalised_unit") or "value")
        return f"insertion minus deletion, {unit}" if self.about["kind"] == "difference of curves" else unit

    @property
    def higher_is_faithful(self) -> bool:
        return self.about.get("faithful") == "high"

    @property
    def without_interval(self) -> Mapping[tuple[str, str], list[str]]:
        """The methods that lack an interval of their mean, or else of a difference, by which and why."""
        found: dict[tuple[str, str], list[str]] = {}
        for each in self.standings:
            mean, differences = each.score["value"], [pair["value"] for pair in each.comparisons.values()]
            of, values = (
                ("interval", [mean])
                if mean["low"] is None
                else ("interval of the difference from a control", differences)
            )
            for reason in dict.fromkeys(value.get("reason", "") for value in values if value["low"] is None):
                found.setdefault((of, reason), []).append(each.method)
        return found


@dataclass(frozen=True, kw_only=True)
class Source:
    """One folder of results, with what follows from its rows."""

    label: str
    path: Path
    results: Results
    boards: Sequence[Board]

    @property
    def summary(self) -> Mapping[str, Any]:
        return self.results.summary


def load_sources(paths: Sequence[Path]) -> list[Source]:
    """Reads and checks folders of results.

    Raises:
        DataError: a folder holds none, or they are damaged.
    """
    return [_load(path, label) for path, label in zip(paths, labels_of(paths), strict=True)]


def labels_of(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that differ.

    Raises:
        DataError: two are the same folder.
    """
    absolute = [path.resolve() for path in paths]
    if len(set(absolute)) < len(absolute):
        raise DataError("the same folder of results was given twice; give each once")
    labels: list[str] = []
    for depth in range(1, max((len(path.parts) for path in absolute), default=0) + 1):
        labels = ["/".join(path.parts[-depth:]) for path in absolute]
        if len(set(labels)) == len(labels):
            break
    return labels


def _load(path: Path, label: str) -> Source:
    results = Results.load(path)
    try:
        return Source(label=label, path=path, results=results, boards=list(_boards(results)))
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        # The hash vouches for the table, nothing does for the summary: it may have been edited.
        raise DataError(
            f"{path / SUMMARY}: a section is not as `driving-xai score` writes it ({error}); score again"
        ) from error


def _boards(results: Results) -> Iterator[Board]:
    summary = results.summary
    controls, level = summary["controls"], summary["intervals"]["level"]
    compared, ranks = summary["comparisons"], summary["ranks"]
    meanings = summary["protocol"].get("references", {})
    of_sets = statistics_of_sets(name for name in summary["measures"] if name in METRICS)
    for key in dict.fromkeys((score["measure"], score["reference"]) for score in summary["scores"]):
        about, tested = summary["measures"][key[0]], key[0] not in of_sets
        scores = _of(summary["scores"], key)
        pairs = _of(compared, key) if tested else list(map(_untested, _of(summary["differences"], key)))
        by_name = {place["method"]: place for ranked in _of(ranks, key) for place in ranked["places"] or ()}
        judge = partial(_verdict, faithful=about["faithful"], level=level, tested=tested)
        standings = [
            _standing(score, by_name.get(score["method"]), pairs, controls, judge) for score in scores
        ]
        yield Board(
            measure=key[0],
            reference=key[1],
            about=about,
            meaning=str(meanings.get(key[1], "")),
            standings=sorted(standings, key=lambda each: _merit(each, about["faithful"])),
            pairs=pairs,
            untested="" if tested else OF_ALL_FRAMES,
            fractions=fractions_of(about, scores),
        )


def _untested(difference: Mapping[str, Any]) -> dict[str, Any]:
    """One of `differences` in results.json in the form of `comparisons`: an interval without a test."""
    unknown = ("p", "p_holm", "blocks", "rank_biserial", "cohens_dz", "cliffs_delta")
    names = {"method": difference["method"], "other": difference["control"]}
    return {**difference, **names, **dict.fromkeys(unknown), "reason": OF_ALL_FRAMES}


def _of(entries: Sequence[Mapping[str, Any]], key: tuple[str, str]) -> list[Mapping[str, Any]]:
    return [entry for entry in entries if (entry["measure"], entry["reference"]) == key]


def _standing(
    score: Mapping[str, Any],
    place: Mapping[str, Any] | None,
    pairs: Sequence[Mapping[str, Any]],
    controls: Sequence[str],
    judge: Callable[[Mapping[str, Any]], Verdict],
) -> Standing:
    method = score["method"]
    is_control = method in controls
    beside = {} if is_control else {name: _pair(pairs, method, name) for name in controls}
    known = {name: pair for name, pair in beside.items() if pair is not None}
    return Standing(
        method=method,
        is_control=is_control,
        score=score,
        place=place,
        beside={name: judge(pair) for name, pair in known.items()},
        comparisons=known,
    )


def _pair(pairs: Sequence[Mapping[str, Any]], method: str, other: str) -> Mapping[str, Any] | None:
    """The comparison of two methods, turned so that `method` comes first."""
    for pair in pairs:
        if (pair["method"], pair["other"]) == (method, other):
            return pair
        if (pair["method"], pair["other"]) == (other, method):
            return _turned(pair)
    return None


def _turned(pair: Mapping[str, Any]) -> dict[str, Any]:
    value = pair["value"]
    signs = {name: _negative(pair[name]) for name in ("rank_biserial", "cohens_dz", "cliffs_delta")}
    ends = {
        "mean": _negative(value["mean"]),
        "low": _negative(value["high"]),
        "high": _negative(value["low"]),
    }
    names = {"method": pair["other"], "other": pair["method"]}
    return {**pair, **names, **signs, "value": {**value, **ends}}


def _negative(value: float | None) -> float | None:
    return None if value is None else -value


def _verdict(pair: Mapping[str, Any], *, faithful: str, level: float, tested: bool) -> Verdict:
    low, high, p = pair["value"]["low"], pair["value"]["high"], pair["p_holm"]
    if low is None or (tested and p is None):
        return "unknown"
    if low <= 0 <= high or (tested and p > 1 - level):
        return "not shown"
    if (low > 0) == (faithful == "high"):
        return "better" if tested else "better by interval"
    return "worse" if tested else "worse by interval"


def _merit(standing: Standing, faithful: str) -> tuple[bool, float]:
    mean = standing.score["value"]["mean"]
    if mean is None:
        return (True, 0.0)
    return (False, -mean if faithful == "high" else mean)
