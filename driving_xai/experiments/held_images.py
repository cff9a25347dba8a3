"""Labelled images held in memory: stand-ins for a paper's data set, as the classifier recipe reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from driving_xai.data.images import ImageSet, LabelledImages
from driving_xai.experiments.cluttered_digits import Clutter, cluttered, handwritten_digits
from driving_xai.types import Frames


@dataclass(frozen=True, kw_only=True)
class HeldImages:
    """N images of one class each; see `data.images.ImageSet`."""

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


def given_or(data: Path | None, stand_in: HeldImages | None, name: str) -> NamedImages:
    """The user's shards, or the stand-in where there are none."""
    if data is not None:
        shards = LabelledImages(data, keep_mib=2048)
        return NamedImages(
            images=shards,
            described={"name": shards.manifest.drives[0]["name"], "sha256": shards.manifest.sha256},
        )
    assert stand_in is not None
    return NamedImages(images=stand_in, described={"name": name, "sha256": stand_in.sha256})


def digits_in_clutter(*, train: int, val: int, test: int, how: Clutter, seed: int) -> HeldImages:
    """Real handwritten digits among fragments of others; no digit serves two splits.

    Raises:
        DataError: scikit-learn, which brings the digits, is not installed.
    """
    learnt, tested = handwritten_digits().split(0.6, seed=seed)
    learnt, validated = learnt.split(0.8, seed=seed)
    parts = {"train": (learnt, train), "val": (validated, val), "test": (tested, test)}
    drawn = {
        split: cluttered(digits, count, how, seed=seed + place)
        for place, (split, (digits, count)) in enumerate(parts.items())
    }
    return HeldImages(
        label_names=tuple(f"digit {k}" for k in range(10)),
        pixels=torch.from_numpy(np.concatenate([pictures for pictures, _ in drawn.values()])),
        classes=torch.from_numpy(np.concatenate([labels for _, labels in drawn.values()])),
        splits=np.repeat(list(drawn), [len(labels) for _, labels in drawn.values()]),
    )
