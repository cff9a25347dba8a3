"""The sanity checks of several methods along a route, saved as a table and its means.

The frames are those that `score` would take. Each stage of randomised weights drives the route anew, so
that a recurrent model's memory is the randomised model's own.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from data_prep.shards.atomic import replacing, sha256_of
from data_prep.shards.manifest import Manifest, canonical_json
from data_prep.values import Interval, PositiveCount
from driving_xai.checkpoint import Checkpoint
from driving_xai.errors import DataError
from driving_xai.evaluation.config import EvalConfig, ScoreConfig, explainers_of
from driving_xai.evaluation.data import EvalData, largest_drive, open_data, require_predicted, rows_together
from driving_xai.evaluation.maps_file import Masks
from driving_xai.evaluation.results import FRAME_COLUMNS, locked
from driving_xai.evaluation.sanity_files import PER_FRAME, SCHEMA, SUMMARY
from driving_xai.evaluation.summary import describe_machine, interval
from driving_xai.explain.base import Explainer
from driving_xai.explain.options import planned
from driving_xai.explain.registry import require_methods
from driving_xai.metrics.batch import EvalBatch, RankedMaps
from driving_xai.metrics.curves import rank
from driving_xai.metrics.randomisation import (
    layers_in_order,
    map_correlation,
    max_sensitivity,
    randomised,
    top_overlap,
)
from driving_xai.metrics.registry import FAMILIES, build
from driving_xai.metrics.statistics import BlockBootstrap
from driving_xai.models.capabilities import device_of, scores_of
from driving_xai.types import Saliency

CHECKS = ("cascading", "independent", "noise", "agreement")
LOCALISATIONS = FAMILIES["localisation"]
"""Names of the metrics that compare maps with masks."""
Progress = Callable[[int, int], None]
"""Called with the passes over the route that are done and in all."""


@dataclass(frozen=True, kw_only=True)
class SanityConfig(EvalConfig):
    """Which checks are made of which methods, on which frames.

    Raises:
        ValueError: an option is out of range or unknown; the message says what is possible.

    Example:
        >>> SanityConfig(methods=("grad-cam",)).checks
        ('cascading', 'independent', 'noise', 'agreement')
    """

    every: PositiveCount = 20
    checks: tuple[str, ...] = CHECKS
    noise_radius: Annotated[float, Interval(gt=0, le=1)] = 0.02
    noise_draws: PositiveCount = 5
    top_share: Annotated[float, Interval(gt=0, lt=1)] = 0.1
    """Of the pixels, whose overlap is counted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_methods(self.methods, self.options)
        if not self.checks or (unknown := [each for each in self.checks if each not in CHECKS]):
            got = repr(unknown[0]) if self.checks else "none"
            near = get_close_matches(unknown[0], CHECKS, n=1) if self.checks else []
            meant = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"got check {got}, expected some of: {', '.join(CHECKS)}{meant}")
        if twice := [each for each in self.checks if self.checks.count(each) > 1]:
            raise ValueError(f"got check {twice[0]!r} twice, expected each once")


class _Stage(NamedTuple):
    """Weights that are drawn anew together."""

    check: str
    layer: str
    """The one that the stage adds or consists of."""
    layers: tuple[str, ...]


