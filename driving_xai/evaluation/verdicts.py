"""Verdicts as sentences: whether the highlighted pixels matter more than a control's, or why nobody can say.

The terminal, the film, the live page and the report all take their sentences from here, so that they agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from driving_xai.metrics.statistics import LEAST_BLOCKS

Judgement = Literal["better", "worse", "better by interval", "worse by interval", "not shown", "unknown"]
"""Of a method against a control. Better or worse takes both: the whole interval of the difference on one side
of zero, and a corrected p no larger than the interval's level allows. With few blocks either alone is too
easily had. Where a value is of all frames together there is no test, and the judgement is by the interval.
Unknown is without an interval."""

_AGAINST: Mapping[str, str] = {
    "clean": "against the unmodified prediction",
    "truth": "against the recorded truth",
}
"""References that have an alternative, in words; the others go with their measure."""
TRUTH_WARNING = (
    "Values against the recorded truth contain the model's own error and mostly follow it (rank correlation "
    "0.64 to 0.95 on the drives tried): large where the model is wrong, not where the explanation is right."
)
_OTHERS: Mapping[str, str] = {
    "random": "random ones",
    "centre-prior": "those in the middle of the frame",
}
"""The pixels of a control, as a sentence names them."""
_CLAIMS: Mapping[str, str] = {
    "localisation": "lie on the known causes",
    "rank correlation": "follow LIME's order",
}
"""What the highlighted pixels of a faithful map do, by the kind of measure; otherwise they matter."""
_ORDER: Sequence[Judgement] = (
    *("better", "better by interval", "worse", "worse by interval"),
    *("not shown", "unknown"),
)
_AREAS = ("curve", "difference of curves")


def number(value: float | None, *, digits: int = 3) -> str:
    """A number in a sentence, with as many digits as a reader can use.

    Example:
        >>> number(1234.567), number(231.4), number(15.0), number(-0.0471), number(None)
        ('1,235', '231', '15', '−0.0471', '–')
    """
    if value is None:
        return "–"
    return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}").replace("-", "−")


def chance(p: float | None) -> str:
    """A p-value as papers print it.

    Example:
        >>> chance(0.00001), chance(0.0312), chance(None)
        ('< 0.001', '0.031', '–')
    """
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def claim_of(about: Mapping[str, Any]) -> str:
    """What the highlighted pixels of a faithful map do.

    Args:
        about: a measure, as in `measures` of results.json.
    """
    return _CLAIMS.get(str(about.get("kind")), "matter")


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


def judge(pair: Mapping[str, Any], *, faithful: str, level: float, tested: bool = True) -> Judgement:
    """What a comparison shows of its first method.

    Args:
        pair: as in `comparisons` of results.json.
        faithful: `high` or `low`, which end is good.
        level: of the interval, 0.95.
        tested: False where the value is of all frames together, so that only an interval is known.
    """
    low, high, p = pair["value"]["low"], pair["value"]["high"], pair["p_holm"]
    if low is None or (tested and p is None):
        return "unknown"
    if low <= 0 <= high or (tested and p > 1 - level):
        return "not shown"
    if (low > 0) == (faithful == "high"):
        return "better" if tested else "better by interval"
    return "worse" if tested else "worse by interval"


def pair_of(pairs: Sequence[Mapping[str, Any]], method: str, other: str) -> Mapping[str, Any] | None:
    """The comparison of two methods, turned so that `method` comes first; None where there is none."""
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
        more = f" {self.out_of_reach}" if "not shown" in found and self.out_of_reach else ""
        return f"{text[0].upper()}{text[1:]}.{more}"

    def _clause(self, judgement: Judgement, several: Sequence[Against], *, first: bool) -> str:
        claim = claim_of(self.about)
        pixels = "the highlighted pixels" if first else "they"
        how = "less" if judgement.startswith("worse") else "more"
        either = "or" if judgement in ("not shown", "unknown") else "and"
        others = f" {either} ".join(self._other(each, named=at == 0) for at, each in enumerate(several))
        text = f"{pixels} {claim} {how} than {others}"
        if judgement == "not shown":
            return f"{'' if first else 'there is '}no evidence that {text}"
        if judgement == "unknown":
            return (
                f"too little was scored to tell whether {text}: {self.why_unknown or 'no interval is known'}"
            )
        return text

    def _other(self, each: Against, *, named: bool) -> str:
        """The control's pixels with the numbers; the first of a clause says what they are."""
        pixels = _OTHERS.get(each.control, f"those of {each.control}")
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


def out_of_reach(pairs: Sequence[Mapping[str, Any]], controls: Sequence[str], level: float) -> str:
    """Why no method could be shown to beat a control; empty where one could.

    The signed-rank test of n blocks has no p below 2 / 2^n, and Holm's correction multiplies the smallest by
    the number of comparisons.

    Args:
        pairs: as in `comparisons` of results.json, of one score.
        controls: names of methods.
        level: of the intervals.
    """
    tested = [
        pair["blocks"]
        for pair in pairs
        if pair["p"] is not None and (pair["method"] in controls) != (pair["other"] in controls)
    ]
    if not tested or len(tested) * smallest_p(max(tested)) <= 1 - level:
        return ""
    return (
        f"With {max(tested)} blocks of frames and {len(tested)} comparisons no difference could be shown, however "
        "large: score a longer drive, or fewer methods at once."
    )


