"""What `prep` wrote, opened by one call: frames by rows, labels, splits."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from data_prep.places import local
from data_prep.shards.manifest import Manifest
from driving_xai.data.drives import Route, open_index, vehicle_of
from driving_xai.data.images import LabelledImages
from driving_xai.errors import DataError
from driving_xai.types import Frames

Part = Literal["train", "val", "test", "all"]


class ShardSet:
    """The frames of a shard set, or of one of its splits; made by `open`.

    Attributes:
        index: a row for each frame: drive, camera, time, labels; see docs/data.md.
        manifest: what the shards are, and where they come from.
    """

    def __init__(self, root: Path, manifest: Manifest, split: Part) -> None:
        """Reads the index.

        Raises:
            DataError: it is not the manifest's, or the split has no frames.
        """
        self.root, self.manifest = root, manifest
        self._images = LabelledImages(root, manifest=manifest) if manifest.kind == "images" else None
        whole = open_index(root, manifest) if self._images is None else self._images.index
        self._route = None if self._images is not None else Route(root, whole, vehicle_of(root, manifest))
        chosen = np.ones(len(whole), dtype=bool) if split == "all" else whole["split"].to_numpy() == split
        if not chosen.any():
            has = ", ".join(sorted(set(whole["split"])))
            raise DataError(f"{root} has no frames of split {split!r}; it has {has}")
        self._rows = np.flatnonzero(chosen)
        self.index = whole[chosen].reset_index(drop=True)

    def __len__(self) -> int:
        return len(self._rows)

    def frames(self, rows: Iterable[int]) -> Frames:
        """Frames by their places in `index`, in the order asked for: RGB in [0, 1].

        Raises:
            DataError: a row is not there, or images are of several sizes.
        """
        wanted = np.fromiter(rows, dtype=np.int64)
        if not len(wanted) or wanted.min() < 0 or wanted.max() >= len(self):
            raise DataError(
                f"{self.root}: got rows {wanted.tolist()[:8]}; expected some of 0 to {len(self) - 1}"
            )
        places = self._rows[wanted]
        if self._images is not None:
            return self._images.frames(places)
        assert self._route is not None
        return self._route.frames(places).float() / 255

    def labels(self, names: Iterable[str]) -> Float[Tensor, "N K"]:
        """The columns of these names for all images of this split, 0 or 1.

        Raises:
            DataError: these are drives, whose signals stand in `index`; or a name is no label.
        """
        if self._images is None:
            raise DataError(f"{self.root} holds drives; their signals are columns of index")
        return self._images.labels(list(names))[self._rows]


def open(path: Path | str, *, split: Part = "all") -> ShardSet:
    """Opens a folder that `driving-xai prep` wrote.

    Args:
        path: the folder, or its URL in a store, such as `s3://bucket/drives`.
        split: which frames.

    Raises:
        DataError: it is no such folder, was changed since, or has no frames of that split.

    Example:
        >>> open("missing")
        Traceback (most recent call last):
        data_prep.errors.DataError: missing: no manifest.json; expected a folder written by `driving-xai prep`
    """
    root = local(path)
    return ShardSet(root, Manifest.load(root), split)
