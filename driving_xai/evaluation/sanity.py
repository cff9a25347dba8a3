"""The sanity checks of several methods along a route, saved as a table and its means.

The frames are those that `score` would take. Each stage of randomised weights drives the route anew, so
that a recurrent model's memory is the randomised model's own.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from data_prep.shards.atomic import replacing, sha256_of
from data_prep.shards.manifest import Manifest, canonical_json
from driving_xai.checkpoint import Checkpoint
from driving_xai.errors import DataError
from driving_xai.evaluation.config import ScoreConfig
from driving_xai.evaluation.data import Split, Subject
from driving_xai.evaluation.datasets import open_subject, require_predicted, rows_together
from driving_xai.evaluation.masks import Masks
from driving_xai.evaluation.results import FRAME_COLUMNS
from driving_xai.evaluation.summary import describe_machine, interval
from driving_xai.explain.options import OptionsOf, planned
from driving_xai.explain.registry import build, require_methods
from driving_xai.metrics import localisation
from driving_xai.metrics.batch import Batch
from driving_xai.metrics.curves import rank
from driving_xai.metrics.localisation import Localisation
from driving_xai.metrics.randomisation import (
    layers_in_order,
    max_sensitivity,
    randomise_,
    spearman,
    top_overlap,
)
from driving_xai.metrics.statistics import BlockBootstrap
from driving_xai.types import Explainer, Saliency

SCHEMA = "driving-xai-sanity/1"
SUMMARY, PER_FRAME = "sanity.json", "sanity.parquet"
CHECKS = ("cascading", "independent", "noise", "agreement")
LOCALISATIONS: dict[str, Localisation] = {
    "pointing-game": localisation.pointing_game,
    "mass-inside": localisation.mass_inside,
    "top-k-precision": localisation.top_k_precision,
    "auroc": localisation.auroc,
}
Progress = Callable[[int, int], None]
"""Called with the passes over the route that are done and in all."""


@dataclass(frozen=True, kw_only=True)
class SanityConfig:
    """Which checks are made of which methods, on which frames.

    Raises:
        ValueError: an option is out of range or unknown; the message says what is possible.
    """

    methods: tuple[str, ...]
    options: OptionsOf = field(default_factory=dict)
    """Of methods, by name: `{"snna": {"samples": 3}}`; see docs/methods.md."""
    checks: tuple[str, ...] = CHECKS
    target: str | None = None
    """What is explained; see `ScoreConfig`."""
    split: Split = "held-out"
    every: int = 20
    batch_size: int = 32
    seed: int = 0
    """Of weights, of noise, of ties, of methods that draw, and of the intervals."""
    noise_radius: float = 0.02
    noise_draws: int = 5
    top_share: float = 0.1
    """Of the pixels, whose overlap is counted."""
    block_s: float = 5.0
    resamples: int = 2000
    level: float = 0.95

    def __post_init__(self) -> None:
        require_methods(self.methods, self.options)
        if not self.checks or (unknown := [each for each in self.checks if each not in CHECKS]):
            got = repr(unknown[0]) if self.checks else "none"
            raise ValueError(f"got check {got}, expected some of: {', '.join(CHECKS)}")
        if twice := [each for each in self.checks if self.checks.count(each) > 1]:
            raise ValueError(f"got check {twice[0]!r} twice, expected each once")
        for name, least in (
            ("every", 1),
            ("batch_size", 1),
            ("noise_draws", 1),
            ("resamples", 1),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"got {name} {getattr(self, name)}, expected {least} or more")
        if self.block_s <= 0 or not 0 < self.level < 1:
            raise ValueError(
                f"got block_s {self.block_s}, level {self.level}; expected > 0 and within (0, 1)"
            )
        if not 0 < self.noise_radius <= 1 or not 0 < self.top_share < 1:
            raise ValueError(
                f"got noise_radius {self.noise_radius}, top_share {self.top_share}; expected over 0 and at most 1"
            )


class _Stage(NamedTuple):
    """Weights that are drawn anew together."""

    check: str
    layer: str
    """The one that the stage adds or consists of."""
    layers: tuple[str, ...]


class _Explained(NamedTuple):
    """A batch with the maps of every method."""

    batch: Batch
    explainers: dict[str, Explainer]
    maps: dict[str, Saliency]
    places: pd.DataFrame


def check(
    checkpoint: Checkpoint,
    shards: Path,
    out: Path,
    config: SanityConfig,
    *,
    masks: Masks | None = None,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Makes the checks and saves `sanity.json` and `sanity.parquet` in `out`; returns the former's content.

    Args:
        checkpoint: on the device to compute on; its weights stay as they are.
        masks: pixels known to matter; the maps are located against them.

    Raises:
        DataError: the shards do not fit the checkpoint, hold no such frames, nothing is predicted in any of
            them, no mask is of one of them, or `out` holds results.
        UnsupportedModelError: the model lacks what a method needs.
    """
    if (out / SUMMARY).exists():
        raise DataError(f"{out}: already holds sanity checks; give another folder")
    subject = open_subject(checkpoint, shards, _as_scored(config))
    clean = list(_explain(subject, checkpoint.model, config, subject.batches(config.batch_size)))
    require_predicted(clean, subject)
    stages = _stages(checkpoint.model, clean[0].batch, config)
    rows = [_of_clean(each, config, masks) for each in clean]
    if masks is not None:
        _require_located(rows, masks)
    for done, stage in enumerate(stages, start=1):
        # The copy's weights are drawn on the trained one's device.
        model = copy.deepcopy(checkpoint.model)
        randomise_(model, stage.layers, config.seed)
        driven = open_subject(replace(checkpoint, model=model), shards, _as_scored(config))
        batches = _randomised(clean, driven, model, config)
        for ours, theirs in zip(clean, _explain(driven, model, config, batches), strict=True):
            rows.append(_of_stage(ours, theirs, stage, config))
        if on_progress is not None:
            on_progress(done, len(stages))
    table = pd.concat(rows, ignore_index=True)
    return _save(
        table,
        out,
        _about(checkpoint, shards, subject, config, masks, checked=_count(clean)),
        _bootstrap(subject, clean, config),
    )


