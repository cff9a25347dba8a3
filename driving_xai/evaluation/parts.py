"""A scoring run while it is under way: its plan, and a file for each batch that is done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from data_prep.shards.atomic import replacing
from data_prep.shards.manifest import Manifest, canonical_json
from driving_xai.checkpoint import Checkpoint
from driving_xai.errors import DataError
from driving_xai.evaluation.config import CONTROLS, ScoreConfig
from driving_xai.evaluation.data import Subject
from driving_xai.evaluation.distributed import Team
from driving_xai.evaluation.maps import MapFile, Part, save_part
from driving_xai.evaluation.masks import Masks
from driving_xai.evaluation.results import SUMMARY, write_table
from driving_xai.evaluation.scorer import Scorer
from driving_xai.explain.options import planned
from driving_xai.explain.registry import build
from driving_xai.metrics.aupc import Masking
from driving_xai.metrics.batch import Editing
from driving_xai.metrics.registry import chosen
from driving_xai.types import Saliency

FOLDER = "parts"
Progress = Callable[[int, int], None]
"""Called with the frames scored so far and in all."""


@contextmanager
def given_maps(config: ScoreConfig) -> Iterator[MapFile | None]:
    """The file of maps that was brought along, open; None where there is none."""
    if config.maps is None:
        yield None
        return
    given = MapFile(Path(config.maps))
    try:
        yield given
    finally:
        given.close()


def methods_of(config: ScoreConfig, given: MapFile | None) -> tuple[str, ...]:
    """Those asked for, those given, then the controls; each once."""
    brought = () if given is None else given.methods
    if twice := set(brought) & {*config.methods, *CONTROLS}:
        raise DataError(
            f"{config.maps}: its method {sorted(twice)[0]!r} is scored already; give it another name"
        )
    return tuple(dict.fromkeys((*config.methods, *brought, *CONTROLS)))


def plan_of(
    checkpoint: Checkpoint, manifest: Manifest, config: ScoreConfig, given: MapFile | None
) -> dict[str, Any]:
    """What decides the results, as JSON gives it back."""
    maps = {} if given is None else {"maps": given.path.name}
    masks = None if config.masks is None else Masks(Path(config.masks))
    names = {} if masks is None else {"masks": masks.path.name}
    settings = planned(config)
    if config.masking == Masking():
        del settings["masking"]  # So that plans are as they were before there was any.
    plan = {
        "config": {**settings, **maps, **names, "methods": methods_of(config, given)},
        "checkpoint_sha256": checkpoint.sha256,
        "settings_sha256": _settings_sha256(checkpoint),
        "shards_sha256": manifest.sha256,
        "maps_sha256": None if given is None else given.sha256,
        "masks_sha256": None if masks is None else masks.sha256,
    }
    return json.loads(json.dumps(plan))


def _settings_sha256(checkpoint: Checkpoint) -> str:
    """Of what decides results beside the weights: the model's and the input's settings, the thresholds."""
    settings = {name: checkpoint.config.get(name, {}) for name in ("model", "input")}
    content = canonical_json({**settings, "thresholds": checkpoint.thresholds})
    return hashlib.sha256(content).hexdigest()


def require_same(plan: dict[str, Any], found: dict[str, Any], out: Path) -> None:
    """Raises DataError where a run in `out` was planned otherwise."""
    ours, theirs = plan["config"], found["config"]
    # A plan without options does not name them, see `planned`, nor the default masking.
    keys = [*ours, *(each for each in ("options", "masking") if each in theirs and each not in ours)]
    differing = [key for key in keys if ours.get(key) != theirs.get(key)]
    differing += [key for key in plan if key != "config" and plan[key] != found.get(key)]
    if differing:
        raise DataError(f"{out}: was scored with another {', '.join(differing)}; give another folder")


def open_parts(out: Path, plan: dict[str, Any], *, resume: bool) -> None:
    """Makes the folder of scored batches: new, or of an interrupted run with the same plan."""
    parts = out / FOLDER
    if (out / SUMMARY).exists() or (parts.exists() and not resume):
        state = "results" if (out / SUMMARY).exists() else "an unfinished run"
        raise DataError(f"{out}: already holds {state}; give another folder, or resume")
    if (parts / "plan.json").is_file():
        require_same(plan, json.loads((parts / "plan.json").read_text()), out)
        return
    parts.mkdir(parents=True, exist_ok=True)
    with replacing(parts / "plan.json") as temporary:
        temporary.write_bytes(canonical_json(plan))


def scorer_of(model: Any, config: ScoreConfig, given: MapFile | None) -> Scorer:
    """Fits every method to the model.

    Raises:
        UnsupportedModelError: the model lacks what a method needs.
    """
    methods = methods_of(config, given)
    brought = () if given is None else given.methods
    return Scorer(
        methods=methods,
        explainers={
            name: build(
                name, model, seed=config.seed, batch_size=config.batch_size, options=config.options.get(name)
            )
            for name in methods
            if name not in brought
        },
        measures=chosen(config.measures, config.masking),
        editing=Editing(fill=config.fill, batch_size=config.batch_size, seed=config.seed),
    )


def score_parts(
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
    masks = None if config.masks is None else Masks(Path(config.masks))
    saved = [position for position, name in enumerate(scorer.methods) if name not in CONTROLS]
    for number, batch in enumerate(subject.batches(config.batch_size)):
        part = parts / f"part-{number:06d}.parquet"
        if team.takes(number) and not part.is_file():
            places = subject.places(batch.rows).assign(target=batch.targets)
            if masks is not None:
                known = masks.causes(places, *batch.frames.shape[2:])
                batch = batch._replace(causes=known.to(batch.frames.device))
            maps = scorer.explain(batch, _read_maps(given, places, tuple(batch.frames.shape[2:])))
            if config.save_maps:
                kept = Part(places, maps.saliency[:, saved].cpu().numpy())
                save_part(part.with_suffix(".npz"), kept)
            write_table(part, scorer.rows(batch, maps, places))
        done += len(np.unique(batch.rows))
        if on_progress is not None:
            on_progress(done, subject.total)


def _read_maps(given: MapFile | None, places: pd.DataFrame, size: tuple[int, ...]) -> dict[str, Saliency]:
    if given is None:
        return {}
    if given.size != size:
        raise DataError(f"{given.path}: its maps are of {given.size}, the frames of {size}; resize the maps")
    return {name: torch.from_numpy(given.read(name, places)) for name in given.methods}
