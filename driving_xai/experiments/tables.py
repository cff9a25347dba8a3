"""Results of an experiment on disk: numbers as JSON, and a Markdown table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data_prep.shards.atomic import replacing


def write_results(out: Path, results: Mapping[str, Any], table: str) -> None:
    """`results.json` and `table.md`, each whole or not at all."""
    with replacing(out / "table.md") as temporary:
        temporary.write_text(table + "\n")
    write_json(out / "results.json", results)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """A JSON file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def markdown_row(title: str, cells: Iterable[str]) -> str:
    """A row of a Markdown table."""
    return f"| {title} | {' | '.join(cells)} |"


def markdown_header(title: str, names: Iterable[str]) -> list[str]:
    """A Markdown table's first two lines."""
    head = markdown_row(title, names)
    return [head, "|" + "---|" * (head.count("|") - 1)]


def p_text(p: float | None) -> str:
    """A p-value for a table."""
    return "-" if p is None else f"{p:.1e}" if p < 1e-3 else f"{p:.3f}"
