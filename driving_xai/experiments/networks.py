"""Networks of experiments, trained and scored where the experiment's folder does not hold them yet."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.shards.manifest import Manifest
from driving_xai import checkpoint
from driving_xai.checkpoint import Checkpoint
from driving_xai.errors import CheckpointError
from driving_xai.evaluation.results import Results
from driving_xai.evaluation.run import ScoreConfig, score
from driving_xai.experiments.image_sets import NamedImages
from driving_xai.models.classify import Classifier
from driving_xai.models.steering_config import OWN_METHOD, AttentionKind
from driving_xai.training import classify, steering
from driving_xai.training.classify import ClassifierTraining
from driving_xai.training.recipe import Device
from driving_xai.training.state import RECORDED, RESUME
from driving_xai.training.steering import SteeringTraining


def trained(
    folder: Path,
    kind: str,
    train: Callable[[bool], object],
    *,
    wanted: Mapping[str, Any],
    usual: Any,
    compared: Sequence[str] = ("model", "training", "data"),
) -> Checkpoint:
    """The network in `folder`, trained if it is not there, continued if it was interrupted.

    Args:
        kind: of checkpoint.
        train: trains into the folder; called with whether to resume.
        wanted: what config.json must say, as the recipe's `describe` gives it.
        usual: the recipe with its defaults. They stand for settings that a network's config.json lacks because
            they are newer than it.
        compared: the parts of `wanted` that must agree.

    Raises:
        CheckpointError: the folder holds a network that was trained otherwise, or a damaged one.
    """
    if not (folder / checkpoint.CONFIG).exists():
        train((folder / RESUME / RECORDED).exists())
    found = checkpoint.load(folder, kind=kind)
    # As files say it: tuples are lists there.
    defaults, wanted = (json.loads(json.dumps(each)) for each in (asdict(usual), wanted))
    known = {"model": defaults.pop("model"), "training": defaults}
    if other := [part for part in compared if {**known.get(part, {}), **found.config[part]} != wanted[part]]:
        raise CheckpointError(f"{folder} was trained with another {', '.join(other)}; give another folder")
    return found


def trained_steering(
    shards: Path,
    folder: Path,
    training: SteeringTraining,
    *,
    device: Device = "auto",
    encoder_from: Path | None = None,
    features: Path | None = None,
) -> Checkpoint:
    """A steering network of these shards; see `trained`.

    Args:
        features: folder that networks with the same frozen encoder share; None is one in `folder`.
    """
    sha256 = None if encoder_from is None else checkpoint.load(encoder_from).sha256
    return trained(
        folder,
        "steering",
        lambda resume: steering.train(
            shards,
            folder,
            training,
            device=device,
            resume=resume,
            encoder_from=encoder_from,
            features=features,
        ),
        wanted=steering.describe(training, Manifest.load(shards), encoder_sha256=sha256),
        usual=SteeringTraining(),
        compared=("model", "training", "data", "input"),
    )


def trained_classifier(
    source: NamedImages, folder: Path, training: ClassifierTraining, *, device: Device = "auto"
) -> Classifier:
    """A classifier of these images; see `trained`."""
    images = source.images
    size = tuple(images.frames(images.rows("train")[:1]).shape[2:])
    model = replace(training.model, classes=images.label_names, image_size=size)
    return trained(
        folder,
        "classifier",
        lambda resume: classify.train(
            images, folder, training, data=source.described, device=device, resume=resume
        ),
        wanted=classify.describe(replace(training, model=model), source.described, None),
        usual=ClassifierTraining(),
    ).model


def classifier_of(spec: str, weights: str | None, device: Device) -> Checkpoint:
    """A classifier as `score` takes it: a folder, `timm:NAME`, `torchvision:NAME` or `module:factory`.

    Raises:
        CheckpointError: it cannot be read, or is of another kind.
    """
    from driving_xai.models.foreign import load

    found = load(spec, weights=weights, device="cpu" if device == "auto" else device)
    if found.outputs.kind != "multiclass":
        raise CheckpointError(f"{spec} is a model of {found.outputs.kind} outputs; expected a classifier")
    return found


def fitting(methods: Sequence[str], attention: AttentionKind) -> tuple[str, ...]:
    """The methods that a network with this attention can run: not those that read another kind of attention.

    Example:
        >>> fitting(("grad-cam", "soft-attention", "soft-attention-filtered"), "sign")
        ('grad-cam',)
    """
    others = tuple(name for kind, name in OWN_METHOD.items() if kind != attention)
    return tuple(name for name in methods if not name.startswith(others))


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A variant of the network: its name in tables, and what it changes in the model's configuration."""

    name: str
    changes: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The networks of an experiment's folder. All kinds share seeds, held-out blocks and schedule."""

    shards: Path
    out: Path
    training: SteeringTraining
    blocks: tuple[int, ...] | None
    """Held out in turn, run i block i modulo their number; None keeps prep's split in every run."""
    encoder_epochs: int
    device: Device

    def get(self, network: Variant, run: int) -> Checkpoint:
        """The network of one training run."""
        how = self._of_run(run, self.training, network.changes)
        start = self._encoder(run) if self.encoder_epochs else None
        return trained_steering(
            self.shards,
            self._folder(network.name, run),
            how,
            device=self.device,
            encoder_from=start,
            features=self.out / "features",
        )

    def scores(self, network: Variant, run: int, label: str, config: ScoreConfig) -> Results:
        """Its explanations' scores; `label` names the set of methods."""
        where = self._folder(network.name, run) / "scores" / label
        return score(self.get(network, run), self.shards, where, config, resume=where.exists())

    def _folder(self, name: str, run: int) -> Path:
        return self.out / "networks" / name / f"run-{run}"

    def _of_run(self, run: int, training: SteeringTraining, changes: Mapping[str, Any]) -> SteeringTraining:
        block = training.held_out.block if self.blocks is None else self.blocks[run % len(self.blocks)]
        return replace(
            training,
            seed=run,
            model=replace(training.model, **changes),
            held_out=replace(training.held_out, block=block),
        )

    def _encoder(self, run: int) -> Path:
        """Where the convolutions lie that every network of this run starts with."""
        frames_only = replace(
            self.training, frame_epochs=self.encoder_epochs, epochs=0, frozen_convolutions=0
        )
        how = self._of_run(run, frames_only, {"attention": "none"})
        folder = self._folder("encoder", run)
        trained_steering(self.shards, folder, how, device=self.device, features=self.out / "features")
        return folder
