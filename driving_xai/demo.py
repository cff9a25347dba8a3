"""The main job once, on a rendered route: prepare, train, score, replay.

It calls the functions that the commands call. What it makes is small, so that two CPU cores do it in
minutes: the numbers show that everything works together, not how well the methods do on real roads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import lightning as L

from data_prep.geometry import Geometry
from data_prep.prepare import PrepConfig, Progress, prepare
from driving_xai import checkpoint
from driving_xai.evaluation.run import ScoreConfig, score
from driving_xai.models.steering import SteeringConfig
from driving_xai.replay.config import ReplayConfig
from driving_xai.replay.player import replay
from driving_xai.training.state import RESUME
from driving_xai.training.steering import SteeringTraining, train

_BLOCK_S = 3.0
"""Ten blocks in the half minute that is scored: fewer than eight give no interval."""
OnProgress = Callable[[float, float], None]


class Stage(Protocol):
    """Opens the display of one stage; see `cli.console.progress`."""

    def __call__(self, title: str, *, unit: str) -> AbstractContextManager[OnProgress]: ...


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is driven and learnt."""

    drives: int = 6
    """The last two are for validation and test."""
    seconds: float = 30.0
    """Of each drive, and of the replayed one."""
    hidden_size: int = 64
    frame_epochs: int = 5
    epochs: int = 2
    score_every: int = 6


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a demo left behind."""

    paths: Mapping[str, Path]
    """video, scores, model, shards."""
    metrics: Mapping[str, Any]
    """Of the checkpoint: its error beside constant predictors'."""
    summary: Mapping[str, Any]
    """Of the scores: the content of results.json."""


def run(
    out: Path, *, seed: int, stage: Stage, callback: Callable[[OnProgress], L.Callback], scale: Scale
) -> Made:
    """Does everything that is not done yet in a folder.

    Args:
        out: a new folder, or one that an earlier demo of the same seed and scale began.
        seed: of the route, the training and the scoring.
        stage: shows how far each stage has come.
        callback: makes the Lightning callback that shows how far training has come.
        scale: how much is driven and learnt.

    Raises:
        DataError: the folder holds something else.
    """
    shards, model, scores, video = out / "shards", out / "model", out / "scores", out / "drive.mp4"
    out.mkdir(parents=True, exist_ok=True)
    _prepare(_route(out / "route.toml", scale.drives, scale.seconds, seed), shards, scale, seed, stage)
    how = SteeringTraining(
        # A readout of the LSTM learns from little data what eq. 10 learns from hours of it.
        model=SteeringConfig(hidden_size=scale.hidden_size, output="linear"),
        frame_epochs=scale.frame_epochs,
        epochs=scale.epochs,
        batch_size=4,
        frame_learning_rate=5e-4,
        learning_rate=3e-4,
        seed=seed,
    )
    with stage("train", unit="epochs") as on_progress:
        _train(shards, model, how, callback(on_progress))
    loaded = checkpoint.load(model)
    judged = ScoreConfig(
        # The papers' method, and one whose pixels matter most on this model.
        methods=("sign-attention", "grad-cam", "integrated-gradients"),
        measures=("deletion", "pointing-game"),
        split="test",
        every=scale.score_every,
        block_s=_BLOCK_S,
        seed=seed,
    )
    with stage("score", unit="frames") as on_progress:
        results = score(loaded, shards, scores, judged, resume=True, on_progress=on_progress)
    # A drive that none of the shards holds, at the size of a real camera.
    unseen = _route(out / "unseen.toml", 1, scale.seconds, seed + 1, height=480, width=640)
    with stage("replay", unit="frames") as on_progress:
        replay(loaded, unseen, video, ReplayConfig(seed=seed, block_s=_BLOCK_S), on_progress=on_progress)
    return Made(
        paths={"video": video, "scores": scores, "model": model, "shards": shards},
        metrics=loaded.metrics,
        summary=results.summary,
    )


def _route(
    file: Path, drives: int, seconds: float, seed: int, *, height: int = 240, width: int = 320
) -> Path:
    options = {"drives": drives, "seconds": seconds, "seed": seed, "height": height, "width": width}
    file.write_text("".join(f"{name} = {value}\n" for name, value in options.items()))
    return file


def _prepare(route: Path, shards: Path, scale: Scale, seed: int, stage: Stage) -> None:
    names = [f"synthetic-{seed}-{number}" for number in range(scale.drives)]
    config = PrepConfig(
        reader="synthetic",
        source=route,
        geometry=Geometry(crop_top=0.4),  # the horizon is lower
        split="drive",
        val_drives=(names[-2],),
        test_drives=(names[-1],),
    )
    with stage("prep", unit="shards") as on_progress:

        def shown(progress: Progress) -> None:
            on_progress(progress.units_done, progress.units_total)

        # Rendering is Python: threads would wait for each other.
        workers = min(scale.drives, len(os.sched_getaffinity(0)))
        prepare(config, shards, engine="processes", workers=workers, resume=True, on_progress=shown)


def _train(shards: Path, model: Path, how: SteeringTraining, callback: L.Callback) -> None:
    if (model / checkpoint.CONFIG).exists():
        return
    begun = (model / RESUME / checkpoint.CONFIG).exists()
    train(shards, model, how, device="cpu", resume=begun, callbacks=(callback,))
