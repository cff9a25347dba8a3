"""Bounded logit attention on frozen features: what an explanation costs, and whom it agrees with.

Tables 1 and 2 of Baumhauer et al. 2021.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from driving_xai.experiments.frozen_features import Device, Frozen, Network, OnProgress, StandIn, frozen
from driving_xai.experiments.seeded_runs import Found, Mean, each_run, p_text, paired, values_of, write_text
from driving_xai.faithfulness.lime_correlation import PatchLIME, lime_rank_correlation
from driving_xai.models.bounded_logit import AttentiveHead, BoundedLogitConfig, HardRule, Thresholding
from driving_xai.training.bounded_logit import (
    PairedTraining,
    Schedule,
    Variant,
    judge,
    train_baseline,
    train_variant,
)

LEVEL = 0.05
"""Of significance, the paper's."""
COLUMNS = {
    "baseline": "BL",
    "l2x-f-multiplied": "L2X-F, tau multiplies",
    "l2x-f": "L2X-F",
    "bla": "BLA",
    "bla-t": "BLA-T",
    "bla-ph": "BLA-PH",
}
_TESTS = (
    ("l2x-f", "baseline"),
    ("l2x-f", "l2x-f-multiplied"),
    ("bla", "baseline"),
    ("bla", "l2x-f"),
    ("bla-t", "baseline"),
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
_PAPER_CORRELATIONS = {"A": (0.47, 0.37), "B": (0.33, 0.47), "C": (0.08, 0.37)}
_SETS = "A cats vs dogs, B Stanford dogs, C Caltech birds"


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
    """Trains a baseline and five explanations of it for every seed that `out` does not hold yet.

    Args:
        data: shards of `prep image-folder`; None for the stand-in.
        out: gets `runs/` for each seed, `features/`, `results.json` and `table.md`.

    Returns:
        What `results.json` holds.
    """
    source = frozen(data, out, how.network, how.stand_in, device=device)
    plan = {"experiment": "baumhauer-table1", "how": _without_seeds(how.explanations), **source.plan}
    runs = each_run(
        out / "runs",
        plan,
        how.explanations.seeds,
        lambda seed: _judged(source, how.explanations, seed),
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
    write_text(out, results, _table1_text(results))
    return results


def _without_seeds(how: Explanations) -> dict[str, Any]:
    """What decides a run: how many others there are does not."""
    return {name: value for name, value in asdict(how).items() if name != "seeds"}


def heads_of_seed(source: Frozen, how: Explanations, seed: int) -> dict[str, AttentiveHead]:
    """The baseline of a seed and the explanations that start from it, by name of the column."""
    classes = source.images.classes
    corrected, literal = (how.training(classes, source.channels, multiplied=flag) for flag in (False, True))
    given = (source.features, source.images.labels, source.images.train)
    baseline = train_baseline(corrected, *given, seed=seed)
    variants: tuple[Variant, ...] = ("l2x-f", "bla", "bla-t", "bla-ph")
    heads: dict[str, AttentiveHead] = {"baseline": baseline}
    heads["l2x-f-multiplied"] = train_variant("l2x-f", baseline, literal, *given, seed=seed)
    for name in variants:
        heads[name] = train_variant(name, baseline, corrected, *given, seed=seed)
    return heads


def _judged(source: Frozen, how: Explanations, seed: int) -> Found:
    images = source.images
    found = {}
    for name, head in heads_of_seed(source, how, seed).items():
        by_hard = judge(head, source.features, images.labels, images.test)
        by_soft = judge(head, source.features, images.labels, images.test, explanation="soft", seed=seed)
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
    parts = np.array_split(source.images.test, max(1, len(source.images.test) // 256))
    counts = [(head.select(source.features.batch(rows)) > 0).sum(1) for rows in parts]
    return float(torch.cat(counts).double().mean())


def _table1_text(results: Mapping[str, Any]) -> str:
    means, seeds = results["means"], results["config"]["explanations"]["seeds"]
    lines = [
        _heading(results, f"{seeds} runs; mean ± 100 x standard error, as the paper; hard explanations.")
    ]
    for quantity in ("accuracy", "loss"):
        lines += ["", *_header(quantity, COLUMNS.values())]
        cells = (_cell(means[name][quantity]) + _marks(results, name, quantity) for name in COLUMNS)
        lines.append(_row("ours", cells))
        for which in "ABC":
            paper = results["paper"][f"{which} {quantity}"]
            cells = (f"{paper[n][0]:.4f} ± {paper[n][1]:.2f}" if n in paper else "-" for n in COLUMNS)
            lines.append(_row(f"paper, {which}", cells))
    lines += [
        "",
        "† no significant difference to BL at 0.05, Wilcoxon's signed-rank test over the paired runs.",
    ]
    lines += [f"Paper: {_SETS}; its L2X-F multiplies by tau.", "", *_header("besides", COLUMNS.values())]
    for quantity, title in (("accuracy_soft", "accuracy, soft"), ("loss_soft", "loss, soft")):
        lines.append(_row(title, (_cell(means[name][quantity]) for name in COLUMNS)))
    lines.append(_row("cells selected", (f"{means[name]['cells']['mean']:.1f}" for name in COLUMNS)))
    lines += ["", *_header("test", ("difference in accuracy", "p", "difference in loss", "p"))]
    for ours, theirs in _TESTS:
        by = {t["quantity"]: t for t in results["tests"] if (t["ours"], t["theirs"]) == (ours, theirs)}
        found = (f"{by[each]['difference']:+.4f} | {p_text(by[each]['p'])}" for each in ("accuracy", "loss"))
        lines.append(_row(f"{COLUMNS[ours]} - {COLUMNS[theirs]}", found))
    return "\n".join(lines)


def _row(title: str, cells: Iterable[str]) -> str:
    return f"| {title} | {' | '.join(cells)} |"


def _header(title: str, names: Iterable[str]) -> list[str]:
    head = _row(title, names)
    return [head, "|" + "---|" * (head.count("|") - 1)]


def _heading(results: Mapping[str, Any], said: str) -> str:
    data = results["data"]
    return (
        f"Data: {data['name']}, {len(data['classes'])} classes, {data['train']:,} images to train on, "
        f"{data['test']:,} to test. Network: {results['network']}, frozen. {said}"
    )


def _cell(mean: Mapping[str, float]) -> str:
    return f"{mean['mean']:.4f} ± {100 * mean['standard_error']:.2f}"


def _marks(results: Mapping[str, Any], name: str, quantity: str) -> str:
    for test in results["tests"]:
        if (test["ours"], test["theirs"], test["quantity"]) == (name, "baseline", quantity):
            return " †" if test["p"] is not None and test["p"] >= LEVEL else ""
    return ""


MAPS = {"cam": "CAM", "bla-t": "BLA-T", "bla-ph": "BLA-PH", "bla": "BLA", "random": "random map"}


@dataclass(frozen=True, kw_only=True)
class Table2:
    """Rank correlation of explanations with LIME on the baseline."""

    network: Network = field(default_factory=Network)
    stand_in: StandIn = field(default_factory=StandIn)
    explanations: Explanations = field(default_factory=Explanations)
    images: int = 200
    """Tested images that are explained, evenly spread."""
    patterns: int = 1000
    kept: float = 0.5
    """Probability that a patch stays."""
    score: Literal["probability", "logit"] = "probability"
    """Of the baseline's own class, which LIME fits; the paper does not say."""


def table2(
    data: Path | None,
    out: Path,
    how: Table2,
    *,
    device: Device = "cpu",
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Correlates the explanations of every seed with LIME on that seed's baseline, image by image.

    A hidden image is seen once by the frozen network and judged by every seed's baseline.

    Args:
        data: shards of `prep image-folder`; None for the stand-in.
        out: gets `images/` for each image, `features/`, `results.json` and `table.md`.
    """
    source = frozen(data, out, how.network, how.stand_in, device=device)
    seeds = range(how.explanations.seeds)
    heads = [heads_of_seed(source, how.explanations, seed) for seed in seeds]
    test = source.images.test
    rows = test[np.unique(np.linspace(0, len(test) - 1, min(how.images, len(test))).round().astype(int))]
    plan = {"experiment": "baumhauer-table2", "how": asdict(how), **source.plan}
    lime = PatchLIME(grid=_grid(source), patterns=how.patterns, kept=how.kept)
    network = source.network.to(device)
    found = each_run(
        out / "images",
        plan,
        len(rows),
        lambda place: _correlations(source, network, heads, lime, int(rows[place]), how.score, device),
        on_progress,
    )
    results = _table2_results(source, how, found)
    write_text(out, results, _table2_text(results))
    return results


def _grid(source: Frozen) -> tuple[int, int]:
    side = round(source.features.cells.shape[1] ** 0.5)
    return side, side


@torch.no_grad()
def _correlations(
    source: Frozen,
    network: torch.nn.Module,
    heads: Sequence[Mapping[str, AttentiveHead]],
    lime: PatchLIME,
    row: int,
    score: Literal["probability", "logit"],
    device: Device,
) -> Found:
    """Of one image: each map's correlation with LIME, for every seed; null where there is no order."""
    frame = source.images.read(np.array([row]))[0].to(device).float() / 255
    pooled = torch.cat([network(batch).mean((2, 3)).cpu() for batch in lime.occlusions(frame)])
    features = source.features.batch(np.array([row]))
    draw = np.random.default_rng(row)
    found: dict[str, dict[str, float]] = {name: {} for name in MAPS}
    for seed, trained in enumerate(heads):
        baseline = trained["baseline"]
        column = int(baseline(features)[0].argmax())
        scores = baseline.judge(pooled)
        fitted = (scores.softmax(1) if score == "probability" else scores)[:, column]
        maps = {
            "cam": features[0] @ baseline.classify.weight[column],
            "random": torch.from_numpy(draw.random(features.shape[1])),
            **{name: trained[name].attend(features)[0] for name in ("bla", "bla-t", "bla-ph")},
        }
        stacked = np.stack([each.double().numpy() for each in maps.values()])
        worth = np.broadcast_to(lime.fit(fitted.double().numpy()), stacked.shape)
        for name, value in zip(maps, lime_rank_correlation(worth, stacked), strict=True):
            found[name][str(seed)] = None if np.isnan(value) else float(value)  # type: ignore[assignment]
    return found


def _table2_results(source: Frozen, how: Table2, found: Sequence[Found]) -> dict[str, Any]:
    seeds = [str(seed) for seed in range(how.explanations.seeds)]
    by_seed: list[dict[str, dict[str, float]]] = []
    for seed in seeds:
        values = {name: [image[name][seed] for image in found] for name in MAPS}
        ordered = {name: [v for v in each if v is not None] for name, each in values.items()}
        # A map that never orders anything agrees with nothing.
        by_seed.append({n: {"correlation": float(np.mean(v)) if v else 0.0} for n, v in ordered.items()})
    without = {name: sum(image[name][s] is None for image in found for s in seeds) for name in MAPS}
    return {
        "experiment": "baumhauer-table2",
        "config": asdict(how),
        **source.described,
        "explained": len(found),
        "means": {name: asdict(Mean.of(values_of(by_seed, name, "correlation"))) for name in MAPS},
        "without_order": {name: count / (len(found) * len(seeds)) for name, count in without.items()},
        "tests": [paired(by_seed, name, "cam", "correlation") for name in ("bla-t", "bla-ph", "bla")],
        "paper": {which: {"cam": a, "bla-t": b} for which, (a, b) in _PAPER_CORRELATIONS.items()},
        "runs": by_seed,
    }


def _table2_text(results: Mapping[str, Any]) -> str:
    how = results["config"]
    said = (
        f"{results['explained']} tested images, {how['patterns']:,} patterns, LIME on the {how['score']} of the "
        f"baseline's class; Spearman's correlation, mean over images, then ± standard error over "
        f"{how['explanations']['seeds']} runs."
    )
    lines = [_heading(results, said), "", *_header("LIME against", MAPS.values())]
    ours = (f"{mean['mean']:.3f} ± {mean['standard_error']:.3f}" for mean in results["means"].values())
    lines.append(_row("ours", ours))
    for which, paper in results["paper"].items():
        lines.append(_row(f"paper, {which}", (f"{paper[n]:.2f}" if n in paper else "-" for n in MAPS)))
    lines.append(
        _row("maps that order nothing", (f"{each:.1%}" for each in results["without_order"].values()))
    )
    lines += ["", f"Paper: {_SETS}.", ""]
    for test in results["tests"]:
        lines.append(
            f"{MAPS[test['ours']]} - CAM: {test['difference']:+.3f}, p = {p_text(test['p'])} "
            "(Wilcoxon's signed-rank test over the paired runs)."
        )
    return "\n".join(lines)
