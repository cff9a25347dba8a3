"""Bounded logit attention with more context and with less (Baumhauer et al. 2021, section 3.3 and Fig. 24)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from driving_xai.experiments.baumhauer import Explanations, heading, unread_images
from driving_xai.experiments.baumhauer_features import Device, Frozen, Network, OnProgress, StandIn, frozen
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
from driving_xai.models.bounded_logit import AttentionKind, AttentiveHead
from driving_xai.training.bounded_logit import judge, train_baseline, train_explanation

_ROWS: Mapping[AttentionKind, str] = {
    "bla": "BLA: softmax of bounded logits",
    "concept": "more: a concept vector of all cells in the logits",
    "sigmoid": "less: each cell by itself, a sigmoid",
}
_QUANTITIES = ("accuracy", "accuracy_soft", "cells", "effective_cells", "largest_logit")
_PAPER = (
    "The paper: with the concept vector logits of about -1000 go past the bound, and one cell is chosen; sigmoids are "
    "poorly focused. It gives no numbers."
)


@dataclass(frozen=True, kw_only=True)
class Context:
    """What is trained, and on what."""

    network: Network = field(default_factory=Network)
    stand_in: StandIn = field(default_factory=StandIn)
    explanations: Explanations = field(default_factory=lambda: Explanations(seeds=8))


def run(
    data: Path | None,
    out: Path,
    how: Context,
    *,
    device: Device = "cpu",
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Trains the three explanations of a baseline for every seed that `out` does not hold yet.

    Args:
        data: shards of `prep image-folder`; None for the stand-in.
        out: gets `runs/` for each seed, `features/`, `results.json` and `table.md`.

    Returns:
        What `results.json` holds.
    """
    reasons = unread_images(data) | dict.fromkeys(
        (f"explanations.{name}" for name in ("gamma", "thresholding", "subset_size", "tau")),
        "neither bla, concept nor sigmoid reads it",
    )
    require_unset(how, reasons)
    source = frozen(data, out, how.network, how.stand_in, device=device)
    plan = {"experiment": "baumhauer-context", "how": planned(how.explanations), **source.plan}
    runs = each_run(
        out / "runs",
        plan,
        how.explanations.seeds,
        lambda seed: _evaluated(source, how.explanations, seed),
        on_progress,
    )
    results = {
        "experiment": "baumhauer-context",
        "config": asdict(how),
        **source.described,
        "means": {
            name: {each: asdict(Mean.of(values_of(runs, name, each))) for each in _QUANTITIES}
            for name in _ROWS
        },
        "tests": [paired(runs, name, "bla", each) for name in ("concept", "sigmoid") for each in _QUANTITIES],
        "runs": runs,
    }
    write_results(out, results, _text(results))
    return results


def _evaluated(source: Frozen, how: Explanations, seed: int) -> Found:
    images = source.images
    given = (source.features, images.classes, images.rows("train"))
    recipe = how.training(images.label_names, source.channels, multiplied=False)
    cells = source.features.cells.shape[1]
    recipe = replace(recipe, head=replace(recipe.head, cells=cells))
    baseline = train_baseline(recipe, *given, seed=seed)
    found: dict[str, dict[str, float]] = {}
    for name in _ROWS:
        head = train_explanation(baseline, recipe, *given, attention=name, learns="all", seed=seed)
        hard, soft = (
            judge(head, source.features, images.classes, images.rows("test"), explanation=kind)
            for kind in ("hard", "soft")
        )
        found[name] = {
            "accuracy": hard.accuracy,
            "accuracy_soft": soft.accuracy,
            **focus(head, [source.features.batch(rows) for rows in _parts(images.rows("test"))]),
        }
    return found


def _parts(rows: np.ndarray) -> list[np.ndarray]:
    return np.array_split(rows, max(1, len(rows) // 256))


@torch.no_grad()
def focus(head: AttentiveHead, features: Sequence[torch.Tensor]) -> dict[str, float]:
    """How few cells a head's explanations hold, as means over images.

    `cells` are those of the hard explanation; `effective_cells` the exponential of the entropy of the soft one, n where
    it is even and 1 where it is one cell; `largest_logit` what the bound leaves of the best cell.
    """
    counts, effective, largest = [], [], []
    for part in features:
        soft = head.attend(part).double()
        shares = soft / soft.sum(1, keepdim=True)
        effective.append(torch.special.entr(shares).sum(1).exp())
        counts.append((head.select(part) > 0).sum(1).double())
        largest.append(head.logits(part).amax(1).double())
    return {
        name: float(torch.cat(values).mean())
        for name, values in (
            ("cells", counts),
            ("effective_cells", effective),
            ("largest_logit", largest),
        )
    }


def _text(results: Mapping[str, Any]) -> str:
    seeds = results["config"]["explanations"]["seeds"]
    heads = ("accuracy, hard", "accuracy, soft", "cells, hard", "effective cells, soft", "largest logit")
    lines = [
        heading(results, f"{seeds} runs; mean ± standard error."),
        "",
        *markdown_header("attention", heads),
    ]
    for name, title in _ROWS.items():
        means = results["means"][name]
        cells = (f"{means[each]['mean']:.4g} ± {means[each]['standard_error']:.2g}" for each in _QUANTITIES)
        lines.append(markdown_row(title, cells))
    lines += ["", _PAPER, "", DIFFERENCES, "", *markdown_header("less BLA", heads)]
    for name in ("concept", "sigmoid"):
        by = {test["quantity"]: test for test in results["tests"] if test["ours"] == name}
        lines.append(markdown_row(name, (tested_text(by[each], ".4g") for each in _QUANTITIES)))
    return "\n".join(lines)
