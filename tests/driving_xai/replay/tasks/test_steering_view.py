"""The picture of an instant."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.geometry import Geometry
from driving_xai.evaluation.verdicts import SoFar
from driving_xai.replay.film import part_of
from driving_xai.replay.inset import CurveView
from driving_xai.replay.tasks.instruments import Camera, Steering
from driving_xai.replay.tasks.steering_view import Instant, Overlay, OverlayConfig
from driving_xai.viz.heat import (
    COLORMAPS,
    Colormap,
    HeatLook,
    HeatScale,
    blend_heat,
    enlargement,
    heat_colours,
    is_degenerate,
    legend,
)
from driving_xai.viz.lettering import Layer

GEOMETRY = Geometry(crop_top=0.25, crop_bottom=0.125, crop_left=0.1, crop_right=0.05)
CONFIG = OverlayConfig(labelled=False, speed_known=False, signed=False, provenance="method · black fill")
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (480, 640, 3), dtype=np.uint8)


def smooth_map(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).random((10, 20), dtype=np.float32) ** 4
    return cv2.resize(coarse, (160, 80), interpolation=cv2.INTER_LINEAR)


def instant(saliency: np.ndarray, image: np.ndarray = IMAGE, **changes: object) -> Instant:
    known = Instant(
        image=image,
        saliency=saliency,
        predicted=Steering(3.0, 0.001),
        measured=Steering(math.nan, math.nan),
        speed_mps=math.nan,
        curve=None,
        caption="frame 7",
    )
    return dataclasses.replace(known, **changes)


def overlay(
    image: np.ndarray = IMAGE,
    *,
    cropped: bool = False,
    room: tuple[int, int] | None = None,
    **changes: object,
) -> Overlay:
    config = dataclasses.replace(CONFIG, **changes)
    height, width = image.shape[:2]
    return Overlay(height=height, width=width, geometry=GEOMETRY, cropped=cropped, config=config, room=room)


def curve() -> CurveView:
    rising = np.linspace(0, 9, 26)
    verdict = SoFar(value=80.0, random=60.0, difference=20.0, half_width=50.0, driven_s=60.0, block_s=5.0)
    return CurveView(np.arange(26) / 100, rising, rising / 2, rising / 3, 90.0, 80.0, 7.0, 60.0, 40, verdict)


def test_drawing_is_pure() -> None:
    saliency, image = smooth_map(1), IMAGE.copy()
    kept = saliency.copy()
    scale, painter = HeatScale.first(saliency), overlay(camera=Camera())
    first = painter.draw(instant(saliency, image), scale, 10.0)
    painter.draw(instant(smooth_map(2), image), scale, 10.0)
    np.testing.assert_array_equal(painter.draw(instant(saliency, image), scale, 10.0), first)
    np.testing.assert_array_equal(image, IMAGE)
    np.testing.assert_array_equal(saliency, kept)


def test_evidence_is_drawn_where_the_model_looks_and_nowhere_else() -> None:
    painter = overlay()
    scale = HeatScale.first(smooth_map(1))
    one, other = (painter.draw(instant(smooth_map(seed)), scale, 10.0) for seed in (1, 2))
    rows, columns = np.nonzero((one != other).any(2))
    assert painter.region == (120, 420, 64, 608)
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == painter.region


@pytest.mark.parametrize("signed", [False, True])
def test_heat_is_the_same_over_memory_that_was_used(signed: bool) -> None:
    saliency = smooth_map(3) - (0.2 if signed else 0)
    scale = HeatScale.first(saliency)
    fresh, used = IMAGE.copy(), IMAGE.copy()
    scratch = Layer.record(480, 640, lambda part: part.fill(200))
    # A part of the picture, as the overlay's: its rows do not follow one another in memory.
    blend_heat(fresh[40:440, 30:600], saliency, scale)
    blend_heat(
        used[40:440, 30:600], saliency, scale, scratch=Layer(*(each[40:440, 30:600] for each in scratch))
    )
    np.testing.assert_array_equal(used, fresh)
    assert (used != IMAGE).any()


def test_a_hot_spot_lands_on_the_pixels_it_speaks_of() -> None:
    saliency = np.zeros((80, 160), np.float32)
    saliency[20:24, 40:44] = 1.0
    image = np.full((480, 640, 3), 20, np.uint8)
    painter = overlay(image)
    scale = HeatScale(0.0, 1.0, False)
    hot = painter.draw(instant(saliency, image), scale, 10.0).astype(int)
    cold = painter.draw(instant(saliency, image), HeatScale(1.0, 2.0, False), 10.0).astype(int)
    changed = np.abs(hot - cold).sum(2).astype(float)
    rows, columns = np.indices(changed.shape)
    centre = (changed * rows).sum() / changed.sum(), (changed * columns).sum() / changed.sum()
    top, bottom, left, right = painter.region
    expected = top + 22 / 80 * (bottom - top), left + 42 / 160 * (right - left)
    assert centre == pytest.approx(expected, abs=1.0)


def test_frames_of_shards_carry_their_map_everywhere() -> None:
    small = cv2.resize(IMAGE, (160, 80))
    painter = overlay(small, cropped=True)
    assert (painter.height, painter.width) == (480, 960)
    assert painter.region == (0, 480, 0, 960)


def test_the_road_stays_visible_under_the_strongest_evidence() -> None:
    hot, flat = np.ones((80, 160), np.float32), HeatScale(0.0, 1.0, False)
    hot[0, 0] = 0.9  # Not the same everywhere.
    painter = overlay(np.zeros_like(IMAGE))
    dark = painter.draw(instant(hot, np.zeros_like(IMAGE)), flat, 10.0)
    light = painter.draw(instant(hot, np.full_like(IMAGE, 255)), flat, 10.0)
    assert ((light.astype(int) - dark)[200, 300] >= 60).all()


@pytest.mark.parametrize("signed", [False, True])
def test_nothing_is_drawn_for_no_evidence(signed: bool) -> None:
    colour, passes = heat_colours(signed)
    nothing = 128 if signed else 0
    assert colour[nothing].max() <= 3
    assert passes[nothing].min() >= 252


@pytest.mark.parametrize("colormap", ["inferno", "plasma", "viridis"])
def test_stronger_evidence_is_lighter(colormap: Colormap) -> None:
    luminance = cv2.cvtColor(legend(False, HeatLook(colormap))[None], cv2.COLOR_RGB2LAB)[0, :, 0].astype(int)
    assert (np.diff(luminance) >= -2).all(), "perceptually rising, up to rounding"
    assert luminance[-1] - luminance[0] > 120


@pytest.mark.parametrize("signed", [False, True])
def test_opacity_is_that_of_the_strongest_evidence(signed: bool) -> None:
    for opacity in (0.25, 1.0):
        _, passes = heat_colours(signed, HeatLook(opacity=opacity))
        assert passes[255].max() == pytest.approx(255 * (1 - opacity), abs=1)


@pytest.mark.parametrize("colormap", COLORMAPS)
def test_weak_evidence_is_seen_on_a_dark_road(colormap: Colormap) -> None:
    """Asphalt at night: with the maps' dark ends it hardly stood out, by 15 of 255 with inferno."""
    road, weak = (
        np.full((40, 40, 3), 25, np.uint8),
        np.linspace(0, 0.4, 1600, dtype=np.float32).reshape(40, 40),
    )
    picture = road.copy()
    blend_heat(picture, weak, HeatScale(0.0, 1.0, signed=False), look=HeatLook(colormap))
    assert np.abs(picture.astype(int) - road).max(2).mean() > 20


