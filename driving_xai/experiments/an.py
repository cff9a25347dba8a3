"""Average drop, increase and insertion of attention-guided CAM and four CAMs (An and Joe 2022, Tables 3 and 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from driving_xai.checkpoint import Checkpoint
from driving_xai.data.images import ImageSet, classes_of
from driving_xai.errors import DataError, UnsupportedModelError
from driving_xai.evaluation.config import CONTROLS
from driving_xai.experiments.image_sets import MemoryImages, NamedImages, open_images
from driving_xai.experiments.networks import classifier_of, trained_classifier
from driving_xai.experiments.recipes import planned, require_unset
from driving_xai.experiments.runs import (
    DIFFERENCES,
    Found,
    Mean,
    each_run,
    paired,
    tested_text,
    values_of,
)
from driving_xai.experiments.stand_ins import Clutter, digits_in_clutter
from driving_xai.experiments.tables import markdown_header, markdown_row, write_results
from driving_xai.explain.base import Explainer
from driving_xai.explain.cam import AttentionGuidedCAM, GradCAM
from driving_xai.explain.options import OptionsOf
from driving_xai.explain.registry import fitted, require_methods
from driving_xai.metrics.confidence import (
    SHOWN_FRACTIONS,
    OfClass,
    average_drop,
    increase,
    scores_of_weighted,
)
from driving_xai.metrics.curves import insertion, rank
from driving_xai.models.capabilities import device_of, outputs_of
from driving_xai.models.classify import Classifier, ClassifierConfig
from driving_xai.models.label_columns import label_columns
from driving_xai.targets import outputs_at
from driving_xai.training.attention import AttentionTraining, pooled_head, train_attention
from driving_xai.training.augment import Augmentation
from driving_xai.training.classify import ClassifierTraining
from driving_xai.training.recipe import Device
from driving_xai.types import FrameModel, Frames

OURS = "attention-guided-cam"
STAND_IN = "digits in clutter (stand-in for ImageNet)"
_PAPER_METHODS = ("grad-cam", "grad-cam++", "smooth-grad-cam++", "xgrad-cam", OURS)
# Table 3 and Table 4 of the paper, in the order above; ImageNet, ResNet-50.
_PAPER = {
    "drop": (45.27, 44.35, 44.82, 46.33, 42.52),
    "increase": (23.06, 23.15, 23.75, 22.15, 25.35),
    "logit 5 %": (0.2846, 0.2715, 0.4997, 0.2915, 1.0229),
    "logit 10 %": (0.3954, 0.3841, 0.7814, 0.4521, 1.2898),
    "logit 20 %": (4.5524, 4.5001, 4.8335, 4.7527, 5.5308),
    "logit 25 %": (6.6328, 7.1551, 6.7879, 7.6782, 9.5161),
    "logit 50 %": (8.9952, 8.9876, 8.7792, 8.6304, 11.5334),
}
_LABELS = {
    OURS: "attention-guided CAM (A: no parameters)",
    "attention-guided-cam channel": "A, channel attention only",
    "attention-guided-cam spatial": "A, spatial attention only",
    "attention-guided-cam trained": "B: CBAM trained on the frozen network",
    "attention-guided-cam random weights": "C: CBAM with random weights",
    "grad-cam of a CBAM network": "D: Grad-CAM of a network with CBAM inside",
}


def _recipe() -> ClassifierTraining:
    network = ClassifierConfig(network="small-cnn", channels=(16, 32, 64), pooled=3, reduction=8)
    plain = Augmentation(flip=False, brightness=0.2, contrast=0.2)
    return ClassifierTraining(
        model=network, augmentation=plain, epochs=10, batch_size=32, learning_rate=3e-3, patience=None
    )


class HasPictures(Protocol):
    """A recipe that says how many pictures of the stand-in there are."""

    @property
    def pictures(self) -> tuple[int, ...]: ...

    @property
    def clutter(self) -> Clutter: ...


@dataclass(frozen=True, kw_only=True)
class An:
    """What is trained, explained and measured."""

    training: ClassifierTraining = field(default_factory=_recipe)
    """Of the network that is explained; its seed is replaced in turn."""
    methods: tuple[str, ...] = ()
    """Measured beyond the paper's five, by name or label: `smooth-grad-cam++@many`."""
    options: OptionsOf = field(default_factory=dict)
    """Of methods by name or label: `{"smooth-grad-cam++": {"samples": 25}}`; see docs/methods.md."""
    checkpoint: str | None = None
    """A classifier as `score` takes it, explained in place of one trained for each seed: a folder, `timm:NAME`,
    `torchvision:NAME` or `module:factory`. Results name it by the hash of its weights."""
    weights: str | None = None
    """A file of weights for a `checkpoint` that is no folder; None is what it comes with."""
    with_cbam: bool = True
    """Also trains the network with CBAM inside, option D."""
    attention: AttentionTraining = field(default_factory=lambda: AttentionTraining(reduction=8))
    """Of option B."""
    seeds: int = 8
    images: int = 100
    """Tested in each run; runs of one `checkpoint` share none."""
    batch_size: int = 32
    pictures: tuple[int, ...] = (1200, 100, 400)
    """Of the stand-in, to train, validate and test on."""
    clutter: Clutter = field(default_factory=Clutter)
    """Of the stand-in."""

    def __post_init__(self) -> None:
        if min(self.seeds, self.images, self.batch_size) < 1 or len(self.pictures) != 3:
            raise ValueError(
                f"seeds is {self.seeds}, images {self.images}, pictures {list(self.pictures)}; expected 1 or more, "
                "and three numbers"
            )
        require_methods((*_PAPER_METHODS, *self.methods), self.options, also=CONTROLS)


