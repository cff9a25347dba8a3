"""Per-frame rows to what `results.json` says of them: means with intervals, differences, descriptions."""

from __future__ import annotations

import itertools
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from driving_xai.evaluation.judgement import UNTESTED
from driving_xai.evaluation.results import FRAME_COLUMNS
from driving_xai.fills import FILL_SPACE
from driving_xai.metrics.aupc import Statistic
from driving_xai.metrics.aupc import interval as interval_of_set
from driving_xai.metrics.comparison import cliffs_delta, cohens_dz, holm, places, signed_rank
from driving_xai.metrics.statistics import LEAST_BLOCKS, BlockBootstrap

if TYPE_CHECKING:
    import torch

    from driving_xai.metrics.quantities import Quantity

Key = tuple[str, str, str]
"""Measure, reference and method."""
_NAMES = ("measure", "reference", "method")
_PAIRED = ("measure", "reference")


def summarise(
    per_frame: pd.DataFrame,
    *,
    quantity: Quantity,
    protocol: Mapping[str, Any],
    measures: Mapping[str, Mapping[str, Any]],
    methods: Sequence[str],
    controls: Sequence[str],
    bootstrap: BlockBootstrap,
    of_sets: Mapping[str, Statistic] = MappingProxyType({}),
    every: Mapping[str, int] = MappingProxyType({}),
    mean_curves: Mapping[Key, Sequence[float]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Everything that `results.json` says of per-frame rows, as JSON values.

    Args:
        per_frame: rows of `results.PER_FRAME_SCHEMA` in the order of drives and time, or `CondensedRows.rows`:
            a number `place` may stand for a frame's columns, and the column `curve` may be missing where
            `mean_curves` has what is known of it.
        quantity: what the curves are of.
        protocol: what is edited and what each reference means; see `describe_protocol`.
        measures: `describe` of each measure, by name.
        methods: scored, without the controls.
        controls: scored beside them.
        bootstrap: its block counts the frames of a method that is scored on every frame.
        of_sets: of measures whose value is of all frames together, how it is made of their mean curve.
        every: of methods that are scored on every n-th frame only, n; blocks are then as long in time.
        mean_curves: by measure, reference and method, for rows without their curves.

    Returns:
        The sections `protocol`, `measures`, `methods`, `controls`, `prediction`, `scores`, `differences`,
        `comparisons`, `ranks` and `intervals`.
    """
    per_frame = _numbered(per_frame)
    by_frame, of_all = per_frame, per_frame[:0]
    if of_sets:
        together = per_frame["measure"].isin(of_sets)
        by_frame, of_all = per_frame[~together], per_frame[together]
    sparse = {name: bootstrap.thinned(1 / step) for name, step in every.items()}
    errors = per_frame.loc[~per_frame["place"].duplicated(), "error"].dropna()
    return {
        "protocol": describe_protocol(quantity, protocol),
        "measures": dict(measures),
        "methods": list(methods),
        "controls": list(controls),
        "prediction": {"unit": quantity.unit, "error": interval(errors, bootstrap)},
        "scores": [
            *summarise_scores(by_frame, bootstrap, sparse=sparse, mean_curves=mean_curves),
            *summarise_sets(of_all, of_sets, bootstrap),
        ],
        "differences": [
            *summarise_differences(by_frame, controls, bootstrap, sparse=sparse),
            *summarise_set_differences(of_all, controls, of_sets, bootstrap),
        ],
        "comparisons": [
            *summarise_comparisons(by_frame, controls, bootstrap),
            *summarise_set_comparisons(of_all, controls, of_sets, bootstrap),
        ],
        "ranks": summarise_ranks(by_frame, measures, bootstrap),
        "intervals": describe_intervals(bootstrap),
    }


def summarise_scores(
    per_frame: pd.DataFrame,
    bootstrap: BlockBootstrap,
    *,
    sparse: Mapping[str, BlockBootstrap] = MappingProxyType({}),
    mean_curves: Mapping[Key, Sequence[float]] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """Each method's mean under each measure and reference, with intervals and the mean curve.

    Args:
        per_frame: rows in the order of drives and time.
        bootstrap: draws the intervals.
        sparse: draws them of methods that are not scored on every frame.
        mean_curves: see `summarise`.
    """
    per_frame = _numbered(per_frame)
    valueless = _valueless(per_frame)
    return [
        {
            "method": method,
            "measure": measure,
            "reference": reference,
            **_summarise(rows, valueless[rows.index], sparse.get(method, bootstrap)),
            **_mean_curve(rows, mean_curves.get((measure, reference, method))),
        }
        for (measure, reference, method), rows in _groups(per_frame)
    ]


def _valueless(per_frame: pd.DataFrame) -> pd.Series:
    """Whether a row has no value although that of another method for its frame has: the map says nothing."""
    known = per_frame["value"].notna()
    if known.all():
        return ~known
    frames = per_frame.groupby(["measure", "reference", "place"], sort=False, observed=True).ngroup()
    return ~known & known.groupby(frames).transform("any")


def _summarise(rows: pd.DataFrame, valueless: pd.Series, bootstrap: BlockBootstrap) -> dict[str, Any]:
    known = rows[rows["value"].notna()]
    entry: dict[str, Any] = {
        "frames": len(known),
        "degenerate": int(rows.loc[rows["value"].notna() | valueless, "degenerate"].sum()),
        "value": interval(known["value"], bootstrap),
    }
    if valueless.any():
        entry["without_value"] = int(valueless.sum())
    for name in ("normalised", "base_corrected"):
        if known[name].notna().any():
            entry[name] = interval(known[name], bootstrap)
    if known["chance"].notna().any():
        entry["chance"] = float(known["chance"].mean())
    return entry


def _mean_curve(rows: pd.DataFrame, known: Sequence[float] | None) -> dict[str, Any]:
    if known is not None or "curve" not in rows:
        return {} if known is None else {"curve": list(known)}
    curves = rows.loc[rows["value"].notna(), "curve"]
    return {"curve": np.stack(curves).mean(0, dtype=np.float64).tolist()} if curves.notna().any() else {}


def summarise_differences(
    per_frame: pd.DataFrame,
    controls: Sequence[str],
    bootstrap: BlockBootstrap,
    *,
    sparse: Mapping[str, BlockBootstrap] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """The value of each method less that of each control, frame by frame, with intervals.

    Args:
        per_frame: rows in the order of drives and time.
        controls: names of methods.
        bootstrap: draws the intervals.
        sparse: draws them for controls that are not scored on every frame.
    """
    per_frame = _numbered(per_frame)
    found: dict[Key, list[dict[str, Any]]] = {}
    for (measure, reference), rows in _groups(per_frame, _PAIRED, columns=["place", "method", "value"]):
        values = {method: of.set_index("place")["value"] for (method,), of in _groups(rows, ["method"])}
        for method, ours in values.items():
            found[measure, reference, method] = of_method = []
            for control in controls if method not in controls else ():
                paired = (ours - values[control].reindex(ours.index)).dropna()
                names = {"method": method, "control": control, "measure": measure, "reference": reference}
                drawn = sparse.get(control, bootstrap)
                of_method.append({**names, "frames": len(paired), "value": interval(paired, drawn)})
    return [each for key in _keys(per_frame) for each in found[key]]


def summarise_sets(
    per_frame: pd.DataFrame, statistics: Mapping[str, Statistic], bootstrap: BlockBootstrap
) -> list[dict[str, Any]]:
    """As `summarise_scores`, for measures whose value is of all frames together: of their mean curve."""
    return [
        {
            "method": method,
            "measure": measure,
            "reference": reference,
            "frames": len(rows),
            "degenerate": int(rows["degenerate"].sum()),
            "value": _of_set(statistics[measure], np.stack(rows["curve"]), bootstrap),
            "curve": np.stack(rows["curve"]).mean(0, dtype=np.float64).tolist(),
        }
        for (measure, reference, method), rows in _groups(per_frame)
    ]


def summarise_set_differences(
    per_frame: pd.DataFrame,
    controls: Sequence[str],
    statistics: Mapping[str, Statistic],
    bootstrap: BlockBootstrap,
) -> list[dict[str, Any]]:
    """As `summarise_differences`, in the same resampled sets of frames for both methods."""
    curves = {key: np.stack(rows["curve"]) for key, rows in _groups(per_frame)}
    return [
        {
            "method": method,
            "control": control,
            "measure": measure,
            "reference": reference,
            "frames": len(ours),
            "value": _of_set(statistics[measure], ours, bootstrap, curves[measure, reference, control]),
        }
        for (measure, reference, method), ours in curves.items()
        for control in (controls if method not in controls else ())
    ]


def summarise_set_comparisons(
    per_frame: pd.DataFrame,
    controls: Sequence[str],
    statistics: Mapping[str, Statistic],
    bootstrap: BlockBootstrap,
) -> list[dict[str, Any]]:
    """Every two methods, controls aside, as `summarise_set_differences`, in the form of `summarise_comparisons`."""
    curves: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for (measure, reference, method), rows in _groups(per_frame):
        if method not in controls:
            curves.setdefault((measure, reference), {})[method] = np.stack(rows["curve"])
    return [
        {
            "measure": measure,
            "reference": reference,
            "method": method,
            "other": other,
            "frames": len(ours),
            "value": _of_set(statistics[measure], ours, bootstrap, theirs),
            **UNTESTED,
        }
        for (measure, reference), found in curves.items()
        for (method, ours), (other, theirs) in itertools.combinations(found.items(), 2)
    ]


def _of_set(
    statistic: Statistic,
    curves: Float[np.ndarray, "N V"],
    bootstrap: BlockBootstrap,
    against: Float[np.ndarray, "N V"] | None = None,
) -> dict[str, Any]:
    found = interval_of_set(statistic, curves.astype(np.float64), bootstrap, against=against)
    if found is None:
        whole = float(statistic(curves.mean(0)) - (0 if against is None else statistic(against.mean(0))))
        return {"mean": _finite(whole), "low": None, "high": None, "reason": _too_few(len(curves), bootstrap)}
    if not all(map(math.isfinite, (found.mean, found.low, found.high))):
        reason = "an accuracy of zero has no logarithm"
        return {"mean": _finite(found.mean), "low": None, "high": None, "reason": reason}
    return asdict(found)


def summarise_comparisons(
    per_frame: pd.DataFrame, controls: Sequence[str], bootstrap: BlockBootstrap
) -> list[dict[str, Any]]:
    """Every two methods on the frames of both, under each measure and reference.

    `p` is of Wilcoxon's test on block means, `p_holm` the same corrected for the pairs of its family: those
    of a method with a control, which is what a score has to show, and all others. Both are null, with a
    reason, below eight blocks.
    """
    compared = []
    for (measure, reference), values in _side_by_side(per_frame):
        names = {"measure": measure, "reference": reference}
        pairs = [
            {**names, "method": method, "other": other, **compare_pair(values, method, other, bootstrap)}
            for method, other in itertools.combinations(values.columns, 2)
        ]
        for beside_control in (True, False):
            tested = [
                pair
                for pair in pairs
                if pair["p"] is not None
                and ((pair["method"] in controls) != (pair["other"] in controls)) == beside_control
            ]
            for pair, corrected in zip(tested, holm([pair["p"] for pair in tested]), strict=True):
                pair["p_holm"] = corrected
        compared += pairs
    return compared


def compare_pair(values: pd.DataFrame, method: str, other: str, bootstrap: BlockBootstrap) -> dict[str, Any]:
    """Two columns on the frames of both, as in `comparisons` of results.json, without a corrected p.

    Args:
        values: a row for each frame that a block counts, in the order of time; NaN where unknown.
        method: a column.
        other: another, which is subtracted from it.
        bootstrap: draws the interval.
    """
    paired = values[[method, other]].dropna()
    sparse = _as_dense(bootstrap, len(paired), values)
    ours, theirs = (paired[name].to_numpy(dtype=np.float64) for name in (method, other))
    tested = signed_rank(ours - theirs, sparse.block)
    few = len(paired) < 2
    return {
        "frames": len(paired),
        "value": interval(pd.Series(ours - theirs), sparse),
        "p": None if tested is None else tested.p,
        "p_holm": None,
        "blocks": sparse.blocks(len(paired)),
        "rank_biserial": None if tested is None else tested.rank_biserial,
        "cohens_dz": None if few else _finite(cohens_dz(ours - theirs)),
        "cliffs_delta": None if few else cliffs_delta(ours, theirs),
        **({"reason": _too_few(len(paired), sparse)} if tested is None else {}),
    }


def summarise_ranks(
    per_frame: pd.DataFrame, measures: Mapping[str, Mapping[str, Any]], bootstrap: BlockBootstrap
) -> list[dict[str, Any]]:
    """Where each method stands under each measure and reference, on the frames that all of them have.

    Args:
        measures: of each name, `faithful`: `high` or `low`; as `Metric.describe` says it.
    """
    ranked = []
    for (measure, reference), values in _side_by_side(per_frame):
        shared = values.dropna()
        sparse = _as_dense(bootstrap, len(shared), values)
        found = places(shared.to_numpy(dtype=np.float64), measures[measure]["faithful"], sparse)
        entry: dict[str, Any] = {"measure": measure, "reference": reference, "frames": len(shared)}
        if found is None:
            entry |= {"places": None, "reason": _too_few(len(shared), sparse)}
        else:
            entry["places"] = [
                {"method": name, **asdict(place)} for name, place in zip(values, found, strict=True)
            ]
        ranked.append(entry)
    return ranked


def _side_by_side(per_frame: pd.DataFrame) -> Iterator[tuple[tuple[str, ...], pd.DataFrame]]:
    """Each measure and reference with a column of values for each method, frames in their order."""
    needed = ["place", "method", "value"]
    for key, rows in _groups(_numbered(per_frame), _PAIRED, columns=needed):
        columns = {method: of.set_index("place")["value"] for (method,), of in _groups(rows, ["method"])}
        longest = max(columns.values(), key=len).index
        yield key, pd.DataFrame({method: column.reindex(longest) for method, column in columns.items()})


def _as_dense(bootstrap: BlockBootstrap, shared: int, values: pd.DataFrame) -> BlockBootstrap:
    """Blocks as long in time where only every n-th frame has both values, as in a replay's control."""
    most = int(values.count().max())
    return bootstrap.thinned(shared / most) if most else bootstrap


def _too_few(frames: int, bootstrap: BlockBootstrap) -> str:
    return f"{frames} frames are fewer than {LEAST_BLOCKS} blocks of {bootstrap.block}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def interval(values: pd.Series, bootstrap: BlockBootstrap) -> dict[str, Any]:
    """Mean, low and high as JSON: null where unknown, with the reason."""
    if len(values) == 0:
        return {"mean": None, "low": None, "high": None, "reason": "no frame has this value"}
    found = bootstrap.interval(values.to_numpy(dtype=np.float64))
    if found is not None:
        return asdict(found)
    reason = _too_few(len(values), bootstrap)
    return {"mean": math.fsum(values) / len(values), "low": None, "high": None, "reason": reason}


def describe_protocol(quantity: Quantity, particular: Mapping[str, Any]) -> dict[str, Any]:
    """How curves are made of edited frames, as JSON.

    Args:
        particular: what is edited and what each reference means; see `EvalData.protocol`.
    """
    return {
        "fill_space": FILL_SPACE,
        "pixels": "exactly round(fraction x pixels), most salient first",
        "ties": "values equal in float32 follow one order of pixels drawn with the seed",
        "area": "trapezoid over the fraction of pixels",
        "value": quantity.name,
        **particular,
    }


def describe_intervals(bootstrap: BlockBootstrap) -> dict[str, Any]:
    """How intervals are drawn, as JSON."""
    return {"rule": "moving-block bootstrap over frames, percentiles", **asdict(bootstrap)}


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, as far as numbers may depend on them."""
    import torch  # what reads saved results needs none

    on_gpu = device.type == "cuda"
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("driving-xai", "torch", "numpy", "pandas", "pyarrow")},
        },
        "hardware": {
            "device": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
            "threads": torch.get_num_threads(),
        },
    }


def _groups(
    per_frame: pd.DataFrame, by: Sequence[str] = _NAMES, *, columns: Sequence[str] | None = None
) -> Iterator[tuple[tuple[str, ...], pd.DataFrame]]:
    """The rows of each combination of names, in the order in which these first appear.

    As `groupby`, which takes 24 bytes a row for as long as it is gone through.

    Args:
        by: columns of few different texts.
        columns: of the rows; None takes all.
    """
    number, keys = _combinations(per_frame, by)
    rows = np.argsort(number, kind="stable")
    stops = np.cumsum(np.bincount(number, minlength=len(keys)))
    for key, start, stop in zip(keys, [0, *stops], stops, strict=False):
        mine = rows[start:stop]
        yield key, pd.DataFrame({name: per_frame[name].take(mine) for name in columns or per_frame.columns})


def _keys(per_frame: pd.DataFrame) -> list[Key]:
    """Each measure, reference and method, in the order in which they first appear."""
    return [
        (measure, reference, method) for measure, reference, method in _combinations(per_frame, _NAMES)[1]
    ]


def _combinations(
    per_frame: pd.DataFrame, by: Sequence[str]
) -> tuple[Int[np.ndarray, " rows"], list[tuple[str, ...]]]:
    """The number of each row's combination of names, from 0 in the order in which these first appear; their names."""
    number, sizes, labels = np.zeros(len(per_frame), dtype=np.int32), [], []
    for name in by:
        column = per_frame[name].astype("category").cat
        number = number * len(column.categories) + column.codes.to_numpy()
        sizes.append(len(column.categories))
        labels.append(column.categories)
    number, found = pd.factorize(number)
    codes = np.unravel_index(found, sizes)
    keys = [*zip(*(names[code].tolist() for names, code in zip(labels, codes, strict=True)), strict=True)]
    return number.astype(np.int16 if len(keys) < 2**15 else np.int32), keys


def frame_numbers(places: pd.DataFrame) -> pd.Series:
    """A number for each row's frame, from 0 in the order in which frames first appear.

    Args:
        places: at least the columns `results.FRAME_COLUMNS`.
    """
    return places.groupby(FRAME_COLUMNS, sort=False, dropna=False, observed=True).ngroup()


def _numbered(per_frame: pd.DataFrame) -> pd.DataFrame:
    """With a number for each frame: comparing its seven columns in every table takes memory and time."""
    return per_frame if "place" in per_frame else per_frame.assign(place=frame_numbers(per_frame))
