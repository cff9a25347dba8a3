"""What a person at a terminal sees: one line for each error with its exit code, progress, JSON."""

from __future__ import annotations

import json
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, Literal

import typer

from data_prep.errors import DataError

FAILED, USAGE, INVALID_DATA, BELOW_THRESHOLD, INTERRUPTED = 1, 2, 3, 4, 130
"""Exit codes other than 0; 130 is the shell's convention for Ctrl-C."""

OnProgress = Callable[[float, float], None]
"""Called with what is done and the total; of epochs also a part of one."""
Begin = Literal["at zero", "at the first report"]
"""Where work starts: one that is resumed says at its first report how far it had come."""

_PLAIN_INTERVAL_S, _FIRST_S = 10.0, 3.0
"""Between two lines, and before the first one, which says how long the whole will take."""
_RECENT = 32
"""Reports that an estimate goes by: what was skipped at the start of a resumed run is soon forgotten."""

# Click's, which Typer either imports or carries inside itself: only its subclass is public in both.
_ClickUsageError: type[Exception] = typer.BadParameter.__mro__[1]


class SettingsError(ValueError):
    """A configuration file or option that no recipe understands."""


class UnusableDataError(Exception):
    """A DataError while arguments are read, where Typer makes a mistake in the usage of any ValueError."""


def exit_code(error: Exception) -> int | None:
    """The exit code of an error that a user can cause; None for a bug."""
    if isinstance(error, _ClickUsageError | SettingsError):
        return USAGE
    if isinstance(error, DataError | UnusableDataError):
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
    message = _of_value(error.format_message().rstrip("."))
    return f"{message} S{see}" if message.endswith("?") else f"{message}; s{see}"


_OF_PYDANTIC: Mapping[str, str] = {
    "Input should be a valid integer": "expected a whole number",
    "Input should be a valid": "expected a",
    "Input should be a ": "expected a ",
    "Input should be": "expected a value",
}


def _of_value(message: str) -> str:
    """What was wrong with an option's value without its checker's own phrases, and the choice that was meant.

    Example:
        >>> _of_value("Invalid value for '--split': Value error, 'tset' is not one of 'test', 'train'")
        "--split: 'tset' is not one of 'test', 'train'; did you mean test?"
        >>> _of_value("Invalid value for '--every': Input should be greater than or equal to 1")
        '--every: expected a value greater than or equal to 1'
        >>> _of_value("Invalid value for '--every': Input should be a finite number")
        '--every: expected a finite number'
    """
    if (found := re.fullmatch(r"Invalid value for '(.*?)': (.*)", message, re.DOTALL)) is None:
        return message
    option, said = found.groups()
    said = said.removeprefix("Value error, ")
    said = re.sub(r", unable to parse string as an? \w+", "", said)
    for theirs, ours in _OF_PYDANTIC.items():
        said = said.replace(theirs, ours)
    if choice := re.fullmatch(r"'(.*)' is not one of (.*)", said):
        near = get_close_matches(choice[1], re.findall(r"'([^']*)'", choice[2]), n=1)
        said += f"; did you mean {near[0]}?" if near else ""
    return f"{option}: {said}"


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
def progress(title: str, *, unit: str = "frames", begin: Begin = "at zero") -> Iterator[OnProgress]:
    """Shows how far work has come, on standard error, with an estimate of what is left.

    A bar on a terminal; otherwise a line after a few seconds, then one every ten.

    Args:
        title: of the work.
        unit: of what is counted.
        begin: where it starts.
    """
    if not sys.stderr.isatty():
        yield _plain(title, unit, begin)
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

        def on_progress(done: float, total: float) -> None:
            shown.update(task, completed=done, total=total)

        yield on_progress


def _plain(title: str, unit: str, begin: Begin) -> OnProgress:
    begun = time.monotonic()
    due = begun + _FIRST_S
    reports: deque[tuple[float, float]] = deque(maxlen=_RECENT)
    if begin == "at zero":
        reports.append((begun, 0))

    def on_progress(done: float, total: float) -> None:
        nonlocal due
        now = time.monotonic()
        reports.append((now, done))
        if done >= total or now >= due:
            due = now + _PLAIN_INTERVAL_S
            left = remaining(reports, total)
            say(f"{title}: {done:,.4g} of {total:,} {unit}, {now - begun:.0f} s{left}")

    return on_progress


def remaining(reports: Sequence[tuple[float, float]], total: float) -> str:
    """The end of a line about progress: about how long it will take; empty at the end or where nothing is known.

    Args:
        reports: seconds and what was done by then, in order.
        total: what there is to do.

    Example:
        >>> remaining([(0, 0), (10, 25)], 100), remaining([(0, 0), (60, 1)], 100), remaining([(0, 0)], 9)
        (', about 30 s left', ', about 1 h 39 min left', '')
    """
    (first_s, first), (last_s, last) = reports[0], reports[-1]
    if last <= first or last >= total:
        return ""
    return f", about {duration((total - last) * (last_s - first_s) / (last - first))} left"


def duration(seconds: float) -> str:
    """A length of time as a person says it.

    Example:
        >>> [duration(each) for each in (0.2, 42, 95, 600, 7300)]
        ['1 s', '42 s', '95 s', '10 min', '2 h 2 min']
    """
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
