"""Text and layers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driving_xai.viz.lettering import Layer, lettering, shade

GREEN = (40, 200, 90)


def blank(height: int = 40, width: int = 120, level: int = 0) -> np.ndarray:
    return np.full((height, width, 3), level, dtype=np.uint8)


def test_text_takes_its_colour_and_stays_between_it_and_the_ground() -> None:
    picture = blank(level=10)
    lettering(20).draw(picture, "HHH", (5, 30), GREEN)
    assert (picture.reshape(-1, 3) == GREEN).all(1).any(), "the inside of a stroke is opaque"
    low, high = np.minimum(10, GREEN), np.maximum(10, GREEN)
    assert ((picture >= low) & (picture <= high)).all(), "edges are blends"


@pytest.mark.parametrize(("anchor", "x"), [("left", 10), ("middle", 60), ("right", 110)])
def test_an_anchor_is_where_the_text_is_held(anchor: str, x: int) -> None:
    letters, picture = lettering(16), blank()
    letters.draw(picture, "mmmm", (x, 25), GREEN, anchor=anchor)
    columns = np.flatnonzero(picture.any((0, 2)))
    centre = {"left": x + letters.width("mmmm") / 2, "middle": x, "right": x - letters.width("mmmm") / 2}[
        anchor
    ]
    assert (columns[0] + columns[-1]) / 2 == pytest.approx(centre, abs=1.5)


@settings(deadline=None, max_examples=40)
@given(x=st.integers(-80, 200), y=st.integers(-40, 90))
def test_text_is_cut_at_the_borders_as_from_a_larger_picture(x: int, y: int) -> None:
    small, large, margin = blank(), blank(40 + 400, 120 + 400), 200
    lettering(16).draw(small, "19.5° left", (x, y), GREEN)
    lettering(16).draw(large, "19.5° left", (x + margin, y + margin), GREEN)
    np.testing.assert_array_equal(small, large[margin : margin + 40, margin : margin + 120])


def test_digits_have_one_width_so_that_numbers_do_not_jump() -> None:
    assert len({lettering(14).width(digit * 4) for digit in "0123456789"}) == 1


@pytest.mark.parametrize("sign", "°±·%-")
def test_the_signs_that_are_drawn_exist_in_the_typeface(sign: str) -> None:
    """A missing sign would be drawn as the same box whatever it is."""
    pictures = []
    for text in (sign, "\ufffe"):
        picture = blank()
        lettering(24).draw(picture, text, (5, 30), GREEN)
        pictures.append(picture)
    assert not np.array_equal(*pictures)


def test_a_recorded_drawing_laid_down_equals_the_drawing_itself() -> None:
    def draw(picture: np.ndarray) -> None:
        shade(picture, (4, 4, 116, 36), (12, 14, 18), 0.6, 5)
        lettering(14).draw(picture, "evidence", (10, 25), GREEN)

    picture = np.random.default_rng(0).integers(0, 256, (40, 120, 3), dtype=np.uint8)
    direct, laid = picture.copy(), picture.copy()
    draw(direct)
    Layer.record(40, 120, draw).lay(laid, 0, 0)
    assert np.abs(direct.astype(int) - laid).max() <= 3, "three roundings apart at most"


def test_a_shaded_box_has_the_opacity_asked_for_and_round_corners() -> None:
    picture = blank(level=200)
    shade(picture, (10, 5, 110, 35), (0, 0, 0), 0.5, 8)
    assert picture[20, 60].tolist() == [100, 100, 100]
    assert picture[5, 10].tolist() == [200, 200, 200], "a corner is cut off"
    assert (picture[:5] == 200).all()
    assert (picture[35:] == 200).all()
