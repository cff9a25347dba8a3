"""The loop that every Lightning recipe trains in: processes, resume, best weights, logs, early stopping.

A training is a pure function of its data, configuration and seed: every epoch draws its order, and every
step its augmentation and dropout, from the seed and its own number. So a resumed run ends where an
unbroken one does, and several processes learn what one does, but for rounding.
"""

from __future__ import annotations

import json
import logging
import platform
import signal
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import Tensor

from data_prep.shards.atomic import sha256_of
from driving_xai import checkpoint
from driving_xai.errors import CheckpointError
from driving_xai.training.logs import Progress, loggers
from driving_xai.training.processes import Part, as_one_batch, part_of, placement
from driving_xai.training.state import BEST, LAST, RESUME, WholeCheckpoints, load_saved, load_weights

for _name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(_name).setLevel(logging.WARNING)

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "32", "bf16"]


class RecipeModule(L.LightningModule):
    """What every recipe's module shares: rates by epoch, draws by step, its process's part of a batch."""

    seed: int
    """Of the recipe's configuration."""
    leaves_parameters_out = False
    """Whether a step may not reach every parameter; processes that train together must know."""

    @abstractmethod
    def rates(self, epoch: int) -> dict[str, float]:
        """The learning rate of each named group of the optimiser in this epoch."""

    @abstractmethod
    def extent(self) -> str:
        """What an epoch runs through, for a line that a person reads."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses another model's state in one line, before Lightning loads it."""
        load_weights(self, checkpoint, Path(str(self.trainer.ckpt_path)))

    def on_train_epoch_start(self) -> None:
        rates = self.rates(self.current_epoch)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rates[group["name"]]

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

    def log_loss(self, loss: Tensor, total: int) -> None:
        """Logs the epoch's mean.

        Args:
            loss: the part's mean loss times its share.
            total: examples of the global batch.
        """
        self.log(
            "train_loss",
            loss,
            on_step=False,
            on_epoch=True,
            prog_bar=True,
            batch_size=total,
            sync_dist=self.processes > 1,
        )


@dataclass(frozen=True, kw_only=True)
class Best:
    """Which epoch's weights are kept, and when a training that no longer improves stops."""

    monitor: str
    mode: Literal["min", "max"] = "min"
    patience: int | None = None
    """Epochs without a better value before stopping; None never stops early."""
    first_epoch: int = 0
    """Stopping counts from this epoch on."""


def run(
    module: RecipeModule,
    out: Path,
    *,
    config: Mapping[str, Any],
    state: Path | None,
    epochs: int,
    device: Device,
    precision: Precision,
    devices: int | None = None,
    strategy: str = "auto",
    best: Best | None = None,
    gradient_clip: float | None = None,
    callbacks: Sequence[L.Callback] = (),
) -> L.Trainer:
    """Trains the module, and leaves it with the best epoch's weights, or with the last's.

    After each epoch `resume/last.ckpt` and, of a better one, `resume/best.ckpt` are replaced.

    Args:
        config: the resolved configuration, for TensorBoard's hyper-parameters.
        state: what `state.begun` gave.
        devices: processes of this machine, one for each device; None takes torchrun's, or one.
        strategy: Lightning's name for how they work together; auto is distributed data parallel.
        best: None keeps the last epoch.
        gradient_clip: largest norm of all gradients together; None or 0 for no limit.
        callbacks: Lightning callbacks, for progress.

    Raises:
        ValueError: there are fewer devices than asked for.
    """
    on_cuda = device != "cpu" and torch.cuda.is_available()
    where = placement(devices)
    if on_cuda and where.devices > torch.cuda.device_count():
        raise ValueError(
            f"devices is {where.devices} and torch finds {torch.cuda.device_count()} GPUs; ask for fewer, or for --device cpu"
        )
    mixed = precision == "bf16" or (precision == "auto" and on_cuda)
    trainer = L.Trainer(
        accelerator={"auto": "auto", "cpu": "cpu", "cuda": "gpu"}[device],
        devices=where.devices,
        num_nodes=where.machines,
        strategy=_strategy(strategy, where.processes, module),
        precision="bf16-mixed" if mixed else "32-true",
        max_epochs=epochs,
        gradient_clip_val=gradient_clip or None,
        callbacks=[*_keeping(out, best), *_stopping(best), *callbacks],
        plugins=[WholeCheckpoints()],
        logger=loggers(out, _progress(state)),
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    if not epochs:
        return trainer
    for logger in trainer.loggers:
        logger.log_hyperparams(json.loads(checkpoint.as_json(config)))
    _fit(trainer, module, state, out)
    if best is not None:
        kept = out / RESUME / BEST
        load_weights(module, load_saved(kept), kept)
    return trainer


def _progress(state: Path | None) -> Progress:
    """What a saved state says of itself; None is a training that has not begun."""
    if state is None:
        return Progress(-1, 0)
    saved = load_saved(state)
    return Progress(saved["epoch"], saved["global_step"])


def _strategy(name: str, processes: int, module: RecipeModule) -> str | Strategy:
    if name != "auto" or processes == 1:
        return name
    return DDPStrategy(find_unused_parameters=module.leaves_parameters_out)


def _keeping(out: Path, best: Best | None) -> list[ModelCheckpoint]:
    """What keeps the best epoch's state and the last one's: Lightning's own last is the last that was better."""
    options: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}
    # Of a relative "a::b" Lightning would make a chain of addresses, and it pickles a Path with "::" in it.
    folder = str((out / RESUME).absolute())
    if best is None:
        return [ModelCheckpoint(folder, filename=Path(BEST).stem, save_last=True, **options)]
    return [
        ModelCheckpoint(folder, filename=Path(BEST).stem, monitor=best.monitor, mode=best.mode, **options),
        ModelCheckpoint(folder, filename=Path(LAST).stem, **options),
    ]


