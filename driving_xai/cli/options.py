"""Arguments and options that several commands share, and what they stand for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from data_prep.errors import DataError
from data_prep.places import local, local_output, local_text
from driving_xai.cli import listing
from driving_xai.cli.console import SettingsError, UnusableDataError


@contextmanager
def _passed_on() -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise UnusableDataError(str(error)) from None


def fetched(text: str | Path) -> Path:
    """What an argument names, on this machine; see `places.local`.

    Raises:
        UnusableDataError: in place of its DataError.
    """
    with _passed_on():
        return local(text)


def fetched_text(text: str) -> str:
    """As `fetched`, for what may also be the name of a model."""
    with _passed_on():
        return local_text(text)


Checkpoint = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        parser=fetched_text,
        help="The model: a folder that train wrote, here or in a store; or timm:NAME, torchvision:NAME, or package.module:factory.",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        parser=fetched,
        help="Weights of a model that is no checkpoint: safetensors, or a .pt of tensors only.",
    ),
]
Shards = Annotated[
    Path,
    typer.Argument(metavar="SHARDS", parser=fetched, help="A folder that prep wrote, here or in a store."),
]
Drives = Annotated[
    Path, typer.Argument(metavar="SHARDS", parser=fetched, help="A folder that prep wrote, with steering.")
]
Images = Annotated[
    Path,
    typer.Argument(metavar="SHARDS", parser=fetched, help="A folder that prep wrote, of labelled images."),
]


def written(text: str | Path) -> Path:
    """An output's path on this machine; see `places.local_output`.

    Raises:
        typer.BadParameter: it is a store's address.

    Example:
        >>> written("run:1/scores")
        PosixPath('run:1/scores')
    """
    try:
        return local_output(text)
    except DataError as error:
        raise typer.BadParameter(str(error)) from None


ModelOut = Annotated[
    Path, typer.Argument(metavar="OUT", parser=written, help="Folder for the checkpoint and its logs.")
]
ResultsOut = Annotated[
    Path, typer.Option("--out", "-o", metavar="DIR", parser=written, help="Folder for the results.")
]

Backbone = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="timm's name of the backbone; for weights that timm fetches with their tag, such as "
        "vit_small_patch16_224.dino or vit_small_patch14_reg4_dinov2.lvd142m. [default: vit_small_patch8_224]",
    ),
]
PresetName = Annotated[
    Literal["paper"] | None,
    typer.Option("--preset", help="Start from the paper's own settings; --config and options override them."),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="TOML with any setting of the recipe; options override it."
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any setting by its name in the TOML file; repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check and show what would be done; write nothing.")]
Logger = Annotated[
    Literal["tensorboard", "wandb", "mlflow", "none"],
    typer.Option(
        help="Where metrics, settings and sample frames go, next to the table in OUT/logs; wandb and mlflow are extras."
    ),
]
Heat = Annotated[
    str | None,
    typer.Option(
        metavar="METHOD",
        help="Method of the heat on the logger's sample frames, or none. [default: the model's own map, or grad-cam]",
    ),
]
HeatEvery = Annotated[
    int,
    typer.Option(min=0, metavar="N", help="Log sample frames with heat every so many epochs; 0 for never."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random. [default: 0]")]
Scheduler = Annotated[str | None, typer.Option(help="Address of a Dask scheduler.")]

ON_BAD = "Count and leave out unusable frames, or stop. [default: drop]"
REFUSE = (
    "Stop at this fault even so: duplicate, out_of_order, clock_jump, gap, no_control, missing_image, "
    "undecodable_image; repeatable."
)
"""Help of two options that `prep` and `replay` share."""

DeviceName = Literal["auto", "cpu", "cuda"]
Device = Annotated[DeviceName, typer.Option(help="Where to compute; auto takes CUDA where there is one.")]
LoaderWorkers = Annotated[int | None, typer.Option(min=0, help="Processes that load data. [default: 0]")]

RequiredMethods = Annotated[
    str, typer.Option("--method", metavar="A,B", help="Methods by name, from the list below.")
]
Devices = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Processes that train together, one a device. [default: 1, or torchrun's]"
    ),
]
Methods = Annotated[
    str | None, typer.Option("--method", metavar="A,B", help="Methods by name, from the list below.")
]
Target = Annotated[
    str | None,
    typer.Option(
        help="What is explained: left, right or magnitude for steering; predicted, every-predicted, "
        "true-class (score only) or the name of an output for other models. [default: magnitude, or predicted]"
    ),
]
Split = Annotated[
    Literal["held-out", "test", "val", "train", "all"] | None,
    typer.Option(
        help="Which frames; held-out are those that the model was not trained on. [default: held-out]"
    ),
]
FrameBatch = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        min=1,
        help="Frames in a forward pass; changes memory and speed only. [default: 32]",
    ),
]
Masks = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        parser=fetched,
        help="PNG masks or an .npz of the pixels that matter, for localisation; see docs/results.md.",
    ),
]


def resolve_devices(count: int | None, device: Literal["cpu", "cuda"]) -> int | None:
    """The number asked for, once there are so many and torchrun agrees."""
    import torch

    from driving_xai.training.processes import placement

    try:
        here = placement(count).devices
    except ValueError as error:
        raise SettingsError(str(error)) from None
    if device == "cuda" and here > torch.cuda.device_count():
        raise SettingsError(
            f"--devices {here}, but torch finds {torch.cuda.device_count()} CUDA devices; use fewer, or --device cpu"
        )
    return count


def resolve_device(name: DeviceName) -> Literal["cpu", "cuda"]:
    """cpu or cuda; auto takes CUDA where there is one."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise SettingsError(
            "--device cuda, but torch finds no CUDA device; use cpu, or see `driving-xai doctor`"
        )
    return name


def methods_of(text: str | None) -> tuple[str, ...] | None:
    """The methods in a list with commas; raises SettingsError for a slip, with the name that is meant."""
    return _known_names("methods", text)


def measures_of(text: str | None) -> tuple[str, ...] | None:
    """The measures in a list with commas; raises SettingsError for a slip, with the name that is meant."""
    return _known_names("measures", text)


def _known_names(kind: Literal["methods", "measures"], text: str | None) -> tuple[str, ...] | None:
    names = names_of(text)
    listing.require_known(kind, names)
    return names


def names_of(text: str | None) -> tuple[str, ...] | None:
    """The names in a list with commas.

    Example:
        >>> names_of("grad-cam, rise")
        ('grad-cam', 'rise')
    """
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())
