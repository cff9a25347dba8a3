"""Two results against each other: two models, or two versions of one, on the same frames.

No model is run: the values are those that both tables hold for a frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from driving_xai.evaluation.claims import Claim, claim_of
from driving_xai.evaluation.judgement import Judgement, judge
from driving_xai.evaluation.results import TEXT_COLUMNS, Results
from driving_xai.evaluation.summary import compare_pair
from driving_xai.evaluation.verdicts import chance, in_words, is_headline, number
from driving_xai.metrics.comparison import holm
from driving_xai.metrics.statistics import BlockBootstrap

Compared = Literal["error", "above random", "value"]
"""The model's own error, a method's value above that of random pixels of the same model, or the value itself
where a random order was not scored."""
_FIRST, _SECOND, _ALL = "first", "second", "scored"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One quantity of two models, frame by frame."""

    what: Compared
    score: tuple[str, str] | None
    """Measure and reference; None of the model's error."""
    method: str
    """Empty of the model's error."""
    means: tuple[float, float]
    """Of both models, over the frames of both."""
    unit: str
    faithful: str
    """`high` or `low`: which end is good."""
    claim: Claim
    """What the measure can say; nothing of the model's error."""
    pair: Mapping[str, Any]
    """As in `comparisons` of results.json: the first model less the second."""
    judgement: Judgement
    """Of the first model."""

    @property
    def name(self) -> str:
        """What is compared, in words."""
        if self.score is None:
            return "error of the model"
        above = " above random" if self.what == "above random" else ""
        return f"{self.method} by {in_words(*self.score)}{above}"

    def sentence(self, first: str, second: str) -> str:
        """The finding for a reader who knows no statistics.

        Args:
            first: name of the first model.
            second: name of the second.
        """
        numbers = f"{number(self.means[0])} against {number(self.means[1])}"
        if self.score is None:
            numbers += f" {self.unit}"
        if self.pair["p_holm"] is not None:
            numbers += f", p {chance(self.pair['p_holm'])}"
        if self.score is not None:
            numbers += f"; {in_words(*self.score)}"
        opening = {
            "not shown": "No evidence that ",
            "unknown": "Too little was scored to tell whether ",
        }.get(self.judgement, "")
        claim = self._claim(first, second)
        caveat = f" {self.claim.caveat}" if self.score is not None and self.claim.caveat else ""
        return f"{opening}{claim if opening else claim[0].upper() + claim[1:]} ({numbers}).{caveat}"

    def _claim(self, first: str, second: str) -> str:
        differs = self.judgement in ("better", "worse")
        if self.score is None:
            smaller = "smaller" if self.judgement == "better" else "larger"
            return (
                f"the error of {first} is {smaller} than that of {second}"
                if differs
                else f"the errors of {first} and {second} differ"
            )
        more = self.claim.more if self.judgement == "better" else self.claim.less
        compared = (
            f"{more} for {first} than for {second}" if differs else f"differently for {first} and {second}"
        )
        above = f", counted above {self.claim.yardstick}" if self.what == "above random" else ""
        return f"{self.claim.subject_of(self.method)} {self.claim.verb} {compared}{above}"


@dataclass(frozen=True, kw_only=True)
class ModelComparison:
    """Two models on the frames that both were scored on."""

    first: str
    second: str
    frames: int
    differences: Sequence[Difference]
    notes: Sequence[str]
    """What could not be compared and why, a sentence each."""

    @property
    def sentences(self) -> list[str]:
        """The findings, the model's error first."""
        return [each.sentence(self.first, self.second) for each in self.differences]

    def as_json(self) -> dict[str, Any]:
        """The whole comparison as JSON values."""
        found = [
            {
                "what": each.what,
                "measure": None if each.score is None else each.score[0],
                "reference": None if each.score is None else each.score[1],
                "method": each.method or None,
                "means": list(each.means),
                "unit": each.unit,
                "faithful": each.faithful,
                **each.pair,
                "judgement": each.judgement,
                "sentence": each.sentence(self.first, self.second),
            }
            for each in self.differences
        ]
        names = {"first": self.first, "second": self.second, "frames": self.frames}
        return {**names, "differences": found, "notes": list(self.notes)}


def compare_models(first: Results, second: Results, names: tuple[str, str]) -> ModelComparison:
    """Compares two results frame by frame: the models' errors, and each method under each score of both.

    The interval is that of the mean difference by a paired block bootstrap, p of Wilcoxon's signed-rank test
    on block means, corrected (Holm) for everything that is compared here. A method is compared by how far it is
    above the random order of its own model: a model that reacts to any edit has large areas by every method.

    Args:
        first: of one model.
        second: of the other.
        names: of both, for sentences.
    """
    ours, theirs = _indexed(first), _indexed(second)
    shared = ours.index.unique().intersection(theirs.index.unique())
    reason = _why_not(first, second, ours, theirs, shared)
    if reason:
        return ModelComparison(first=names[0], second=names[1], frames=0, differences=(), notes=(reason,))
    bootstrap = _bootstrap(first)
    notes = list(_measured_otherwise(first, second))
    found = [*_errors(first, ours, theirs, bootstrap), *_scores(first, second, ours, theirs, bootstrap)]
    if len(shared) < ours.index.nunique():
        notes.append(f"{len(shared):,} of {ours.index.nunique():,} frames are in both results.")
    return ModelComparison(
        first=names[0],
        second=names[1],
        frames=len(shared),
        differences=_corrected(found, bootstrap.level),
        notes=tuple(notes),
    )


