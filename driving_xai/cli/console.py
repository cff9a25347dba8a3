"""What a person at a terminal sees: one line for each error with its exit code, progress, JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer

from data_prep.errors import DataError

FAILED, USAGE, INVALID_DATA, BELOW_THRESHOLD, INTERRUPTED = 1, 2, 3, 4, 130
"""Exit codes other than 0; 130 is the shell's convention for Ctrl-C."""

OnProgress = Callable[[int, int], None]
"""Called with what is done and the total."""

_PLAIN_INTERVAL_S = 10.0

# Click's, which Typer either imports or carries inside itself: only its subclass is public in both.
_ClickUsageError: type[Exception] = typer.BadParameter.__mro__[1]


class SettingsError(ValueError):
    """A configuration file or option that no recipe understands."""


def exit_code(error: Exception) -> int | None:
    """The exit code of an error that a user can cause; None for a bug."""
    if isinstance(error, _ClickUsageError | SettingsError):
        return USAGE
    if isinstance(error, DataError):
        return INVALID_DATA
    # What is not imported cannot have been raised: --help must not wait for torch.
    ours = sys.modules.get("driving_xai.errors")
    if ours and isinstance(error, ours.OptionError):
        return USAGE
    if ours and isinstance(error, ours.CheckpointError | ours.UnsupportedModelError):
        return INVALID_DATA
    if ours and isinstance(error, ours.NonFiniteError):
        return FAILED
    engines, torch = sys.modules.get("data_prep.engines"), sys.modules.get("torch")
    lost = engines is not None and isinstance(error, engines.EngineError)
    out_of_memory = isinstance(error, MemoryError) or (
        torch is not None and isinstance(error, torch.OutOfMemoryError)
    )
    return FAILED if lost or out_of_memory or isinstance(error, OSError) else None


def one_line(error: Exception) -> str:
    """An error that a user can cause, for `complain`."""
    if isinstance(error, _ClickUsageError):
        return _usage(error)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}; check the path, its permissions and the free space"
    message = " ".join(str(error).split())
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return f"out of memory ({message}); lower --batch-size or --workers"
    return message


def _usage(error: Any) -> str:
    context = getattr(error, "ctx", None)
    see = f"ee `{context.command_path if context else 'driving-xai'} --help`"
    # Only the error of an unknown option has near ones, and it adds them in words of its own.
    if near := getattr(error, "possibilities", None):
        return f"{error.message}; did you mean {' or '.join(sorted(near))}? S{see}"
    message = error.format_message().rstrip(".")
    return f"{message} S{see}" if message.endswith("?") else f"{message}; s{see}"


def complain(message: str) -> None:
    """One line about what went wrong, on standard error."""
    typer.echo(f"driving-xai: {message}", err=True)


def say(message: str) -> None:
    """One line about the work, on standard error."""
    typer.echo(message, err=True)


def print_json(content: Mapping[str, Any]) -> None:
    """The result, alone on standard output.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot say.
    """
    typer.echo(json.dumps(content, indent=2, sort_keys=True, allow_nan=False, default=str))


@contextmanager
def progress(title: str, *, unit: str = "frames") -> Iterator[OnProgress]:
    """Shows how far work has come, on standard error: a bar on a terminal, otherwise a line at times."""
    if not sys.stderr.isatty():
        yield _plain(title, unit)
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn(unit),
        bars.TimeElapsedColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(title, total=None)

        def on_progress(done: int, total: int) -> None:
            shown.update(task, completed=done, total=total)

        yield on_progress


def _plain(title: str, unit: str) -> OnProgress:
    begun = shown = time.monotonic()

    def on_progress(done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if done >= total or now - shown >= _PLAIN_INTERVAL_S:
            shown = now
            say(f"{title}: {done:,} of {total:,} {unit}, {now - begun:.0f} s")

    return on_progress
