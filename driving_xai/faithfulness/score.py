"""Scores explanations along a route: each instant explained, ranked, edited, measured, beside controls."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from data_prep.records import Vehicle
from data_prep.shards.atomic import replacing
from data_prep.shards.hdf5 import read_causes
from data_prep.shards.manifest import Manifest, canonical_json
from driving_xai.checkpoint import Checkpoint
from driving_xai.data import Route, Run, hold_out_from, open_index, runs
from driving_xai.errors import CheckpointError, DataError
from driving_xai.explain import METHODS, build
from driving_xai.faithfulness.instants import Instants, instants_of, walk
from driving_xai.faithfulness.measures import MEASURES, LocalisationMeasure
from driving_xai.faithfulness.results import (
    FRAME_COLUMNS,
    SUMMARY,
    Results,
    read_table,
    write_table,
)
from driving_xai.faithfulness.scorer import Instant, Scorer
from driving_xai.faithfulness.statistics import BlockBootstrap
from driving_xai.faithfulness.summary import (
    describe_machine,
    describe_measure,
    interval,
    summarise_differences,
    summarise_scores,
)
from driving_xai.perturb import FILL_SPACE, FILLS, Fill
from driving_xai.targets import by_name

CONTROLS = ("random", "centre-prior")
_PROTOCOL = {
    "edited": "the current frame; its past is the state that the unedited frames left",
    "fill_space": FILL_SPACE,
    "pixels": "exactly round(fraction x pixels), most salient first",
    "ties": "values equal in float32 follow one order of pixels drawn with the seed",
    "value": "absolute error of the steering-wheel angle",
    "area": "trapezoid over the fraction of pixels",
    "references": {
        "truth": "the recorded angle",
        "clean": "the prediction for the unedited frame",
        "cause": "the pixels that cause the label",
    },
}
Progress = Callable[[int, int], None]
"""Called with the instants scored so far and in all."""


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """How explanations are scored. The controls are always scored too.

    Raises:
        ValueError: an option is out of range or unknown; the message says what is possible.
    """

    methods: tuple[str, ...]
    """Names of `explain.METHODS`."""
    measures: tuple[str, ...] = ("deletion",)
    """Names of `measures.MEASURES`."""
    target: str = "magnitude"
    """What is explained; see `targets.by_name`."""
    fill: Fill = "black"
    truth: Literal["smoothed", "raw"] = "smoothed"
    """Which recorded angle the error is against."""
    split: Literal["held-out", "test", "val", "train", "all"] = "held-out"
    """`held-out` is what this checkpoint did not train on; the others are the shards' own splits."""
    every: int = 1
    """Scores every n-th frame; the model still sees them all."""
    batch_size: int = 32
    """Most frames in one forward pass, edited ones included. It bounds memory, and changes results by
    rounding only; sign attention amplifies that where a feature is nearly zero."""
    seed: int = 0
    """Of ties, of the random control and of the intervals."""
    block_s: float = 5.0
    """Length of the blocks that intervals are drawn from, in seconds of driving."""
    resamples: int = 2000
    level: float = 0.95

    def __post_init__(self) -> None:
        for name, given, known in (
            ("method", self.methods, METHODS),
            ("measure", self.measures, MEASURES),
            ("fill", (self.fill,), FILLS),
        ):
            if not given or (unknown := [each for each in given if each not in known]):
                got = repr(unknown[0]) if given else "none"
                raise ValueError(f"got {name} {got}, expected some of: {', '.join(known)}")
        for name in ("every", "batch_size", "resamples"):
            if getattr(self, name) < 1:
                raise ValueError(f"got {name} {getattr(self, name)}, expected 1 or more")
        if self.block_s <= 0 or not 0 < self.level < 1:
            raise ValueError(
                f"got block_s {self.block_s}, level {self.level}; expected > 0 and within (0, 1)"
            )

    @property
    def all_methods(self) -> tuple[str, ...]:
        """The methods asked for, each once, then the controls."""
        return tuple(dict.fromkeys((*self.methods, *CONTROLS)))


