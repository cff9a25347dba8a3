"""doctor: versions, devices, codecs and space of this machine."""

from __future__ import annotations

from dataclasses import asdict

import typer

from driving_xai.cli import console
from driving_xai.cli.options import Json


def doctor(as_json: Json = False) -> None:
    """Examine this machine: versions, devices, codecs, space.

    Exits 1 if something essential is missing.

    \b
    Example: driving-xai doctor --json
    """
    from driving_xai import doctor as examination

    findings = examination.examine()
    ok = examination.healthy(findings)
    if as_json:
        console.print_json({"ok": ok, "findings": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            mark = "ok" if finding.ok else "MISSING" if finding.essential else "-"
            typer.echo(f"{mark:<8} {finding.name:<14} {finding.detail}")
    if not ok:
        raise typer.Exit(console.FAILED)
