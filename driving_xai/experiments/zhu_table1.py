"""AUPC and log-odds of attention explainers under three kinds of masks (Zhu et al. 2024, Table 1)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_prep.shards.manifest import Manifest
from driving_xai import checkpoint as checkpoints
from driving_xai.evaluation.config import CONTROLS, ScoreConfig, Split
from driving_xai.evaluation.results import Results
from driving_xai.evaluation.run import score
from driving_xai.experiments.tables import write_results
from driving_xai.explain.options import OptionsOf
from driving_xai.metrics.aupc import AttentionBlocks, Masking, Order, Rule
from driving_xai.perturb import Fill
from driving_xai.training.recipe import Device

NAME = "zhu-table1"
METHODS = (
    "raw-attention",
    "attention-gradient",
    "norm-attention",
    "generic-attention",
    "attention-ig",
    "snna",
)
"""In the order of the paper's columns."""
MASKS: Mapping[str, str] = {"pixel": "", "token": "-token", "attention": "-attention"}
"""Rows of the paper to the endings of our measures."""
PAPER: Mapping[str, tuple[tuple[float, float], ...]] = {
    "pixel": (
        (672.95, -1.06),
        (669.8, -1.09),
        (661.15, -1.23),
        (654.52, -1.33),
        (651.65, -1.37),
        (644.45, -1.49),
    ),
    "token": (
        (680.97, -0.92),
        (666.0, -1.15),
        (658.38, -1.26),
        (652.55, -1.35),
        (653.1, -1.34),
        (643.02, -1.5),
    ),
    "attention": (
        (711.05, -0.48),
        (672.55, -1.05),
        (652.8, -1.35),
        (653.22, -1.35),
        (656.4, -1.3),
        (649.67, -1.4),
    ),
}
"""AUPC and log-odds of each method, on 1,000 test images of BDD-OIA."""


@dataclass(frozen=True, kw_only=True)
class ZhuTable1:
    """Which images are masked, and how."""

    checkpoint: str
    """An action model with a Vision Transformer, as `train actions` writes it. Results name it by its hash."""
    methods: tuple[str, ...] = METHODS
    """Names of `explain.METHODS`, each perhaps with a label, `snna@literal`."""
    options: OptionsOf = field(default_factory=dict)
    """Of methods by name or label: `{"snna": {"samples": 3}}`; see docs/methods.md."""
    masks: tuple[str, ...] = tuple(MASKS)
    target: str = "predicted"
    """The paper explains the highest logit."""
    rule: Rule = "sigmoid"
    order: Order = "most-first"
    attention_blocks: AttentionBlocks = "first"
    fill: Fill = "mean"
    """Of masked pixels; the paper says the image's mean colour. See `aupc.Masking`."""
    split: Split = "held-out"
    every: int = 1
    """Scores every n-th image."""
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.masks or set(self.masks) - set(MASKS):
            raise ValueError(f"masks is {list(self.masks)}; expected some of: {', '.join(MASKS)}")
        self.scoring()

    def scoring(self) -> ScoreConfig:
        """The run of `score` behind the table.

        Raises:
            ValueError: a setting is unknown, or changes nothing under these masks.
        """
        return ScoreConfig(
            methods=self.methods,
            options=self.options,
            measures=tuple(f"{name}{MASKS[mask]}" for mask in self.masks for name in ("aupc", "log-odds")),
            target=self.target,
            fill=self.fill,
            masking=Masking(
                rule=self.rule, order=self.order, attention_blocks=self.attention_blocks, fill=self.fill
            ),
            split=self.split,
            every=self.every,
            batch_size=self.batch_size,
            seed=self.seed,
        )


