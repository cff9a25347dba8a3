"""Runs over seeds, resumable, with their means, intervals and tests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from data_prep.documents import read_json
from data_prep.shards.manifest import canonical_json
from data_prep.values import InvalidValue, checked
from driving_xai.errors import DataError
from driving_xai.experiments.tables import p_text, write_json
from driving_xai.metrics.comparison import cliffs_delta, signed_rank, student, welch
from driving_xai.metrics.statistics import Interval

CONFIDENCE = 0.95
"""Of the intervals over runs."""
DIFFERENCES = (
    "Differences are paired over runs: the mean, its 95 % interval (Student's t; none of a single run), p of Wilcoxon's "
    "signed-rank test (none below 8 runs) and its rank-biserial correlation r, 1 where every run has more. Neither "
    "intervals nor p are corrected for their number."
)
"""Said above a table of `paired`."""
Found = Mapping[str, Mapping[str, float]]
"""Of one run: variant, then quantity, then value."""


def each_run(
    folder: Path,
    plan: Mapping[str, Any],
    count: int,
    work: Callable[[int], Found],
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Found]:
    """What `work` finds for every run from 0 on; what `folder` holds of the same plan is not done again.

    Raises:
        DataError: the folder holds runs of another plan.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fingerprint = hashlib.sha256(canonical_json(plan)).hexdigest()
    found: list[Found] = []
    for run in range(count):
        path = folder / f"run-{run:03d}.json"
        if path.exists():
            kept = _read(path)
            if kept["plan_sha256"] != fingerprint:
                raise DataError(f"{path} is of another configuration or data; give another --out")
        else:
            kept = {"plan_sha256": fingerprint, "run": run, "found": work(run)}
            write_json(path, kept)
        found.append(kept["found"])
        if on_progress is not None:
            on_progress(run + 1, count)
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        kept = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete it") from None
    try:
        checked(Mapping[str, Mapping[str, float]], kept["found"], "found")
        checked(str, kept["plan_sha256"], "plan_sha256")
    except (KeyError, TypeError, InvalidValue):
        raise DataError(f"{path}: is no run of an experiment; delete it, or give another --out") from None
    return kept


def values_of(runs: Sequence[Found], variant: str, quantity: str) -> np.ndarray:
    """One quantity of one variant, in the order of seeds."""
    return np.array([run[variant][quantity] for run in runs], dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean over independent runs."""

    mean: float
    standard_error: float
    """0 of a single run, which says nothing about others."""
    interval: Mapping[str, float | str | None]
    """Student's, 95 %; see `_bounds`."""

    @classmethod
    def of(cls, values: np.ndarray) -> Mean:
        spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        return cls(
            mean=float(values.mean()),
            standard_error=spread / len(values) ** 0.5,
            interval=_bounds(student(values, level=CONFIDENCE)),
        )


def _bounds(interval: Interval | None) -> dict[str, float | str | None]:
    """`low` and `high` as JSON; of a single run both are None, and `reason` says so."""
    if interval is None:
        return {"low": None, "high": None, "reason": "a single run says nothing about others"}
    return {"low": interval.low, "high": interval.high}


def paired(runs: Sequence[Found], ours: str, theirs: str, quantity: str) -> dict[str, Any]:
    """Wilcoxon's signed-rank test over seeds, each of which gave both variants; p is None below 8 seeds.

    `interval` is Student's of the mean difference, 95 %.
    """
    differences = values_of(runs, ours, quantity) - values_of(runs, theirs, quantity)
    # Seeds are independent of each other, so that each is a block of its own.
    test = signed_rank(differences, block=1)
    return {
        "test": "wilcoxon-signed-rank",
        "quantity": quantity,
        "ours": ours,
        "theirs": theirs,
        "difference": float(differences.mean()),
        "interval": _bounds(student(differences, level=CONFIDENCE)),
        "p": None if test is None else test.p,
        "rank_biserial": None if test is None else test.rank_biserial,
    }


def unpaired(runs: Sequence[Found], ours: str, theirs: str, quantity: str) -> dict[str, Any]:
    """The Mann-Whitney U test of two groups of runs, two-sided, with Cliff's delta.

    `interval` is Welch's of the difference of means, 95 %.
    """
    first, second = values_of(runs, ours, quantity), values_of(runs, theirs, quantity)
    apart = welch(first, second, level=CONFIDENCE)
    return {
        "test": "mann-whitney-u",
        "quantity": quantity,
        "ours": ours,
        "theirs": theirs,
        "difference": float(first.mean() - second.mean()),
        "interval": _bounds(None if apart is None else apart.difference),
        "p": float(stats.mannwhitneyu(first, second, alternative="two-sided").pvalue),
        "cliffs_delta": cliffs_delta(first, second),
    }


def interval_text(test: Mapping[str, Any], digits: str) -> str:
    """The interval of a difference for a table; `digits` as ".3f"."""
    low, high = test["interval"]["low"], test["interval"]["high"]
    return "-" if low is None else f"{low:+{digits}} to {high:+{digits}}"


def tested_text(test: Mapping[str, Any], digits: str) -> str:
    """A paired difference in one cell: its mean, and interval, p and effect where there are any."""
    parts = [f"{test['difference']:+{digits}}"]
    if test["interval"]["low"] is not None:
        parts[0] += f" ({interval_text(test, digits)})"
    if test["p"] is not None:
        parts += [f"p {p_text(test['p'])}", f"r {test['rank_biserial']:+.2f}"]
    return ", ".join(parts)
