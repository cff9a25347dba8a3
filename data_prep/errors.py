"""What this package raises: for bad input, and for an output that cannot be written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class DataError(ValueError):
    """Input data that cannot be used: missing, malformed, or contradicting itself.

    The message is one line: what was got, what was expected, what to do next.
    """


class SettingNeededError(DataError):
    """Input that can be used with other settings; whoever knows the whole command says it."""

    def __init__(
        self,
        message: str,
        *,
        settings: Mapping[str, Any] | None = None,
        reader_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.settings = dict(settings or {})
        """Fields of the configuration."""
        self.reader_options = dict(reader_options or {})


class OutputError(OSError):
    """An output that cannot be written: no permission, no space left. The input is not at fault."""


class StoreError(OSError):
    """An object store that cannot be reached, or refuses. What is finished stays; the same command goes on."""


def quoted(value: object, *, most: int = 60) -> str:
    """A value out of the input, for a message: on one line, and cut where it is long.

    Example:
        >>> quoted("12,5")
        "'12,5'"
        >>> quoted("a" * 5000, most=4)
        "'aaaa'... (5000 characters)"
    """
    text = value if isinstance(value, str) else repr(value)
    kept = min(most, len(text))
    while isinstance(value, str) and len(repr(text[:kept])) > 2 * most:
        kept //= 2  # a character that cannot be printed takes up to ten
    start = repr(text[:kept]) if isinstance(value, str) else text[:kept]
    return start if len(text) <= kept else f"{start}... ({len(text)} characters)"