@pytest.mark.parametrize("layout", ["portrait", "compact"])
@pytest.mark.parametrize("scored", [True, False])
def test_layouts_for_phones_have_letters_that_can_be_read_and_no_empty_panel(
    layout: Literal["portrait", "compact"], scored: bool
) -> None:
    painter = overlay(layout=layout, scored=scored)
    shown = instant(smooth_map(1))
    picture = painter.draw(
        dataclasses.replace(shown, curve=curve() if scored else None), HeatScale.first(shown.saliency), 10.0
    )
    assert picture.shape[1] == 720
    boxes = dict(painter._boxes)
    assert ("curve" in boxes, "verdict" in boxes) == (
        scored and layout == "portrait",
        scored and layout == "compact",
    )
    for name, box in boxes.items():
        assert part_of(picture, box).std() > 4, f"{name} shows something"
    on_phone = 390 / painter.width
    assert on_phone * painter.panel.unit * 12 >= 11, "pixels of the smallest letters beside the wheel"
    assert "curve" not in boxes or on_phone * painter.inset.unit * 10.5 >= 15


def test_a_picture_is_drawn_at_least_as_large_as_it_will_be() -> None:
    assert overlay(room=(1000, 1000)).width >= 1000
    tall = overlay(layout="portrait", room=(2000, 1000))
    assert 990 <= tall.width <= 1000 or 1990 <= tall.height <= 2001