def score(
    checkpoint: Checkpoint,
    shards: Path,
    out: Path,
    config: ScoreConfig,
    *,
    resume: bool = False,
    on_progress: Progress | None = None,
) -> Results:
    """Scores a steering checkpoint's explanations on a set of shards and saves the results in `out`.

    Every instant is judged with the state that the unedited frames before it left: only the current
    frame is edited. Batches already scored are kept in `out` until the results are complete.

    Args:
        checkpoint: on the device to compute on.
        out: a folder without results, unless `resume` completes or returns those in it.
        resume: continue a run of the same configuration, model and data that was interrupted.

    Raises:
        DataError: the shards do not fit the checkpoint, hold none of the frames asked for, or lack what
            a measure needs; `out` holds other results.
        CheckpointError: the checkpoint holds no steering model.
        UnsupportedModelError: the model lacks what a method needs.

    Source: Tashiro and Awano 2023, section 4, for deletion on steering.
    """
    if checkpoint.kind != "steering":
        raise CheckpointError(f"{checkpoint.path} holds kind {checkpoint.kind!r}; expected 'steering'")
    manifest = Manifest.load(shards)
    plan = _plan(checkpoint, manifest, config)
    if resume and (out / SUMMARY).is_file():
        results = Results.load(out)
        _require_same(plan, results.summary["plan"], out)
        return results
    route = _open_route(shards, manifest)
    chosen = _choose(route, checkpoint, manifest, config)
    scorer = _scorer(checkpoint.model, config)
    if _localises(config):
        _causes(route, chosen[0].rows[:1])  # Fails here rather than after a run has been opened.
    parts = _open_parts(out, plan, resume=resume)
    frames = _score_parts(checkpoint.model, scorer, route, chosen, config, parts, on_progress)
    summary = {
        "plan": plan,
        "model": {"kind": checkpoint.kind, "config": dict(checkpoint.config["model"])},
        **_summary(frames, route, chosen, config),
        **describe_machine(next(checkpoint.model.parameters()).device),
    }
    results = Results(summary=summary, per_frame=frames).save(out)
    shutil.rmtree(parts)
    return results


def _plan(checkpoint: Checkpoint, manifest: Manifest, config: ScoreConfig) -> dict[str, Any]:
    """What decides the results, as JSON gives it back."""
    if manifest.kind != "sequences":
        raise DataError(f"got shards of {manifest.kind}, expected sequences; prepare a drive")
    trained_on = checkpoint.config.get("input", {}).get("geometry")
    if trained_on is not None and trained_on != manifest.geometry:
        raise DataError(
            f"the shards' geometry {manifest.geometry} is not the checkpoint's {trained_on}; prepare them alike"
        )
    learnt = checkpoint.config.get("input", {}).get("signals", {})
    for name in ("lead_s", "smoothing_alpha"):
        if name in learnt and manifest.signals.get(name) != learnt[name]:
            raise DataError(
                f"the shards' {name} is {manifest.signals.get(name)}, the checkpoint learnt {learnt[name]}; "
                "prepare them alike"
            )
    plan = {
        "config": {**asdict(config), "methods": config.all_methods},
        "checkpoint_sha256": checkpoint.sha256,
        "shards_sha256": manifest.sha256,
    }
    return json.loads(json.dumps(plan))


def _require_same(plan: dict[str, Any], found: dict[str, Any], out: Path) -> None:
    differing = [key for key in plan["config"] if plan["config"][key] != found["config"].get(key)]
    differing += [key for key in plan if key != "config" and plan[key] != found[key]]
    if differing:
        raise DataError(f"{out}: was scored with another {', '.join(differing)}; give another folder")


def _open_parts(out: Path, plan: dict[str, Any], *, resume: bool) -> Path:
    """The folder of scored batches: new, or of an interrupted run with the same plan."""
    parts = out / "parts"
    if (out / SUMMARY).exists() or (parts.exists() and not resume):
        state = "results" if (out / SUMMARY).exists() else "an unfinished run"
        raise DataError(f"{out}: already holds {state}; give another folder, or resume")
    if (parts / "plan.json").is_file():
        _require_same(plan, json.loads((parts / "plan.json").read_text()), out)
        return parts
    parts.mkdir(parents=True, exist_ok=True)
    with replacing(parts / "plan.json") as temporary:
        temporary.write_bytes(canonical_json(plan))
    return parts


def _open_route(shards: Path, manifest: Manifest) -> Route:
    if manifest.vehicle is None:
        raise DataError(f"{shards}: its manifest names no vehicle, which degrees need; prepare again")
    return Route(shards, open_index(shards, manifest), Vehicle(**manifest.vehicle))


def _choose(route: Route, checkpoint: Checkpoint, manifest: Manifest, config: ScoreConfig) -> list[Run]:
    """The runs to score."""
    own = checkpoint.config.get("data", {}).get("shards_sha256") == manifest.sha256
    if config.split == "held-out":
        if not own:
            raise DataError(
                "the checkpoint was trained on other shards, so what these hold out from it is unknown; "
                "choose their split test, or all where nothing of them was trained on"
            )
        chosen = hold_out_from(checkpoint.config).splits(route.index) == "test"
    elif config.split == "all":
        chosen = np.ones(len(route.index), dtype=bool)
    elif own:
        # On the shards it was trained on, the splits are the model's: prep's may test what it trained on.
        chosen = hold_out_from(checkpoint.config).splits(route.index) == config.split
    else:
        chosen = route.index["split"].to_numpy(dtype=str) == config.split
    kept = runs(route.index, chosen)
    if instants_of(kept, config.every) == 0:
        raise DataError(
            f"split {config.split} has {chosen.sum()} frames in {len(kept)} runs and none to score; choose another"
        )
    return kept


