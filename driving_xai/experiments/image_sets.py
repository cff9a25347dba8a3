"""Image sets of experiments: the user's shards, or a stand-in in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from data_prep.geometry import decode_image
from data_prep.shards.manifest import Manifest, canonical_json
from data_prep.shards.parquet import read_images
from driving_xai.data.drives import open_index
from driving_xai.data.images import ImageSet, LabelledImages
from driving_xai.errors import DataError
from driving_xai.training.feature_cache import ReadImages
from driving_xai.types import Frames


@dataclass(frozen=True, kw_only=True)
class MemoryImages:
    """N images of one class each, in memory; an image set as `data.images.ImageSet`."""

    label_names: tuple[str, ...]
    pixels: UInt8[Tensor, "N 3 H W"]
    classes: Int[Tensor, " N"]
    splits: np.ndarray
    """train, val or test, for each."""
    causes: Bool[Tensor, "N H W"] | None = None
    """The pixels that decide the class, where they are known."""

    def __len__(self) -> int:
        return len(self.pixels)

    def rows(self, split: Literal["train", "val", "test"]) -> Int[np.ndarray, " n"]:
        """Positions of a split's images."""
        return np.flatnonzero(self.splits == split)

    def labels(self, names: Sequence[str]) -> Float[Tensor, "N K"]:
        """One column for each class."""
        return torch.nn.functional.one_hot(self.classes.long(), len(self.label_names)).float()

    def frames(self, rows: np.ndarray) -> Frames:
        """The images of these rows, in their order, in [0, 1]."""
        return self.pixels[torch.from_numpy(rows)].float() / 255

    def shuffled(self, rows: np.ndarray, draw: torch.Generator) -> np.ndarray:
        """The rows in a random order."""
        return rows[torch.randperm(len(rows), generator=draw).numpy()]

    @property
    def sha256(self) -> str:
        """Says which images these are."""
        digest = hashlib.sha256(self.pixels.numpy().tobytes())
        digest.update(self.classes.numpy().tobytes())
        digest.update("".join(self.splits).encode())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class NamedImages:
    """Images of an experiment, and what its result says of them."""

    images: ImageSet
    described: Mapping[str, Any]


def open_images(data: Path | None, stand_in: MemoryImages | None, name: str) -> NamedImages:
    """The user's shards, or the stand-in under its name where none are given."""
    if data is not None:
        shards = LabelledImages(data, keep_mib=2048)
        return NamedImages(
            images=shards,
            described={"name": shards.manifest.drives[0]["name"], "sha256": shards.manifest.sha256},
        )
    assert stand_in is not None
    return NamedImages(images=stand_in, described={"name": name, "sha256": stand_in.sha256})


@dataclass(frozen=True, kw_only=True)
class ResizedImages:
    """N images of one class each, all of one size, whose pixels are read by rows."""

    name: str
    """Of the data set, as results call it."""
    label_names: tuple[str, ...]
    classes: Int[Tensor, " N"]
    """The class of each, by its place among the names."""
    splits: np.ndarray
    """train, test or another word, for each."""
    read: ReadImages
    sha256: str
    """Says which images these are, as they are read: of the shards and the size."""

    def __len__(self) -> int:
        return len(self.classes)

    def rows(self, split: Literal["train", "test"]) -> Int[np.ndarray, " n"]:
        """Positions of a split's images."""
        return np.flatnonzero(self.splits == split)

    def describe(self) -> dict[str, object]:
        """What a result says about its data."""
        return {
            "name": self.name,
            "classes": list(self.label_names),
            "train": len(self.rows("train")),
            "test": len(self.rows("test")),
            "sha256": self.sha256,
        }


def from_shards(root: Path, *, size_px: int) -> ResizedImages:
    """The images that `prep image-folder` wrote, each resized to a square as a whole, as the paper has it.

    Tested are those of the split `test`, or of `val` where there is no test.

    Raises:
        DataError: not shards of labelled images, an image without exactly one class, or an empty split.
    """
    manifest = Manifest.load(root)
    if manifest.kind != "images":
        raise DataError(
            f"{root} holds {manifest.kind}; expected images, from `driving-xai prep image-folder`"
        )
    index = open_index(root, manifest)
    names = tuple(manifest.signals["labels"])
    one_hot = index[list(names)].to_numpy()
    if (wrong := np.flatnonzero(one_hot.sum(1) != 1)).size:
        key = index["key"].iloc[wrong[0]]
        raise DataError(
            f"{root}: {key} has {one_hot[wrong[0]].sum()} classes, expected one; check its labels"
        )
    split = index["split"].to_numpy(dtype=str)
    if not (split == "test").any():
        split[split == "val"] = "test"
    train, test = (int((split == each).sum()) for each in ("train", "test"))
    if not train or not test:
        raise DataError(
            f"{root}: {train} images to train on, {test} to test; expected both; prepare it again"
        )
    files, rows = index["shard"].to_numpy(dtype=str), index["row"].to_numpy()

    def read(wanted: np.ndarray) -> UInt8[Tensor, "B 3 H W"]:
        pictures = np.empty((len(wanted), size_px, size_px, 3), dtype=np.uint8)
        names, member = np.unique(files[wanted], return_inverse=True)
        order, edges = np.argsort(member, kind="stable"), np.cumsum(np.bincount(member))[:-1]
        for shard, places in zip(names, np.split(order, edges), strict=True):
            found = read_images(root / shard, [int(row) for row in rows[wanted[places]]])
            for place, each in zip(places, found, strict=True):
                picture = decode_image(each.data, name=each.key)
                pictures[place] = cv2.resize(picture, (size_px, size_px), interpolation=cv2.INTER_LINEAR)
        return torch.from_numpy(pictures).permute(0, 3, 1, 2)

    return ResizedImages(
        name=manifest.drives[0]["name"],
        label_names=names,
        classes=torch.from_numpy(one_hot.argmax(1)),
        splits=split,
        read=read,
        sha256=hashlib.sha256(canonical_json({"shards": manifest.sha256, "size_px": size_px})).hexdigest(),
    )


def in_memory(
    name: str,
    label_names: tuple[str, ...],
    train: tuple[UInt8[np.ndarray, "N 3 H W"], Int[np.ndarray, " N"]],
    test: tuple[UInt8[np.ndarray, "M 3 H W"], Int[np.ndarray, " M"]],
    *,
    sha256: str,
) -> ResizedImages:
    """Images and labels to train on and to test on."""
    images = torch.from_numpy(np.concatenate([train[0], test[0]]))

    def read(wanted: np.ndarray) -> UInt8[Tensor, "B 3 H W"]:
        return images[torch.from_numpy(wanted)]

    return ResizedImages(
        name=name,
        label_names=label_names,
        classes=torch.from_numpy(np.concatenate([train[1], test[1]])),
        splits=np.repeat(["train", "test"], [len(train[1]), len(test[1])]),
        read=read,
        sha256=sha256,
    )