def test_a_degenerate_map_is_called_so_and_not_painted() -> None:
    flat = np.full((80, 160), 0.01, np.float32)
    assert is_degenerate(flat)
    assert is_degenerate(np.zeros((80, 160), np.float32))
    assert not is_degenerate(smooth_map(1))
    painter = overlay()
    said = painter.draw(instant(flat), HeatScale.first(flat), 10.0)
    top, bottom, left, right = painter.region
    changed = (said != IMAGE).any(2)[top + 1 : bottom - 1, left + 1 : right - 1]
    assert 0 < changed.mean() < 0.1, "only the words"


class TestHeatScale:
    def test_the_same_maps_look_the_same(self) -> None:
        saliency = smooth_map(1)
        scale = HeatScale.first(saliency)
        for _ in range(5):
            assert scale.after(saliency, 0.3) == pytest.approx(scale)
            scale = scale.after(saliency, 0.3)

    def test_it_follows_a_step_exponentially(self) -> None:
        saliency = smooth_map(1)
        scale = first = HeatScale.first(saliency)
        for _ in range(20):
            scale = scale.after(3 * saliency, 0.1)
        gone = 1 - 0.9**20
        assert scale.ceiling == pytest.approx(first.ceiling * (1 + 2 * gone), rel=1e-5)
        assert scale.floor == pytest.approx(first.floor * (1 + 2 * gone), rel=1e-5)

    def test_one_wild_pixel_does_not_move_it(self) -> None:
        """What a per-frame maximum would do: the rest of the picture goes dark for a frame."""
        saliency = smooth_map(1)
        wild = saliency.copy()
        wild[0, 0] = 1e6
        scale = HeatScale.first(saliency)
        assert scale.after(wild, 0.5) == pytest.approx(scale, rel=0.01)

    @settings(max_examples=50)
    @given(
        st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=30), st.floats(-5, 5), st.floats(0, 20)
    )
    def test_levels_rise_with_the_values(self, values: list[float], floor: float, span: float) -> None:
        for signed in (False, True):
            scale = HeatScale(0.0 if signed else floor, (0.0 if signed else floor) + span, signed)
            level = scale.level(np.sort(np.array([values], np.float32)))[0].astype(int)
            assert (np.diff(level) >= 0).all()

    def test_both_signs_are_equally_strong(self) -> None:
        saliency = np.array([[-2.0, -1.0, 0.0, 1.0, 2.0]], np.float32)
        level = HeatScale.first(saliency).level(saliency)[0].astype(int)
        assert HeatScale.first(saliency).signed
        np.testing.assert_allclose(level + level[::-1], 255, atol=1)
        assert (level[0], level[2], level[-1]) == (0, 128, 255)

    def test_a_median_map_is_transparent_and_its_peak_is_not(self) -> None:
        saliency = smooth_map(3)
        level = HeatScale.first(saliency).level(saliency)
        assert (level[saliency <= np.median(saliency)] == 0).all()
        assert level.max() == 255


@settings(max_examples=60)
@given(st.integers(1, 2000), st.integers(1, 2000))
def test_the_smallest_whole_factor_that_makes_text_legible(height: int, width: int) -> None:
    factor = enlargement(height, width)
    too_thin = max(height, width) * (factor + 1) > 8192
    assert too_thin or (height * factor >= 480 and width * factor >= 640)
    assert max(height, width) * factor <= 8192
    assert factor == 1 or height * (factor - 1) < 480 or width * (factor - 1) < 640


@pytest.mark.parametrize(("height", "width"), [(480, 640), (240, 320), (540, 960), (720, 1280), (640, 481)])
def test_every_size_has_room_for_its_instruments(height: int, width: int) -> None:
    image = np.full((height, width, 3), 90, np.uint8)
    painter = overlay(image)
    picture = painter.draw(instant(smooth_map(1), image), HeatScale.first(smooth_map(1)), 10.0)
    assert picture.shape == (painter.height, painter.width, 3)
    assert painter.panel.width + painter.inset.width < painter.width
