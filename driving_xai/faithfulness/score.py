"""Scores explanations of a model along its data: explained, ranked, edited, measured, beside controls."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from data_prep.shards.atomic import replacing
from data_prep.shards.manifest import Manifest, canonical_json
from driving_xai.checkpoint import Checkpoint
from driving_xai.contracts import Saliency
from driving_xai.errors import CheckpointError, DataError
from driving_xai.explain import METHODS, build
from driving_xai.faithfulness.batch import Editing
from driving_xai.faithfulness.maps import FILE_NAME, MapFile, Part, join_parts, save_part
from driving_xai.faithfulness.measures import MEASURES, statistics_of_sets
from driving_xai.faithfulness.pictures import Pictures
from driving_xai.faithfulness.results import (
    FRAME_COLUMNS,
    SUMMARY,
    Results,
    read_table,
    write_table,
)
from driving_xai.faithfulness.route import DrivenRoute
from driving_xai.faithfulness.scorer import Scorer
from driving_xai.faithfulness.statistics import BlockBootstrap
from driving_xai.faithfulness.subject import Split, Subject
from driving_xai.faithfulness.summary import (
    describe_machine,
    interval,
    summarise_differences,
    summarise_scores,
    summarise_set_differences,
    summarise_sets,
)
from driving_xai.faithfulness.team import ALONE, Team
from driving_xai.perturb import FILL_SPACE, FILLS, Fill

CONTROLS = ("random", "centre-prior")
_PROTOCOL = {
    "fill_space": FILL_SPACE,
    "pixels": "exactly round(fraction x pixels), most salient first",
    "ties": "values equal in float32 follow one order of pixels drawn with the seed",
    "area": "trapezoid over the fraction of pixels",
}
Progress = Callable[[int, int], None]
"""Called with the frames scored so far and in all."""


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """How explanations are scored. The controls are always scored too.

    Raises:
        ValueError: an option is out of range or unknown; the message says what is possible.
    """

    methods: tuple[str, ...] = ()
    """Names of `explain.METHODS`; may be empty where `maps` are given."""
    maps: str | None = None
    """A file of maps that were computed elsewhere; its methods are scored too. See docs/results.md."""
    save_maps: bool = False
    """Keeps every map, the controls' excepted, beside the results."""
    measures: tuple[str, ...] = ("deletion",)
    """Names of `measures.MEASURES`."""
    target: str | None = None
    """What is explained; see `targets.by_name`. None is `magnitude` for steering, else `predicted`. For
    several labels `every-predicted` scores a frame once for each output over its threshold."""
    fill: Fill = "black"
    truth: Literal["smoothed", "raw"] = "smoothed"
    """Which recorded angle the error is against; of steering only."""
    split: Split = "held-out"
    """`held-out` is what this checkpoint did not train on; the others are the shards' own splits."""
    every: int = 1
    """Scores every n-th frame; a recurrent model still sees them all."""
    batch_size: int = 32
    """Most frames in one forward pass, edited ones included. It bounds memory, and changes results by
    rounding only; sign attention amplifies that where a feature is nearly zero."""
    seed: int = 0
    """Of ties, of the random control, of methods that draw, and of the intervals."""
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
            missing = not given and not (name == "method" and self.maps)
            if missing or (unknown := [each for each in given if each not in known]):
                got = "none" if missing else repr(unknown[0])
                raise ValueError(f"got {name} {got}, expected some of: {', '.join(known)}")
        for name in ("every", "batch_size", "resamples"):
            if getattr(self, name) < 1:
                raise ValueError(f"got {name} {getattr(self, name)}, expected 1 or more")
        if self.block_s <= 0 or not 0 < self.level < 1:
            raise ValueError(
                f"got block_s {self.block_s}, level {self.level}; expected > 0 and within (0, 1)"
            )


def score(
    checkpoint: Checkpoint,
    shards: Path,
    out: Path,
    config: ScoreConfig,
    *,
    resume: bool = False,
    team: Team = ALONE,
    on_progress: Progress | None = None,
) -> Results:
    """Scores a checkpoint's explanations on a set of shards and saves the results in `out`.

    Batches already scored are kept in `out` until the results are complete. Processes of a team share
    the work through that folder, and the results are those of one process.

    Args:
        checkpoint: on the device to compute on.
        out: a folder without results, unless `resume` completes or returns those in it.
        resume: continue a run of the same configuration, model and data that was interrupted.

    Raises:
        DataError: the shards do not fit the checkpoint, hold none of the frames asked for, or lack what
            a measure needs; `out` holds other results.
        CheckpointError: models of this kind cannot be scored.
        UnsupportedModelError: the model lacks what a method needs.
    """
    with ExitStack() as stack:
        given = None
        if config.maps is not None:
            given = MapFile(Path(config.maps))
            stack.callback(given.close)
        plan = _plan(checkpoint, Manifest.load(shards), config, given)
        if resume and (out / SUMMARY).is_file():
            results = Results.load(out)
            _require_same(plan, results.summary["plan"], out)
            return results
        subject = open_subject(checkpoint, shards, config)
        scorer = _scorer(checkpoint.model, config, given)
        if team.leads:
            _open_parts(out, plan, resume=resume)
        team.wait_for_all()
        _score_parts(scorer, subject, given, out / "parts", config, team, on_progress)
        team.wait_for_all()
        if team.leads:
            _join(checkpoint, subject, scorer, plan, config, out)
        team.wait_for_all()
    return Results.load(out)


