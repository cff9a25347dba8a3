"""What the train commands share: checks, progress lines, and the line about what was reached."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import typer

from driving_xai.cli import console


def show(
    out: Path, metrics: Mapping[str, Any], line: Callable[[Mapping[str, Any]], str], *, as_json: bool
) -> None:
    """Prints what a training has reached.

    Args:
        line: says the metrics in words, for a person.
    """
    if as_json:
        console.print_json({"out": str(out), "metrics": metrics})
    else:
        typer.echo(f"{out}: {line(metrics)}")


def check_shards(shards: Path) -> None:
    """Refuses a folder that holds no shards, before a dry run says that all is well."""
    from data_prep.shards.manifest import Manifest

    Manifest.load(shards)


def tell_fetched(backbone: str) -> None:
    """Says which weights timm fetches for a name: where it has no tag, they need not be those one thinks of."""
    from driving_xai.models.backbone import fetched_name, other_weights

    name = fetched_name(backbone)
    others = ", ".join(other_weights(name))
    console.say(f"weights: timm's {name}" + (f"; there are also {others}" if others else ""))


class FeatureLines:
    """Says now and then how many features are computed."""

    def __init__(self, every_s: float = 10.0) -> None:
        self._every_s, self._last_s = every_s, time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now_s = time.monotonic()
        if done == total or now_s - self._last_s >= self._every_s:
            self._last_s = now_s
            console.say(f"features of {done:,} of {total:,} images")
