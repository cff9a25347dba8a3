"""The curve inset and its axis."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from driving_xai.replay.inset import EVIDENCE, AxisTop, CurveView, Inset

FRACTIONS = np.arange(26) / 100
NOTHING = np.full(26, np.nan)


def view(current: np.ndarray, **changes: object) -> CurveView:
    values = {
        "mean": NOTHING,
        "random_mean": NOTHING,
        "area": 100.0,
        "mean_area": 100.0,
        "half_width": 5.0,
        "random_area": 50.0,
        "frames": 9,
    }
    return CurveView(fractions=FRACTIONS, current=current, **{**values, **changes})


def drawn(shown: CurveView, top_deg: float = 10.0) -> np.ndarray:
    inset = Inset(1.0, title="Steering error", last_fraction=0.25)
    picture = np.zeros((inset.height, inset.width, 3), np.uint8)
    inset.draw(picture, 0, 0, shown, top_deg)
    return picture


def rows_of_line(picture: np.ndarray) -> np.ndarray:
    """Middle row of the current curve in each column of the plotting area, below the title."""
    strong = (np.abs(picture[20:105].astype(int) - EVIDENCE) < 60).all(2)
    columns = np.flatnonzero(strong.any(0))
    return np.array([20 + np.flatnonzero(strong[:, column]).mean() for column in columns])


@pytest.mark.parametrize(("value", "part"), [(0.0, 0.0), (5.0, 0.5), (10.0, 1.0), (400.0, 1.0)])
def test_a_value_is_drawn_at_its_height_and_cut_at_the_top(value: float, part: float) -> None:
    rows = rows_of_line(drawn(view(np.full(26, value))))
    top, bottom = 25.0, Inset.HEIGHT - 37.0
    np.testing.assert_allclose(rows, bottom - part * (bottom - top), atol=1.0)
    assert len(rows) > 200, "from the first fraction to the last"


def test_a_rising_curve_rises_to_the_right() -> None:
    rows = rows_of_line(drawn(view(np.linspace(0, 10, 26))))
    assert rows[3] - rows[-3] > 60
    assert (np.diff(rows) < 1.5).all()


def test_a_frame_without_a_score_shows_the_axes_and_means_only() -> None:
    empty = drawn(view(NOTHING, area=float("nan")))
    assert len(rows_of_line(empty)) == 0
    with_mean = drawn(view(NOTHING, area=float("nan"), random_mean=np.full(26, 5.0)))
    assert not np.array_equal(empty, with_mean)


@given(st.lists(st.floats(0, 4000), min_size=1, max_size=40), st.floats(0.01, 1.0))
def test_the_axis_always_holds_the_curve(peaks: list[float], sink: float) -> None:
    axis = AxisTop()
    for peak in peaks:
        axis = axis.after(peak, sink)
        assert axis.top_deg >= peak


def test_the_axis_does_not_flicker_around_a_step() -> None:
    axis, tops = AxisTop(), []
    for number in range(200):
        axis = axis.after(9.8 if number % 2 else 10.2, 0.05)
        tops.append(axis.top_deg)
    assert len(set(tops[1:])) == 1


def test_the_axis_sinks_after_a_high_peak_has_passed() -> None:
    axis = AxisTop().after(35.0, 0.05)
    assert axis.top_deg == 40
    for _ in range(10):
        axis = axis.after(3.0, 0.05)
    assert 20 <= axis.top_deg <= 40, "half a second later it is still near"
    for _ in range(200):
        axis = axis.after(3.0, 0.05)
    assert axis.top_deg == 4


def test_the_axis_stays_where_nothing_is_known() -> None:
    axis = AxisTop().after(7.0, 0.1)
    assert axis.after(float("nan"), 0.1) == axis


def test_the_last_number_is_not_cut_off() -> None:
    short, long = (drawn(view(NOTHING, random_area=area)) for area in (50.0, 123456.0))
    changed = np.flatnonzero((short != long).any((0, 2)))
    assert changed.max() < Inset.WIDTH - 6
