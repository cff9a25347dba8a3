"""Channel and spatial attention trained on the feature maps of a network that stays as it is, and its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from data_prep.values import Checked, Count, Gt, PositiveCount
from driving_xai.data.images import ImageSet, classes_of
from driving_xai.errors import DataError, UnsupportedModelError
from driving_xai.models.capabilities import device_of, feature_map_of, network_of, outputs_of
from driving_xai.models.channel_spatial import ChannelSpatialAttention, Parts, save_block
from driving_xai.models.feature_maps import linear_head
from driving_xai.models.forward_trace import removed_after
from driving_xai.models.label_columns import label_columns
from driving_xai.types import FeatureMap, FrameModel, Frames


@dataclass(frozen=True, kw_only=True)
class AttentionTraining(Checked):
    """How the block is trained; the paper says nothing of it."""

    reduction: PositiveCount = 16
    parts: Parts = "both"
    epochs: PositiveCount = 10
    batch_size: PositiveCount = 64
    learning_rate: Annotated[float, Gt(0)] = 1e-3
    keep_mib: Count = 2048
    """Of feature maps that may stay on the device; where all take more, each batch's are computed again."""


def train_attention(
    model: FrameModel,
    images: ImageSet,
    rows: np.ndarray,
    labels: Int64[Tensor, " N"],
    how: AttentionTraining,
    *,
    seed: int,
) -> ChannelSpatialAttention:
    """Trains a block between the last feature map and the pooled linear head; nothing else changes.

    The feature maps are computed once, where they fit `keep_mib`. This is option B of attention-guided CAM.

    Args:
        model: in eval mode, with a head that reads the mean of its last feature map.
        rows: of the images to train on.
        labels: the column of the scores that is right, for every image of the set.

    Returns:
        The block, in eval mode, on the model's device.

    Raises:
        UnsupportedModelError: the network has no such head.

    Source: An and Joe 2022, section 3.2; Woo et al. 2018.
    """
    found, head = pooled_head(model, images.frames(rows[:1]).to(device_of(model)))
    first = _maps(model, images.frames(rows[:1]), found)
    kept = _kept_maps(model, images, rows, found, first, how)
    torch.manual_seed(seed)
    block = ChannelSpatialAttention(first.shape[1], reduction=how.reduction, parts=how.parts).to(first.device)
    optimiser = torch.optim.Adam(block.parameters(), lr=how.learning_rate)
    wanted, draw = labels[rows].to(first.device), torch.Generator().manual_seed(seed)
    weight, bias = head.weight.detach(), None if head.bias is None else head.bias.detach()
    # A loop by hand, as in `bounded_logit.fit`: small steps on maps that are computed once.
    for _ in range(how.epochs):
        for chosen in torch.randperm(len(rows), generator=draw).split(how.batch_size):
            maps = _maps(model, images.frames(rows[chosen.numpy()]), found) if kept is None else kept[chosen]
            scores = F.linear(block(maps).mean((2, 3)), weight, bias)
            loss = F.cross_entropy(scores, wanted[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return block.eval()


def _kept_maps(
    model: FrameModel,
    images: ImageSet,
    rows: np.ndarray,
    found: FeatureMap,
    first: Float[Tensor, "1 C h w"],
    how: AttentionTraining,
) -> Float[Tensor, "n C h w"] | None:
    """The feature maps of these images, on the device; None where they take too much of it."""
    if len(rows) * first.nbytes > how.keep_mib * 2**20:
        return None
    kept = first.new_empty(len(rows), *first.shape[1:])
    for start in range(0, len(rows), how.batch_size):
        part = rows[start : start + how.batch_size]
        kept[start : start + len(part)] = _maps(model, images.frames(part), found)
    return kept


def training_rows(model: FrameModel, images: ImageSet) -> tuple[np.ndarray, Int64[Tensor, " N"]]:
    """The rows of the images to train on, and the column of the scores that is right, for every image of the set.

    Raises:
        DataError: there is nothing to train on, or a label is none of the model's classes.
        UnsupportedModelError: the network has no linear head on a pooled feature map.
    """
    rows = images.rows("train")
    if not len(rows):
        raise DataError("the shards hold no training images, expected 1 or more; prepare some")
    columns = label_columns(images.label_names, outputs_of(model).names)
    pooled_head(model, images.frames(rows[:1]).to(device_of(model)))
    return rows, torch.tensor(columns)[classes_of(images)]


def train_to_file(
    model: FrameModel,
    images: ImageSet,
    out: Path,
    how: AttentionTraining,
    *,
    seed: int,
    described: Mapping[str, str],
) -> dict[str, float]:
    """Trains a block on the images of the split `train` and writes it, for `AttentionGuidedCAM(attention=FILE)`.

    Args:
        described: what the file says of the model and the images.

    Returns:
        The mean cross-entropy of the training images without the block, and with it.

    Raises:
        DataError, UnsupportedModelError: see `training_rows`.
    """
    rows, labels = training_rows(model, images)
    block = train_attention(model, images, rows, labels, how, seed=seed)
    save_block(block, out, {**described, "seed": str(seed), **{k: str(v) for k, v in asdict(how).items()}})
    return _losses(model, block, images, rows, labels[rows], how.batch_size)


def pooled_head(model: FrameModel, frames: Frames) -> tuple[FeatureMap, nn.Linear]:
    """A model's last feature map, and the linear layer that turns its mean into the scores.

    Raises:
        UnsupportedModelError: the network has no such layer.
    """
    found, network = feature_map_of(model, frames), network_of(model)
    head = found.head
    if head is None and found.layout == "channels-first":
        head = linear_head(network, frames, found.layer)
    if head is None:
        raise UnsupportedModelError(
            f"{type(network).__name__} has no linear head on a pooled feature map, which this training needs; "
            "use the attention without parameters"
        )
    return found, head


@torch.no_grad()
def feature_maps(model: FrameModel, frames: Frames) -> Float[Tensor, "B C h w"]:
    """The model's last feature map of these frames."""
    return _maps(model, frames, feature_map_of(model, frames.to(device_of(model))))


@torch.no_grad()
def _maps(model: FrameModel, frames: Frames, found: FeatureMap) -> Float[Tensor, "B C h w"]:
    maps: list[Tensor] = []
    handle = found.layer.register_forward_hook(lambda _layer, _taken, given: maps.append(given.clone()))
    with removed_after([handle]):
        model(frames.to(device_of(model)))
    return maps[0]


@torch.no_grad()
def _losses(
    model: FrameModel,
    block: ChannelSpatialAttention,
    images: ImageSet,
    rows: np.ndarray,
    wanted: Int64[Tensor, " n"],
    batch_size: int,
) -> dict[str, float]:
    found, head = pooled_head(model, images.frames(rows[:1]).to(device_of(model)))
    plain, attended = [], []
    for part in _parts(rows, batch_size):
        maps = _maps(model, images.frames(part), found)
        plain.append(head(maps.mean((2, 3))).cpu())
        attended.append(head(block(maps).mean((2, 3))).cpu())
    return {
        "loss_without": float(F.cross_entropy(torch.cat(plain), wanted)),
        "loss_with": float(F.cross_entropy(torch.cat(attended), wanted)),
    }


def _parts(rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
