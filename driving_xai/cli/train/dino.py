"""train dino: images without labels to a backbone."""

from __future__ import annotations

from typing import Annotated

import typer

from driving_xai.cli import console, settings, tables
from driving_xai.cli.options import (
    Assignments,
    Backbone,
    Config,
    Device,
    Devices,
    DryRun,
    Images,
    Json,
    LoaderWorkers,
    Logger,
    ModelOut,
    PresetName,
    Resume,
    Seed,
    resolve_device,
    resolve_devices,
)
from driving_xai.cli.training import show, show_forecast, tell_fetched


def dino(
    shards: Images,
    out: ModelOut,
    preset: PresetName = None,
    config: Config = None,
    assignments: Assignments = None,
    model: Backbone = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|DIR|timm",
            help="Weights to start from; timm's are of the name and tag. [default: random]",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="[default: 200]")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images in a step of each process. [default: 16]")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="For 256 images in a step; scaled to fewer. [default: 0.0005]")
    ] = None,
    seed: Seed = None,
    workers: LoaderWorkers = None,
    devices: Devices = None,
    device: Device = "auto",
    resume: Resume = False,
    logger: Logger = "tensorboard",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train a backbone on images without labels, by DINO's self-distillation.

    OUT then holds the teacher's backbone, for `train actions --backbone OUT`. Only images of the
    training split are used, unless the setting `splits` names others.

    \b
    Example: driving-xai train dino shards backbone \\
                 --model vit_small_patch16_224 --epochs 100
    """
    from driving_xai.training.dino import DinoTraining, recipe, train
    from driving_xai.training.presets import table_of

    options = {
        "model.backbone": model,
        "start": backbone,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "workers": workers,
        "devices": devices,
    }
    under = table_of(DinoTraining, preset)
    how = settings.resolve(DinoTraining, config, preset=under, options=options, assignments=assignments or ())
    from driving_xai.training.processes import rank

    if how.start == "timm" and rank() == 0:
        tell_fetched(how.model.backbone)
    on = resolve_device(device)
    if dry_run:
        show_forecast("dino", recipe(shards, how), how, device=on, as_json=as_json)
        return
    from driving_xai.cli.epochs import EpochLines

    with console.progress("train", unit="epochs", begin="at the first report") as on_progress:
        callbacks = (EpochLines(on_progress),)
        resolve_devices(devices, on)
        metrics = train(shards, out, how, device=on, resume=resume, callbacks=callbacks, logger=logger)
    show(out, metrics, tables.self_distillation, as_json=as_json)
