"""train dino and train actions: labelled images to a backbone or an action model."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from driving_xai.cli import console, settings, tables
from driving_xai.cli.shards import Assignments, Config, DryRun, Json
from driving_xai.cli.train import (
    Device,
    Devices,
    check_shards,
    resolve_device,
    resolve_devices,
    tell,
    tell_fetched,
)

Images = Annotated[
    Path, typer.Argument(metavar="SHARDS", help="A folder that prep wrote, of labelled images.")
]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the checkpoint and its logs.")]
Architecture = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="timm's name of the backbone; of weights that timm fetches with their tag, such as "
        "vit_small_patch16_224.dino or vit_small_patch14_reg4_dinov2.lvd142m. [default: vit_small_patch8_224]",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
Seed = Annotated[int | None, typer.Option(help="Of everything random. [default: 0]")]


def actions(
    shards: Images,
    out: Out,
    config: Config = None,
    assignments: Assignments = None,
    model: Architecture = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|DIR|timm",
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
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that load images. [default: 0]")
    ] = None,
    device: Device = "auto",
    devices: Devices = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train a model of the possible driving actions: a ViT or CNN with a linear head.

    By default the backbone is frozen and its features are computed once, for each image and its mirror
    image, and kept in OUT/features. The same shards, settings and seed give the same model, also when
    interrupted and continued with --resume.

    \b
    Example: driving-xai train actions shards model --backbone dino_deitsmall8_pretrain.pth
             driving-xai train actions shards model --model vit_small_patch8_224.dino --backbone timm
    """
    from driving_xai.training.actions import ActionTraining, train, with_saved_architecture

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
    if dry_run:
        check_shards(shards)
        console.print_json({"recipe": "actions", "config": asdict(with_saved_architecture(how))})
        return
    from driving_xai.cli.epochs import EpochLines

    with console.progress("train", unit="epochs") as on_progress:
        metrics = train(
            shards,
            out,
            how,
            device=(on := resolve_device(device)),
            devices=resolve_devices(devices, on),
            resume=resume,
            callbacks=(EpochLines(on_progress),),
            on_features=_FeatureLines(),
        )
    tell(out, metrics, tables.action_accuracy, as_json=as_json)


def dino(
    shards: Images,
    out: Out,
    config: Config = None,
    assignments: Assignments = None,
    model: Architecture = None,
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
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that make views, for each device. [default: 0]")
    ] = None,
    devices: Devices = None,
    device: Device = "auto",
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train a backbone on images without labels, by DINO's self-distillation.

    OUT then holds the teacher's backbone, for `train actions --backbone OUT`. Only images of the
    training split are used, unless the setting `splits` names others.

    \b
    Example: driving-xai train dino shards backbone --model vit_small_patch16_224 --epochs 100
    """
    from driving_xai.training.dino import DinoTraining, train

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
    how = settings.resolve(DinoTraining, config, options=options, assignments=assignments or ())
    from driving_xai.training.processes import rank

    if how.start == "timm" and rank() == 0:
        tell_fetched(how.model.backbone)
    if dry_run:
        check_shards(shards)
        console.print_json({"recipe": "dino", "config": asdict(how)})
        return
    from driving_xai.cli.epochs import EpochLines

    with console.progress("train", unit="epochs") as on_progress:
        callbacks = (EpochLines(on_progress),)
        on = resolve_device(device)
        resolve_devices(devices, on)
        metrics = train(shards, out, how, device=on, resume=resume, callbacks=callbacks)
    tell(out, metrics, tables.self_distillation, as_json=as_json)


class _FeatureLines:
    """Tells now and then how many features are computed."""

    def __init__(self, every_s: float = 10.0) -> None:
        self._every_s, self._last_s = every_s, time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now_s = time.monotonic()
        if done == total or now_s - self._last_s >= self._every_s:
            self._last_s = now_s
            console.say(f"features of {done:,} of {total:,} images")