def _indexed(results: Results) -> pd.DataFrame:
    """Rows by frame: an image by its file, in whatever shards it lies."""
    rows = results.without_curves
    # Categories of two results differ, and so their indexes would.
    table = rows.astype(dict.fromkeys(TEXT_COLUMNS, object))
    named = bool(len(table)) and (table["key"].fillna("") != "").all()
    columns = (
        ["drive", "camera", "key", "target"] if named else ["drive", "camera", "frame", "time_ns", "target"]
    )
    return table.set_index(columns)


def _why_not(
    first: Results, second: Results, ours: pd.DataFrame, theirs: pd.DataFrame, shared: pd.MultiIndex
) -> str:
    if ours.index.names != theirs.index.names or not len(shared):
        return (
            "They share no frames, so they are not compared: score both models on the same drive and target."
        )
    hashes = [each.summary["plan"].get("shards_sha256") for each in (first, second)]
    if hashes[0] == hashes[1] is not None:
        return ""
    truths = [
        _per_frame(table, "truth").reindex(shared).to_numpy(dtype=np.float64) for table in (ours, theirs)
    ]
    if np.isnan(truths[0]).all() or not np.allclose(
        truths[0], truths[1], rtol=1e-4, atol=1e-4, equal_nan=True
    ):
        return (
            "They name the same frames, but their shards differ and so does what was recorded, or it is unknown: "
            "not compared, as they may be of different drives."
        )
    return ""


def _per_frame(table: pd.DataFrame, column: str) -> pd.Series:
    return table[column].groupby(level=list(range(table.index.nlevels)), sort=False).first()


def _bootstrap(results: Results) -> BlockBootstrap:
    names = ("block", "resamples", "level", "seed")
    return BlockBootstrap(**{name: results.summary["intervals"][name] for name in names})


def _measured_otherwise(first: Results, second: Results) -> Iterator[str]:
    for name, about in first.summary["measures"].items():
        if name in second.summary["measures"] and second.summary["measures"][name] != about:
            yield f"{name} was measured with other settings and is not compared."


def _errors(
    first: Results, ours: pd.DataFrame, theirs: pd.DataFrame, bootstrap: BlockBootstrap
) -> Iterator[Difference]:
    errors = [_per_frame(table, "error") for table in (ours, theirs)]
    if all(each.notna().any() for each in errors):
        unit = str(first.summary["prediction"].get("unit", ""))
        yield _difference(
            errors[0],
            errors[1],
            bootstrap,
            scored=errors[0],
            what="error",
            score=None,
            method="",
            about={"unit": unit, "faithful": "low"},
        )


def _scores(
    first: Results, second: Results, ours: pd.DataFrame, theirs: pd.DataFrame, bootstrap: BlockBootstrap
) -> Iterator[Difference]:
    for key, method in _shared_scores(first, second):
        about = first.summary["measures"][key[0]]
        values = [_values(table, key, method) for table in (ours, theirs)]
        chance_level = [_values(table, key, "random") for table in (ours, theirs)]
        above = [value - random for value, random in zip(values, chance_level, strict=True)]
        what: Compared = "above random" if all(each.notna().any() for each in above) else "value"
        compared = above if what == "above random" else values
        if all(each.notna().any() for each in compared):
            yield _difference(
                compared[0],
                compared[1],
                bootstrap,
                scored=values[0],
                what=what,
                score=key,
                method=method,
                about=about,
            )


def _shared_scores(first: Results, second: Results) -> Iterator[tuple[tuple[str, str], str]]:
    """The scores that both results show by default, measured alike, the controls left out."""
    keys = [(score["measure"], score["reference"]) for score in first.summary["scores"]]
    others = {(score["measure"], score["reference"], score["method"]) for score in second.summary["scores"]}
    for key, score in zip(keys, first.summary["scores"], strict=True):
        alike = first.summary["measures"][key[0]] == second.summary["measures"].get(key[0])
        is_method = score["method"] not in first.summary["controls"]
        if alike and is_method and (*key, score["method"]) in others and is_headline(*key, keys):
            yield key, score["method"]


def _values(table: pd.DataFrame, key: tuple[str, str], method: str) -> pd.Series:
    """By frame, less what the unedited frame has already where that is known: models err differently."""
    rows = table[(table["measure"] == key[0]) & (table["reference"] == key[1]) & (table["method"] == method)]
    return rows["base_corrected"].fillna(rows["value"])


def _difference(
    ours: pd.Series,
    theirs: pd.Series,
    bootstrap: BlockBootstrap,
    *,
    scored: pd.Series,
    what: Compared,
    score: tuple[str, str] | None,
    method: str,
    about: Mapping[str, Any],
) -> Difference:
    """Not judged yet: that takes p corrected for all that is compared.

    Args:
        scored: has a value for each frame that a block counts.
        about: its `unit`, its `kind`, and which end is `faithful`.
    """
    values = pd.DataFrame(
        {_ALL: scored, _FIRST: ours.reindex(scored.index), _SECOND: theirs.reindex(scored.index)}
    )
    both = values[[_FIRST, _SECOND]].dropna()
    return Difference(
        what=what,
        score=score,
        method=method,
        means=(float(both[_FIRST].mean()), float(both[_SECOND].mean())),
        unit=str(about.get("unit", "")).replace(" x ", " × "),
        faithful=about["faithful"],
        claim=claim_of(about),
        pair=compare_pair(values, _FIRST, _SECOND, bootstrap),
        judgement="unknown",
    )


def _corrected(found: Sequence[Difference], level: float) -> list[Difference]:
    """With p corrected for all of them, and judged by it."""
    tested = iter(holm([each.pair["p"] for each in found if each.pair["p"] is not None]))
    done = []
    for each in found:
        pair = {**each.pair, "p_holm": None if each.pair["p"] is None else next(tested)}
        done.append(replace(each, pair=pair, judgement=judge(pair, faithful=each.faithful, level=level)))
    return done
