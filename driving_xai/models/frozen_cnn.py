"""A convolutional network of timm as a fixed feature extractor."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from driving_xai.errors import UnsupportedModelError
from driving_xai.models.backbone import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    BackboneConfig,
    build_backbone,
    is_transformer,
    load_backbone,
)
from driving_xai.models.feature_maps import cell_centres
from driving_xai.types import Cells, FeatureMap, Frames


class FrozenCNN(nn.Module):
    """The convolution stack of a timm network: 224 x 224 frames to 7 x 7 cells, as a rule.

    It stays in eval mode whatever is asked of the model around it: batch normalisation uses its stored
    statistics, and no weight learns. Its own weights are random until `load` or `pretrained`.

    Source: Baumhauer et al. 2021, section 4.2, with EfficientNet-B0.
    Deviation: timm's weights; the paper had Keras's, whose padding of strided convolutions puts cells
    elsewhere by up to half a stride.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str = "efficientnet_b0", *, pretrained: bool = False) -> None:
        """`pretrained` fetches timm's weights of the name; see `backbone.build_backbone`.

        Raises:
            UnsupportedModelError: timm has no such convolutional network.
        """
        super().__init__()
        self.trunk: Any = build_backbone(BackboneConfig(backbone=name), pretrained=pretrained)
        if is_transformer(self.trunk):
            raise UnsupportedModelError(f"{name} is a transformer; expected a convolutional network")
        self.channels: int = self.trunk.num_features
        # What a CAM weighs: no network's own last layer has the same name in every family.
        self.last_map = nn.Identity()
        given = self.trunk.pretrained_cfg if pretrained else {}
        self.register_buffer("mean", torch.tensor(given.get("mean", IMAGENET_MEAN)).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(given.get("std", IMAGENET_STD)).view(3, 1, 1))
        self.requires_grad_(False).train()

    def train(self, mode: bool = True) -> FrozenCNN:
        """Stays in eval mode; see the class."""
        return super().train(False)

    def load(self, path: Path) -> None:
        """Takes weights from a file, strictly; see `backbone.load_backbone`."""
        load_backbone(self.trunk, path)

    @property
    def feature_map(self) -> FeatureMap:
        """What a head pools. Where its cells lie is not known of timm's tf_ networks, which pad by the size
        of the frame, more on one side.
        """
        return FeatureMap(layer=self.last_map, cells=self._cells)

    @cached_property
    def _cells(self) -> Cells | None:
        # Two forward passes, and asked for at every explanation; weights and devices do not change it.
        return cell_centres(self, self.mean.new_zeros(1, 3, 64, 64), self.last_map)

    def forward(self, frames: Frames) -> Float[Tensor, "B C h w"]:
        return self.last_map(self.trunk.forward_features((frames - self.mean) / self.std))


def frozen_cnn(name: str, weights: str = "pretrained") -> FrozenCNN:
    """The network of a timm name with its weights.

    Args:
        weights: pretrained, which timm fetches, random, or a local file.

    Raises:
        UnsupportedModelError: timm has no such convolutional network.
        CheckpointError: the weights are missing, damaged, or of another network.
    """
    network = FrozenCNN(name, pretrained=weights == "pretrained")
    if weights not in ("pretrained", "random"):
        network.load(Path(weights))
    return network