def _as_scored(config: SanityConfig) -> ScoreConfig:
    """The frames are those that `score` takes."""
    return ScoreConfig(
        methods=config.methods,
        options=config.options,
        target=config.target,
        split=config.split,
        every=config.every,
        batch_size=config.batch_size,
    )


def _randomised(
    clean: Sequence[_Explained], driven: Subject, model: Any, config: SanityConfig
) -> Iterator[Batch]:
    """The clean batches, their targets included, with the randomised model in place of the trained one.

    Source: Adebayo et al. 2018, who hold the explained class fixed.
    """
    if driven.seconds_apart is None:
        # No memory: nothing is driven, and the model may not choose other images or outputs.
        yield from (each.batch._replace(model=model) for each in clean)
        return
    for ours, theirs in zip(clean, driven.batches(config.batch_size), strict=True):
        assert np.array_equal(ours.batch.rows, theirs.rows)
        yield ours.batch._replace(model=theirs.model)


def _explain(
    subject: Subject, model: nn.Module, config: SanityConfig, batches: Iterable[Batch]
) -> Iterator[_Explained]:
    explainers = {
        name: build(
            name, model, seed=config.seed, batch_size=config.batch_size, options=config.options.get(name)
        )
        for name in config.methods
    }
    for batch in batches:
        maps = {
            name: explain(batch.model, batch.frames, batch.target).detach().float()
            for name, explain in explainers.items()
        }
        yield _Explained(batch, explainers, maps, _places(subject, batch))


def _places(subject: Subject, batch: Batch) -> pd.DataFrame:
    return subject.places(batch.rows).reset_index(drop=True).assign(target=list(batch.targets))


def _stages(model: nn.Module, batch: Batch, config: SanityConfig) -> list[_Stage]:
    """From the output to the input: each layer with those before it, and each alone."""
    layers = layers_in_order(model, lambda: batch.model(batch.frames))
    stages = []
    if "cascading" in config.checks:
        stages += [_Stage("cascading", layer, tuple(layers[: at + 1])) for at, layer in enumerate(layers)]
    if "independent" in config.checks:
        stages += [_Stage("independent", layer, (layer,)) for layer in layers]
    return stages


def _of_clean(explained: _Explained, config: SanityConfig, masks: Masks | None) -> pd.DataFrame:
    """What needs the trained weights only."""
    found = list(_degenerate(explained))
    if "noise" in config.checks:
        found += _noise(explained, config)
    if "agreement" in config.checks:
        found += _agreement(explained, config)
    if masks is not None:
        found += _located(explained, masks, config)
    return _rows(explained, found)


class _Found(NamedTuple):
    """A value for each frame of a batch."""

    check: str
    method: str
    beside: str
    """The layer, the other method, or nothing."""
    quantity: str
    values: np.ndarray


def _degenerate(explained: _Explained) -> Iterator[_Found]:
    for name, maps in explained.maps.items():
        flat = maps.flatten(1)
        yield _Found("degenerate", name, "", "share", (flat.amax(1) == flat.amin(1)).double().cpu().numpy())


def _noise(explained: _Explained, config: SanityConfig) -> Iterator[_Found]:
    batch = explained.batch
    for name, explain in explained.explainers.items():
        largest = max_sensitivity(
            explain,
            batch.model,
            batch.frames,
            batch.target,
            explained.maps[name],
            radius=config.noise_radius,
            draws=config.noise_draws,
            seed=config.seed,
        )
        yield _Found("noise", name, "", "max-sensitivity", largest)


