"""The plan of a scoring run: what decides its results, by which a run is resumed or refused."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.documents import read_json
from data_prep.shards.manifest import canonical_json
from driving_xai.checkpoint import Checkpoint
from driving_xai.errors import DataError
from driving_xai.evaluation.config import ScoreConfig
from driving_xai.explain.options import planned
from driving_xai.metrics.aupc import Masking


def settings_of(config: ScoreConfig) -> dict[str, Any]:
    """As a plan keeps them; it names later settings only where they change anything, so that old plans resume."""
    settings = planned(config)
    if config.masking == Masking():
        del settings["masking"]
    if config.baseline_model is None:
        del settings["baseline_model"]
    if not config.fills:
        del settings["fills"]
    if config.only_label is None:
        del settings["only_label"]
    if not config.scores_windows:
        del settings["window_frames"]
    if config.attention_derivative == "actual":
        del settings["attention_derivative"]
    if not config.hides_parts:
        del settings["explained_score"]
    return settings


def class_of(handed: object) -> str:
    return f"{type(handed).__module__}:{type(handed).__qualname__}"


def settings_sha256(checkpoint: Checkpoint) -> str:
    """Of what decides results apart from the weights: the model's and the input's settings, the thresholds."""
    settings = {name: checkpoint.config.get(name, {}) for name in ("model", "input")}
    content = canonical_json({**settings, "thresholds": checkpoint.thresholds})
    return hashlib.sha256(content).hexdigest()


def require_same(plan: Mapping[str, Any], found: Mapping[str, Any], out: Path) -> None:
    """Raises DataError where a run in `out` was planned otherwise."""
    ours, theirs = plan["config"], found["config"]
    # A plan names options, a masking and the like only where they are not the default; see `settings_of`.
    differing = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    differing += [key for key in {**plan, **found} if key != "config" and plan.get(key) != found.get(key)]
    if differing:
        raise DataError(f"{out}: was scored with another {', '.join(differing)}; give another folder")


def read_plan(path: Path) -> dict[str, Any]:
    """What an unfinished run noted of itself."""
    try:
        plan = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); score into another folder") from None
    if not isinstance(plan, dict) or not isinstance(plan.get("config"), dict):
        raise DataError(f"{path}: is no plan of a scoring run; score into another folder")
    return plan
