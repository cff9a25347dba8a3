"""train classifier: images of one class each to a classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from driving_xai.cli import console, settings, tables
from driving_xai.cli.options import (
    Assignments,
    Config,
    Device,
    Devices,
    DryRun,
    Heat,
    HeatEvery,
    Images,
    Json,
    Logger,
    ModelOut,
    Resume,
    Seed,
    fetched,
    resolve_device,
    resolve_devices,
)
from driving_xai.cli.training import heat_pictures, show, show_forecast, tell_fetched


def classifier(
    shards: Images,
    out: ModelOut,
    config: Config = None,
    assignments: Assignments = None,
    network: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="small-cnn, lambda-resnet, labn, cbam-RESNET or any timm name; bla, bla-t, bla-ph, l2x-f, "
            "bla-sigmoid or bla-concept classify by the evidence that they select. [default: resnet18]",
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=fetched,
            help="Start from these weights, a local file. Frozen backbones of bla and its kin also take random. "
            "[default: random, or timm's own for frozen backbones]",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="[default: 30]")] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Images in a step. [default: 32]")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="[default: 0.001]")] = None,
    seed: Seed = None,
    device: Device = "auto",
    devices: Devices = None,
    resume: Resume = False,
    logger: Logger = "tensorboard",
    heat: Heat = None,
    heat_every: HeatEvery = 5,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train an image classifier: a timm network, a lambda ResNet, or one that explains itself.

    The classes are the label columns of the shards. OUT then holds model.safetensors, config.json (every
    setting) and metrics.json, accuracy next to that of always choosing the most common class.

    \b
    Example: driving-xai train classifier shards model --model labn \\
                 --set model.stem=small
             driving-xai train classifier shards model --model bla-t \\
                 --set model.backbone=efficientnet_b0
    """
    options: dict[str, Any]
    if network == "l2x":
        raise console.SettingsError(
            "--model l2x: give l2x-f, its form on a frozen network; `driving-xai experiment baumhauer-mnist` and "
            "baumhauer-l2x have the original"
        )
    if network is not None and network in _SELECTING:
        if (devices or 1) > 1:
            raise console.SettingsError(
                f"--devices {devices}, but {network} trains on kept features in one process; leave it out"
            )
        if (logger, heat, heat_every) != ("tensorboard", None, 5):
            raise console.SettingsError(
                f"--logger, --heat or --heat-every: {network} trains on kept features and logs nothing; leave them out"
            )
        given = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
        options = {f"{stage}.{name}": value for name, value in given.items() for stage in _STAGES}
        options |= {"weights": None if weights is None else str(weights), "seed": seed}
        _selecting(network, shards, out, config, options, assignments or (), device, resume, dry_run, as_json)
        return
    from driving_xai.training.classify import ClassifierTraining, recipe_on_shards, train_on_shards

    options = {
        "model.network": network,
        "weights": None if weights is None else str(weights),
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
    }
    how = settings.resolve(ClassifierTraining, config, options=options, assignments=assignments or ())
    on = resolve_device(device)
    if dry_run:
        show_forecast("classifier", recipe_on_shards(shards, how), how, device=on, as_json=as_json)
        return
    from driving_xai.cli.epochs import EpochLines

    with console.progress("train", unit="epochs", begin="at the first report") as on_progress:
        metrics = train_on_shards(
            shards,
            out,
            how,
            device=on,
            devices=resolve_devices(devices, on),
            resume=resume,
            callbacks=(EpochLines(on_progress), *heat_pictures(logger, heat, heat_every)),
            logger=logger,
        )
    show(out, metrics, tables.class_accuracy, as_json=as_json)


# The options of each model that selects what it judges by: its attention, and what becomes of the head.
_SELECTING: Mapping[str, Mapping[str, str]] = {
    "bla": {"model.attention": "bla"},
    "bla-t": {"model.attention": "bla-t"},
    "bla-ph": {"model.attention": "bla-t", "head": "baseline"},
    "l2x-f": {"model.attention": "l2x-f"},
    "bla-sigmoid": {"model.attention": "sigmoid"},
    "bla-concept": {"model.attention": "concept"},
}
_STAGES = ("baseline", "augmented")


def _selecting(
    name: str,
    shards: Path,
    out: Path,
    config: Path | None,
    options: Mapping[str, Any],
    assignments: Sequence[str],
    device: Literal["auto", "cpu", "cuda"],
    resume: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Trains bounded logit attention or L2X-F; --resume takes the features that an earlier run kept."""
    from driving_xai.data.images import LabelledImages
    from driving_xai.training.bounded_logit import BoundedLogitTraining, train

    how = settings.resolve(
        BoundedLogitTraining, config, options={**_SELECTING[name], **options}, assignments=assignments
    )
    images = LabelledImages(shards, keep_mib=how.keep_mib)
    if how.fetches:
        tell_fetched(how.model.backbone)
    on = resolve_device(device)
    if dry_run and as_json:
        console.print_json({"recipe": name, "config": asdict(how)})
        return
    console.say(
        f"{'it would train on kept features; ' if dry_run else ''}an epoch is {len(images.rows('train')):,} images, {how.augmented.batch_size} a step, on {on}"
    )
    if dry_run:
        return
    with console.progress("features", unit="images") as on_progress:
        metrics = train(images, out, how, device=on, resume=resume, on_progress=on_progress)
    show(out, metrics, tables.class_accuracy, as_json=as_json)
