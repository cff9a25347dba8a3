"""Blocked cross-validation of steering with each attention: every block of a drive is held out once.

A model is trained without the block it is tested on and without the seconds before and after. Errors are
compared with constant predictors, explanations with random and centre-prior orders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.shards.manifest import Manifest
from data_prep.shards.parquet import read_index
from driving_xai.errors import OptionError
from driving_xai.evaluation.config import CONTROLS, ScoreConfig
from driving_xai.evaluation.results import Results
from driving_xai.evaluation.run import score
from driving_xai.experiments.networks import Device, fitting, trained_steering
from driving_xai.experiments.recipes import require_unset
from driving_xai.experiments.tables import write_results
from driving_xai.explain.options import OptionsOf
from driving_xai.explain.registry import require_methods
from driving_xai.models.steering_config import OWN_METHOD, AttentionKind
from driving_xai.training.steering import SteeringTraining

NAME = "steering-cv"
_CONSTANTS = ("mae_deg_zero", "mae_deg_train_mean", "mae_deg_train_median")


@dataclass(frozen=True, kw_only=True)
class CrossValidation:
    """Which models are trained on what, and how their explanations are scored."""

    attentions: tuple[AttentionKind, ...] = ("none", "soft", "sign")
    blocks: tuple[int, ...] | None = None
    """Which blocks to hold out in turn; None takes all."""
    score_every: int = 10
    """Score every n-th held-out frame; 0 scores none."""
    methods: tuple[str, ...] = ("grad-cam",)
    """Scored in addition to each model's own attention; each perhaps with a label, `grad-cam@LABEL`."""
    options: OptionsOf = field(default_factory=dict)
    """Of `methods` by name or label: `{"lime": {"samples": 500}}`; see docs/methods.md."""
    training: SteeringTraining = field(default_factory=SteeringTraining)
    """Its held-out block and attention are replaced in turn."""

    def __post_init__(self) -> None:
        require_methods(self.methods, self.options, least=0)
        for name in self.options:
            if self.score_every == 0 or not any(fitting((name,), each) for each in self.attentions):
                raise OptionError(
                    f"options.{name} would be ignored: no model of this run is explained by {name}"
                )


def run(
    shards: Path,
    out: Path,
    how: CrossValidation,
    *,
    device: Device = "auto",
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Trains and scores every model that `out` does not hold yet, and sums up those it holds.

    Args:
        shards: a folder that `prep` wrote with a split by blocks or drives.
        out: `block-K/ATTENTION/` for each model and its scores, `results.json` and `table.md` for all; a frozen
            encoder's features, which all models share.

    Returns:
        What `results.json` holds: the models, and means over blocks by attention.
    """
    turns = "the experiment goes through all"
    require_unset(how, {"training.held_out.block": turns, "training.model.attention": turns})
    blocks = how.blocks or tuple(int(b) for b in np.unique(read_index(shards)["block"]))
    pairs = [(block, attention) for block in blocks for attention in how.attentions]
    models = []
    for done, (block, attention) in enumerate(pairs):
        folder = out / f"block-{block}" / attention
        found = _model(shards, folder, how, block, attention, features=out / "features", device=device)
        models.append({"block": block, "attention": attention, **found})
        if on_progress is not None:
            on_progress(done + 1, len(pairs))
    results = {
        "experiment": NAME,
        "config": asdict(how),
        "shards_sha256": Manifest.load(shards).sha256,
        "models": models,
        "means": _means(models, how.attentions),
    }
    write_results(out, results, _table(results))
    return results


def _model(
    shards: Path,
    folder: Path,
    how: CrossValidation,
    block: int,
    attention: AttentionKind,
    *,
    features: Path,
    device: Device,
) -> dict[str, Any]:
    """Trains and scores one model, or takes both from an earlier run."""
    training = replace(
        how.training,
        model=replace(how.training.model, attention=attention),
        held_out=replace(how.training.held_out, block=block),
    )
    network = trained_steering(shards, folder, training, device=device, features=features)
    found = {"test": network.metrics["test"], "sha256": network.sha256}
    if how.score_every == 0:
        return found
    own = OWN_METHOD.get(attention)
    methods = tuple(dict.fromkeys((*([own] if own else []), *fitting(how.methods, attention))))
    config = ScoreConfig(
        methods=methods or CONTROLS[:1],
        options={name: given for name, given in how.options.items() if name in methods},
        measures=("deletion", "insertion"),
        every=how.score_every,
    )
    where = folder / "scores"
    results = score(network, shards, where, config, resume=where.exists())
    return {**found, "scores": _areas(results)}


def _areas(results: Results) -> list[dict[str, Any]]:
    kept = ("method", "measure", "reference", "frames", "value", "base_corrected")
    return [{name: row[name] for name in kept} for row in results.summary["scores"]]


def _means(models: Sequence[dict[str, Any]], attentions: Sequence[str]) -> list[dict[str, Any]]:
    """Over blocks, each frame weighing the same; the areas each block the same."""
    means = []
    for attention in attentions:
        ours = [model for model in models if model["attention"] == attention]
        weights = [model["test"]["frames"] for model in ours]
        errors = {
            name: float(np.average([model["test"][name] for model in ours], weights=weights))
            for name in ("mae_deg", *_CONSTANTS)
        }
        areas: dict[str, list[float]] = {}
        for model in ours:
            for row in model.get("scores", ()):
                if row["value"]["mean"] is not None:
                    key = "/".join((row["measure"], row["reference"], row["method"]))
                    areas.setdefault(key, []).append(row["value"]["mean"])
        means.append(
            {
                "attention": attention,
                **errors,
                "share_of_zero": errors["mae_deg"] / errors["mae_deg_zero"],
                "areas": {key: float(np.mean(values)) for key, values in areas.items()},
            }
        )
    return means


def _table(results: dict[str, Any]) -> str:
    """Markdown: error by block, then areas by method."""
    blocks = sorted({model["block"] for model in results["models"]})
    lines = [
        "MAE in degrees of steering wheel on the held-out block, all blocks weighted by frames.",
        "",
        f"| model | {' | '.join(f'block {b}' for b in blocks)} | all | share of zero |",
        f"|---|{'---|' * (len(blocks) + 2)}",
    ]
    for mean in results["means"]:
        ours = {m["block"]: m["test"] for m in results["models"] if m["attention"] == mean["attention"]}
        cells = " | ".join(f"{ours[b]['mae_deg']:.2f}" if b in ours else "-" for b in blocks)
        lines.append(
            f"| {mean['attention']} | {cells} | {mean['mae_deg']:.2f} | {mean['share_of_zero']:.0%} |"
        )
    any_model = {m["block"]: m["test"] for m in results["models"]}
    for name in _CONSTANTS:
        cells = " | ".join(f"{any_model[b][name]:.2f}" for b in blocks)
        share = results["means"][0][name] / results["means"][0]["mae_deg_zero"]
        label = name.removeprefix("mae_deg_").replace("_", " ")
        lines.append(f"| {label} | {cells} | {results['means'][0][name]:.2f} | {share:.0%} |")
    lines += [
        "",
        "Mean area over blocks, degree x percent.",
        "",
        "| model | measure | against | method | area |",
    ]
    lines.append("|---|---|---|---|---|")
    for mean in results["means"]:
        for key, value in mean["areas"].items():
            lines.append(f"| {mean['attention']} | {' | '.join(key.split('/'))} | {value:.1f} |")
    return "\n".join(lines)