def beforehand(
    frames: int, block: int, apart_s: float, *, comparisons: int, level: float = 0.95
) -> Iterator[str]:
    """What a drive is too short to show, said before it is scored.

    Args:
        frames: to score.
        block: of them.
        apart_s: between two of them.
        comparisons: of a method with a control, for each score.
        level: of the intervals.

    Example:
        >>> list(beforehand(15, 5, 1.0, comparisons=2))
        ['too short for a verdict: 15 s of driving are scored, and 40 s are needed (8 blocks of 5 s)']
        >>> list(beforehand(40, 5, 1.0, comparisons=2))
        []
    """
    blocks = frames // block
    if blocks < LEAST_BLOCKS:
        lacking = too_short(frames * apart_s, block * apart_s).replace("were scored", "are scored")
        yield f"too short for a verdict: {lacking}"
    elif comparisons * smallest_p(blocks) > 1 - level:
        yield (
            f"too short for so many methods: with {blocks} blocks and {comparisons} comparisons no difference can be "
            "shown, however large; score a longer drive, or fewer methods at once"
        )


def smallest_p(blocks: int) -> float:
    """The smallest p that the signed-rank test of so many blocks can give, two-sided."""
    return 2.0 ** (1 - blocks)


class Comparisons(NamedTuple):
    """Every two methods under one score."""

    pairs: Sequence[Mapping[str, Any]]
    """As in `comparisons` of results.json."""
    tested: bool
    """False where the value is of all frames together: then there are intervals of differences only."""


OF_ALL_FRAMES = "the value is of all frames together, and one frame has none to test or to place"


def comparisons_of(summary: Mapping[str, Any], key: tuple[str, str]) -> Comparisons:
    """The comparisons of one score; of values of all frames together its differences in the same form.

    Args:
        summary: the content of results.json.
        key: measure and reference.
    """
    pairs = [pair for pair in summary["comparisons"] if (pair["measure"], pair["reference"]) == key]
    if pairs:
        return Comparisons(pairs, True)
    differences = [each for each in summary["differences"] if (each["measure"], each["reference"]) == key]
    return Comparisons([_untested(each) for each in differences], not differences)


def _untested(difference: Mapping[str, Any]) -> dict[str, Any]:
    unknown = ("p", "p_holm", "blocks", "rank_biserial", "cohens_dz", "cliffs_delta")
    names = {"method": difference["method"], "other": difference["control"]}
    return {**difference, **names, **dict.fromkeys(unknown), "reason": OF_ALL_FRAMES}


def is_constant(score: Mapping[str, Any]) -> bool:
    """Whether every map of a method was the same everywhere, so that a random draw ordered its pixels."""
    return bool(score["frames"]) and score["degenerate"] == score["frames"]


def why_unknown(summary: Mapping[str, Any], score: Mapping[str, Any], reason: str) -> str:
    """What is lacking for an interval, in seconds of driving where they are known.

    Args:
        summary: the content of results.json.
        score: one of its `scores`.
        reason: as saved.
    """
    apart_s, block = summary["data"].get("seconds_apart"), summary["intervals"]["block"]
    if "fewer than" not in reason or not apart_s:
        return reason
    return too_short(score["frames"] * apart_s, block * apart_s)


def too_short(driven_s: float, block_s: float) -> str:
    """That a drive is too short for an interval.

    Example:
        >>> too_short(15, 5)
        '15 s of driving were scored, and 40 s are needed (8 blocks of 5 s)'
    """
    return (
        f"{driven_s:.3g} s of driving were scored, and {LEAST_BLOCKS * block_s:.3g} s are needed "
        f"({LEAST_BLOCKS} blocks of {block_s:.3g} s)"
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
    """The method's mean area."""
    random: float
    """The random order's."""
    difference: float
    """Their mean difference, frame by frame."""
    half_width: float
    """Of its 95 % interval; NaN while there are fewer than eight blocks."""
    driven_s: float
    block_s: float
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
            needed_s = LEAST_BLOCKS * self.block_s
            return f"verdict after {needed_s:.3g} s of driving ({math.floor(self.driven_s)} s so far)"
        said = {
            "better": "matters more than random so far",
            "worse": "matters less than random so far",
            "not shown": "not shown to matter more than random",
        }
        return said[self.judgement]

    @property
    def sentence(self) -> str:
        """For a page."""
        if self.judgement == "unknown":
            needed_s = LEAST_BLOCKS * self.block_s
            return f"A verdict needs {needed_s:.3g} s of driving; {math.floor(self.driven_s)} s were scored so far."
        said = {
            "better": "So far the highlighted pixels matter more than random ones",
            "worse": "So far the highlighted pixels matter less than random ones",
            "not shown": "So far there is no evidence that the highlighted pixels matter more than random ones",
        }
        return f"{said[self.judgement]} (area {number(self.value)} against {number(self.random)})."
