"""One batch of frames to per-frame rows: explain, rank, measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from driving_xai.metrics.batch import Batch, Editing, Maps
from driving_xai.metrics.curves import rank
from driving_xai.metrics.registry import Columns, Measure
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

    def table(self, batch: Batch, maps: Maps) -> pd.DataFrame:
        """A row for each frame, measure, reference and method; `position` is the frame's in the batch."""
        tables = [
            self._rows(name, reference, columns, batch, maps.degenerate)
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

    def _rows(
        self,
        measure: str,
        reference: str,
        columns: Columns,
        batch: Batch,
        degenerate: Bool[Tensor, "B M"],
    ) -> pd.DataFrame:
        count, methods = degenerate.shape
        absent = torch.full((count, methods), torch.nan, dtype=torch.float64)
        table = pd.DataFrame(
            {
                "position": np.repeat(np.arange(count), methods),
                "method": list(self.methods) * count,
                "measure": measure,
                "reference": reference,
                **{name: np.repeat(values, methods) for name, values in batch.known.items()},
                "degenerate": degenerate.flatten().cpu().numpy(),
            }
        )
        for name in ("value", "normalised", "base_corrected", "chance"):
            table[name] = columns.get(name, absent).flatten().cpu().numpy()
        curves = columns.get("curve")
        table["curve"] = None if curves is None else list(curves.flatten(0, 1).float().cpu().numpy())
        return table
