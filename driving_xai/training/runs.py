"""What every recipe's run needs: where it resumes from, Lightning's loop around it, seeds, versions."""

from __future__ import annotations

import logging
import os
import platform
import signal
import warnings
from collections.abc import Mapping, Sequence
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


def rank() -> int:
    """This process's number among those that train together; 0 where there is one."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))


def resume_state(out: Path, config: Mapping[str, Any], resume: bool) -> Path | None:
    """The file to continue from, after checking that it belongs to this configuration; None starts anew.

    Raises:
        CheckpointError: `resume` without a run or with another configuration, or a run that is there
            already.
    """
    folder, wanted = out / RESUME, checkpoint.as_json(config)
    last, recorded = folder / "last.ckpt", folder / "config.json"
    if rank() > 0:  # The first process checks for all, and may have begun already.
        return last if resume and last.exists() else None
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


def build_trainer(
    out: Path,
    *,
    epochs: int,
    device: Device,
    precision: Precision,
    callbacks: Sequence[L.Callback] = (),
    monitor: str | None = None,
    mode: Literal["min", "max"] = "min",
    gradient_clip: float | None = None,
    devices: int = 1,
    strategy: str = "auto",
) -> L.Trainer:
    """Lightning's trainer: logs below `out`, and after each epoch `resume/last.ckpt` and `best.ckpt`.

    Args:
        monitor: what decides which epoch is the best; None takes the last.
        gradient_clip: largest norm of all gradients together.
        devices: processes, one for each device.
        strategy: Lightning's name for how they work together.
    """
    on_cuda = device != "cpu" and torch.cuda.is_available()
    mixed = precision == "bf16" or (precision == "auto" and on_cuda)
    keep = ModelCheckpoint(
        out / RESUME,
        filename="best",
        monitor=monitor,
        mode=mode,
        save_last=True,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    return L.Trainer(
        accelerator={"auto": "auto", "cpu": "cpu", "cuda": "gpu"}[device],
        devices=devices,
        strategy=strategy,
        precision="bf16-mixed" if mixed else "32-true",
        max_epochs=epochs,
        gradient_clip_val=gradient_clip,
        callbacks=[keep, *callbacks],
        logger=[CSVLogger(out, name="logs"), TensorBoardLogger(out, name="logs")],
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def fit(trainer: L.Trainer, recipe: L.LightningModule, state: Path | None) -> None:
    """Runs Lightning's loop without its tips, and lets Ctrl-C be Ctrl-C."""
    with warnings.catch_warnings():
        # All come from Lightning itself and ask nothing of the user.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero.*")
        warnings.filterwarnings("ignore", message=".*sync_dist=True.*")
        warnings.filterwarnings("ignore", message=".*`IterableDataset` has `__len__` defined.*")
        try:
            trainer.fit(recipe, ckpt_path=state, weights_only=None if state is None else True)
        except SystemExit:
            # Lightning turns an interrupt into exit(1) and leaves SIGINT ignored.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from None


def mix(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def versions() -> dict[str, str]:
    """Of what decides a trained model's bytes."""
    return {"torch": torch.__version__, "lightning": L.__version__, "python": platform.python_version()}
