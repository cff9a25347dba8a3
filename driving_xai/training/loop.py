"""Lightning's loop as every recipe runs it: exact resume, one device, no tips, Ctrl-C that is Ctrl-C.

A recipe draws its batches, augmentations and dropout from the seed, the epoch and the step
(`seed_of`), never from how often something was asked for: so a resumed run ends where an unbroken
one does.
"""

from __future__ import annotations

import logging
import platform
import signal
import warnings
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from driving_xai import checkpoint
from driving_xai.errors import CheckpointError

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)

RESUME = "resume"
"""Inside the output directory: what `--resume` continues from."""

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "32", "bf16"]
"""auto is bf16 on CUDA and fp32 on a CPU."""


def seed_of(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def versions() -> dict[str, str]:
    """What a checkpoint says it was trained with."""
    return {
        "torch": torch.__version__,
        "lightning": L.__version__,
        "python": platform.python_version(),
    }


def resume_state(out: Path, config: dict[str, Any], resume: bool) -> Path | None:
    """The file to continue from, after checking that it belongs to this configuration.

    Raises:
        CheckpointError: `resume` without a run or with another configuration, or a new run where one is.
    """
    folder, wanted = out / RESUME, checkpoint.as_json(config)
    last, recorded = folder / "last.ckpt", folder / "config.json"
    if resume:
        if not recorded.exists():
            raise CheckpointError(f"{out} holds no interrupted training; run without --resume")
        if recorded.read_text() != wanted:
            raise CheckpointError(
                f"{out} was trained with another configuration or data; use the same, or a new OUT"
            )
        return last if last.exists() else None
    if (out / checkpoint.CONFIG).exists() or recorded.exists():
        raise CheckpointError(
            f"{out} already holds a training run; continue it with --resume or choose a new OUT"
        )
    folder.mkdir(parents=True, exist_ok=True)
    recorded.write_text(wanted)
    return None


def trainer(
    out: Path,
    *,
    epochs: int,
    monitor: str | None,
    device: Device,
    precision: Precision = "auto",
    gradient_clip: float = 0.0,
    callbacks: tuple[L.Callback, ...] = (),
) -> L.Trainer:
    """A trainer that keeps the last and the best state in `out`/resume and logs beside it.

    Args:
        monitor: what the recipe logs that is low for the best state; None keeps the last one.
        gradient_clip: norm above which gradients are shortened; 0 never.
    """
    accelerator = {"auto": "auto", "cpu": "cpu", "cuda": "gpu"}[device]
    on_cuda = device != "cpu" and torch.cuda.is_available()
    mixed = precision == "bf16" or (precision == "auto" and on_cuda)
    keep = ModelCheckpoint(
        out / RESUME,
        filename="best",
        monitor=monitor,
        save_last=True,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    return L.Trainer(
        accelerator=accelerator,
        devices=1,
        precision="bf16-mixed" if mixed else "32-true",
        max_epochs=epochs,
        gradient_clip_val=gradient_clip,
        callbacks=[keep, *callbacks],
        logger=[CSVLogger(out, name="logs"), TensorBoardLogger(out, name="logs")],
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def fit(trainer: L.Trainer, recipe: L.LightningModule, state: Path | None) -> None:
    """Runs Lightning's loop without its tips, and lets Ctrl-C be Ctrl-C."""
    with warnings.catch_warnings():
        # Both come from Lightning itself and ask nothing of the user.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        # Loading is bounded by memory kept, not by workers; `workers` is there to ask for more.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero.*")
        try:
            trainer.fit(recipe, ckpt_path=state, weights_only=None if state is None else True)
        except SystemExit:
            # Lightning turns an interrupt into exit(1) and leaves SIGINT ignored.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from None
