"""report: saved results as one page, tables, or a recording for another viewer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from driving_xai.cli import console, settings
from driving_xai.cli.options import Json, fetched, written


def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULT_DIR...",
            parser=fetched,
            help="Folders that score, replay or sanity wrote, and of brush cases.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE.html", parser=written, help="The page to write."),
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE.md", parser=written, help="The scores as tables.")
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option("--csv", metavar="FILE.csv", parser=written, help="The scores, a row for each method."),
    ] = None,
    rrd: Annotated[
        Path | None,
        typer.Option(metavar="FILE.rrd", help="A recording for the Rerun viewer; needs the extra rerun."),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="What to call a folder of results; once for each, in their order."),
    ] = None,
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Faithfulness report",
    embed_mb: Annotated[
        float,
        typer.Option(
            min=0, help="Videos up to so many MB become part of the page; larger ones are files next to it."
        ),
    ] = 12.0,
    as_json: Json = False,
) -> None:
    """Write a page that another person can open, look at and check.

    The page needs no network and no server. Several results stand side by side; a replay's results bring
    their video, in step with the charts, and serve it to other results of the same drive. Results of two
    models are compared frame by frame, where both were scored on the same drive.

    \b
    Example: driving-xai report scores drive.scores -o report.html
    Example: driving-xai report before after --label "version 1" \\
                 --label "version 2" -o report.html
    """
    asked = [path for path in (out, markdown, csv, rrd) if path is not None]
    if not asked:
        raise settings.SettingsError("nothing to write; give --out, --markdown, --csv or --rrd")
    if twice := next((path for path in asked if asked.count(path) > 1), None):
        raise settings.SettingsError(f"{twice} is to be written twice; give each output a name of its own")
    for path, suffix in ((out, ".html"), (rrd, ".rrd")):
        if path is not None and path.suffix != suffix:
            raise settings.SettingsError(f"got {path}; expected a name that ends in {suffix}")
    from driving_xai.report.api import read
    from driving_xai.report.page import PageConfig
    from driving_xai.report.sanity import holds_sanity

    if all(map(holds_sanity, results)):
        raise settings.SettingsError(
            "sanity checks alone make no report; give a folder of score or replay too"
        )
    report = read(results, labels=label or ())
    how = PageConfig(title=title, embed_mb=embed_mb)
    files = report.write(out, config=how, markdown=markdown, csv=csv, rrd=rrd)
    for found in () if as_json else report.comparisons:
        typer.echo("\n".join([f"{found.first} against {found.second}:", *found.sentences, *found.notes]))
    if as_json:
        console.print_json(
            {
                "files": [{"path": str(p), "bytes": p.stat().st_size} for p in files],
                "comparisons": [found.as_json() for found in report.comparisons],
            }
        )
    else:
        typer.echo("\n".join(f"{path}: {path.stat().st_size / 1e6:.2f} MB" for path in files))
