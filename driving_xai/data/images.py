"""Labelled single images by rows: the protocol that training reads, and a torch view of image shards."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, Int64, UInt8
from PIL import Image
from torch import Tensor

from data_prep.causes import decode_causes
from data_prep.geometry import decode_image
from data_prep.shards.manifest import Manifest
from data_prep.shards.parquet import IMAGES_PER_GROUP, LabelledImage, read_images
from driving_xai.data.drives import open_index, shard_lengths
from driving_xai.data.splits import Split
from driving_xai.errors import DataError
from driving_xai.types import Frames

_BLOCK_GROUPS = 8
"""Row groups whose images are mixed with each other, and whose bytes stay in memory."""


class ImageSet(Protocol):
    """Labelled images of one size, by rows; `LabelledImages` is one, and so is any class with these members."""

    @property
    def label_names(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def rows(self, split: Split) -> Int[np.ndarray, " n"]:
        """Positions of a split's images."""
        ...

    def labels(self, names: Sequence[str]) -> Float[Tensor, "N K"]:
        """One column for each name, 0 or 1, of all images."""
        ...

    def frames(self, rows: np.ndarray) -> Frames:
        """The images of these rows, in their order, RGB in [0, 1]."""
        ...

    def shuffled(self, rows: np.ndarray, draw: torch.Generator) -> np.ndarray:
        """The rows in a random order that is quick to read."""
        ...


class Examples(Protocol):
    """The inputs of a network by rows: frames, or features kept on disk."""

    def __len__(self) -> int: ...

    def batch(self, rows: np.ndarray) -> Tensor:
        """The inputs of these rows, in their order."""
        ...


def classes_of(images: ImageSet) -> Int64[Tensor, " N"]:
    """The class of each image, by its place among the label names.

    Raises:
        DataError: there are fewer than two classes, or an image has none or several.
    """
    names = images.label_names
    if len(names) < 2:
        raise DataError(f"the images have {len(names)} label columns, expected two classes or more")
    return exactly_one_class(images.labels(names))


def exactly_one_class(labels: Float[Tensor, "N K"]) -> Int64[Tensor, " N"]:
    """The class of each row of 0 and 1.

    Raises:
        DataError: a row has no class or several.

    Example:
        >>> exactly_one_class(torch.eye(3)[[2, 0]])
        tensor([2, 0])
    """
    counts = labels.sum(1)
    if len(wrong := (counts != 1).nonzero()):
        row = int(wrong[0])
        raise DataError(
            f"image {row} of the index has {int(counts[row])} classes, expected one; images with several labels "
            "are for `train actions`, or for model.output_kind=multilabel"
        )
    return labels.argmax(1)


def mean_image(images: ImageSet, rows: np.ndarray, batch_size: int = 256) -> Float[Tensor, "3 H W"]:
    """The bias image: the mean of these images.

    Source: Iida et al. 2022, eq. 13, whose printed sum has one image too many.
    """
    parts = (images.frames(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size))
    return (torch.stack([part.double().sum(0) for part in parts]).sum(0) / len(rows)).float()


class ImageBatch(NamedTuple):
    """Some images of a set."""

    rows: np.ndarray
    """Their positions in the index."""
    frames: Frames


def resized(image: UInt8[np.ndarray, "H W 3"], short_side_px: int | None) -> UInt8[np.ndarray, "h w 3"]:
    """The image with a short side of so many pixels, bicubically with antialiasing; None leaves it."""
    size = _resized_to(image.shape, short_side_px)
    if size == image.shape[1::-1]:
        return image
    # Pillow's bicubic filter widens where it shrinks, as torchvision's does; OpenCV's does not.
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def _resized_to(shape: tuple[int, ...], short: int | None) -> tuple[int, int]:
    """Width and height after resizing; a shape starts with height and width."""
    height, width = shape[:2]
    if short is None:
        return width, height
    return (short, int(short * height / width)) if width <= height else (int(short * width / height), short)