def open_subject(checkpoint: Checkpoint, shards: Path, config: ScoreConfig) -> Subject:
    """The checkpoint's model along the shards' frames.

    Raises:
        DataError: the shards do not fit, or hold none of the frames asked for.
        CheckpointError: models of this kind cannot be scored.
    """
    if checkpoint.kind not in _SUBJECTS:
        raise CheckpointError(
            f"{checkpoint.path} holds kind {checkpoint.kind!r}; expected one of: {', '.join(_SUBJECTS)}"
        )
    with_causes = any(MEASURES[name].needs == "causes" for name in config.measures)
    subject = _SUBJECTS[checkpoint.kind](checkpoint, shards, config, with_causes)
    for name in config.measures:
        if MEASURES[name].needs == "probability" and not subject.quantity.is_probability:
            raise DataError(
                f"measure {name} needs a probability, and this is scored by its {subject.quantity.name}"
            )
    return subject


def _route(checkpoint: Checkpoint, shards: Path, config: ScoreConfig, with_causes: bool) -> Subject:
    return DrivenRoute(
        checkpoint,
        shards,
        Manifest.load(shards),
        target=config.target or "magnitude",
        truth=config.truth,
        split=config.split,
        every=config.every,
        with_causes=with_causes,
    )


def _pictures(checkpoint: Checkpoint, shards: Path, config: ScoreConfig, with_causes: bool) -> Subject:
    return Pictures(
        checkpoint,
        shards,
        target=config.target or "predicted",
        split=config.split,
        every=config.every,
        with_causes=with_causes,
    )


_SUBJECTS: Mapping[str, Callable[[Checkpoint, Path, ScoreConfig, bool], Subject]] = {
    "steering": _route,
    "actions": _pictures,
    "classifier": _pictures,
}


def _methods(config: ScoreConfig, given: MapFile | None) -> tuple[str, ...]:
    """Those asked for, those given, then the controls; each once."""
    brought = () if given is None else given.methods
    if twice := set(brought) & {*config.methods, *CONTROLS}:
        raise DataError(
            f"{config.maps}: its method {sorted(twice)[0]!r} is scored already; give it another name"
        )
    return tuple(dict.fromkeys((*config.methods, *brought, *CONTROLS)))


def _plan(
    checkpoint: Checkpoint, manifest: Manifest, config: ScoreConfig, given: MapFile | None
) -> dict[str, Any]:
    """What decides the results, as JSON gives it back."""
    maps = {} if given is None else {"maps": given.path.name}
    plan = {
        "config": {**asdict(config), **maps, "methods": _methods(config, given)},
        "checkpoint_sha256": checkpoint.sha256,
        "shards_sha256": manifest.sha256,
        "maps_sha256": None if given is None else given.sha256,
    }
    return json.loads(json.dumps(plan))


def _require_same(plan: dict[str, Any], found: dict[str, Any], out: Path) -> None:
    differing = [key for key in plan["config"] if plan["config"][key] != found["config"].get(key)]
    differing += [key for key in plan if key != "config" and plan[key] != found.get(key)]
    if differing:
        raise DataError(f"{out}: was scored with another {', '.join(differing)}; give another folder")


def _open_parts(out: Path, plan: dict[str, Any], *, resume: bool) -> None:
    """Makes the folder of scored batches: new, or of an interrupted run with the same plan."""
    parts = out / "parts"
    if (out / SUMMARY).exists() or (parts.exists() and not resume):
        state = "results" if (out / SUMMARY).exists() else "an unfinished run"
        raise DataError(f"{out}: already holds {state}; give another folder, or resume")
    if (parts / "plan.json").is_file():
        _require_same(plan, json.loads((parts / "plan.json").read_text()), out)
        return
    parts.mkdir(parents=True, exist_ok=True)
    with replacing(parts / "plan.json") as temporary:
        temporary.write_bytes(canonical_json(plan))


