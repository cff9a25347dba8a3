"""Single images explained: a picture of each map, and the numbers behind it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from data_prep.geometry import decode_image, encode_png
from data_prep.schema import Image
from data_prep.shards.atomic import replacing
from data_prep.values import Checked, PositiveCount, Seed
from driving_xai.checkpoint import Checkpoint
from driving_xai.data.input_rule import InputRule, Region
from driving_xai.errors import DataError, NonFiniteError
from driving_xai.evaluation.config import explainers_of
from driving_xai.evaluation.edited_frames import EditedFrames, Edits, edited_frames
from driving_xai.evaluation.image_data import EVERY_PREDICTED
from driving_xai.evaluation.results import locked
from driving_xai.evaluation.summary import describe_machine
from driving_xai.explain.base import Explainer
from driving_xai.explain.options import OptionsOf, described
from driving_xai.explain.registry import require_methods
from driving_xai.metrics.perturbation_curves import Edit
from driving_xai.models.capabilities import device_of, frame_model, scores_of
from driving_xai.models.steering_config import AttentionDerivative
from driving_xai.perturb import Fill
from driving_xai.targets import (
    OF_PROBABILITY,
    ExplainedScore,
    TargetRule,
    by_name,
    explained_by,
    probabilities,
)
from driving_xai.types import FrameModel, Frames, Outputs, Saliency, Scores, Target
from driving_xai.viz.heat import HeatScale, blend_heat, enlargement, is_degenerate
from driving_xai.viz.lettering import PANEL, Colour, lettering

SCHEMA = "driving-xai-explanation/1"
_TEXT: Colour = (235, 235, 235)
_STRIP_PX = 26
_MOST_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class ExplainConfig(Checked):
    """What is explained, and by what."""

    methods: tuple[str, ...]
    """Names of `explain.registry.METHODS`, each perhaps with a label, `snna@literal`."""
    options: OptionsOf = field(default_factory=dict)
    """Of methods, by name: `{"snna": {"samples": 3}}`; see docs/methods.md."""
    target: str | None = None
    """As for scoring: None is `magnitude` for steering, else `predicted`; `every-predicted` explains each
    output over its threshold."""
    explained_score: ExplainedScore = "probability"
    """What RISE and LIME explain of classes and actions; see `targets.explained_by`."""
    attention_derivative: AttentionDerivative = "actual"
    """As for scoring."""
    seed: Seed = 0
    batch_size: PositiveCount = 32
    save_maps: bool = False
    """Writes each map, raw and on the model's grid, as .npy."""
    edited: tuple[float, ...] = ()
    """Percents of the pixels, rising: for each a picture of the frame without its most salient ones."""
    edit: Edit = "deletion"
    """Whether these pixels are removed or, by `insertion`, alone are shown."""
    fill: Fill = "black"
    """What a removed pixel shows."""

    @property
    def edits(self) -> Edits | None:
        """Which edited frames are drawn."""
        return Edits(percents=self.edited, edit=self.edit, fill=self.fill) if self.edited else None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.edits is None and (self.edit, self.fill) != ("deletion", "black"):
            raise ValueError(
                f"got edit {self.edit!r}, fill {self.fill!r} and no edited frames; give edited percents too, or leave "
                "them out"
            )
        require_methods(self.methods, self.options)
        if self.explained_score != "probability" and not any(
            each.partition("@")[0] in OF_PROBABILITY for each in self.methods
        ):
            raise ValueError(
                f"got explained_score {self.explained_score!r}, which none of these methods follows; leave it out"
            )


