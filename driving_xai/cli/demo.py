"""demo: the main job on a rendered route."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from driving_xai.cli import console, tables
from driving_xai.cli.options import Json


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything the demo makes.")] = Path(
        "demo"
    ),
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Seed of the route, the training and the scoring.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Do the main job on a rendered route; needs no data.

    Prepares shards, trains a steering model with sign attention, scores three methods against two
    baselines, renders the annotated drive, and says in a sentence what was found. About five minutes.

    An interrupted demo continues when it is started again with the same folder.

    \b
    Example: driving-xai demo --out demo
    """
    from data_prep.lock import exclusive
    from driving_xai import demo as composition
    from driving_xai.cli.epochs import EpochLines

    scale = composition.Scale()
    with exclusive(out):
        made = composition.run(out, seed=seed, scale=scale, stage=console.progress, callback=EpochLines)
    if as_json:
        console.print_json(
            {
                **{name: str(path) for name, path in made.paths.items()},
                "metrics": made.metrics,
                "scores": made.summary["scores"],
            }
        )
        return
    places = [f"{name:<10} {path}" for name, path in made.paths.items()]
    lines = tables.results(made.summary, made.paths["scores"])
    typer.echo("\n".join([*places, "", tables.steering_error(made.metrics), "", *lines]))
