"""score and replay: a checkpoint's explanations along a drive, measured and shown."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from driving_xai.cli import console, settings, tables
from driving_xai.cli.shards import Assignments, Config, DryRun, Json
from driving_xai.cli.train import Device

# Written out, because the tables themselves import torch and --help should not wait for it. A test
# compares.
METHODS = ("sign-attention", "soft-attention", "grad-cam", "random", "centre-prior")
MEASURES = (
    "deletion",
    "insertion",
    "pointing-game",
    "mass-inside",
    "top-k-precision",
    "auroc",
    "average-precision",
)

Checkpoint = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A folder that train wrote.")]


def score(
    checkpoint: Checkpoint,
    shards: Annotated[Path, typer.Argument(metavar="SHARDS", help="A folder that prep wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the results.")],
    method: Annotated[
        str | None,
        typer.Option(metavar="A,B", help=f"Any of {', '.join(METHODS)}; the last two are always scored too."),
    ] = None,
    measure: Annotated[
        str | None, typer.Option(metavar="X,Y", help=f"Any of {', '.join(MEASURES)}. [default: deletion]")
    ] = None,
    config: Config = None,
    assignments: Assignments = None,
    target: Annotated[
        str | None, typer.Option(help="What is explained: left, right or magnitude. [default: magnitude]")
    ] = None,
    fill: Annotated[
        Literal["black", "mean", "blur"] | None,
        typer.Option(help="What takes a removed pixel's place. [default: black]"),
    ] = None,
    split: Annotated[
        Literal["held-out", "test", "val", "train", "all"] | None,
        typer.Option(
            help="Which frames; held-out is what the checkpoint was not trained on. [default: held-out]"
        ),
    ] = None,
    every: Annotated[int | None, typer.Option(min=1, help="Score every n-th frame. [default: 1]")] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Frames in a forward pass; changes memory and speed only. [default: 32]"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of ties, of the random control, of the intervals. [default: 0]")
    ] = None,
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Score explanations along a route.

    Each frame is explained, its pixels ranked and removed, and the error measured, beside two controls.

    OUT then holds results.json (how it was measured, means, intervals) and per_frame.parquet (every
    frame's curve). Deletion is in degrees x percent over 0-25 % removed: higher is more faithful.

    \b
    Example: driving-xai score model shards --method sign-attention,grad-cam -o results
    """
    from driving_xai import checkpoint as checkpoints
    from driving_xai.faithfulness.score import ScoreConfig
    from driving_xai.faithfulness.score import score as score_route

    options = {
        "methods": _names(method),
        "measures": _names(measure),
        "target": target,
        "fill": fill,
        "split": split,
        "every": every,
        "batch_size": batch_size,
        "seed": seed,
    }
    how = settings.resolve(ScoreConfig, config, options=options, assignments=assignments or ())
    loaded = checkpoints.load(checkpoint, device=_device(device), kind="steering")
    if dry_run:
        console.print_json({"config": asdict(how), "checkpoint": loaded.sha256})
        return
    with console.progress("score") as on_progress:
        results = score_route(loaded, shards, out, how, resume=resume, on_progress=on_progress)
    if as_json:
        console.print_json(results.summary)
    else:
        typer.echo("\n".join([f"{out}:", *tables.scores(results.summary["scores"])]))


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise settings.SettingsError(
            "--device cuda, but torch finds no CUDA device; use cpu, or see `driving-xai doctor`"
        )
    return name
