"""Evaluation data: batches of frames with targets and metadata for one model, along drives or of labelled images."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from data_prep.schema import Vehicle
from data_prep.shards.manifest import Manifest
from driving_xai.checkpoint import Checkpoint
from driving_xai.data.drives import Route, Run, open_index, runs
from driving_xai.data.images import LabelledImages
from driving_xai.data.splits import FoldOut, HoldOut
from driving_xai.errors import CheckpointError, DataError, UnsupportedModelError
from driving_xai.evaluation.config import ScoreConfig, Split
from driving_xai.evaluation.instants import Instants, instants_of, rows_of_batches, walk
from driving_xai.metrics.batch import EvalBatch, Mask
from driving_xai.metrics.confidence import OfClass
from driving_xai.metrics.quantities import PROBABILITY, STEERING_ERROR, Quantity, SteeringError, angle_deg
from driving_xai.models.capabilities import device_of
from driving_xai.targets import TargetRule, by_name, outputs_at, probabilities
from driving_xai.types import Frames, HasOutputs, RecurrentModel, Scores

EVERY_PREDICTED = "every-predicted"


def every_batch(number: int) -> bool:
    """Whether a batch is wanted, where all of them are."""
    return True


class EvalData(Protocol):
    """A model with the frames on which its explanations are scored."""

    @property
    def quantity(self) -> Quantity:
        """What curves are drawn of."""
        ...

    @property
    def protocol(self) -> Mapping[str, Any]:
        """What is edited, and what each reference means."""
        ...

    @property
    def seconds_apart(self) -> float | None:
        """Between two scored frames in turn; None where frames are no neighbours."""
        ...

    @property
    def total(self) -> int:
        """Frames to score."""
        ...

    @property
    def shards(self) -> frozenset[str]:
        """Paths of the shards that hold frames to score, as the manifest has them."""
        ...

    def batches(
        self, batch_size: int, wanted: Callable[[int], bool] = every_batch
    ) -> Iterator[tuple[Int64[np.ndarray, " B"], EvalBatch | None]]:
        """All frames to score, in an order that depends on `batch_size` only: rows and, where wanted, the batch.

        Args:
            batch_size: most frames in a batch.
            wanted: of a batch's number. What is not wanted is not even decoded where it can be passed over.
        """
        ...

    def places(self, rows: Int64[np.ndarray, " B"]) -> pd.DataFrame:
        """The columns of `results.FRAME_COLUMNS` for rows of a batch, but for `target`."""
        ...

    def describe(self) -> dict[str, Any]:
        """The data, for `results.json`."""
        ...


def open_data(
    checkpoint: Checkpoint, shards: Path, manifest: Manifest, config: ScoreConfig, *, with_masks: bool
) -> EvalData:
    """The model along the shards' frames: drives for a regression, images for classes and labels.

    Args:
        checkpoint: the model, and what it was trained on.
        shards: a folder that `prep` wrote.
        manifest: its.
        config: which frames, and what is explained.
        with_masks: whether the pixels that cause the label are read from the shards.

    Raises:
        DataError: the shards do not fit, or hold none of the frames asked for.
        CheckpointError: the model has no outputs that could be explained.
    """
    model = checkpoint.model
    if not isinstance(model, HasOutputs):
        raise CheckpointError(
            f"{checkpoint.path} holds kind {checkpoint.kind!r}, a model without outputs to explain; "
            "expected a steering model, one of actions or a classifier"
        )
    if model.outputs.kind == "regression":
        return DriveData(checkpoint, shards, manifest, config, with_masks=with_masks)
    return ImageData(checkpoint, shards, manifest, config, with_masks=with_masks)


def masks_of_shards(config: ScoreConfig, localises: bool) -> bool:
    """Whether the shards have to know the pixels that cause the label: where no masks are given.

    Args:
        config: names the masks.
        localises: whether a metric compares with them.

    Raises:
        DataError: masks are given and nothing is compared with them.
    """
    if config.masks is not None and not localises:
        raise DataError("masks are given and no measure of localisation is asked for; add pointing-game, say")
    return localises and config.masks is None


def require_predicted(found: Sized, data: EvalData) -> None:
    """Raises DataError where no frame had an output to explain: images in which nothing is predicted."""
    if not found:
        raise DataError(f"nothing is predicted in any of {data.total} images; take target predicted")


def rows_together(data: EvalData, largest_drive: int, block_s: float) -> int:
    """How many rows a bootstrap draws together: a stretch of driving, or of images a whole group.

    Args:
        data: says how far frames are apart.
        largest_drive: frames and targets of the drive, or group of images, that has most.
        block_s: of driving, in seconds.
    """
    apart_s = data.seconds_apart
    return largest_drive if apart_s is None else max(1, round(block_s / apart_s))


def largest_drive(places: pd.DataFrame) -> int:
    """How many frames and targets the drive, or group of images, has that has most.

    Args:
        places: what was scored, with the columns `drive`, `camera`, `frame` and `target`.
    """
    once = places.drop_duplicates(["drive", "camera", "frame", "target"])
    return int(once["drive"].value_counts().max())


class HeldOut(Protocol):
    """What a checkpoint was not trained on."""

    def splits(self, index: pd.DataFrame) -> np.ndarray:
        """The split of each row of an index."""
        ...


def choose_rows(
    index: pd.DataFrame,
    split: Split,
    checkpoint: Checkpoint,
    manifest: Manifest,
    held_out: Callable[[Mapping[str, Any]], HeldOut],
) -> np.ndarray:
    """Whether each row of an index belongs to a split.

    `held-out` is what this checkpoint did not train on. On the shards it was trained on, the named
    splits are the model's: prep's may test what it trained on.

    Args:
        held_out: reads the rule from the checkpoint's configuration.

    Raises:
        DataError: held-out is asked for on shards that the checkpoint does not know.
    """
    own = checkpoint.config.get("data", {}).get("shards_sha256") == manifest.sha256
    if split == "all":
        return np.ones(len(index), dtype=bool)
    if split == "held-out" and not own:
        raise DataError(
            "the checkpoint was trained on other shards, so what these hold out from it is unknown; "
            "choose their split test, or all where nothing of them was trained on"
        )
    splits = held_out(checkpoint.config).splits(index) if own else index["split"].to_numpy(dtype=str)
    return splits == ("test" if split == "held-out" else split)


def require_geometry(checkpoint: Checkpoint, manifest: Manifest, path: Path) -> None:
    """Raises DataError where the shards were cut otherwise than those the checkpoint learnt from."""
    trained_on = checkpoint.config.get("input", {}).get("geometry")
    if trained_on is not None and trained_on != manifest.geometry:
        raise DataError(
            f"{path}: the shards' geometry {manifest.geometry} is not the checkpoint's {trained_on}; "
            "prepare them alike"
        )


class DriveData:
    """The instants of a route with the state that the unedited frames before each left.

    Only the current frame is edited.

    Args:
        checkpoint: a regressor with `step` and `at`; one without memory has the state `()`.
        shards: of drives.
        manifest: theirs.
        config: the target, the recorded angle, the split, and every which frame is scored.
        with_masks: whether the pixels that cause the label are read.

    Raises:
        DataError: the shards do not fit the checkpoint, or hold none of the frames asked for.

    Source: Tashiro and Awano 2023, section 4.
    """

    quantity: Quantity = STEERING_ERROR
    protocol: Mapping[str, Any] = MappingProxyType(
        {
            "edited": "the current frame; its past is the state that the unedited frames left",
            "references": {
                "truth": "the recorded angle",
                "clean": "the prediction for the unedited frame",
                "cause": "the pixels that cause the label",
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
        _require_signals(checkpoint, manifest, shards)
        if manifest.vehicle is None:
            raise DataError(f"{shards}: its manifest names no vehicle, which degrees need; prepare again")
        _require_steps(checkpoint.model)
        self._model = checkpoint.model
        self._route = Route(shards, open_index(shards, manifest), Vehicle(**manifest.vehicle))
        self._target = config.target or "magnitude"
        self._rule = by_name(self._target, checkpoint.model.outputs)
        self._every, self._with_masks = config.every, with_masks
        column = "steering_wheel_rad_smoothed" if config.truth == "smoothed" else "steering_wheel_rad"
        self._truth_deg = np.degrees(self._route.index[column].to_numpy(dtype=np.float64))
        chosen = choose_rows(self._route.index, config.split, checkpoint, manifest, HoldOut.from_config)
        self._runs = self._chosen(chosen, config.split)
        if with_masks:
            self._route.causes(self._runs[0].rows[:1])  # Fails here rather than in the middle of a run.

    def _chosen(self, chosen: np.ndarray, split: str) -> Sequence[Run]:
        kept = runs(self._route.index, chosen)
        if instants_of(kept, self._every) == 0:
            raise DataError(
                f"split {split} has {chosen.sum()} frames in {len(kept)} runs and none to score; choose another"
            )
        return kept

    @property
    def total(self) -> int:
        """Instants to score; a run's first frame has no past and is none."""
        return instants_of(self._runs, self._every)

    @property
    def shards(self) -> frozenset[str]:
        """See `EvalData`; a run is driven from its first frame on."""
        driven = np.concatenate([run.rows for run in self._runs])
        return frozenset(self._route.index["shard"].iloc[driven].unique())

    @property
    def seconds_apart(self) -> float:
        """Between two scored frames."""
        times_ns = self._route.index["time_ns"].to_numpy()
        steps_s = np.concatenate([np.diff(times_ns[run.rows]) for run in self._runs]) / 1e9
        return float(np.median(steps_s)) * self._every

    def batches(
        self, batch_size: int, wanted: Callable[[int], bool] = every_batch
    ) -> Iterator[tuple[Int64[np.ndarray, " B"], EvalBatch | None]]:
        """See `EvalData`; runs side by side are driven as far as their last batch that is wanted."""
        planned = list(rows_of_batches(self._runs, batch_size=batch_size, every=self._every))
        chosen = [wanted(number) for number in range(len(planned))]
        walked = walk(
            self._model,
            self._route,
            self._runs,
            batch_size=batch_size,
            every=self._every,
            device=device_of(self._model),
            wanted=chosen,
        )
        for rows, is_wanted in zip(planned, chosen, strict=True):
            yield rows, self._batch(next(walked)) if is_wanted else None

    def _batch(self, instants: Instants) -> EvalBatch:
        rows, device = instants.rows, instants.frames.device
        truth_deg = torch.from_numpy(self._truth_deg[rows]).to(device)
        scale = torch.from_numpy(self._route.degrees_per_unit[rows]).to(device)
        clean_deg = angle_deg(instants.clean, scale)
        return EvalBatch(
            rows=rows,
            model=self._model.at(instants.past),
            frames=instants.frames,
            clean=instants.clean,
            target=self._rule(instants.clean),
            targets=[self._target] * len(rows),
            quantity=self.quantity,
            references={
                "truth": SteeringError(degrees_per_unit=scale, reference_deg=truth_deg),
                "clean": SteeringError(degrees_per_unit=scale, reference_deg=clean_deg),
            },
            known={
                "prediction": clean_deg.cpu().numpy(),
                "truth": truth_deg.cpu().numpy(),
                "error": (clean_deg - truth_deg).abs().cpu().numpy(),
            },
            ground_truth_mask=self._route.causes(rows).to(device) if self._with_masks else None,
        )

    def places(self, rows: Int64[np.ndarray, " B"]) -> pd.DataFrame:
        """See `EvalData`."""
        columns = ["drive", "camera", "segment", "frame", "time_ns"]
        found = self._route.index[columns].iloc[rows].reset_index(drop=True)
        return found.assign(key="")

    def describe(self) -> dict[str, Any]:
        """See `EvalData`."""
        return {
            "drives": sorted({str(self._route.index["drive"].iloc[run.rows[0]]) for run in self._runs}),
            "runs": len(self._runs),
            "frames": sum(len(run) for run in self._runs),
            "seconds_apart": self.seconds_apart,
        }


