"""What a steering model sees with: five convolutions, or the features of a network of timm."""

from __future__ import annotations

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
    load_backbone,
)
from driving_xai.models.feature_maps import map_at
from driving_xai.models.forward_trace import evaluating
from driving_xai.models.steering_config import OF_TIMM, SteeringConfig
from driving_xai.models.weights import first_line
from driving_xai.types import Cells, Frames

CHANNELS = (3, 24, 36, 48, 64, 64)
"""Of the frames and of each convolution's output; every encoder ends with as many."""
# (kernel, stride, padding) of the five convolutions; all end at 10 x 20 for 80 x 160 frames.
_CONVOLUTIONS = {
    # Table 1's output sizes with the pseudo-code's kernels.
    "table-1": ((5, 2, 2), (5, 2, 2), (3, 2, 1), (3, 1, 1), (3, 1, 1)),
    # Table 1 to the letter: its second kernel is 3 x 3.
    "table-1-kernels": ((5, 2, 2), (3, 2, 1), (3, 2, 1), (3, 1, 1), (3, 1, 1)),
    # The pseudo-code to the letter: 39 x 79, 19 x 39, 10 x 20.
    "pseudo-code": ((5, 2, 1), (5, 2, 1), (3, 2, 1), (3, 1, 1), (3, 1, 1)),
}


def build_encoder(config: SteeringConfig) -> nn.Sequential | TimmEncoder:
    """The encoder of a configuration, its weights drawn at random.

    Raises:
        UnsupportedModelError: timm has no such network, or it has no features of that stride.
    """
    if config.timm_name is not None:
        return TimmEncoder(config.timm_name, config.stride, batch=config.normalisation == "batch")
    layers: list[nn.Module] = []
    for i, (kernel, stride, padding) in enumerate(_CONVOLUTIONS[config.encoder]):
        layers += _convolution(i, kernel, stride, padding, batch=config.normalisation == "batch")
        layers.append(nn.ReLU())
    # No ReLU at the end: with x >= 0 every sign would be +1 and the sign path a constant.
    return nn.Sequential(*layers[:-1])


def _convolution(i: int, kernel: int, stride: int, padding: int, *, batch: bool) -> list[nn.Module]:
    convolution = nn.Conv2d(CHANNELS[i], CHANNELS[i + 1], kernel, stride, padding)
    return [convolution, nn.BatchNorm2d(CHANNELS[i + 1])] if batch else [convolution]


class TimmEncoder(nn.Module):
    """The features of a network of timm at one stride, and a 1 x 1 convolution of them to 64 channels.

    The convolution is not rectified, so that signs differ. Frames come normalised as the network expects.

    Args:
        name: of timm; what lies behind the features is left out.
        stride: pixels of the frame between neighbouring cells.
        batch: whether a batch normalisation follows the convolution.

    Raises:
        UnsupportedModelError: timm has no such network, or it has no features of that stride.
    """

    def __init__(self, name: str, stride: int, *, batch: bool) -> None:
        super().__init__()
        self.name, self.stride = name, stride
        self.trunk: Any = build_backbone(BackboneConfig(backbone=name))
        self.level = _cut_behind(self.trunk, name, stride)
        channels = self._channels(torch.zeros(1, 3, 4 * stride, 4 * stride))
        projection = nn.Conv2d(channels, CHANNELS[-1], 1)
        self.project = nn.Sequential(projection, *([nn.BatchNorm2d(CHANNELS[-1])] if batch else []))

    def load(self, weights: str) -> None:
        """Takes the network's weights: from a file, or for `timm` its own of that name and tag, fetched.

        Raises:
            CheckpointError: they do not fit, or are neither cached nor reachable.
            UnsupportedModelError: timm has no such weights.
        """
        whole = build_backbone(BackboneConfig(backbone=self.name), pretrained=weights == "timm")
        if weights != "timm":
            load_backbone(whole, Path(weights))
        _cut_behind(whole, self.name, self.stride)
        self.trunk = whole.to(memory_format=torch.channels_last)

    def _channels(self, frames: Frames) -> int:
        try:
            with torch.no_grad(), evaluating(self.trunk):
                return self.features(frames).shape[1]
        # What networks raise at frames that they are not made for is of any type.
        except Exception as error:
            raise UnsupportedModelError(
                f"encoder {OF_TIMM}{self.name} does not take frames of {frames.shape[2]} x {frames.shape[3]} px "
                f"({first_line(error)}); take a network for frames of any size"
            ) from error

    @property
    def standardisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of the colours that the network was trained with, of RGB in [0, 1]."""
        given = self.trunk.pretrained_cfg
        return given.get("mean", IMAGENET_MEAN), given.get("std", IMAGENET_STD)

    def features(self, normalised: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """What the network of timm sees, before the convolution."""
        (maps,) = self.trunk.forward_intermediates(
            normalised.contiguous(memory_format=torch.channels_last),
            indices=[self.level],
            intermediates_only=True,
            stop_early=True,
        )
        return maps

    def forward(self, normalised: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 64 h w"]:
        return self.project(self.features(normalised))


def _cut_behind(trunk: Any, name: str, stride: int) -> int:
    """Leaves out what lies behind a network's last features of a stride; gives their number among its features.

    Raises:
        UnsupportedModelError: it has none of that stride, or timm cannot cut it.
    """
    strides = [level["reduction"] for level in getattr(trunk, "feature_info", [])]
    if stride not in strides or not hasattr(trunk, "prune_intermediate_layers"):
        raise UnsupportedModelError(
            f"encoder {OF_TIMM}{name} has features of stride {', '.join(map(str, dict.fromkeys(strides))) or 'unknown'}, not of "
            f"{stride}; set model.encoder_stride, or take another network"
        )
    level = len(strides) - 1 - strides[::-1].index(stride)
    trunk.prune_intermediate_layers([level], prune_norm=False, prune_head=True)
    return level


def cells_of(config: SteeringConfig, encoder: nn.Module) -> Cells | None:
    """Where an encoder's cells lie in the frame; None where they lie evenly over it."""
    if isinstance(encoder, TimmEncoder):
        frames: Frames = next(encoder.parameters()).new_zeros(1, 3, config.height, config.width)
        return map_at(encoder, frames, encoder.project[-1]).cells
    first, stride = 0.0, 1
    for kernel, step, padding in _CONVOLUTIONS[config.encoder]:
        first += ((kernel - 1) / 2 - padding) * stride
        stride *= step
    return Cells(first, stride)
