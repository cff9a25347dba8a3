"""Rank correlation of BLA and CAM with LIME (Baumhauer et al. 2021, Table 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from driving_xai.experiments.baumhauer import DATA_SETS, Explanations, heading, heads_of_seed, unread_images
from driving_xai.experiments.baumhauer_features import Device, Frozen, Network, OnProgress, StandIn, frozen
from driving_xai.experiments.recipes import require_unset
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
from driving_xai.explain.lime import Grid
from driving_xai.explain.variants import keep
from driving_xai.metrics.rank_correlation import lime_rank_correlation, patch_lime
from driving_xai.models.bounded_logit import AttentiveHead
from driving_xai.perturb import blank

_PAPER_CORRELATIONS = {"A": (0.47, 0.37), "B": (0.33, 0.47), "C": (0.08, 0.37)}
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

    An image with hidden patches passes the frozen network once and then every seed's baseline.

    Args:
        data: shards of `prep image-folder`; None for the stand-in.
        out: gets `images/` for each image, `features/`, `results.json` and `table.md`.
    """
    no_l2x = "no L2X is trained for Table 2"
    require_unset(
        how,
        {**unread_images(data), "explanations.subset_size": no_l2x, "explanations.tau": no_l2x},
    )
    source = frozen(data, out, how.network, how.stand_in, device=device)
    seeds = range(how.explanations.seeds)
    heads = [heads_of_seed(source, how.explanations, seed, names=tuple(MAPS)) for seed in seeds]
    test = source.images.rows("test")
    rows = test[np.unique(np.linspace(0, len(test) - 1, min(how.images, len(test))).round().astype(int))]
    plan = {"experiment": "baumhauer-table2", "how": asdict(how), **source.plan}
    side = round(source.features.cells.shape[1] ** 0.5)
    hidden = HiddenPatches.draw(Grid(rows=side, columns=side), samples=how.patterns, shown=how.kept)
    network = source.network.to(device)
    found = each_run(
        out / "images",
        plan,
        len(rows),
        lambda place: _correlations(source, network, heads, hidden, int(rows[place]), how.score, device),
        on_progress,
    )
    results = _table2_results(source, how, found)
    write_results(out, results, _table2_text(results))
    return results


@dataclass(frozen=True, kw_only=True)
class HiddenPatches:
    """The patterns that all images and all seeds share, and the matrix that fits them."""

    grid: Grid
    shown: Bool[Tensor, "P n"]
    solver: Float[Tensor, "n P"]

    @classmethod
    def draw(cls, grid: Grid, *, samples: int, shown: float) -> HiddenPatches:
        """Patterns of LIME, from its default seed."""
        lime = patch_lime(grid=grid, samples=samples, shown=shown)
        patterns = lime.patterns(grid.rows * grid.columns)
        return cls(grid=grid, shown=patterns, solver=lime.solver(patterns))

    @torch.no_grad()
    def pooled(self, network: nn.Module, frame: Float[Tensor, "3 H W"]) -> Float[Tensor, "P C"]:
        """What a head that pools the mean sees of the frame under every pattern."""
        patch = torch.from_numpy(self.grid(frame.permute(1, 2, 0).cpu().numpy()))
        black = blank(frame[None], "black")
        parts = []
        for part in self.shown.split(64):
            kept = part[:, patch].to(frame.device)
            parts.append(network(keep(frame[None], black, kept[None])).mean((2, 3)).cpu())
        return torch.cat(parts)


@torch.no_grad()
def _correlations(
    source: Frozen,
    network: nn.Module,
    heads: Sequence[Mapping[str, AttentiveHead]],
    hidden: HiddenPatches,
    row: int,
    score: Literal["probability", "logit"],
    device: Device,
) -> Found:
    """Of one image: each map's correlation with LIME, for every seed; null where there is no order."""
    frame = source.images.read(np.array([row]))[0].to(device).float() / 255
    pooled = hidden.pooled(network, frame)
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
        by_lime = np.broadcast_to((hidden.solver @ fitted.double()).numpy(), stacked.shape)
        for name, value in zip(maps, lime_rank_correlation(by_lime, stacked), strict=True):
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
    lines = [heading(results, said), "", *markdown_header("LIME against", MAPS.values())]
    ours = (f"{mean['mean']:.3f} ± {mean['standard_error']:.3f}" for mean in results["means"].values())
    lines.append(markdown_row("ours", ours))
    for which, paper in results["paper"].items():
        lines.append(
            markdown_row(f"paper, {which}", (f"{paper[n]:.2f}" if n in paper else "-" for n in MAPS))
        )
    lines.append(
        markdown_row("maps that order nothing", (f"{each:.1%}" for each in results["without_order"].values()))
    )
    lines += [
        "",
        f"Paper: {DATA_SETS}.",
        "",
        DIFFERENCES,
        "",
        *markdown_header("difference", ("correlation",)),
    ]
    lines += [
        markdown_row(f"{MAPS[test['ours']]} - CAM", (tested_text(test, ".3f"),)) for test in results["tests"]
    ]
    return "\n".join(lines)
