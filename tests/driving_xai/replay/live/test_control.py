"""Between a replay and its viewers: the newest picture for whoever asks, and whose turn it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import cv2
import numpy as np
import pytest

from data_prep.schema import Image
from driving_xai.replay.live import control as module
from driving_xai.replay.live.control import FrameStats, Live, Playback
from driving_xai.replay.tasks.steering import SteeringTask

Start = Callable[..., Future]


def playback(*, free: bool, frame_rate: float = 1000.0, method: str = "grad-cam") -> Playback:
    return Playback(
        first_s=0.0,
        last_s=10.0,
        frame_rate=frame_rate,
        method=method,
        methods=("grad-cam", "rise"),
        free=free,
        legend=SteeringTask.legend._asdict(),
    )


def picture(number: int) -> np.ndarray:
    return np.full((8, 8, 3), number, np.uint8)


def stats(number: int) -> FrameStats:
    return FrameStats(
        time_s=number / 20,
        frame=number,
        method="grad-cam",
        predicted="1.0°",
        truth=None,
        area=None,
        mean_area=None,
        half_width=None,
        random_area=None,
        scored=0,
    )


def show(live: Live, numbers: range) -> None:
    for number in numbers:
        live.show(picture(number), stats(number))


def grey(jpeg: bytes) -> int:
    return int(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).mean().round())


@pytest.fixture
def live() -> Iterator[Live]:
    made = Live()
    yield made
    made.close()


@pytest.fixture
def start(live: Live) -> Iterator[Start]:
    """Runs a function in a thread that the test does not wait for."""
    with ThreadPoolExecutor() as pool:
        yield pool.submit
        live.close()  # Else a thread that is paused is waited for.


def test_whoever_asks_late_gets_the_newest_and_skips_the_rest(live: Live) -> None:
    live.begin(playback(free=False), at_s=0.0)
    show(live, range(1, 4))
    first = live.newest(0, 1.0)
    show(live, range(4, 101))
    second = live.newest(first.number, 1.0)
    assert (grey(first.jpeg), first.state["stats"]["frame"]) == (3, 3)
    assert (grey(second.jpeg), second.state["stats"]["frame"]) == (100, 100)
    assert live.newest(second.number, 0.05) is None, "nothing newer comes"


def test_a_picture_is_compressed_once_for_all_viewers(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = []
    whole = module.encode_jpeg

    def counted(given: Image, *, quality: int) -> bytes:
        packed.append(1)
        return whole(given, quality=quality)

    monkeypatch.setattr(module, "encode_jpeg", counted)
    live.begin(playback(free=False), at_s=0.0)
    show(live, range(1, 50))
    assert packed == [], "nobody looked"
    assert {live.newest(0, 1.0).jpeg for _ in range(3)} == {whole(picture(49), quality=85)}
    live.pause(True)
    live.newest(0, 1.0)
    assert packed == [1], "a change of state needs no new picture"


def test_paused_it_waits_and_a_step_is_one_frame(live: Live, start: Start) -> None:
    live.begin(playback(free=False), at_s=0.0)
    show(live, range(1, 2))
    live.pause(True)
    rest = start(show, live, range(2, 6))
    seen = [live.newest(0, 0.3).state["stats"]["frame"]]
    for _ in range(2):
        number = live.newest(0, 0.3).number
        live.step()
        while (found := live.newest(number, 1.0)).state["stats"]["frame"] == seen[-1]:
            number = found.number
        seen.append(found.state["stats"]["frame"])
        assert live.newest(found.number, 0.1) is None, "one step, one frame"
    assert seen == [1, 2, 3]
    assert not rest.done()
    live.pause(False)
    rest.result(2.0)
    assert live.newest(0, 0.3).state["stats"]["frame"] == 5


def test_where_nothing_is_written_it_waits_for_a_viewer(live: Live, start: Start) -> None:
    live.begin(playback(free=True), at_s=0.0)
    shown = start(show, live, range(1, 4))
    threading.Event().wait(0.3)
    assert not shown.done()
    assert live.newest(0, 1.0) is not None
    shown.result(2.0)


def test_where_a_video_is_written_it_waits_for_nobody(live: Live) -> None:
    live.begin(playback(free=False, frame_rate=1.0), at_s=0.0)
    show(live, range(1, 50))
    for asked in (lambda: live.seek(1.0), lambda: live.switch("rise")):
        with pytest.raises(ValueError, match="replay without --out"):
            asked()
    assert not live.interrupted


def test_it_keeps_the_time_of_the_drive(live: Live, start: Start) -> None:
    live.begin(playback(free=True, frame_rate=50.0), at_s=0.0)
    shown = start(show, live, range(1, 21))
    live.newest(0, 1.0)
    begun = time.monotonic()
    shown.result(5.0)
    assert 0.3 < time.monotonic() - begun < 1.5, "19 periods of 20 ms"


def test_requests_are_joined_checked_and_fulfilled_by_beginning_anew(live: Live, start: Start) -> None:
    live.begin(playback(free=True), at_s=2.5)
    assert live.at_s == 2.5
    held = start(show, live, range(1, 3))
    live.seek(4.0)
    live.switch("rise")
    held.result(1.0)
    assert live.interrupted
    request = live.next_request()
    assert request == (4.0, "rise")
    for asked in (lambda: live.seek(11.0), lambda: live.seek(float("nan")), lambda: live.switch("lime")):
        with pytest.raises(ValueError, match="expected"):
            asked()
    live.begin(playback(free=True), at_s=4.0, answers=request)
    assert not live.interrupted
    assert live.newest(0, 0.01) is None or live.newest(0, 0.1).state["waiting"]


def test_a_request_that_comes_while_another_is_fulfilled_stays(live: Live) -> None:
    live.begin(playback(free=True), at_s=0.0)
    live.seek(4.0)
    first = live.next_request()
    live.seek(7.0)
    live.begin(playback(free=True), at_s=4.0, answers=first)
    assert live.interrupted
    second = live.next_request()
    assert second == (7.0, None)
    live.begin(playback(free=True), at_s=7.0, answers=second)
    assert not live.interrupted


def test_play_after_the_end_begins_again(live: Live) -> None:
    live.begin(playback(free=True), at_s=9.0)
    live.end()
    live.pause(False)
    assert live.next_request() == (0.0, None)


def test_closing_lets_everybody_go(live: Live, start: Start) -> None:
    live.begin(playback(free=True), at_s=0.0)
    waiting = [start(show, live, range(1, 3)), start(live.newest, 10**9, 60.0), start(live.next_request)]
    threading.Event().wait(0.1)
    live.close()
    assert [each.result(2.0) for each in waiting] == [None, None, None]


def test_a_step_back_pauses_and_goes_to_the_frame_before(live: Live) -> None:
    times_s = [0.0, 0.05, 0.1, 0.15]
    live.begin(playback(free=True), at_s=0.0, times_s=times_s)
    live.newest(0, 0.0)
    live.pause(True)
    for number in (1, 2):
        live.step()
        live.show(picture(number), stats(number))
    live.step_back()
    assert live.next_request() == (0.05, None)
    live.step_back()
    assert live.next_request() == (0.0, None), "before the place that was asked for"
    with pytest.raises(ValueError, match="first frame"):
        live.step_back()
    assert live.newest(0, 0.1).state["paused"]


def test_stepping_back_passes_a_frame_that_cannot_be_read(live: Live) -> None:
    live.begin(playback(free=True), at_s=0.05, times_s=[0.0, 0.05, 0.1])
    live.newest(0, 0.0)
    # The frame of 0.05 s is missing: the one after it is shown.
    live.show(picture(2), stats(2))
    live.step_back()
    assert live.next_request() == (0.0, None)


def test_while_something_else_comes_the_picture_keeps_its_own_name(live: Live) -> None:
    live.begin(playback(free=True), at_s=0.0)
    live.newest(0, 0.0)
    live.show(picture(1), stats(1))
    live.switch("rise")
    state = live.newest(0, 0.1).state
    assert (state["waiting"], state["wanted"], state["stats"]["method"]) == (True, "rise", "grad-cam")
    live.begin(playback(free=True, method="rise"), at_s=0.0, answers=live.next_request())
    state = live.newest(0, 0.1).state
    assert (state["waiting"], state["wanted"], state["stats"]["method"]) == (True, None, "grad-cam")
    live.show(picture(2), replace(stats(2), method="rise"))
    state = live.newest(0, 0.1).state
    assert (state["waiting"], state["stats"]["method"]) == (False, "rise")


def test_speed_divides_the_time_of_a_frame(live: Live, start: Start) -> None:
    live.begin(playback(free=True, frame_rate=50.0), at_s=0.0)
    live.set_speed(4.0)
    shown = start(show, live, range(1, 41))
    live.newest(0, 1.0)
    begun = time.monotonic()
    shown.result(5.0)
    assert time.monotonic() - begun > 0.15, "39 periods of 5 ms"
    for speed in (0.0, -1.0, 100.0, float("nan")):
        with pytest.raises(ValueError, match=r"expected 0\.25 to 4"):
            live.set_speed(speed)


def test_the_plain_frame_comes_with_the_same_numbers(live: Live) -> None:
    live.begin(playback(free=False), at_s=0.0)
    live.show(picture(200), stats(1), plain=np.full((4, 6, 3), 50, np.uint8))
    drawn, plain = live.newest(0, 0.1), live.newest(0, 0.1, drawn=False)
    assert (grey(drawn.jpeg), grey(plain.jpeg)) == (200, 50)
    assert drawn.state == plain.state
    live.show(picture(100), stats(2))
    assert grey(live.newest(0, 0.1, drawn=False).jpeg) == 100, "without a plain one the drawn one"


def test_a_pause_lets_the_picture_come_that_was_asked_for(live: Live, start: Start) -> None:
    live.begin(playback(free=True), at_s=0.0)
    live.newest(0, 0.0)
    live.show(picture(1), stats(1))
    live.switch("rise")
    live.begin(playback(free=True, method="rise"), at_s=0.0, answers=live.next_request())
    live.pause(True)
    rest = start(show, live, range(2, 4))
    for _ in range(20):
        state = live.newest(0, 1.0).state
        if not state["waiting"]:
            break
        time.sleep(0.05)
    assert (state["stats"]["frame"], state["paused"], rest.done()) == (2, True, False)
