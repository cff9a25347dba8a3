"""The command line: parse, call one function, print."""

from __future__ import annotations

from typing import Annotated

import typer

from driving_xai.cli import (
    about,
    drives,
    experiment,
    explain,
    replay,
    report,
    sanity,
    shards,
    train,
    train_actions,
    train_classifier,
)
from driving_xai.cli.console import Commands

app = typer.Typer(
    name="driving-xai",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a bug's traceback is for us; it must show everything, plainly
    rich_markup_mode=None,
    help="See, and prove, what a camera-based driving model looks at.",
    epilog="Exit codes: 0 ok, 1 failed while running, 2 wrong usage, 3 invalid data, 4 threshold missed, "
    "130 interrupted. Progress goes to standard error, results to standard output.",
)


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=about.show_version, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """See, and prove, what a camera-based driving model looks at."""


app.command()(about.demo)
app.command()(shards.prep)
app.command()(shards.verify)
app.command()(about.info)
train.app.command()(train_actions.dino)
train.app.command()(train_actions.actions)
train.app.command()(train_classifier.classifier)
app.add_typer(train.app, name="train")
app.command()(explain.explain)
app.command()(drives.score)
app.command()(sanity.sanity)
app.command()(replay.replay)
app.command()(report.report)
app.add_typer(experiment.app, name="experiment")
app.command()(about.doctor)


def main() -> None:
    """The console script."""
    app(prog_name="driving-xai")
