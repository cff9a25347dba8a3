"""Accuracy and F1 of an action model (Zhu et al. 2024), with the papers' numbers.

Zhu et al. 2024 report an accuracy of 74.6 % on BDD-OIA and compare it with 73.4, which in Xu et al. 2020 is
the F1 of each image's labels: the two are not comparable. So both are given here, of one model and of
predictors that do not look.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from driving_xai.data.images import LabelledImages
from driving_xai.data.splits import FoldOut
from driving_xai.errors import DataError
from driving_xai.experiments.networks import trained
from driving_xai.experiments.recipes import require_unset
from driving_xai.experiments.tables import write_results
from driving_xai.training import loop
from driving_xai.training.actions import (
    PREDICTIONS,
    ActionTraining,
    describe,
    train,
    with_saved_architecture,
)
from driving_xai.training.multilabel import agreement, trivial_agreements

NAME = "zhu-accuracy"
PAPERS: Mapping[str, Mapping[str, float]] = {
    "Zhu et al. 2024 (BDD-OIA)": {"accuracy": 0.746},
    "Xu et al. 2020 (BDD-OIA)": {
        "forward": 0.829,
        "stop": 0.781,
        "left": 0.630,
        "right": 0.634,
        "mf1": 0.718,
        "f1_all": 0.734,
    },
}
"""What the papers report; a number that is not here they do not have."""
_DRAWS = 2000


@dataclass(frozen=True, kw_only=True)
class ZhuAccuracy:
    """What is trained, and on which division of the images."""

    folds: int = 0
    """Cross-validate over so many parts; 0 takes prep's split."""
    training: ActionTraining = field(default_factory=ActionTraining)
    """Its held-out fold is replaced in turn."""
    seed: int = 0
    """Of the bootstrap."""

    def __post_init__(self) -> None:
        if self.folds < 0 or self.folds == 1:
            raise ValueError(f"folds is {self.folds}; expected 0, or at least 2")


def fetched_backbone(how: ZhuAccuracy) -> str | None:
    """The backbone whose weights timm fetches, if any."""
    return how.training.model.backbone if how.training.start == "timm" else None


