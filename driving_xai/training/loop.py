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
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import nn

from data_prep.shards.atomic import sha256_of
from driving_xai import checkpoint
from driving_xai.errors import CheckpointError
from driving_xai.training.logs import LoggerName, Progress, loggers
from driving_xai.training.processes import placement, rank
from driving_xai.training.recipe import Best, Device, ModelCheck, Recipe, RecipeModule, on_device
from driving_xai.training.state import Start, WholeCheckpoints, begun, load_weights
from driving_xai.unfinished import BEST, LAST, RESUME, load_saved

for _name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(_name).setLevel(logging.WARNING)


def train_to_checkpoint(
    recipe: Recipe,
    out: Path,
    *,
    device: Device,
    devices: int | None,
    resume: bool,
    callbacks: Sequence[L.Callback],
    logger: LoggerName,
) -> dict[str, Any]:
    """Trains by a recipe and writes its checkpoint, logs beside it.

    Args:
        out: the checkpoint directory; `resume/` inside it holds what a resumed run needs.
        device: where to compute; auto takes CUDA where there is one.
        devices: processes that train together, each on a part of every batch; None is one, or torchrun's.
        resume: continue an interrupted run of the same configuration, or extend one by more epochs.
        callbacks: Lightning callbacks, for progress.
        logger: where metrics go beside the table in `out`.

    Returns:
        The metrics that are also written. Of several processes only the first has them.

    Raises:
        CheckpointError: `resume` without a run or with another configuration.
    """
    for callback in callbacks:
        if isinstance(callback, ModelCheck):
            callback.check(recipe.model)
    with begun(out, recipe.config, resume) as start:
        module = recipe.build()
        trainer = run(
            module, out, start=start, device=device, devices=devices, callbacks=callbacks, logger=logger
        )
        if rank() > 0:
            return {}
        metrics = module.finished(trainer, out)
        checkpoint.save(out, module.current_model(), start.config, metrics)
        return metrics


def run(
    module: RecipeModule,
    out: Path,
    *,
    start: Start,
    device: Device,
    devices: int | None = None,
    callbacks: Sequence[L.Callback] = (),
    logger: LoggerName = "tensorboard",
) -> L.Trainer:
    """Trains the module, and leaves it with the best epoch's weights, or with the last's.

    After each epoch `resume/last.ckpt` and, of a better one, `resume/best.ckpt` are replaced.

    Raises:
        ValueError: there are fewer devices than asked for.
        OptionError: the logger is not installed.
    """
    plan = module.plan()
    named = loggers(out, _progress(start.state), logger) if plan.epochs else []
    keeping = [Speeds(), *_keeping(out, plan.best), *_stopping(plan.best), *callbacks]
    trainer = trainer_of(module, device, devices, callbacks=keeping, loggers=named, epochs=plan.epochs)
    if not plan.epochs:
        return trainer
    for each in trainer.loggers:
        each.log_hyperparams(json.loads(checkpoint.as_json(start.config)))
    _fit(trainer, module, start.state, out)
    if plan.best is not None:
        kept = out / RESUME / BEST
        load_weights(module, load_saved(kept), kept)
    return trainer


def trainer_of(
    module: RecipeModule,
    device: Device,
    devices: int | None,
    *,
    callbacks: list[L.Callback],
    loggers: list[Logger],
    epochs: int,
    only_steps: int | None = None,
) -> L.Trainer:
    """Lightning's loop as all recipes use it.

    Args:
        only_steps: at most so many in an epoch, without validation or files; None is all of a training.
    """
    plan = module.plan()
    on_cuda = on_device(device) == "cuda"
    where = placement(devices)
    if on_cuda and where.devices > torch.cuda.device_count():
        raise ValueError(
            f"devices is {where.devices} and torch finds {torch.cuda.device_count()} GPUs; ask for fewer, or for --device cpu"
        )
    mixed = plan.precision == "bf16" or (plan.precision == "auto" and on_cuda)
    return L.Trainer(
        accelerator={"auto": "auto", "cpu": "cpu", "cuda": "gpu"}[device],
        devices=where.devices,
        num_nodes=where.machines,
        strategy=_strategy(plan.strategy, where.processes, module),
        precision="bf16-mixed" if mixed else "32-true",
        max_epochs=epochs,
        gradient_clip_val=plan.gradient_clip or None,
        callbacks=callbacks,
        plugins=[WholeCheckpoints()],
        logger=loggers,
        limit_train_batches=only_steps,
        limit_val_batches=None if only_steps is None else 0,
        enable_checkpointing=only_steps is None,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


class Speeds(L.Callback):
    """Logs how fast each epoch was; stands before callbacks that show the epoch's metrics."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, RecipeModule)
        pl_module.speed = pl_module.times.ended()
        if pl_module.speed is not None:
            # Each process measures its own; the first's is shown.
            pl_module.log_dict(pl_module.speed._asdict(), batch_size=1, sync_dist=False)


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
    """Runs Lightning's loop, and lets Ctrl-C be Ctrl-C."""
    try:
        fit_quietly(trainer, module, state)
    except SystemExit:
        # Lightning turns an interrupt into exit(1) and leaves SIGINT ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt(_how_to_go_on(out)) from None


def fit_quietly(trainer: L.Trainer, module: L.LightningModule, state: Path | None) -> None:
    """Runs Lightning's loop without its tips."""
    with warnings.catch_warnings():
        # All come from Lightning itself and ask nothing of the user.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero.*")
        warnings.filterwarnings("ignore", message=".*sync_dist=True.*")
        warnings.filterwarnings("ignore", message=".*`IterableDataset` has `__len__` defined.*")
        trainer.fit(module, ckpt_path=state, weights_only=None if state is None else True)


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
    return (
        f"training {learnt(module):,} parameters on {where}, epochs {first} to {last}; "
        f"an epoch is {module.extent()}"
    )


def learnt(module: nn.Module) -> int:
    """How many parameters change."""
    return sum(weights.numel() for weights in module.parameters() if weights.requires_grad)


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


def versions() -> dict[str, str]:
    """Of what decides a trained model's bytes."""
    return {"torch": torch.__version__, "lightning": L.__version__, "python": platform.python_version()}
