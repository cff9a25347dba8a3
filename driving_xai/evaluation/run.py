"""Scores explanations of a model along its data: explained, ranked, edited, measured, beside controls."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from data_prep.engines import Engine
from data_prep.shards.atomic import sha256_of
from data_prep.shards.manifest import Manifest
from driving_xai.checkpoint import Checkpoint, load
from driving_xai.errors import DataError
from driving_xai.evaluation.config import CONTROLS, ScoreConfig
from driving_xai.evaluation.data import Subject
from driving_xai.evaluation.datasets import open_subject, require_predicted, rows_together
from driving_xai.evaluation.distributed import ALONE, Team
from driving_xai.evaluation.maps import FILE_NAME, join_parts
from driving_xai.evaluation.parts import (
    FOLDER,
    Progress,
    given_maps,
    open_parts,
    plan_of,
    require_same,
    score_parts,
    scorer_of,
)
from driving_xai.evaluation.results import FRAME_COLUMNS, SUMMARY, Results, read_table
from driving_xai.evaluation.scorer import Scorer
from driving_xai.evaluation.summary import describe_machine, summarise
from driving_xai.metrics.registry import statistics_of_sets
from driving_xai.metrics.statistics import BlockBootstrap


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
    manifest = Manifest.load(shards)
    with given_maps(config) as given:
        plan = plan_of(checkpoint, manifest, config, given)
        if resume and (out / SUMMARY).is_file():
            results = Results.load(out)
            require_same(plan, results.summary["plan"], out)
            return results
        subject = open_subject(checkpoint, shards, config)
        scorer = scorer_of(checkpoint.model, config, given)
        if team.leads:
            _require_whole(shards, manifest)
            open_parts(out, plan, resume=resume)
        team.wait_for_all()
        score_parts(scorer, subject, given, out / FOLDER, config, team, on_progress)
        team.wait_for_all()
        if team.leads:
            _join(checkpoint, subject, scorer, plan, config, out)
        team.wait_for_all()
    return Results.load(out)


def score_in_shares(
    checkpoint: Checkpoint,
    shards: Path,
    out: Path,
    config: ScoreConfig,
    *,
    engine: Engine,
    shares: int,
    resume: bool = False,
    on_progress: Progress | None = None,
) -> Results:
    """As `score`, the batches shared out to an engine's workers; the results are those of `score`.

    Every worker must see the checkpoint, the shards and `out` under the same paths.

    Args:
        engine: whose workers score; one that is lost is replaced by another, which goes on.
        shares: how many pieces the work is cut into. Each drives a recurrent model through all frames.
        on_progress: called with the shares that are done.

    Raises:
        EngineError: the workers were lost; `resume` goes on.
    """
    if not (resume and (out / SUMMARY).is_file()):
        manifest = Manifest.load(shards)
        with given_maps(config) as given:
            open_subject(checkpoint, shards, config)  # What does not fit is refused before workers start.
            scorer_of(checkpoint.model, config, given)
            _require_whole(shards, manifest)
            open_parts(out, plan_of(checkpoint, manifest, config, given), resume=resume)
        device = str(next(checkpoint.model.parameters()).device)
        work = _Share(checkpoint.path.resolve(), device, shards.resolve(), out.resolve(), config, shares)
        for done, _ in enumerate(engine.map(work, range(shares)), start=1):
            if on_progress is not None:
                on_progress(done, shares)
    return score(checkpoint, shards, out, config, resume=True)


@dataclass(frozen=True)
class _Share:
    """The work of one worker, in a form that can be sent to it."""

    checkpoint: Path
    device: str
    shards: Path
    out: Path
    config: ScoreConfig
    shares: int

    def __call__(self, rank: int) -> int:
        checkpoint = load(self.checkpoint, device=self.device)
        team = Team(rank=rank, size=self.shares)
        with given_maps(self.config) as given:
            subject = open_subject(checkpoint, self.shards, self.config)
            scorer = scorer_of(checkpoint.model, self.config, given)
            score_parts(scorer, subject, given, self.out / FOLDER, self.config, team, None)
        return rank


def _require_whole(shards: Path, manifest: Manifest) -> None:
    """Raises DataError where a shard is not the one that the manifest lists: its hash is in the results."""
    for entry in manifest.shards:
        path = shards / entry.path
        if not path.is_file() or sha256_of(path) != entry.sha256:
            raise DataError(f"{path}: is not the shard that manifest.json lists; run `driving-xai verify`")


def _join(
    checkpoint: Checkpoint,
    subject: Subject,
    scorer: Scorer,
    plan: dict[str, Any],
    config: ScoreConfig,
    out: Path,
) -> None:
    """Turns complete parts into results, in the order of drives and time."""
    parts = out / FOLDER
    tables = [read_table(part) for part in sorted(parts.glob("part-*.parquet"))]
    require_predicted(tables, subject)
    # Stable, so that measures and methods keep their order within a frame.
    order = ["drive", "camera", "time_ns", "frame"]
    frames = _labels_once(pd.concat(tables, ignore_index=True)).sort_values(
        order, kind="stable", ignore_index=True
    )
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


def _labels_once(frames: pd.DataFrame) -> pd.DataFrame:
    """Keeps one row an image of what is measured on all its labels: with the map of its likeliest output."""
    ordered = frames.sort_values("prediction", ascending=False, kind="stable")
    again = ordered.duplicated(["drive", "camera", "frame", "measure", "reference", "method"])
    return frames.drop(index=ordered.index[again & (ordered["reference"] == "labels")])


def _summary(frames: pd.DataFrame, subject: Subject, scorer: Scorer, config: ScoreConfig) -> dict[str, Any]:
    bootstrap = BlockBootstrap(
        block=rows_together(subject, frames, config.block_s),
        resamples=config.resamples,
        level=config.level,
        seed=config.seed,
    )
    measures = {
        name: measure.describe(subject.quantity, fill=config.fill)
        for name, measure in scorer.measures.items()
    }
    return {
        "data": {**subject.describe(), "scored": len(frames.drop_duplicates(FRAME_COLUMNS))},
        **summarise(
            frames,
            quantity=subject.quantity,
            protocol=subject.protocol,
            measures=measures,
            methods=[name for name in scorer.methods if name not in CONTROLS],
            controls=CONTROLS,
            bootstrap=bootstrap,
            of_sets=statistics_of_sets(config.measures),
        ),
    }
