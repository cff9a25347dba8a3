"""Features of a frozen network: of the user's images by a network of timm, or of a stand-in by a small one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import nn

from data_prep.shards.atomic import replacing
from data_prep.shards.manifest import canonical_json
from driving_xai.experiments.image_sets import ResizedImages, from_shards, in_memory
from driving_xai.experiments.stand_ins import Clutter, cluttered, handwritten_digits
from driving_xai.models.bounded_logit import BoundedLogitConfig, BoundedLogitModel
from driving_xai.models.frozen_cnn import frozen_cnn
from driving_xai.training.bounded_logit import FrameExamples, Schedule, fit
from driving_xai.training.feature_cache import FeatureCache, Precision, cached_features, network_sha256
from driving_xai.training.recipe import Device

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Network:
    """The frozen network in front of the user's images."""

    name: str = "efficientnet_b0"
    """By timm."""
    weights: str = "pretrained"
    """pretrained: timm fetches its own. Otherwise a file, or random."""
    image_px: int = 224
    precision: Precision = "fp16"
    """Of the features that are kept."""


@dataclass(frozen=True, kw_only=True)
class StandIn:
    """Digits in clutter, behind a small network that learnt all ten from other digits.

    Half of scikit-learn's digits serve the network. Of the others half are trained on, half tested.
    """

    classes: tuple[int, ...] = (5, 6, 7, 8, 9)
    """Digits to tell apart."""
    train: int = 4000
    """Pictures; five epochs are 625 steps, where the paper's birds had 937 and its dogs 1,875."""
    test: int = 2000
    clutter: Clutter = field(default_factory=Clutter)
    channels: tuple[int, ...] = (16, 32, 48, 64)
    pooled: int = 3
    """Of the network; 56 x 56 pictures then have 7 x 7 cells."""
    pictures: int = 4000
    """That the network learns from, smaller and less cluttered."""
    pictured: Clutter = field(default_factory=lambda: Clutter(size_px=32, fragments=2))
    pretraining: Schedule = field(default_factory=lambda: Schedule(epochs=12))
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """Images, a network that does not learn, and its kept features."""

    images: ResizedImages
    network: nn.Module
    architecture: Mapping[str, Any]
    """What the network was built with."""
    features: FeatureCache
    described: dict[str, Any]
    """For the result: the data and the network."""

    @property
    def channels(self) -> int:
        return self.features.cells.shape[2]

    @property
    def plan(self) -> dict[str, str]:
        """What decides the features."""
        return {
            "images": self.images.sha256,
            "network": network_sha256(self.network, self.architecture),
            "precision": self.features.cells.dtype.name,
        }


def frozen(
    data: Path | None,
    out: Path,
    network: Network,
    stand_in: StandIn,
    *,
    device: Device = "cpu",
    on_progress: OnProgress | None = None,
) -> Frozen:
    """The images of `data`, or the stand-in where that is None, with features kept below `out`."""
    if data is None:
        images = stand_in_images(stand_in)
        stack = pretrained_stand_in(out / "features", stand_in)
        architecture: dict[str, Any] = {"channels": stand_in.channels, "pooled": stand_in.pooled}
        name, precision = "small CNN that learnt from other digits", "fp32"
    else:
        images = from_shards(data, size_px=network.image_px)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # Of weights "random": another call finds the same network.
            stack = frozen_cnn(network.name, network.weights)
        architecture = {"backbone": network.name}
        name, precision = f"{network.name}, weights {network.weights}", network.precision
    features = cached_features(
        out / "features",
        stack,
        images.read,
        len(images),
        source=images.sha256,
        architecture=architecture,
        precision=precision,  # type: ignore[arg-type]
        device=device,
        on_progress=on_progress,
    )
    described = {"data": images.describe(), "stand_in": data is None, "network": name}
    return Frozen(
        images=images,
        network=stack.cpu(),
        architecture=architecture,
        features=features,
        described=described,
    )


def stand_in_images(how: StandIn) -> ResizedImages:
    """Pictures to train on and to test on, of different digits."""
    _, others = handwritten_digits().split(0.5, seed=how.seed)
    train, test = others.only(how.classes).split(0.5, seed=how.seed)
    parts = ("classes", "train", "test", "clutter", "seed")
    decisive = {name: value for name, value in asdict(how).items() if name in parts}
    return in_memory(
        f"stand-in: scikit-learn's handwritten digits {', '.join(map(str, how.classes))} in clutter",
        tuple(str(name) for name in how.classes),
        cluttered(train, how.train, how.clutter, seed=how.seed + 1),
        cluttered(test, how.test, how.clutter, seed=how.seed + 2),
        sha256=hashlib.sha256(canonical_json(decisive)).hexdigest(),
    )


def pretrained_stand_in(folder: Path, how: StandIn) -> nn.Module:
    """The convolutions of a baseline that learnt from other digits; from `folder`, where it is kept."""
    parts = ("channels", "pooled", "pictures", "pictured", "pretraining", "seed")
    decisive = {name: value for name, value in asdict(how).items() if name in parts}
    kept = folder / f"network-{hashlib.sha256(canonical_json(decisive)).hexdigest()[:16]}.safetensors"
    config = BoundedLogitConfig(
        classes=tuple(str(digit) for digit in range(10)),
        attention="none",
        channels=how.channels,
        pooled=how.pooled,
        dropout=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(how.seed)
        model = BoundedLogitModel(config)
    if kept.exists():
        model.load_state_dict(load_file(kept))
    else:
        digits, _ = handwritten_digits().split(0.5, seed=how.seed)
        pictures, labels = cluttered(digits, how.pictures, how.pictured, seed=how.seed + 3)
        examples = FrameExamples(torch.from_numpy(pictures))
        rows = np.arange(len(labels))
        fit(model, examples, torch.from_numpy(labels), rows, how.pretraining, seed=how.seed)
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(kept) as temporary:
            weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
            temporary.write_bytes(to_safetensors(weights))
    return model.eval().backbone
