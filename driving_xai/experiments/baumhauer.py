"""Accuracy and loss of bounded logit attention and L2X on frozen features (Baumhauer et al. 2021, Table 1)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from driving_xai.experiments.baumhauer_features import Device, Frozen, Network, OnProgress, StandIn, frozen
from driving_xai.experiments.figures import Value, interval_plot, save
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
from driving_xai.models.bounded_logit import AttentiveHead, BoundedLogitConfig, HardRule, Thresholding
from driving_xai.training.bounded_logit import (
    PairedTraining,
    Schedule,
    Variant,
    fit,
    judge,
    train_baseline,
    train_variant,
)

LEVEL = 0.05
"""Of significance, the paper's."""
COLUMNS = {
    "baseline": "BL",
    "baseline-longer": "BL, trained on",
    "l2x-f-multiplied": "L2X-F, tau multiplies",
    "l2x-f": "L2X-F",
    "bla": "BLA",
    "bla-t": "BLA-T",
    "bla-ph": "BLA-PH",
}
_VARIANTS: Mapping[str, Variant] = {
    "l2x-f-multiplied": "l2x-f",
    "l2x-f": "l2x-f",
    "bla": "bla",
    "bla-t": "bla-t",
    "bla-ph": "bla-ph",
}
_TESTS = (
    ("baseline-longer", "baseline"),
    ("l2x-f", "baseline"),
    ("l2x-f", "baseline-longer"),
    ("l2x-f", "l2x-f-multiplied"),
    ("bla", "baseline"),
    ("bla", "baseline-longer"),
    ("bla", "l2x-f"),
    ("bla-t", "baseline"),
    ("bla-t", "baseline-longer"),
    ("bla-t", "l2x-f"),
    ("bla-t", "l2x-f-multiplied"),
    ("bla-t", "bla"),
    ("bla-ph", "baseline"),
    ("bla-ph", "bla-t"),
)
# Mean and 100 times the standard error of 20 runs, Table 1; in the order BL, L2X-F, BLA, BLA-T, BLA-PH.
_PAPER = {
    ("A", "accuracy"): ((0.9912, 0.01), (0.9767, 0.12), (0.9902, 0.02), (0.9905, 0.01), (0.9902, 0.02)),
    ("B", "accuracy"): ((0.8357, 0.03), (0.7730, 0.24), (0.8234, 0.07), (0.8269, 0.03), (0.8265, 0.07)),
    ("C", "accuracy"): ((0.6794, 0.07), (0.6451, 0.12), (0.6722, 0.09), (0.6801, 0.06), (0.6650, 0.62)),
    ("A", "loss"): ((0.0237, 0.03), (0.0800, 0.33), (0.0349, 0.09), (0.0742, 0.15), (0.0562, 0.40)),
    ("B", "loss"): ((0.5313, 0.08), (1.4042, 0.76), (0.8357, 0.33), (1.1319, 0.29), (1.0649, 2.53)),
    ("C", "loss"): ((1.2988, 0.09), (2.3237, 1.37), (1.7809, 0.59), (2.1510, 1.09), (2.1714, 1.63)),
}
_PAPER_COLUMNS = ("baseline", "l2x-f-multiplied", "bla", "bla-t", "bla-ph")
DATA_SETS = "A cats vs dogs, B Stanford dogs, C Caltech birds"

_NOTES = (
    "† no significant difference to BL at 0.05, Wilcoxon's signed-rank test over the paired runs.",
    "? not tested against BL: fewer than 8 runs, or no pair of the tests below. Of one run there is no error.",
    "BL, trained on: the baseline for as many more epochs as an explanation's head had.",
    f"Paper: {DATA_SETS}; its L2X-F multiplies by tau.",
)


