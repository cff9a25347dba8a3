"""The report's section of brush cases: what was painted over, how the outputs change, and the control's spread."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import jinja2
import numpy as np
from markupsafe import Markup

from data_prep.geometry import encode_jpeg
from data_prep.schema import Image
from driving_xai.evaluation.brush_cases import Effect, SavedCase, load_cases
from driving_xai.metrics.regions import moved
from driving_xai.report.sources import labels_of

_PAINT = np.array([214, 36, 127])
_OPACITY = 0.6
_WIDTH_PX = 640
"""Of a picture in the page, at most."""


class CaseFolder(NamedTuple):
    """One folder of saved cases."""

    label: str
    cases: Sequence[SavedCase]


def read_case_folders(paths: Sequence[Path]) -> list[CaseFolder]:
    """Reads and checks folders of cases, as a live view saves them.

    Raises:
        DataError: a case is damaged, or a folder is given twice.
    """
    return [CaseFolder(label, load_cases(path)) for path, label in zip(paths, labels_of(paths), strict=True)]


def section(folders: Sequence[CaseFolder]) -> Markup:
    """The section of the page; empty without cases."""
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(_TEMPLATE)
    return (
        Markup(template.render(folders=folders, picture=_picture, plot=_plot, value=_value))
        if folders
        else Markup()
    )


def _picture(saved: SavedCase) -> Markup:
    """The model's input with the painted region on it, and outlines where the control removed the same area."""
    shown = saved.frame.astype(np.float64)
    for offset in saved.case.offsets:
        outline = _outline(moved(saved.mask, np.array(offset)))
        shown[outline] = 0.65 * shown[outline] + 0.35 * 255
    shown[saved.mask] = (1 - _OPACITY) * shown[saved.mask] + _OPACITY * _PAINT
    return Markup('<img src="data:image/jpeg;base64,{}" alt="{}">').format(
        _jpeg(shown.round().astype(np.uint8)), "The frame as the model sees it, with the painted region"
    )


def _outline(mask: np.ndarray) -> np.ndarray:
    """The pixels of a region that have a neighbour outside it."""
    around = np.pad(mask, 1)
    inside = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    return mask & ~inside


def _jpeg(picture: Image) -> str:
    height, width = picture.shape[:2]
    factor = max(1, _WIDTH_PX // width) if width < _WIDTH_PX else _WIDTH_PX / width
    size = (round(width * factor), round(height * factor))
    shown = cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA)
    return base64.b64encode(encode_jpeg(shown, quality=85)).decode("ascii")


def _plot(effect: Effect, effects: Sequence[Effect]) -> Markup:
    """The size of the region's change as a dot, and those of the control as strokes; one scale for a case."""
    top = max(1e-9, *(size for each in effects for size in (abs(each.change), *each.elsewhere))) * 1.04
    strokes = Markup("").join(
        Markup('<line x1="{0:.2f}" x2="{0:.2f}" y1="3" y2="15"></line>').format(200 * size / top)
        for size in effect.elsewhere
    )
    return Markup(
        '<svg class="spread" viewBox="0 0 200 18" role="img" aria-label="larger than at {} of {} other places">'
        '<line x1="0" x2="200" y1="9" y2="9"></line>{}<circle cx="{:.2f}" cy="9" r="4.5"></circle></svg>'
    ).format(effect.exceeded, len(effect.elsewhere), strokes, 200 * abs(effect.change) / top)


def _value(value: float, unit: str, signed: bool = False) -> str:
    return f"{value:{'+' if signed else ''}.{1 if unit else 2}f}{unit}".replace("-", "−")


_TEMPLATE = """
<style>.cases { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); gap: 22px; }
.cases img { width: 100%; display: block; border-radius: 6px; } .cases .spread { width: 100%; min-width: 90px; height: 18px; overflow: visible; }
.cases .spread line { stroke: var(--control); } .cases .spread circle { fill: #d6247f; } .cases table { margin-top: 6px; }
.cases h3 { margin: 10px 0 4px; } .cases .note { margin-top: 4px; }</style>
<section id="cases" aria-labelledby="cases-title">
  <h2 id="cases-title">What was painted over</h2>
  <p class="lead">A person painted over a part of a frame, and the model was asked again without it: filled black, with the frame's mean colour, and blurred. The control is the same area at other places of the same frame, drawn by a seed and outlined in white: any edit changes something. A case was chosen by a person and is one frame: it shows what happened there and proves nothing about a drive.</p>
{% for folder in folders %}
  {% if folders|length > 1 %}<h3>{{ folder.label }}</h3>{% endif %}
  <div class="cases">
  {% for saved in folder.cases %}
  {% set case, effects = saved.case, saved.case.effects %}
  <article class="case">
    {{ picture(saved) }}
    <h3>{{ case.key or case.drive }}{% if not case.key %}, frame {{ case.frame }}, {{ "%.2f"|format(case.time_s) }} s{% endif %}</h3>
    {% for sentence in case.sentences %}<p>{{ sentence }}</p>{% endfor %}
    {% if case.note %}<p class="note">{{ case.note }}</p>{% endif %}
    <table>
      <thead><tr><th scope="col">Output</th><th scope="col">Filled</th><th scope="col" class="n">Change</th><th scope="col">Here ●, elsewhere |</th></tr></thead>
      <tbody>
      {% for name in case.shown %}
      {% for each in effects if each.output == name %}
      <tr><th scope="row">{{ each.output }}</th><td>{{ each.fill }}</td><td class="n">{{ value(each.change, case.unit, true) }}</td><td>{{ plot(each, effects) }}</td></tr>
      {% endfor %}
      {% endfor %}
      </tbody>
    </table>
    <p class="note">{{ saved.path.name }}{% if case.memory %} · what the model remembered of earlier frames was left as it was{% endif %} · checkpoint <code>{{ (case.checkpoint_sha256 or "–")[:12] }}</code></p>
  </article>
  {% endfor %}
  </div>
{% endfor %}
</section>
"""
