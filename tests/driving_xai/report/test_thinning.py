"""Long drives are drawn by fewer frames: every line keeps its extremes, gaps and the frames that are picked."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from driving_xai.report import charts
from driving_xai.report.charts import Charts
from driving_xai.report.sources import load_sources
from driving_xai.report.thinning import rows_to_draw


@pytest.mark.parametrize("seed", range(5))
def test_each_stretch_keeps_the_extremes_of_every_line(seed):
    draw = np.random.default_rng(seed)
    count, most = int(draw.integers(2000, 9000)), 400
    lines = [draw.normal(size=count).cumsum() for _ in range(4)]
    lines[1][draw.random(count) < 0.3] = np.nan
    lines[2][:] = np.nan
    segments = np.repeat([0, 3, 4], [700, 900, count - 1600])
    rows = rows_to_draw(lines, segments, most=most, always={1234})
    assert np.all(np.diff(rows) > 0)
    assert {0, 699, 700, 1599, 1600, count - 1, 1234} <= set(rows.tolist())
    assert len(rows) <= most + 7
    ends = np.linspace(0, count, most // 8 + 1).astype(int)
    for line in (lines[0], lines[1], lines[3]):
        for start, stop in itertools.pairwise(ends):
            drawn = rows[(rows >= start) & (rows < stop)]
            assert np.nanmin(line[drawn]) == np.nanmin(line[start:stop])
            assert np.nanmax(line[drawn]) == np.nanmax(line[start:stop])


def test_few_frames_are_all_drawn():
    line = np.arange(100.0)
    assert rows_to_draw([line], np.zeros(100), most=100).tolist() == list(range(100))


def test_a_thinned_page_names_the_same_frames(write_results, monkeypatch):
    """Picks have new places among fewer frames; what they are is the same, and the drive says that it is thinned."""
    (source,) = load_sources([write_results(frames=900)])

    def drawn() -> dict:
        return Charts((), controls=["random"], frames=3).result(source)

    whole = drawn()
    monkeypatch.setattr(charts, "_MOST_NUMBERS", 1200)
    thin = drawn()
    before, after = whole["drives"][0], thin["drives"][0]
    assert len(after["at"]) < len(before["at"]) / 2
    assert after["name"] == f"{before['name']} ({len(after['at'])} of {len(before['at'])} frames drawn)"
    for key, by_method in whole["picks"].items():
        for method, picks in by_method.items():
            for ours, theirs in zip(thin["picks"][key][method], picks, strict=True):
                assert after["names"][ours["row"]] == before["names"][theirs["row"]]
                assert ours["curves"] == theirs["curves"]
                assert (
                    after["values"][key][method][ours["row"]] == before["values"][key][method][theirs["row"]]
                )
    for key, lines in before["values"].items():
        for method, line in lines.items():
            known = [value for value in line if value is not None]
            kept = [value for value in after["values"][key][method] if value is not None]
            assert (min(known), max(known)) == (min(kept), max(kept))
