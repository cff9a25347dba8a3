"""Accuracy and top-5 error of several networks on the same images (An and Joe 2022, Table 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from scipy.stats import binomtest
from torch import Tensor

from driving_xai.checkpoint import Checkpoint
from driving_xai.data.images import classes_of
from driving_xai.errors import DataError
from driving_xai.experiments.an import STAND_IN, An, stand_in
from driving_xai.experiments.image_sets import NamedImages, open_images
from driving_xai.experiments.networks import classifier_of, trained_classifier
from driving_xai.experiments.recipes import planned, require_unset
from driving_xai.experiments.runs import Found, Mean, each_run, values_of
from driving_xai.experiments.stand_ins import Clutter
from driving_xai.experiments.tables import markdown_header, markdown_row, write_results
from driving_xai.models.capabilities import device_of, outputs_of
from driving_xai.models.label_columns import label_columns
from driving_xai.training.classify import ClassifierTraining
from driving_xai.training.loop import Device
from driving_xai.types import FrameModel, Scores

# Table 2: "mean accuracy" and top-5 error in percent.
_PAPER = {"ResNet-50": (0.9496, 5.38), "GoogLeNet": (0.9363, 8.26), "VGG19": (0.9372, 9.21)}
_TOP = 5


@dataclass(frozen=True, kw_only=True)
class AnNetworks:
    """Which networks are compared, and on what."""

    networks: tuple[str, ...] = ()
    """As `score` takes them: folders, `timm:NAME`, `torchvision:NAME` or `module:factory`. None are given: `trained`
    ones are compared, a network for each seed."""
    trained: tuple[str, ...] = ("small-cnn", "cbam-small-cnn", "resnet10t")
    """Names for `train classifier`, trained by the recipe `training`."""
    training: ClassifierTraining = field(default_factory=lambda: An().training)
    seeds: int = 4
    batch_size: int = 32
    pictures: tuple[int, ...] = (1200, 100, 400)
    """Of the stand-in, to train, validate and test on."""
    clutter: Clutter = field(default_factory=Clutter)
    """Of the stand-in."""

    def __post_init__(self) -> None:
        compared = self.networks or self.trained
        if min(self.seeds, self.batch_size) < 1 or len(self.pictures) != 3 or len(set(compared)) < 2:
            raise ValueError(
                f"seeds is {self.seeds}, batch_size {self.batch_size}, pictures {list(self.pictures)}, networks "
                f"{list(compared)}; expected 1 or more, three numbers, and two networks or more, none twice"
            )


def table2(
    data: Path | None,
    out: Path,
    how: AnNetworks,
    *,
    device: Device = "cpu",
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measures every network on the test images and writes the table.

    Args:
        data: shards of images of one class each, or None for the stand-in.
        out: gets `runs/`, `models/` of trained networks, `results.json` and `table.md`.

    Returns:
        What `results.json` holds.

    Raises:
        DataError: no test images, or labels that a given network does not have.
        CheckpointError: a network cannot be read.
    """
    _require_used(data, how)
    source = open_images(data, stand_in(how) if data is None else None, STAND_IN)
    given = {name: classifier_of(name, None, device) for name in how.networks}
    hashes = {name: found.sha256 for name, found in given.items()}
    plan = {
        "experiment": "an-table2",
        "how": {**planned(how), "networks": hashes},
        "images": dict(source.described),
    }
    runs = each_run(
        out / "runs",
        plan,
        1 if given else how.seeds,
        lambda seed: _run(source, out, how, seed, device, given),
        on_progress,
    )
    results = {
        "experiment": "an-table2",
        "config": {**asdict(how), "networks": hashes},
        "images": dict(source.described),
        "means": {
            name: {each: asdict(Mean.of(values_of(runs, name, each))) for each in values}
            for name, values in runs[0].items()
        },
        "over_images": {name: _interval(values) for name, values in runs[0].items()} if given else None,
        "paper": {name: {"accuracy": a, "top5_error_percent": e} for name, (a, e) in _PAPER.items()},
        "runs": runs,
    }
    write_results(out, results, _text(results))
    return results


