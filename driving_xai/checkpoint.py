"""Checkpoints: a directory of model.safetensors, config.json and metrics.json. No pickle.

This is the only place that builds a model from a file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import nn

from data_prep.shards.atomic import replacing, sha256_of
from driving_xai.errors import CheckpointError, UnsupportedModelError
from driving_xai.types import Frames, HasOutputs, Outputs, RecurrentModel, Scores

SCHEMA = "driving-xai-checkpoint/1"
WEIGHTS, CONFIG, METRICS = "model.safetensors", "config.json", "metrics.json"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loaded model, what it was made with, and how it did."""

    path: Path
    model: Any
    """The kind's own model, in eval mode, on the device asked for; of steering, batch normalisation is
    folded."""
    config: Mapping[str, Any]
    """kind, model, training, input (geometry, vehicle) and data (shards, held out)."""
    metrics: Mapping[str, Any]
    sha256: str
    """Of the weights' file."""

    def __call__(self, frames: Frames) -> Scores:
        """The model's scores; a recurrent model takes each frame as the first of a drive."""
        view = self.model.at(None) if isinstance(self.model, RecurrentModel) else self.model
        return view(frames)

    @property
    def outputs(self) -> Outputs:
        """What the columns of the scores mean.

        Raises:
            CheckpointError: the model has no outputs, as one that was only pre-trained.
        """
        if not isinstance(self.model, HasOutputs):
            raise CheckpointError(f"{self.path} holds kind {self.kind!r}, a model without outputs to explain")
        return self.model.outputs

    @property
    def kind(self) -> str:
        return self.config["kind"]

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The probability over which each of several outputs counts as predicted: calibrated, or 1/2.

        Raises:
            CheckpointError: metrics.json has thresholds of other outputs, or what is no number.
        """
        names, known = self.model.outputs.names, self.metrics.get("thresholds", {})
        if not isinstance(known, dict) or set(known) - set(names):
            raise CheckpointError(f"{self.path} has thresholds of other outputs; train it again")
        found = [known.get(name, 0.5) for name in names]
        for name, value in zip(names, found, strict=True):
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise CheckpointError(
                    f"{self.path} has threshold {value!r} of {name}, expected a number; train it again"
                )
        return tuple(map(float, found))


def save(out: Path, model: nn.Module, config: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    """Writes a checkpoint; config.json comes last, and without it a directory is no checkpoint.

    Args:
        config: must hold `kind` and `model`, the latter the keywords of the kind's configuration.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / CONFIG).unlink(missing_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with replacing(out / WEIGHTS) as temporary:
        # Not save_file: it makes files that only their owner may read.
        temporary.write_bytes(to_safetensors(weights))
    _write_json(out / METRICS, metrics)
    _write_json(out / CONFIG, {"schema": SCHEMA, **config})


def load(path: Path, *, device: str | torch.device = "cpu", kind: str | None = None) -> Checkpoint:
    """Builds the model a checkpoint describes and loads its weights, strictly.

    Args:
        kind: the kind the caller needs, for example "steering"; None takes any.

    Raises:
        CheckpointError: missing, damaged, unknown, or of another kind.
    """
    config = _read_json(path / CONFIG)
    if config.get("schema") != SCHEMA or str(config.get("kind")) not in KINDS:
        known = ", ".join(KINDS)
        raise CheckpointError(
            f"{path} holds schema {config.get('schema')!r}, kind {config.get('kind')!r}; "
            f"expected {SCHEMA!r} and one of: {known}"
        )
    if kind is not None and config["kind"] != kind:
        raise CheckpointError(f"{path} is a checkpoint of kind {config['kind']!r}, expected {kind!r}")
    made = KINDS[config["kind"]]()
    model = _build(made, config)
    try:
        model.load_state_dict(load_file(path / WEIGHTS))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path / WEIGHTS} does not load: {reason}; train again or copy it anew"
        ) from error
    return Checkpoint(
        path=path,
        model=made.ready(model).to(device),
        config=config,
        metrics=_read_json(path / METRICS),
        sha256=sha256_of(path / WEIGHTS),
    )


class Kind(NamedTuple):
    """How the checkpoints of one kind become a model."""

    config: type
    """The dataclass that a checkpoint's `model` section fills."""
    model: Callable[[Any], nn.Module]
    """Of an instance of it; the weights are loaded into what it returns."""
    ready: Callable[[nn.Module], nn.Module]
    """What the loaded model goes through before it is used."""


def _steering() -> Kind:
    from driving_xai.models.steering import SteeringConfig, SteeringModel

    return Kind(SteeringConfig, SteeringModel, SteeringModel.fold_normalisation)  # type: ignore[arg-type]


def _actions() -> Kind:
    from driving_xai.models.actions import ActionConfig, ActionModel

    return Kind(ActionConfig, ActionModel, nn.Module.eval)


def _dino() -> Kind:
    from driving_xai.models.backbone import BackboneConfig, build_backbone

    return Kind(BackboneConfig, build_backbone, nn.Module.eval)


def _bounded_logit() -> Kind:
    from driving_xai.models.bounded_logit import BoundedLogitConfig, BoundedLogitModel

    return Kind(BoundedLogitConfig, BoundedLogitModel, nn.Module.eval)


def _classifier() -> Kind:
    from driving_xai.models.classify import Classifier, ClassifierConfig

    return Kind(ClassifierConfig, Classifier, nn.Module.eval)


# Each kind's imports wait until one is loaded.
KINDS: Mapping[str, Callable[[], Kind]] = {
    "steering": _steering,
    "actions": _actions,
    "dino": _dino,
    "bounded-logit": _bounded_logit,
    "classifier": _classifier,
}


def _build(made: Kind, config: Mapping[str, Any]) -> nn.Module:
    known = {field.name for field in fields(made.config)}
    keywords = config.get("model")
    if not isinstance(keywords, dict):
        raise CheckpointError(f"config.json has model {keywords!r}; expected an object of settings")
    if unknown := sorted(set(keywords) - known):
        raise CheckpointError(
            f"config.json has unknown model keys {unknown}; expected some of {sorted(known)}"
        )
    # JSON has no tuples; the settings have no lists.
    keywords = {name: tuple(value) if isinstance(value, list) else value for name, value in keywords.items()}
    try:
        return made.model(made.config(**keywords))
    except (KeyError, TypeError, ValueError, RuntimeError, UnsupportedModelError) as error:
        raise CheckpointError(f"config.json describes no {config['kind']} model: {error}") from error


def as_json(content: Mapping[str, Any]) -> str:
    """The text of a checkpoint's JSON file.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(as_json(content))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent} is no checkpoint: it has no {path.name}; give a directory that `train` wrote"
        ) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object; the checkpoint is damaged")
    return content
