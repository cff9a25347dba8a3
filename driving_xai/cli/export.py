"""export: shards in the formats of others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from driving_xai.cli import console
from driving_xai.cli.options import Drives, Json, Resume, written


def lerobot(
    shards: Drives,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", parser=written, help="Folder for the data set, new or empty.")
    ],
    camera: Annotated[
        str, typer.Option(metavar="NAME", help="The images become observation.images.NAME.")
    ] = "front",
    task: Annotated[str, typer.Option(help="What the driver was asked to do, in words.")] = "drive",
    crf: Annotated[
        int, typer.Option(min=0, max=51, help="Quality of the video: 0 is lossless, 51 the worst.")
    ] = 18,
    version: Annotated[
        Literal["v2.1", "v3.0"],
        typer.Option("--format", help="LeRobot before 0.4 reads v2.1, later ones v3.0."),
    ] = "v2.1",
    resume: Resume = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
    as_json: Json = False,
) -> None:
    """Write drives as a LeRobot data set, version 2.1 or 3.0.

    An episode is an unbroken run of frames in one part of the split; frames between two parts are left
    out. `prep lerobot` reads the result back.

    \b
    Example: driving-xai export lerobot shards my_drives
    """
    from data_prep.lerobot_export import LeRobotConfig, export

    config = LeRobotConfig(camera=camera, task=task, crf=crf, version=version)
    with console.progress("export", unit="episodes") as on_progress:
        found = export(
            shards,
            out,
            config,
            resume=resume,
            overwrite=overwrite,
            on_progress=on_progress,
            on_note=console.say,
        )
    if as_json:
        console.print_json({"out": str(out), **found._asdict()})
        return
    gap = f"; {found.left_out:,} frames between parts of the split left out" if found.left_out else ""
    typer.echo(
        f"{out}: {found.episodes:,} episodes, {found.frames:,} frames at {found.rate_hz} a second{gap}"
    )
