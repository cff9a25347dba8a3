"""experiment: tables and figures of the papers, and the comparisons behind this project's claims."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from driving_xai.cli import console, settings
from driving_xai.cli.shards import Assignments, Config, Json
from driving_xai.cli.train import Device, resolve_device

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Run an experiment, ours beside theirs.")


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
    _show(out, results, as_json)


_ImageData = Annotated[
    Path,
    typer.Argument(
        metavar="SHARDS",
        help="A folder of `prep image-folder`; - takes a stand-in that is named in the result.",
    ),
]
_TableOut = Annotated[
    Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for runs, features and the table.")
]


@app.command()
def baumhauer_table1(
    data: _ImageData,
    out: _TableOut,
    config: Config = None,
    assignments: Assignments = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """What bounded logit attention and L2X cost in accuracy, over 20 paired runs.

    Heads are trained on the kept features of a frozen network, EfficientNet-B0 unless set otherwise. A
    run that was interrupted goes on where it stopped.

    \b
    Example: driving-xai experiment baumhauer-table1 - -o table1
             driving-xai experiment baumhauer-table1 birds -o table1 --set network.weights=b0.safetensors
    """
    from driving_xai.experiments.baumhauer import Table1, table1

    how = settings.resolve(Table1, config, assignments=assignments or ())
    with console.progress("experiment", unit="runs") as on_progress:
        results = table1(_given(data), out, how, device=resolve_device(device), on_progress=on_progress)
    _show(out, results, as_json)


@app.command()
def baumhauer_table2(
    data: _ImageData,
    out: _TableOut,
    config: Config = None,
    assignments: Assignments = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """How well bounded logit attention and CAM agree with LIME, in rank.

    \b
    Example: driving-xai experiment baumhauer-table2 - -o table2 --set images=50
    """
    from driving_xai.experiments.baumhauer import Table2, table2

    how = settings.resolve(Table2, config, assignments=assignments or ())
    with console.progress("experiment", unit="images") as on_progress:
        results = table2(_given(data), out, how, device=resolve_device(device), on_progress=on_progress)
    _show(out, results, as_json)


@app.command()
def baumhauer_mnist(
    data: _ImageData,
    out: _TableOut,
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Three against eight: bounded logit attention and L2X beside a baseline, over 20 runs.

    \b
    Example: driving-xai experiment baumhauer-mnist - -o mnist
    """
    from driving_xai.experiments.baumhauer_mnist import Mnist, run

    how = settings.resolve(Mnist, config, assignments=assignments or ())
    with console.progress("experiment", unit="runs") as on_progress:
        results = run(_given(data), out, how, on_progress=on_progress)
    _show(out, results, as_json)


def _given(data: Path) -> Path | None:
    return None if str(data) == "-" else data


def _show(out: Path, results: dict[str, Any], as_json: bool) -> None:
    if as_json:
        console.print_json(results)
    else:
        typer.echo((out / "table.md").read_text().rstrip())
