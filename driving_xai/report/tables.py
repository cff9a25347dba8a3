"""The scores as Markdown and as CSV, for papers and for other programs."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.shards.atomic import replacing
from driving_xai.evaluation.model_comparison import ModelComparison
from driving_xai.report import words
from driving_xai.report.models import model_comparisons
from driving_xai.report.sources import Board, Source, Standing

_COLUMNS = (
    *("result", "measure", "reference", "unit", "faithful", "method", "control", "frames", "degenerate"),
    *("mean", "low", "high", "normalised", "base_corrected", "chance", "place", "place_low", "place_high"),
)
_COMPARED = ("difference", "low", "high", "p_holm", "rank_biserial", "cliffs_delta", "cohens_dz", "verdict")


def write_markdown(
    sources: Sequence[Source], out: Path, *, models: Sequence[ModelComparison] | None = None
) -> None:
    """Writes what models differ in, and a table for each score of each result.

    Args:
        sources: the results.
        out: the file.
        models: the comparisons of the sources, where they are known already.
    """
    compared = model_comparisons(sources) if models is None else models
    _write(out, "\n".join(_markdown(sources, compared)) + "\n")


def _markdown(sources: Sequence[Source], models: Sequence[ModelComparison]) -> Iterator[str]:
    for found in models:
        yield f"## {_plain(found.first)} against {_plain(found.second)}\n"
        yield from (f"- {_plain(sentence)}" for sentence in (*found.sentences, *found.notes))
        yield ""
    for source in sources:
        level = source.summary["intervals"]["level"]
        yield f"## {_plain(source.label)}\n"
        yield f"checkpoint `{_plain(str(source.summary['plan'].get('checkpoint_sha256')))}`\n"
        for board in source.boards:
            yield f"### {_plain(words.board(board))}\n"
            if warning := words.warning(board):
                yield f"{_plain(warning)}\n"
            for method, sentence in words.findings(board):
                yield f"- {_plain(f'{method}: {sentence}' if method else sentence)}"
            yield f"\n{_plain(board.unit)}; {words.direction(board)}.\n"
            yield f"| method | mean | {100 * level:g} % interval | place | against the controls | frames |"
            yield "|---|---:|---|---|---|---:|"
            for each in board.standings:
                value = each.score["value"]
                cells = [each.method, words.number(value["mean"]), words.interval(value), words.place(each)]
                cells += [words.verdict(board, each), str(each.score["frames"])]
                yield f"| {' | '.join(_plain(cell) for cell in cells)} |"
            yield ""


def _plain(text: str) -> str:
    """Text that Markdown takes as text."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def write_csv(sources: Sequence[Source], out: Path) -> None:
    """Writes a row for each method under each measure and reference, with what it is beside each control."""
    controls = list(dict.fromkeys(name for source in sources for name in source.summary["controls"]))
    columns = [*_COLUMNS, *(f"{name} {control}" for control in map(_beside, controls) for name in _COMPARED)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for source in sources:
        for board in source.boards:
            for each in board.standings:
                writer.writerow([_cell(value) for value in _row(source, board, each, controls)])
    _write(out, text.getvalue())


def _beside(control: str) -> str:
    return f"beside {control}"


def _row(source: Source, board: Board, each: Standing, controls: Sequence[str]) -> list[Any]:
    score, value, place = each.score, each.score["value"], each.place or {}
    row = [source.label, board.measure, board.reference, board.unit, board.about.get("faithful"), each.method]
    row += [each.is_control, score["frames"], score["degenerate"], value["mean"], value["low"], value["high"]]
    row += [(score.get(name) or {}).get("mean") for name in ("normalised", "base_corrected")]
    row += [score.get("chance"), place.get("rank"), place.get("low"), place.get("high")]
    for control in controls:
        pair = each.comparisons.get(control)
        if pair is None:
            row += [None] * len(_COMPARED)
            continue
        row += [pair["value"]["mean"], pair["value"]["low"], pair["value"]["high"], pair["p_holm"]]
        row += [pair[name] for name in ("rank_biserial", "cliffs_delta", "cohens_dz")]
        row.append(each.beside[control])
    return row


def _cell(value: Any) -> Any:
    """A spreadsheet takes text that begins so for a formula."""
    return (
        f"'{value}"
        if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
        else value
    )


def _write(out: Path, text: str) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
