"""The wheel and the projected path."""

from __future__ import annotations

import math

import numpy as np
import pytest

from data_prep.geometry import Geometry
from driving_xai.replay.tasks.instruments import (
    DRIVER,
    MODEL,
    Camera,
    Steering,
    SteeringPanel,
    View,
    draw_path,
)

CAMERA = Camera(horizon=0.4, focal=0.9, height_m=1.4)
STRAIGHT, UNKNOWN = Steering(0.0, 0.0), Steering(math.nan, math.nan)
GRADIENT = np.repeat(np.arange(256, dtype=np.uint8)[:, None] // 2, 3, 1)


def seen_on_road(view: View, forward_m: float, left_m: float) -> tuple[float, float]:
    """The pixel of a point on the road: a pinhole camera, written out."""
    return (
        view.centre_px - view.focal_x_px * left_m / forward_m,
        view.horizon_px + view.focal_y_px * view.height_m / forward_m,
    )


def middle_of(outline: np.ndarray) -> np.ndarray:
    left, right = np.split(outline, 2)
    return (left + right[::-1]) / 2


@pytest.mark.parametrize("per_m", [0.0, 0.004, -0.004, 0.02, -0.02])
def test_a_path_is_the_circle_that_is_driven(per_m: float) -> None:
    view = View.of(CAMERA, 480, 640, None)
    outline = view.ribbon(per_m, 480, offset_m=0.0, width_m=0.1, least_px=0.0)
    for x, y in middle_of(outline):
        forward = view.focal_y_px * view.height_m / (y - view.horizon_px)
        # The circle through the car, tangent to its heading, at `forward` metres ahead.
        radius = math.inf if per_m == 0 else 1 / abs(per_m)
        left = 0.0 if per_m == 0 else math.copysign(radius - math.sqrt(radius**2 - forward**2), per_m)
        assert (x, y) == pytest.approx(seen_on_road(view, forward, left), abs=0.01)


def test_positive_curvature_leads_to_the_left() -> None:
    view = View.of(CAMERA, 480, 640, None)
    left, right = (middle_of(view.ribbon(u, 480, offset_m=0, width_m=1, least_px=0)) for u in (0.01, -0.01))
    assert (left[1:, 0] < 320).all()
    np.testing.assert_allclose(left[:, 0] - 320, 320 - right[:, 0])


def test_a_ribbon_has_its_width_on_the_road_and_never_less_than_asked() -> None:
    view = View.of(CAMERA, 480, 640, None)
    outline = view.ribbon(0.0, 480, offset_m=0.5, width_m=1.8, least_px=30.0)
    left, right = np.split(outline, 2)
    widths = right[::-1, 0] - left[:, 0]
    forward = view.focal_y_px * view.height_m / (left[:, 1] - view.horizon_px)
    np.testing.assert_allclose(widths, np.maximum(view.focal_x_px * 1.8 / forward, 30.0))


def test_the_path_in_a_cut_frame_is_the_cut_of_the_path() -> None:
    """Shards hold the model's input: 160x80 cut from 640x480."""
    geometry = Geometry(crop_top=1 / 3, height=80, width=160)
    whole, cut = View.of(CAMERA, 480, 640, None), View.of(CAMERA, 80, 160, geometry)
    in_whole = middle_of(whole.ribbon(0.01, 480, offset_m=0, width_m=1, least_px=0))
    in_cut = middle_of(cut.ribbon(0.01, 80, offset_m=0, width_m=1, least_px=0))
    np.testing.assert_allclose(in_cut, (in_whole - [0, 160]) / 4, atol=1e-6)


def test_an_unknown_driver_and_an_unknown_prediction_are_left_out() -> None:
    view, plain = View.of(CAMERA, 480, 640, None), np.full((480, 640, 3), 90, np.uint8)
    drawn = {}
    for name, pair in {
        "none": (UNKNOWN, UNKNOWN),
        "model": (STRAIGHT, UNKNOWN),
        "driver": (UNKNOWN, STRAIGHT),
    }.items():
        drawn[name] = plain.copy()
        draw_path(drawn[name], view, *pair, 1.0)
    assert (drawn["none"] == plain).all()
    assert (drawn["driver"][440, 320] > 230).all()
    assert (drawn["model"][440, 320] != plain[440, 320]).any()
    assert (drawn["model"][440, 320] < 130).all(), "a thin veil, not a line"


@pytest.mark.parametrize("per_m", [5.0, -5.0, 0.3])
def test_an_absurd_curvature_is_drawn_without_failing(per_m: float) -> None:
    picture = np.zeros((480, 640, 3), np.uint8)
    draw_path(picture, View.of(CAMERA, 480, 640, None), Steering(999.0, per_m), STRAIGHT, 1.0)
    assert picture.any()


@pytest.mark.parametrize("speed_mps", [5.0, 10.0, 20.0])
def test_a_path_ends_where_the_car_is_in_two_seconds_and_fades_until_there(speed_mps: float) -> None:
    view, picture = View.of(CAMERA, 480, 640, None), np.zeros((480, 640, 3), np.uint8)
    draw_path(picture, view, UNKNOWN, STRAIGHT, 1.0, speed_mps=speed_mps)
    strength = picture.max((1, 2)).astype(int)
    rows = np.flatnonzero(strength)
    depth = view.depth_m(np.arange(480.0))
    assert depth[rows[0]] <= 2 * speed_mps + 1, "no farther"
    assert depth[rows[0]] > 1.2 * speed_mps, "and not much nearer: the end is faint"
    assert strength[470] > 230
    assert (np.diff(strength[rows]) >= -2).all(), "fainter row by row into the distance"


def test_a_car_that_stands_has_no_path() -> None:
    picture = np.zeros((480, 640, 3), np.uint8)
    draw_path(picture, View.of(CAMERA, 480, 640, None), STRAIGHT, STRAIGHT, 1.0, speed_mps=0.0)
    assert not picture.any()


def test_a_panel_with_few_lines_has_larger_ones() -> None:
    def height_of_text(picture: np.ndarray) -> int:
        rows = np.flatnonzero((picture[:, 104:] == MODEL).all(2).any(1))
        return int(rows[-1] - rows[0])

    few = drawn_panel(STRAIGHT, UNKNOWN, labelled=False)
    many = drawn_panel(STRAIGHT, UNKNOWN, labelled=True, speed_known=True)
    assert height_of_text(few) >= 1.2 * height_of_text(many)


def drawn_panel(predicted: Steering, measured: Steering, **options: bool) -> np.ndarray:
    how = {"labelled": True, "speed_known": False, **options}
    panel = SteeringPanel(1.0, legend=GRADIENT, **how)
    picture = np.zeros((panel.height, panel.width, 3), np.uint8)
    panel.draw(picture, 0, 0, predicted, measured, 9.5)
    return picture


def colour_centre(picture: np.ndarray, colour: tuple[int, int, int]) -> tuple[float, float]:
    """(x, y) of a colour's pixels on the left half, where the wheel is."""
    rows, columns = np.nonzero((picture[:, :100] == colour).all(2))
    return float(columns.mean()), float(rows.mean())


@pytest.mark.parametrize("angle", [-90.0, -30.0, 45.0])
def test_the_driver_is_a_mark_on_the_rim_turned_to_the_left_by_a_positive_angle(angle: float) -> None:
    x, y = colour_centre(drawn_panel(UNKNOWN, Steering(angle, 0.0)), DRIVER)
    turn = math.radians(angle)
    assert (x, y) == pytest.approx((51 - 36 * math.sin(turn), 54 - 36 * math.cos(turn)), abs=1.5)


def test_the_model_is_the_wheel_turned() -> None:
    straight, left = (drawn_panel(Steering(angle, 0.0), UNKNOWN) for angle in (0.0, 90.0))
    x, y = colour_centre(straight, MODEL)
    assert x == pytest.approx(51, abs=1), "left and right of a straight wheel are alike"
    turned_x, turned_y = colour_centre(left, MODEL)
    # A quarter turn to the left takes a point (0, d) below the hub to (d, 0) at its right.
    assert (turned_x - 51, turned_y - 54) == pytest.approx((y - 54, 0), abs=1.5)


def test_an_unlabelled_source_has_no_row_for_a_driver() -> None:
    rows = [
        (drawn_panel(STRAIGHT, UNKNOWN, labelled=labelled)[:, 104:] == DRIVER).all(2).any()
        for labelled in (True, False)
    ]
    assert rows == [True, False]
