"""Accuracy of bounded logit attention and L2X that tell 3 from 8, trained from scratch (Baumhauer et al. 2021, 4.1)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from data_prep.shards.manifest import canonical_json
from driving_xai.errors import DataError
from driving_xai.experiments.baumhauer_features import OnProgress
from driving_xai.experiments.image_sets import ResizedImages, from_shards, in_memory
from driving_xai.experiments.recipes import planned, require_unset
from driving_xai.experiments.runs import (
    Found,
    Mean,
    each_run,
    interval_text,
    paired,
    unpaired,
    values_of,
)
from driving_xai.experiments.stand_ins import alone, handwritten_digits
from driving_xai.experiments.tables import markdown_header, markdown_row, p_text, write_results
from driving_xai.models.bounded_logit import BoundedLogitConfig, BoundedLogitModel, Thresholding
from driving_xai.models.subset_sampling import L2XConfig, L2XModel
from driving_xai.training.bounded_logit import FrameExamples, Schedule, fit, judge

CLASSES = ("3", "8")
NetworkName = Literal["baseline", "bla", "bla-t", "l2x", "l2x-multiplied"]
PAPER_STEPS = 1125
"""Three epochs of 11,982 images in batches of 32."""
_ROWS: Mapping[str, str] = {
    "baseline": "baseline",
    "bla": "BLA",
    "bla-t": "BLA-T",
    "l2x": "L2X, k = 4",
    "l2x-multiplied": "L2X, k = 4, tau multiplies",
}
_PAPER = {
    "baseline": "0.994 ± 1.53e-3 (Chen et al.: 0.997)",
    "bla-t": "0.993 ± 3.86e-4",
    "l2x": "0.958 (Chen et al.)",
}


@dataclass(frozen=True, kw_only=True)
class Mnist:
    """What is trained, and how long."""

    networks: tuple[NetworkName, ...] = ("baseline", "bla", "bla-t", "l2x", "l2x-multiplied")
    image_px: int = 28
    theta: float = 0.1
    gamma: float = 1 / 49
    """As the paper: it gives an even selection no weight at all."""
    thresholding: Thresholding = "excess"
    subset_size: int = 4
    """Patches of 4 x 4 pixels that L2X keeps."""
    tau: float = 0.1
    batch_size: int = 32
    learning_rate: float = 1e-3
    steps: int = PAPER_STEPS
    """Fewer images get as many more epochs."""
    seeds: int = 20

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.steps < 1:
            raise ValueError(f"seeds is {self.seeds}, steps {self.steps}; expected 1 or more")
        if "baseline" not in self.networks or len(set(self.networks)) < len(self.networks):
            raise ValueError(
                f"networks are {', '.join(self.networks)}; expected baseline among them, none twice"
            )

    def schedule(self, images: int) -> Schedule:
        """As many whole epochs as come nearest to the steps."""
        epochs = max(1, round(self.steps / -(-images // self.batch_size)))
        return Schedule(epochs=epochs, batch_size=self.batch_size, learning_rate=self.learning_rate)


def run(
    data: Path | None,
    out: Path,
    how: Mnist,
    *,
    device: Literal["cpu"] = "cpu",
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Trains five networks for every seed that `out` does not hold yet.

    Args:
        data: shards of `prep image-folder` with the classes 3 and 8; None for scikit-learn's digits.
        out: gets `runs/` for each seed, `results.json` and `table.md`.
        device: the networks are too small for a GPU.

    Raises:
        DataError: the shards have other classes.
    """
    _require_used(how)
    images = _stand_in(how.image_px) if data is None else from_shards(data, size_px=how.image_px)
    if images.label_names != CLASSES:
        raise DataError(
            f"{data}: has the classes {', '.join(images.label_names)}; expected folders named 3 and 8"
        )
    frames = FrameExamples(images.read(np.arange(len(images))))
    plan = {"experiment": "baumhauer-mnist", "how": planned(how), "images": images.sha256}
    runs = each_run(out / "runs", plan, how.seeds, lambda seed: _run(images, frames, how, seed), on_progress)
    quantities = ("accuracy", "loss", "accuracy_soft")
    results = {
        "experiment": "baumhauer-mnist",
        "config": asdict(how),
        "data": images.describe(),
        "stand_in": data is None,
        "epochs": how.schedule(len(images.rows("train"))).epochs,
        "means": {
            name: {each: asdict(Mean.of(values_of(runs, name, each))) for each in quantities}
            for name in how.networks
        },
        "tests": [
            compare(runs, name, "baseline", "accuracy")
            for name in how.networks
            if name != "baseline"
            for compare in (unpaired, paired)
        ],
        "paper": _PAPER,
        "runs": runs,
    }
    write_results(out, results, _text(results))
    return results


