"""What a training runs and how far it has come, as lines."""

from __future__ import annotations

import lightning as L

from driving_xai.cli.console import OnProgress, say


class EpochLines(L.Callback):
    """Says at the start what will run, and after each epoch how many are done and what was measured."""

    def __init__(self, on_progress: OnProgress) -> None:
        self.on_progress = on_progress

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        from driving_xai.training.loop import RecipeModule, what_runs

        if trainer.is_global_zero and isinstance(pl_module, RecipeModule):
            say(what_runs(trainer, pl_module))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        done, total = trainer.current_epoch + 1, trainer.max_epochs or 0
        values = [f"{name} {float(value):.4g}" for name, value in sorted(trainer.callback_metrics.items())]
        if trainer.is_global_zero:
            say(f"epoch {done}/{total}: {', '.join(values)}")
            self.on_progress(done, total)
