"""What a training runs and how far it has come, as lines."""

from __future__ import annotations

import math
from typing import Any

import lightning as L

from driving_xai.cli.console import OnProgress, say


class EpochLines(L.Callback):
    """Says at the start what will run, within epochs how far it has come, and after each what was measured.

    Args:
        on_progress: called with epochs, in parts.
    """

    def __init__(self, on_progress: OnProgress) -> None:
        self.on_progress = on_progress

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        from driving_xai.training.loop import what_runs
        from driving_xai.training.recipe import RecipeModule

        if trainer.is_global_zero and isinstance(pl_module, RecipeModule):
            say(what_runs(trainer, pl_module))
            self.on_progress(trainer.current_epoch, trainer.max_epochs or 0)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        batches = trainer.num_training_batches
        if trainer.is_global_zero and batch_idx + 1 < batches < math.inf:
            done = trainer.current_epoch + (batch_idx + 1) / batches
            self.on_progress(done, trainer.max_epochs or 0)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        done, total = trainer.current_epoch + 1, trainer.max_epochs or 0
        values = [f"{name} {float(value):.4g}" for name, value in sorted(trainer.callback_metrics.items())]
        if trainer.is_global_zero:
            say(f"epoch {done}/{total}: {', '.join(values)}")
            self.on_progress(done, total)
