"""A replay's video in Chromium: it plays, seeks, and has the size it should."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from driving_xai.replay.sink import Encoding, open_sink

CHROMIUM = Path("/usr/bin/chromium")
SECONDS, RATE, HEIGHT, WIDTH = 6, Fraction(20), 96, 160
STEP = 2

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium at /usr/bin/chromium"),
]

PLAY = """async () => {
    const video = document.querySelector('video');
    await video.play();
    const shown = [];
    while (shown.length < 4) {
        await new Promise(resolve => video.requestVideoFrameCallback(
            (now, metadata) => { shown.push(metadata.mediaTime); resolve(); }));
    }
    video.pause();
    return shown;
}"""
SEEK = """async (seconds) => {
    const video = document.querySelector('video');
    await new Promise(resolve => { video.onseeked = resolve; video.currentTime = seconds; });
    const canvas = document.createElement('canvas');
    canvas.width = video.videoWidth; canvas.height = video.videoHeight;
    const context = canvas.getContext('2d');
    context.drawImage(video, 0, 0);
    const side = Array.from(context.getImageData(20, 40, 1, 1).data);
    return {time: video.currentTime, grey: side[0], colour: Array.from(context.getImageData(120, 40, 1, 1).data)};
}"""
SIZE = """async () => {
    const video = document.querySelector('video');
    if (video.readyState < 1) await new Promise(resolve => { video.onloadedmetadata = resolve; });
    return [video.videoWidth, video.videoHeight, video.duration];
}"""


def picture(number: int) -> np.ndarray:
    """Left, a grey that tells the frame; right, the colour of the evidence."""
    made = np.full((HEIGHT, WIDTH, 3), 20 + STEP * number, np.uint8)
    made[:, WIDTH // 2 :] = (255, 168, 46)
    return made


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    folder = tmp_path_factory.mktemp("browser")
    with open_sink(
        folder / "drive.mp4", height=HEIGHT, width=WIDTH, frame_rate=RATE, encoding=Encoding(crf=12)
    ) as sink:
        for number in range(int(SECONDS * RATE)):
            sink.write(picture(number % 100))
    (folder / "page.html").write_text(
        "<!doctype html><video muted playsinline preload=auto src=drive.mp4></video>"
    )
    with playwright.sync_playwright() as chromium:
        # Files are other origins to each other, which would forbid reading the canvas.
        browser = chromium.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--allow-file-access-from-files"]
        )
        opened = browser.new_page()
        opened.goto((folder / "page.html").as_uri())
        yield opened
        browser.close()


def test_its_size_and_length_are_known_from_the_start(page: Any) -> None:
    width, height, duration = page.evaluate(SIZE)
    assert (width, height) == (WIDTH, HEIGHT)
    assert duration == pytest.approx(SECONDS, abs=0.06)


def test_it_plays(page: Any) -> None:
    times = page.evaluate(PLAY)
    assert times == sorted(times)
    assert times[-1] > times[0]
    for time in times:
        assert (time * RATE) % 1 == pytest.approx(0, abs=0.02) or (time * RATE) % 1 > 0.98


@pytest.mark.parametrize("second", [4.5, 0.5, 2.25])
def test_seeking_shows_the_frame_of_that_time(page: Any, second: float) -> None:
    found = page.evaluate(SEEK, second + 0.01)
    assert found["time"] == pytest.approx(second, abs=0.05)
    number = int(second * RATE) % 100
    assert found["grey"] == pytest.approx(20 + STEP * number, abs=3)
    assert found["colour"][:3] == pytest.approx([255, 168, 46], abs=6), "the colours are not washed out"
