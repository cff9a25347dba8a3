"""The logs of a training, one folder across resumes: TensorBoard's events, hyper-parameters, and a table."""

from __future__ import annotations

import csv
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from data_prep.shards.atomic import replacing
from driving_xai.errors import CheckpointError

FOLDER = "logs"
RUN = "version_0"
"""Inside it, as Lightning would name the first run."""


class Progress(NamedTuple):
    """How far a training had come when its state was saved."""

    epoch: int
    """The last whole one, counted from 0."""
    step: int
    """Steps taken."""


def loggers(out: Path, progress: Progress) -> list[Logger]:
    """Both loggers of a training, continued where it resumes.

    Args:
        progress: what was logged after it was lost with the interruption, and is logged again.
    """
    events = TensorBoardLogger(
        out.absolute(), name=FOLDER, version=RUN, purge_step=progress.step if progress.epoch >= 0 else None
    )
    return [EpochTable(out / FOLDER / RUN / "metrics.csv", last_epoch=progress.epoch), events]


class EpochTable(Logger):
    """A CSV file with the metrics of each epoch, whole at any moment.

    Lightning's own deletes the rows of the run that it continues, and writes only at the end.

    Args:
        path: the file.
        last_epoch: rows of later epochs are dropped; -1 begins anew.
    """

    def __init__(self, path: Path, *, last_epoch: int) -> None:
        super().__init__()
        self._path = path
        self._rows: list[dict[str, Any]] = []
        if last_epoch >= 0 and path.exists():
            with path.open(newline="") as file:
                self._rows = [row for row in csv.DictReader(file) if self._epoch(row) <= last_epoch]

    def _epoch(self, row: Mapping[str, str]) -> int:
        try:
            return int(float(row["epoch"]))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise CheckpointError(f"{self._path} is no table of epochs; remove it") from None

    @property
    def name(self) -> str:
        return FOLDER

    @property
    def version(self) -> str:
        return RUN

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """TensorBoard's logger keeps them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = {name: each.item() if isinstance(each, Tensor) else each for name, each in metrics.items()}
        self._rows.append({**values, "step": step})
        names = sorted({name for row in self._rows for name in row})
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self._path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=names)
            writer.writeheader()
            writer.writerows(self._rows)
