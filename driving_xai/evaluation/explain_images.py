"""Single images explained: a picture of each map, and the numbers behind it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from data_prep.geometry import decode_image
from data_prep.schema import Image
from data_prep.shards.atomic import replacing
from data_prep.values import Checked, Ge, PositiveCount, Seed
from driving_xai.checkpoint import Checkpoint
from driving_xai.data.input_rule import InputRule, Region
from driving_xai.errors import DataError, NonFiniteError, OptionError
from driving_xai.evaluation.config import explainers_of
from driving_xai.evaluation.edited_frames import EditedFrames, Edits, edited_frames
from driving_xai.evaluation.explain_panel import captioned, laid_over, panel, write_png
from driving_xai.evaluation.image_data import EVERY_PREDICTED
from driving_xai.evaluation.results import locked
from driving_xai.evaluation.summary import describe_machine
from driving_xai.explain.base import Explainer
from driving_xai.explain.options import OptionsOf, described
from driving_xai.explain.registry import fitted, require_methods, without_label
from driving_xai.metrics.perturbation_curves import Edit
from driving_xai.models.capabilities import device_of, frame_model, scores_of
from driving_xai.models.steering_config import AttentionDerivative
from driving_xai.perturb import Fill
from driving_xai.targets import (
    ExplainedScore,
    TargetRule,
    by_name,
    explained_by,
    hides_parts,
    probabilities,
)
from driving_xai.types import FrameModel, Frames, Outputs, Saliency, Scores, Target
from driving_xai.viz.heat import enlargement, is_degenerate

SCHEMA = "driving-xai-explanation/1"
_MOST_BYTES = 256 * 2**20
_BY_HEAD = "raw-attention"
"""The method that can show heads by themselves."""


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
    smooth_px: Annotated[float, Ge(0)] = 0.0
    """Standard deviation of a blur of the pictures, in pixels that the model sees; values stay as they are."""
    heads: Literal["mean", "each"] = "mean"
    """Of raw attention: `each` draws every head of the last block by itself, in place of their mean."""
    panel: bool = False
    """Draws all maps of an image in one picture too: a row for each network and output, a column for each method."""
    label: str = ""
    """Of this model in a panel; "" is the name of its folder."""

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
        self._check_drawing()
        if self.explained_score != "probability" and not any(map(hides_parts, self.methods)):
            raise ValueError(
                f"got explained_score {self.explained_score!r}, which none of these methods follows; leave it out"
            )

    def _check_drawing(self) -> None:
        if self.label and not self.panel:
            raise ValueError(
                f"got label {self.label!r} and no panel to write it in; ask for the panel, or leave it out"
            )
        if self.heads == "mean":
            return
        by_head = [each for each in self.methods if without_label(each) == _BY_HEAD]
        if not by_head:
            raise ValueError(f"got heads 'each', which {_BY_HEAD} alone has; add it, or leave heads out")
        if twice := [each for each in by_head if "head" in self.options.get(each, {})]:
            raise ValueError(f"got heads 'each' and options.{twice[0]}.head; give one of them")


def explain_images(
    checkpoint: Checkpoint,
    images: Sequence[Path],
    out: Path,
    config: ExplainConfig,
    *,
    others: Mapping[str, Checkpoint] = MappingProxyType({}),
) -> list[Path]:
    """Explains each image by itself and writes, for each, pictures and a JSON file into `out`.

    A recurrent model scores every image as the first frame of a drive: without a past.

    Args:
        checkpoint: on the device to compute on.
        images: JPEG or PNG files; their names without suffix must differ.
        others: further models, whose maps stand in the panel under these labels.

    Returns:
        The JSON files.

    Raises:
        DataError: an image cannot be read, two have the same name, or the model has no such target,
            or another run is writing to `out`.
        OptionError: others are given and no panel is asked for, or two models have one label.
        UnsupportedModelError: the model lacks what a method needs.
        NonFiniteError: a prediction or a map is not finite.
    """
    stems = [image.stem for image in images]
    if twice := {stem for stem in stems if stems.count(stem) > 1}:
        raise DataError(f"two images are called {sorted(twice)[0]!r}; give them to separate folders")
    if others and not config.panel:
        raise OptionError("got other models and no panel to draw their maps in; ask for the panel too")
    label = config.label or (checkpoint.path.name if others else "")
    if label in others:
        raise OptionError(f"got two models called {label!r}; give one another label")
    still = _Still(checkpoint, config, label)
    other_stills = [_Still(each, config, name) for name, each in others.items()]
    with locked(out):
        return [still.write(image, out, other_stills) for image in images]


class _Explained(NamedTuple):
    """What a model says of one image, and its maps."""

    frames: Frames
    clean: Scores
    maps: list[tuple[str, str, TargetRule, Saliency]]
    """Target, method, the target's rule, and the map."""