def run(
    shards: Path,
    out: Path,
    how: ZhuAccuracy,
    *,
    device: loop.Device = "auto",
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Trains the models that `out` does not hold yet, and sums up what all of them say of images held out.

    Args:
        shards: a folder that `prep` wrote of images with actions.
        out: `whole/` or `fold-K/` for each model, `features/`, `results.json` and `table.md`.

    Returns:
        What `results.json` holds: the scores over all tested images with intervals, those of predictors
        that do not look, and the papers'.

    Raises:
        DataError: a division has no images to test; nothing is trained.
        CheckpointError: `out` holds a model that was trained otherwise.
    """
    _require_used(how)
    numbers = range(how.folds) if how.folds else [None]
    images = LabelledImages(shards)
    for number in numbers:
        if not (_held_out(how, number).splits(images.index) == "test").any():
            where = "split `test`" if number is None else f"fold {number}"
            raise DataError(f"{shards} has no image to test in {where}; prepare more, or set folds")
    tables = []
    for done, number in enumerate(numbers):
        folder = out / ("whole" if number is None else f"fold-{number}")
        tables.append(_tested(shards, folder, images, how, number, device))
        if on_progress is not None:
            on_progress(done + 1, len(numbers))
    results = {
        "experiment": NAME,
        "config": asdict(how),
        "shards_sha256": images.manifest.sha256,
        "data": images.manifest.drives[0]["name"],
        **_summary(pd.concat(tables, ignore_index=True), images, how),
        "papers": {name: dict(values) for name, values in PAPERS.items()},
    }
    write_results(out, results, _table(results))
    return results


def _require_used(how: ZhuAccuracy) -> None:
    reasons = dict.fromkeys(
        ("training.held_out.fold", "training.held_out.folds"), "`folds` says it for all models"
    )
    if not how.folds:
        parts = ("training.held_out.val_fraction", "training.held_out.seed")
        reasons |= dict.fromkeys(parts, "prep's split is taken where folds is 0")
    require_unset(how, reasons)


def _held_out(how: ZhuAccuracy, fold: int | None) -> FoldOut:
    return replace(how.training.held_out, fold=fold, folds=max(how.folds, 2))


def _tested(
    shards: Path,
    folder: Path,
    images: LabelledImages,
    how: ZhuAccuracy,
    fold: int | None,
    device: loop.Device,
) -> pd.DataFrame:
    """A row for each tested image of one model: the row in the index, and for each action what the model,
    the majority in its training and the truth say."""
    held_out = _held_out(how, fold)
    training = with_saved_architecture(replace(how.training, held_out=held_out))
    loaded = trained(
        folder,
        "actions",
        lambda resume: train(
            shards, folder, training, device=device, resume=resume, features=folder.parent / "features"
        ),
        wanted=describe(training, images.manifest),
        usual=ActionTraining(),
    )
    names = list(training.model.actions)
    predicted = pd.read_parquet((folder / PREDICTIONS).absolute()).query("split == 'test'")
    truth = images.labels(names).bool().numpy()
    majority = truth[held_out.splits(images.index) == "train"].mean(0) > 0.5
    thresholds = np.array([loaded.metrics["thresholds"][name] for name in names])
    said = predicted[names].to_numpy() > thresholds
    rows = predicted["index_row"].to_numpy()
    columns = {f"{name}/says": said[:, k] for k, name in enumerate(names)}
    columns |= {f"{name}/majority": np.full(len(rows), majority[k]) for k, name in enumerate(names)}
    columns |= {f"{name}/truth": truth[rows, k] for k, name in enumerate(names)}
    return pd.DataFrame({"index_row": rows, **columns})


def _summary(tested: pd.DataFrame, images: LabelledImages, how: ZhuAccuracy) -> dict[str, Any]:
    names = list(how.training.model.actions)
    said, majority, truth = (
        tested[[f"{name}/{what}" for name in names]].to_numpy(dtype=bool)
        for what in ("says", "majority", "truth")
    )
    groups = images.index["group"].to_numpy()[tested["index_row"]]
    right, lucky = (said == truth).mean(1), (majority == truth).mean(1)
    return {
        "images": len(tested),
        "model": agreement(said, truth, names),
        "majority": agreement(majority, truth, names),
        "all_negative": trivial_agreements(truth, truth, names)["all_negative"],
        "accuracy_interval": _interval(right, groups, how.seed),
        "over_majority": {
            "mean": float((right - lucky).mean()),
            **_interval(right - lucky, groups, how.seed),
        },
    }


def _interval(values: np.ndarray, groups: np.ndarray, seed: int) -> dict[str, float]:
    """A 95 % percentile interval of the mean, groups of images drawn with replacement."""
    _, number = np.unique(groups, return_inverse=True)
    total, count = np.bincount(number, weights=values), np.bincount(number)
    drawn = np.random.default_rng(seed).integers(0, len(total), (_DRAWS, len(total)))
    low, high = np.percentile(total[drawn].sum(1) / count[drawn].sum(1), (2.5, 97.5))
    return {"low": float(low), "high": float(high)}


def _table(results: Mapping[str, Any]) -> str:
    """Markdown: ours, what does not look, and the papers."""
    names = list(results["config"]["training"]["model"]["actions"])
    interval, over = results["accuracy_interval"], results["over_majority"]
    lines = [
        f"{results['images']:,} tested images of {results['data']}. Accuracy over all labels, F1 of each action, "
        "their mean, and the F1 of each image's labels.",
        "",
        f"| predictor | accuracy | {' | '.join(names)} | mF1 | F1_all |",
        f"|---|---|{'---|' * (len(names) + 2)}",
    ]
    for label, key in (("ours", "model"), ("majority", "majority"), ("all negative", "all_negative")):
        found = results[key]
        flat = {"accuracy": found["accuracy"], "mf1": found["mf1"], "f1_all": found["f1_all"], **found["f1"]}
        lines.append(_row(label, flat, names))
    lines += [_row(label, values, names) for label, values in results["papers"].items()]
    return "\n".join(
        [
            *lines,
            "",
            f"Ours: accuracy {interval['low']:.3f} to {interval['high']:.3f}; over the majority "
            f"{over['mean']:+.3f}, {over['low']:+.3f} to {over['high']:+.3f} (95 %, groups of images drawn with "
            "replacement).",
            "Accuracy (Zhu et al.) and F1_all (Xu et al.) are different quantities and must not be compared with "
            "each other; the papers' numbers are of the 4,572 test images of BDD-OIA.",
        ]
    )


def _row(label: str, values: Mapping[str, float], names: list[str]) -> str:
    cells = [f"{values[key]:.3f}" if key in values else "-" for key in ("accuracy", *names, "mf1", "f1_all")]
    return f"| {label} | {' | '.join(cells)} |"
