"""The command line: one file for each command, imported when it runs."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["app", "main"]


def main() -> None:
    """The console script."""
    # Imported inside, so that Ctrl-C during the imports ends as it does later.
    try:
        from driving_xai.cli.commands import app

        app(prog_name="driving-xai")
    except KeyboardInterrupt:
        print("driving-xai: interrupted; nothing was written", file=sys.stderr)
        sys.exit(130)


def __getattr__(name: str) -> Any:
    if name == "app":
        from driving_xai.cli.commands import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
