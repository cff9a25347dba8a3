"""Labelled images to score, each explained for one of the model's outputs or for every predicted one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from data_prep.shards.manifest import Manifest
from driving_xai.checkpoint import Checkpoint
from driving_xai.data.images import LabelledImages, exactly_one_class, mean_image
from driving_xai.data.splits import FoldOut
from driving_xai.errors import DataError
from driving_xai.evaluation.config import ScoreConfig, Split
from driving_xai.evaluation.selection import choose_rows, every_batch, require_geometry, sampled
from driving_xai.metrics.batch import EvalBatch, Mask
from driving_xai.metrics.confidence import OfClass
from driving_xai.metrics.quantities import PROBABILITY, Quantity
from driving_xai.models.capabilities import device_of, scores_of
from driving_xai.targets import by_name, outputs_at, probabilities
from driving_xai.types import Frames, Scores

EVERY_PREDICTED, TRUE_CLASS = "every-predicted", "true-class"


class ImageData:
    """Labelled images, each explained for one of the model's outputs, or for several.

    Args:
        checkpoint: a model of classes or labels.
        shards: of images.
        manifest: theirs.
        config: the target, the split, and every which image of it is scored.
        with_masks: whether the pixels that decide the explained output are read.

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
        manifest: Manifest,
        config: ScoreConfig,
        *,
        with_masks: bool,
    ) -> None:
        self._model, self._target = checkpoint.model, config.target or "predicted"
        self._with_masks = with_masks
        outputs, self._thresholds = checkpoint.model.outputs, checkpoint.thresholds
        self._names, self._several = outputs.names, outputs.kind == "multilabel"
        self._every_predicted = self._target == EVERY_PREDICTED and self._several
        self._true_class = self._target == TRUE_CLASS and not self._several
        if not (self._every_predicted or self._true_class):
            by_name(self._target, outputs)  # Refuses a target that the model does not have.
        short_side_px = checkpoint.config.get("input", {}).get("short_side_px")
        self._images = LabelledImages(shards, short_side_px=short_side_px, manifest=manifest)
        require_geometry(checkpoint, manifest, shards)

        def rows_of(split: Split) -> Int64[np.ndarray, " N"]:
            index = self._images.index
            return np.flatnonzero(choose_rows(index, split, checkpoint, manifest, FoldOut.from_config))

        self._rows = self._with_label(rows_of(config.split), config.only_label)[:: config.every]
        if not len(self._rows):
            raise DataError(f"{shards}: split {config.split} has no image to score; choose another")
        unlabelled = not set(self._names) <= set(self._images.label_names)
        self._labels = None if unlabelled else self._images.labels(self._names)
        self._classes = self._known_classes() if self._true_class else None
        self._bias_image = self._mean_of(rows_of("train")) if config.shows_bias_image else None
        if with_masks:
            self._mask_of(self._rows[:1], torch.zeros(1, dtype=torch.int64))

    @property
    def total(self) -> int:
        """Images to score."""
        return len(self._rows)

    @property
    def shards(self) -> frozenset[str]:
        """See `EvalData`."""
        return frozenset(self._images.index["shard"].iloc[self._rows].unique())

    def batches(
        self, batch_size: int, wanted: Callable[[int], bool] = every_batch
    ) -> Iterator[tuple[Int64[np.ndarray, " B"], EvalBatch | None]]:
        """See `EvalData`; images whose every predicted output is explained are all decoded and predicted."""
        if self._every_predicted:
            return self._of_every_output(batch_size, wanted)
        return self._one_an_image(batch_size, wanted)

    def _one_an_image(
        self, batch_size: int, wanted: Callable[[int], bool]
    ) -> Iterator[tuple[np.ndarray, EvalBatch | None]]:
        planned = [self._rows[at : at + batch_size] for at in range(0, self.total, batch_size)]
        chosen = [wanted(number) for number in range(len(planned))]
        # Only the last batch may be a short one: without some of them, the others stay as they are.
        kept = [rows for rows, is_wanted in zip(planned, chosen, strict=True) if is_wanted]
        read = self._images.batches(np.concatenate(kept), batch_size) if kept else iter(())
        for rows, is_wanted in zip(planned, chosen, strict=True):
            if not is_wanted:
                yield rows, None
                continue
            frames, clean = self._predicted(next(read).frames)
            _, columns = self._explained(rows, clean)
            yield rows, self._batch(rows, frames, clean, columns)

    def _of_every_output(
        self, batch_size: int, wanted: Callable[[int], bool]
    ) -> Iterator[tuple[np.ndarray, EvalBatch | None]]:
        numbers = itertools.count()
        for rows, read in self._images.batches(self._rows, batch_size):
            frames, clean = self._predicted(read)
            at, columns = self._explained(rows, clean)
            # In parts: a frame that is explained for several outputs stands there several times.
            for part in torch.arange(len(at)).split(batch_size) if len(at) else ():
                chosen = at[part]
                explained = rows[chosen.cpu().numpy()]
                batch = None
                if wanted(next(numbers)):
                    batch = self._batch(explained, frames[chosen], clean[chosen], columns[part])
                yield explained, batch

    def _predicted(self, frames: Frames) -> tuple[Frames, Scores]:
        frames = frames.to(device_of(self._model))
        return frames, scores_of(self._model, frames)

    def _explained(self, rows: np.ndarray, clean: Scores) -> tuple[Int64[Tensor, " N"], Int64[Tensor, " N"]]:
        """Which frames are explained for which outputs."""
        if self._every_predicted:
            chances = probabilities(clean, self._model.outputs).double().cpu().numpy()
            at, columns = np.nonzero(chances > np.array(self._thresholds))
            return torch.from_numpy(at).to(clean.device), torch.from_numpy(columns).to(clean.device)
        every = torch.arange(len(clean), device=clean.device)
        if self._classes is not None:
            return every, self._classes[rows].to(clean.device)
        if self._target in self._names:
            return every, torch.full_like(every, self._names.index(self._target))
        return every, clean.argmax(1)

    def _batch(
        self, rows: np.ndarray, frames: Frames, clean: Scores, columns: Int64[Tensor, " B"]
    ) -> EvalBatch:
        value = OfClass(classes=columns, scale="independent probability" if self._several else "probability")
        prediction = value(clean[:, None])[:, 0].double().cpu().numpy()
        truth = np.full(len(rows), np.nan)
        if self._labels is not None:
            truth = self._labels[rows, columns.cpu()].double().numpy()
        return EvalBatch(
            rows=rows,
            model=self._model,
            frames=frames,
            clean=clean,
            target=outputs_at(columns),
            targets=[self._names[column] for column in columns.tolist()],
            quantity=self.quantity,
            references={"target": value},
            known={"prediction": prediction, "truth": truth, "error": np.abs(prediction - truth)},
            ground_truth_mask=self._mask_of(rows, columns).to(frames.device) if self._with_masks else None,
            labels=self._labels[rows].to(frames.device)
            if self._labels is not None and self._several
            else None,
            bias_image=self._bias_image,
        )

    def _with_label(self, rows: Int64[np.ndarray, " N"], name: str | None) -> Int64[np.ndarray, " n"]:
        if name is None:
            return rows
        if name not in self._images.label_names:
            raise DataError(
                f"{self._images.root} has no label {name!r}; it has {', '.join(self._images.label_names)}"
            )
        return rows[(self._images.labels([name])[rows, 0] > 0).numpy()]

    def _known_classes(self) -> Int64[Tensor, " N"]:
        if self._labels is None:
            raise DataError(
                f"{self._images.root} does not have the model's classes {', '.join(self._names)} as labels; take target "
                "predicted"
            )
        # Images that are not scored may have no class or several: whichever they are given here is never read.
        scored = torch.zeros(len(self._labels), 1, dtype=torch.bool)
        scored[self._rows] = True
        return exactly_one_class(torch.where(scored, self._labels, torch.eye(len(self._names))[0]))

    def _mean_of(self, rows: Int64[np.ndarray, " N"]) -> Float[Tensor, "3 H W"]:
        if not len(rows):
            raise DataError(
                f"{self._images.root} has no image in split train to make fill 'bias-image' of; take another fill"
            )
        return mean_image(self._images, rows)

    def _mask_of(self, rows: np.ndarray, columns: Int64[Tensor, " B"]) -> Mask:
        masks: Bool[np.ndarray, "B K H W"] | None = self._images.causes(rows)
        if masks is None:
            raise DataError(
                f"{self._images.root} does not know the causes, as rendered scenes do; give "
                "--masks with the pixels that matter, see docs/results.md"
            )
        unknown = {self._names[column] for column in columns.tolist()} - set(self._images.label_names)
        if unknown:
            raise DataError(
                f"{self._images.root} does not know which pixels cause {min(unknown)!r}; it knows those of "
                f"{', '.join(self._images.label_names)}; give --masks, see docs/results.md"
            )
        label = [self._images.label_names.index(self._names[column]) for column in columns.tolist()]
        return torch.from_numpy(masks[np.arange(len(rows)), label])

    def sample(self, count: int, *, seed: int) -> Frames:
        """See `EvalData`."""
        return self._images.frames(sampled(self._rows, count, seed=seed))

    def places(self, rows: Int64[np.ndarray, " B"]) -> pd.DataFrame:
        """See `EvalData`; an image's drive is its group, its frame its row in the index."""
        found = self._images.index.iloc[rows]
        columns = {"drive": found["group"].to_numpy(), "camera": "", "segment": 0, "frame": rows}
        return pd.DataFrame({**columns, "time_ns": 0, "key": found["key"].to_numpy()})

    def describe(self) -> dict[str, Any]:
        """See `EvalData`."""
        known = dict(zip(self._names, self._thresholds, strict=True)) if self._several else {}
        return {
            "images": self.total,
            "outputs": list(self._names),
            **({"thresholds": known} if known else {}),
            "seconds_apart": None,
        }