@dataclass(frozen=True, kw_only=True)
class Explanations:
    """How explanations are made and trained; see `models.bounded_logit.BoundedLogitConfig`."""

    theta: float = 0.1
    gamma: float | None = None
    thresholding: Thresholding = "excess"
    hard: HardRule = "maximal"
    subset_size: int = 8
    tau: float = 0.1
    dropout: float = 0.2
    baseline: Schedule = field(default_factory=Schedule)
    augmented: Schedule = field(default_factory=Schedule)
    seeds: int = 20
    """Runs; a run's baseline and its explanations share a seed."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds is {self.seeds}; expected 1 or more")

    def training(self, classes: tuple[str, ...], channels: int, *, multiplied: bool) -> PairedTraining:
        """The recipe for these classes and features."""
        head = BoundedLogitConfig(
            classes=classes,
            theta=self.theta,
            gamma=self.gamma,
            thresholding=self.thresholding,
            hard=self.hard,
            subset_size=self.subset_size,
            tau=self.tau,
            temperature="multiply" if multiplied else "divide",
            dropout=self.dropout,
        )
        return PairedTraining(head=head, channels=channels, baseline=self.baseline, augmented=self.augmented)


@dataclass(frozen=True, kw_only=True)
class Table1:
    """Accuracy and loss with and without explanations."""

    network: Network = field(default_factory=Network)
    stand_in: StandIn = field(default_factory=StandIn)
    explanations: Explanations = field(default_factory=Explanations)


def table1(
    data: Path | None,
    out: Path,
    how: Table1,
    *,
    device: Device = "cpu",
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Trains a baseline, a control and five explanations for every seed that `out` does not hold yet.

    Args:
        data: shards of `prep image-folder`; None for the stand-in.
        out: gets `runs/` for each seed, `features/`, `results.json`, `table.md`, and Fig. 3 as `fig3-error` and
            `fig3-loss`, each SVG and PNG.

    Returns:
        What `results.json` holds.
    """
    require_unset(how, unread_images(data))
    source = frozen(data, out, how.network, how.stand_in, device=device)
    plan = {
        "experiment": "baumhauer-table1",
        "columns": list(COLUMNS),
        "how": planned(how.explanations),
        **source.plan,
    }
    runs = each_run(
        out / "runs",
        plan,
        how.explanations.seeds,
        lambda seed: _evaluated(source, how.explanations, seed),
        on_progress,
    )
    quantities = ("accuracy", "loss")
    measured = (*quantities, "accuracy_soft", "loss_soft", "cells")
    results = {
        "experiment": "baumhauer-table1",
        "config": asdict(how),
        **source.described,
        "means": {
            name: {each: asdict(Mean.of(values_of(runs, name, each))) for each in measured}
            for name in COLUMNS
        },
        "tests": [paired(runs, ours, theirs, each) for each in quantities for ours, theirs in _TESTS],
        "paper": {
            f"{which} {each}": dict(zip(_PAPER_COLUMNS, row, strict=True))
            for (which, each), row in _PAPER.items()
        },
        "runs": runs,
    }
    write_results(out, results, _table1_text(results))
    for quantity in ("accuracy", "loss"):
        save(_figure3(results, quantity), out / f"fig3-{'error' if quantity == 'accuracy' else quantity}")
    return results


def _figure3(results: Mapping[str, Any], quantity: str) -> Figure:
    """One half of Fig. 3: error rate or loss of each column, with its interval."""
    values = []
    for name, title in COLUMNS.items():
        found = results["means"][name][quantity]
        mean, (low, high) = found["mean"], (found["interval"][end] for end in ("low", "high"))
        if quantity == "accuracy":
            mean, low, high = 1 - mean, None if high is None else 1 - high, None if low is None else 1 - low
        values.append(Value(name=title, mean=mean, low=low, high=high))
    label = "error rate" if quantity == "accuracy" else "loss in nats"
    return interval_plot(
        values, title="Table 1 as a figure", x_label=f"{label}; mean and 95 % interval over runs"
    )


def unread_images(data: Path | None) -> dict[str, str]:
    """Settings of images and network without effect on this data, and why."""
    if data is None:
        return {"network": "the stand-in has a network of its own; see stand_in"}
    return {"stand_in": "images are given"}