def run(
    shards: Path,
    out: Path,
    how: ZhuTable1,
    *,
    device: Device = "cpu",
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Scores every method under every mask, or takes the scores that `out` holds.

    Args:
        shards: labelled images.
        out: `scores/`, `results.json` and `table.md`.

    Raises:
        CheckpointError: the checkpoint cannot be read, or holds another kind of model.
    """
    loaded = checkpoints.load(Path(how.checkpoint), device=device, kind="actions")
    folder = out / "scores"
    found = score(loaded, shards, folder, how.scoring(), resume=folder.exists(), on_progress=on_progress)
    results = {
        "experiment": NAME,
        "config": {name: value for name, value in asdict(how).items() if name != "checkpoint"},
        "checkpoint_sha256": loaded.sha256,
        "shards_sha256": Manifest.load(shards).sha256,
        "measures": found.summary["measures"],
        "images": found.summary["data"]["scored"],
        "error": found.summary["prediction"]["error"],
        "rows": _rows(found, how),
        "differences": _differences(found, how),
    }
    write_results(out, results, _table(results))
    return results


def _rows(found: Results, how: ZhuTable1) -> list[dict[str, Any]]:
    """A row for each mask and method: ours with intervals, the paper's where it has one.

    The paper masks the most salient parts first.
    """
    values = {(each["measure"], each["method"]): each["value"] for each in found.summary["scores"]}
    rows = []
    for mask in how.masks:
        theirs = dict(zip(METHODS, PAPER[mask], strict=True)) if how.order == "most-first" else {}
        for method in (*how.methods, *CONTROLS):
            ours = {name: values[f"{name}{MASKS[mask]}", method] for name in ("aupc", "log-odds")}
            paper = dict(zip(("aupc", "log-odds"), theirs[method], strict=True)) if method in theirs else None
            rows.append({"mask": mask, "method": method, **ours, "paper": paper})
    return rows


def _differences(found: Results, how: ZhuTable1) -> list[dict[str, Any]]:
    """Every two methods under each mask: the first less the second, in the same resampled sets of images."""
    values = {
        (each["measure"], each["method"], each["other"]): each["value"]
        for each in found.summary["comparisons"]
    }
    return [
        {
            "mask": mask,
            "method": method,
            "other": other,
            **{name: values[f"{name}{MASKS[mask]}", method, other] for name in ("aupc", "log-odds")},
        }
        for mask in how.masks
        for method, other in itertools.combinations(how.methods, 2)
    ]


def _table(results: Mapping[str, Any]) -> str:
    lines = [
        f"AUPC (sum of ten accuracies in percent) and log-odds on {results['images']} images. {_done(results['config'])} "
        "In brackets the 95 % interval of the block bootstrap. The paper's are of its own network "
        "on 1,000 images of BDD-OIA.",
        "",
        "| mask | method | AUPC | paper | log-odds | paper |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        paper = row["paper"] or {"aupc": None, "log-odds": None}
        cells = [
            row["mask"],
            row["method"],
            _interval(row["aupc"], 1),
            _number(paper["aupc"], 1),
            _interval(row["log-odds"], 2),
            _number(paper["log-odds"], 2),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if results["differences"]:
        lines += ["", "The first less the second, in the same resampled images:", ""]
        lines += ["| mask | first | second | AUPC | log-odds |", "|---|---|---|---|---|"]
    for each in results["differences"]:
        cells = [each["mask"], each["method"], each["other"]]
        cells += [_interval(each["aupc"], 1), _interval(each["log-odds"], 2)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _done(how: Mapping[str, Any]) -> str:
    """How parts were masked, and when an output counted as predicted."""
    most_first = how["order"] == "most-first"
    order = "most salient parts first: lower" if most_first else "least salient parts first: higher"
    pixels = [f"masked pixels are {how['fill']}"] if "pixel" in how["masks"] else []
    blocks = {"first": "in the first block", "all": "in all blocks"}[how["attention_blocks"]]
    attention = [f"attention is masked {blocks}"] if "attention" in how["masks"] else []
    parts = [f"The {order} is more faithful", *pixels, *attention]
    return f"{'; '.join(parts)}; an output is predicted where the {how['rule']} is over 1/2."


def _interval(value: Mapping[str, Any], decimals: int) -> str:
    mean = _number(value["mean"], decimals)
    if value["low"] is None:
        return mean
    return f"{mean} [{_number(value['low'], decimals)}, {_number(value['high'], decimals)}]"


def _number(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"
