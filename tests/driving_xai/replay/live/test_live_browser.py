"""The live view in Chromium: pictures come, buttons and keys work, a slow line skips frames."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from driving_xai.replay.live.control import Live
from driving_xai.replay.live.server import serving

from .test_control import playback, stats

LOOPBACK = "127.0.0.1"
CHROMIUM = Path("/usr/bin/chromium")
RATE = 50.0

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium at /usr/bin/chromium"),
]


class Playing:
    """A stand-in for a replay: noise, 50 times a second, from wherever viewers ask."""

    def __init__(self, live: Live) -> None:
        self.live = live
        self.picture = np.random.default_rng(0).integers(0, 255, (240, 320, 3), dtype=np.uint8)
        self.begun: list[tuple[float, str]] = []

    def __call__(self) -> None:
        at_s, request, plan = 0.0, None, playback(free=True, frame_rate=RATE)
        while True:
            self.begun.append((at_s, plan.method))
            self.live.begin(plan, at_s=at_s, answers=request, times_s=[at / 20 for at in range(201)])
            number = round(at_s * 20)
            while not self.live.interrupted:
                shown = replace(stats(number), method=plan.method)
                self.live.show(np.roll(self.picture, number, 1), shown, plain=self.picture)
                number += 1
            request = self.live.next_request()
            if request is None:
                return
            at_s = self.live.at_s if request.at_s is None else request.at_s
            plan = playback(free=True, frame_rate=RATE, method=request.method or plan.method)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as chromium:
        opened = chromium.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def playing() -> Iterator[tuple[Playing, str]]:
    live = Live()
    played = Playing(live)
    thread = threading.Thread(target=played)
    thread.start()
    with serving(live, host=LOOPBACK, port=0) as address:
        yield played, address
    thread.join(10)


class View:
    """The page, with what it asked for and complained about."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.page = browser.new_page(**options)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(address)
        self.until(lambda: self.page.inner_text("#frame") != "–")

    @property
    def frame(self) -> int:
        return int(self.page.inner_text("#frame"))

    def until(self, truth: Any) -> None:
        for _ in range(200):
            if truth():
                return
            self.page.wait_for_timeout(50)
        pytest.fail("it never came true")


def test_pictures_come_and_buttons_and_keys_hold_and_step_them(browser: Any, playing: Any) -> None:
    _, address = playing
    view = View(browser, address)
    before = view.frame
    view.until(lambda: view.frame > before + 5)
    view.page.click("#play")
    view.until(lambda: view.page.inner_text("#play") == "Play")
    view.page.wait_for_timeout(200)
    held = view.frame
    view.page.wait_for_timeout(300)
    assert view.frame == held
    view.page.click("#step")
    view.until(lambda: view.frame == held + 1)
    view.page.evaluate("document.activeElement.blur()")
    view.page.keyboard.press("ArrowRight")
    view.until(lambda: view.frame == held + 2)
    view.page.keyboard.press("Space")
    view.until(lambda: view.frame > held + 5)
    assert all(url.startswith((address, "blob:", "data:")) for url in view.requests)
    assert view.complaints == []
    view.page.close()


def test_one_can_go_elsewhere_and_look_by_another_method(browser: Any, playing: Any) -> None:
    played, address = playing
    view = View(browser, address)
    view.page.focus("#seek")
    view.page.keyboard.press("End")
    view.until(lambda: view.frame >= 200)
    view.page.select_option("#method", "rise")
    view.until(lambda: view.page.inner_text("#what") == "rise")
    assert played.begun[1] == (10.0, "grad-cam")
    assert played.begun[2][1] == "rise"
    assert view.complaints == []
    view.page.close()


def test_a_slow_line_skips_to_the_newest_and_slows_nobody(browser: Any, playing: Any) -> None:
    _, address = playing
    slow, quick = View(browser, address), View(browser, address)
    line = slow.page.context.new_cdp_session(slow.page)
    line.send("Network.enable")
    line.send(
        "Network.emulateNetworkConditions",
        {"offline": False, "latency": 150, "downloadThroughput": 400_000, "uploadThroughput": 400_000},
    )
    slow.page.wait_for_timeout(1000)
    asked, start, quick_start = len(slow.requests), slow.frame, quick.frame
    slow.page.wait_for_timeout(3000)
    came = sum("/frame" in url for url in slow.requests[asked:])
    gone = slow.frame - start
    assert came >= 2
    assert gone > 3 * came, "most frames were skipped"
    assert quick.frame - quick_start > 20
    assert abs(quick.frame - slow.frame) < 60, "what it shows is about as new"
    assert slow.complaints == []
    slow.page.close()
    before = quick.frame
    quick.until(lambda: quick.frame > before + 5)
    quick.page.close()


WINDOWS = {"laptop": (1280, 800), "phone": (390, 844), "small phone": (320, 568), "landscape": (844, 390)}


