"""Progress of a training run, from Lightning's hooks."""

from __future__ import annotations

from collections.abc import Callable

import lightning as L

from driving_xai.cli.console import OnProgress


class EpochProgress(L.Callback):
    """Tells after each epoch how many are done and what was measured."""

    def __init__(self, on_progress: OnProgress, say: Callable[[str], None]) -> None:
        self.on_progress, self.say = on_progress, say

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        done, total = trainer.current_epoch + 1, trainer.max_epochs or 0
        values = [f"{name} {float(value):.4g}" for name, value in sorted(trainer.callback_metrics.items())]
        if trainer.is_global_zero:
            self.say(f"epoch {done}/{total}: {', '.join(values)}")
            self.on_progress(done, total)
