"""Checkpoints: a directory of model.safetensors, config.json and metrics.json. No pickle.

This is the only place that builds a model from a file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from driving_xai.errors import CheckpointError
from driving_xai.models.steering import SteeringConfig, SteeringModel

SCHEMA = "driving-xai-checkpoint/1"
WEIGHTS, CONFIG, METRICS = "model.safetensors", "config.json", "metrics.json"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loaded model, what it was made with, and how it did."""

    path: Path
    model: SteeringModel
    """In eval mode, batch normalisation folded, on the device asked for."""
    config: Mapping[str, Any]
    """kind, model, training, input (geometry, vehicle, frame rate) and data (shards, held out)."""
    metrics: Mapping[str, Any]
    sha256: str
    """Of the weights' file."""

    @property
    def kind(self) -> str:
        return self.config["kind"]


def save(out: Path, model: nn.Module, config: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    """Writes a checkpoint; config.json comes last, and without it a directory is no checkpoint.

    Args:
        config: must hold `kind` and `model`, the latter the keywords of the kind's configuration.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / CONFIG).unlink(missing_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    _replace(out / WEIGHTS, lambda path: save_file(weights, path))
    _replace(out / METRICS, lambda path: path.write_text(_json(metrics)))
    _replace(out / CONFIG, lambda path: path.write_text(_json({"schema": SCHEMA, **config})))


def load(path: Path, *, device: str | torch.device = "cpu", kind: str | None = None) -> Checkpoint:
    """Builds the model a checkpoint describes and loads its weights, strictly.

    Args:
        kind: the kind the caller needs, for example "steering"; None takes any.

    Raises:
        CheckpointError: missing, damaged, unknown, or of another kind.
    """
    config = _read_json(path / CONFIG)
    if config.get("schema") != SCHEMA or str(config.get("kind")) not in _BUILDERS:
        known = ", ".join(_BUILDERS)
        raise CheckpointError(
            f"{path} holds schema {config.get('schema')!r}, kind {config.get('kind')!r}; "
            f"expected {SCHEMA!r} and one of: {known}"
        )
    if kind is not None and config["kind"] != kind:
        raise CheckpointError(f"{path} is a checkpoint of kind {config['kind']!r}, expected {kind!r}")
    model = _BUILDERS[config["kind"]](config)
    try:
        model.load_state_dict(load_file(path / WEIGHTS))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path / WEIGHTS} does not load: {reason}; train again or copy it anew"
        ) from error
    return Checkpoint(
        path=path,
        model=model.fold_normalisation().to(device),
        config=config,
        metrics=_read_json(path / METRICS),
        sha256=hashlib.sha256((path / WEIGHTS).read_bytes()).hexdigest(),
    )


def _build_steering(config: Mapping[str, Any]) -> SteeringModel:
    known = {field.name for field in fields(SteeringConfig)}
    keywords = config.get("model")
    if not isinstance(keywords, dict):
        raise CheckpointError(f"config.json has model {keywords!r}; expected an object of settings")
    if unknown := sorted(set(keywords) - known):
        raise CheckpointError(
            f"config.json has unknown model keys {unknown}; expected some of {sorted(known)}"
        )
    try:
        return SteeringModel(SteeringConfig(**keywords))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"config.json describes no steering model: {error}") from error


_BUILDERS: Mapping[str, Callable[[Mapping[str, Any]], SteeringModel]] = {"steering": _build_steering}


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"


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


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes beside the path, flushes to disk, renames: a reader sees the old file or the whole new one."""
    partial = path.with_name(f".{path.name}.partial")
    write(partial)
    with partial.open("rb+") as stream:
        os.fsync(stream.fileno())
    partial.replace(path)
