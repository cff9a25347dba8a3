"""Drawings: the SVG and the PNG say the same, charts put values where their axes say."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from driving_xai.experiments.chart import Curve, Row, curves, intervals, ticks
from driving_xai.experiments.drawing import Area, Dot, Drawing, Label, Line

SVG = "{http://www.w3.org/2000/svg}"


def elements(drawing: Drawing, tag: str) -> list[ET.Element]:
    return ET.fromstring(drawing.svg()).findall(f"{SVG}{tag}")


def text_at(drawing: Drawing, text: str) -> tuple[float, float]:
    found = next(each for each in elements(drawing, "text") if each.text == text)
    return float(found.get("x")), float(found.get("y"))


def test_the_picture_shows_what_the_document_says() -> None:
    drawing = Drawing(
        width=60,
        height=40,
        shapes=(
            Area(points=((0, 0), (20, 0), (20, 20), (0, 20)), colour="#0000ff", opacity=0.5),
            Line(points=((30, 10), (50, 10)), colour="#ff0000", width=4),
            Dot(centre=(40, 30), colour="#00ff00", radius=5),
            Dot(centre=(10, 30), colour="#00ff00", radius=5, filled=False),
        ),
    )
    picture = np.asarray(drawing.png())
    assert picture.shape == (80, 120, 3)
    at = {name: picture[2 * y, 2 * x].tolist() for name, (x, y) in {
        "area": (10, 10), "line": (40, 10), "dot": (40, 30), "ring's middle": (10, 30), "paper": (55, 35),
    }.items()}  # fmt: skip
    assert at["line"] == [255, 0, 0]
    assert at["dot"] == [0, 255, 0]
    assert at["ring's middle"] == at["paper"] == [255, 255, 255]
    assert at["area"] == pytest.approx([127, 127, 255], abs=1)
    assert [each.get("r") for each in elements(drawing, "circle")] == ["5", "5"]


def test_half_of_a_dashed_line_is_drawn() -> None:
    line = Line(points=((10, 10), (60, 10), (60, 50)), colour="#000000", width=2, dash=5)
    for shown, dashed in ((line, True), (Line(points=line.points, colour="#000000", width=2), False)):
        picture = np.asarray(Drawing(width=70, height=60, shapes=(shown,)).png().convert("L"))
        along = np.concatenate((picture[20, 20:120], picture[20:100, 120]))
        assert (along < 128).mean() == pytest.approx(0.5 if dashed else 1.0, abs=0.06)


@pytest.mark.parametrize("upright", [True, False])
def test_a_label_is_centred_on_its_point(upright: bool) -> None:
    label = Label(at=(60, 50), text="HHHHHH", anchor="middle", upright=upright)
    picture = np.asarray(Drawing(width=120, height=100, shapes=(label,)).png().convert("L"))
    rows, columns = np.nonzero(picture < 128)
    centre = ((columns.min() + columns.max()) / 4, (rows.min() + rows.max()) / 4)
    assert centre == pytest.approx((60, 50), abs=1.5)
    assert (np.ptp(columns) > np.ptp(rows)) == upright


def test_markup_in_text_stays_text() -> None:
    drawing = Drawing(width=9, height=9, shapes=(Label(at=(1, 1), text="a < b & <script>"),))
    assert elements(drawing, "text")[0].text == "a < b & <script>"


def test_both_files_are_written_and_nothing_else(tmp_path) -> None:
    Drawing(width=10, height=10, shapes=()).save(tmp_path / "figures" / "empty")
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["empty.png", "empty.svg"]


@given(
    low=st.floats(-1e6, 1e6).map(lambda low: round(low, 6)),
    span=st.just(0.0) | st.floats(1e-3, 1e6),
    most=st.integers(5, 10),
)
def test_ticks_are_even_round_and_reach_around(low: float, span: float, most: int) -> None:
    marks = ticks(low, low + span, most)
    slack = 1e-9 * max(1.0, abs(low) + span)
    assert marks[0] <= low + slack
    assert marks[-1] >= low + span - slack
    assert 2 <= len(marks) <= most + 1
    steps = np.diff(marks)
    assert steps == pytest.approx(steps[0], rel=1e-6)
    leading = steps[0] / 10 ** np.floor(np.log10(steps[0] * (1 + 1e-9)))
    assert min(abs(leading - each) for each in (1, 2, 5)) < 1e-3


@pytest.mark.parametrize("log", [False, True])
def test_a_curve_passes_where_the_axes_are_labelled(log: bool) -> None:
    x, y = [1.0, 10.0, 100.0], [2.0, 6.0, 4.0]
    chart = curves([Curve(name="ours", x=x, y=y)], title="t", x_title="x", y_title="y", x_ticks=x, x_log=log)
    drawn = next(each for each in elements(chart, "polyline") if each.get("stroke-width") == "2")
    points = [tuple(map(float, point.split(","))) for point in drawn.get("points").split()]
    for (at_x, at_y), value_x, value_y in zip(points, x, y, strict=True):
        assert at_x == pytest.approx(text_at(chart, f"{value_x:g}")[0], abs=0.01)
        assert at_y == pytest.approx(text_at(chart, f"{value_y:g}")[1], abs=0.01)
    middle = (points[0][0] + points[2][0]) / 2
    assert (points[1][0] == pytest.approx(middle, abs=0.01)) == log


def test_names_of_curves_that_end_together_do_not_cover_each_other() -> None:
    series = [Curve(name=f"curve {n}", x=[0, 1], y=[0, 1 + n / 1000]) for n in range(6)]
    chart = curves(series, title="t", x_title="x", y_title="y")
    heights = sorted(text_at(chart, curve.name)[1] for curve in series)
    assert np.diff(heights).min() >= 14


def test_intervals_stand_at_their_values_and_rings_are_the_papers() -> None:
    chart = intervals(
        [Row(name="a", mean=4.0, low=2.0, high=6.0, theirs=5.0), Row(name="b", mean=2.0)],
        title="t",
        x_title="x",
    )
    ring, first, second = elements(chart, "circle")
    assert float(first.get("cx")) == pytest.approx(text_at(chart, "4")[0], abs=0.01)
    assert float(second.get("cx")) == pytest.approx(text_at(chart, "2")[0], abs=0.01)
    assert ring.get("fill") == "#ffffff"
    assert float(ring.get("cx")) == pytest.approx(text_at(chart, "5")[0], abs=0.01)
