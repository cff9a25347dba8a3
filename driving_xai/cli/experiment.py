"""experiment: the tables and figures of the papers, each by its name in the experiments' registry."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from driving_xai.cli import console, settings
from driving_xai.cli.options import Assignments, Config, Device, Json, fetched, resolve_device, written
from driving_xai.cli.training import tell_fetched
from driving_xai.experiments.registry import EXPERIMENTS, Data, Experiment, imported

_DATA: dict[Data, str] = {
    "drives": "A folder that prep wrote, with steering.",
    "actions": "A folder that prep wrote, with actions.",
    "classes": "A folder of `prep image-folder`; - takes a stand-in that is named in the result.",
}
_OWN_OPTIONS = ("checkpoint", "folds")
"""Settings that have an option in some experiments."""
_COMMAND_WIDTH = 64
"""Letters of an example in a line of help, without its indent."""
_RESUMES = "Ours stand next to the paper's. A run that was interrupted goes on where it stopped."


class _Experiments(TyperGroup):
    """One command for each entry of the registry, made when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(EXPERIMENTS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return _command(cmd_name) if cmd_name in EXPERIMENTS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in EXPERIMENTS and not args[0].startswith("-"):
            from data_prep.values import nearest

            ctx.fail(f"No such command {args[0]!r}; {nearest(args[0], EXPERIMENTS)}")
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            typer.echo(ctx.get_help(), err=True)
            raise typer.Exit(console.USAGE)
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for paper, names in _by_paper().items():
            with formatter.section(paper):
                formatter.write_dl([(name, EXPERIMENTS[name].summary) for name in names])


app = typer.Typer(
    cls=_Experiments,
    rich_markup_mode=None,
    help="Run an experiment: a paper's table or figure, ours next to theirs.",
)


def _show_list(asked: bool) -> None:
    if asked:
        for paper, names in _by_paper().items():
            typer.echo(paper)
            for name in names:
                typer.echo(f"  {name:<17} {EXPERIMENTS[name].summary}")
        raise typer.Exit


@app.callback()
def _options(
    listed: Annotated[
        bool,
        typer.Option(
            "--list", is_eager=True, callback=_show_list, help="List the experiments by paper and exit."
        ),
    ] = False,
) -> None:
    """Run an experiment: a paper's table or figure, ours next to theirs."""


def _by_paper() -> dict[str, list[str]]:
    papers: dict[str, list[str]] = {}
    for name, experiment in EXPERIMENTS.items():
        papers.setdefault(experiment.paper, []).append(name)
    return papers


def _command(name: str) -> Any:
    """The command of one experiment, with the options that it reads."""
    experiment = EXPERIMENTS[name]
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    alone.command(name, help=_help(name, experiment), short_help=experiment.summary)(_run)
    command = typer.main.get_command(alone)
    left_out = set(_OWN_OPTIONS) - set(experiment.options) | (set() if experiment.device else {"device"})
    command.params = [each for each in command.params if each.name not in left_out]
    (data,) = (each for each in command.params if each.name == "data")
    data.help = _DATA[experiment.data]  # type: ignore[attr-defined]
    return command


def _run(
    ctx: typer.Context,
    data: Annotated[Path, typer.Argument(metavar="SHARDS", parser=fetched)],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            parser=written,
            help="Folder for runs, networks, tables and figures.",
        ),
    ],
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT", help="A model that train actions wrote, with a transformer. [required]"
        ),
    ] = None,
    folds: Annotated[
        int | None, typer.Option(min=0, help="Cross-validate over so many parts. [default: 0, prep's split]")
    ] = None,
    config: Config = None,
    assignments: Assignments = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    name = str(ctx.info_name)
    experiment = EXPERIMENTS[name]
    recipe = _recipe(name, config, {"checkpoint": checkpoint, "folds": folds}, assignments or [])
    if experiment.fetches and (backbone := imported(experiment.fetches)(recipe)):
        tell_fetched(backbone)
    with _alone(out), console.progress(name, unit=experiment.unit) as on_progress:
        results = imported(experiment.run)(
            None if experiment.data == "classes" and str(data) == "-" else data,
            out,
            recipe,
            device=resolve_device(device) if experiment.device else "cpu",
            on_progress=on_progress,
        )
    if as_json:
        console.print_json(results)
    else:
        typer.echo((experiment.results_folder(name, out) / "table.md").read_text().rstrip())


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keeps other runs out of the folder, and removes what a killed one left half-written anywhere in it."""
    from data_prep.lock import exclusive
    from data_prep.shards.atomic import remove_leftovers

    with exclusive(out):
        for folder, _, _ in os.walk(out):
            remove_leftovers(Path(folder))
        yield


def _recipe(name: str, config: Path | None, options: dict[str, Any], assignments: list[str]) -> Any:
    """The experiment's settings; one that it would not read is refused, a shared file's excepted.

    Raises:
        SettingsError: a setting is unknown, of another type, or only read by another experiment.
    """
    experiment = EXPERIMENTS[name]
    for assignment in assignments:
        given = assignment.partition("=")[0].strip()
        for unread, reader in experiment.unread.items():
            if given == unread or given.startswith(f"{unread}."):
                raise console.SettingsError(
                    f"--set {given}: {name} does not read it, {reader} does; leave it out"
                )
    own = {option: options[option] for option in experiment.options}
    return settings.resolve(imported(experiment.recipe), config, options=own, assignments=assignments)


def _help(name: str, experiment: Experiment) -> str:
    examples = [_continued(f"driving-xai experiment {name} {each}") for each in experiment.examples]
    shown = "\n         ".join(examples)
    parts = (
        f"{experiment.summary} {experiment.paper}.",
        experiment.details,
        _RESUMES,
        f"\b\nExample: {shown}",
    )
    return "\n\n".join(part for part in parts if part)


def _continued(command: str) -> str:
    """A command for help's width, as a shell takes it: a line that is too long goes on before an option."""
    lines = [""]
    for part in re.split(r" (?=-o |--)", command):
        if lines[-1] and len(lines[-1]) + len(part) > _COMMAND_WIDTH:
            lines.append("")
        lines[-1] = f"{lines[-1]} {part}".strip()
    return f" \\\n{' ' * 13}".join(lines)
