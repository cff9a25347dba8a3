"""Channel and spatial attention over feature maps: the trained block of CBAM with its file, and one without parameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from data_prep.shards.atomic import replacing
from driving_xai.errors import CheckpointError
from driving_xai.models.weights import read

Parts = Literal["both", "channel", "spatial"]
"""Which of the two attentions act; the paper's are both, the others its ablations."""

_WINDOW = 7


class ChannelSpatialAttention(nn.Module):
    """CBAM: feature maps scaled channel by channel, then position by position.

    F' = M_c(F) F with M_c = sigmoid(MLP(avg F) + MLP(max F)), then F'' = M_s(F') F' with
    M_s = sigmoid(f7x7[max F'; avg F']).

    Source: Woo et al. 2018, eqs. 1 to 3; An and Joe 2022, eqs. 6 and 7.
    Deviation: the convolution is followed by batch normalisation and takes the pooled planes in the
    order max, average, as in Woo et al.'s published network and not in the equation.

    Example:
        >>> ChannelSpatialAttention(8, reduction=2).eval()(torch.rand(2, 8, 7, 7)).shape
        torch.Size([2, 8, 7, 7])
    """

    def __init__(self, channels: int, *, reduction: int = 16, parts: Parts = "both") -> None:
        """`reduction` divides the channels to the width of the hidden layer, which is at least 1."""
        super().__init__()
        self.channels, self.parts = channels, parts
        hidden = max(1, channels // reduction)
        self.describe = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        self.look = nn.Sequential(
            nn.Conv2d(2, 1, _WINDOW, padding=_WINDOW // 2, bias=False), nn.BatchNorm2d(1)
        )

    def forward(self, maps: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        if self.parts != "spatial":
            energy = self.describe(maps.mean((2, 3))) + self.describe(maps.amax((2, 3)))
            maps = maps * energy.sigmoid()[:, :, None, None]
        if self.parts != "channel":
            planes = torch.stack((maps.amax(1), maps.mean(1)), 1)
            maps = maps * self.look(planes).sigmoid()
        return maps


def save_block(block: ChannelSpatialAttention, path: Path, described: Mapping[str, str]) -> None:
    """Writes a block as safetensors, whole or not at all; `described` is kept with it."""
    with replacing(path) as temporary:
        save_file(
            {name: value.cpu() for name, value in block.state_dict().items()}, temporary, dict(described)
        )


def load_block(path: Path, *, parts: Parts = "both") -> ChannelSpatialAttention:
    """The block that a file holds, in eval mode on the CPU; its size is the file's.

    Raises:
        CheckpointError: there is no such file, or it holds no such block.
    """
    found = read(path)
    first = found.get("describe.0.weight")
    if first is None or first.dim() != 2:
        raise CheckpointError(
            f"{path} holds no channel and spatial attention; expected a file of `driving-xai train attention`"
        )
    hidden, channels = first.shape
    block = ChannelSpatialAttention(channels, reduction=channels // max(hidden, 1), parts=parts)
    try:
        block.load_state_dict(found)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} does not fit its own first layer ({str(error).split()[0]}...)"
        ) from error
    return block.eval()


def drawn_block(
    channels: int, *, reduction: int, seed: int, parts: Parts = "both"
) -> ChannelSpatialAttention:
    """A block with random weights, in eval mode; torch's own random numbers go on as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ChannelSpatialAttention(channels, reduction=reduction, parts=parts).eval()


def parameter_free_attention(
    maps: Float[Tensor, "B C h w"], *, parts: Parts = "both"
) -> Float[Tensor, "B C h w"]:
    """CBAM without anything to train: the MLP is the identity, the convolution a mean of 7 x 7 cells.

    Each pooled vector and plane is first brought to mean 0 and deviation 1 within its frame: weighted
    feature maps are so small (their weights hold 1 / Z) that every sigmoid would be one half.

    Source: An and Joe 2022, eqs. 6 and 7, which leave MLP and f open.
    """
    if parts != "spatial":
        energy = _standardised(maps.mean((2, 3)), 1) + _standardised(maps.amax((2, 3)), 1)
        maps = maps * energy.sigmoid()[:, :, None, None]
    if parts != "channel":
        planes = _standardised(torch.stack((maps.mean(1), maps.amax(1)), 1), (2, 3))
        energy = F.avg_pool2d(planes, _WINDOW, stride=1, padding=_WINDOW // 2).mean(1, keepdim=True)
        maps = maps * energy.sigmoid()
    return maps


def _standardised(values: Tensor, over: int | tuple[int, ...]) -> Tensor:
    """Mean 0 and deviation 1; what is constant to rounding becomes 0."""
    centred = values - values.mean(over, keepdim=True)
    deviation = centred.square().mean(over, keepdim=True).sqrt()
    rounding = 10 * torch.finfo(values.dtype).eps * values.abs().amax(over, keepdim=True)
    return torch.where(deviation > rounding, centred / deviation, 0.0)
