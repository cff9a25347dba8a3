"""What is scored: a model along the data it is judged on. One subject for each kind of checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
from jaxtyping import Int64

from data_prep.shards.manifest import Manifest
from driving_xai.checkpoint import Checkpoint
from driving_xai.errors import DataError
from driving_xai.metrics.batch import Batch
from driving_xai.metrics.quantities import Quantity

Split = Literal["held-out", "test", "val", "train", "all"]


class Subject(Protocol):
    """A checkpoint's model with the frames it is scored on."""

    @property
    def quantity(self) -> Quantity:
        """What curves are drawn of."""
        ...

    @property
    def protocol(self) -> Mapping[str, Any]:
        """What is particular to this kind: what is edited, and what each reference means."""
        ...

    @property
    def seconds_apart(self) -> float | None:
        """Between two frames that are scored one after the other; None where frames are no neighbours."""
        ...

    @property
    def total(self) -> int:
        """Frames to score."""
        ...

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """All frames to score, in an order that depends on `batch_size` only."""
        ...

    def places(self, rows: Int64[np.ndarray, " B"]) -> pd.DataFrame:
        """The columns of `results.FRAME_COLUMNS` for rows of a batch, but for `target`."""
        ...

    def describe(self) -> dict[str, Any]:
        """The data, for `results.json`."""
        ...


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
