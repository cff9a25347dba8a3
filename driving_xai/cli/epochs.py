"""A Lightning run as this command line shows it: our lines, our exit codes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


@contextmanager
def plain_training() -> Iterator[None]:
    """Lightning without its notices, and with Ctrl-C as an exception like any other.

    Raises:
        KeyboardInterrupt: training was interrupted.
    """
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Hints on devices and loader processes, and deprecations between its own parts: nothing a
            # user of this program can act on.
            warnings.filterwarnings("ignore", module=r"lightning\.")
            yield
    except SystemExit:
        # Lightning catches Ctrl-C, shuts down in order, and then ends the process itself.
        raise KeyboardInterrupt from None
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
