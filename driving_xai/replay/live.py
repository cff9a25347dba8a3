"""What a replay and its viewers share: the newest picture, and what the viewers ask for.

There is one place for a picture and no queue: whoever asks gets the newest, so a slow viewer skips what
it missed and holds up nobody. Pausing holds the replay where pictures are shown, so that a step is
exactly one frame.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import cv2

from data_prep.schema import Image

_JPEG_QUALITY = 85
_POLL_S = 0.2
_WATCHED_S = 5.0
"""A viewer that has not asked for so long has gone."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One frame in numbers; None where unknown."""

    time_s: float
    """In the drive."""
    frame: int
    predicted_deg: float
    truth_deg: float | None
    area: float | None
    """Under this frame's deletion curve, in degree x percent, as are those that follow."""
    mean_area: float | None
    half_width: float | None
    random_area: float | None
    scored: int
    """Frames behind the means."""


class Shown(NamedTuple):
    """What a viewer gets."""

    number: int
    """Rises with every picture and every change of state."""
    jpeg: bytes
    state: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Course:
    """What is played, as viewers see it; given once a replay is open."""

    first_s: float
    last_s: float
    frame_rate: float
    method: str
    methods: Sequence[str]
    """That may be switched to; only the own one while a video is written."""
    free: bool
    """Whether viewers may seek and switch: not while a video is written."""


class Wish(NamedTuple):
    """What viewers asked for that needs the replay to start anew."""

    at_s: float | None
    method: str | None


@dataclass
class _State:
    paused: bool = False
    ended: bool = False
    waiting: bool = False
    """For the first picture from a new place."""
    reading: Reading | None = None
    course: Course | None = None


class Live:
    """Stands between one replay, which shows, and its viewers, who look and ask. Safe between threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._state = _State()
        self._number = 0
        self._picture: Image | None = None
        self._packed: tuple[int, bytes] = (-1, b"")
        self._pictures = 0
        self._steps = 0
        self._wish: Wish | None = None
        self._asked_s = -math.inf
        self._due_s = 0.0
        self._at_s = 0.0
        self._closed = False

    # The replay's side.

    def begin(self, course: Course, *, at_s: float, fulfilled: Wish | None = None) -> None:
        """Announces what is played from now on, and from where.

        Args:
            fulfilled: the wish that this answers; one that came later stays.
        """
        with self._changed:
            self._state.course, self._state.ended, self._state.waiting = course, False, True
            self._at_s = at_s
            self._due_s = 0.0
            if self._wish is fulfilled:
                self._wish = None
            self._tell()

    def show(self, picture: Image, reading: Reading) -> None:
        """Hands over a picture, which must not be changed afterwards, once it is its turn.

        Waits while the replay is paused or, where nothing is written, while nobody looks or the drive's
        own time has not come.
        """
        with self._changed:
            self._wait_for_turn()
            if self._wish is not None or self._closed:
                return
            self._picture, self._state.reading, self._state.waiting = picture, reading, False
            self._at_s = reading.time_s
            self._pictures += 1
            self._tell()

    def end(self) -> None:
        """Tells viewers that the last picture was shown."""
        with self._changed:
            self._state.ended, self._steps = True, 0
            self._tell()

    def close(self) -> None:
        """Lets everybody who waits go."""
        with self._changed:
            self._closed = True
            self._tell()

    @property
    def closed(self) -> bool:
        """Whether the replay is over for everybody."""
        with self._changed:
            return self._closed

    @property
    def interrupted(self) -> bool:
        """Whether viewers wish for another place or method."""
        with self._changed:
            return self._wish is not None or self._closed

    @property
    def at_s(self) -> float:
        """The place of the drive that was shown last, or is about to be."""
        with self._changed:
            return self._at_s

    def next_wish(self) -> Wish | None:
        """Waits for a wish; None once closed."""
        with self._changed:
            while self._wish is None and not self._closed:
                # A wait without an end could not be interrupted from the keyboard.
                self._changed.wait(_POLL_S)
            return None if self._closed else self._wish

    def _wait_for_turn(self) -> None:
        while not (self._closed or self._wish is not None):
            if self._steps:
                self._steps -= 1
                return
            now_s = time.monotonic()
            free = self._state.course is not None and self._state.course.free
            # The first picture waits for a viewer, not for the play button.
            held = self._state.paused and self._pictures > 0
            if not held and not (free and not self._watched(now_s)):
                if not free or now_s >= self._due_s:
                    # One period late is caught up; what is later than that is forgotten.
                    period_s = self._period_s()
                    self._due_s = max(self._due_s, now_s - period_s) + period_s
                    return
                self._changed.wait(min(_POLL_S, self._due_s - now_s))
            else:
                self._changed.wait(_POLL_S)

    def _period_s(self) -> float:
        return 1 / self._state.course.frame_rate if self._state.course is not None else 0.0

    def _watched(self, now_s: float) -> bool:
        return now_s - self._asked_s < _WATCHED_S

    # The viewers' side.

    def newest(self, after: int, timeout_s: float) -> Shown | None:
        """What there is that is newer than number `after`; None if nothing comes in time."""
        until_s = time.monotonic() + timeout_s
        with self._changed:
            while True:
                now_s = time.monotonic()
                self._asked_s = now_s
                if self._number > after and self._picture is not None:
                    break
                if now_s >= until_s or self._closed:
                    return None
                self._changed.wait(min(_POLL_S, until_s - now_s))
            number, picture, pictures, state = self._number, self._picture, self._pictures, self._describe()
            packed = self._packed
        if packed[0] != pictures:
            # Outside the lock: compressing must not hold up the replay.
            packed = (pictures, _jpeg(picture))
            with self._changed:
                self._packed = max(self._packed, packed)
        return Shown(number, packed[1], state)

    def pause(self, paused: bool) -> None:
        """Holds the replay, or lets it go on; from the start where it had ended."""
        with self._changed:
            self._state.paused, self._steps, self._due_s = paused, 0, 0.0
            course = self._state.course
            if not paused and self._state.ended and course is not None and course.free:
                self._wish = Wish(course.first_s, None)
            self._tell()

    def step(self) -> None:
        """Pauses, and shows one more frame."""
        with self._changed:
            self._state.paused = True
            self._steps += 1
            self._tell()

    def seek(self, at_s: float) -> None:
        """Asks for another place of the drive.

        Raises:
            ValueError: no such place, or a video is being written.
        """
        with self._changed:
            course = self._free_course()
            if not course.first_s <= at_s <= course.last_s:
                raise ValueError(f"got {at_s} s, expected {course.first_s:.2f} to {course.last_s:.2f}")
            self._steps = 1 if self._state.paused else 0
            self._wish = Wish(at_s, self._wish.method if self._wish else None)
            self._tell()

    def switch(self, method: str) -> None:
        """Asks for another method.

        Raises:
            ValueError: the model lacks what it needs, or a video is being written.
        """
        with self._changed:
            course = self._free_course()
            if method not in course.methods:
                raise ValueError(f"got method {method!r}, expected one of: {', '.join(course.methods)}")
            self._steps = 1 if self._state.paused else 0
            self._wish = Wish(self._wish.at_s if self._wish else None, method)
            self._tell()

    def _free_course(self) -> Course:
        course = self._state.course
        if course is None or not course.free:
            raise ValueError("the video that is being written decides place and method; replay without --out")
        return course

    def _describe(self) -> dict[str, Any]:
        return asdict(self._state)

    def _tell(self) -> None:
        self._number += 1
        self._changed.notify_all()


def _jpeg(picture: Image) -> bytes:
    blue_first = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", blue_first, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()
