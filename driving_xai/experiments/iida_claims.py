"""Paired tests over seeds of the claims of Iida et al. 2022, for the results and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from driving_xai.experiments.runs import (
    DIFFERENCES,
    Found,
    interval_text,
    paired,
)
from driving_xai.experiments.tables import markdown_header, markdown_row, p_text
from driving_xai.metrics.registry import PATCHES_PX

SCORES = ("ID", *(f"PID {m}" for m in PATCHES_PX))
EXACT, COARSE = "causes, exact", "causes, coarse"
SEPARATION = f"{EXACT} - {COARSE}"
_ON_PIXELS = "PID 1"


def compare_maps(runs: Sequence[Found]) -> list[dict[str, Any]]:
    """Whether scores tell a sparse map from a coarse one, PID better on patches than on pixels; LABN more than others.

    The first two where the runs know the causes. Each test is `runs.paired`.
    """
    known = EXACT in runs[0]
    pairs = [(EXACT, COARSE)] if known else []
    pairs += [("labn", other) for other in ("rise", "grad-cam", "random")]
    return [*_of_pairs(runs, pairs), *(_growth(runs) if known else ())]


def compare_conditions(runs: Sequence[Found]) -> list[dict[str, Any]]:
    """What the divergence, the bias image and both change in LABN's maps."""
    return _of_pairs(runs, [(name, "neither") for name in ("both", "divergence", "bias image")])


def _of_pairs(runs: Sequence[Found], pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    return [paired(runs, ours, theirs, score) for ours, theirs in pairs for score in SCORES]


def _growth(runs: Sequence[Found]) -> list[dict[str, Any]]:
    """The separation on patches of m pixels less that on single pixels, seed by seed."""
    separations = [
        {score: {SEPARATION: run[EXACT][score] - run[COARSE][score]} for score in SCORES} for run in runs
    ]
    return [
        paired(separations, score, _ON_PIXELS, SEPARATION) for score in SCORES[SCORES.index(_ON_PIXELS) + 1 :]
    ]


def lines_of_tests(tests: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of differences, a row for each pair and score."""
    return [
        DIFFERENCES,
        "",
        *markdown_header("difference", ("score", "mean", "95 % interval", "p", "r")),
        *(_row(test) for test in tests),
    ]


def _row(test: Mapping[str, Any]) -> str:
    if test["quantity"] == SEPARATION:
        title, score = f"{SEPARATION}, less its {test['theirs']}", test["ours"]
    else:
        title, score = f"{test['ours']} - {test['theirs']}", test["quantity"]
    effect = "-" if test["p"] is None else f"{test['rank_biserial']:+.2f}"
    cells = (score, f"{test['difference']:+.3f}", interval_text(test, ".3f"), p_text(test["p"]), effect)
    return markdown_row(title, cells)
