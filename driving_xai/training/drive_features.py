"""Features that a frozen encoder has of a drive's frames, computed once and kept on disk, and windows of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import Dataset

from driving_xai.data.drives import Route, Window
from driving_xai.models.steering import SteeringModel
from driving_xai.models.steering_encoders import TimmEncoder
from driving_xai.training.feature_cache import FeatureCache, PlainAndMirrored, Precision
from driving_xai.types import Frames


@dataclass(frozen=True, kw_only=True)
class DriveFeatures:
    """What a frozen encoder sees of every frame of a shard set, as it is and mirrored, by rows of the index."""

    plain: FeatureCache
    mirrored: FeatureCache
    grid: tuple[int, int]
    """Rows and columns of a feature map."""

    def frames(self, rows: np.ndarray, *, mirrored: bool = False) -> Float[Tensor, "T C h w"]:
        """Of these rows; see `SteeringModel.of_features`."""
        cells = (self.mirrored if mirrored else self.plain).batch(rows)
        return cells.mT.unflatten(2, self.grid)


class FeatureWindows(Dataset[Window]):
    """Windows of kept features in the place of frames, some of them of the mirrored drive, its steering negated."""

    def __init__(
        self, features: DriveFeatures, route: Route, windows: Sequence[np.ndarray], mirrored: Sequence[bool]
    ) -> None:
        self.features, self.route, self.windows, self.mirrored = features, route, windows, mirrored

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, position: int) -> Window:
        rows, turned = self.windows[position], self.mirrored[position]
        target = torch.from_numpy(self.route.target[rows]).float()
        degrees = torch.from_numpy(self.route.degrees_per_unit[rows]).float()
        frames = self.features.frames(rows, mirrored=turned)
        return Window(frames, -target if turned else target, degrees)


class _FrozenPart(nn.Module):
    """Frames in [0, 1] to what a network of timm sees of them."""

    def __init__(self, model: SteeringModel, encoder: TimmEncoder) -> None:
        super().__init__()
        self.trunk = encoder.trunk
        # Buffers, so that the features' hash knows them.
        self.register_buffer("mean", model.input_mean)
        self.register_buffer("std", model.input_std)
        # No submodules: what has yet to be trained decides no feature.
        self._whole = (model, encoder)

    def forward(self, frames: Frames) -> Float[Tensor, "B C h w"]:
        model, encoder = self._whole
        return encoder.features(model.converted(frames))


def drive_features(
    model: SteeringModel,
    route: Route,
    folder: Path,
    *,
    source: str,
    mirrored: bool,
    precision: Precision = "fp16",
    device: str | torch.device = "cpu",
    on_progress: Callable[[int, int], None] | None = None,
) -> DriveFeatures:
    """The features of all frames, as they are and mirrored: from `folder`, or computed and kept there.

    Args:
        model: whose encoder is a network of timm; it goes to `device` and stays there.
        source: the hash of the shards.
        mirrored: without it, the mirrored features are the plain ones.
        precision: in which features are kept.
        on_progress: called with the frames done and the total, for each of the two.
    """
    pair = _kept(model, route, folder, source, mirrored, precision, device)
    plain, turned = pair.computed(on_progress)
    return DriveFeatures(plain=plain, mirrored=turned, grid=model.grid)


def drive_features_s(
    model: SteeringModel,
    route: Route,
    folder: Path,
    *,
    source: str,
    mirrored: bool,
    precision: Precision,
    device: str | torch.device,
) -> float:
    """About how many seconds `drive_features` takes with these arguments; nothing is kept."""
    return _kept(model, route, folder, source, mirrored, precision, device).seconds()


def _kept(
    model: SteeringModel,
    route: Route,
    folder: Path,
    source: str,
    mirrored: bool,
    precision: Precision,
    device: str | torch.device,
) -> PlainAndMirrored:
    assert isinstance(model.encoder, TimmEncoder)
    return PlainAndMirrored(
        folder=folder,
        network=_FrozenPart(model.to(device), model.encoder).eval(),
        read=route.frames,
        count=len(route.index),
        source=source,
        architecture={"encoder": model.config.encoder, "stride": model.config.stride},
        mirrored=mirrored,
        precision=precision,
        device=device,
    )
