"""Frames of a finished output for people to look at: as they are stored, with their labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from data_prep.geometry import decode_image
from data_prep.schema import Image
from data_prep.shards import hdf5, parquet

COUNT = 6


class Sample(NamedTuple):
    """One stored frame."""

    image: Image
    caption: str
    """Two lines: where it is from, and its label."""


def sample_frames(root: Path, index: pd.DataFrame, *, count: int = COUNT) -> list[Sample]:
    """Frames evenly over the index.

    Args:
        root: the output's folder.
        index: of all its frames.
        count: how many at the most.

    Raises:
        DataError: a shard is missing or damaged.
    """
    numbers = np.unique(np.linspace(0, len(index) - 1, min(count, len(index))).astype(int))
    is_of_images = "key" in index
    rows = [index.iloc[number] for number in numbers]
    return [_labelled(root, row) if is_of_images else _driven(root, index, row) for row in rows]


def _driven(root: Path, index: pd.DataFrame, row: pd.Series) -> Sample:
    image = hdf5.read_frames(root / row["shard"], int(row["row"]), int(row["row"]) + 1)[0]
    start_ns = int(index.loc[index["drive"] == row["drive"], "time_ns"].iloc[0])
    angle_deg = np.degrees(row["steering_wheel_rad_smoothed"])
    label = "unlabelled" if np.isnan(angle_deg) else f"{angle_deg:+.1f} deg"
    if not np.isnan(row["inverse_turning_radius"]):
        label += f", {row['inverse_turning_radius']:+.4f} /m"
    return Sample(image, f"{(row['time_ns'] - start_ns) / 1e9:.1f} s, {row['split']}\n{label}")


def _labelled(root: Path, row: pd.Series) -> Sample:
    (found,) = parquet.read_images(root / row["shard"], [int(row["row"])])
    names: Sequence[str] = parquet.label_names_of(root / row["shard"])
    positive = [name for name, value in zip(names, found.labels, strict=True) if value > 0]
    label = ", ".join(positive) or ("none" if names else "no labels")
    return Sample(decode_image(found.data, name=found.key), f"{row['split']}\n{label}")
