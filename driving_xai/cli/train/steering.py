"""train steering: the windows of drives to a steering model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from driving_xai.cli import console, settings, tables
from driving_xai.cli.options import (
    Assignments,
    Config,
    Device,
    Devices,
    Drives,
    DryRun,
    Heat,
    HeatEvery,
    Json,
    Logger,
    ModelOut,
    PresetName,
    Resume,
    Seed,
    fetched,
    resolve_device,
    resolve_devices,
)
from driving_xai.cli.training import FeatureLines, heat_pictures, show, show_forecast, tell_fetched


def steering(
    shards: Drives,
    out: ModelOut,
    preset: PresetName = None,
    config: Config = None,
    assignments: Assignments = None,
    attention: Annotated[
        Literal["none", "soft", "sign"] | None, typer.Option(help="The kind of attention. [default: sign]")
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The convolutions, or timm:NAME for the features of that network. [default: table-1]",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|timm",
            help="Weights of an encoder timm:NAME: a file, or timm's of the name and tag. [default: random]",
        ),
    ] = None,
    tune: Annotated[
        Literal["head", "all"] | None,
        typer.Option(
            help="Train what follows the features of an encoder timm:NAME, or every weight. [default: all]"
        ),
    ] = None,
    hidden_size: Annotated[int | None, typer.Option(min=1, help="Units of the LSTM. [default: 1024]")] = None,
    hold_out: Annotated[
        int | None,
        typer.Option(metavar="BLOCK", help="Test on this time block, or drive, and train on the others."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=0, help="Epochs over windows of frames. [default: 30]")
    ] = None,
    frame_epochs: Annotated[
        int | None, typer.Option(min=0, help="Epochs over single frames, before those. [default: 0]")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Windows in a step. [default: 16]")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="In the epochs over windows. [default: 0.0001]")
    ] = None,
    seed: Seed = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0, help="Processes that load data, where the frames do not fit keep_mib. [default: 0]"
        ),
    ] = None,
    encoder_from: Annotated[
        Path | None,
        typer.Option(
            metavar="CHECKPOINT", parser=fetched, help="Start with the convolutions of this steering model."
        ),
    ] = None,
    device: Device = "auto",
    devices: Devices = None,
    resume: Resume = False,
    logger: Logger = "tensorboard",
    heat: Heat = None,
    heat_every: HeatEvery = 5,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train a CNN-LSTM that steers, with or without attention.

    The same shards, settings and seed give the same model, also when interrupted and continued with
    --resume. OUT then holds model.safetensors, config.json (every setting) and metrics.json.

    \b
    Example: driving-xai train steering shards model --hold-out 4 --epochs 20
             driving-xai train steering shards model --config imagenet.toml \\
                 --weights lite0.safetensors
    """
    from driving_xai.training.presets import table_of
    from driving_xai.training.steering import SteeringTraining, recipe, train

    options = {
        "model.attention": attention,
        "model.encoder": encoder,
        "start": weights,
        "tune": tune,
        "model.hidden_size": hidden_size,
        "held_out.block": hold_out,
        "epochs": epochs,
        "frame_epochs": frame_epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "workers": workers,
    }
    under = table_of(SteeringTraining, preset)
    how = settings.resolve(
        SteeringTraining, config, preset=under, options=options, assignments=assignments or ()
    )
    if how.start == "timm":
        tell_fetched(str(how.model.timm_name))
    on = resolve_device(device)
    if dry_run:
        found = recipe(shards, out, how, device=on, encoder_from=encoder_from)
        show_forecast("steering", found, how, device=on, as_json=as_json)
        return
    from driving_xai.cli.epochs import EpochLines

    with console.progress("train", unit="epochs", begin="at the first report") as on_progress:
        callbacks = (EpochLines(on_progress), *heat_pictures(logger, heat, heat_every))
        metrics = train(
            shards,
            out,
            how,
            device=on,
            devices=resolve_devices(devices, on),
            resume=resume,
            callbacks=callbacks,
            logger=logger,
            encoder_from=encoder_from,
            on_features=FeatureLines(),
        )
    show(out, metrics, tables.steering_error, as_json=as_json)
