"""verify: shards against their manifest."""

from __future__ import annotations

import typer

from data_prep.places import named
from driving_xai.cli import console
from driving_xai.cli.options import Json, Shards


def verify(
    shards: Shards,
    as_json: Json = False,
) -> None:
    """Check every file against its hash, and the contents against what is possible.

    That includes frames, images, labels, times, the index and the gaps between the parts. Exits 3 and names
    each file that is missing, changed or not in the manifest.

    \b
    Example: driving-xai verify shards
    """
    from data_prep.shards.verify import verify as check

    report = check(shards)
    if as_json:
        problems = [problem._asdict() for problem in report.problems]
        console.print_json(
            {
                "root": named(report.root),
                "ok": report.ok,
                "shards": report.shards,
                "rows": report.rows,
                "problems": problems,
            }
        )
    elif report.ok:
        typer.echo(f"{named(shards)}: {report.shards} shards, {report.rows:,} rows, all as the manifest says")
    if not report.ok:
        for problem in report.problems:
            console.say(f"{problem.path}: {problem.what}")
        raise typer.Exit(console.INVALID_DATA)
