"""How fast a training is, and how much of its time it waits for data: measured in every epoch, logged as metrics."""

from __future__ import annotations

import time
from collections import deque
from typing import NamedTuple, Protocol, TypeVar

import torch

RATE, WAITING = "frames_per_s", "data_wait_share"
"""Under which names both are logged."""
_PENDING = 512
"""Moments of a GPU that are kept before those that have passed are taken in."""

Moment = TypeVar("Moment")


class Stopwatch(Protocol[Moment]):
    """Notes moments without waiting for them."""

    def now(self) -> Moment:
        """This moment: of a device, when it has done what it was given so far."""
        ...

    def has_passed(self, moment: Moment) -> bool: ...

    def between_s(self, first: Moment, second: Moment) -> float:
        """Seconds between two moments; waits until both have passed."""
        ...


class CpuStopwatch:
    """Of a CPU, where work is done when its call returns."""

    def now(self) -> float:
        return time.perf_counter()

    def has_passed(self, moment: float) -> bool:
        return True

    def between_s(self, first: float, second: float) -> float:
        return second - first


class CudaStopwatch:
    """Of a GPU, by events on its stream: the host runs ahead, and its own time says nothing."""

    def now(self) -> torch.cuda.Event:
        moment = torch.cuda.Event(enable_timing=True)
        moment.record()
        return moment

    def has_passed(self, moment: torch.cuda.Event) -> bool:
        return moment.query()

    def between_s(self, first: torch.cuda.Event, second: torch.cuda.Event) -> float:
        second.synchronize()
        return first.elapsed_time(second) / 1e3


def stopwatch(device: torch.device) -> CpuStopwatch | CudaStopwatch:
    """That of a device."""
    return CudaStopwatch() if device.type == "cuda" else CpuStopwatch()


class Speed(NamedTuple):
    """Of an epoch's steps, without its validation."""

    frames_per_s: float
    data_wait_share: float
    """The part of the time between the end of a step and the start of the next, which fetches and moves its data."""


class StepTimes:
    """Adds up an epoch's steps and the time between them.

    On a GPU that is still busy when the next step's data arrive, nothing is waited for, whatever the host does.

    Args:
        watch: notes the moments.

    Example:
        >>> times = StepTimes(CpuStopwatch())
        >>> times.step_begins(); times.step_ends(frames=8)
        >>> times.ended().frames_per_s > 0
        True
    """

    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch
        self._first = self._last = watch.now()
        self._waits: deque[tuple] = deque()
        self._waited_s, self._frames = 0.0, 0

    def step_begins(self) -> None:
        """Once its data are there."""
        self._waits.append((self._last, self._watch.now()))

    def step_ends(self, frames: int) -> None:
        """After everything that belongs to the step.

        Args:
            frames: that it learnt from, over all processes.
        """
        self._last = self._watch.now()
        self._frames += frames
        while len(self._waits) > _PENDING and self._watch.has_passed(self._waits[0][1]):
            self._take_in()

    def begin_again(self) -> None:
        """Forgets the steps so far; the wait for the next one's data, which began with the last one's end, counts."""
        self._first, self._waited_s, self._frames = self._last, 0.0, 0
        self._waits.clear()

    def ended(self) -> Speed | None:
        """What the epoch's steps came to; None of an epoch without any."""
        if not self._frames:
            return None
        whole_s = self._watch.between_s(self._first, self._last)
        while self._waits:
            self._take_in()
        whole_s = max(whole_s, 1e-9)
        return Speed(self._frames / whole_s, min(self._waited_s / whole_s, 1.0))

    def _take_in(self) -> None:
        self._waited_s += self._watch.between_s(*self._waits.popleft())
