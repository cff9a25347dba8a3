"""Channel and spatial attention trained on the feature maps of a network that stays as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from data_prep.values import Checked, Gt, PositiveCount
from driving_xai.data.images import ImageSet
from driving_xai.errors import UnsupportedModelError
from driving_xai.models.channel_spatial import ChannelSpatialAttention, Parts
from driving_xai.models.classify import Classifier
from driving_xai.models.forward_trace import removed_after
from driving_xai.types import Frames


@dataclass(frozen=True, kw_only=True)
class AttentionTraining(Checked):
    """How the block is trained; the paper says nothing of it."""

    reduction: PositiveCount = 16
    parts: Parts = "both"
    epochs: PositiveCount = 10
    batch_size: PositiveCount = 64
    learning_rate: Annotated[float, Gt(0)] = 1e-3


def train_attention(
    model: Classifier,
    images: ImageSet,
    rows: np.ndarray,
    labels: Int64[Tensor, " N"],
    how: AttentionTraining,
    *,
    seed: int,
) -> ChannelSpatialAttention:
    """Trains a block between the last feature map and the pooled linear head; nothing else changes.

    The feature maps are computed once. This is option B of attention-guided CAM.

    Args:
        model: in eval mode, with a head that reads the mean of its last feature map.
        rows: of the images to train on.
        labels: the class of every image of the set.

    Returns:
        The block, in eval mode, on the model's device.

    Raises:
        UnsupportedModelError: the network has no such head.

    Source: An and Joe 2022, section 3.2; Woo et al. 2018.
    """
    found = model.feature_map
    head = None if found is None else found.head
    if head is None:
        raise UnsupportedModelError(
            f"{model.config.network} has no linear head on a pooled feature map, which this training needs; "
            "use the attention without parameters"
        )
    maps = torch.cat([feature_maps(model, images.frames(part)) for part in _parts(rows, how.batch_size)])
    torch.manual_seed(seed)
    block = ChannelSpatialAttention(maps.shape[1], reduction=how.reduction, parts=how.parts).to(maps.device)
    optimiser = torch.optim.Adam(block.parameters(), lr=how.learning_rate)
    wanted, draw = labels[rows].to(maps.device), torch.Generator().manual_seed(seed)
    weight, bias = head.weight.detach(), None if head.bias is None else head.bias.detach()
    # A loop by hand, as in `bounded_logit.fit`: small steps on maps that are computed once.
    for _ in range(how.epochs):
        for chosen in torch.randperm(len(rows), generator=draw).split(how.batch_size):
            scores = F.linear(block(maps[chosen]).mean((2, 3)), weight, bias)
            loss = F.cross_entropy(scores, wanted[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return block.eval()


@torch.no_grad()
def feature_maps(model: Classifier, frames: Frames) -> Float[Tensor, "B C h w"]:
    """The model's last feature map of these frames."""
    assert model.feature_map is not None
    layer = model.feature_map.layer
    maps: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _layer, _taken, given: maps.append(given.clone()))
    with removed_after([handle]):
        model(frames.to(model.mean.device))
    return maps[0]


def _parts(rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