def _require_used(how: Mnist) -> None:
    reasons: dict[str, str] = {}
    if not {"bla", "bla-t"} & set(how.networks):
        reasons |= dict.fromkeys(("theta", "gamma", "thresholding"), "networks holds neither bla nor bla-t")
    if not {"l2x", "l2x-multiplied"} & set(how.networks):
        reasons |= dict.fromkeys(("subset_size", "tau"), "networks holds no l2x")
    require_unset(how, reasons)


def _stand_in(size_px: int) -> ResizedImages:
    train, test = handwritten_digits().only((3, 8)).split(0.6)
    decisive = {"data": "scikit-learn digits", "classes": CLASSES, "size_px": size_px}
    return in_memory(
        "stand-in: scikit-learn's handwritten digits, 8 x 8 pixels enlarged",
        CLASSES,
        (alone(train, size_px=size_px), train.labels),
        (alone(test, size_px=size_px), test.labels),
        sha256=hashlib.sha256(canonical_json(decisive)).hexdigest(),
    )


def _run(images: ResizedImages, frames: FrameExamples, how: Mnist, seed: int) -> Found:
    schedule = how.schedule(len(images.rows("train")))
    found: dict[str, dict[str, float]] = {}
    for name in how.networks:
        network = _network(name, how, seed)
        fit(network, frames, images.classes, images.rows("train"), schedule, seed=seed)
        hard, soft = (
            judge(network, frames, images.classes, images.rows("test"), explanation=kind, seed=seed)
            for kind in ("hard", "soft")
        )
        found[name] = {**hard._asdict(), "accuracy_soft": soft.accuracy, "loss_soft": soft.loss}
    return found


def _network(name: NetworkName, how: Mnist, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name.startswith("l2x"):
            rule = "multiply" if name == "l2x-multiplied" else "divide"
            config = L2XConfig(classes=CLASSES, subset_size=how.subset_size, tau=how.tau, temperature=rule)  # type: ignore[arg-type]
            return L2XModel(config)
        attention = "none" if name == "baseline" else name
        return BoundedLogitModel(
            BoundedLogitConfig(
                classes=CLASSES,
                attention=attention,  # type: ignore[arg-type]
                theta=how.theta,
                gamma=how.gamma,
                thresholding=how.thresholding,
                dropout=0.0,
                units="difference",
            )
        )


def _text(results: Mapping[str, Any]) -> str:
    data, how = results["data"], results["config"]
    lines = [
        f"Data: {data['name']}; 3 against 8, {data['train']:,} images to train on, {data['test']:,} to test. "
        f"{results['epochs']} epochs, about {how['steps']:,} steps (the paper: {PAPER_STEPS:,}); {how['seeds']} runs; "
        "mean ± standard deviation.",
        "",
        *markdown_header("network", ("accuracy, hard", "accuracy, soft", "loss, hard", "paper, hard")),
    ]
    for name, row in results["means"].items():
        cells = [
            *(
                f"{row[each]['mean']:.4f} ± {row[each]['standard_error'] * how['seeds'] ** 0.5:.1e}"
                for each in ("accuracy", "accuracy_soft", "loss")
            ),
            results["paper"].get(name, "-"),
        ]
        lines.append(markdown_row(_ROWS[name], cells))
    lines += [
        "",
        "Accuracy (hard) less the baseline's, with 95 % intervals: Welch's beside the Mann-Whitney U test, which take "
        "the two groups of runs as independent, and Student's beside Wilcoxon's signed-rank test, paired over runs. "
        "Effects are Cliff's delta and the rank-biserial correlation. No interval of a single run, no signed-rank test "
        "below 8; the paper's p (Mann-Whitney) for BLA-T is 0.26.",
        "",
        *markdown_header("network", ("difference", "taken as", "95 % interval", "p", "effect")),
        *(_tested(test) for test in results["tests"]),
    ]
    return "\n".join(lines)


def _tested(test: Mapping[str, Any]) -> str:
    taken_as = "independent" if test["test"] == "mann-whitney-u" else "paired"
    effect = test["cliffs_delta"] if taken_as == "independent" else test["rank_biserial"]
    cells = (
        f"{test['difference']:+.4f}",
        taken_as,
        interval_text(test, ".4f"),
        p_text(test["p"]),
        "-" if effect is None else f"{effect:+.2f}",
    )
    return markdown_row(_ROWS[test["ours"]], cells)
