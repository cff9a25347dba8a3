"""Threads beside the model: order, bounds, errors, ends."""

from __future__ import annotations

import _thread
import contextlib
import threading
import time
from collections.abc import Iterator

import pytest

from driving_xai.replay.background import Consumer, StageTimes, ahead


def replay_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("replay-")]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert not replay_threads()


def test_items_come_in_order_from_another_thread() -> None:
    makers: set[str] = set()

    def items() -> Iterator[int]:
        for item in range(50):
            makers.add(threading.current_thread().name)
            yield item

    with ahead(items(), depth=3) as coming:
        assert list(coming) == list(range(50))
    assert makers == {"replay-ahead"}


def test_fetching_stays_within_its_depth() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            made.append(item)
            yield item

    with ahead(items(), depth=4) as coming:
        for item in coming:
            time.sleep(0.001)
            # In the queue, one in the fetching thread's hands, and the one just taken.
            assert len(made) <= item + 1 + 4 + 1
            if item == 20:
                break
    assert len(made) < 40, "what nobody takes is not made"


def test_an_error_while_fetching_is_raised_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise OSError("the camera broke")

    taken: list[int] = []
    with pytest.raises(OSError, match="the camera broke"), ahead(items(), depth=8) as coming:
        taken.extend(coming)
    assert taken == [0, 1, 2]


def test_items_are_handled_in_order_and_all_before_the_block_ends() -> None:
    handled: list[int] = []

    def handle(item: int) -> None:
        time.sleep(0.001)
        handled.append(item)

    with Consumer(handle, depth=2) as behind:
        for item in range(40):
            behind.put(item)
            assert len(handled) >= item - 2 - 1, "no more than the depth and one in hand are late"
    assert handled == list(range(40))


@pytest.mark.parametrize("items", [1, 30])
def test_an_error_while_handling_is_raised_where_items_are_handed_over(items: int) -> None:
    def handle(item: int) -> None:
        raise OSError("the disk is full")

    def work() -> None:
        with Consumer(handle, depth=2) as behind:
            for item in range(items):
                behind.put(item)

    with pytest.raises(OSError, match="the disk is full"):
        work()


def test_leaving_through_an_error_drops_what_is_pending() -> None:
    handled: list[int] = []
    release = threading.Event()

    def handle(item: int) -> None:
        handled.append(item)
        release.wait(5)

    def work() -> None:
        with Consumer(handle, depth=8) as behind:
            for item in range(8):
                behind.put(item)
            time.sleep(0.05)
            threading.Timer(0.05, release.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert handled == [0]


def test_stage_times_add_up() -> None:
    times = StageTimes()

    def slow() -> Iterator[int]:
        for item in range(3):
            time.sleep(0.01)
            yield item

    assert list(times.each("decode", slow())) == [0, 1, 2]
    with contextlib.suppress(ValueError), times.measure("model"):
        time.sleep(0.01)
        raise ValueError
    assert times.seconds["decode"] >= 0.03
    assert times.seconds["model"] >= 0.01


def test_ctrl_c_while_the_last_items_are_handled_waits_for_the_thread() -> None:
    """What the items go to is closed next: a thread that still wrote into a video ended the process."""
    handled: list[int] = []

    def handle(item: int) -> None:
        time.sleep(0.1)  # The block is being left.
        _thread.interrupt_main()
        time.sleep(0.2)
        handled.append(item)

    def work() -> None:
        with Consumer(handle, depth=4) as consumer:
            consumer.put(1)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert handled == [1]
    assert not replay_threads()
