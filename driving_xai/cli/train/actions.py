"""train actions: labelled images to a model of driving actions."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from driving_xai.cli import console, settings, tables
from driving_xai.cli.options import (
    Assignments,
    Backbone,
    Config,
    Device,
    Devices,
    DryRun,
    Heat,
    HeatEvery,
    Images,
    Json,
    LoaderWorkers,
    Logger,
    ModelOut,
    Resume,
    Seed,
    fetched_text,
    resolve_device,
    resolve_devices,
)
from driving_xai.cli.training import FeatureLines, heat_pictures, show, show_forecast, tell_fetched


def actions(
    shards: Images,
    out: ModelOut,
    config: Config = None,
    assignments: Assignments = None,
    model: Backbone = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|DIR|timm",
            parser=fetched_text,
            help="Weights to start from: DINO's own file, a folder of train dino, or timm's of the name and tag. "
            "[default: random]",
        ),
    ] = None,
    tune: Annotated[
        Literal["head", "all"] | None,
        typer.Option(help="Train the head on frozen features, or every weight. [default: head]"),
    ] = None,
    short_side: Annotated[
        int | None, typer.Option(min=1, metavar="PX", help="To which images are resized. [default: 360]")
    ] = None,
    fold: Annotated[
        int | None, typer.Option(min=0, help="Test on this part of held_out.folds, in place of prep's split.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=0, help="[default: 100]")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images in a step. [default: 64]")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="For 256 images in a step; scaled to fewer. [default: 0.001]")
    ] = None,
    seed: Seed = None,
    workers: LoaderWorkers = None,
    device: Device = "auto",
    devices: Devices = None,
    resume: Resume = False,
    logger: Logger = "tensorboard",
    heat: Heat = None,
    heat_every: HeatEvery = 5,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train a model of the possible driving actions: a ViT or CNN with a linear head.

    By default the backbone is frozen and its features are computed once, for each image and its mirror
    image, and kept in OUT/features. The same shards, settings and seed give the same model, also when
    interrupted and continued with --resume.

    \b
    Example: driving-xai train actions shards model \\
                 --backbone dino_deitsmall8_pretrain.pth
             driving-xai train actions shards model \\
                 --model vit_small_patch8_224.dino --backbone timm
    """
    from driving_xai.training.actions import ActionTraining, recipe, train, with_saved_architecture

    options = {
        "model.backbone": model,
        "start": backbone,
        "tune": tune,
        "short_side_px": short_side,
        "held_out.fold": fold,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "workers": workers,
    }
    how = settings.resolve(ActionTraining, config, options=options, assignments=assignments or ())
    if how.start == "timm":
        tell_fetched(how.model.backbone)
    on = resolve_device(device)
    if dry_run:
        how = with_saved_architecture(how)
        show_forecast("actions", recipe(shards, out, how, device=on), how, device=on, as_json=as_json)
        return
    from driving_xai.cli.epochs import EpochLines

    with console.progress("train", unit="epochs", begin="at the first report") as on_progress:
        metrics = train(
            shards,
            out,
            how,
            device=on,
            devices=resolve_devices(devices, on),
            resume=resume,
            callbacks=(EpochLines(on_progress), *heat_pictures(logger, heat, heat_every)),
            logger=logger,
            on_features=FeatureLines(),
        )
    show(out, metrics, tables.action_accuracy, as_json=as_json)
