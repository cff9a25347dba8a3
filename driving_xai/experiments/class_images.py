"""Images of one class each, read by rows: from the user's shards, or a stand-in in memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from data_prep.geometry import decode_image
from data_prep.shards.manifest import Manifest, canonical_json
from data_prep.shards.parquet import read_images
from driving_xai.data.drives import open_index
from driving_xai.errors import DataError
from driving_xai.training.feature_cache import ReadImages


@dataclass(frozen=True, kw_only=True)
class ClassImages:
    """N images, what they show, and which of them are for testing."""

    name: str
    """Of the data set, as results call it."""
    classes: tuple[str, ...]
    labels: Int[Tensor, " N"]
    train: Int[np.ndarray, " trained"]
    test: Int[np.ndarray, " tested"]
    read: ReadImages
    sha256: str
    """Says which images these are, as they are read: of the shards and the size."""

    def __len__(self) -> int:
        return len(self.labels)

    def describe(self) -> dict[str, object]:
        """What a result says about its data."""
        return {
            "name": self.name,
            "classes": list(self.classes),
            "train": len(self.train),
            "test": len(self.test),
            "sha256": self.sha256,
        }


def from_shards(root: Path, *, size_px: int) -> ClassImages:
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
    classes = tuple(manifest.signals["labels"])
    one_hot = index[list(classes)].to_numpy()
    if (wrong := np.flatnonzero(one_hot.sum(1) != 1)).size:
        key = index["key"].iloc[wrong[0]]
        raise DataError(
            f"{root}: {key} has {one_hot[wrong[0]].sum()} classes, expected one; check its labels"
        )
    split = index["split"].to_numpy(dtype=str)
    tested = "test" if (split == "test").any() else "val"
    train, test = np.flatnonzero(split == "train"), np.flatnonzero(split == tested)
    if not len(train) or not len(test):
        raise DataError(
            f"{root}: {len(train)} images to train on, {len(test)} to test; expected both; prepare it again"
        )
    files, rows = index["shard"].to_numpy(dtype=str), index["row"].to_numpy()

    def read(wanted: np.ndarray) -> UInt8[Tensor, "B 3 H W"]:
        pictures = np.empty((len(wanted), size_px, size_px, 3), dtype=np.uint8)
        for shard in np.unique(files[wanted]):
            places = np.flatnonzero(files[wanted] == shard)
            found = read_images(root / shard, [int(row) for row in rows[wanted[places]]])
            for place, each in zip(places, found, strict=True):
                picture = decode_image(each.data, name=each.key)
                pictures[place] = cv2.resize(picture, (size_px, size_px), interpolation=cv2.INTER_LINEAR)
        return torch.from_numpy(pictures).permute(0, 3, 1, 2)

    return ClassImages(
        name=manifest.drives[0]["name"],
        classes=classes,
        labels=torch.from_numpy(one_hot.argmax(1)),
        train=train,
        test=test,
        read=read,
        sha256=hashlib.sha256(canonical_json({"shards": manifest.sha256, "size_px": size_px})).hexdigest(),
    )


def in_memory(
    name: str,
    classes: tuple[str, ...],
    train: tuple[UInt8[np.ndarray, "N 3 H W"], Int[np.ndarray, " N"]],
    test: tuple[UInt8[np.ndarray, "M 3 H W"], Int[np.ndarray, " M"]],
    *,
    sha256: str,
) -> ClassImages:
    """Images and labels to train on and to test on."""
    images = torch.from_numpy(np.concatenate([train[0], test[0]]))

    def read(wanted: np.ndarray) -> UInt8[Tensor, "B 3 H W"]:
        return images[torch.from_numpy(wanted)]

    return ClassImages(
        name=name,
        classes=classes,
        labels=torch.from_numpy(np.concatenate([train[1], test[1]])),
        train=np.arange(len(train[1])),
        test=np.arange(len(train[1]), len(images)),
        read=read,
        sha256=sha256,
    )
