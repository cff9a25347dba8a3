"""One HTML file that opens from disk without a network: the drive, its charts, scores and settings.

Words and tables are written here; what moves (charts, video, frames) is drawn by page.js from data that
is part of the file. Templates escape all text, data enters as JSON that holds no markup, and the page's
own policy lets it load nothing from outside.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from data_prep.shards.atomic import remove_leftovers, replacing
from driving_xai.evaluation.model_comparison import ModelComparison
from driving_xai.report import drawing, words
from driving_xai.report.brush_cases import CaseFolder, section
from driving_xai.report.charts import Charts
from driving_xai.report.drawing import Scale
from driving_xai.report.glossary import SANITY, terms
from driving_xai.report.models import model_comparisons
from driving_xai.report.sanity import Sanity
from driving_xai.report.sources import Board, Source, Standing
from driving_xai.report.timeline import Video, videos


@dataclass(frozen=True, kw_only=True)
class PageConfig:
    """What a page holds.

    Example:
        >>> PageConfig(title="Route 7", frames=1).embed_mb
        12.0
    """

    title: str = "Faithfulness report"
    embed_mb: float = 12.0
    """Videos up to this size become part of the file; larger ones lie beside it."""
    frames: int = 3
    """Best and worst frames of each score and method, at most."""


def write_page(
    sources: Sequence[Source],
    out: Path,
    config: PageConfig | None = None,
    *,
    sanity: Sequence[Sanity] = (),
    models: Sequence[ModelComparison] | None = None,
    cases: Sequence[CaseFolder] = (),
) -> list[Path]:
    """Writes the page, and beside it the videos that are too large to be part of it.

    Args:
        sources: the results.
        out: the page.
        config: its title, and what becomes part of it.
        sanity: checks that are shown with them.
        models: the comparisons of the sources, where they are known already.
        cases: brush cases that are shown with them.

    Returns:
        What was written, the page first.

    Raises:
        DataError: a video does not fit its results.
        VideoError: a video cannot be decoded.
    """
    config = config or PageConfig()
    shown = videos(sources)
    controls = list(dict.fromkeys(name for source in sources for name in source.summary["controls"]))
    charts = Charts(shown, controls=controls, frames=config.frames)
    out.parent.mkdir(parents=True, exist_ok=True)
    places = [_place(video, out, config.embed_mb) for video in shown]
    inside = zip(shown, places, strict=True)
    text = (
        _environment()
        .get_template("page.html")
        .render(
            title=config.title,
            version=version("driving-xai"),
            sources=sources,
            models=model_comparisons(sources) if models is None else models,
            sanity=sanity,
            cases=section(cases),
            cascade=_cascade,
            controls=controls,
            data=_as_json(_data(sources, shown, places, charts)),
            embedded=[_encoded(video.path) if place is None else None for video, place in inside],
            glossary=[
                *terms(board.measure for source in sources for board in source.boards),
                *(SANITY if sanity else ()),
            ],
            script=Markup(_asset("page.js")),
            style=Markup(_asset("page.css")),
            script_hash=_script_hash(),
            words=words,
            scale_of=_scale_of,
            whisker=_whisker,
            curves=_curves,
        )
    )
    with replacing(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return [out, *(place for place in places if place is not None)]


def _place(video: Video, out: Path, embed_mb: float) -> Path | None:
    """Where a video lies beside the page, copied there where it is not; None: in the page."""
    if video.megabytes <= embed_mb:
        return None
    if video.path.parent == out.resolve().parent:
        return out.with_name(video.path.name)
    beside = out.with_name(f"{out.stem}-{video.path.name}")
    remove_leftovers(beside.parent, of=beside.name)
    with replacing(beside) as temporary:
        shutil.copyfile(video.path, temporary)
    return beside


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")


@cache
def _asset(name: str) -> str:
    return files("driving_xai.report").joinpath(name).read_text(encoding="utf-8")


def _script_hash() -> str:
    digest = hashlib.sha256(_asset("page.js").encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _as_json(content: Any) -> Markup:
    """JSON that cannot leave the script element it stands in."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def _data(
    sources: Sequence[Source], shown: Sequence[Video], places: Sequence[Path | None], charts: Charts
) -> dict[str, Any]:
    """What the script draws."""
    results = [charts.result(source) for source in sources]
    return {
        "results": results,
        "videos": [
            {
                "file": None if place is None else place.name,
                "rate": float(video.frame_rate),
                "starts": None if video.starts_s is None else list(video.starts_s),
                "method": video.method,
            }
            for video, place in zip(shown, places, strict=True)
        ],
        "stills": charts.stills(),
        "maps": charts.maps(),
    }


def _scale_of(board: Board) -> Scale:
    ends = [each.score["value"][name] for each in board.standings for name in ("low", "mean", "high")]
    return Scale.around(ends)


def _whisker(standing: Standing, board: Board, scale: Scale, controls: Sequence[str]) -> Markup:
    means = {each.method: each.score["value"]["mean"] for each in board.standings}
    marks = {_line(controls, name): means[name] for name in controls if means.get(name) is not None}
    return drawing.whisker(standing.score["value"], scale, marks)


def _curves(board: Board, controls: Sequence[str]) -> list[tuple[Standing, Markup]]:
    """A picture for each method that has a mean curve, all on one scale."""
    fractions = board.fractions
    known: Mapping[str, Sequence[float]] = {
        each.method: each.score["curve"]
        for each in board.standings
        if each.score.get("curve") and len(each.score["curve"]) == len(fractions)
    }
    scale = Scale.around(value for line in known.values() for value in line)
    others = {_line(controls, name): known[name] for name in controls if name in known}
    return [
        (each, drawing.curves(fractions, known[each.method], others, scale))
        for each in board.standings
        if each.method in known and not each.is_control
    ]


def _cascade(checks: Sanity, method: str) -> Markup:
    """How a method's maps lose their likeness to the trained model's, layer by layer."""
    line = checks.cascade(method, "spearman")
    stages = [float(stage) for stage in range(len(line))]
    zero = {"control-0": [0.0] * len(line)}
    values = [value for each in checks.methods for value in checks.cascade(each, "spearman")]
    scale = Scale.around([-0.1, 1.0, *values])
    return drawing.curves(stages, line, zero, scale, ends=("trained", "all random"))


def _line(controls: Sequence[str], name: str) -> str:
    """The class of a control's line, wherever it is drawn."""
    return f"control-{controls.index(name)}"
