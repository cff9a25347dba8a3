"""What the train commands share: checks, progress lines, and the line about what was reached."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from driving_xai.cli import console, listing

if TYPE_CHECKING:
    import lightning as L

    from driving_xai.training.forecast import Forecast
    from driving_xai.training.recipe import Recipe


def show(
    out: Path, metrics: Mapping[str, Any], line: Callable[[Mapping[str, Any]], str], *, as_json: bool
) -> None:
    """Prints what a training has reached; of several processes the first.

    Args:
        line: says the metrics in words, for a person.
    """
    from driving_xai.training.loop import worse_than_trivial
    from driving_xai.training.processes import rank

    if rank() > 0:
        return
    if sentence := worse_than_trivial(metrics):
        console.say(sentence)
    if as_json:
        console.print_json({"out": str(out), "metrics": metrics})
    else:
        typer.echo(f"{out}: {line(metrics)}")


def show_forecast(
    name: str, recipe: Recipe, how: Any, *, device: Literal["cpu", "cuda"], as_json: bool
) -> None:
    """Prints what a training would be: two sentences, or JSON with every setting.

    Args:
        name: of the recipe.
        how: its configuration, a dataclass.
    """
    from driving_xai.training.forecast import forecast

    found = forecast(recipe, device=device)
    if as_json:
        console.print_json({"recipe": name, "config": asdict(how), "forecast": found.as_json()})
        return
    typer.echo(
        f"It would train {found.parameters:,} parameters on {found.device} for {found.epochs} epochs; "
        f"an epoch is {found.extent}, {found.extent.steps:,} steps."
    )
    typer.echo(f"{_how_long(found)}; {found.memory_bytes / 1e9:.2g} GB of memory. Nothing was written.")


def _how_long(found: Forecast) -> str:
    if found.speed is None:
        if not found.epochs:
            return "Nothing is to be trained"
        if not found.before_s:
            return "The features of all images are kept already; epochs on them are short"
        return (
            f"First the features of all images are computed, about {console.duration(found.before_s)} by two of them "
            "here; epochs on kept features are short"
        )
    return (
        f"A few steps here ran at {found.speed.frames_per_s:,.4g} frames/s, {found.speed.data_wait_share:.0%} of the time "
        f"waiting for data: at most about {console.duration(found.seconds)}"
    )


def heat_pictures(logger: str, method: str | None, every: int) -> tuple[L.Callback, ...]:
    """What logs sample frames with heat, where that is asked for and there is a log that takes pictures.

    Raises:
        SettingsError: no method has that name, or heat is asked for and nothing would show it.
        OptionError: the logger is not installed.
    """
    from driving_xai.training.heat_pictures import HeatPictures
    from driving_xai.training.logs import require_logger

    require_logger(logger)
    if method not in (None, "none"):
        listing.require_known("methods", (method,))
        if not every or logger == "none":
            reason = "--logger none" if logger == "none" else "--heat-every 0"
            raise console.SettingsError(
                f"--heat {method} with {reason}, which shows none; leave one of them out"
            )
    if method == "none" or not every or logger == "none":
        return ()
    return (HeatPictures(method=method, every=every),)


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