class _Explained(NamedTuple):
    """A batch with the maps of every method."""

    batch: EvalBatch
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
        checkpoint: on the device to compute on; its weights are drawn anew while a stage runs, and back afterwards.
        shards: a folder that `prep` wrote.
        out: a folder without sanity checks.
        config: which checks, of which methods.
        masks: pixels known to matter; the maps are located against them.
        on_progress: called after each stage.

    Raises:
        DataError: the shards do not fit the checkpoint, hold no such frames, nothing is predicted in any of
            them, no mask is of one of them, or `out` holds results.
        UnsupportedModelError: the model lacks what a method needs.
    """
    if (out / SUMMARY).exists():
        raise DataError(f"{out}: already holds sanity checks; give another folder")
    manifest = Manifest.load(shards)
    data = open_data(checkpoint, shards, manifest, _as_scored(config), with_masks=False)
    explainers = explainers_of(config.methods, checkpoint.model, config)
    with locked(out):
        clean = list(_explain(data, explainers, _batches(data, config)))
        require_predicted(clean, data)
        rows = [_of_clean(each, explainers, config, masks) for each in clean]
        if masks is not None:
            _require_located(rows, masks)
        stages = _stages(checkpoint.model, clean[0].batch, config)
        for done, stage in enumerate(stages, start=1):
            with randomised(checkpoint.model, stage.layers, config.seed):
                batches = _driven(clean, data, config)
                for ours, theirs in zip(clean, _explain(data, explainers, batches), strict=True):
                    rows.append(_of_stage(ours, theirs, stage, config))
            if on_progress is not None:
                on_progress(done, len(stages))
        return _save(
            pd.concat(rows, ignore_index=True),
            out,
            _about(checkpoint, manifest, data, config, masks, checked=_count(clean)),
            _bootstrap(data, clean, config),
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


def _driven(clean: Sequence[_Explained], data: EvalData, config: SanityConfig) -> Iterator[EvalBatch]:
    """The clean batches, their targets included, with the memory that the model's present weights leave.

    Source: Adebayo et al. 2018, who hold the explained class fixed.
    """
    if data.seconds_apart is None:
        # No memory: nothing is driven, and the model may not choose other images or outputs.
        yield from (each.batch for each in clean)
        return
    for ours, theirs in zip(clean, _batches(data, config), strict=True):
        assert np.array_equal(ours.batch.rows, theirs.rows)
        yield ours.batch._replace(model=theirs.model)


def _batches(data: EvalData, config: SanityConfig) -> Iterator[EvalBatch]:
    return (batch for _, batch in data.batches(config.batch_size) if batch is not None)


def _explain(
    data: EvalData, explainers: Mapping[str, Explainer], batches: Iterable[EvalBatch]
) -> Iterator[_Explained]:
    for batch in batches:
        maps = {name: batch.explained(explain, name).detach().float() for name, explain in explainers.items()}
        yield _Explained(batch, maps, _places(data, batch))


def _places(data: EvalData, batch: EvalBatch) -> pd.DataFrame:
    return data.places(batch.rows).reset_index(drop=True).assign(target=list(batch.targets))


def _stages(model: nn.Module, batch: EvalBatch, config: SanityConfig) -> list[_Stage]:
    """From the output to the input: each layer with those before it, and each alone."""
    layers = layers_in_order(model, lambda: scores_of(batch.model, batch.frames))
    stages = []
    if "cascading" in config.checks:
        stages += [_Stage("cascading", layer, tuple(layers[: at + 1])) for at, layer in enumerate(layers)]
    if "independent" in config.checks:
        stages += [_Stage("independent", layer, (layer,)) for layer in layers]
    return stages


def _of_clean(
    explained: _Explained, explainers: Mapping[str, Explainer], config: SanityConfig, masks: Masks | None
) -> pd.DataFrame:
    """What needs the trained weights only."""
    found = list(_degenerate(explained))
    if "noise" in config.checks:
        found += _noise(explained, explainers, config)
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


def _noise(
    explained: _Explained, explainers: Mapping[str, Explainer], config: SanityConfig
) -> Iterator[_Found]:
    for name, explain in explainers.items():
        parts = explained.batch.parts(explain)
        maps = explained.maps[name].split([len(part.frames) for part in parts])
        largest = [
            max_sensitivity(
                explain,
                part.model,
                part.frames,
                part.target_of(name),
                ours,
                radius=config.noise_radius,
                draws=config.noise_draws,
                seed=config.seed,
            )
            for part, ours in zip(parts, maps, strict=True)
        ]
        yield _Found("noise", name, "", "max-sensitivity", np.concatenate(largest))


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
    yield _Found(check, method, beside, "spearman", map_correlation(ours, theirs))
    yield _Found(check, method, beside, "top-overlap", top_overlap(first, second, config.top_share))


def _ranked(maps: Saliency, config: SanityConfig) -> torch.Tensor:
    return rank(maps, torch.Generator().manual_seed(config.seed))


def _located(explained: _Explained, masks: Masks, config: SanityConfig) -> Iterator[_Found]:
    batch, names = explained.batch, list(explained.maps)
    known = masks.read(explained.places, *batch.frames.shape[2:]).to(batch.frames.device)
    located = batch._replace(ground_truth_mask=known)
    ranked = RankedMaps.of(torch.stack([*explained.maps.values()], 1), seed=config.seed)
    for quantity in LOCALISATIONS:
        ((_, columns),) = build(quantity).measure(located, ranked)
        for position, name in enumerate(names):
            value, chance = (columns[each][:, position].cpu().numpy() for each in ("value", "chance"))
            yield _Found("masks", name, "", quantity, value)
            yield _Found("masks", name, "", f"{quantity} by chance", chance)


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


def _bootstrap(data: EvalData, clean: Sequence[_Explained], config: SanityConfig) -> BlockBootstrap:
    block = rows_together(data, largest_drive(pd.concat([each.places for each in clean])), config.block_s)
    return BlockBootstrap(block=block, resamples=config.resamples, level=config.level, seed=config.seed)


def _count(clean: Sequence[_Explained]) -> int:
    """Of frames; one that is explained for several outputs counts once."""
    return len(np.unique(np.concatenate([each.batch.rows for each in clean])))


def _about(
    checkpoint: Checkpoint,
    manifest: Manifest,
    data: EvalData,
    config: SanityConfig,
    masks: Masks | None,
    *,
    checked: int,
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "plan": {
            "config": json.loads(json.dumps(planned(config))),
            **checkpoint.in_plans,
            "shards_sha256": manifest.sha256,
            "masks": None if masks is None else masks.path.name,
        },
        "data": {**data.describe(), "checked": checked, "passed_over": data.total - checked},
        "chance": {"spearman": 0.0, "top-overlap": config.top_share},
        **describe_machine(device_of(checkpoint.model)),
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
