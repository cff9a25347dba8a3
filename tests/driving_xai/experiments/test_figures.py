"""Figures: values stand where the axes say, the paper's look different, the same numbers give the same bytes."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from driving_xai.experiments.figures import Line, Value, interval_plot, line_plot, save

X = [1.0, 10.0, 100.0]


def drawn(**options: object) -> Figure:
    series = [
        Line(name="ours", x=X, y=[2.0, 6.0, 4.0], low=[1.0, 5.0, 3.0], high=[3.0, 7.0, 5.0], marked=True),
        Line(name="paper: ours & <theirs>", x=X, y=[3.0, 3.0, 9.0], of_paper=True),
    ]
    return line_plot(series, title="t", x_label="removed, %", y_label="error, deg", **options)  # type: ignore[arg-type]


def test_lines_and_bands_hold_the_numbers() -> None:
    (axes,) = drawn().axes
    ours, paper = axes.lines
    assert ours.get_xydata().tolist() == [[1, 2], [10, 6], [100, 4]]
    assert (ours.get_marker(), paper.get_linestyle()) == ("o", "--")
    assert ours.get_color() != paper.get_color()
    (band,) = axes.collections
    corners = {tuple(point) for point in band.get_paths()[0].vertices.tolist()}
    assert {(1, 1), (10, 5), (100, 3), (1, 3), (10, 7), (100, 5)} <= corners
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("removed, %", "error, deg")


def test_the_legend_follows_the_ends_of_the_lines_and_lies_outside() -> None:
    figure = drawn()
    figure.canvas.draw()
    (axes,) = figure.axes
    legend = axes.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["paper: ours & <theirs>", "ours"]
    assert legend.get_window_extent().x0 >= axes.get_window_extent().x1
    assert legend.get_window_extent().x1 <= figure.bbox.x1


def test_ticks_are_the_values_that_were_asked_for() -> None:
    (axes,) = drawn(x_ticks=X, x_log=True).axes
    axes.figure.canvas.draw()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "10", "100"]
    at = axes.transData.transform([(x, 0) for x in X])[:, 0]
    assert np.diff(at) == pytest.approx(np.diff(at)[0])


def test_intervals_stand_at_their_values_and_rings_are_the_papers() -> None:
    figure = interval_plot(
        [Value(name="a", mean=4.0, low=2.0, high=6.0, paper=5.0), Value(name="b", mean=2.0)],
        title="t",
        x_label="area, deg x percent",
    )
    figure.canvas.draw()
    (axes,) = figure.axes
    whisker, ring, first, second = axes.lines
    assert whisker.get_xydata().tolist() == [[2, 0], [6, 0]]
    assert (ring.get_xydata().tolist(), ring.get_markerfacecolor()) == ([[5, 0]], "none")
    assert [each.get_xydata().tolist() for each in (first, second)] == [[[4, 0]], [[2, 1]]]
    heights = {text.get_text(): text.get_window_extent().y0 for text in axes.get_yticklabels()}
    assert heights["a"] > heights["b"], "the first stands on top"


def test_both_files_are_written_and_say_the_same_every_time(tmp_path) -> None:
    for folder in ("one", "two"):
        save(drawn(), tmp_path / folder / "curves")
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == ["curves.png", "curves.svg"]
    for name in ("curves.png", "curves.svg"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    svg = ET.parse(tmp_path / "one" / "curves.svg")
    texts = ["".join(each.itertext()) for each in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert {"paper: ours & <theirs>", "removed, %", "error, deg"} <= set(texts)
    with Image.open(tmp_path / "one" / "curves.png") as picture:
        assert picture.width > 900
        assert not {"Software", "Creation Time"} & picture.info.keys()
        assert np.asarray(picture.convert("L"))[:5].min() == 255, "on white"


def test_another_process_writes_the_same_bytes_and_opens_no_window(tmp_path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from driving_xai.experiments.figures import Value, interval_plot, save\n"
        "save(interval_plot([Value(name='a', mean=1.0)], title='t', x_label='x'), Path(sys.argv[1]))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "there")], check=True)
    save(interval_plot([Value(name="a", mean=1.0)], title="t", x_label="x"), tmp_path / "here")
    for kind in ("svg", "png"):
        assert (tmp_path / f"here.{kind}").read_bytes() == (tmp_path / f"there.{kind}").read_bytes()
