"""The subject of each kind of checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized
from pathlib import Path

import pandas as pd

from data_prep.shards.manifest import Manifest
from driving_xai.checkpoint import Checkpoint
from driving_xai.errors import CheckpointError, DataError
from driving_xai.evaluation.config import ScoreConfig
from driving_xai.evaluation.data import Subject
from driving_xai.evaluation.drives import DrivenRoute
from driving_xai.evaluation.images import Pictures
from driving_xai.metrics.registry import MEASURES


def open_subject(checkpoint: Checkpoint, shards: Path, config: ScoreConfig) -> Subject:
    """The checkpoint's model along the shards' frames.

    Raises:
        DataError: the shards do not fit, or hold none of the frames asked for.
        CheckpointError: models of this kind cannot be scored.
    """
    if checkpoint.kind not in SUBJECTS:
        raise CheckpointError(
            f"{checkpoint.path} holds kind {checkpoint.kind!r}; expected one of: {', '.join(SUBJECTS)}"
        )
    localises = any(MEASURES[name].needs == "causes" for name in config.measures)
    if config.masks is not None and not localises:
        raise DataError("masks are given and no measure of localisation is asked for; add pointing-game, say")
    with_causes = localises and config.masks is None
    subject = SUBJECTS[checkpoint.kind](checkpoint, shards, config, with_causes)
    for name in config.measures:
        if MEASURES[name].needs == "probability" and not subject.quantity.is_probability:
            raise DataError(
                f"measure {name} needs a probability, and this is scored by its {subject.quantity.name}"
            )
    return subject


def require_predicted(found: Sized, subject: Subject) -> None:
    """Raises DataError where no frame had an output to explain: images in which nothing is predicted."""
    if not found:
        raise DataError(f"nothing is predicted in any of {subject.total} images; take target predicted")


def rows_together(subject: Subject, places: pd.DataFrame, block_s: float) -> int:
    """How many rows a bootstrap draws together: a stretch of driving, or of images a whole group.

    Args:
        places: what was scored, a row for each frame and target, with the columns `drive`, `camera`, `frame`
            and `target`.
        block_s: of driving, in seconds.
    """
    apart_s = subject.seconds_apart
    if apart_s is not None:
        return max(1, round(block_s / apart_s))
    once = places.drop_duplicates(["drive", "camera", "frame", "target"])
    return int(once["drive"].value_counts().max())


def _route(checkpoint: Checkpoint, shards: Path, config: ScoreConfig, with_causes: bool) -> Subject:
    return DrivenRoute(
        checkpoint,
        shards,
        Manifest.load(shards),
        target=config.target or "magnitude",
        truth=config.truth,
        split=config.split,
        every=config.every,
        with_causes=with_causes,
    )


def _pictures(checkpoint: Checkpoint, shards: Path, config: ScoreConfig, with_causes: bool) -> Subject:
    return Pictures(
        checkpoint,
        shards,
        target=config.target or "predicted",
        split=config.split,
        every=config.every,
        with_causes=with_causes,
    )


SUBJECTS: Mapping[str, Callable[[Checkpoint, Path, ScoreConfig, bool], Subject]] = {
    "steering": _route,
    "actions": _pictures,
    "classifier": _pictures,
    "bounded-logit": _pictures,
}
