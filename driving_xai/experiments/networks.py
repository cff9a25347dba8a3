"""Networks of an experiment: trained and scored once, then found again in the experiment's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.shards.manifest import Manifest
from driving_xai import checkpoint
from driving_xai.checkpoint import Checkpoint
from driving_xai.errors import CheckpointError
from driving_xai.evaluation.results import Results
from driving_xai.evaluation.run import ScoreConfig, score
from driving_xai.models.steering_config import OWN_METHOD, AttentionKind
from driving_xai.training.runs import Device
from driving_xai.training.steering import SteeringTraining, describe, train


def trained(
    shards: Path,
    folder: Path,
    training: SteeringTraining,
    *,
    device: Device = "auto",
    encoder_from: Path | None = None,
) -> Checkpoint:
    """The network in `folder`, trained if it is not there, continued if it was interrupted.

    Raises:
        CheckpointError: the folder holds a network that was trained otherwise.
    """
    try:
        found = checkpoint.load(folder)
    except CheckpointError:
        resume = (folder / "resume" / "config.json").exists()
        train(shards, folder, training, device=device, resume=resume, encoder_from=encoder_from)
        found = checkpoint.load(folder)
    sha256 = None if encoder_from is None else checkpoint.load(encoder_from).sha256
    wanted = json.loads(json.dumps(describe(training, Manifest.load(shards), encoder_sha256=sha256)))
    defaults = json.loads(json.dumps(asdict(SteeringTraining())))
    # A setting that is newer than the network had no name then; its default is what was done.
    known = {"model": defaults.pop("model"), "training": defaults, "data": {}, "input": {}}
    if other := [part for part in known if {**known[part], **found.config[part]} != wanted[part]]:
        raise CheckpointError(f"{folder} was trained with another {', '.join(other)}; give another folder")
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
        return trained(
            self.shards, self._folder(network.name, run), how, device=self.device, encoder_from=start
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
        trained(self.shards, folder, how, device=self.device)
        return folder