def _require_signals(checkpoint: Checkpoint, manifest: Manifest, shards: Path) -> None:
    """Refuses shards that were made otherwise than those the model learnt from."""
    if manifest.kind != "sequences":
        raise DataError(f"{shards}: got shards of {manifest.kind}, expected sequences; prepare a drive")
    require_geometry(checkpoint, manifest, shards)
    learnt = checkpoint.config.get("input", {}).get("signals", {})
    for name in ("lead_s", "smoothing_alpha"):
        if name in learnt and manifest.signals.get(name) != learnt[name]:
            raise DataError(
                f"{shards}: the shards' {name} is {manifest.signals.get(name)}, the checkpoint learnt "
                f"{learnt[name]}; prepare them alike"
            )


def _require_steps(model: object) -> None:
    if not isinstance(model, RecurrentModel):
        raise UnsupportedModelError(
            f"{type(model).__name__} has no step and at, by which a model is driven; wrap it with driving_xai.models.wrap.wrap"
        )


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
        self._rule: TargetRule | None = None
        if not (self._target == EVERY_PREDICTED and self._several):
            self._rule = by_name(self._target, outputs)
        short_side_px = checkpoint.config.get("input", {}).get("short_side_px")
        self._images = LabelledImages(shards, short_side_px=short_side_px, manifest=manifest)
        require_geometry(checkpoint, manifest, shards)
        chosen = choose_rows(self._images.index, config.split, checkpoint, manifest, FoldOut.from_config)
        self._rows = np.flatnonzero(chosen)[:: config.every]
        if not len(self._rows):
            raise DataError(f"{shards}: split {config.split} has no image to score; choose another")
        unlabelled = not set(self._names) <= set(self._images.label_names)
        self._labels = None if unlabelled else self._images.labels(self._names)
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
        if self._rule is None:
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
            _, columns = self._explained(clean)
            yield rows, self._batch(rows, frames, clean, columns)

    def _of_every_output(
        self, batch_size: int, wanted: Callable[[int], bool]
    ) -> Iterator[tuple[np.ndarray, EvalBatch | None]]:
        numbers = itertools.count()
        for rows, read in self._images.batches(self._rows, batch_size):
            frames, clean = self._predicted(read)
            at, columns = self._explained(clean)
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
        with torch.no_grad():
            return frames, self._model(frames)

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
        )

    def _mask_of(self, rows: np.ndarray, columns: Int64[Tensor, " B"]) -> Mask:
        masks: Bool[np.ndarray, "B K H W"] | None = self._images.causes(rows)
        if masks is None:
            raise DataError(
                f"{self._images.root} does not know the causes, as rendered scenes do; give "
                "--masks with the pixels that matter, see docs/results.md"
            )
        label = [self._images.label_names.index(self._names[column]) for column in columns.tolist()]
        return torch.from_numpy(masks[np.arange(len(rows)), label])

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
