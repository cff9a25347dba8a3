"""Frames for a replay of actions: labelled images, a recording, a video, or a folder of images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float64, UInt8

from data_prep.schema import VEHICLES, Image
from data_prep.shards.manifest import FILE_NAME, Manifest
from driving_xai.checkpoint import Checkpoint
from driving_xai.data.images import LabelledImages, resized
from driving_xai.data.input_rule import InputRule, Region
from driving_xai.data.splits import FoldOut
from driving_xai.errors import DataError
from driving_xai.evaluation.data import require_geometry
from driving_xai.replay.source import Selection, open_source

STILLS_HZ = 2.0
"""Of labelled images, which do not follow one another: each can be looked at."""
_USUAL_HZ = 20.0
_IMAGES_AT_A_TIME = 16


class Picture(NamedTuple):
    """One frame of an action replay."""

    image: Image
    """As it is shown."""
    pixels: UInt8[np.ndarray, "h w 3"]
    """As the model gets it."""
    labels: Float64[np.ndarray, " K"]
    """0 or 1 for each of the model's outputs; NaN where unknown."""
    drive: str
    frame: int
    time_ns: int
    key: str
    """Name of a labelled image; empty for frames of a drive."""
    split: str
    """train, val or test, where the model's own shards say; otherwise empty."""


@dataclass(frozen=True, kw_only=True)
class PictureSource:
    """The frames, in order; iterate as often as needed."""

    name: str
    kind: str
    """`shards`, a reader's name, or `image-folder`."""
    frame_rate: Fraction
    region: Callable[[int, int], Region]
    """Of a frame's height and width: the part that the model sees."""
    total: int
    follow: bool
    """Whether frames follow one another in time."""
    shards_sha256: str | None
    pictures: Callable[[], Iterator[Picture]]

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[Picture]:
        return self.pictures()


@dataclass(frozen=True, kw_only=True)
class Excerpt:
    """Which part of a source is played, and how fast where it does not say.

    Raises:
        DataError: it ends before it starts.
    """

    reader: str | None = None
    drive: str | None = None
    """Of a recording; of labelled images, their group."""
    split: Literal["all", "train", "val", "test"] = "all"
    """Of labelled images."""
    start_s: float = 0.0
    end_s: float | None = None
    frame_rate: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start_s < (math.inf if self.end_s is None else self.end_s):
            raise DataError(f"got start {self.start_s} s, end {self.end_s} s; expected 0 <= start < end")


def open_pictures(checkpoint: Checkpoint, path: Path, excerpt: Excerpt) -> PictureSource:
    """Opens whatever lies at a path for a model of single frames.

    Raises:
        DataError: it is missing, not recognised, cut otherwise than the checkpoint's shards, or nothing of it
            is in the excerpt.
        CheckpointError: the checkpoint does not say how its frames were cut.
    """
    rule = InputRule.of(checkpoint)
    names = checkpoint.model.outputs.names
    if (path / FILE_NAME).is_file() and Manifest.load(path).kind == "images":
        return _of_shards(checkpoint, path, excerpt, rule, names)
    return _of_drive(path, excerpt, rule, len(names))


def _of_shards(
    checkpoint: Checkpoint, path: Path, excerpt: Excerpt, rule: InputRule, names: tuple[str, ...]
) -> PictureSource:
    images = LabelledImages(path)
    require_geometry(checkpoint, images.manifest, path)
    index = images.index
    own = checkpoint.config.get("data", {}).get("shards_sha256") == images.manifest.sha256
    splits = (
        FoldOut.from_config(checkpoint.config).splits(index) if own else index["split"].to_numpy(dtype=str)
    )
    chosen = np.ones(len(index), bool) if excerpt.split == "all" else splits == excerpt.split
    if excerpt.drive is not None:
        chosen &= (index["group"] == excerpt.drive).to_numpy()
    rate = Fraction(str(excerpt.frame_rate or STILLS_HZ)).limit_denominator(1001)
    at = np.arange(int(chosen.sum())) / float(rate)
    inside = (at >= excerpt.start_s) & (at < (np.inf if excerpt.end_s is None else excerpt.end_s))
    rows = np.flatnonzero(chosen)[inside]
    if not len(rows):
        raise DataError(
            f"{path}: no image of split {excerpt.split} in that time; it holds {len(index)} images"
        )
    known = set(names) <= set(images.label_names)
    labels = images.labels(names).double().numpy() if known else np.full((len(index), len(names)), np.nan)

    def pictures() -> Iterator[Picture]:
        for start in range(0, len(rows), _IMAGES_AT_A_TIME):
            part = rows[start : start + _IMAGES_AT_A_TIME]
            for row, image in zip(part, images.arrays(part), strict=True):
                place = index.iloc[row]
                yield Picture(
                    image,
                    # Shards are cut to the geometry already.
                    resized(image, rule.short_side_px),
                    labels[row],
                    str(place["group"]),
                    int(row),
                    0,
                    str(place["key"]),
                    str(splits[row]) if own else "",
                )

    return PictureSource(
        name=path.resolve().name,
        kind="shards",
        frame_rate=rate,
        region=lambda height, width: Region(0, height, 0, width),
        total=len(rows),
        follow=False,
        shards_sha256=images.manifest.sha256,
        pictures=pictures,
    )


def _of_drive(path: Path, excerpt: Excerpt, rule: InputRule, outputs: int) -> PictureSource:
    found = open_source(
        path,
        vehicle=VEHICLES["lincoln-mkz"],  # Unused: nothing here steers.
        frame_rate=Fraction(str(excerpt.frame_rate or _USUAL_HZ)).limit_denominator(1001),
        selection=Selection(
            reader=excerpt.reader, drive=excerpt.drive, start_s=excerpt.start_s, end_s=excerpt.end_s
        ),
    )
    if found.cropped:
        raise DataError(
            f"{path}: shards of a drive are cut for steering; give the recording, a video, or shards of images"
        )
    unknown = np.full(outputs, np.nan)

    def pictures() -> Iterator[Picture]:
        for seen in found:
            frame = seen.frame
            yield Picture(
                frame.image, rule.apply(frame.image), unknown, found.drive, frame.index, frame.time_ns, "", ""
            )

    return PictureSource(
        name=found.name,
        kind=found.kind,
        frame_rate=found.frame_rate,
        region=rule.region,
        total=len(found),
        follow=True,
        shards_sha256=None,
        pictures=pictures,
    )