def boxes(page: Any, *names: str) -> dict[str, dict[str, float]]:
    return {name: page.locator(f"#{name}").bounding_box() for name in names}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("window", WINDOWS)
def test_it_fits_every_window_with_its_controls(browser: Any, playing: Any, window: str, scheme: str) -> None:
    width, height = WINDOWS[window]
    view = View(browser, playing[1], viewport={"width": width, "height": height}, color_scheme=scheme)
    size = view.page.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.scrollHeight, document.body.scrollWidth]"
    )
    assert size == [width, height, width], "nothing has to be scrolled for"
    found = boxes(
        view.page, "stage", "history", "seek", "back", "play", "step", "speed", "method", "overlay", "brush"
    )
    for name, box in found.items():
        assert box["x"] >= 0, name
        assert box["y"] >= 0, name
        assert box["x"] + box["width"] <= width, name
        assert box["y"] + box["height"] <= height, name
    assert found["stage"]["height"] > 0.3 * height
    for name in ("play", "step", "brush"):
        assert min(found[name]["width"], found[name]["height"]) >= 34, "large enough for a finger"
    view.page.close()


def test_slider_and_curve_have_one_axis(browser: Any, playing: Any) -> None:
    played, address = playing
    view = View(browser, address)
    view.page.click("#play")
    for share in (0.0, 0.5, 1.0):
        played.live.seek(10 * share)
        view.until(lambda share=share: abs(float(view.page.input_value("#seek")) - 10 * share) < 0.2)
        view.until(
            lambda: not view.page.evaluate("document.getElementById('stage').className.includes('stale')")
        )
        at_s = float(view.page.input_value("#seek"))
        slider, line = boxes(view.page, "seek", "here").values()
        thumb = slider["x"] + 8 + (slider["width"] - 16) * at_s / 10
        assert abs(line["x"] + line["width"] / 2 - thumb) < 2
    view.page.close()


def test_an_old_picture_is_dimmed_and_keeps_its_name_until_the_new_one_comes(browser: Any) -> None:
    live = Live()
    with serving(live, host=LOOPBACK, port=0) as address:
        live.newest(0, 0.0)
        live.begin(playback(free=True), at_s=0.0)
        live.show(np.zeros((48, 64, 3), np.uint8), stats(1))
        view = View(browser, address)
        stale = "document.getElementById('stage').classList.contains('stale')"
        assert not view.page.evaluate(stale)
        view.page.select_option("#method", "rise")
        view.until(lambda: view.page.evaluate(stale))
        view.page.wait_for_timeout(300)
        live.begin(playback(free=True, method="rise"), at_s=0.05, answers=live.next_request())
        view.page.wait_for_timeout(300)
        assert view.page.inner_text("#what") == "grad-cam", "the picture is still grad-cam's"
        assert view.page.inner_text("#loading") == "Computing rise …"
        assert view.page.evaluate(stale)
        live.show(np.zeros((48, 64, 3), np.uint8), replace(stats(2), method="rise"))
        view.until(lambda: view.page.inner_text("#what") == "rise")
        assert not view.page.evaluate(stale)
        assert view.page.is_hidden("#loading")
        assert view.complaints == []
        view.page.close()


def test_keys_step_back_hide_the_evidence_and_change_the_speed(browser: Any, playing: Any) -> None:
    played, address = playing
    view = View(browser, address)
    view.until(lambda: view.frame > 20)
    view.page.keyboard.press("ArrowLeft")
    view.until(lambda: view.page.inner_text("#play") == "Play")
    view.until(lambda: len(played.begun) == 2 and view.frame == round(played.begun[1][0] * 20))
    held = view.frame
    view.page.keyboard.press("ArrowLeft")
    view.until(lambda: view.frame == held - 1)
    view.page.keyboard.press("o")
    view.until(lambda: view.page.inner_text("#what") == "the frame alone")
    assert view.page.get_attribute("#overlay", "aria-pressed") == "false"
    view.page.keyboard.press("o")
    view.until(lambda: view.page.inner_text("#what") == "grad-cam")
    view.page.keyboard.press("+")
    view.until(lambda: played.live.newest(0, 1.0).state["speed"] == 2.0)
    assert view.page.input_value("#speed") == "2"
    assert view.complaints == []
    view.page.close()


def test_the_end_of_the_replay_is_told(browser: Any) -> None:
    live = Live()
    with serving(live, host=LOOPBACK, port=0) as address:
        live.begin(playback(free=False), at_s=0.0)
        live.show(np.zeros((48, 64, 3), np.uint8), stats(1))
        view = View(browser, address)
        live.end()
        view.until(lambda: view.page.inner_text("#note") == "The end of the drive.")
        assert view.page.is_disabled("#seek")
        assert view.page.is_disabled("#method")
    view.until(lambda: view.page.inner_text("#note") == "The replay has ended.")
    view.page.close()