def tables(
    data: Path | None,
    out: Path,
    how: An,
    *,
    table: Literal["table3", "table4"] = "table3",
    device: Device = "cpu",
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Runs every seed that `out` does not hold yet and writes a table; both tables come from the same runs.

    Args:
        data: shards of images of one class each, or None for the stand-in.
        out: gets `runs/` and `models/` for each seed, `results.json` and `table.md`.

    Returns:
        What `results.json` holds.

    Raises:
        DataError: too few images for runs of one checkpoint.
        CheckpointError: the checkpoint cannot be read, or `out` holds networks that were trained otherwise.
    """
    _require_used(data, how)
    source = open_images(data, stand_in(how) if data is None else None, STAND_IN)
    given = None if how.checkpoint is None else classifier_of(how.checkpoint, how.weights, device)
    # A checkpoint is what it holds, wherever it lies.
    fixed = None if given is None else given.sha256
    _tested_rows(source.images.rows("test"), how, 0)
    plan = {
        "experiment": "an-tables",
        "how": {**{k: v for k, v in planned(how).items() if k != "weights"}, "checkpoint": fixed},
        "images": dict(source.described),
    }
    runs = each_run(
        out / "runs", plan, how.seeds, lambda seed: _run(source, out, how, seed, device, given), on_progress
    )
    measured = [name for name in runs[0][OURS] if name != "accuracy"]
    others = [name for name in runs[0] if name not in (OURS, "network")]
    results = {
        "experiment": f"an-{table}",
        "config": {**asdict(how), "checkpoint": fixed},
        "images": dict(source.described),
        "explained": "the predicted class",
        "accuracy": asdict(Mean.of(values_of(runs, "network", "accuracy"))) if "network" in runs[0] else None,
        "means": {
            name: {each: asdict(Mean.of(values_of(runs, name, each))) for each in measured}
            for name in (OURS, *others)
        },
        "tests": [paired(runs, OURS, name, each) for each in measured for name in others],
        "paper": {each: dict(zip(_PAPER_METHODS, row, strict=True)) for each, row in _PAPER.items()},
        "runs": runs,
    }
    write_results(out, results, _text(results, table))
    return results


def stand_in(how: HasPictures) -> MemoryImages:
    """The digits in clutter of a recipe."""
    train, val, test = how.pictures
    return digits_in_clutter(train=train, val=val, test=test, how=how.clutter, seed=0)


def _require_used(data: Path | None, how: An) -> None:
    reasons = {
        "training.seed": "run i draws with seed i",
        "training.model.classes": "the images have classes",
        "training.model.image_size": "the images have a size",
    }
    if data is not None:
        reasons |= dict.fromkeys(("pictures", "clutter"), "it is of the stand-in, and images are given")
    if how.checkpoint is not None:
        reasons |= dict.fromkeys(
            ("training", "with_cbam"), "the network of `checkpoint` is not trained again"
        )
    else:
        reasons["weights"] = "it is of `checkpoint`, and there is none"
    require_unset(how, reasons)


table3 = partial(tables, table="table3")
table4 = partial(tables, table="table4")


def _run(
    source: NamedImages, out: Path, how: An, seed: int, device: Device, given: Checkpoint | None
) -> Found:
    """Trains the networks of a seed, or takes the given one, explains its images, and measures the maps."""
    images = source.images
    folder = out / "models" / f"seed-{seed}"
    model = given.model if given else _network(source, folder, how, how.training.model, seed, device)
    labels = _columns_of_images(model, images)
    rows = _tested_rows(images.rows("test"), how, seed)
    frames = images.frames(rows).to(device_of(model))
    explainers = _explainers(model, source, labels, frames[:1], how, seed)
    found = {name: _measured(model, explainer, frames, how, seed) for name, explainer in explainers.items()}
    if how.with_cbam and given is None:
        config = replace(how.training.model, network=f"cbam-{how.training.model.network}")
        other = _network(source, out / "models" / f"seed-{seed}-cbam", how, config, seed, device)
        found["grad-cam of a CBAM network"] = _measured(other, GradCAM(), frames, how, seed)
    if labels is not None:
        with torch.no_grad():
            scores = torch.cat([model(part) for part in frames.split(how.batch_size)]).cpu()
        found["network"] = {"accuracy": float((scores.argmax(1) == labels[rows]).double().mean())}
    return found


def _columns_of_images(model: FrameModel, images: ImageSet) -> Int64[Tensor, " N"] | None:
    """The column of the scores that is right for each image; None where the labels are none of the outputs."""
    try:
        columns = label_columns(images.label_names, outputs_of(model).names)
    except DataError:
        return None
    return torch.tensor(columns)[classes_of(images)]


def _tested_rows(tested: np.ndarray, how: An, seed: int) -> np.ndarray:
    """Runs of networks of their own draw images; runs of one network share them out, as nothing else differs.

    Raises:
        DataError: there are not enough for every run of one network.
    """
    if how.checkpoint is None:
        return np.random.default_rng(seed).permutation(tested)[: how.images]
    if (wanted := how.seeds * how.images) > len(tested):
        raise DataError(
            f"{how.seeds} runs of {how.images} images are {wanted}, and there are {len(tested)} to test; runs of "
            "one network share no image: set seeds or images"
        )
    return np.random.default_rng(0).permutation(tested)[seed * how.images : (seed + 1) * how.images]


def _network(
    source: NamedImages, folder: Path, how: An, config: ClassifierConfig, seed: int, device: Device
) -> Classifier:
    recipe = replace(how.training, model=config, seed=seed)
    return trained_classifier(source, folder, recipe, device=device)


def _explainers(
    model: FrameModel,
    source: NamedImages,
    labels: Int64[Tensor, " N"] | None,
    frame: Frames,
    how: An,
    seed: int,
) -> dict[str, Explainer]:
    """The five methods, the ablations and options of attention, and the controls."""

    def named(*names: str) -> dict[str, Explainer]:
        return {
            name: fitted(name, model, seed=seed, batch_size=how.batch_size, options=how.options.get(name))
            for name in names
        }

    guided = {
        f"{OURS} channel": AttentionGuidedCAM(parts="channel"),
        f"{OURS} spatial": AttentionGuidedCAM(parts="spatial"),
        f"{OURS} random weights": AttentionGuidedCAM(
            attention="random", reduction=how.attention.reduction, seed=seed
        ),
    }
    rows = source.images.rows("train")
    if labels is not None and len(rows) and _has_pooled_head(model, frame):
        block = train_attention(model, source.images, rows, labels, how.attention, seed=seed)
        guided[f"{OURS} trained"] = AttentionGuidedCAM(attention=block)
    return {**named(*_PAPER_METHODS), **guided, **named(*how.methods, *CONTROLS)}


def _has_pooled_head(model: FrameModel, frame: Frames) -> bool:
    try:
        pooled_head(model, frame)
    except UnsupportedModelError:
        return False
    return True


def _measured(
    model: FrameModel, explainer: Explainer, frames: Frames, how: An, seed: int
) -> dict[str, float]:
    """The means over frames of every number of both tables."""
    parts: dict[str, list[Tensor]] = {}
    for part in frames.split(how.batch_size):
        for name, values in _of_batch(model, explainer, part, how.batch_size, seed).items():
            parts.setdefault(name, []).append(values)
    return {name: _mean_of_ordered(name, torch.cat(values).double()) for name, values in parts.items()}


def _mean_of_ordered(name: str, values: Tensor) -> float:
    """The mean over frames whose map has an order; where none has, the worst there is."""
    ordered = values[values.isfinite()]
    if len(ordered):
        return float(ordered.mean())
    return 100.0 if name == "drop" else 0.0


def _of_batch(
    model: FrameModel, explainer: Explainer, frames: Frames, batch_size: int, seed: int
) -> dict[str, Tensor]:
    with torch.no_grad():
        scores = model(frames)
    classes = scores.argmax(1)
    saliency = explainer(model, frames, outputs_at(classes)).detach()
    probability = OfClass(classes=classes)
    clean = probability(scores)
    weighted = probability(scores_of_weighted(model, frames, saliency, batch_size=batch_size))
    constant = saliency.amax((1, 2)) == saliency.amin((1, 2))
    found = {
        "drop": average_drop(clean, weighted).masked_fill(constant, torch.nan),
        "increase": increase(clean, weighted).masked_fill(constant, torch.nan),
    }
    ranks = rank(saliency, torch.Generator().manual_seed(seed))
    # Probabilities follow from the logits: one run over the edited frames serves both.
    logits = insertion(model, frames, ranks, SHOWN_FRACTIONS, batch_size=batch_size)
    for fraction, column in zip(SHOWN_FRACTIONS, logits.unbind(1), strict=True):
        share, shown = f"{round(100 * fraction)} %", probability(column)
        found[f"logit {share}"] = OfClass(classes=classes, scale="logit")(column)
        found[f"probability {share}"] = shown
        found[f"drop {share}"], found[f"increase {share}"] = (
            average_drop(clean, shown),
            increase(clean, shown),
        )
    return found


def _text(results: Mapping[str, Any], table: str) -> str:
    shown = [f"{round(100 * fraction)} %" for fraction in SHOWN_FRACTIONS]
    config, accuracy = results["config"], results["accuracy"]
    network = config["training"]["model"]["network"] if config["checkpoint"] is None else "a given checkpoint"
    lines = [
        f"Images: {results['images']['name']}. Network: {network}, accuracy "
        f"{'unknown' if accuracy is None else format(accuracy['mean'], '.3f')}. {config['seeds']} runs of {config['images']} images; mean and standard error "
        "over runs.",
        "",
        f"A is attention-guided CAM without parameters. {DIFFERENCES}",
        "",
    ]
    if table == "table3":
        few = [f"{name} {share}" for name in ("drop", "increase") for share in shown[1::2]]
        lines += ["The frame times its stretched map; probability of the predicted class, in percent.", ""]
        lines += [*_rows(results, ("drop", "increase"), ".2f"), ""]
        lines += ["The same where exactly so many of the most salient pixels are shown, on black.", ""]
        return "\n".join([*lines, *_rows(results, few, ".2f")])
    lines += ["The mean logit where exactly so many of the most salient pixels are shown, on black.", ""]
    lines += [*_rows(results, [f"logit {share}" for share in shown], ".3f"), "", "As a probability.", ""]
    return "\n".join([*lines, *_rows(results, [f"probability {share}" for share in shown], ".4f")])


def _rows(results: Mapping[str, Any], columns: Sequence[str], digits: str) -> list[str]:
    """A table of means with the paper's, and one of differences from attention-guided CAM."""
    heads = [head for name in columns for head in ((name, "paper") if name in _PAPER else (name,))]
    lines = markdown_header("method", heads)
    for method, means in results["means"].items():
        cells = []
        for name in columns:
            cells.append(f"{means[name]['mean']:.3g} ± {means[name]['standard_error']:.2g}")
            if name in _PAPER:
                printed = results["paper"][name].get(method)
                cells.append("" if printed is None else f"{printed:g}")
        lines.append(markdown_row(_LABELS.get(method, method), cells))
    tests = {(each["theirs"], each["quantity"]): each for each in results["tests"]}
    lines += ["", *markdown_header("A less", columns)]
    for method in results["means"]:
        if method != OURS:
            cells = [tested_text(tests[method, name], digits) for name in columns]
            lines.append(markdown_row(_LABELS.get(method, method), cells))
    return lines
