"""Thresholds that a score has to keep, for continuous integration."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from driving_xai.evaluation.fills import AT
from driving_xai.evaluation.references import as_saved, spoken

_FORM = re.compile(r"(?:(?P<method>[^:/=]+):)?(?P<measure>[^:/=]+)(?:/(?P<reference>[^:/=]+))?=(?P<value>.+)")


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """The least faithful value that is accepted, in the unit of the measure's `value`."""

    measure: str
    """Of a run under several fills without a fill every one of them, `deletion`; with one that alone,
    `deletion@mean`."""
    value: float
    method: str | None = None
    """None stands for every method that is not a control."""
    reference: str | None = None
    """None stands for every reference of the measure."""

    @classmethod
    def parse(cls, text: str) -> Threshold:
        """Reads `[METHOD:]MEASURE[/REFERENCE]=VALUE`.

        Raises:
            ValueError: the text has another form.

        Example:
            >>> Threshold.parse("grad-cam:deletion/truth=12.5").value
            12.5
        """
        found = _FORM.fullmatch(text.strip())
        try:
            value = float(found["value"]) if found else None
        except ValueError:
            value = None
        if found is None or value is None or value != value:
            raise ValueError(
                f"got {text!r}, expected [METHOD:]MEASURE[/REFERENCE]=VALUE, such as deletion/truth=12.5"
            )
        return cls(
            method=found["method"],
            measure=found["measure"],
            reference=None if found["reference"] is None else as_saved(found["reference"]),
            value=value,
        )

    def names(self, measure: str) -> bool:
        """Whether a measure of results is meant, by its name there.

        Example:
            >>> Threshold(measure="deletion", value=1).names("deletion@blur")
            True
            >>> Threshold(measure="deletion@mean", value=1).names("deletion@blur")
            False
        """
        return self.measure in (measure, measure.partition(AT)[0])


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One score held against one threshold."""

    method: str
    measure: str
    reference: str
    threshold: float
    met: bool
    reason: str
    """What was found, in one line."""


def verdicts(summary: Mapping[str, Any], threshold: Threshold) -> list[Verdict]:
    """Holds scores against a threshold: one is met only if the whole interval of the mean keeps it.

    Where a faithful map has low values, keeping it means to stay at or below. A score without an interval
    is not met: too few frames prove nothing.

    Args:
        summary: the content of results.json.
        threshold: for one or several of its scores.

    Raises:
        ValueError: the results hold no such score; the message lists those they hold.
    """
    chosen = [score for score in summary["scores"] if _is_meant(score, threshold, summary["controls"])]
    if not chosen:
        known = sorted({f"{s['method']}:{s['measure']}/{spoken(s['reference'])}" for s in summary["scores"]})
        raise ValueError(f"got a threshold for {_name(threshold)}, expected one of: {', '.join(known)}")
    return [_judge(score, summary["measures"][score["measure"]], threshold.value) for score in chosen]


def _is_meant(score: Mapping[str, Any], threshold: Threshold, controls: Sequence[str]) -> bool:
    by_method = (
        score["method"] not in controls if threshold.method is None else score["method"] == threshold.method
    )
    return (
        by_method and threshold.names(score["measure"]) and threshold.reference in (None, score["reference"])
    )


def _name(threshold: Threshold) -> str:
    reference = "any reference" if threshold.reference is None else spoken(threshold.reference)
    return f"{threshold.method or 'any method'}:{threshold.measure}/{reference}"


def _judge(score: Mapping[str, Any], measure: Mapping[str, Any], value: float) -> Verdict:
    found, high = score["value"], measure["faithful"] == "high"
    worst = found["low"] if high else found["high"]
    if worst is None:
        met, reason = False, f"no interval: {found['reason']}"
    else:
        met = worst >= value if high else worst <= value
        side, bound = ("lower", "at least") if high else ("upper", "at most")
        reason = f"mean {found['mean']:.4g}, {side} end {worst:.4g}, expected {bound} {value:g}"
    names = {name: score[name] for name in ("method", "measure", "reference")}
    return Verdict(**names, threshold=value, met=met, reason=reason)