def _require_used(data: Path | None, how: AnNetworks) -> None:
    reasons = {"training.seed": "run i draws with seed i", "training.model.network": "`trained` names them"}
    if data is not None:
        reasons |= dict.fromkeys(("pictures", "clutter"), "it is of the stand-in, and images are given")
    if how.networks:
        reasons |= dict.fromkeys(("training", "trained", "seeds"), "`networks` are not trained again")
    require_unset(how, reasons)


def _run(
    source: NamedImages,
    out: Path,
    how: AnNetworks,
    seed: int,
    device: Device,
    given: Mapping[str, Checkpoint],
) -> Found:
    if given:
        return {name: _measured(found.model, source, how.batch_size) for name, found in given.items()}
    found = {}
    for name in how.trained:
        recipe = replace(how.training, model=replace(how.training.model, network=name), seed=seed)
        model = trained_classifier(source, out / "models" / f"{name}-{seed}", recipe, device=device)
        found[name] = _measured(model, source, how.batch_size)
    return found


def _measured(model: FrameModel, source: NamedImages, batch_size: int) -> dict[str, float]:
    images = source.images
    rows = images.rows("test")
    if not len(rows):
        raise DataError("the shards hold no test images, expected 1 or more; prepare them with a test split")
    columns = torch.tensor(label_columns(images.label_names, outputs_of(model).names))
    with torch.no_grad():
        scores = torch.cat(
            [
                model(images.frames(rows[start : start + batch_size]).to(device_of(model))).cpu()
                for start in range(0, len(rows), batch_size)
            ]
        )
    return accuracies(scores, columns[classes_of(images)[rows]])


def accuracies(scores: Scores, labels: Int64[Tensor, " N"]) -> dict[str, float]:
    """Share of images that are right, its mean over classes, and the share whose class is not among the first five.

    Args:
        labels: the column of the scores that is right for each image.

    Example:
        >>> found = accuracies(torch.eye(6)[[0, 1, 1]], torch.tensor([0, 1, 2]))
        >>> round(found["accuracy"], 3), round(found["class_mean_accuracy"], 3)
        (0.667, 0.667)
    """
    right = (scores.argmax(1) == labels).double()
    by_class = [right[labels == each].mean() for each in labels.unique()]
    first = scores.topk(min(_TOP, scores.shape[1]), 1).indices
    return {
        "images": float(len(labels)),
        "accuracy": float(right.mean()),
        "class_mean_accuracy": float(torch.stack(by_class).mean()),
        "top5_error": float((first != labels[:, None]).all(1).double().mean()),
    }


def _interval(found: Mapping[str, float]) -> dict[str, float]:
    """Wilson's 95 % interval of the accuracy over images."""
    count = round(found["images"])
    bounds = binomtest(round(found["accuracy"] * count), count).proportion_ci(method="wilson")
    return {"low": float(bounds.low), "high": float(bounds.high)}


def _text(results: Mapping[str, Any]) -> str:
    over_images = results["over_images"]
    runs, images = len(results["runs"]), round(next(iter(results["runs"][0].values()))["images"])
    spread = "95 % interval over images (Wilson)" if over_images else f"standard error over {runs} runs"
    lines = [
        f"Images: {results['images']['name']}, {images} tested. In brackets: {spread}.",
        "",
        *markdown_header("network", ("accuracy", "mean over classes", "top-5 error, percent")),
    ]
    for name, means in results["means"].items():
        found = means["accuracy"]
        within = (
            f"{over_images[name]['low']:.3f} to {over_images[name]['high']:.3f}"
            if over_images
            else f"{found['standard_error']:.3f}"
        )
        cells = (
            f"{found['mean']:.4f} ({within})",
            f"{means['class_mean_accuracy']['mean']:.4f}",
            f"{100 * means['top5_error']['mean']:.2f}",
        )
        lines.append(markdown_row(name, cells))
    for name, (accuracy, error) in _PAPER.items():
        lines.append(markdown_row(f"paper: {name}", (f"{accuracy:.4f}", "", f"{error:.2f}")))
    lines += [
        "",
        "The paper's mean accuracy is neither top-1 nor 1 less its top-5 error; it does not say of what.",
    ]
    return "\n".join(lines)
