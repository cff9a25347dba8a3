"""train: shards to a checkpoint, one sub-command for each recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from driving_xai.cli import console, settings, tables
from driving_xai.cli.shards import Assignments, Config, DryRun, Json

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Train a model on shards, by one recipe.",
)

Device = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute; auto takes CUDA where there is one.")
]

Devices = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Processes that train together, one a device. [default: 1, or torchrun's]"
    ),
]


@app.command()
def steering(
    shards: Annotated[
        Path, typer.Argument(metavar="SHARDS", help="A folder that prep wrote, with steering.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the checkpoint and its logs.")],
    config: Config = None,
    assignments: Assignments = None,
    attention: Annotated[
        Literal["none", "soft", "sign"] | None, typer.Option(help="The kind of attention. [default: sign]")
    ] = None,
    hidden_size: Annotated[int | None, typer.Option(min=1, help="Of the LSTM. [default: 1024]")] = None,
    hold_out: Annotated[
        int | None,
        typer.Option(metavar="BLOCK", help="Test on this time block, or drive, and train on the others."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=0, help="Over windows of frames. [default: 30]")] = None,
    frame_epochs: Annotated[
        int | None, typer.Option(min=0, help="Over single frames, before those. [default: 0]")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Windows in a step. [default: 16]")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Over windows. [default: 0.0001]")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random. [default: 0]")] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that load windows. [default: 0]")
    ] = None,
    encoder_from: Annotated[
        Path | None,
        typer.Option(metavar="CHECKPOINT", help="Start with the convolutions of this steering model."),
    ] = None,
    device: Device = "auto",
    devices: Devices = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train a CNN-LSTM that steers, with or without attention.

    The same shards, settings and seed give the same model, also when interrupted and continued with
    --resume. OUT then holds model.safetensors, config.json (every setting) and metrics.json.

    \b
    Example: driving-xai train steering shards model --hold-out 4 --epochs 20
    """
    from driving_xai.training.steering import SteeringTraining, train

    options = {
        "model.attention": attention,
        "model.hidden_size": hidden_size,
        "held_out.block": hold_out,
        "epochs": epochs,
        "frame_epochs": frame_epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "workers": workers,
    }
    how = settings.resolve(SteeringTraining, config, options=options, assignments=assignments or ())
    if dry_run:
        check_shards(shards)
        console.print_json({"recipe": "steering", "config": asdict(how)})
        return
    from driving_xai.cli.epochs import EpochLines

    with console.progress("train", unit="epochs") as on_progress:
        callbacks = (EpochLines(on_progress),)
        metrics = train(
            shards,
            out,
            how,
            device=(on := resolve_device(device)),
            devices=resolve_devices(devices, on),
            resume=resume,
            callbacks=callbacks,
            encoder_from=encoder_from,
        )
    tell(out, metrics, tables.steering_error, as_json=as_json)


def tell(
    out: Path, metrics: Mapping[str, Any], line: Callable[[Mapping[str, Any]], str], *, as_json: bool
) -> None:
    """Prints what a training has reached; of several processes the first.

    Args:
        line: says the metrics in words, for a person.
    """
    from driving_xai.training.loop import worse_than_trivial
    from driving_xai.training.processes import rank

    if rank() > 0:
        return
    if sentence := worse_than_trivial(metrics):
        console.say(sentence)
    if as_json:
        console.print_json({"out": str(out), "metrics": metrics})
    else:
        typer.echo(f"{out}: {line(metrics)}")


def check_shards(shards: Path) -> None:
    """Refuses a folder that holds no shards, before a dry run says that all is well."""
    from data_prep.shards.manifest import Manifest

    Manifest.load(shards)


def resolve_device(name: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    """cpu or cuda; auto takes CUDA where there is one."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise settings.SettingsError(
            "--device cuda, but torch finds no CUDA device; use cpu, or see `driving-xai doctor`"
        )
    return name


def resolve_devices(count: int | None, device: Literal["cpu", "cuda"]) -> int | None:
    """The number asked for, once there are so many and torchrun agrees."""
    import torch

    from driving_xai.training.processes import placement

    try:
        here = placement(count).devices
    except ValueError as error:
        raise settings.SettingsError(str(error)) from None
    if device == "cuda" and here > torch.cuda.device_count():
        raise settings.SettingsError(
            f"--devices {here}, but torch finds {torch.cuda.device_count()} CUDA devices; use fewer, or --device cpu"
        )
    return count


def tell_fetched(backbone: str) -> None:
    """Says which weights timm fetches for a name: where it has no tag, they need not be those one thinks of."""
    from driving_xai.models.backbone import fetched_name, other_weights

    name = fetched_name(backbone)
    others = ", ".join(other_weights(name))
    console.say(f"weights: timm's {name}" + (f"; there are also {others}" if others else ""))
