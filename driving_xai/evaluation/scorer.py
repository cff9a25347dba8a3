"""One batch of frames to per-frame rows: explain, rank, measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from driving_xai.evaluation.results import FRAME_COLUMNS, frame_rows
from driving_xai.metrics.batch import Batch, Editing, Maps
from driving_xai.metrics.curves import rank
from driving_xai.metrics.registry import Measure
from driving_xai.types import Explainer, Saliency


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Scores several methods under several measures on the same frames, sharing the clean pass."""

    methods: Sequence[str]
    """In the order of the rows."""
    explainers: Mapping[str, Explainer]
    """Of the methods whose maps are not given."""
    measures: Mapping[str, Measure]
    """By name."""
    editing: Editing

    def explain(self, batch: Batch, given: Mapping[str, Saliency]) -> Maps:
        """Each method's maps, ranked once.

        Args:
            given: maps that were computed elsewhere, by the name of their method.

        Raises:
            ValueError: a map is not finite or not on the frames' grid.
        """
        saliency = torch.stack([self._map(name, batch, given) for name in self.methods], 1)
        # A generator of the same seed each time: a map's order does not depend on batch or method.
        ranks = rank(saliency.flatten(0, 1), torch.Generator().manual_seed(self.editing.seed))
        flat = saliency.flatten(2)
        return Maps(saliency, ranks.unflatten(0, saliency.shape[:2]), flat.amax(2) == flat.amin(2))

    def rows(self, batch: Batch, maps: Maps, places: pd.DataFrame) -> pd.DataFrame:
        """A row for each frame, measure, reference and method.

        Args:
            places: which frames they are; the columns of `results.FRAME_COLUMNS`.
        """
        where = {name: places[name].to_numpy() for name in FRAME_COLUMNS}
        degenerate = maps.degenerate.cpu().numpy()
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
            for name, measure in self.measures.items()
            for reference, columns in measure(batch, maps, self.editing)
        ]
        return pd.concat(tables, ignore_index=True)

    def _map(self, name: str, batch: Batch, given: Mapping[str, Saliency]) -> Saliency:
        if name in given:
            saliency = given[name].to(batch.frames.device)
        else:
            saliency = self.explainers[name](batch.model, batch.frames, batch.target)
        expected = (len(batch.frames), *batch.frames.shape[2:])
        if saliency.shape != expected:
            raise ValueError(f"method {name} gave maps of shape {tuple(saliency.shape)}, expected {expected}")
        return saliency.detach().float()
