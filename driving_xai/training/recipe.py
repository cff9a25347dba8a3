"""What a recipe is to the loop: a module with its step, its plan, and what an epoch of it runs through."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from driving_xai.training.processes import Part, as_one_batch, part_of
from driving_xai.training.state import load_weights
from driving_xai.training.throughput import Speed, StepTimes, stopwatch
from driving_xai.types import Frames
from driving_xai.unfinished import KEPT, Kept

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "32", "bf16"]


def on_device(device: Device) -> Literal["cpu", "cuda"]:
    """Where a training computes: `auto` is CUDA where there is one."""
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


@dataclass(frozen=True, kw_only=True)
class Best:
    """Which epoch's weights are kept, and when a training that no longer improves stops."""

    monitor: str
    mode: Literal["min", "max"] = "min"
    patience: int | None = None
    """Epochs without a better value before stopping; None never stops early."""
    first_epoch: int = 0
    """Stopping counts from this epoch on."""


class Extent(NamedTuple):
    """What an epoch runs through."""

    frames: int
    """How many frames are learnt from."""
    unit: str
    """The word for these frames, in the plural."""
    a_step: int
    """How many examples a step takes, over all processes."""
    frames_each: int = 1
    """How many frames an example has: more than 1 where it is a window."""
    validated: int = 0
    """How many frames are validated on after each epoch."""

    @property
    def steps(self) -> int:
        """About how many steps an epoch has."""
        return max(1, math.ceil(self.frames / (self.a_step * self.frames_each)))

    def __str__(self) -> str:
        validated = f", validated on {self.validated:,}" if self.validated else ""
        return f"{self.frames:,} {self.unit}, {self.a_step} a step{validated}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a recipe's configuration says of the loop."""

    epochs: int
    precision: Precision
    best: Best | None = None
    """None keeps the last epoch."""
    gradient_clip: float | None = None
    """Largest norm of all gradients together; None or 0 for no limit."""
    strategy: str = "auto"
    """Lightning's name for how processes work together; auto is distributed data parallel."""


class ModelCheck(L.Callback):
    """A callback that does not fit every model, and says so before a training spends time on one."""

    @abstractmethod
    def check(self, model: nn.Module) -> None:
        """Refuses a model, which is as it begins, on the CPU.

        Raises:
            UnsupportedModelError: it lacks what the callback needs.
        """


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a recipe hands to the loop: its data are read and its settings checked, and nothing is written yet."""

    config: Mapping[str, Any]
    """The config.json of the trained model, less its schema."""
    model: nn.Module
    """What a checkpoint will hold, before it is trained."""
    build: Callable[[], RecipeModule]
    """Called once OUT is this run's alone."""
    before: Callable[[], tuple[RecipeModule, float]] | None = None
    """Gives about how many seconds the work before the first epoch takes, which it does not do, and a module that
    cannot run without that work; None where there is none."""


class RecipeModule(L.LightningModule):
    """What every recipe's module shares: rates by epoch, draws by step, its process's part of a batch."""

    seed: int
    """The seed in the recipe's configuration."""
    leaves_parameters_out = False
    """Whether a step may not reach every parameter; processes that train together must know."""
    kept: Kept
    """Where the model that a checkpoint will hold lies among this module's weights."""
    speed: Speed | None = None
    """How fast the last epoch was; None before one has ended."""

    @abstractmethod
    def plan(self) -> Plan:
        """What the recipe's configuration says of the loop."""

    @abstractmethod
    def rates(self, epoch: int) -> dict[str, float]:
        """The learning rate of each named group of the optimiser in this epoch."""

    @abstractmethod
    def extent(self) -> Extent:
        """What an epoch runs through."""

    def costliest_epoch(self) -> int:
        """The number of an epoch whose frames take the longest, counted from 0; epochs may differ."""
        return 0

    @abstractmethod
    def current_model(self) -> nn.Module:
        """The model that a checkpoint would hold now."""

    @abstractmethod
    def finished(self, trainer: L.Trainer, out: Path) -> dict[str, Any]:
        """The metrics of the trained model, which are written; files of its own go to `out`."""

    def sample_frames(self, most: int) -> Frames | None:
        """A few validation frames, or training frames where there are none; None where a recipe shows none."""
        return None

    def after_step(self) -> None:
        """What follows each optimiser step, such as a running average of the weights."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses another model's state in one line, before Lightning loads it."""
        load_weights(self, checkpoint, Path(str(self.trainer.ckpt_path)))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Says where a reader of the unfinished run finds the model."""
        checkpoint[KEPT] = self.kept._asdict()

    def on_train_epoch_start(self) -> None:
        rates = self.rates(self.current_epoch)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rates[group["name"]]
        self._learnt_from = 0
        self.times = StepTimes(stopwatch(self.device))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.times.step_begins()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.after_step()
        self.times.step_ends(self._learnt_from)

    @property
    def processes(self) -> int:
        return self.trainer.world_size

    def part(self, total: int) -> Part:
        """This process's part of a global batch."""
        return part_of(total, self.global_rank, self.processes)

    def as_one_batch(self, part: Part) -> AbstractContextManager[Any]:
        return as_one_batch(part, self.processes)

    def draw(self, batch_idx: int) -> torch.Generator:
        """Seeds torch, for dropout, and a generator of its own, for augmentation: alike in all processes."""
        drawn = mix(self.seed, self.current_epoch, batch_idx)
        torch.manual_seed(drawn)
        return torch.Generator().manual_seed(drawn)

    def log_loss(self, loss: Tensor, total: int, *, frames_each: int = 1) -> None:
        """Logs the epoch's mean.

        Args:
            loss: the part's mean loss times its share.
            total: examples of the global batch.
            frames_each: of an example.
        """
        self._learnt_from = total * frames_each
        self.log(
            "train_loss",
            loss,
            on_step=False,
            on_epoch=True,
            prog_bar=True,
            batch_size=total,
            sync_dist=self.processes > 1,
        )


def mix(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def spread(rows: np.ndarray, most: int) -> np.ndarray:
    """Up to so many of the rows, evenly apart.

    Example:
        >>> spread(np.arange(10), 3).tolist()
        [0, 4, 9]
    """
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)]
