"""What is left of each method over the controls under the fill that suits it least.

An order that was made for one fill may be worth nothing under another, and an area under one fill can be
doubled by such an order. What holds is the margin over the controls that is left under every fill.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from driving_xai.evaluation.claims import claim_of
from driving_xai.evaluation.fills import AT
from driving_xai.evaluation.judgement import Judgement, judge, pair_of, smallest_p
from driving_xai.evaluation.verdicts import chance, is_headline, number
from driving_xai.fills import CurveFill
from driving_xai.metrics.comparison import holm

Scored = Mapping[tuple[str, str, str], Mapping[str, Mapping[str, Any]]]
"""By measure, reference and method the scores under each fill."""
Margins = Mapping[tuple[str, str, str], Mapping[tuple[str, str], Mapping[str, Any]]]
"""By measure, reference and method the margin of each fill and control."""

_OF_ONE = ("mean", "low", "high", "p_holm", "rank_biserial")
"""What is saved of the margin under one fill and over one control."""


def headlines(
    summary: Mapping[str, Any], named: Mapping[str, tuple[str, CurveFill | None]]
) -> list[dict[str, Any]]:
    """The smallest margin of each method over its best control, under any of the fills.

    A margin is the mean difference from a control, frame by frame, positive where the method is more faithful.
    What the unedited frame has already is the same for both and cancels, so a margin needs no base correction.

    Args:
        summary: `scores`, `comparisons`, `measures` and `controls` of results.json.
        named: see `fills.under_fills`.

    Returns:
        Objects as docs/results.md describes them under `fills`, for each measure, reference and method.
    """
    found: dict[tuple[str, str, str], dict[str, Mapping[str, Any]]] = {}
    for score in summary["scores"]:
        measure, fill = named[score["measure"]]
        if fill is not None:
            found.setdefault((measure, score["reference"], score["method"]), {})[fill] = score
    corrected = _corrected(summary, found)
    return [
        _headline(key, by_fill, found, corrected, summary)
        for key, by_fill in found.items()
        if key[2] not in summary["controls"]
    ]


def _corrected(summary: Mapping[str, Any], found: Scored) -> Margins:
    """Every margin, with p corrected (Holm) for all methods, controls and fills of a measure and reference."""
    margins: dict[tuple[str, str, str], dict[tuple[str, str], dict[str, Any]]] = {}
    for key, by_fill in found.items():
        if key[2] in summary["controls"]:
            continue
        margins[key] = {
            (fill, control): _margin(summary, score, control)
            for fill, score in by_fill.items()
            for control in summary["controls"]
        }
    for family in dict.fromkeys(key[:2] for key in margins):
        tested = [
            margin
            for key, of_method in margins.items()
            if key[:2] == family
            for margin in of_method.values()
            if margin["p"] is not None
        ]
        for margin, p in zip(tested, holm([each["p"] for each in tested]), strict=True):
            margin |= {"p_holm": p, "comparisons": len(tested)}
    return margins


def _margin(summary: Mapping[str, Any], score: Mapping[str, Any], control: str) -> dict[str, Any]:
    of_score = [
        pair
        for pair in summary["comparisons"]
        if (pair["measure"], pair["reference"]) == (score["measure"], score["reference"])
    ]
    pair = pair_of(of_score, score["method"], control)
    nothing = {"p": None, "p_holm": None, "rank_biserial": None, "blocks": None, "comparisons": 0}
    if pair is None:
        reason = "no frame has both values"
        return {**nothing, "mean": None, "low": None, "high": None, "reason": reason}
    value = pair["value"]
    found = {
        "rank_biserial": pair["rank_biserial"],
        **{name: value[name] for name in ("mean", "low", "high")},
    }
    if summary["measures"][score["measure"]]["faithful"] == "low":
        found = {name: None if each is None else -each for name, each in found.items()}
        found["low"], found["high"] = found["high"], found["low"]
    if reason := pair.get("reason") or value.get("reason"):
        found["reason"] = reason
    return {**nothing, **found, "p": pair["p"], "blocks": pair["blocks"]}


def _headline(
    key: tuple[str, str, str],
    by_fill: Mapping[str, Mapping[str, Any]],
    found: Scored,
    corrected: Margins,
    summary: Mapping[str, Any],
) -> dict[str, Any]:
    measure, reference, method = key
    margins = corrected[key]
    statistic = "base_corrected" if all("base_corrected" in each for each in by_fill.values()) else "value"
    entry: dict[str, Any] = {"measure": measure, "reference": reference, "method": method}
    entry |= {"fills": list(by_fill), "statistic": statistic}
    entry["loss"] = _loss(margins, summary["intervals"]["level"])
    unknown = [each for each in margins.values() if each["mean"] is None]
    if unknown or not margins:
        reason = unknown[0]["reason"] if unknown else "no control was scored"
        nothing = {"mean": None, "low": None, "high": None, "reason": reason}
        rest: dict[str, Any] = {
            "mean": None,
            "controls": {},
            "p_holm": None,
            "rank_biserial": None,
            "blocks": None,
            "comparisons": 0,
        }
        return {**entry, **rest, "fill": None, "control": None, "margin": nothing, "by_fill": {}}
    fill, control = worst = min(margins, key=lambda each: margins[each]["mean"])
    under = {
        name: found[measure, reference, name][fill][statistic]["mean"]
        for name in summary["controls"]
        if (measure, reference, name) in found
    }
    return {
        **entry,
        "fill": fill,
        "control": control,
        **_whole(margins, worst),
        "mean": by_fill[fill][statistic]["mean"],
        "controls": under,
        "by_fill": {each: _of_fill(margins, each) for each in by_fill},
    }


def _loss(margins: Mapping[tuple[str, str], Mapping[str, Any]], level: float) -> dict[str, Any] | None:
    """The largest loss that is shown by itself, whatever is known of the other fills and controls."""
    lost = {
        each: margin
        for each, margin in margins.items()
        if judge({**margin, "value": margin}, faithful="high", level=level) == "worse"
    }
    if not lost:
        return None
    fill, control = worst = min(lost, key=lambda each: lost[each]["mean"])
    return {"fill": fill, "control": control, **{name: lost[worst][name] for name in _OF_ONE}}


def _whole(margins: Mapping[tuple[str, str], Mapping[str, Any]], worst: tuple[str, str]) -> dict[str, Any]:
    """The smallest margin with what can be said of all of them together.

    Its interval reaches from the lowest end of all to the highest, which leaves out the smallest true margin on
    neither side more often than a single interval does: the upper end of the margin that was selected as the
    smallest would lie too low. Every margin has to be shown, so that p is the largest of all, and the smallest rank
    correlation says whether every test is in favour.
    """
    smallest = margins[worst]
    lows, highs = ([each[end] for each in margins.values()] for end in ("low", "high"))
    known = None not in (*lows, *highs)
    ends = {"low": min(lows), "high": max(highs)} if known else {"low": None, "high": None}
    reasons = [each["reason"] for each in margins.values() if each.get("reason")]
    margin = {"mean": smallest["mean"], **ends}
    if not known:
        margin["reason"] = reasons[0] if reasons else "no interval is known"
    p_values, ranks = ([each[name] for each in margins.values()] for name in ("p_holm", "rank_biserial"))
    return {
        "margin": margin,
        "p_holm": None if None in p_values else max(p_values),
        "rank_biserial": None if None in ranks else min(ranks),
        "blocks": smallest["blocks"],
        "comparisons": smallest["comparisons"],
    }


def _of_fill(margins: Mapping[tuple[str, str], Mapping[str, Any]], fill: str) -> dict[str, Any]:
    """The smallest margin under one fill, with its own interval."""
    of_fill = {control: each for (under, control), each in margins.items() if under == fill}
    best = min(of_fill, key=lambda control: of_fill[control]["mean"])
    return {"control": best, **{name: of_fill[best][name] for name in _OF_ONE}}


def judge_headline(entry: Mapping[str, Any], level: float) -> Judgement:
    """Whether a method is shown to beat every control under every fill, or to lose to one under one.

    Args:
        entry: of `fills` of results.json.
        level: of the intervals.
    """
    if entry["loss"] is not None:
        return "worse"
    return judge({**entry, "value": entry["margin"]}, faithful="high", level=level)


def sentence(entry: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """The verdict over all fills for a reader who knows no statistics.

    Args:
        entry: of `fills` of results.json.
        summary: the content of results.json.
    """
    level, margin = summary["intervals"]["level"], entry["margin"]
    claim = claim_of(summary["measures"][f"{entry['measure']}{AT}{entry['fills'][0]}"])
    *others, last = entry["fills"]
    each_fill = f"under each fill ({', '.join(others)} and {last})"
    judgement = judge_headline(entry, level)
    if (loss := entry["loss"]) is not None:
        lost = f"{claim.subject} {claim.verb} {claim.less} than {claim.control(loss['control'])}"
        return (
            f"Under {loss['fill']} {lost} (margin {number(loss['mean'])}, {number(loss['low'])} to "
            f"{number(loss['high'])}, p {chance(loss['p_holm'])})."
        )
    whole = f"{claim.subject} {claim.verb} {claim.more} than every control's {each_fill}"
    if judgement == "unknown":
        return (
            f"Too little was scored to tell whether {whole}: {margin.get('reason', 'no interval is known')}."
        )
    least = (
        f"the smallest margin is {number(margin['mean'])} above {claim.control(entry['control'])}, under "
        f"{entry['fill']} (over all fills and controls {number(margin['low'])} to {number(margin['high'])}, largest p "
        f"{chance(entry['p_holm'])})"
    )
    if judgement == "better":
        return f"{whole[0].upper()}{whole[1:]}: {least}."
    text = f"No evidence that {whole}: {least}."
    if entry["blocks"] is not None and entry["comparisons"] * smallest_p(entry["blocks"]) > 1 - level:
        text += (
            f" With {entry['blocks']} blocks of frames and {entry['comparisons']} comparisons no difference could "
            "be shown, however large."
        )
    return text


def by_default(found: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], bool]]:
    """Each headline with whether it is shown by default: against the recorded truth it is not."""
    keys = [(each["measure"], each["reference"]) for each in found]
    yield from ((each, is_headline(*key, keys)) for each, key in zip(found, keys, strict=True))
