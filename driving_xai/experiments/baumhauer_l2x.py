"""L2X at the image with two networks, by soft and by hard explanations (Baumhauer et al. 2021, section 4.1)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from driving_xai.experiments.baumhauer import heading, unread_images
from driving_xai.experiments.baumhauer_features import (
    Device,
    Network,
    OnProgress,
    StandIn,
    pretrained_stand_in,
    stand_in_images,
)
from driving_xai.experiments.image_sets import ResizedImages, from_shards
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
from driving_xai.experiments.tables import markdown_header, markdown_row, write_results
from driving_xai.models.frozen_cnn import frozen_cnn
from driving_xai.models.small_cnn import SmallCNN
from driving_xai.models.subset_sampling import L2XConfig, L2XModel, Stack, TemperatureRule
from driving_xai.training.bounded_logit import Labels, Schedule, fit, judge
from driving_xai.training.feature_cache import network_sha256
from driving_xai.types import Frames

_ROWS: Mapping[str, str] = {
    "soft": "L2X, soft explanations",
    "hard": "L2X, hard explanations",
    "random": "the same judge, random patches",
    "all": "the same judge, all patches",
}
_PAPER = {"soft": 0.96, "hard": 0.5}


@dataclass(frozen=True, kw_only=True)
class TwoNetworks:
    """What selects, what judges, and how they learn."""

    network: Network = field(default_factory=Network)
    """Of both stacks, each with its own copy; its `precision` has no effect: edited images have no kept features."""
    stand_in: StandIn = field(default_factory=StandIn)
    subset_size: int = 8
    """Patches that are left, of 49."""
    tau: float = 0.1
    temperature: TemperatureRule = "divide"
    learns: Literal["heads", "all"] = "heads"
    """Both stacks stay frozen, as in the paper's later experiments; or all learns, of the stand-in's small networks only."""
    schedule: Schedule = field(default_factory=lambda: Schedule(epochs=3))
    seeds: int = 4

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.subset_size < 1 or not self.tau > 0:
            raise ValueError(
                f"seeds is {self.seeds}, subset_size {self.subset_size}, tau {self.tau}; expected 1 or more, 1 or "
                "more, and over 0"
            )


@dataclass(frozen=True)
class _Pictures:
    """Images that are read as frames when they are asked for."""

    images: ResizedImages

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, rows: np.ndarray) -> Frames:
        return self.images.read(rows).float() / 255


def run(
    data: Path | None,
    out: Path,
    how: TwoNetworks,
    *,
    device: Device = "cpu",
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Trains L2X for every seed that `out` does not hold yet.

    Args:
        data: shards of `prep image-folder`; None for the stand-in.
        out: gets `runs/` for each seed, `results.json` and `table.md`.

    Returns:
        What `results.json` holds.
    """
    reasons = unread_images(data) | {"network.precision": "edited images have no kept features"}
    if data is not None:
        reasons["learns"] = "a network of timm is frozen here"
    require_unset(how, reasons)
    images = (
        stand_in_images(how.stand_in) if data is None else from_shards(data, size_px=how.network.image_px)
    )
    stack, name = _stack(data, out, how)
    plan = {
        "experiment": "baumhauer-l2x",
        "how": planned(how),
        "images": images.sha256,
        "network": network_sha256(stack, {"stack": name}),
    }
    runs = each_run(
        out / "runs", plan, how.seeds, lambda seed: _evaluated(images, stack, how, seed), on_progress
    )
    results = {
        "experiment": "baumhauer-l2x",
        "config": asdict(how),
        "data": images.describe(),
        "stand_in": data is None,
        "network": name,
        "means": {name: {"accuracy": asdict(Mean.of(values_of(runs, name, "accuracy")))} for name in _ROWS},
        "tests": [paired(runs, "hard", other, "accuracy") for other in ("soft", "random", "all")],
        "paper": _PAPER,
        "runs": runs,
    }
    write_results(out, results, _text(results))
    return results


def _stack(data: Path | None, out: Path, how: TwoNetworks) -> tuple[Stack, str]:
    if data is None:
        stack = pretrained_stand_in(out / "features", how.stand_in)
        assert isinstance(stack, SmallCNN)
        return stack, "small CNN that learnt from other digits"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # Of weights "random": another call finds the same network.
        return frozen_cnn(
            how.network.name, how.network.weights
        ), f"{how.network.name}, weights {how.network.weights}"


def _evaluated(images: ResizedImages, stack: Stack, how: TwoNetworks, seed: int) -> Found:
    config = L2XConfig(
        classes=images.label_names,
        subset_size=how.subset_size,
        tau=how.tau,
        temperature=how.temperature,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = L2XModel(config, stacks=(copy.deepcopy(stack), copy.deepcopy(stack)))
    heads = [*model.explain.parameters(), *model.classify.parameters()]
    learns = heads if how.learns == "heads" else None
    pictures, tested = _Pictures(images), images.rows("test")
    fit(model, pictures, images.classes, images.rows("train"), how.schedule, seed=seed, parameters=learns)
    hard, soft = (
        judge(model, pictures, images.classes, tested, explanation=kind, seed=seed)
        for kind in ("hard", "soft")
    )
    return {
        "soft": {"accuracy": soft.accuracy},
        "hard": {"accuracy": hard.accuracy},
        **_controls(model, pictures, images.classes, tested, seed),
    }


@torch.no_grad()
def _controls(model: L2XModel, pictures: _Pictures, labels: Labels, rows: np.ndarray, seed: int) -> Found:
    """What the judge makes of as many patches at random, and of all."""
    draw, right = torch.Generator().manual_seed(seed), {"random": 0, "all": 0}
    for part in np.array_split(rows, max(1, len(rows) // 256)):
        frames, wanted = pictures.batch(part), labels[torch.from_numpy(part)]
        grid = model.selection(frames[:1]).shape[1:]
        scattered = (
            torch.rand(len(frames), grid.numel(), generator=draw).argsort(1) < model.config.subset_size
        )
        for name, mask in (("random", scattered), ("all", torch.ones_like(scattered))):
            scores = model.judge(frames, mask.view(-1, *grid).float())
            right[name] += int((scores.argmax(1) == wanted).sum())
    return {name: {"accuracy": count / len(rows)} for name, count in right.items()}


def _text(results: Mapping[str, Any]) -> str:
    how = results["config"]
    lines = [
        heading(
            results, f"Two copies; {how['subset_size']} patches; {how['seeds']} runs; mean ± standard error."
        ),
        "",
        *markdown_header("judged by", ("accuracy", "paper, cats vs dogs")),
    ]
    for name, title in _ROWS.items():
        found, paper = results["means"][name]["accuracy"], results["paper"].get(name)
        cells = (
            f"{found['mean']:.4f} ± {found['standard_error']:.4f}",
            "" if paper is None else f"{paper:g}",
        )
        lines.append(markdown_row(title, cells))
    lines += ["", DIFFERENCES, "", *markdown_header("hard less", ("accuracy",))]
    lines += [markdown_row(test["theirs"], (tested_text(test, ".4f"),)) for test in results["tests"]]
    return "\n".join(lines)
