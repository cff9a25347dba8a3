"""What an action model is trained on: frames, or what the head reads of a frozen backbone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from driving_xai.data.images import LabelledImages
from driving_xai.models.actions import ActionModel
from driving_xai.models.backbone import BackboneConfig
from driving_xai.training.feature_cache import FeatureCache, PlainAndMirrored, Precision
from driving_xai.types import Frames

OnProgress = Callable[[int, int], None]


class Inputs(Protocol):
    """What is trained on, by rows: frames, or features kept on disk."""

    def batch(self, rows: np.ndarray, mirrored: np.ndarray) -> Tensor:
        """The inputs of these rows, some of them of the mirrored image."""
        ...


@dataclass(frozen=True, kw_only=True)
class FrozenFeatures:
    """What the head reads, of every image as it is and mirrored."""

    plain: FeatureCache
    mirrored: FeatureCache

    def batch(self, rows: np.ndarray, mirrored: np.ndarray) -> Float[Tensor, "B width"]:
        plain, turned = self.plain.batch(rows), self.mirrored.batch(rows)
        return torch.where(torch.from_numpy(mirrored)[:, None], turned[:, 0], plain[:, 0])


@dataclass(frozen=True, kw_only=True)
class MirroredFrames:
    """The images themselves."""

    images: LabelledImages

    def batch(self, rows: np.ndarray, mirrored: np.ndarray) -> Frames:
        frames = self.images.frames(rows)
        return torch.where(torch.from_numpy(mirrored).view(-1, 1, 1, 1), frames.flip(-1), frames)


class _HeadInputs(nn.Module):
    """What the head reads, as a feature map of one cell."""

    def __init__(self, model: ActionModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames: Frames) -> Float[Tensor, "B width 1 1"]:
        return self.model.features(frames)[:, :, None, None]


def frozen_features(
    model: ActionModel,
    images: LabelledImages,
    folder: Path,
    *,
    mirrored: bool,
    precision: Precision = "fp32",
    device: str | torch.device = "cpu",
    on_progress: OnProgress | None = None,
) -> FrozenFeatures:
    """What the head reads of all images, as they are and mirrored: from `folder`, or computed and kept there.

    Args:
        mirrored: without it, the mirrored features are the plain ones.
        precision: in which features are kept.
        on_progress: called with the images done and the total, for each of the two.
    """
    plain, turned = _kept(model, images, folder, mirrored, precision, device).computed(on_progress)
    return FrozenFeatures(plain=plain, mirrored=turned)


def frozen_features_s(
    model: ActionModel,
    images: LabelledImages,
    folder: Path,
    *,
    mirrored: bool,
    precision: Precision,
    device: str | torch.device,
) -> float:
    """About how many seconds `frozen_features` takes with these arguments; nothing is kept."""
    return _kept(model, images, folder, mirrored, precision, device).seconds()


_UNUSED = ("model.head.",)
"""The head has yet to be trained: what is drawn for it decides no feature."""


def _kept(
    model: ActionModel,
    images: LabelledImages,
    folder: Path,
    mirrored: bool,
    precision: Precision,
    device: str | torch.device,
) -> PlainAndMirrored:
    side, blocks = images.short_side_px, model.config.blocks
    return PlainAndMirrored(
        folder=folder,
        network=_HeadInputs(model).eval(),
        read=images.pixels,
        count=len(images),
        source=f"{images.manifest.sha256} at {side} px, class tokens of {blocks} blocks",
        architecture={each.name: getattr(model.config, each.name) for each in fields(BackboneConfig)},
        unused=_UNUSED,
        mirrored=mirrored,
        precision=precision,
        device=device,
    )
