"""Checkpoints: a directory of model.safetensors, config.json and metrics.json. No pickle.

This is the only place that builds a model from a file. A training that has not ended is a checkpoint of its best
weights so far; see `unfinished`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from data_prep.documents import read_json
from data_prep.errors import quoted
from data_prep.geometry import Geometry
from data_prep.schema import Vehicle
from data_prep.shards.atomic import replacing, sha256_of
from data_prep.values import Interval, build, checked
from driving_xai.errors import CheckpointError, UnsupportedModelError
from driving_xai.models.declared import at_instant, declared_outputs
from driving_xai.models.steering_config import AttentionDerivative
from driving_xai.types import Frames, Outputs, Scores
from driving_xai.unfinished import BEST, RESUME, Unfinished, best_so_far, is_unfinished

SCHEMA = "driving-xai-checkpoint/1"
WEIGHTS, CONFIG, METRICS = "model.safetensors", "config.json", "metrics.json"
_SPARE_VALUES, _SPARE_TENSORS = 2**22, 1000
"""What a network may have beyond twice its file while it is built."""
_Positive = Annotated[float, Interval(gt=0, lt=1e6)]
_SIGNALS: Mapping[str, Any] = {
    "smoothing_alpha": Annotated[float, Interval(gt=0, le=1)],
    "lead_s": Annotated[float, Interval(gt=-1e6, lt=1e6)],
    "tolerance_s": _Positive,
    "hole_periods": _Positive,
}
"""Of what replay reads of how controls were put on the camera's clock."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loaded model, what it was made with, and how it did.

    Example:
        >>> half = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> found = Checkpoint(path=Path("m"), model=half, config={"kind": "classifier"}, metrics={}, sha256="")
        >>> found.kind, found(torch.full((1, 3, 4, 4), 0.5)).tolist()
        ('classifier', [[0.5, 0.5, 0.5]])
    """

    path: Path
    model: Any
    """The kind's own model, in eval mode, on the device asked for; of steering, batch normalisation is
    folded."""
    config: Mapping[str, Any]
    """kind, model, training, input (geometry, vehicle) and data (shards, held out)."""
    metrics: Mapping[str, Any]
    sha256: str
    """Of the weights' file."""
    unfinished: Unfinished | None = None
    """How far its training has come, where that has not ended: the weights are the best so far."""

    def __call__(self, frames: Frames) -> Scores:
        """The model's scores; a recurrent model takes each frame as the first of a drive."""
        return at_instant(self.model)(frames)

    @property
    def outputs(self) -> Outputs:
        """What the columns of the scores mean.

        Raises:
            CheckpointError: the model has no outputs, as one that was only pre-trained.
        """
        outputs = declared_outputs(self.model)
        if outputs is None:
            raise CheckpointError(
                f"{self.path} holds kind {self.kind!r}, a model without outputs to explain; "
                "expected a steering model, one of actions or a classifier"
            )
        return outputs

    def differentiated(self, derivative: AttentionDerivative) -> Checkpoint:
        """With a model whose gradients in eval mode are these; see `SteeringModel.differentiated`.

        Raises:
            UnsupportedModelError: the model is no steering model with sign attention.
        """
        from driving_xai.models.steering import SteeringModel

        if derivative == "actual":
            return self
        if not isinstance(self.model, SteeringModel):
            raise UnsupportedModelError(
                f"attention_derivative {derivative!r} is of networks with sign attention, and {self.path} holds kind "
                f"{self.kind!r}; leave it out"
            )
        return replace(self, model=self.model.differentiated(derivative))

    @property
    def kind(self) -> str:
        return self.config["kind"]

    @property
    def caution(self) -> str | None:
        """What a reader of its results must know; None of a finished training."""
        if self.unfinished is None:
            return None
        return f"{self.path}: the training has not ended; these are the weights of {self.unfinished}"

    @property
    def in_plans(self) -> dict[str, Any]:
        """What the plan of results says of it: its hash and, of an unfinished training, how far that had come."""
        hashed: dict[str, Any] = {"checkpoint_sha256": self.sha256}
        if self.unfinished is None:
            return hashed
        return {**hashed, "checkpoint_unfinished": self.unfinished.described()}

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

    Of a training that is running or was stopped it takes the best weights so far; `Checkpoint.unfinished` says so.

    Args:
        kind: the kind the caller needs, for example "steering"; None takes any.

    Raises:
        CheckpointError: missing, damaged, unknown, or of another kind.
    """
    if is_unfinished(path):
        return _load_unfinished(path, device, kind)
    config = _read_json(path / CONFIG)
    made = _kind_of(config, path, kind)
    metrics = _read_json(path / METRICS)
    try:
        with no_larger_than(path / WEIGHTS):
            model = _build(made, config, path / CONFIG)
        model.load_state_dict(load_file(path / WEIGHTS))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise _does_not_load(path / WEIGHTS, error) from error
    return Checkpoint(
        path=path,
        model=made.ready(model).to(device),
        config=config,
        metrics=metrics,
        sha256=sha256_of(path / WEIGHTS),
    )


def _load_unfinished(path: Path, device: str | torch.device, kind: str | None) -> Checkpoint:
    found = best_so_far(path)
    config = {"schema": SCHEMA, **found.config}
    made = _kind_of(config, path, kind)
    try:
        with _no_larger_than(path / RESUME / BEST, [value.numel() for value in found.weights.values()]):
            model = _build(made, config, path / RESUME / CONFIG)
        model.load_state_dict(found.weights)
    except RuntimeError as error:
        raise _does_not_load(path / RESUME / BEST, error) from error
    return Checkpoint(
        path=path,
        model=made.ready(model).to(device),
        config=config,
        metrics={},
        sha256=found.sha256,
        unfinished=found.progress,
    )


def _kind_of(config: Mapping[str, Any], path: Path, kind: str | None) -> Kind:
    """The kind that a configuration names, once it is one and the one that the caller needs."""
    if config.get("schema") != SCHEMA or str(config.get("kind")) not in KINDS:
        known = ", ".join(KINDS)
        raise CheckpointError(
            f"{path} holds schema {config.get('schema')!r}, kind {config.get('kind')!r}; "
            f"expected {SCHEMA!r} and one of: {known}"
        )
    if kind is not None and config["kind"] != kind:
        raise CheckpointError(f"{path} is a checkpoint of kind {config['kind']!r}, expected {kind!r}")
    made = KINDS[config["kind"]]()
    _check_sections(config, path / CONFIG)
    return made


def _does_not_load(file: Path, error: Exception) -> CheckpointError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return CheckpointError(f"{file} does not load: {reason}; train again or copy it anew")


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


def _build(made: Kind, config: Mapping[str, Any], path: Path) -> nn.Module:
    table = config.get("model")
    if not isinstance(table, dict):
        raise CheckpointError(f"{path} has model {quoted(table)}; expected an object of settings")
    try:
        return made.model(build(made.config, table, prefix="model."))
    except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError, UnsupportedModelError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path} describes no {config['kind']} model: {reason}") from error


@contextmanager
def no_larger_than(weights: Path) -> Iterator[None]:
    """Stops the building of a network as soon as it has far more weights than a file, before they take memory.

    Some networks are built with layers that are taken off again, so twice the file's size is allowed.

    Raises:
        CheckpointError: it would be larger.
        SafetensorError: the file is damaged.
        OSError: it cannot be read.
    """
    with safe_open(weights, framework="pt") as file:
        sizes = [math.prod(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118
    with _no_larger_than(weights, sizes):
        yield


@contextmanager
def _no_larger_than(weights: Path, sizes: list[int]) -> Iterator[None]:
    left = [2 * sum(sizes) + _SPARE_VALUES, 2 * len(sizes) + _SPARE_TENSORS]

    def count(module: nn.Module, name: str, value: torch.Tensor | None) -> None:
        left[0] -= 0 if value is None else value.numel()
        left[1] -= 1
        if min(left) < 0:
            raise CheckpointError(
                f"{weights} holds {sum(sizes):,} values in {len(sizes)} tensors, and {CONFIG} beside it describes "
                "a larger network; one of them is of another checkpoint"
            )

    hooks = [
        register_module_parameter_registration_hook(count),
        register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _check_sections(config: Mapping[str, Any], path: Path) -> None:
    """Raises CheckpointError where what a model's users read of its configuration cannot be."""
    for section in ("input", "data", "training"):
        if not isinstance(config.get(section, {}), dict):
            raise CheckpointError(f"{path}: {section} is {quoted(config[section])}; expected an object")
    inputs, data = config.get("input", {}), config.get("data", {})
    try:
        for name, kind in (("geometry", Geometry), ("vehicle", Vehicle)):
            if inputs.get(name) is not None:
                checked(kind, inputs[name], f"input.{name}")
        checked(
            Annotated[int, Interval(ge=1, le=2**15)] | None,
            inputs.get("short_side_px"),
            "input.short_side_px",
        )
        checked(Mapping[str, Any], inputs.get("signals", {}), "input.signals")
        for name, kind in _SIGNALS.items():
            if name in inputs.get("signals", {}):
                checked(kind, inputs["signals"][name], f"input.signals.{name}")
        checked(str | None, data.get("shards_sha256"), "data.shards_sha256")
        checked(Mapping[str, Any] | None, data.get("held_out"), "data.held_out")
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; train again or copy it anew") from None


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
        content = read_json(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(
            f"{path.parent} is no checkpoint: it has no {path.name}; give a directory that `train` wrote"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object; the checkpoint is damaged")
    return content
