"""What the folder of a training that has not ended holds: how far it came, and its best weights so far."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from driving_xai import checkpoint
from driving_xai.errors import CheckpointError
from driving_xai.training.state import BEST, LAST, RESUME, load_saved


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """A training that can be resumed."""

    kind: str
    """Of the checkpoint that it will write."""
    epoch: int
    """Whole epochs that are kept."""
    best_epoch: int | None
    """That of the best weights, counted from 1; None before the first epoch ended."""
    monitor: str | None
    """What is best by; None where the last epoch counts."""
    value: float | None
    """Of the monitor, in that epoch."""
    best: Path | None
    """The file with these weights, a Lightning checkpoint."""


def read(out: Path) -> Unfinished:
    """How far a training has come.

    Raises:
        CheckpointError: its files are damaged.
    """
    folder = out / RESUME
    try:
        config = json.loads((folder / checkpoint.CONFIG).read_text())
        last, best = (_state(folder / name) for name in (LAST, BEST))
        watched = {} if best is None else _watched(best)
        score = watched.get("best_model_score")
        return Unfinished(
            kind=str(config["kind"]),
            epoch=0 if last is None else last["epoch"] + 1,
            best_epoch=None if best is None else best["epoch"] + 1,
            monitor=watched.get("monitor"),
            value=None if score is None else float(score),
            best=None if best is None else folder / BEST,
        )
    except (KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        raise CheckpointError(
            f"{folder}: cannot be read ({str(error).splitlines()[0]}); train again into a new folder"
        ) from error


def _state(file: Path) -> dict[str, Any] | None:
    return load_saved(file) if file.exists() else None


def _watched(state: dict[str, Any]) -> dict[str, Any]:
    """The state of Lightning's callback that keeps the best weights."""
    found = [each for name, each in state["callbacks"].items() if name.startswith("ModelCheckpoint")]
    return next((each for each in found if each["monitor"] is not None), {})
