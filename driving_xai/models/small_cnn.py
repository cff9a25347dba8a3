"""A small convolution stack, and Glorot's initial weights."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from driving_xai.types import Cells, FeatureMap, Frames


class SmallCNN(nn.Module):
    """Convolutions of stride 1 that keep the size, each with ReLU, the first ones also pooled.

    Source: Baumhauer et al. 2021, section 4.1, which imitates Chen et al. 2018.
    """

    def __init__(
        self,
        *,
        channels: Sequence[int] = (8, 16, 16),
        kernel: int = 5,
        pooled: int = 2,
        colour: Literal["rgb", "grey"] = "grey",
    ) -> None:
        """Builds the stack; the defaults are the paper's for 28 x 28 digits.

        Args:
            channels: of each convolution's output.
            kernel: odd.
            pooled: how many of the first convolutions a 2 x 2 maximum follows: each halves the map.
            colour: grey is the mean of the three channels.

        Raises:
            ValueError: one of them is out of range.
        """
        super().__init__()
        if not channels or min(channels) < 1 or kernel % 2 == 0 or not 0 <= pooled <= len(channels):
            raise ValueError(
                f"channels are {tuple(channels)}, kernel is {kernel}, pooled is {pooled}; expected at least one "
                "channel each, an odd kernel, and 0 up to as many as there are convolutions"
            )
        self.pooled, self.colour, self.channels = pooled, colour, channels[-1]
        layers: list[nn.Module] = []
        for place, (before, width) in enumerate(pairwise((1 if colour == "grey" else 3, *channels))):
            layers += [nn.Conv2d(before, width, kernel, padding=kernel // 2), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if place < pooled else []
        self.layers = nn.Sequential(*layers)
        self.apply(glorot)
        # A quarter faster on a CPU.
        self.to(memory_format=torch.channels_last)

    @property
    def feature_map(self) -> FeatureMap:
        """What a head pools."""
        stride = 2**self.pooled
        return FeatureMap(layer=self.layers[-1], cells=Cells((stride - 1) / 2, stride))

    def forward(self, frames: Frames) -> Float[Tensor, "B C h w"]:
        pixels = frames.mean(1, keepdim=True) if self.colour == "grey" else frames
        return self.layers(pixels.contiguous(memory_format=torch.channels_last))


def glorot(module: nn.Module) -> None:
    """Keras's defaults, which the paper names: Glorot's uniform weights, biases of zero."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
