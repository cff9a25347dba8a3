"""The table of commands, and the group that imports a command when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version as installed_version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from driving_xai.cli import console, listing
from driving_xai.cli.option_groups import GroupedCommand

_PLAIN: dict[str, Any] = {"rich_markup_mode": None}
"""Help as plain text, which needs no import of Rich."""


@dataclass(frozen=True)
class Command:
    """A command, by where its function is found."""

    target: str
    """`module:function` below `driving_xai.cli`."""
    summary: str
    """The first line of the function's docstring, for help that imports nothing."""
    lists: tuple[listing.Kind, ...] = ()
    """What its help lists by name at the end."""
    interrupted: str = "nothing half-written was left; the same command starts anew"
    """What Ctrl-C leaves, and how to go on."""


@dataclass(frozen=True)
class Group:
    """Commands under a name of their own."""

    commands: Mapping[str, Command]
    summary: str
    interrupted: str = "the same command with --resume goes on where it had begun"


_TRAIN = {
    "steering": Command(
        "train.steering:steering", "Train a CNN-LSTM that steers, with or without attention."
    ),
    "dino": Command(
        "train.dino:dino", "Train a backbone on images without labels, by DINO's self-distillation."
    ),
    "actions": Command(
        "train.actions:actions",
        "Train a model of the possible driving actions: a ViT or CNN with a linear head.",
    ),
    "classifier": Command(
        "train.classifier:classifier",
        "Train an image classifier: a timm network, a lambda ResNet, or one that explains itself.",
    ),
    "attention": Command(
        "train.attention:attention",
        "Train channel and spatial attention (CBAM) on a network that stays as it is, for attention-guided CAM.",
        interrupted="nothing was written; the same command starts anew",
    ),
}

_EXPORT = {
    "lerobot": Command("export:lerobot", "Write drives as a LeRobot data set, version 2.1 or 3.0."),
}

COMMANDS: Mapping[str, Command | Group] = {
    "demo": Command(
        "demo:demo",
        "Do the main job on a rendered route; needs no data.",
        interrupted="what is finished was kept; the same command goes on",
    ),
    "prep": Command(
        "prep:prep",
        "Turn a recording into shards.",
        lists=("readers",),
        interrupted="finished shards were kept; the same command with --resume goes on",
    ),
    "verify": Command(
        "verify:verify", "Check every file against its hash, and the contents against what is possible."
    ),
    "info": Command("info:info", "Say what a folder holds: shards, a checkpoint, results."),
    "export": Group(_EXPORT, "Write shards in a format of others."),
    "train": Group(_TRAIN, "Train a model on shards, by one recipe."),
    "methods": Command(
        "methods:methods", "List methods and measures, and which methods fit a model.", lists=()
    ),
    "explain": Command(
        "explain:explain", "Explain single images: where the model sees its evidence.", lists=("methods",)
    ),
    "score": Command(
        "score:score",
        "Score explanations along a route.",
        lists=("methods", "measures"),
        interrupted="finished batches were kept; the same command with --resume goes on",
    ),
    "sanity": Command(
        "sanity:sanity", "Check explanations: random weights, noise, agreement.", lists=("methods",)
    ),
    "replay": Command(
        "replay:replay", "Render a drive with the model's evidence on the road.", lists=("methods",)
    ),
    "report": Command("report:report", "Write a page that another person can open, look at and check."),
    "experiment": Command(
        "experiment:app", "Run an experiment: a paper's table or figure, ours next to theirs."
    ),
    "doctor": Command("doctor:doctor", "Examine this machine: versions, devices, codecs, space."),
}


class LazyGroup(TyperGroup):
    """Commands from a table, each imported when it runs or its own help is shown."""

    def __init__(self, *, table: Mapping[str, Command | Group] = COMMANDS, **attributes: Any) -> None:
        super().__init__(**attributes)
        self._table = table

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order of the table, which is that of use."""
        return list(self._table)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in self._table and cmd_name not in self.commands:
            self.commands[cmd_name] = _load(cmd_name, self._table[cmd_name])
        return self.commands.get(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if name not in self._table and not name.startswith("-"):
            from data_prep.values import nearest

            ctx.fail(f"No such command {name!r}; {nearest(name, self._table)}")
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            typer.echo(ctx.get_help(), err=True)
            raise typer.Exit(console.USAGE)
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, each.summary) for name, each in self._table.items()])


class Root(LazyGroup):
    """All commands; what a user can cause becomes one line and an exit code.

    Anything else is a bug of ours and keeps its traceback.
    """

    def make_context(self, *arguments: Any, **attributes: Any) -> Any:
        with _one_line_errors(lambda: None):
            return super().make_context(*arguments, **attributes)

    def invoke(self, ctx: Any) -> Any:
        with _one_line_errors(lambda: ctx.invoked_subcommand):
            return super().invoke(ctx)


@contextmanager
def _one_line_errors(running: Callable[[], str | None]) -> Iterator[None]:
    """Turns what a user can cause into a line and an exit code.

    Args:
        running: says which command runs, once that is known.
    """
    try:
        yield
    except BrokenPipeError:
        raise  # Typer ends quietly when the reader of our output has gone, as `| head` does
    except KeyboardInterrupt as interruption:
        entry = COMMANDS.get(running() or "")
        usual = "nothing was written" if entry is None else entry.interrupted
        console.complain(f"interrupted; {str(interruption) or usual}")
        raise typer.Exit(console.INTERRUPTED) from None
    except Exception as error:
        code = console.exit_code(error)
        if code is None:
            raise
        console.complain(console.one_line(error))
        raise typer.Exit(code) from None


def _load(name: str, entry: Command | Group) -> Any:
    if isinstance(entry, Group):
        return LazyGroup(name=name, table=entry.commands, help=entry.summary, **_PLAIN)
    module, _, attribute = entry.target.partition(":")
    found = getattr(import_module(f"driving_xai.cli.{module}"), attribute)
    if isinstance(found, typer.Typer):
        command = typer.main.get_command(found)
        command.name = name
        return command
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, **_PLAIN)
    epilog = "\n\n".join(map(listing.text, entry.lists))
    alone.command(name, cls=GroupedCommand, epilog=epilog or None)(found)
    return typer.main.get_command(alone)


app = typer.Typer(
    name="driving-xai",
    cls=Root,
    add_completion=False,
    pretty_exceptions_enable=False,  # a bug's traceback is for us; it must show everything, plainly
    help="See, and prove, what a camera-based driving model looks at.",
    epilog="Exit codes: 0 ok, 1 failed while running, 2 wrong usage, 3 invalid data, 4 threshold missed, "
    "130 interrupted. Progress goes to standard error, results to standard output.",
    **_PLAIN,
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"driving-xai {installed_version('driving-xai')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit."),
    ] = False,
) -> None:
    """See, and prove, what a camera-based driving model looks at."""