def _agreement(explained: _Explained, config: SanityConfig) -> Iterator[_Found]:
    for name, other in itertools.combinations(explained.maps, 2):
        yield from _alike("agreement", name, other, explained.maps[name], explained.maps[other], config)


def _of_stage(ours: _Explained, theirs: _Explained, stage: _Stage, config: SanityConfig) -> pd.DataFrame:
    """The maps of trained and of randomised weights."""
    found = [
        each
        for name in config.methods
        for each in _alike(stage.check, name, stage.layer, ours.maps[name], theirs.maps[name], config)
    ]
    return _rows(ours, found)


def _alike(
    check: str, method: str, beside: str, ours: Saliency, theirs: Saliency, config: SanityConfig
) -> Iterator[_Found]:
    first, second = (_ranked(maps, config) for maps in (ours, theirs))
    yield _Found(check, method, beside, "spearman", spearman(ours, theirs))
    yield _Found(check, method, beside, "top-overlap", top_overlap(first, second, config.top_share))


def _ranked(maps: Saliency, config: SanityConfig) -> torch.Tensor:
    return rank(maps, torch.Generator().manual_seed(config.seed))


def _located(explained: _Explained, masks: Masks, config: SanityConfig) -> Iterator[_Found]:
    height, width = explained.batch.frames.shape[2:]
    causes = masks.causes(explained.places, height, width).to(explained.batch.frames.device)
    for name, maps in explained.maps.items():
        ranks = _ranked(maps, config)
        for quantity, localise in LOCALISATIONS.items():
            value, chance = localise(maps, ranks, causes)
            yield _Found("masks", name, "", quantity, value.cpu().numpy())
            yield _Found("masks", name, "", f"{quantity} by chance", chance.cpu().numpy())


def _require_located(rows: Sequence[pd.DataFrame], masks: Masks) -> None:
    """Raises DataError where no frame has a mask: numbers that are all unknown would look like a result."""
    if any(table.loc[table["check"] == "masks", "value"].notna().any() for table in rows):
        return
    place = rows[0].iloc[0]
    raise DataError(
        f"{masks.path}: no mask is of a frame that is checked, whose first is {place['drive']}/{place['frame']}; "
        "name masks DRIVE/FRAME, or check other frames"
    )


def _rows(explained: _Explained, found: Sequence[_Found]) -> pd.DataFrame:
    places = explained.places[FRAME_COLUMNS].reset_index(drop=True)
    tables = [
        places.assign(
            check=each.check,
            method=each.method,
            beside=each.beside,
            quantity=each.quantity,
            value=np.asarray(each.values, dtype=np.float64),
        )
        for each in found
    ]
    return pd.concat(tables, ignore_index=True)


def _bootstrap(subject: Subject, clean: Sequence[_Explained], config: SanityConfig) -> BlockBootstrap:
    block = rows_together(subject, pd.concat([each.places for each in clean]), config.block_s)
    return BlockBootstrap(block=block, resamples=config.resamples, level=config.level, seed=config.seed)


def _count(clean: Sequence[_Explained]) -> int:
    """Of frames; one that is explained for several outputs counts once."""
    return len(np.unique(np.concatenate([each.batch.rows for each in clean])))


def _about(
    checkpoint: Checkpoint,
    shards: Path,
    subject: Subject,
    config: SanityConfig,
    masks: Masks | None,
    *,
    checked: int,
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "plan": {
            "config": json.loads(json.dumps(planned(config))),
            "checkpoint_sha256": checkpoint.sha256,
            "shards_sha256": Manifest.load(shards).sha256,
            "masks": None if masks is None else masks.path.name,
        },
        "data": {**subject.describe(), "checked": checked, "passed_over": subject.total - checked},
        "chance": {"spearman": 0.0, "top-overlap": config.top_share},
        **describe_machine(next(checkpoint.model.parameters()).device),
    }


def _save(table: pd.DataFrame, out: Path, about: dict[str, Any], bootstrap: BlockBootstrap) -> dict[str, Any]:
    """Means of every quantity, in the order in which they came; the summary is written last."""
    keys = ["check", "method", "beside", "quantity"]
    means = []
    for key, rows in table.groupby(keys, sort=False):
        # In time: batches may hold several runs side by side.
        known = rows.sort_values(["drive", "camera", "time_ns", "frame"], kind="stable")["value"].dropna()
        names = dict(zip(keys, key, strict=True))
        means.append({**names, "frames": len(known), "value": interval(known, bootstrap)})
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / PER_FRAME) as temporary:
        table.to_parquet(temporary, index=False, compression="zstd")
    files = {PER_FRAME: sha256_of(out / PER_FRAME)}
    summary = {**about, "intervals": asdict(bootstrap), "means": means, "files": files}
    with replacing(out / SUMMARY) as temporary:
        temporary.write_bytes(canonical_json(summary))
    return summary
