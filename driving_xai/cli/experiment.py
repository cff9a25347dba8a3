"""experiment: tables and figures of the papers, and the comparisons behind this project's claims."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from driving_xai.cli import console, settings
from driving_xai.cli.shards import Assignments, Config, Json
from driving_xai.cli.train import Device, resolve_device

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Run an experiment, ours beside theirs.")


@app.callback()
def _group() -> None:
    """Keeps the experiment's name on the command line while there is a single one."""


@app.command()
def steering_cv(
    data: Annotated[Path, typer.Argument(metavar="SHARDS", help="A folder that prep wrote, in blocks.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for models and tables.")],
    config: Config = None,
    assignments: Assignments = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Cross-validate steering over the blocks of a drive, one model for each attention and block.

    OUT then holds every model and its scores, results.json and table.md. A run that was interrupted
    goes on where it stopped.

    \b
    Example: driving-xai experiment steering-cv shards -o cv --set training.epochs=4
    """
    from driving_xai.experiments.steering_cv import CrossValidation, run

    how = settings.resolve(CrossValidation, config, assignments=assignments or ())
    with console.progress("experiment", unit="models") as on_progress:
        results = run(data, out, how, device=resolve_device(device), on_progress=on_progress)
    if as_json:
        console.print_json(results)
    else:
        typer.echo((out / "table.md").read_text().rstrip())
