"""Verdicts as sentences: whether the highlighted pixels matter more than a control's, or why nobody can say.

The terminal, the film, the live page and the report all take their sentences from here, so that they agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from driving_xai.evaluation.claims import claim_of
from driving_xai.evaluation.judgement import (
    Judgement,
    comparisons_of,
    is_constant,
    judge,
    out_of_reach,
    pair_of,
    why_unknown,
)
from driving_xai.metrics.statistics import LEAST_BLOCKS

_AGAINST: Mapping[str, str] = {
    "clean": "against the unmodified prediction",
    "truth": "against the recorded truth",
}
"""References that have an alternative, in words; the others go with their measure."""
TRUTH_WARNING = (
    "Values against the recorded truth contain the model's own error and mostly follow it (rank correlation "
    "0.64 to 0.95 on the drives tried): large where the model is wrong, not where the explanation is right."
)
_ORDER: Sequence[Judgement] = (
    *("better", "better by interval", "worse", "worse by interval"),
    *("not shown", "unknown"),
)
_SO_FAR: Mapping[Judgement, tuple[str, str]] = {
    "better": (
        "matters more than random so far",
        "So far the highlighted pixels matter more than random ones",
    ),
    "worse": (
        "matters less than random so far",
        "So far the highlighted pixels matter less than random ones",
    ),
    "not shown": (
        "not shown to matter more than random",
        "So far there is no evidence that the highlighted pixels matter more than random ones",
    ),
}
"""Of a drive that is still playing: for the corner of a picture, and as a sentence."""
_AREAS = ("curve", "difference of curves")


def number(value: float | None, *, digits: int = 3) -> str:
    """A number in a sentence or a table, with as many digits as a reader can use.

    Example:
        >>> number(1234.567), number(999.6), number(231.4), number(15.0), number(-0.0471), number(None)
        ('1,235', '1,000', '231', '15', '−0.0471', '–')
    """
    if value is None:
        return "–"
    whole = abs(value) >= 10**digits - 0.5  # What would round to one digit more is no power of ten.
    return (f"{value:,.0f}" if whole else f"{value:.{digits}g}").replace("-", "−")


def chance(p: float | None) -> str:
    """A p-value as papers print it.

    Example:
        >>> chance(0.00001), chance(0.0312), chance(None)
        ('< 0.001', '0.031', '–')
    """
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def in_words(measure: str, reference: str) -> str:
    """A measure and, where there is a choice, what it is against.

    Example:
        >>> in_words("deletion", "clean"), in_words("auroc", "cause")
        ('deletion, against the unmodified prediction', 'auroc')
    """
    return f"{measure}, {_AGAINST[reference]}" if reference in _AGAINST else measure


def is_headline(measure: str, reference: str, known: Sequence[tuple[str, str]]) -> bool:
    """Whether a score is shown by default: against the recorded truth only where there is nothing else.

    Args:
        measure: its name.
        reference: what the measure compares with.
        known: measure and reference of all scores.
    """
    return reference != "truth" or (measure, "clean") not in known


class Against(NamedTuple):
    """One method against one control."""

    control: str
    judgement: Judgement
    value: float | None
    """The control's mean."""
    p: float | None
    """Corrected; None where no test is made."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one score says of one method.

    Example:
        >>> about = {"kind": "curve", "faithful": "high"}
        >>> random, middle = Against("random", "better", 15.2, 0.0471), Against("centre-prior", "not shown", 220.4, 0.45)
        >>> Verdict(method="lime", measure="deletion", reference="clean", about=about, value=231.0, against=(random,)).sentence
        'The highlighted pixels matter more than random ones (area 231 against 15.2, p 0.047).'
        >>> Verdict(
        ...     method="lime", measure="deletion", reference="clean", about=about, value=231.0, against=(middle,)
        ... ).sentence
        'No evidence that the highlighted pixels matter more than those in the middle of the frame (area 231 against 220, p 0.450).'
    """

    method: str
    measure: str
    reference: str
    about: Mapping[str, Any]
    """The measure, as in `measures` of results.json."""
    value: float | None
    """The method's mean."""
    against: tuple[Against, ...]
    why_unknown: str = ""
    """What is lacking where a judgement is unknown."""
    out_of_reach: str = ""
    """Why no difference could have been shown, however large; empty where one could."""
    constant: bool = False
    """Whether every map is the same everywhere."""

    @property
    def beats_all(self) -> bool:
        """Whether the method is better than every control."""
        return bool(self.against) and all(each.judgement.startswith("better") for each in self.against)

    @property
    def sentence(self) -> str:
        """The verdict for a reader who knows no statistics, with the numbers in brackets."""
        if self.constant:
            return "Every map is the same everywhere, so it highlights nothing: there is nothing to judge."
        if not self.against:
            return "Nothing was scored to compare with."
        found: dict[Judgement, list[Against]] = {}
        for each in sorted(self.against, key=lambda each: _ORDER.index(each.judgement)):
            found.setdefault(each.judgement, []).append(each)
        clauses = [
            self._clause(judged, several, first=at == 0) for at, (judged, several) in enumerate(found.items())
        ]
        # Only what follows a success speaks against it.
        text = (", but " if next(iter(found)).startswith("better") else ", and ").join(clauses)
        more = [self.out_of_reach] if "not shown" in found else []
        ends = [each for each in (*more, claim_of(self.about).caveat) if each]
        return " ".join([f"{text[0].upper()}{text[1:]}.", *ends])

    def _clause(self, judgement: Judgement, several: Sequence[Against], *, first: bool) -> str:
        claim = claim_of(self.about)
        subject = claim.subject if first else claim.pronoun
        how = claim.less if judgement.startswith("worse") else claim.more
        either = "or" if judgement in ("not shown", "unknown") else "and"
        others = f" {either} ".join(self._other(each, named=at == 0) for at, each in enumerate(several))
        text = f"{subject} {claim.verb} {how} than {others}"
        if judgement == "not shown":
            return f"{'' if first else 'there is '}no evidence that {text}"
        if judgement == "unknown":
            return (
                f"too little was scored to tell whether {text}: {self.why_unknown or 'no interval is known'}"
            )
        return text

    def _other(self, each: Against, *, named: bool) -> str:
        """The control with the numbers; the first of a clause says what they are."""
        pixels = claim_of(self.about).control(each.control)
        if each.judgement == "unknown" or each.value is None or self.value is None:
            return pixels
        what = "area" if self.about.get("kind") in _AREAS else "score"
        low = ", where low is good" if self.about.get("faithful") == "low" and named else ""
        ours = f"{what} {number(self.value)} " if named else ""
        by = "by the interval, untested" if each.p is None else f"p {chance(each.p)}"
        return f"{pixels} ({ours}against {number(each.value)}{low}, {by})"


