"""Deletion areas pooled over training runs, with intervals and paired comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from driving_xai.evaluation.results import Results
from driving_xai.evaluation.summary import interval
from driving_xai.metrics.comparison import signed_rank, welch
from driving_xai.metrics.statistics import BlockBootstrap

_FRAME = ["drive", "camera", "segment", "frame", "time_ns"]
_NUMBERS = ("value", "base_corrected", "error", "clean")


@dataclass(frozen=True, kw_only=True)
class Pool:
    """One method on one kind of network: a row for each frame, in the order of time.

    A frame that several runs held out is their mean, so that it counts once.
    """

    network: str
    method: str
    per_run: Mapping[str, tuple[float, ...]]
    """Mean of each run, of the numbers that `frames` has."""
    frames: pd.DataFrame
    """Indexed by drive, camera, segment, frame and time. Areas in degree x percent: value against the
    recorded angle, base_corrected, clean against the clean prediction; error in degrees; curve."""
    bootstrap: BlockBootstrap

    @classmethod
    def of(cls, results: Sequence[Results], *, network: str, method: str) -> Pool:
        """The deletion areas of a method in every run's results."""
        tables = [_of_run(each, method) for each in results]
        everything = pd.concat(tables)
        groups = everything.groupby(_FRAME, sort=False)
        frames = groups[list(_NUMBERS)].mean()
        frames["curve"] = groups["curve"].agg(lambda curves: np.stack(list(curves)).mean(0))
        frames = frames.sort_values(["drive", "camera", "time_ns"], kind="stable")
        config = results[0].summary["plan"]["config"]
        apart_s = results[0].summary["data"]["seconds_apart"]
        return cls(
            network=network,
            method=method,
            per_run={name: tuple(float(table[name].mean()) for table in tables) for name in _NUMBERS},
            frames=frames,
            bootstrap=BlockBootstrap(
                block=max(1, round(config["block_s"] / apart_s)),
                resamples=config["resamples"],
                level=config["level"],
                seed=config["seed"],
            ),
        )

    def summary(self) -> dict[str, Any]:
        """The area, the area above the unedited error, and the mean curve, as JSON."""
        return {
            "network": self.network,
            "method": self.method,
            "frames": len(self.frames),
            "area": interval(self.frames["value"], self.bootstrap),
            "base_corrected": interval(self.frames["base_corrected"], self.bootstrap),
            "against_clean": interval(self.frames["clean"], self.bootstrap),
            "mae_deg": float(self.frames["error"].mean()),
            "area_by_run": list(self.per_run["value"]),
            "curve_deg": np.stack(list(self.frames["curve"])).mean(0, dtype=np.float64).tolist(),
        }


def _of_run(results: Results, method: str) -> pd.DataFrame:
    """A row for each labelled frame, with the area against the clean prediction too."""
    truth, clean = (
        results.select(method=method, measure="deletion", reference=reference)
        for reference in ("truth", "clean")
    )
    against_clean = clean[[*_FRAME, "value"]].rename(columns={"value": "clean"})
    return truth[truth["value"].notna()].merge(against_clean, on=_FRAME, validate="one_to_one")


def compare(ours: Pool, theirs: Pool, column: str = "value") -> dict[str, Any]:
    """Ours less theirs, frame by frame on the frames of both, and run by run.

    The interval and Wilcoxon's test are of blocks of the drive. Welch's test takes each run's mean
    area as one result, as the paper seems to; with held-out blocks that change from run to run these
    differ more by block than by network, which the paired t-test leaves out.
    """
    differences = (ours.frames[column] - theirs.frames[column]).dropna()
    # The frames of both are as far apart as those of the sparser one.
    bootstrap = min((ours, theirs), key=lambda pool: len(pool.frames)).bootstrap
    ratio = None
    if column == "value":
        means = (each.frames.loc[differences.index, column].mean() for each in (ours, theirs))
        ratio = float(np.divide(*means))
    rank = signed_rank(differences.to_numpy(), bootstrap.block)
    by_run = (ours.per_run[column], theirs.per_run[column])
    common = min(len(values) for values in by_run)
    return {
        "ours": [ours.network, ours.method],
        "theirs": [theirs.network, theirs.method],
        "quantity": column,
        "frames": len(differences),
        "difference": interval(differences, bootstrap),
        "ratio": ratio,
        "wilcoxon_p": None if rank is None else rank.p,
        "welch_p": welch_p(*by_run),
        "paired_t_p": paired_p(*(values[:common] for values in by_run)),
    }


def welch_p(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Of Welch's t-test, two-sided; None below two runs."""
    found = welch(np.array(ours), np.array(theirs))
    return None if found is None else found.p


def paired_p(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Of the paired t-test, two-sided; None where the differences do not differ."""
    differences = np.subtract(ours, theirs)
    if len(differences) < 2 or np.ptp(differences) == 0:
        return None
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def text_of(value: Mapping[str, Any]) -> str:
    """A mean with its interval, for a table."""
    if value["mean"] is None:
        return "-"
    bounds = "" if value["low"] is None else f" ({value['low']:.0f} to {value['high']:.0f})"
    return f"{value['mean']:.1f}{bounds}"
