"""What comparisons show of a method: judged, or what is lacking to judge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from driving_xai.metrics.statistics import LEAST_BLOCKS, BlockBootstrap

Judgement = Literal["better", "worse", "better by interval", "worse by interval", "not shown", "unknown"]
"""Of a method against a control. Better or worse takes both: the whole interval of the difference on one side
of zero, and a test that points to the same side, with a corrected p no larger than the interval's level allows.
With few blocks either alone is too easily had, and a few large blocks can turn the mean against most of them. Where a value is of all frames together there is no test, and the judgement is by the interval.
Unknown is without an interval."""


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
    if low <= 0 <= high or (tested and (p > 1 - level or not _points_to(pair["rank_biserial"], low))):
        return "not shown"
    if (low > 0) == (faithful == "high"):
        return "better" if tested else "better by interval"
    return "worse" if tested else "worse by interval"


def _points_to(rank_biserial: float | None, end: float) -> bool:
    """Whether a two-sided test speaks for the side of zero that an interval lies on."""
    return rank_biserial is not None and rank_biserial * end > 0


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
        if None not in (pair["p"], pair["blocks"])
        and (pair["method"] in controls) != (pair["other"] in controls)
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
    blocks = BlockBootstrap(block=block).blocks(frames)
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
UNTESTED: Mapping[str, Any] = {
    **dict.fromkeys(("p", "p_holm", "blocks", "rank_biserial", "cohens_dz", "cliffs_delta")),
    "reason": OF_ALL_FRAMES,
}
"""What a comparison has in place of a test where the value is of all frames together."""


def comparisons_of(summary: Mapping[str, Any], key: tuple[str, str]) -> Comparisons:
    """The comparisons of one score; of values of all frames together its differences in the same form.

    Args:
        summary: the content of results.json.
        key: measure and reference.
    """
    pairs = [pair for pair in summary["comparisons"] if (pair["measure"], pair["reference"]) == key]
    if any(pair.get("reason") != OF_ALL_FRAMES for pair in pairs):
        return Comparisons(pairs, True)
    differences = [each for each in summary["differences"] if (each["measure"], each["reference"]) == key]
    untested = [
        {**each, "method": each["method"], "other": each["control"], **UNTESTED} for each in differences
    ]
    return Comparisons([*untested, *pairs], not untested)


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