def heads_of_seed(
    source: Frozen, how: Explanations, seed: int, *, names: Sequence[str] = tuple(COLUMNS)
) -> dict[str, AttentiveHead]:
    """The baseline of a seed and the explanations that start from it, by name of the column."""
    given = (source.features, source.images.classes, source.images.rows("train"))
    corrected, literal = (
        how.training(source.images.label_names, source.channels, multiplied=flag) for flag in (False, True)
    )
    heads = {"baseline": train_baseline(corrected, *given, seed=seed)}
    for name in names:
        if name == "baseline-longer":
            # An explanation's head goes on learning from the baseline's: so much comes of that alone.
            heads[name] = copy.deepcopy(heads["baseline"])
            fit(heads[name], *given, how.augmented, seed=seed)
        elif name in _VARIANTS:
            recipe = literal if name == "l2x-f-multiplied" else corrected
            heads[name] = train_variant(_VARIANTS[name], heads["baseline"], recipe, *given, seed=seed)
    return heads


def _evaluated(source: Frozen, how: Explanations, seed: int) -> Found:
    images = source.images
    found = {}
    for name, head in heads_of_seed(source, how, seed).items():
        by_hard = judge(head, source.features, images.classes, images.rows("test"))
        by_soft = judge(
            head, source.features, images.classes, images.rows("test"), explanation="soft", seed=seed
        )
        found[name] = {
            **by_hard._asdict(),
            "accuracy_soft": by_soft.accuracy,
            "loss_soft": by_soft.loss,
            "cells": _selected(head, source),
        }
    return found


@torch.no_grad()
def _selected(head: AttentiveHead, source: Frozen) -> float:
    """Mean number of cells that a hard explanation has; all of them without attention."""
    if head.explain is None:
        return float(source.features.cells.shape[1])
    parts = np.array_split(source.images.rows("test"), max(1, len(source.images.rows("test")) // 256))
    counts = [(head.select(source.features.batch(rows)) > 0).sum(1) for rows in parts]
    return float(torch.cat(counts).double().mean())


def _table1_text(results: Mapping[str, Any]) -> str:
    means, seeds = results["means"], results["config"]["explanations"]["seeds"]
    lines = [heading(results, f"{seeds} runs; mean ± 100 x standard error, as the paper; hard explanations.")]
    for quantity in ("accuracy", "loss"):
        lines += ["", *markdown_header(quantity, COLUMNS.values())]
        cells = (_cell(means[name][quantity], seeds) + _marks(results, name, quantity) for name in COLUMNS)
        lines.append(markdown_row("ours", cells))
        for which in "ABC":
            paper = results["paper"][f"{which} {quantity}"]
            cells = (f"{paper[n][0]:.4f} ± {paper[n][1]:.2f}" if n in paper else "-" for n in COLUMNS)
            lines.append(markdown_row(f"paper, {which}", cells))
    lines += ["", *_NOTES, "", *markdown_header("besides", COLUMNS.values())]
    for quantity, title in (("accuracy_soft", "accuracy, soft"), ("loss_soft", "loss, soft")):
        lines.append(markdown_row(title, (_cell(means[name][quantity], seeds) for name in COLUMNS)))
    lines.append(markdown_row("cells selected", (f"{means[name]['cells']['mean']:.1f}" for name in COLUMNS)))
    lines += ["", DIFFERENCES, "", *markdown_header("difference", ("accuracy", "loss"))]
    for ours, theirs in _TESTS:
        by = {t["quantity"]: t for t in results["tests"] if (t["ours"], t["theirs"]) == (ours, theirs)}
        found = (tested_text(by[each], ".4f") for each in ("accuracy", "loss"))
        lines.append(markdown_row(f"{COLUMNS[ours]} - {COLUMNS[theirs]}", found))
    return "\n".join(lines)


def heading(results: Mapping[str, Any], said: str) -> str:
    """The table's first line: data, network, and what is said of the numbers."""
    data = results["data"]
    return (
        f"Data: {data['name']}, {len(data['classes'])} classes, {data['train']:,} images to train on, "
        f"{data['test']:,} to test. Network: {results['network']}, frozen. {said}"
    )


def _cell(mean: Mapping[str, float], runs: int) -> str:
    error = f"{100 * mean['standard_error']:.2f}" if runs > 1 else "-"
    return f"{mean['mean']:.4f} ± {error}"


def _marks(results: Mapping[str, Any], name: str, quantity: str) -> str:
    if name == "baseline":
        return ""
    for test in results["tests"]:
        same = (test["ours"], test["theirs"], test["quantity"]) == (name, "baseline", quantity)
        if same and test["p"] is not None:
            return " †" if test["p"] >= LEVEL else ""
    return " ?"
