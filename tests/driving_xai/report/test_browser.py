"""The page in Chromium, opened from disk: no request, no error, video and charts in step, keys, both widths."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from driving_xai.report.page import PageConfig, write_page
from driving_xai.report.sources import load_sources
from tests.driving_xai.report.made import CONTROLS, RATE

CHROMIUM = Path("/usr/bin/chromium")
FRAMES = 120

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium at /usr/bin/chromium"),
]

SETTLED = """async () => {
    const video = document.getElementById('video');
    const wait = (ms) => new Promise(resolve => setTimeout(resolve, ms));
    for (let tries = 0; tries < 100 && (video.seeking || video.readyState < 2); tries++) await wait(50);
    await wait(100);
    return [video.currentTime, Number(document.getElementById('charts').getAttribute('aria-valuenow'))];
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as chromium:
        opened = chromium.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(write_replay: Any, write_results: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page that holds its video, one beside which it lies, and one without."""
    root = tmp_path_factory.mktemp("pages")
    replay = write_replay(root=root, frames=FRAMES)
    scores = write_results(root=root, frames=FRAMES)
    sources = load_sources([scores, replay])
    write_page(sources, root / "inside.html")
    write_page(sources, root / "beside.html", PageConfig(embed_mb=0))
    write_page(load_sources([scores]), root / "blind.html")
    # Its scores go on for longer than the video.
    long = write_results("long", root=root, frames=2 * FRAMES)
    write_page(load_sources([long, replay]), root / "clip.html")
    keys = "{:06}_barrier_signal-green_left-dashed-barrier_right-solid-near-car.jpg"
    (root / "images").mkdir()
    named = [
        write_replay(root=root / "images", frames=20, keys=keys),
        write_results("named", root=root / "images", frames=40, keys=keys),
    ]
    write_page(load_sources(named[::-1]), root / "images.html")
    return {name: root / f"{name}.html" for name in ("inside", "beside", "blind", "clip", "images")}


class Opened:
    """A page with what it asked for and complained about."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.page = browser.new_page(**options)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(path.as_uri())
        self.until("document.querySelectorAll('#charts svg').length > 1")

    def until(self, truth: str) -> None:
        """Waits for an expression. Playwright's own waiting evaluates text, which the page's policy forbids."""
        for _ in range(300):
            if self.page.evaluate(truth):
                return
            self.page.wait_for_timeout(50)
        pytest.fail(f"never came true: {truth}")

    def settled(self) -> tuple[int, int]:
        """The number of the picture on the screen, and the row at the cursor."""
        time, row = self.page.evaluate(SETTLED)
        return int(time * RATE), row


@pytest.fixture
def open_page(browser: Any, pages: dict[str, Path]) -> Iterator[Any]:
    opened: list[Opened] = []

    def make(name: str, **options: Any) -> Opened:
        opened.append(Opened(browser, pages[name], **options))
        return opened[-1]

    yield make
    for each in opened:
        each.page.close()


@pytest.mark.parametrize("name", ["inside", "beside", "blind"])
def test_nothing_leaves_the_disk_and_nothing_complains(open_page, pages, name):
    opened = open_page(name)
    opened.page.wait_for_timeout(300)
    for selector in ("#result", "#board", "#method"):
        options = opened.page.locator(f"{selector} option")
        for at in reversed(range(options.count())):
            opened.page.select_option(selector, index=at, force=True)
    opened.page.locator(".card").first.click()
    opened.page.wait_for_timeout(200)
    outside = [url for url in opened.requests if not url.startswith(("file:", "blob:", "data:"))]
    assert outside == []
    files = {url for url in opened.requests if url.startswith("file:")}
    video = {(pages[name].parent / "drive.mp4").as_uri()} if name == "beside" else set()
    assert files == {pages[name].as_uri()} | video
    assert opened.complaints == []


@pytest.mark.parametrize("name", ["inside", "beside"])
def test_the_video_plays_and_the_cursor_moves_with_it(open_page, name):
    opened = open_page(name)
    before = opened.settled()
    opened.page.click("#play")
    opened.until("document.getElementById('video').currentTime > 0.6")
    assert opened.page.get_attribute("#play", "aria-label") == "Pause"
    opened.page.click("#play")
    picture, row = opened.settled()
    assert opened.page.get_attribute("#play", "aria-label") == "Play"
    assert row > before[1]
    assert abs(picture - (row + 1)) <= 1, "row n is picture n + 1"


@pytest.mark.parametrize("share", [0.2, 0.55, 0.9])
def test_a_click_on_a_chart_seeks_within_a_frame(open_page, share):
    opened = open_page("inside")
    opened.settled()
    opened.page.locator("#charts").scroll_into_view_if_needed()
    lines = opened.page.locator("#charts path").first.bounding_box()
    opened.page.mouse.click(lines["x"] + share * lines["width"], lines["y"] + 5)
    picture, row = opened.settled()
    assert abs(row - share * (FRAMES - 1)) <= 1
    assert picture == row + 1
    cursor = opened.page.locator("#charts .cursor").first.bounding_box()
    assert cursor["x"] == pytest.approx(lines["x"] + share * lines["width"], abs=4)


def test_the_picture_on_the_screen_is_the_one_of_the_row(open_page):
    """Its grey tells its number."""
    opened = open_page("inside")
    opened.page.focus("#charts")
    for _ in range(7):
        opened.page.keyboard.press("ArrowRight")
    picture, row = opened.settled()
    assert (picture, row) == (8, 7)
    grey = opened.page.evaluate("""() => {
        const video = document.getElementById('video'), canvas = document.createElement('canvas');
        canvas.width = canvas.height = 8;
        const context = canvas.getContext('2d');
        context.drawImage(video, 0, 0, 8, 8);
        return context.getImageData(4, 4, 1, 1).data[0];
    }""")
    assert grey == pytest.approx(20 + 8, abs=1.5)


def test_the_keyboard_alone_reaches_and_moves_everything(open_page):
    opened = open_page("inside")
    opened.settled()
    reached = []
    for _ in range(40):
        opened.page.keyboard.press("Tab")
        reached.append(opened.page.evaluate("document.activeElement.id || document.activeElement.className"))
        if reached[-1] == "charts":
            break
    for name in ("skip", "theme", "result", "board", "method", "back", "play", "forward", "charts"):
        assert name in reached
    assert opened.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    for key, expected in (
        ("ArrowRight", 1),
        ("End", FRAMES - 1),
        ("ArrowLeft", FRAMES - 2),
        ("Home", 0),
        ("Shift+ArrowRight", 20),
        ("ArrowUp", 21),
        ("PageDown", 0),
    ):
        opened.page.keyboard.press(key)
        assert opened.settled()[1] == expected, key
    assert "frame 1" in opened.page.get_attribute("#charts", "aria-valuetext")
    opened.page.keyboard.press("Space")
    opened.until("!document.getElementById('video').paused")
    opened.page.keyboard.press("Space")
    assert opened.page.evaluate("document.getElementById('video').paused")


def test_without_a_video_the_cursor_still_plays(open_page):
    opened = open_page("blind")
    opened.page.focus("#charts")
    opened.page.keyboard.press("Space")
    opened.until("Number(document.getElementById('charts').getAttribute('aria-valuenow')) > 3")
    opened.page.keyboard.press("Space")
    row = opened.settled()[1]
    assert opened.settled()[1] == row
    assert "no video" in opened.page.inner_text("#screen-note")


def test_frames_that_the_video_does_not_show_are_told(open_page):
    opened = open_page("clip")
    opened.page.focus("#charts")
    opened.page.keyboard.press("End")
    assert opened.settled()[1] == 2 * FRAMES - 1
    assert opened.page.inner_text("#screen-note") == "The video does not show this frame."
    opened.page.keyboard.press("Home")
    assert opened.settled() == (1, 0)
    assert "does not show" not in opened.page.inner_text("#screen-note")


LINES = """(selector) => [...document.querySelectorAll(selector)].map(
    (each) => [each.getAttribute('class'), each.getAttribute('d') || each.getAttribute('points')])"""


@pytest.mark.parametrize("method", ["grad-cam", "random"])
def test_a_control_has_the_same_dashes_everywhere(open_page, method):
    """In this order the controls' lines are told apart, and the legend of the scores says so."""
    page = open_page("blind").page
    page.select_option("#method", method)
    keys = page.evaluate(
        "() => [...document.querySelectorAll('#charts .chart:last-child .key')].map(e => [e.textContent, e.className])"
    )
    dashes = {text.split()[0]: name for text, name in keys if "control" in name}
    wanted = {"random": "key c-control-0 dash", "centre-prior": "key c-control-1 dash"}
    assert dashes == {name: style for name, style in wanted.items() if name != method}
    if method == "grad-cam":
        data = page.evaluate("JSON.parse(document.getElementById('data').textContent)")
        curves = data["results"][0]["picks"]["deletion/clean"]["grad-cam"][0]["curves"]
        lines = dict(page.evaluate(LINES, ".card:first-child .curve"))
        ends = {name: float(lines[f"curve control-{at}"].split(",")[-1]) for at, name in enumerate(CONTROLS)}
        # The lower the value, the lower on the screen, where y is larger.
        order = sorted(CONTROLS, key=lambda name: curves[name][-1])
        assert sorted(CONTROLS, key=lambda name: -ends[name]) == order
        assert curves["random"][-1] != curves["centre-prior"][-1]


def test_a_card_goes_to_its_frame(open_page):
    opened = open_page("inside")
    card = opened.page.locator(".card").first
    told = card.locator(".text").inner_text()
    card.click()
    picture, row = opened.settled()
    assert f"frame {row + 1} " in told
    assert picture == row + 1
    assert opened.page.evaluate("document.activeElement.id") == "charts"


@pytest.mark.parametrize("width", [390, 1280])
def test_long_names_of_images_fit_and_cards_are_filled_from_above(open_page, width):
    """Only some images are in the video, so cards of one row are of different heights."""
    page = open_page("images", viewport={"width": width, "height": 844}).page
    assert page.evaluate("document.documentElement.scrollWidth") == width
    tops = page.evaluate(
        """() => [...document.querySelectorAll('.card')].map(
            (each) => each.firstElementChild.getBoundingClientRect().top - each.getBoundingClientRect().top)"""
    )
    assert len(tops) > 3
    assert max(tops) <= 2
    labels = page.evaluate(
        "() => [...document.querySelectorAll('#charts .chart:last-child text')].map((each) => each.textContent)"
    )
    images = [text for text in labels if text.startswith("image ")]
    assert len(images) > 1
    assert all(text.split()[1].isdigit() for text in images)


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_the_screen_and_can_be_read(open_page, width, scheme):
    opened = open_page("inside", viewport={"width": width, "height": 844}, color_scheme=scheme)
    assert opened.page.evaluate("document.documentElement.scrollWidth") == width
    least = opened.page.evaluate(CONTRAST)
    assert least >= 4.5, f"contrast of small text against the page is {least:.2f}"


CONTRAST = """() => {
    const channel = (c) => { c /= 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
    const light = (text) => { const [r, g, b] = text.match(/[\\d.]+/g).map(Number); return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b); };
    const paper = light(getComputedStyle(document.body).backgroundColor);
    let least = 99;
    for (const each of document.querySelectorAll('p, dt, dd, th, td, summary, .unit, .key, nav a, .verdict b, svg text')) {
        const style = getComputedStyle(each), ink = light(each.tagName === 'text' ? style.fill : style.color);
        least = Math.min(least, (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05));
    }
    return least;
}"""


def test_colours_can_be_chosen(open_page):
    opened = open_page("blind", color_scheme="light")
    colours = [opened.page.evaluate("getComputedStyle(document.body).backgroundColor")]
    for _ in range(3):
        opened.page.click("#theme")
        colours.append(opened.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    system, light, dark, again = colours
    assert system == light == again != dark
