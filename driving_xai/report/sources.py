"""What a report is made of: folders of results, and their scores in the order of merit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from driving_xai.errors import DataError
from driving_xai.evaluation.judgement import OF_ALL_FRAMES, Judgement, comparisons_of, pair_of
from driving_xai.evaluation.results import SUMMARY, Results
from driving_xai.evaluation.verdicts import Verdict, is_headline, verdicts_of
from driving_xai.report.edited import fractions_of


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One method under one measure and reference."""

    method: str
    score: Mapping[str, Any]
    """As in `scores` of results.json."""
    place: Mapping[str, Any] | None
    """As in `ranks` of results.json; None where too few frames have every method."""
    verdict: Verdict | None
    """Against the controls; None for a control."""
    comparisons: Mapping[str, Mapping[str, Any]]
    """By control, as in `comparisons` of results.json, with this method first."""

    @property
    def is_control(self) -> bool:
        return self.verdict is None

    @property
    def beside(self) -> Mapping[str, Judgement]:
        """By control."""
        return {} if self.verdict is None else {each.control: each.judgement for each in self.verdict.against}

    @property
    def beats_all(self) -> bool:
        """Whether the method is better than every control, by a test where there is one."""
        return self.verdict is not None and self.verdict.beats_all


@dataclass(frozen=True, kw_only=True)
class Board:
    """The methods under one measure and reference, the most faithful first."""

    measure: str
    reference: str
    about: Mapping[str, Any]
    """As in `measures` of results.json."""
    meaning: str
    """Of the reference."""
    is_headline: bool
    """Whether it is shown by default; see `verdicts.is_headline`."""
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


def load_sources(paths: Sequence[Path], labels: Sequence[str] = ()) -> list[Source]:
    """Reads and checks folders of results.

    Args:
        paths: the folders.
        labels: what to call each; without any, the shortest ends of the paths that differ.

    Raises:
        DataError: a folder holds none, or they are damaged; labels are not one for each, or not different.
    """
    found = labels_of(paths)
    if labels:
        if len(labels) != len(paths):
            raise DataError(
                f"got {len(labels)} labels for {len(paths)} folders of results; give --label once for each"
            )
        found = [" ".join(label.split()) for label in labels]
        if len(set(found)) < len(found) or not all(found):
            raise DataError(f"got labels {', '.join(map(repr, labels))}; expected different names")
    return [_load(path, label) for path, label in zip(paths, found, strict=True)]


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
    """Those shown by default first."""
    summary = results.summary
    meanings = summary["protocol"].get("references", {})
    verdicts = {
        (each.measure, each.reference, each.method): each for each in verdicts_of(summary, headline=False)
    }
    keys = list(dict.fromkeys((score["measure"], score["reference"]) for score in summary["scores"]))
    for key in sorted(keys, key=lambda key: not is_headline(key[0], key[1], keys)):
        about, compared = summary["measures"][key[0]], comparisons_of(summary, key)
        scores = _of(summary["scores"], key)
        places = {
            place["method"]: place
            for ranked in _of(summary["ranks"], key)
            for place in ranked["places"] or ()
        }
        standings = [
            _standing(
                score, places.get(score["method"]), compared.pairs, verdicts.get((*key, score["method"]))
            )
            for score in scores
        ]
        yield Board(
            measure=key[0],
            reference=key[1],
            about=about,
            meaning=str(meanings.get(key[1], "")),
            is_headline=is_headline(*key, keys),
            standings=sorted(standings, key=lambda each: _merit(each, about["faithful"])),
            pairs=compared.pairs,
            untested="" if compared.tested else OF_ALL_FRAMES,
            fractions=fractions_of(about, scores),
        )


def _of(entries: Sequence[Mapping[str, Any]], key: tuple[str, str]) -> list[Mapping[str, Any]]:
    return [entry for entry in entries if (entry["measure"], entry["reference"]) == key]


def _standing(
    score: Mapping[str, Any],
    place: Mapping[str, Any] | None,
    pairs: Sequence[Mapping[str, Any]],
    verdict: Verdict | None,
) -> Standing:
    controls = () if verdict is None else [each.control for each in verdict.against]
    compared = {name: pair_of(pairs, score["method"], name) for name in controls}
    return Standing(
        method=score["method"],
        score=score,
        place=place,
        verdict=verdict,
        comparisons={name: pair for name, pair in compared.items() if pair is not None},
    )


def _merit(standing: Standing, faithful: str) -> tuple[bool, float]:
    mean = standing.score["value"]["mean"]
    if mean is None:
        return (True, 0.0)
    return (False, -mean if faithful == "high" else mean)