def _scorer(model: Any, config: ScoreConfig, given: MapFile | None) -> Scorer:
    methods = _methods(config, given)
    brought = () if given is None else given.methods
    return Scorer(
        methods=methods,
        explainers={
            name: build(name, model, seed=config.seed, batch_size=config.batch_size)
            for name in methods
            if name not in brought
        },
        measures=config.measures,
        editing=Editing(fill=config.fill, batch_size=config.batch_size, seed=config.seed),
    )


def _score_parts(
    scorer: Scorer,
    subject: Subject,
    given: MapFile | None,
    parts: Path,
    config: ScoreConfig,
    team: Team,
    on_progress: Progress | None,
) -> None:
    """Scores this process's batches that have no part yet."""
    done = 0
    saved = [position for position, name in enumerate(scorer.methods) if name not in CONTROLS]
    for number, batch in enumerate(subject.batches(config.batch_size)):
        part = parts / f"part-{number:06d}.parquet"
        if team.takes(number) and not part.is_file():
            places = subject.places(batch.rows).assign(target=batch.targets)
            maps = scorer.explain(batch, _read_maps(given, places))
            if config.save_maps:
                kept = Part(places, maps.saliency[:, saved].cpu().numpy())
                save_part(part.with_suffix(".npz"), kept)
            write_table(part, _located(scorer.table(batch, maps), places))
        done += len(np.unique(batch.rows))
        if on_progress is not None:
            on_progress(done, subject.total)


def _read_maps(given: MapFile | None, places: pd.DataFrame) -> dict[str, Saliency]:
    if given is None:
        return {}
    return {name: torch.from_numpy(given.read(name, places)) for name in given.methods}


def _located(table: pd.DataFrame, places: pd.DataFrame) -> pd.DataFrame:
    """Says which frame each row is of."""
    frames = places.iloc[table["position"].to_numpy()].reset_index(drop=True)
    return pd.concat([frames, table.drop(columns="position")], axis=1)


def _join(
    checkpoint: Checkpoint,
    subject: Subject,
    scorer: Scorer,
    plan: dict[str, Any],
    config: ScoreConfig,
    out: Path,
) -> None:
    """Turns complete parts into results, in the order of drives and time."""
    parts = out / "parts"
    tables = [read_table(part) for part in sorted(parts.glob("part-*.parquet"))]
    # Stable, so that measures and methods keep their order within a frame.
    order = ["drive", "camera", "time_ns", "frame"]
    frames = pd.concat(tables).sort_values(order, kind="stable", ignore_index=True)
    summary = {
        "plan": plan,
        "model": {"kind": checkpoint.kind, "config": dict(checkpoint.config["model"])},
        **_summary(frames, subject, scorer, config),
        **describe_machine(next(checkpoint.model.parameters()).device),
    }
    if config.save_maps:
        kept = [name for name in scorer.methods if name not in CONTROLS]
        join_parts(out / FILE_NAME, sorted(parts.glob("part-*.npz")), kept)
    Results(summary=summary, per_frame=frames).save(out)
    shutil.rmtree(parts)


def _summary(frames: pd.DataFrame, subject: Subject, scorer: Scorer, config: ScoreConfig) -> dict[str, Any]:
    apart_s = subject.seconds_apart
    bootstrap = BlockBootstrap(
        block=1 if apart_s is None else max(1, round(config.block_s / apart_s)),
        resamples=config.resamples,
        level=config.level,
        seed=config.seed,
    )
    once = frames.drop_duplicates(FRAME_COLUMNS)
    statistics = statistics_of_sets(config.measures)
    of_set = frames["measure"].isin(statistics)
    by_frame, together = frames[~of_set], frames[of_set]
    return {
        "data": {**subject.describe(), "scored": len(once)},
        "protocol": {**_PROTOCOL, **subject.protocol, "value": subject.quantity.name},
        "measures": {name: MEASURES[name].describe(subject.quantity) for name in config.measures},
        "methods": [name for name in scorer.methods if name not in CONTROLS],
        "controls": list(CONTROLS),
        "prediction": {"unit": subject.quantity.unit, "error": interval(once["error"].dropna(), bootstrap)},
        "scores": [
            *summarise_scores(by_frame, bootstrap),
            *summarise_sets(together, statistics, bootstrap),
        ],
        "differences": [
            *summarise_differences(by_frame, CONTROLS, bootstrap),
            *summarise_set_differences(together, CONTROLS, statistics, bootstrap),
        ],
        "intervals": {"rule": "moving-block bootstrap over frames, percentiles", **asdict(bootstrap)},
    }
