"""What a training will be, said before it runs: its size, and about how long, by a few steps of it."""

from __future__ import annotations

import resource
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch

from driving_xai.training.loop import fit_quietly, learnt, trainer_of
from driving_xai.training.recipe import Device, Extent, Recipe, RecipeModule, on_device
from driving_xai.training.throughput import Speed

_STEPS, _ENOUGH_S = 3, 20.0
"""How many steps are measured after the first, which warms up; fewer where so much time has passed."""
_VALIDATION_SHARE = 1 / 3
"""The time of a validated frame as a share of a learnt one's: a forward pass without the two of its gradient."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A training that was not run."""

    parameters: int
    """How many parameters change."""
    device: str
    epochs: int
    extent: Extent
    speed: Speed | None
    """That of a few steps of the costliest epoch; None where they wait for work that a forecast does not do."""
    before_s: float
    """About how long the work before the first epoch takes; 0 where there is none."""
    memory_bytes: int
    """The most that was in use: of the process, or of the GPU."""

    @property
    def seconds(self) -> float:
        """About how long all of it takes."""
        if self.speed is None:
            return self.before_s
        frames = self.extent.frames + _VALIDATION_SHARE * self.extent.validated
        return self.before_s + self.epochs * frames / self.speed.frames_per_s

    def as_json(self) -> dict[str, Any]:
        return {
            "parameters": self.parameters,
            "device": self.device,
            "epochs": self.epochs,
            "frames": self.extent.frames,
            "steps": self.extent.steps,
            "validated": self.extent.validated,
            "frames_per_s": None if self.speed is None else self.speed.frames_per_s,
            "data_wait_share": None if self.speed is None else self.speed.data_wait_share,
            "seconds": self.seconds,
            "memory_bytes": self.memory_bytes,
        }


def forecast(recipe: Recipe, *, device: Device) -> Forecast:
    """Builds a training, runs a few steps of it, and writes nothing.

    Raises:
        Whatever the training would at its start.
    """
    if on_device(device) == "cuda":
        torch.cuda.reset_peak_memory_stats()
    if recipe.before is not None:
        module, before_s = recipe.before()
        speed = None
    else:
        module, before_s = recipe.build(), 0.0
        speed = _measured(module, device)
    on = on_device(device)
    used = torch.cuda.max_memory_allocated() if on == "cuda" else _most_resident_bytes()
    return Forecast(
        parameters=learnt(module),
        device=on,
        epochs=module.plan().epochs,
        extent=module.extent(),
        speed=speed,
        before_s=before_s,
        memory_bytes=used,
    )


def _most_resident_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class _EnoughError(Exception):
    """Ends Lightning's loop."""


class _FewSteps(L.Callback):
    def __init__(self) -> None:
        self._begun = time.monotonic()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, RecipeModule)
        late = time.monotonic() - self._begun > _ENOUGH_S
        if batch_idx > _STEPS or (batch_idx and late):
            raise _EnoughError
        if batch_idx == 1:
            pl_module.times.begin_again()


def _measured(module: RecipeModule, device: Device) -> Speed | None:
    if not module.plan().epochs:
        return None
    epoch = module.costliest_epoch()
    trainer = trainer_of(
        module, device, None, callbacks=[_FewSteps()], loggers=[], epochs=epoch + 1, only_steps=_STEPS + 2
    )
    # Lightning's count of epochs done, which a resumed training sets too.
    trainer.fit_loop.epoch_progress.current.load_state_dict({"processed": epoch})
    with suppress(_EnoughError):
        fit_quietly(trainer, module, None)
    return module.times.ended()
