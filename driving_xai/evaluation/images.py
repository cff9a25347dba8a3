"""A model of single frames on labelled images, as a subject of scoring."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from driving_xai.checkpoint import Checkpoint
from driving_xai.data.images import LabelledImages
from driving_xai.data.splits import FoldOut
from driving_xai.errors import DataError
from driving_xai.evaluation.data import Split, choose_rows, require_geometry
from driving_xai.metrics.batch import Batch, Quantity
from driving_xai.metrics.confidence import OfClass
from driving_xai.metrics.localisation import Causes
from driving_xai.targets import by_name, outputs_at, probabilities
from driving_xai.types import Frames, Scores

EVERY_PREDICTED = "every-predicted"
PROBABILITY = Quantity(
    name="probability of the explained output",
    unit="probability",
    area="mean height",
    without_evidence="falls",
    is_probability=True,
)


class Pictures:
    """Labelled images, each explained for one of the model's outputs, or for several.

    Raises:
        DataError: the shards hold no images, none of the split asked for, or not the model's labels.
    """

    quantity: Quantity = PROBABILITY
    seconds_apart = None
    protocol: Mapping[str, Any] = MappingProxyType(
        {
            "edited": "the frame",
            "references": {
                "target": "the probability of the explained output",
                "cause": "the pixels that decide the explained output",
                "labels": "the labels of all outputs",
            },
        }
    )

    def __init__(
        self,
        checkpoint: Checkpoint,
        shards: Path,
        *,
        target: str,
        split: Split,
        every: int,
        with_causes: bool,
    ) -> None:
        """`every`: scores every n-th image of the split."""
        self._model, self._target, self._with_causes = checkpoint.model, target, with_causes
        outputs, self._thresholds = checkpoint.model.outputs, checkpoint.thresholds
        self._names, self._several = outputs.names, outputs.kind == "multilabel"
        self._rule = None if target == EVERY_PREDICTED and self._several else by_name(target, outputs)
        short_side_px = checkpoint.config.get("input", {}).get("short_side_px")
        self._images = LabelledImages(shards, short_side_px=short_side_px)
        require_geometry(checkpoint, self._images.manifest, shards)
        chosen = choose_rows(
            self._images.index, split, checkpoint, self._images.manifest, FoldOut.from_config
        )
        self._rows = np.flatnonzero(chosen)[::every]
        if not len(self._rows):
            raise DataError(f"{shards}: split {split} has no image to score; choose another")
        unlabelled = not set(self._names) <= set(self._images.label_names)
        self._labels = None if unlabelled else self._images.labels(self._names)
        if with_causes:
            self._causes_of(self._rows[:1], torch.zeros(1, dtype=torch.int64))

    @property
    def total(self) -> int:
        """Images to score."""
        return len(self._rows)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """See `Subject`."""
        device = next(self._model.parameters()).device
        for rows, frames in self._images.batches(self._rows, batch_size):
            frames = frames.to(device)
            with torch.no_grad():
                clean = self._model(frames)
            at, columns = self._explained(clean)
            if not len(at):
                continue
            # In parts: a frame that is explained for several outputs stands there several times.
            for part in torch.arange(len(at)).split(batch_size):
                chosen = at[part]
                yield self._batch(rows[chosen.cpu().numpy()], frames[chosen], clean[chosen], columns[part])

    def _explained(self, clean: Scores) -> tuple[Int64[Tensor, " N"], Int64[Tensor, " N"]]:
        """Which frames are explained for which outputs."""
        if self._rule is None:
            chances = probabilities(self._model.outputs, clean).double().cpu().numpy()
            at, columns = np.nonzero(chances > np.array(self._thresholds))
            return torch.from_numpy(at).to(clean.device), torch.from_numpy(columns).to(clean.device)
        every = torch.arange(len(clean), device=clean.device)
        if self._target in self._names:
            return every, torch.full_like(every, self._names.index(self._target))
        return every, clean.argmax(1)

    def _batch(self, rows: np.ndarray, frames: Frames, clean: Scores, columns: Int64[Tensor, " B"]) -> Batch:
        value = OfClass(classes=columns, scale="independent probability" if self._several else "probability")
        prediction = value(clean[:, None])[:, 0].double().cpu().numpy()
        truth = np.full(len(rows), np.nan)
        if self._labels is not None:
            truth = self._labels[rows, columns.cpu()].double().numpy()
        return Batch(
            rows=rows,
            model=self._model,
            frames=frames,
            clean=clean,
            target=outputs_at(columns),
            targets=[self._names[column] for column in columns.tolist()],
            quantity=self.quantity,
            references={"target": value},
            known={"prediction": prediction, "truth": truth, "error": np.abs(prediction - truth)},
            causes=self._causes_of(rows, columns).to(frames.device) if self._with_causes else None,
            labels=self._labels[rows].to(frames.device)
            if self._labels is not None and self._several
            else None,
        )

    def _causes_of(self, rows: np.ndarray, columns: Int64[Tensor, " B"]) -> Causes:
        masks: Bool[np.ndarray, "B K H W"] | None = self._images.causes(rows)
        if masks is None:
            raise DataError(f"{self._images.root} does not know the causes; only synthetic scenes do")
        label = [self._images.label_names.index(self._names[column]) for column in columns.tolist()]
        return torch.from_numpy(masks[np.arange(len(rows)), label])

    def places(self, rows: Int64[np.ndarray, " B"]) -> pd.DataFrame:
        """See `Subject`; an image's drive is its group, its frame its row in the index."""
        found = self._images.index.iloc[rows]
        columns = {"drive": found["group"].to_numpy(), "camera": "", "segment": 0, "frame": rows}
        return pd.DataFrame({**columns, "time_ns": 0, "key": found["key"].to_numpy()})

    def describe(self) -> dict[str, Any]:
        """See `Subject`."""
        known = dict(zip(self._names, self._thresholds, strict=True)) if self._several else {}
        return {
            "images": self.total,
            "outputs": list(self._names),
            **({"thresholds": known} if known else {}),
            "seconds_apart": None,
        }
