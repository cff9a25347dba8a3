"""The brush in Chromium: by mouse, finger and keys; what it says is what the model said, and cases are saved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from driving_xai.checkpoint import Checkpoint
from driving_xai.evaluation.brush_cases import load_cases
from driving_xai.replay.live.control import Live
from driving_xai.replay.live.server import serving

from .test_brush import Watching
from .test_control import playback, stats
from .test_live_browser import LOOPBACK, View, browser, pytestmark

__all__ = ["browser", "pytestmark"]


@pytest.fixture(scope="module")
def brushed(checkpoint: Checkpoint, recording: Path) -> Iterator[Any]:
    watching = Watching(checkpoint, recording, end_s=0.3)
    yield watching.held(5)
    watching.end()


@pytest.fixture
def served(brushed: Any, tmp_path: Path) -> Iterator[tuple[Live, str]]:
    live = Live(cases=tmp_path / "cases")
    with serving(live, host=LOOPBACK, port=0) as address:
        live.begin(playback(free=False), at_s=0.0)
        live.pause(True)
        live.step()
        live.show(np.zeros((48, 64, 3), np.uint8), stats(5), brush=brushed)
        yield live, address


def taken(browser: Any, address: str, **options: Any) -> View:
    """The page with the brush in hand."""
    view = View(browser, address, **options)
    view.page.click("#brush")
    view.page.wait_for_selector("#paint")
    view.until(lambda: "160×80" in view.page.evaluate("document.getElementById('about-brush').textContent"))
    return view


def painted(view: View) -> np.ndarray:
    """The pixels of the mask, as the canvas shows them."""
    values = view.page.evaluate(
        "Array.from(document.getElementById('paint').getContext('2d').getImageData(0, 0, 160, 80).data)"
    )
    data = np.array(values).reshape(80, 160, 4)
    return (data[..., 3] > 130) & (data[..., 0] > 180) & (data[..., 1] < 140)


def place(view: View, x: float, y: float) -> tuple[float, float]:
    """On the screen, of a pixel of the model's input."""
    box = view.page.locator("#paint").bounding_box()
    scale = min(box["width"] / 160, box["height"] / 80)
    left, top = box["x"] + (box["width"] - 160 * scale) / 2, box["y"] + (box["height"] - 80 * scale) / 2
    return left + (x + 0.5) * scale, top + (y + 0.5) * scale


def found(view: View) -> str:
    def said() -> str:
        return view.page.evaluate("document.getElementById('found').textContent")

    view.until(lambda: said() not in ("", "Asking the model."))
    return said()


def test_a_stroke_of_the_mouse_is_asked_about_and_saved(
    browser: Any, served: Any, tmp_path: Path, brushed: Any
) -> None:
    view = taken(browser, served[1], viewport={"width": 1280, "height": 800})
    view.page.mouse.move(*place(view, 40, 50))
    view.page.mouse.down()
    view.page.mouse.move(*place(view, 80, 50), steps=8)
    view.page.mouse.up()
    assert found(view).startswith("Steering wheel changes without it by")
    assert view.page.locator("#effects tbody tr").count() == 4, "the output, and three fills"
    assert view.page.locator("#shots img").count() == 3
    view.until(lambda: view.page.is_enabled("#save"))
    view.page.fill("#words", "the verge <b>")
    view.page.click("#save")
    view.until(lambda: "case-001" in view.page.evaluate("document.getElementById('saved').textContent"))
    (saved,) = load_cases(tmp_path / "cases")
    rows, columns = np.flatnonzero(saved.mask.any(1)), np.flatnonzero(saved.mask.any(0))
    assert abs((rows[0] + rows[-1]) / 2 - 50) <= 1, "it lies where the hand was"
    assert abs((columns[0] + columns[-1]) / 2 - 60) <= 1
    assert abs(columns[-1] - columns[0] - 54) <= 2, "40 pixels of stroke and 14 of brush"
    assert saved.case.note == "the verge <b>"
    assert [saved.case.sentences[0]] == [view.page.inner_text("#found p")]
    assert view.complaints == []
    assert all(url.startswith((served[1], "blob:", "data:")) for url in view.requests)
    view.page.close()


def test_keys_paint_erase_choose_regions_and_leave(browser: Any, served: Any) -> None:
    view = taken(browser, served[1])
    press = view.page.keyboard.press
    press("Enter")
    assert found(view)
    first = painted(view)
    assert first[40, 80]
    press("ArrowRight")
    press("ArrowRight")
    press("Enter")
    assert painted(view).sum() > first.sum()
    press("e")
    press("Enter")
    assert not painted(view)[40, 94]
    press("Delete")
    assert not painted(view).any()
    press("r")
    press("Enter")
    region = painted(view).sum()
    assert 20 < region < 160 * 80 / 4, "one superpixel of about sixty"
    press("Enter")
    view.until(lambda: painted(view).sum() == 0)
    press("Escape")
    assert view.page.is_hidden("#panel")
    assert view.page.is_visible("#numbers")
    assert view.complaints == []
    view.page.close()


@pytest.mark.parametrize("size", [(390, 844), (844, 390)])
def test_a_finger_paints_on_a_phone_and_the_answer_is_in_sight(
    browser: Any, served: Any, size: tuple[int, int]
) -> None:
    view = taken(browser, served[1], viewport={"width": size[0], "height": size[1]}, has_touch=True)
    view.page.touchscreen.tap(*place(view, 100, 60))
    assert found(view)
    assert painted(view)[60, 100]
    box = view.page.locator("#found p").first.bounding_box()
    assert box["y"] < size[1] - 20
    assert view.page.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
    ) == list(size)
    view.page.close()


def test_outside_the_frame_nothing_is_painted(browser: Any, served: Any) -> None:
    view = taken(browser, served[1], viewport={"width": 1280, "height": 800})
    view.page.mouse.click(*place(view, 60, -12))
    view.page.wait_for_timeout(300)
    assert not painted(view).any()
    assert view.page.is_disabled("#save")
    view.page.close()


def test_a_frame_that_is_passed_by_another_hand_is_said(browser: Any, served: Any, brushed: Any) -> None:
    live, address = served
    view = taken(browser, address)
    view.page.keyboard.press("Enter")
    assert found(view)
    live.step()
    live.show(np.zeros((48, 64, 3), np.uint8), stats(6), brush=brushed)
    view.until(lambda: view.page.is_visible("#fresh"))
    assert view.page.is_disabled("#save")
    view.page.keyboard.press("ArrowRight")
    view.page.keyboard.press("Enter")
    view.until(lambda: "has been passed" in found(view))
    view.page.click("#fresh")
    view.until(lambda: view.page.is_hidden("#fresh"))
    assert not painted(view).any()
    view.page.close()
