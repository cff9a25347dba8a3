"""One scoring job: its data, explainers and metrics, the batches that are scored, and what is said of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from data_prep import places
from data_prep.shards.atomic import sha256_of
from data_prep.shards.manifest import Manifest
from driving_xai.checkpoint import Checkpoint, load
from driving_xai.errors import DataError
from driving_xai.evaluation import ranked_cells
from driving_xai.evaluation.allocator import keep_freed_memory, release_fragments
from driving_xai.evaluation.condensed import CondensedRows
from driving_xai.evaluation.config import CONTROLS, ScoreConfig, explainers_of
from driving_xai.evaluation.data import (
    EvalData,
    masks_of_shards,
    open_data,
    require_predicted,
    rows_together,
)
from driving_xai.evaluation.distributed import World
from driving_xai.evaluation.fill_margins import headlines
from driving_xai.evaluation.fills import under_fills
from driving_xai.evaluation.judgement import beforehand
from driving_xai.evaluation.maps_file import MapFile, Masks, Part, join_parts, save_part
from driving_xai.evaluation.parts import FOLDER, part_of
from driving_xai.evaluation.plan import class_of, settings_of, settings_sha256
from driving_xai.evaluation.ranked_cells import RankedBy
from driving_xai.evaluation.results import (
    MAPS,
    PER_FRAME,
    SUMMARY,
    Results,
    arrow_table,
    read_rows,
    save_summary,
    write_row_groups,
    write_table,
)
from driving_xai.evaluation.row_order import in_order, rows_in_memory
from driving_xai.evaluation.scorer import Scorer
from driving_xai.evaluation.summary import describe_machine, summarise
from driving_xai.explain.another_image import SAMPLE, AnotherImage
from driving_xai.explain.base import Explainer
from driving_xai.metrics.aupc import Statistic
from driving_xai.metrics.base import Metric
from driving_xai.metrics.batch import RankedMaps
from driving_xai.metrics.registry import build_all, statistics_of_sets
from driving_xai.metrics.statistics import BlockBootstrap
from driving_xai.models.capabilities import device_of
from driving_xai.models.declared import declared_outputs
from driving_xai.types import Frames, Saliency

Progress = Callable[[int, int], None]
"""Called with the frames scored so far and in all."""
Say = Callable[[str], None]
"""Takes a line for a person."""


@dataclass(frozen=True, kw_only=True)
class Objects:
    """Explainers and metrics that are handed over as objects, by the label under which they stand in results."""

    explainers: Mapping[str, Explainer] = field(default_factory=dict)
    metrics: Mapping[str, Metric] = field(default_factory=dict)


NO_OBJECTS = Objects()


class Scored(NamedTuple):
    """One batch with what was found."""

    places: pd.DataFrame
    ranked: RankedMaps
    rows: pd.DataFrame
    ranked_by: RankedBy


class Run:
    """One evaluation: all that is made for it is made once, and when it is needed.

    Made by `opened`; `api.evaluate` makes it with data in memory.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: ScoreConfig,
        *,
        shards: Path | None,
        data: EvalData | None = None,
        given: MapFile | None = None,
        objects: Objects = NO_OBJECTS,
    ) -> None:
        """`data` stands for the shards' where there are none."""
        self.checkpoint, self.config = checkpoint.differentiated(config.attention_derivative), config
        self._shards, self._data, self._given, self._objects = shards, data, given, objects
        self.methods = methods_of(config, given, objects)

    @cached_property
    def manifest(self) -> Manifest:
        """Of the shards."""
        assert self._shards is not None
        return Manifest.load(self._shards)

    @cached_property
    def masks(self) -> Masks | None:
        """That were brought along."""
        return None if self.config.masks is None else Masks(places.present(Path(self.config.masks)))

    @cached_property
    def baseline(self) -> Checkpoint | None:
        """The network that LIME is fitted on, where it is not the scored one.

        Raises:
            DataError: it has other outputs, or they are no classes or labels.
        """
        if self.config.baseline_model is None:
            return None
        path = places.present(Path(self.config.baseline_model))
        found = load(path, device=str(device_of(self.checkpoint.model)))
        ours, theirs = (declared_outputs(each.model) for each in (self.checkpoint, found))
        if ours != theirs or ours is None or ours.kind == "regression":
            raise DataError(
                f"{path}: the baseline model has outputs {theirs}, the scored one {ours}; expected the same classes"
            )
        return found

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """By name, those given as objects last."""
        config, handed = self.config, self._objects.metrics
        found: dict[str, Metric] = {}
        for name, (measure, fill) in under_fills(config.measures, config.fills, apart=handed).items():
            found[name] = (
                handed.get(measure)
                or build_all(
                    [measure],
                    fill=fill or config.fill,
                    masking=config.masking,
                    batch_size=config.batch_size,
                    seed=config.seed,
                )[measure]
            )
        return found

    @cached_property
    def data(self) -> EvalData:
        """The frames and the model along them.

        Raises:
            DataError: they do not fit, or a metric is not defined on them.
        """
        localises = any(metric.needs == "ground truth" for metric in self.metrics.values())
        data = self._data
        if data is None:
            assert self._shards is not None
            with_masks = masks_of_shards(self.config, localises)
            data = open_data(self.checkpoint, self._shards, self.manifest, self.config, with_masks=with_masks)
        for metric in self.metrics.values():
            metric.require(data.quantity)
        return data

    @cached_property
    def scorer(self) -> Scorer:
        """Every method fitted to the model."""
        brought = {*self._objects.explainers, *(() if self._given is None else self._given.methods)}
        named = [name for name in self.methods if name not in brought]
        built = explainers_of(named, self.checkpoint.model, self.config)
        for name, explainer in built.items():
            if isinstance(explainer, AnotherImage):
                built[name] = explainer.among(self._others)
        return Scorer(
            methods=self.methods,
            explainers={**built, **self._objects.explainers},
            metrics=self.metrics,
            seed=self.config.seed,
            explained_score=self.config.explained_score,
        )

    @cached_property
    def _others(self) -> Frames:
        return self.data.sample(SAMPLE, seed=self.config.seed)

    @cached_property
    def plan(self) -> dict[str, Any]:
        """What decides the results of the shards, as JSON gives it back."""
        return self.plan_with(self.manifest.sha256)

    def plan_with(self, data_sha256: str) -> dict[str, Any]:
        """The plan for data of this hash."""
        named: dict[str, Any] = {"maps": self._given, "masks": self.masks}
        brought = {kind: file for kind, file in named.items() if file is not None}
        if self.baseline is not None:
            named["baseline_model"] = brought["baseline_model"] = self.baseline
        plan = {
            "config": {
                **settings_of(self.config),
                **{kind: file.path.name for kind, file in brought.items()},
                "methods": self.methods,
            },
            **self.checkpoint.in_plans,
            "settings_sha256": settings_sha256(self.checkpoint),
            "shards_sha256": data_sha256,
            **{f"{kind}_sha256": None if file is None else file.sha256 for kind, file in named.items()},
        }
        if handed := {**self._objects.explainers, **self._objects.metrics}:
            plan["objects"] = {label: class_of(each) for label, each in handed.items()}
        return json.loads(json.dumps(plan))

    def prepare(self) -> None:
        """Makes everything, so that what does not fit is refused before any work."""
        _ = self.data, self.scorer, self.baseline

    def what_runs(self) -> Iterator[str]:
        """Lines about what will be scored, and what it is too short to show."""
        config, data = self.config, self.data
        yield (
            f"{data.total:,} frames by {', '.join(self.methods)}, measured by {', '.join(self.metrics)}, "
            f"on {device_of(self.checkpoint.model).type}"
        )
        if data.seconds_apart is None:  # How many images are independent shows when they are scored.
            return
        block = max(1, round(config.block_s / data.seconds_apart))
        methods = len(self.methods) - len(CONTROLS)
        yield from beforehand(data.total, block, data.seconds_apart, comparisons=methods * len(CONTROLS))

    def require_whole(self) -> None:
        """Raises DataError where a shard to read is not the one that the manifest lists: results name its hash."""
        assert self._shards is not None
        wanted = self.data.shards
        for entry in self.manifest.shards:
            if entry.path not in wanted:
                continue
            path = places.present(self._shards / entry.path)
            if not path.is_file() or sha256_of(path) != entry.sha256:
                raise DataError(
                    f"{path}: is not the shard that manifest.json lists; run `driving-xai verify`"
                )

    def scored(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, np.ndarray, Scored | None]]:
        """Each batch's number and rows, and what was found of those that are wanted."""
        for number, (rows, batch) in enumerate(self.data.batches(self.config.batch_size, wanted)):
            if batch is None:
                yield number, rows, None
                continue
            places = self.data.places(batch.rows).assign(target=batch.targets)
            if self.masks is not None:
                known = self.masks.read(places, *batch.frames.shape[2:])
                batch = batch._replace(ground_truth_mask=known.to(batch.frames.device))
            if self.baseline is not None:
                batch = batch._replace(baseline=self.baseline.model)
            given = _read_maps(self._given, places, tuple(batch.frames.shape[2:]))
            ranked = self.scorer.explain(batch, given)
            by = ranked_cells.ranked_by(self.metrics, self.methods, given, batch, ranked)
            yield number, rows, Scored(places, ranked, self.scorer.rows(batch, ranked, places), by)

    def score_parts(self, parts: Path, world: World, on_progress: Progress | None) -> int:
        """Scores this process's batches that have no part yet; returns how many batches there are in all."""
        keep_freed_memory()
        saved = [position for position, name in enumerate(self.methods) if name not in CONTROLS]
        done = number = 0
        for number, rows, found in self.scored(
            lambda number: world.owns(number) and not part_of(parts, number).is_file()
        ):
            if found is not None:
                part = part_of(parts, number)
                if self.config.save_maps:
                    kept = Part(found.places, found.ranked.saliency[:, saved].cpu().numpy())
                    save_part(part.with_suffix(".npz"), kept)
                if found.ranked_by:
                    ranked_cells.save(part.with_suffix(".json"), found.ranked_by)
                write_table(part, found.rows, sums="inside")
                release_fragments()
            done += len(np.unique(rows))
            if on_progress is not None:
                on_progress(done, self.data.total)
        return number + 1 if done else 0

    def join(self, out: Path) -> None:
        """Turns complete parts into results, some rows at a time."""
        parts = out / FOLDER
        found = sorted(parts.glob("part-*.parquet"))
        require_predicted(found, self.data)
        (out / SUMMARY).unlink(missing_ok=True)
        condensed = CondensedRows(curves_of=self._of_sets)
        ordered = in_order(map(read_rows, found), parts / "ordered")
        write_row_groups(out / PER_FRAME, map(condensed.passed, ordered))
        summary = self._summary(condensed, self.plan, ranked_cells.joined(sorted(parts.glob("part-*.json"))))
        if self.config.save_maps:
            kept = [name for name in self.methods if name not in CONTROLS]
            join_parts(out / MAPS, sorted(parts.glob("part-*.npz")), kept)
        save_summary(out, summary, beside=[MAPS] if self.config.save_maps else [])
        shutil.rmtree(parts)

    def results(
        self,
        tables: Sequence[pd.DataFrame],
        plan: Mapping[str, Any] | None = None,
        ranked_by: RankedBy = MappingProxyType({}),
    ) -> Results:
        """The rows of all batches, in the order of drives and time, and their summary."""
        require_predicted(tables, self.data)
        rows = rows_in_memory(pa.concat_tables(map(arrow_table, tables)))
        condensed = CondensedRows(curves_of=self._of_sets)
        condensed.add(rows)
        summary = self._summary(condensed, self.plan if plan is None else plan, ranked_by)
        return Results(summary=summary, per_frame=rows.to_pandas())

    @cached_property
    def _of_sets(self) -> dict[str, Statistic]:
        return statistics_of_sets(self.metrics)

    def _summary(
        self, condensed: CondensedRows, plan: Mapping[str, Any], ranked_by: RankedBy
    ) -> dict[str, Any]:
        checkpoint, config, quantity = self.checkpoint, self.config, self.data.quantity
        summary = {
            "plan": dict(plan),
            "model": {"kind": checkpoint.kind, "config": dict(checkpoint.config["model"])},
            "data": {**self.data.describe(), "scored": condensed.frames},
            **summarise(
                condensed.rows(),
                quantity=quantity,
                protocol=self.data.protocol,
                measures=self._described(ranked_by),
                methods=[name for name in self.methods if name not in CONTROLS],
                controls=CONTROLS,
                bootstrap=BlockBootstrap(
                    block=rows_together(self.data, condensed.largest_drive, config.block_s),
                    resamples=config.resamples,
                    level=config.level,
                    seed=config.seed,
                ),
                of_sets=self._of_sets,
                mean_curves=condensed.mean_curves(),
            ),
            **describe_machine(device_of(checkpoint.model)),
        }
        if config.fills:
            named = under_fills(config.measures, config.fills, apart=self._objects.metrics)
            summary["fills"] = headlines(summary, named)
        return summary

    def _described(self, ranked_by: RankedBy) -> dict[str, dict[str, Any]]:
        """Of each metric, what its numbers mean and, where it ranks cells, what it took of each method."""
        return {
            name: {
                **metric.describe(self.data.quantity),
                **({"ranked": ranked_by[name]} if name in ranked_by else {}),
            }
            for name, metric in self.metrics.items()
        }


