"""Scores explanations along a data set: explained, ranked, measured, with two controls, resumable and shared out.

While a run is under way its folder holds its plan and a file for each batch that is done.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep import places
from data_prep.engines import Engine
from driving_xai.checkpoint import Checkpoint, load
from driving_xai.evaluation.config import ScoreConfig
from driving_xai.evaluation.distributed import ALONE, World
from driving_xai.evaluation.job import NO_OBJECTS, Objects, Progress, Say, opened
from driving_xai.evaluation.parts import FOLDER, open_parts, require_complete
from driving_xai.evaluation.plan import require_same
from driving_xai.evaluation.results import (
    SUMMARY,
    Results,
    locked,
)
from driving_xai.models.capabilities import device_of


def score(
    checkpoint: Checkpoint,
    shards: Path,
    out: Path,
    config: ScoreConfig,
    *,
    resume: bool = False,
    world: World = ALONE,
    objects: Objects = NO_OBJECTS,
    on_start: Say | None = None,
    on_progress: Progress | None = None,
) -> Results:
    """Scores a checkpoint's explanations on a set of shards and saves the results in `out`.

    Batches already scored are kept in `out` until the results are complete. The processes of a world share
    the work through that folder, and the results are those of one process.

    Args:
        checkpoint: on the device to compute on.
        shards: a folder that `prep` wrote.
        out: a folder without results, unless `resume` completes or returns those in it.
        config: what is scored, and how.
        resume: continue a run of the same configuration, model and data that was interrupted.
        world: this process among those that share the run.
        objects: explainers and metrics that are not named in the configuration.
        on_start: called with each line about what will run, before any work.
        on_progress: called after each batch.

    Raises:
        DataError: the shards do not fit the checkpoint, hold none of the frames asked for, or lack what
            a metric needs; `out` holds other results, or another run is writing there.
        CheckpointError: models of this kind cannot be scored.
        UnsupportedModelError: the model lacks what a method needs.
    """
    with opened(checkpoint, shards, config, objects) as run, ExitStack() as until_joined:
        if resume and (out / SUMMARY).is_file():
            return _finished(out, run.plan, world)
        run.prepare()
        if world.is_main:
            if on_start is not None:
                for line in run.what_runs():
                    on_start(line)
            run.require_whole()
            until_joined.enter_context(locked(out))
            open_parts(out, run.plan, resume=resume)
        world.barrier()
        run.score_parts(out / FOLDER, world, on_progress)
        world.barrier()
        if world.is_main:
            run.join(out)
        world.barrier()
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
        checkpoint: on the device that the workers compute on, too.
        shards: a folder that `prep` wrote.
        out: see `score`.
        config: what is scored, and how.
        engine: whose workers score; one that is lost is replaced by another, which goes on.
        shares: how many pieces the work is cut into. Each drives a recurrent model through all frames.
        resume: see `score`.
        on_progress: called with the shares that are done.

    Raises:
        EngineError: the workers were lost; `resume` goes on.
    """
    with opened(checkpoint, shards, config) as run:
        if resume and (out / SUMMARY).is_file():
            return _finished(out, run.plan, ALONE)
        run.prepare()  # What does not fit is refused before workers start.
        run.require_whole()
        with locked(out):
            open_parts(out, run.plan, resume=resume)
            device = str(device_of(checkpoint.model))
            # Not resolved: behind a link the workers would not know a path as one of the cache.
            work = _Share(
                checkpoint.path.absolute(), device, shards.absolute(), out.absolute(), config, shares
            )
            batches = 0
            for done, seen in enumerate(engine.map(work, range(shares)), start=1):
                batches = max(batches, seen)
                if on_progress is not None:
                    on_progress(done, shares)
            require_complete(out / FOLDER, batches)
            run.join(out)
    return Results.load(out)


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
        checkpoint = load(places.present(self.checkpoint), device=self.device)
        with opened(checkpoint, places.present(self.shards), self.config) as run:
            return run.score_parts(self.out / FOLDER, World(rank=rank, world_size=self.shares), None)


def _finished(out: Path, plan: Mapping[str, Any], world: World) -> Results:
    """The results that are there already; of several processes the first clears away what a killed run left."""
    results = Results.load(out)
    require_same(plan, results.summary["plan"], out)
    if world.is_main and (out / FOLDER).exists():  # of a run that was killed after its last file was written
        with locked(out):
            shutil.rmtree(out / FOLDER, ignore_errors=True)
    return results
