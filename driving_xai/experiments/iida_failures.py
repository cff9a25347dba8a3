"""Confusions of two classes and kinds of failed maps (Iida et al. 2022, Tables 3 and 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Bool, Float, Int64
from torch import Tensor

from driving_xai.experiments.runs import Found
from driving_xai.experiments.tables import markdown_header, markdown_row
from driving_xai.types import Saliency

FAILED_UNDER = 0.2
"""The PID score under which the paper calls a map failed."""
FAILED_BY = "PID 16"
"""The paper does not say which side it goes by; it names m = 16 where it speaks of one."""
_LITTLE = 0.02
_KINDS = {
    "IP": "the class is wrong",
    "OA": "more than half of the image is highlighted",
    "IA": "less than 2 % of it is",
    "WA": "other pixels than those that count are highlighted",
}
# IDRiD, DeFN.
_PAPER_3 = {"TP": (56, 161), "TN": (25, 7566), "FP": (9, 243), "FN": (13, 20)}
_PAPER_5 = {"IP": (12, 58), "OA": (16, 3), "IA": (3, 24), "WA": (1, 15)}


def confusions(
    predicted: Int64[Tensor, " N"], labels: Int64[Tensor, " N"], positive: int
) -> dict[str, float]:
    """How many images are right and wrong, of the positive class and of all others.

    Example:
        >>> confusions(torch.tensor([1, 1, 0, 0]), torch.tensor([1, 0, 0, 1]), positive=1)
        {'TP': 1.0, 'TN': 1.0, 'FP': 1.0, 'FN': 1.0}
    """
    said, true = predicted == positive, labels == positive
    counts = {"TP": said & true, "TN": ~said & ~true, "FP": said & ~true, "FN": ~said & true}
    return {name: float(found.sum()) for name, found in counts.items()}


def failures(
    score: Float[Tensor, " B"], right: Bool[Tensor, " B"], maps: Saliency, *, highlighted: float
) -> dict[str, float]:
    """How many maps failed, and of which kind; each is counted once, in the paper's order.

    Args:
        score: the PID score of each map.
        right: whether its image is classified rightly.
        maps: LABN's attention, in (0, 1).
        highlighted: attention over it is.

    Source: Iida et al. 2022, section 5.5. Deviation: theirs are told apart by eye; here a map that covers more than
    half of the image is over-attended, and one that covers less than 2 % insufficiently attended.
    """
    failed = score < FAILED_UNDER
    share = (maps > highlighted).double().mean((1, 2))
    over, little = share > 0.5, share < _LITTLE
    kinds = {"IP": ~right, "OA": right & over, "IA": right & little, "WA": right & ~over & ~little}
    return {
        "explained": float(len(score)),
        "failed": float(failed.sum()),
        **{name: float((failed & found).sum()) for name, found in kinds.items()},
    }


def lines_of_counts(runs: Sequence[Found], positive: str) -> list[str]:
    """Both tables, with the sums over runs and the paper's numbers."""
    sums = {
        name: {each: sum(run[name][each] for run in runs) for each in runs[0][name]}
        for name in ("confusions", "failures")
    }
    heads = (f"ours, {len(runs)} runs", "paper, IDRiD", "paper, DeFN")
    lines = [f"Test images of all runs together; positive is {positive} (Table 3).", ""]
    lines += _table("count", heads, sums["confusions"], _PAPER_3, {})
    failed = sums["failures"]
    lines += [
        "",
        f"{failed['failed']:.0f} of LABN's {failed['explained']:.0f} maps of positives have {FAILED_BY} under {FAILED_UNDER} "
        "(Table 5; the paper also counts negatives of DeFN, and tells kinds apart by eye).",
        "",
    ]
    return [*lines, *_table("failure", heads, failed, _PAPER_5, _KINDS)]


def _table(
    title: str,
    heads: Sequence[str],
    ours: Mapping[str, float],
    paper: Mapping[str, Sequence[int]],
    explained: Mapping[str, Any],
) -> list[str]:
    lines = markdown_header(title, heads)
    for name, counts in paper.items():
        words = f"{name}: {explained[name]}" if name in explained else name
        lines.append(markdown_row(words, (f"{ours[name]:.0f}", *map(str, counts))))
    return lines
