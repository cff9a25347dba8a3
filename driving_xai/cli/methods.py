"""methods: explainers and metrics by family, and which explainers fit a model."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from driving_xai.cli import console, listing
from driving_xai.cli.models import open_model
from driving_xai.cli.options import Json, Weights, fetched_text

_COLUMNS = 80


def methods(
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="[CHECKPOINT]",
            parser=fetched_text,
            help="A model, to see which methods fit it, and why others do not.",
        ),
    ] = None,
    weights: Weights = None,
    as_json: Json = False,
) -> None:
    """List methods and measures, and which methods fit a model.

    \b
    Example: driving-xai methods
    Example: driving-xai methods model
    """
    reasons = {} if checkpoint is None else _reasons(checkpoint, weights)
    found = {
        "methods": _rows(listing.methods(), listing.summaries("methods"), reasons),
        "measures": _rows(listing.measures(), listing.summaries("measures"), {}),
    }
    if as_json:
        console.print_json(found)
        return
    for kind, rows in found.items():
        typer.echo(
            "\n".join([f"{kind.capitalize()}:", *_lines(rows, shown=kind == "methods" and bool(reasons)), ""])
        )


def _reasons(checkpoint: str, weights: Path | None) -> dict[str, str | None]:
    """For each method why it does not fit the model; None where it fits."""
    model = open_model(checkpoint, device="cpu", weights=weights).model
    return {name: listing.misfit(name, model) for names in listing.methods().values() for name in names}


def _rows(
    families: listing.Families, summaries: dict[str, str], reasons: dict[str, str | None]
) -> list[dict[str, Any]]:
    return [
        {"family": family, "name": name, "summary": summaries[name]}
        | ({"fits": reasons[name] is None, "reason": reasons[name]} if name in reasons else {})
        for family, names in families.items()
        for name in names
    ]


def _lines(rows: list[dict[str, Any]], *, shown: bool) -> list[str]:
    """A heading for each family and a line for each name; with a model a mark of what fits."""
    wide = max(len(row["name"]) for row in rows) + 2
    lines, family = [], None
    for row in rows:
        if row["family"] != family:
            family = row["family"]
            lines.append(f"  {family}")
        mark = ("yes  " if row["fits"] else "no   ") if shown else ""
        text = row["reason"] if shown and row["reason"] else row["summary"]
        before = f"    {mark}{row['name']:<{wide}}"
        lines += textwrap.wrap(
            f"{before}{text}",
            _COLUMNS,
            subsequent_indent=" " * len(before),
            break_on_hyphens=False,
            break_long_words=False,
        )
    return lines