@contextmanager
def opened(
    checkpoint: Checkpoint, shards: Path, config: ScoreConfig, objects: Objects = NO_OBJECTS
) -> Iterator[Run]:
    """A run along shards, with the maps that were brought along."""
    with given_maps(config) as given:
        yield Run(checkpoint, config, shards=shards, given=given, objects=objects)


@contextmanager
def given_maps(config: ScoreConfig) -> Iterator[MapFile | None]:
    """The file of maps that was brought along, open; None where there is none."""
    if config.maps is None:
        yield None
        return
    given = MapFile(places.present(Path(config.maps)))
    try:
        yield given
    finally:
        given.close()


def methods_of(config: ScoreConfig, given: MapFile | None, objects: Objects = NO_OBJECTS) -> tuple[str, ...]:
    """Those asked for, those given, then the controls; each once."""
    brought = () if given is None else given.methods
    if twice := set(brought) & {*config.methods, *CONTROLS}:
        raise DataError(
            f"{config.maps}: its method {sorted(twice)[0]!r} is scored already; give it another name"
        )
    return tuple(dict.fromkeys((*config.methods, *objects.explainers, *brought, *CONTROLS)))


def _read_maps(given: MapFile | None, places: pd.DataFrame, size: tuple[int, ...]) -> dict[str, Saliency]:
    if given is None:
        return {}
    if given.size != size:
        raise DataError(f"{given.path}: its maps are of {given.size}, the frames of {size}; resize the maps")
    return {name: torch.from_numpy(given.read(name, places)) for name in given.methods}
