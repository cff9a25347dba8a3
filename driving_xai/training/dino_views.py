"""The views of an image that self-supervised training compares: two large crops and several small ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from data_prep.values import Checked, Count, PositiveCount
from driving_xai.data.images import LabelledImages
from driving_xai.training.recipe import mix


@dataclass(frozen=True, kw_only=True)
class Crops(Checked):
    """Sizes in px, and areas as shares of the image. Defaults are DINO's."""

    global_px: PositiveCount = 224
    global_scale: tuple[float, ...] = (0.4, 1.0)
    local_px: PositiveCount = 96
    local_scale: tuple[float, ...] = (0.05, 0.4)
    local_crops: Count = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("global_scale", "local_scale"):
            scale = getattr(self, name)
            if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
                raise ValueError(
                    f"{name} is {list(scale)}; expected two shares of the image, the smaller first"
                )


Views = list[Float[Tensor, "B 3 S S"]]
"""Two global views, then the local ones; standardised with ImageNet's mean and deviation."""


class ViewBatches(Dataset[Views]):
    """The batches of one epoch; the views of an image depend on the seed, the epoch and its row.

    Source: lightly's DINOTransform: crops, mirroring, colour jitter, grey, blur, solarisation.
    """

    def __init__(
        self, images: LabelledImages, chunks: Sequence[np.ndarray], crops: Crops, *, seed: int, epoch: int
    ) -> None:
        from lightly.transforms.dino_transform import DINOTransform

        self.images, self.chunks, self.seed, self.epoch = images, chunks, seed, epoch
        self._transform: Any = DINOTransform(
            global_crop_size=crops.global_px,
            global_crop_scale=(crops.global_scale[0], crops.global_scale[1]),
            local_crop_size=crops.local_px,
            local_crop_scale=(crops.local_scale[0], crops.local_scale[1]),
            n_local_views=crops.local_crops,
        )

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, number: int) -> Views:
        rows = self.chunks[number]
        views = []
        for row, image in zip(rows.tolist(), self.images.arrays(rows), strict=True):
            with _draws_from(mix(self.seed, self.epoch, row)):
                views.append(self._transform(Image.fromarray(image)))
        return [torch.stack(same) for same in zip(*views, strict=True)]


@contextmanager
def _draws_from(seed: int) -> Iterator[None]:
    """Sets the global generators that lightly and torchvision draw from, and puts them back."""
    state = np.random.get_state()  # noqa: NPY002 - lightly draws from the global one
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002