class LabelledImages:
    """The images and labels of a shard set, decoded when asked for.

    Memory is bounded: the encoded bytes of a few row groups, and up to `keep_mib` of decoded images, kept
    in the order in which they are first read.

    Args:
        root: a folder that `prep` wrote from labelled images.
        short_side_px: images are resized so that their short side is this long, bicubically with
            antialiasing, as torchvision resizes; None leaves them as they are stored.
        keep_mib: of decoded images that may stay in memory.
        threads: that decode.
        manifest: the folder's, where it was read already.

    Raises:
        DataError: the folder holds no image shards, or its index is not the manifest's.

    Example:
        >>> images = LabelledImages(Path("missing"))
        Traceback (most recent call last):
        data_prep.errors.DataError: missing: no manifest.json; expected a folder written by `driving-xai prep`
    """

    def __init__(
        self,
        root: Path,
        *,
        short_side_px: int | None = None,
        keep_mib: int = 0,
        threads: int = 2,
        manifest: Manifest | None = None,
    ) -> None:
        self.root, self.manifest = Path(root), manifest or Manifest.load(root)
        if self.manifest.kind != "images":
            raise DataError(f"{root} holds {self.manifest.kind}; expected labelled images")
        self.index = open_index(self.root, self.manifest)
        self.label_names = tuple(self.manifest.signals["labels"])
        self.short_side_px, self._threads = short_side_px, threads
        self._shards, self._row = self.index["shard"].to_numpy(), self.index["row"].to_numpy()
        self._lengths = shard_lengths(self.index)
        self._groups: OrderedDict[tuple[str, int], list[LabelledImage]] = OrderedDict()
        self._kept: dict[int, np.ndarray] = {}
        self._room = keep_mib * 2**20

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, split: Split) -> Int[np.ndarray, " N"]:
        """Positions in the index of a split's images."""
        return np.flatnonzero(self.index["split"].to_numpy(dtype=str) == split)

    def labels(self, names: Sequence[str]) -> Float[Tensor, "N K"]:
        """The columns of these names for all images, 0 or 1.

        Raises:
            DataError: a name is no label of the set, or has other values.
        """
        if missing := [name for name in names if name not in self.label_names]:
            has = ", ".join(self.label_names) or "none"
            raise DataError(
                f"{self.root} has no label {missing[0]!r}; it has {len(self.label_names)} labels: {has}"
            )
        values = self.index[list(names)].to_numpy()
        if not np.isin(values, (0, 1)).all():
            raise DataError(
                f"{self.root}: a label of {', '.join(names)} is neither 0 nor 1; prepare it again"
            )
        return torch.from_numpy(values.astype(np.float32))

    def arrays(self, rows: np.ndarray) -> list[UInt8[np.ndarray, "H W 3"]]:
        """The images of these rows, in their order, RGB; they may be of several sizes.

        Raises:
            DataError: an image cannot be decoded.
        """
        wanted = [row for row in rows.tolist() if row not in self._kept]
        stored = [self._stored(row) for row in wanted]
        with ThreadPoolExecutor(self._threads) as pool:
            fresh = dict(zip(wanted, pool.map(self._decode, stored), strict=True))
        for row, image in fresh.items():
            if image.nbytes <= self._room:
                self._kept[row] = image
                self._room -= image.nbytes
        return [fresh[row] if row in fresh else self._kept[row] for row in rows.tolist()]

    def pixels(self, rows: np.ndarray) -> UInt8[Tensor, "B 3 H W"]:
        """The images of these rows, in their order, RGB.

        Raises:
            DataError: an image cannot be decoded, or they are of several sizes.
        """
        found = self.arrays(rows)
        if len(sizes := {image.shape[:2] for image in found}) > 1:
            few = ", ".join(f"{h} x {w}" for h, w in sorted(sizes)[:3])
            raise DataError(
                f"{self.root} has images of several sizes ({few}); prepare them with --set geometry.height=H "
                "--set geometry.width=W"
            )
        return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous()

    def frames(self, rows: np.ndarray) -> Frames:
        """As `pixels`, in [0, 1]."""
        return self.pixels(rows).float() / 255

    def batches(self, rows: np.ndarray, batch_size: int) -> Iterator[ImageBatch]:
        """The images of these rows in their order, so many at a time."""
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            yield ImageBatch(part, self.frames(part))

    def causes(self, rows: np.ndarray) -> Bool[np.ndarray, "B K H W"] | None:
        """Which pixels cause each label, on the resized images' grid; None if the set does not know.

        A pixel is set where at least half of its source is.
        """
        masks = []
        for row in rows.tolist():
            stored = self._stored(row)
            if stored.causes is None:
                return None
            found = decode_causes(stored.causes, labels=len(self.label_names), name=stored.key)
            size = _resized_to(found.shape[1:], self.short_side_px)
            masks.append(
                [cv2.resize(m.astype(np.float32), size, interpolation=cv2.INTER_AREA) >= 0.5 for m in found]
            )
        return np.array(masks)

    def shuffled(self, rows: np.ndarray, draw: torch.Generator) -> np.ndarray:
        """The rows in a random order that reads few row groups at a time: blocks of groups, mixed inside."""
        shard, _ = pd.factorize(self._shards[rows])
        group = self._row[rows].astype(np.int64) // IMAGES_PER_GROUP
        # Numbered as they first appear, so that the draw does not depend on the shards' names.
        member, known = pd.factorize(shard * (int(group.max(initial=0)) + 1) + group)
        rank = torch.randperm(len(known), generator=draw).numpy()[member] // _BLOCK_GROUPS
        mixed = torch.randperm(len(rows), generator=draw).numpy()
        return rows[mixed[np.argsort(rank[mixed], kind="stable")]]

    def _decode(self, stored: LabelledImage) -> UInt8[np.ndarray, "H W 3"]:
        return resized(decode_image(stored.data, name=stored.key), self.short_side_px)

    def _stored(self, row: int) -> LabelledImage:
        shard, at = str(self._shards[row]), int(self._row[row])
        group = at // IMAGES_PER_GROUP
        if (shard, group) not in self._groups:
            first = group * IMAGES_PER_GROUP
            wanted = range(first, min(first + IMAGES_PER_GROUP, self._lengths[shard]))
            self._groups[shard, group] = read_images(self.root / shard, wanted)
            if len(self._groups) > _BLOCK_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end((shard, group))
        return self._groups[shard, group][at - group * IMAGES_PER_GROUP]
