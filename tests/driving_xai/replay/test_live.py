"""Between a replay and its viewers: the newest picture for whoever asks, and whose turn it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from driving_xai.replay import live as module
from driving_xai.replay.live import Course, Live, Reading

Start = Callable[..., Future]


def course(*, free: bool, frame_rate: float = 1000.0, method: str = "grad-cam") -> Course:
    return Course(
        first_s=0.0,
        last_s=10.0,
        frame_rate=frame_rate,
        method=method,
        methods=("grad-cam", "rise"),
        free=free,
    )


def picture(number: int) -> np.ndarray:
    return np.full((8, 8, 3), number, np.uint8)


def reading(number: int) -> Reading:
    return Reading(
        time_s=number / 20,
        frame=number,
        predicted_deg=1.0,
        truth_deg=None,
        area=None,
        mean_area=None,
        half_width=None,
        random_area=None,
        scored=0,
    )


def show(live: Live, numbers: range) -> None:
    for number in numbers:
        live.show(picture(number), reading(number))


def grey(jpeg: bytes) -> int:
    return int(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).mean().round())


@pytest.fixture
def live() -> Iterator[Live]:
    made = Live()
    yield made
    made.close()


@pytest.fixture
def start() -> Iterator[Start]:
    """Runs a function in a thread that the test does not wait for."""
    with ThreadPoolExecutor() as pool:
        yield pool.submit


def test_whoever_asks_late_gets_the_newest_and_skips_the_rest(live: Live) -> None:
    live.begin(course(free=False), at_s=0.0)
    show(live, range(1, 4))
    first = live.newest(0, 1.0)
    show(live, range(4, 101))
    second = live.newest(first.number, 1.0)
    assert (grey(first.jpeg), first.state["reading"]["frame"]) == (3, 3)
    assert (grey(second.jpeg), second.state["reading"]["frame"]) == (100, 100)
    assert live.newest(second.number, 0.05) is None, "nothing newer comes"


def test_a_picture_is_compressed_once_for_all_viewers(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = []
    whole = module._jpeg
    monkeypatch.setattr(module, "_jpeg", lambda given: (packed.append(1), whole(given))[1])
    live.begin(course(free=False), at_s=0.0)
    show(live, range(1, 50))
    assert packed == [], "nobody looked"
    assert {live.newest(0, 1.0).jpeg for _ in range(3)} == {whole(picture(49))}
    live.pause(True)
    live.newest(0, 1.0)
    assert packed == [1], "a change of state needs no new picture"


def test_paused_it_waits_and_a_step_is_one_frame(live: Live, start: Start) -> None:
    live.begin(course(free=False), at_s=0.0)
    show(live, range(1, 2))
    live.pause(True)
    rest = start(show, live, range(2, 6))
    seen = [live.newest(0, 0.3).state["reading"]["frame"]]
    for _ in range(2):
        number = live.newest(0, 0.3).number
        live.step()
        while (found := live.newest(number, 1.0)).state["reading"]["frame"] == seen[-1]:
            number = found.number
        seen.append(found.state["reading"]["frame"])
        assert live.newest(found.number, 0.1) is None, "one step, one frame"
    assert seen == [1, 2, 3]
    assert not rest.done()
    live.pause(False)
    rest.result(2.0)
    assert live.newest(0, 0.3).state["reading"]["frame"] == 5


def test_where_nothing_is_written_it_waits_for_a_viewer(live: Live, start: Start) -> None:
    live.begin(course(free=True), at_s=0.0)
    shown = start(show, live, range(1, 4))
    threading.Event().wait(0.3)
    assert not shown.done()
    assert live.newest(0, 1.0) is not None
    shown.result(2.0)


def test_where_a_video_is_written_it_waits_for_nobody(live: Live) -> None:
    live.begin(course(free=False, frame_rate=1.0), at_s=0.0)
    show(live, range(1, 50))
    for asked in (lambda: live.seek(1.0), lambda: live.switch("rise")):
        with pytest.raises(ValueError, match="replay without --out"):
            asked()
    assert not live.interrupted


def test_it_keeps_the_time_of_the_drive(live: Live, start: Start) -> None:
    live.begin(course(free=True, frame_rate=50.0), at_s=0.0)
    shown = start(show, live, range(1, 21))
    live.newest(0, 1.0)
    begun = time.monotonic()
    shown.result(5.0)
    assert 0.3 < time.monotonic() - begun < 1.5, "19 periods of 20 ms"


def test_wishes_are_joined_checked_and_fulfilled_by_beginning_anew(live: Live, start: Start) -> None:
    live.begin(course(free=True), at_s=2.5)
    assert live.at_s == 2.5
    held = start(show, live, range(1, 3))
    live.seek(4.0)
    live.switch("rise")
    held.result(1.0)
    assert live.interrupted
    wish = live.next_wish()
    assert wish == (4.0, "rise")
    for asked in (lambda: live.seek(11.0), lambda: live.seek(float("nan")), lambda: live.switch("lime")):
        with pytest.raises(ValueError, match="expected"):
            asked()
    live.begin(course(free=True), at_s=4.0, fulfilled=wish)
    assert not live.interrupted
    assert live.newest(0, 0.01) is None or live.newest(0, 0.1).state["waiting"]


def test_a_wish_that_comes_while_another_is_fulfilled_stays(live: Live) -> None:
    live.begin(course(free=True), at_s=0.0)
    live.seek(4.0)
    first = live.next_wish()
    live.seek(7.0)
    live.begin(course(free=True), at_s=4.0, fulfilled=first)
    assert live.interrupted
    second = live.next_wish()
    assert second == (7.0, None)
    live.begin(course(free=True), at_s=7.0, fulfilled=second)
    assert not live.interrupted


def test_play_after_the_end_begins_again(live: Live) -> None:
    live.begin(course(free=True), at_s=9.0)
    live.end()
    live.pause(False)
    assert live.next_wish() == (0.0, None)


def test_closing_lets_everybody_go(live: Live, start: Start) -> None:
    live.begin(course(free=True), at_s=0.0)
    waiting = [start(show, live, range(1, 3)), start(live.newest, 10**9, 60.0), start(live.next_wish)]
    threading.Event().wait(0.1)
    live.close()
    assert [each.result(2.0) for each in waiting] == [None, None, None]
