"""Which frames of a set of shards are scored, and whether the checkpoint fits them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from jaxtyping import Int64

from data_prep.shards.manifest import Manifest
from driving_xai.checkpoint import Checkpoint
from driving_xai.errors import DataError
from driving_xai.evaluation.config import Split


def every_batch(number: int) -> bool:
    """Whether a batch is wanted, where all of them are."""
    return True


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


def sampled(rows: Int64[np.ndarray, " N"], count: int, *, seed: int) -> Int64[np.ndarray, " n"]:
    """At most so many of the rows, drawn without replacement, in their order."""
    return np.sort(np.random.default_rng(seed).permutation(rows)[:count])


def require_geometry(checkpoint: Checkpoint, manifest: Manifest, path: Path) -> None:
    """Raises DataError where the shards were cut otherwise than those the checkpoint learnt from."""
    trained_on = checkpoint.config.get("input", {}).get("geometry")
    if trained_on is not None and trained_on != manifest.geometry:
        raise DataError(
            f"{path}: the shards' geometry {manifest.geometry} is not the checkpoint's {trained_on}; "
            "prepare them alike"
        )
