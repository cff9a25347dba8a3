"""Evaluation data: batches of frames with targets and metadata for one model, along drives or of labelled images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from jaxtyping import Int64

from data_prep.shards.manifest import Manifest
from driving_xai.checkpoint import Checkpoint
from driving_xai.errors import DataError
from driving_xai.evaluation.config import ScoreConfig
from driving_xai.evaluation.drive_data import DriveData
from driving_xai.evaluation.image_data import ImageData
from driving_xai.evaluation.selection import every_batch
from driving_xai.metrics.batch import EvalBatch
from driving_xai.metrics.quantities import Quantity
from driving_xai.types import Frames


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

    def sample(self, count: int, *, seed: int) -> Frames:
        """At most so many of the frames to score, drawn at random: RGB in [0, 1], on the CPU."""
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
    if checkpoint.outputs.kind == "regression":
        _require_of_drives(config)
        return DriveData(checkpoint, shards, manifest, config, with_masks=with_masks)
    return ImageData(checkpoint, shards, manifest, config, with_masks=with_masks)


def _require_of_drives(config: ScoreConfig) -> None:
    if config.shows_bias_image:
        raise DataError(
            "fill 'bias-image' is the mean of training images, and this model steers; take another fill"
        )
    if config.only_label is not None:
        raise DataError(
            f"only_label {config.only_label!r} chooses among images, and this model steers; leave it out"
        )


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