class _StoppingFrom(EarlyStopping):
    """Early stopping that begins with a later epoch: a plateau before it stops nothing."""

    def __init__(self, best: Best, *, patience: int) -> None:
        # After the epoch, which validation belongs to, as checkpoints are: a run resumes between epochs.
        super().__init__(best.monitor, mode=best.mode, patience=patience, check_on_train_epoch_end=True)
        self._first_epoch = best.first_epoch

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch >= self._first_epoch:
            super().on_train_epoch_end(trainer, pl_module)


def _stopping(best: Best | None) -> list[L.Callback]:
    return [_StoppingFrom(best, patience=best.patience)] if best is not None and best.patience else []


def _fit(trainer: L.Trainer, module: L.LightningModule, state: Path | None, out: Path) -> None:
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
            trainer.fit(module, ckpt_path=state, weights_only=None if state is None else True)
        except SystemExit:
            # Lightning turns an interrupt into exit(1) and leaves SIGINT ignored.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt(_how_to_go_on(out)) from None


def _how_to_go_on(out: Path) -> str:
    """After Ctrl-C: what is kept, which may be less than what was done."""
    last = out / RESUME / LAST
    kept = _progress(last if last.exists() else None).epoch + 1
    said = f"epochs up to {kept} are kept" if kept else "no epoch is kept yet"
    return f"{said}; the same command with --resume goes on with epoch {kept + 1}"


def what_runs(trainer: L.Trainer, module: RecipeModule) -> str:
    """One line at the start of a training: the data of an epoch, the device, the processes."""
    processes = trainer.world_size
    where = trainer.strategy.root_device.type + (f", {processes} processes" if processes > 1 else "")
    first, last = trainer.current_epoch + 1, trainer.max_epochs
    return f"an epoch is {module.extent()}; epochs {first} to {last} on {where}"


_TRIVIAL: Mapping[str, tuple[str, Literal["lower", "higher"]]] = {
    "mae_deg": ("mae_deg_", "lower"),
    "accuracy": ("accuracy_majority", "higher"),
}


def worse_than_trivial(metrics: Mapping[str, Any]) -> str | None:
    """A sentence where the held-out split is predicted no better than without looking; else None.

    Args:
        metrics: what a recipe returned.

    Example:
        >>> worse_than_trivial({"test": {"accuracy": 0.4, "accuracy_majority": 0.5}})
        'On the test split the model is no better than a prediction that ignores the image: accuracy 0.4 against 0.5.'
    """
    for split in ("test", "val"):
        found = metrics.get(split)
        if found is None:
            continue
        for name, (prefix, better) in _TRIVIAL.items():
            trivial = [value for key, value in found.items() if key.startswith(prefix)]
            if "majority" in found and name == "accuracy":
                trivial.append(found["majority"]["accuracy"])
            if name not in found or not trivial:
                continue
            bar = min(trivial) if better == "lower" else max(trivial)
            if found[name] >= bar if better == "lower" else found[name] <= bar:
                return (
                    f"On the {split} split the model is no better than a prediction that ignores the image: "
                    f"{name} {found[name]:.3g} against {bar:.3g}."
                )
        return None
    return None


def describe(
    kind: str,
    how: Any,
    *,
    inputs: Mapping[str, Any],
    data: Mapping[str, Any],
    resolved: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The config.json of a trained model, less its schema.

    Args:
        kind: of checkpoint; see `checkpoint.KINDS`.
        how: the recipe's configuration, a dataclass with the field `model`.
        inputs: how frames were cut from what a camera saw.
        data: the shards' hash, and what was held out.
        resolved: settings under `training` that say more than the configuration does, such as the hash of
            a file.
    """
    training = {**asdict(how), **(resolved or {})}
    return {
        "kind": kind,
        "model": training.pop("model"),
        "training": training,
        "input": dict(inputs),
        "data": dict(data),
        "versions": versions(),
    }


def file_of_weights(path: Path) -> dict[str, str]:
    """The name and hash of a file of weights, or of the checkpoint in a folder.

    Raises:
        CheckpointError: there is none.
    """
    file = path / checkpoint.WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; check the path of the weights")
    return {"file": path.name, "sha256": sha256_of(file)}


def mix(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def versions() -> dict[str, str]:
    """Of what decides a trained model's bytes."""
    return {"torch": torch.__version__, "lightning": L.__version__, "python": platform.python_version()}