class _Still:
    """A model and its methods, ready for one image after the other."""

    def __init__(self, checkpoint: Checkpoint, config: ExplainConfig, label: str) -> None:
        """`label` stands over the model's maps in a panel; it may be empty."""
        self.label = label
        checkpoint = checkpoint.differentiated(config.attention_derivative)
        model = checkpoint.model
        self._checkpoint, self._config = checkpoint, config
        self._rule = InputRule.of(checkpoint)
        self._view: FrameModel = frame_model(model)
        self._methods: Mapping[str, Explainer] = _explainers(model, config)
        self._outputs: Outputs = model.outputs
        self._target = config.target or ("magnitude" if self._outputs.kind == "regression" else "predicted")
        self._targets(torch.zeros(1, len(self._outputs.names)))  # An unknown name fails before any work.

    def write(self, path: Path, out: Path, others: Sequence[_Still]) -> Path:
        """Explains one image."""
        image = _read(path)
        found = self._explained(path, image)
        maps = []
        for target, method, rule, saliency in found.maps:
            about = self._map(path, out, image, saliency, method, target)
            if self._config.edits is not None:
                edited = self._edited(found.frames, saliency, rule(found.clean), self._config.edits)
                about["files"]["edited"] = self._drawn_edited(edited, path, out, method, target)
                about["edited"] = edited.describe()
            maps.append(about)
        summary = {
            "schema": SCHEMA,
            "image": {"name": path.name, "height": image.shape[0], "width": image.shape[1]},
            "seen": {"region": self._region(image)._asdict(), "size": list(found.frames.shape[2:])},
            **self._identity(),
            "scores": self._scores(found.clean),
            "maps": maps,
            **(self._with_panel(path, out, image, found, others) if self._config.panel else {}),
            "seed": self._config.seed,
            **self._about_edits(),
            **({"options": self._config.options} if self._config.options else {}),
            **self._about_derivative(),
            **describe_machine(device_of(self._checkpoint.model)),
        }
        written = out / f"{path.stem}.json"
        with replacing(written) as temporary:
            temporary.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")
        return written

    def _explained(self, path: Path, image: Image) -> _Explained:
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
                maps.append((target, method, rule, saliency))
        return _Explained(frames, clean, maps)

    def _identity(self) -> dict[str, Any]:
        progress = self._checkpoint.unfinished
        known = {"kind": self._checkpoint.kind, "sha256": self._checkpoint.sha256}
        return {"checkpoint": known if progress is None else {**known, "unfinished": progress.described()}}

    def _with_panel(
        self, path: Path, out: Path, image: Image, ours: _Explained, others: Sequence[_Still]
    ) -> dict[str, Any]:
        """Draws the panel; returns its file and what the other models say."""
        theirs = [(other, other._explained(path, image)) for other in others]
        rows = [row for still, found in [(self, ours), *theirs] for row in still._tiles(image, found)]
        name = f"{path.stem}.panel.png"
        factor = enlargement(*image.shape[:2])
        height, width = (side * factor for side in image.shape[:2])
        whole = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
        write_png(out / name, panel(rows, (path.name, whole)))
        models = [
            {"label": still.label, **still._identity(), "scores": still._scores(found.clean)}
            for still, found in theirs
        ]
        named = {"label": self.label} if self.label else {}
        return {"panel": {"file": name, **named, **({"others": models} if models else {})}}

    def _tiles(
        self, image: Image, found: _Explained
    ) -> list[list[tuple[str, UInt8[np.ndarray, "height width 3"]]]]:
        """The maps under captions: a row for each target, a column for each method."""
        values = self._scores(found.clean)
        rows: dict[str, list[tuple[str, UInt8[np.ndarray, "height width 3"]]]] = {}
        for target, method, _, saliency in found.maps:
            called = described(method, self._config.options)
            about = values[target if target in values else next(iter(values))]
            said = (
                f"{about['value']:.4g} {about['unit']}" if "value" in about else f"{about['probability']:.4g}"
            )
            values_of_map = self._values(saliency)
            nothing = "no evidence" if is_degenerate(values_of_map) else ""
            caption = "   ".join(filter(None, [self.label, called, target, said, nothing]))
            drawn = laid_over(image, values_of_map, self._region(image), self._config.smooth_px)
            rows.setdefault(target, []).append((caption, drawn))
        return list(rows.values())

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
        write_png(out / name, edited.drawn(caption))
        return name

    def _about_derivative(self) -> Mapping[str, Any]:
        derivative = self._config.attention_derivative
        return {} if derivative == "actual" else {"attention_derivative": derivative}

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
        values = self._values(saliency)
        stem = f"{path.stem}.{method}.{_in_file_names(target)}"
        files = {"picture": f"{stem}.png"}
        called = described(method, self._config.options)
        picture = captioned(
            image,
            values,
            self._region(image),
            f"{called}   {target}   {path.name}",
            smooth_px=self._config.smooth_px,
        )
        write_png(out / files["picture"], picture)
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

    @staticmethod
    def _values(saliency: Float[Tensor, "1 h w"]) -> Float32[np.ndarray, "h w"]:
        return saliency[0].cpu().numpy().astype(np.float32)


def _explainers(model: Any, config: ExplainConfig) -> dict[str, Explainer]:
    """By the names under which their maps stand: with `heads="each"` one for each head of raw attention."""
    if config.heads == "mean":
        return dict(explainers_of(config.methods, model, config))
    from driving_xai.explain.vit.flow import heads_of

    found: dict[str, Explainer] = {}
    for name in config.methods:
        if without_label(name) != _BY_HEAD:
            found |= explainers_of([name], model, config)
            continue
        for head in range(heads_of(model)):
            called = f"{name}-{head}" if "@" in name else f"{name}@head-{head}"
            found[called] = fitted(name, model, options={**config.options.get(name, {}), "head": head})
    return found


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