def _scorer(model: Any, config: ScoreConfig) -> Scorer:
    return Scorer(
        explainers={
            name: build(name, model, seed=config.seed, batch_size=config.batch_size)
            for name in config.all_methods
        },
        measures=config.measures,
        target=by_name(config.target, model.outputs),
        fill=config.fill,
        batch_size=config.batch_size,
        seed=config.seed,
    )


def _score_parts(
    model: Any,
    scorer: Scorer,
    route: Route,
    chosen: Sequence[Run],
    config: ScoreConfig,
    parts: Path,
    on_progress: Progress | None,
) -> pd.DataFrame:
    """Scores every batch that has no part yet, and returns all parts in the order of drives and time."""
    device = next(model.parameters()).device
    done, total = 0, instants_of(chosen, config.every)
    batches = walk(model, route, chosen, batch_size=config.batch_size, every=config.every, device=device)
    for number, instants in enumerate(batches):
        part = parts / f"part-{number:06d}.parquet"
        if not part.is_file():
            table = scorer.table(_instant(model, route, instants, config))
            write_table(part, _located(table, route.index, instants.rows))
        done += len(instants.rows)
        if on_progress is not None:
            on_progress(done, total)
    tables = [read_table(part) for part in sorted(parts.glob("part-*.parquet"))]
    # Stable, so that measures and methods keep their order within a frame.
    return pd.concat(tables).sort_values(["drive", "camera", "time_ns"], kind="stable", ignore_index=True)


def _instant(model: Any, route: Route, instants: Instants, config: ScoreConfig) -> Instant:
    rows, device = instants.rows, instants.frames.device
    column = "steering_wheel_rad_smoothed" if config.truth == "smoothed" else "steering_wheel_rad"
    truth_deg = np.degrees(route.index[column].to_numpy(dtype=np.float64)[rows])
    return Instant(
        model=model.at(instants.past),
        frames=instants.frames,
        clean=instants.clean,
        truth_deg=torch.from_numpy(truth_deg).to(device),
        degrees_per_unit=torch.from_numpy(route.degrees_per_unit[rows]).to(device),
        causes=_causes(route, rows).to(device) if _localises(config) else None,
    )


def _localises(config: ScoreConfig) -> bool:
    return any(isinstance(MEASURES[name], LocalisationMeasure) for name in config.measures)


def _causes(route: Route, rows: Int64[np.ndarray, " B"]) -> Bool[Tensor, "B H W"]:
    shard, row = (route.index[name].to_numpy()[rows] for name in ("shard", "row"))
    breaks = np.flatnonzero((np.diff(row) != 1) | (shard[1:] != shard[:-1])) + 1
    edges = [0, *breaks, len(rows)]
    spans = [(route.root / shard[a], int(row[a]), int(row[b - 1]) + 1) for a, b in itertools.pairwise(edges)]
    return torch.from_numpy(np.concatenate([read_causes(*span) for span in spans]))


def _located(table: pd.DataFrame, index: pd.DataFrame, rows: Int64[np.ndarray, " B"]) -> pd.DataFrame:
    """Says which frame each row is of."""
    frames = index[FRAME_COLUMNS].iloc[rows[table["position"].to_numpy()]].reset_index(drop=True)
    return pd.concat([frames, table.drop(columns="position")], axis=1)


def _summary(
    frames: pd.DataFrame, route: Route, chosen: Sequence[Run], config: ScoreConfig
) -> dict[str, Any]:
    times_ns = route.index["time_ns"].to_numpy()
    steps_s = np.concatenate([np.diff(times_ns[run.rows]) for run in chosen]) / 1e9
    apart_s = float(np.median(steps_s)) * config.every
    bootstrap = BlockBootstrap(
        block=max(1, round(config.block_s / apart_s)),
        resamples=config.resamples,
        level=config.level,
        seed=config.seed,
    )
    once = frames.drop_duplicates(FRAME_COLUMNS)
    return {
        "data": {
            "drives": sorted({str(route.index["drive"].iloc[run.rows[0]]) for run in chosen}),
            "runs": len(chosen),
            "frames": sum(len(run) for run in chosen),
            "scored": len(once),
            "seconds_apart": apart_s,
        },
        "protocol": _PROTOCOL,
        "measures": {name: describe_measure(name) for name in config.measures},
        "methods": [name for name in config.all_methods if name not in CONTROLS],
        "controls": list(CONTROLS),
        "prediction": {"unit": "deg", "error": interval(once["error"].dropna(), bootstrap)},
        "scores": summarise_scores(frames, bootstrap),
        "differences": summarise_differences(frames, CONTROLS, bootstrap),
        "intervals": {"rule": "moving-block bootstrap over frames, percentiles", **asdict(bootstrap)},
    }
