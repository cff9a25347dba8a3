"""Small pictures: where things stand in them."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driving_xai.report.drawing import Scale, curves, whisker


@given(low=st.floats(-1e6, 1e6), width=st.floats(1e-3, 1e6), most=st.integers(2, 8))
def test_ticks_are_round_few_and_inside(low, width, most):
    scale = Scale(low=low, high=low + width)
    ticks = scale.ticks(most)
    assert 2 <= len(ticks) <= most + 1
    room = 1e-6 * (width + abs(low))
    assert all(scale.low - room <= tick <= scale.high + room for tick in ticks)
    steps = {round(b - a, 9) for a, b in itertools.pairwise(ticks)}
    assert max(steps, default=1) - min(steps, default=1) <= room


def test_a_scale_holds_its_values_and_survives_none():
    scale = Scale.around([2.0, None, 4.0, float("nan")])
    assert 0 < scale(2.0) < scale(4.0) < 1
    assert Scale.around([]) == Scale(low=0.0, high=1.0)
    assert Scale.around([3.0])(3.0) == pytest.approx(0.5)
    assert Scale.around([0.0])(0.0) == pytest.approx(0.5)


def test_a_whisker_has_its_mean_inside_its_interval():
    scale = Scale(low=0.0, high=10.0)
    root = ElementTree.fromstring(whisker({"mean": 5.0, "low": 2.5, "high": 10.0}, scale, {"control-0": 0.0}))
    place = {each.get("class"): each for each in root}
    assert place["mean"].get("cx") == "50.00%"
    assert (place["interval"].get("x1"), place["interval"].get("x2")) == ("26.00%", "98.00%")
    assert place["mark control-0"].get("x1") == "2.00%"
    bare = ElementTree.fromstring(whisker({"mean": None, "low": None, "high": None}, scale, {}))
    assert len(bare) == 0


def test_a_curve_rises_upwards_and_ends_where_it_should():
    picture = curves([0.0, 0.1, 0.2], [0.0, 5.0, 10.0], {"control-0": [0.0, 0.0, 0.0]}, Scale(low=0, high=10))
    lines = re.findall(r'<polyline class="curve ([^"]+)" points="([^"]+)"', picture)
    assert [name for name, _ in lines] == ["control-0", "own"]
    points = [tuple(map(float, pair.split(","))) for pair in lines[1][1].split()]
    assert points[0][1] > points[1][1] > points[2][1]
    assert points[1][0] - points[0][0] == pytest.approx(points[2][0] - points[1][0], abs=0.2)
    assert ">20 %<" in picture


def test_labels_of_small_negative_values_have_room():
    picture = curves([0.0, 1.0], [-0.0091, 0.0002], {}, Scale(low=-0.0091, high=0.0002))
    ends = {
        text: float(x) for x, text in re.findall(r'<text x="([^"]+)"[^>]*text-anchor="end">([^<]+)<', picture)
    }
    label = min(ends, key=ends.get)
    assert label.startswith("−0.00")
    assert ends[label] >= 6.5 * len(label), "eleven pixels high, a digit is at most 6.5 wide"
