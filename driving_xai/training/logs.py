"""The logs of a training, one run across resumes: a table, and TensorBoard, Weights & Biases or MLflow."""

from __future__ import annotations

import csv
import importlib.util
import os
import uuid
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from data_prep.shards.atomic import replacing
from driving_xai.errors import CheckpointError, OptionError
from driving_xai.training.processes import rank

FOLDER = "logs"
RUN = "version_0"
"""Inside it, as Lightning would name the first run."""
LoggerName = Literal["tensorboard", "wandb", "mlflow", "none"]
_PROJECT = "driving-xai"
"""The project, or experiment, of runs at Weights & Biases and MLflow, unless their own variables name one."""


class Progress(NamedTuple):
    """How far a training had come when its state was saved."""

    epoch: int
    """The last whole one, counted from 0."""
    step: int
    """Steps taken."""


def loggers(out: Path, progress: Progress, name: LoggerName = "tensorboard") -> list[Logger]:
    """The table of a training and its logger, continued where it resumes.

    Args:
        progress: what was logged after it was lost with the interruption, and is logged again.
        name: of the logger; its own environment variables hold, such as WANDB_MODE and MLFLOW_TRACKING_URI.

    Raises:
        OptionError: it is not installed.
    """
    folder = out / FOLDER / RUN
    table = EpochTable(folder / "metrics.csv", last_epoch=progress.epoch)
    if name == "none":
        return [table]
    if name == "tensorboard":
        step = progress.step if progress.epoch >= 0 else None
        return [table, TensorBoardLogger(out.absolute(), name=FOLDER, version=RUN, purge_step=step)]
    require_logger(name)
    named = folder / f"{name}.id"
    known = named.read_text().strip() if progress.epoch >= 0 and named.exists() else None
    if name == "wandb":
        run = known or uuid.uuid4().hex[:16]
        if rank() == 0:
            _note(named, run)
        return [
            table,
            WandbLogger(save_dir=out / FOLDER, id=run, name=out.name, project=_PROJECT, resume="allow"),
        ]
    # A database and no folder of files, which MLflow no longer takes; the variable comes before it.
    given = os.environ.get("MLFLOW_TRACKING_URI")
    where = given or f"sqlite:///{(out / FOLDER / 'mlflow.db').resolve()}"
    pictures = None if given else (out / FOLDER / "mlflow").resolve().as_uri()
    logger = MLFlowLogger(
        _PROJECT,
        run_name=out.name,
        tracking_uri=where,
        run_id=known,
        log_model=False,
        artifact_location=pictures,
    )
    if rank() == 0:
        (out / FOLDER).mkdir(parents=True, exist_ok=True)
        _note(named, str(logger.run_id))
    return [table, logger]


def require_logger(name: str) -> None:
    """Raises OptionError where a logger is not installed.

    Example:
        >>> require_logger("tensorboard")
    """
    if name in ("wandb", "mlflow") and importlib.util.find_spec(name) is None:
        raise OptionError(
            f"--logger {name}: it is not installed; `pip install '.[{name}]'`, or use tensorboard"
        )


def _note(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        temporary.write_text(text + "\n")


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


def log_picture(
    logger: Logger, name: str, picture: UInt8[np.ndarray, "H W 3"], *, epoch: int, step: int
) -> None:
    """Hands a picture to a logger that takes pictures; the table takes none."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, picture, step, dataformats="HWC")
    elif isinstance(logger, WandbLogger):
        logger.log_image(name, [picture], step=step, caption=[f"epoch {epoch}"])
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_image(logger.run_id, picture, key=name, step=step)