def verdicts_of(summary: Mapping[str, Any], *, headline: bool = True) -> list[Verdict]:
    """What results show of each method, under each score.

    Args:
        summary: the content of results.json.
        headline: only scores that are shown by default; see `is_headline`.
    """
    keys = list(dict.fromkeys((score["measure"], score["reference"]) for score in summary["scores"]))
    return [
        verdict
        for key in keys
        if not headline or is_headline(*key, keys)
        for verdict in _of_score(summary, key)
    ]


def _of_score(summary: Mapping[str, Any], key: tuple[str, str]) -> Iterator[Verdict]:
    scores = [score for score in summary["scores"] if (score["measure"], score["reference"]) == key]
    about, controls = summary["measures"][key[0]], summary["controls"]
    means = {score["method"]: score["value"]["mean"] for score in scores}
    compared, level = comparisons_of(summary, key), summary["intervals"]["level"]
    reach = out_of_reach(compared.pairs, controls, level)
    for score in scores:
        if score["method"] in controls:
            continue
        pairs = {name: pair_of(compared.pairs, score["method"], name) for name in controls if name in means}
        known = [
            Against(
                name,
                judge(pair, faithful=about["faithful"], level=level, tested=compared.tested),
                means[name],
                pair["p_holm"],
            )
            for name, pair in pairs.items()
            if pair is not None
        ]
        reasons = [str(pair.get("reason", "")) for pair in pairs.values() if pair is not None]
        yield Verdict(
            method=score["method"],
            measure=key[0],
            reference=key[1],
            about=about,
            value=score["value"]["mean"],
            against=tuple(known),
            why_unknown=why_unknown(summary, score, next(filter(None, reasons), "")),
            out_of_reach=reach,
            constant=is_constant(score),
        )


@dataclass(frozen=True, kw_only=True)
class SoFar:
    """What a drive has shown of a method up to now, against the random order; no test is made while it plays.

    Example:
        >>> seen = SoFar(value=231.0, random=15.2, difference=215.8, half_width=40.0, driven_s=60, block_s=5)
        >>> seen.short
        'matters more than random so far'
        >>> seen.sentence
        'So far the highlighted pixels matter more than random ones (area 231 against 15.2).'
        >>> SoFar(value=231.0, random=15.2, difference=215.8, half_width=float("nan"), driven_s=12, block_s=5).short
        'verdict after 40 s of driving (12 s so far)'
    """

    value: float
    """The method's mean area, on the frames that the random order is scored on too."""
    random: float
    """The random order's."""
    difference: float
    """Their mean difference, frame by frame."""
    half_width: float
    """Of its 95 % interval, which approximately holds at all looks together; NaN while there are fewer than eight blocks."""
    driven_s: float
    block_s: float
    """How long one of the interval's blocks lasts."""
    higher_is_faithful: bool = True

    @property
    def judgement(self) -> Judgement:
        """By the interval alone."""
        if not math.isfinite(self.half_width):
            return "unknown"
        if abs(self.difference) <= self.half_width:
            return "not shown"
        return "better" if (self.difference > 0) == self.higher_is_faithful else "worse"

    @property
    def short(self) -> str:
        """For the corner of a picture."""
        if self.judgement == "unknown":
            return f"verdict after {self._needed_s:.3g} s of driving ({math.floor(self.driven_s)} s so far)"
        return _SO_FAR[self.judgement][0]

    @property
    def sentence(self) -> str:
        """For a page."""
        if self.judgement == "unknown":
            so_far_s = math.floor(self.driven_s)
            return f"A verdict needs {self._needed_s:.3g} s of driving; {so_far_s} s were scored so far."
        return f"{_SO_FAR[self.judgement][1]} (area {number(self.value)} against {number(self.random)})."

    @property
    def _needed_s(self) -> float:
        return LEAST_BLOCKS * self.block_s
