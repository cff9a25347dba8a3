"""What a report is made of: folders of results, and their scores in the order of merit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from driving_xai.errors import DataError
from driving_xai.faithfulness.results import SUMMARY, Results
from driving_xai.faithfulness.statistics import BlockBootstrap
from driving_xai.faithfulness.summary import summarise_comparisons, summarise_ranks

Verdict = Literal["better", "worse", "not shown", "unknown"]
"""Of a method beside a control. Better or worse takes both: the whole interval of the difference on one side
of zero, and a corrected p no larger than the interval's level allows. With few blocks either alone is too
easily had."""


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
        """Whether the method is better than every control."""
        return bool(self.beside) and all(verdict == "better" for verdict in self.beside.values())


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
    """Every two methods, as in `comparisons` of results.json."""

    @property
    def key(self) -> str:
        """Names it within its results."""
        return f"{self.measure}/{self.reference}"

    @property
    def unit(self) -> str:
        """Of the value; a share where the measure names none."""
        return str(self.about.get("unit") or "0 to 1").replace(" x ", " × ")

    @property
    def higher_is_faithful(self) -> bool:
        return self.about.get("faithful") == "high"


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
    controls, bootstrap = summary["controls"], _bootstrap(summary)
    compared = summary.get("comparisons")
    if compared is None:
        compared = summarise_comparisons(results.per_frame, controls, bootstrap)
    ranks = summary.get("ranks")
    if ranks is None:
        ranks = summarise_ranks(results.per_frame, summary["measures"], bootstrap)
    meanings = summary["protocol"].get("references", {})
    for key in dict.fromkeys((score["measure"], score["reference"]) for score in summary["scores"]):
        about = summary["measures"][key[0]]
        pairs, places = _of(compared, key), _of(ranks, key)
        by_name = {place["method"]: place for ranked in places for place in ranked["places"] or ()}
        standings = [
            _standing(
                score, by_name.get(score["method"]), pairs, controls, about["faithful"], bootstrap.level
            )
            for score in _of(summary["scores"], key)
        ]
        yield Board(
            measure=key[0],
            reference=key[1],
            about=about,
            meaning=str(meanings.get(key[1], "")),
            standings=sorted(standings, key=lambda each: _merit(each, about["faithful"])),
            pairs=pairs,
        )


def _of(entries: Sequence[Mapping[str, Any]], key: tuple[str, str]) -> list[Mapping[str, Any]]:
    return [entry for entry in entries if (entry["measure"], entry["reference"]) == key]


def _bootstrap(summary: Mapping[str, Any]) -> BlockBootstrap:
    names = ("block", "resamples", "level", "seed")
    return BlockBootstrap(**{name: summary["intervals"][name] for name in names})


def _standing(
    score: Mapping[str, Any],
    place: Mapping[str, Any] | None,
    pairs: Sequence[Mapping[str, Any]],
    controls: Sequence[str],
    faithful: str,
    level: float,
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
        beside={name: _verdict(pair, faithful, level) for name, pair in known.items()},
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


def _verdict(pair: Mapping[str, Any], faithful: str, level: float) -> Verdict:
    low, high, p = pair["value"]["low"], pair["value"]["high"], pair["p_holm"]
    if low is None or p is None:
        return "unknown"
    if low <= 0 <= high or p > 1 - level:
        return "not shown"
    return "better" if (low > 0) == (faithful == "high") else "worse"


def _merit(standing: Standing, faithful: str) -> tuple[bool, float]:
    mean = standing.score["value"]["mean"]
    if mean is None:
        return (True, 0.0)
    return (False, -mean if faithful == "high" else mean)