def explain_images(
    checkpoint: Checkpoint, images: Sequence[Path], out: Path, config: ExplainConfig
) -> list[Path]:
    """Explains each image by itself and writes, for each, pictures and a JSON file into `out`.

    A recurrent model scores every image as the first frame of a drive: without a past.

    Args:
        checkpoint: on the device to compute on.
        images: JPEG or PNG files; their names without suffix must differ.

    Returns:
        The JSON files.

    Raises:
        DataError: an image cannot be read, two have the same name, or the model has no such target,
            or another run is writing to `out`.
        UnsupportedModelError: the model lacks what a method needs.
        NonFiniteError: a prediction or a map is not finite.
    """
    stems = [image.stem for image in images]
    if twice := {stem for stem in stems if stems.count(stem) > 1}:
        raise DataError(f"two images are called {sorted(twice)[0]!r}; give them to separate folders")
    still = _Still(checkpoint, config)
    with locked(out):
        return [still.write(image, out) for image in images]


class _Still:
    """A model and its methods, ready for one image after the other."""

    def __init__(self, checkpoint: Checkpoint, config: ExplainConfig) -> None:
        checkpoint = checkpoint.differentiated(config.attention_derivative)
        model = checkpoint.model
        self._checkpoint, self._config = checkpoint, config
        self._rule = InputRule.of(checkpoint)
        self._view: FrameModel = frame_model(model)
        self._methods: Mapping[str, Explainer] = explainers_of(config.methods, model, config)
        self._outputs: Outputs = model.outputs
        self._target = config.target or ("magnitude" if self._outputs.kind == "regression" else "predicted")
        self._targets(torch.zeros(1, len(self._outputs.names)))  # An unknown name fails before any work.

    def write(self, path: Path, out: Path) -> Path:
        """Explains one image."""
        image = _read(path)
        pixels = torch.from_numpy(np.ascontiguousarray(self._rule.apply(image)))
        device = device_of(self._checkpoint.model)
        frames = pixels.permute(2, 0, 1)[None].to(device).float() / 255
        clean = scores_of(self._view, frames)
        if not clean.isfinite().all():
            raise NonFiniteError(f"{path.name}: its prediction is NaN or infinite; check the weights")
        maps = []
        for target, rule in self._targets(clean.cpu()).items():
            for method, explain in self._methods.items():
                explained = explained_by(
                    method, rule(clean), self._outputs, score=self._config.explained_score
                )
                try:
                    saliency = explain(self._view, frames, explained).detach()
                except NonFiniteError as error:
                    raise NonFiniteError(f"{path.name}: the map of {method}: {error}") from error
                found = self._map(path, out, image, saliency, method, target)
                if self._config.edits is not None:
                    edited = self._edited(frames, saliency, rule(clean), self._config.edits)
                    found["files"]["edited"] = self._drawn_edited(edited, path, out, method, target)
                    found["edited"] = edited.describe()
                maps.append(found)
        summary = {
            "schema": SCHEMA,
            "image": {"name": path.name, "height": image.shape[0], "width": image.shape[1]},
            "seen": {"region": self._region(image)._asdict(), "size": list(frames.shape[2:])},
            "checkpoint": {"kind": self._checkpoint.kind, "sha256": self._checkpoint.sha256},
            "scores": self._scores(clean),
            "maps": maps,
            "seed": self._config.seed,
            **self._about_edits(),
            **({"options": self._config.options} if self._config.options else {}),
            **describe_machine(device),
        }
        written = out / f"{path.stem}.json"
        with replacing(written) as temporary:
            temporary.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")
        return written

    def _edited(self, frames: Frames, saliency: Saliency, target: Target, edits: Edits) -> EditedFrames:
        try:
            return edited_frames(
                self._view,
                frames,
                saliency,
                target,
                edits,
                seed=self._config.seed,
                batch_size=self._config.batch_size,
            )
        except ValueError as error:
            raise DataError(f"edited frames: {error}") from None

    def _drawn_edited(self, edited: EditedFrames, path: Path, out: Path, method: str, target: str) -> str:
        """Draws the edited frames; returns the picture's name."""
        name = f"{path.stem}.{method}.{_in_file_names(target)}.edited.png"
        called = described(method, self._config.options)
        done = "removed" if edited.edits.edit == "deletion" else "shown"
        caption = f"{called}   {target}   {path.name}   most salient pixels {done}, fill {edited.edits.fill}"
        _write_png(out / name, edited.drawn(caption))
        return name

    def _about_edits(self) -> Mapping[str, Any]:
        edits = self._config.edits
        return {} if edits is None else {"edits": {"edit": edits.edit, "fill": edits.fill}}

    def _targets(self, clean: Scores) -> dict[str, TargetRule]:
        """What this frame is explained for."""
        if self._target == EVERY_PREDICTED and self._outputs.kind == "multilabel":
            chances = probabilities(clean, self._outputs)[0].tolist()
            over = zip(self._outputs.names, chances, self._checkpoint.thresholds, strict=True)
            return {name: by_name(name, self._outputs) for name, chance, least in over if chance > least}
        rule = by_name(self._target, self._outputs)
        name = self._target
        if name == "predicted":
            name = self._outputs.names[int(clean[0].argmax())]
        return {name: rule}

    def _scores(self, clean: Scores) -> dict[str, Any]:
        if self._outputs.kind == "regression":
            return {self._outputs.names[0]: {"value": float(clean[0, 0]), "unit": self._outputs.unit}}
        probability = probabilities(clean, self._outputs)[0]
        return {
            name: {"logit": float(logit), "probability": float(chance)}
            for name, logit, chance in zip(self._outputs.names, clean[0], probability, strict=True)
        }

    def _region(self, image: Image) -> Region:
        return self._rule.region(*image.shape[:2])

    def _map(
        self, path: Path, out: Path, image: Image, saliency: Float[Tensor, "1 h w"], method: str, target: str
    ) -> dict[str, Any]:
        """Draws one map and says what is in it."""
        values = saliency[0].cpu().numpy().astype(np.float32)
        stem = f"{path.stem}.{method}.{_in_file_names(target)}"
        files = {"picture": f"{stem}.png"}
        called = described(method, self._config.options)
        picture = _drawn(image, values, self._region(image), f"{called}   {target}   {path.name}")
        _write_png(out / files["picture"], picture)
        if self._config.save_maps:
            files["map"] = f"{stem}.npy"
            with replacing(out / files["map"]) as temporary, temporary.open("wb") as file:
                np.save(file, values, allow_pickle=False)
        row, column = np.unravel_index(values.argmax(), values.shape)
        return {
            "method": method,
            "target": target,
            "files": files,
            "low": float(values.min()),
            "high": float(values.max()),
            "mean": float(values.mean()),
            "degenerate": is_degenerate(values),
            "highest": {"row": int(row), "column": int(column)},
        }


def _in_file_names(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text)


def _read(path: Path) -> Image:
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise DataError(f"{path}: {size} bytes are no single image; at most {_MOST_BYTES} are read")
        return decode_image(path.read_bytes(), name=str(path))
    except FileNotFoundError:
        raise DataError(f"{path}: no such image; give a JPEG or PNG file") from None


def _drawn(
    image: Image, saliency: Float32[np.ndarray, "h w"], region: Region, caption: str
) -> UInt8[np.ndarray, "rows columns 3"]:
    """The image, enlarged where it is small, with the map on what the model saw and a line below."""
    factor = enlargement(*image.shape[:2])
    height, width = (side * factor for side in image.shape[:2])
    picture = np.full((height + _STRIP_PX, width, 3), PANEL, dtype=np.uint8)
    picture[:height] = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    top, bottom, left, right = (edge * factor for edge in region)
    if is_degenerate(saliency):
        caption += "   no evidence: the map is the same everywhere"
    else:
        blend_heat(picture[top:bottom, left:right], saliency, HeatScale.first(saliency))
    lettering(13).draw(picture, caption, (10, height + _STRIP_PX - 8), _TEXT)
    return picture


def _write_png(path: Path, picture: Image) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(encode_png(picture))
