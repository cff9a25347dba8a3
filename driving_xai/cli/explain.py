"""explain: single images to pictures and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from driving_xai.cli import console, settings
from driving_xai.cli.models import open_model
from driving_xai.cli.options import (
    Assignments,
    Checkpoint,
    Config,
    Device,
    FrameBatch,
    Json,
    RequiredMethods,
    ResultsOut,
    Seed,
    Target,
    Weights,
    fetched,
    fetched_text,
    methods_of,
    names_of,
    resolve_device,
)


def explain(
    checkpoint: Checkpoint,
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", parser=fetched, help="JPEG or PNG files.")
    ],
    out: ResultsOut,
    method: RequiredMethods,
    target: Target = None,
    save_maps: Annotated[bool, typer.Option("--save-maps", help="Write each map as .npy too.")] = False,
    edited: Annotated[
        str | None,
        typer.Option(
            metavar="PERCENT,...",
            help="Draw the frame without these percents of its most salient pixels too: 0,5,10,25. "
            "See also --set edit=insertion and --set fill=mean.",
        ),
    ] = None,
    panel: Annotated[
        bool,
        typer.Option("--panel", help="Draw all maps of an image in one labelled picture too."),
    ] = False,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            "--compare",
            metavar="CHECKPOINT",
            parser=fetched_text,
            help="Explain by this model too, in the panel; repeatable.",
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A name for each model of the panel, the first one's first; repeatable. "
            "[default: the folders' names]",
        ),
    ] = None,
    smooth: Annotated[
        float | None,
        typer.Option(
            metavar="PX",
            help="Blur the pictures, not the maps, by a Gaussian of this standard deviation. [default: 0.0]",
        ),
    ] = None,
    config: Config = None,
    assignments: Assignments = None,
    batch_size: FrameBatch = None,
    seed: Seed = None,
    weights: Weights = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Explain single images: where the model sees its evidence.

    OUT then holds IMAGE.METHOD.TARGET.png for each map, with --edited IMAGE.METHOD.TARGET.edited.png too, and
    IMAGE.json with the scores and the maps' figures; with --panel IMAGE.panel.png has all maps, a row for each network
    and output and a column for each method. Steering judges each image as the first of a drive.

    \b
    Example: driving-xai explain model frame.jpg --method grad-cam,lime -o maps
    Example: driving-xai explain model frame.jpg --method grad-cam \\
                 --edited 0,5,10,25 -o maps
    Example: driving-xai explain model frame.jpg --method raw-attention,snna \\
                 --set heads=each --panel -o maps
    Example: driving-xai explain soft frame.jpg --method soft-attention --panel \\
                 --compare soft-t0.1 --label "T = 1" --label "T = 0.1" -o maps
    Example: driving-xai explain model frame.jpg --method rise \\
                 --set options.rise.samples=500 -o maps
    """
    from driving_xai.evaluation.explain_images import ExplainConfig, explain_images

    names = _names(checkpoint, compare or (), label)
    options = {
        "methods": methods_of(method),
        "label": names[0] if label else None,
        "target": target,
        "save_maps": save_maps or None,
        "edited": _percents(edited),
        "panel": panel or None,
        "smooth_px": smooth,
        "batch_size": batch_size,
        "seed": seed,
    }
    how = settings.resolve(ExplainConfig, config, options=options, assignments=assignments or ())
    on = resolve_device(device)
    loaded = open_model(checkpoint, device=on, weights=weights)
    others = {
        name: open_model(other, device=on) for name, other in zip(names[1:], compare or (), strict=True)
    }
    written = explain_images(loaded, images, out, how, others=others)
    _say_enlarged(written)
    _say_constant(written)
    if as_json:
        console.print_json({"written": [str(each) for each in written]})
    else:
        typer.echo("\n".join(map(str, written)))


def _names(checkpoint: str, compared: Sequence[str], labels: Sequence[str] | None) -> list[str]:
    """What the models of a panel are called."""
    models = (checkpoint, *compared)
    names = labels or [Path(model).name for model in models]
    if len(names) != len(models):
        raise typer.BadParameter(
            f"got {len(names)} names for {len(models)} models; give one for each", param_hint="--label"
        )
    if len(set(names)) < len(names):
        raise typer.BadParameter(
            f"got models called {', '.join(names)}; give each a name of its own", param_hint="--label"
        )
    return list(names)


def _percents(text: str | None) -> tuple[float, ...] | None:
    named = names_of(text)
    try:
        found = None if named is None else tuple(map(float, named))
    except ValueError:
        found = ()
    if found == ():
        raise typer.BadParameter(f"got {text!r}; expected percents: 0,5,10,25", param_hint="--edited")
    return found


def _say_enlarged(written: Sequence[Path]) -> None:
    """Says which images held fewer pixels than the model was shown."""
    grown = []
    for described in map(json.loads, (file.read_text() for file in written)):
        region, (rows, columns) = described["seen"]["region"], described["seen"]["size"]
        height, width = region["bottom"] - region["top"], region["right"] - region["left"]
        if height < rows or width < columns:
            grown.append(f"{described['image']['name']} ({height} x {width} px to {rows} x {columns})")
    if grown:
        more = f" and {len(grown) - 1} more" if len(grown) > 1 else ""
        console.say(f"enlarged for the model, which sees no more detail by it: {grown[0]}{more}")


def _say_constant(written: Sequence[Path]) -> None:
    """Says which maps are the same everywhere: their pictures show nothing."""
    for described in map(json.loads, (file.read_text() for file in written)):
        for each in described["maps"]:
            if each["degenerate"]:
                name = described["image"]["name"]
                console.say(
                    f"{name}: the map of {each['method']} is the same everywhere, so it shows nothing"
                )
