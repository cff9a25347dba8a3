"""Scores the explanations of one batch: every method's maps, ranked once, by every metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from driving_xai.errors import DataError
from driving_xai.evaluation.results import FRAME_COLUMNS, frame_rows
from driving_xai.explain.base import Explainer
from driving_xai.explain.cells import CellValues, cells_kept
from driving_xai.metrics.base import Metric
from driving_xai.metrics.batch import EvalBatch, RankedMaps
from driving_xai.metrics.faithfulness import measured
from driving_xai.targets import ExplainedScore
from driving_xai.types import Saliency


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Scores several methods by several metrics on the same frames, sharing forward passes."""

    methods: Sequence[str]
    """In the order of the rows."""
    explainers: Mapping[str, Explainer]
    """Of the methods whose maps are not given."""
    metrics: Mapping[str, Metric]
    """By name."""
    seed: int
    """Of ties."""
    explained_score: ExplainedScore = "probability"
    """See `targets.explained_by`."""

    def explain(self, batch: EvalBatch, given: Mapping[str, Saliency]) -> RankedMaps:
        """Each method's maps, ranked once.

        Args:
            batch: what is explained.
            given: maps that were computed elsewhere, by the name of their method.

        Raises:
            ValueError: a map is not finite or not on the frames' grid.
            DataError: maps are given, and those of whole windows are asked for.
        """
        maps, cells = zip(*(self._map(name, batch, given) for name in self.methods), strict=True)
        ranked = RankedMaps.of(torch.stack(maps, 1), seed=self.seed, cells=cells)
        if batch.window is None:
            return ranked
        if given:
            raise DataError(
                f"maps of {next(iter(given))} are given, and a window needs those of every frame in it; leave out "
                "deletion-window, or the maps"
            )
        return ranked._replace(earlier=tuple(self.explain(each, {}).ranks for each in batch.window.earlier))

    def rows(self, batch: EvalBatch, ranked: RankedMaps, places: pd.DataFrame) -> pd.DataFrame:
        """A row for each frame, metric, reference and method.

        Args:
            batch: what was explained.
            ranked: the maps.
            places: which frames they are; the columns of `results.FRAME_COLUMNS`.
        """
        where = {name: places[name].to_numpy() for name in FRAME_COLUMNS}
        degenerate = ranked.degenerate.cpu().numpy()
        tables = [
            pd.DataFrame(
                frame_rows(
                    where,
                    methods=self.methods,
                    measure=name,
                    reference=reference,
                    known=batch.known,
                    columns={key: values.cpu().numpy() for key, values in columns.items()},
                    degenerate=degenerate,
                )
            )
            for name, found in measured(self.metrics, batch, ranked)
            for reference, columns in found
        ]
        return pd.concat(tables, ignore_index=True)

    def _map(
        self, name: str, batch: EvalBatch, given: Mapping[str, Saliency]
    ) -> tuple[Saliency, CellValues | None]:
        """The maps, with the cells that they are pictures of."""
        cells = None
        if name in given:
            saliency = given[name].to(batch.frames.device)
        else:
            with cells_kept() as kept:
                saliency = batch.explained(self.explainers[name], name, score=self.explained_score)
                cells = kept.of(saliency)
        expected = (len(batch.frames), *batch.frames.shape[2:])
        if saliency.shape != expected:
            raise ValueError(f"method {name} gave maps of shape {tuple(saliency.shape)}, expected {expected}")
        return saliency.detach().float(), cells
