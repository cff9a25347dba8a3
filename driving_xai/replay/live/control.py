"""The state that a replay shares with its viewers: the newest picture, and what they ask for.

There is one place for a picture and no queue: whoever asks gets the newest, so a slow viewer skips what
it missed and holds up nobody. Pausing holds the replay where pictures are shown, so that a step is
exactly one frame.
"""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from data_prep.geometry import encode_jpeg
from data_prep.schema import Image

if TYPE_CHECKING:
    from driving_xai.replay.live.brush import BrushFrame

_JPEG_QUALITY = 85
_POLL_S = 0.2
_WATCHED_S = 5.0
"""A viewer that has not asked for so long has gone."""
_SAME_S = 1e-6
"""Times of a drive that differ by less are the same frame's."""
SPEEDS = (0.25, 4.0)
"""The slowest and the fastest, as multiples of the drive's own."""


@dataclass(frozen=True, kw_only=True)
class FrameStats:
    """One frame in words and numbers; None where unknown."""

    time_s: float
    """In the drive."""
    frame: int
    method: str
    """That explains this picture, which is the former one for a while after a switch."""
    predicted: str
    truth: str | None
    area: float | None
    """Under this frame's deletion curve, the mean of several, in the task's unit, as are those that follow."""
    mean_area: float | None
    half_width: float | None
    random_area: float | None
    scored: int
    """Curves behind the means."""
    verdict: str | None = None
    """What the drive has shown up to now, in a sentence."""


class Shown(NamedTuple):
    """What a viewer gets."""

    number: int
    """Rises with every picture and every change of state."""
    jpeg: bytes
    state: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Playback:
    """What is played, as viewers see it; given once a replay is open."""

    first_s: float
    last_s: float
    frame_rate: float
    method: str
    methods: Sequence[str]
    """That may be switched to; only the own one while a video is written."""
    free: bool
    """Whether viewers may seek and switch: not while a video is written."""
    legend: Mapping[str, str | int]
    """The words around a frame's numbers: `tasks.base.Legend` by its fields."""


class SeekRequest(NamedTuple):
    """Another place or method that viewers asked for: the replay starts anew there."""

    at_s: float | None
    method: str | None


@dataclass
class _State:
    paused: bool = False
    ended: bool = False
    waiting: bool = False
    """For the first picture from a new place or by a new method: the one that is shown is an old one."""
    speed: float = 1.0
    """As a multiple of the drive's own."""
    stats: FrameStats | None = None
    playback: Playback | None = None


class Live:
    """Stands between one replay, which shows, and its viewers, who look and ask. Safe between threads."""

    def __init__(self, *, cases: Path | None = None) -> None:
        """Begins without a picture.

        Args:
            cases: the folder in which viewers save brush cases; None where they may not.
        """
        self.cases = cases
        self._changed = threading.Condition()
        self._state = _State()
        self._number = 0
        self._picture: Image | None = None
        self._plain: Image | None = None
        self._brush: BrushFrame | None = None
        self._packed: dict[bool, tuple[int, bytes]] = {}
        self._pictures = 0
        self._steps = 0
        self._request: SeekRequest | None = None
        self._asked_s = -math.inf
        self._due_s = 0.0
        self._at_s = 0.0
        self._begun_s = 0.0
        self._shown_since = 0
        self._times_s: Sequence[float] = ()
        self._closed = False

    # The replay's side.

    def begin(
        self,
        playback: Playback,
        *,
        at_s: float,
        answers: SeekRequest | None = None,
        times_s: Sequence[float] = (),
    ) -> None:
        """Announces what is played from now on, and from where.

        Args:
            times_s: of the frames, rising; without them one cannot step back.
            answers: the request that this answers; one that came later stays.
        """
        with self._changed:
            self._state.playback, self._state.ended, self._state.waiting = playback, False, True
            self._at_s = self._begun_s = at_s
            self._shown_since, self._times_s = 0, times_s
            self._due_s = 0.0
            if self._request is answers:
                self._request = None
            self._notify()

    def show(
        self,
        picture: Image,
        stats: FrameStats,
        *,
        plain: UInt8[np.ndarray, "h w 3"] | None = None,
        brush: BrushFrame | None = None,
        lasts_s: float | None = None,
    ) -> None:
        """Hands over a picture, which must not be changed afterwards, once it is its turn.

        Waits while the replay is paused or, where nothing is written, while nobody looks or the drive's
        own time has not come.

        Args:
            picture: RGB.
            stats: what it shows.
            plain: the frame without anything drawn on it, RGB.
            brush: the frame to be painted on.
            lasts_s: how long it is shown in the drive's own time; None: one frame period.
        """
        with self._changed:
            self._wait_for_turn(self._period_s() if lasts_s is None else lasts_s)
            if self._request is not None or self._closed:
                return
            self._picture, self._state.stats, self._state.waiting = picture, stats, False
            self._plain, self._brush = plain, brush
            self._at_s = stats.time_s
            self._shown_since += 1
            self._pictures += 1
            self._notify()

    def end(self) -> None:
        """Says that the last picture was shown."""
        with self._changed:
            self._state.ended, self._steps = True, 0
            self._notify()

    def close(self) -> None:
        """Lets everybody who waits go."""
        with self._changed:
            self._closed = True
            self._notify()

    @property
    def closed(self) -> bool:
        """Whether the replay is over for everybody."""
        with self._changed:
            return self._closed

    @property
    def interrupted(self) -> bool:
        """Whether viewers asked for another place or method."""
        with self._changed:
            return self._request is not None or self._closed

    @property
    def at_s(self) -> float:
        """The place of the drive that was shown last, or is about to be."""
        with self._changed:
            return self._at_s

    def next_request(self) -> SeekRequest | None:
        """Waits for a request; None once closed."""
        with self._changed:
            while self._request is None and not self._closed:
                # A wait without an end could not be interrupted from the keyboard.
                self._changed.wait(_POLL_S)
            return None if self._closed else self._request

    def _wait_for_turn(self, lasts_s: float) -> None:
        while not (self._closed or self._request is not None):
            if self._steps:
                self._steps -= 1
                return
            now_s = time.monotonic()
            free = self._state.playback is not None and self._state.playback.free
            period_s = lasts_s / self._state.speed
            # The first picture waits for a viewer, not for the play button.
            held = self._state.paused and self._pictures > 0
            if not held and not (free and not self._watched(now_s)):
                if not free or now_s >= self._due_s:
                    # One period late is caught up; what is later than that is forgotten.
                    self._due_s = max(self._due_s, now_s - period_s) + period_s
                    return
                self._changed.wait(min(_POLL_S, self._due_s - now_s))
            else:
                self._changed.wait(_POLL_S)

    def _period_s(self) -> float:
        return 1 / self._state.playback.frame_rate if self._state.playback is not None else 0.0

    def _watched(self, now_s: float) -> bool:
        return now_s - self._asked_s < _WATCHED_S

    # The viewers' side.

    def newest(self, after: int, timeout_s: float, *, drawn: bool = True) -> Shown | None:
        """What there is that is newer than number `after`; None if nothing comes in time.

        Args:
            drawn: False is the plain frame, where there is one.
        """
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
            number, pictures, state = self._number, self._pictures, self._describe()
            picture = self._picture if drawn or self._plain is None else self._plain
            packed = self._packed.get(drawn, (-1, b""))
        if packed[0] != pictures:
            # Outside the lock: compressing must not hold up the replay.
            packed = (pictures, encode_jpeg(picture, quality=_JPEG_QUALITY))
            with self._changed:
                self._packed[drawn] = max(self._packed.get(drawn, packed), packed)
        return Shown(number, packed[1], state)

    def brush(self, picture: int | None = None) -> tuple[int, BrushFrame]:
        """The frame that is shown, to be painted on, and the number of its picture.

        Args:
            picture: the number that is expected; None takes whichever is shown.

        Raises:
            ValueError: there is none, or the picture has been passed.
        """
        with self._changed:
            if self._brush is None:
                raise ValueError("no frame to paint on is shown yet; wait for the first picture")
            if picture not in (None, self._pictures):
                raise ValueError(
                    "the frame that was painted on has been passed; pause, and paint on the one shown now"
                )
            return self._pictures, self._brush

    def pause(self, paused: bool) -> None:
        """Holds the replay, or lets it go on; from the start where it had ended."""
        with self._changed:
            # A picture that viewers asked for still comes: the one that is shown is an old one.
            self._steps = 1 if paused and self._state.waiting and self._pictures else 0
            self._state.paused, self._due_s = paused, 0.0
            playback = self._state.playback
            if not paused and self._state.ended and playback is not None and playback.free:
                self._request = SeekRequest(playback.first_s, None)
            self._notify()

    def step(self) -> None:
        """Pauses, and shows one more frame."""
        with self._changed:
            self._state.paused = True
            self._steps += 1
            self._notify()

    def step_back(self) -> None:
        """Pauses, and goes to the frame before the one that is shown.

        Raises:
            ValueError: there is none, or a video is being written.
        """
        with self._changed:
            self._free_playback()
            here_s = self._at_s if self._request is None or self._request.at_s is None else self._request.at_s
            # A frame that cannot be read shows the one after it: going back from there has to pass it.
            if self._shown_since <= 1:
                here_s = min(here_s, self._begun_s)
            before = bisect_left(self._times_s, here_s - _SAME_S) - 1
            if before < 0:
                raise ValueError("this is the first frame")
            self._state.paused = True
            self._ask(self._times_s[before], None)

    def set_speed(self, speed: float) -> None:
        """Plays faster or slower than the drive's own time, as far as the machine keeps up.

        Raises:
            ValueError: no such speed, or a video is being written.
        """
        slowest, fastest = SPEEDS
        with self._changed:
            self._free_playback()
            if not slowest <= speed <= fastest:
                raise ValueError(f"got speed {speed}, expected {slowest:g} to {fastest:g}")
            self._state.speed, self._due_s = speed, 0.0
            self._notify()

    def seek(self, at_s: float) -> None:
        """Asks for another place of the drive.

        Raises:
            ValueError: no such place, or a video is being written.
        """
        with self._changed:
            playback = self._free_playback()
            if not playback.first_s <= at_s <= playback.last_s:
                raise ValueError(f"got {at_s} s, expected {playback.first_s:.2f} to {playback.last_s:.2f}")
            self._ask(at_s, None)

    def switch(self, method: str) -> None:
        """Asks for another method.

        Raises:
            ValueError: the model lacks what it needs, or a video is being written.
        """
        with self._changed:
            playback = self._free_playback()
            if method not in playback.methods:
                raise ValueError(f"got method {method!r}, expected one of: {', '.join(playback.methods)}")
            self._ask(None, method)

    def _ask(self, at_s: float | None, method: str | None) -> None:
        """Joins a request with the one that is not met yet."""
        before = self._request or SeekRequest(None, None)
        self._steps = 1 if self._state.paused else 0
        self._request = SeekRequest(
            before.at_s if at_s is None else at_s, before.method if method is None else method
        )
        self._state.waiting = True
        self._notify()

    def _free_playback(self) -> Playback:
        playback = self._state.playback
        if playback is None or not playback.free:
            raise ValueError("the video that is being written decides place and method; replay without --out")
        return playback

    def _describe(self) -> dict[str, Any]:
        wanted = None if self._request is None else self._request.method
        return {
            **asdict(self._state),
            "picture": self._pictures,
            "wanted": wanted,
            "brush": self._brush is not None,
            "saves": self.cases is not None,
        }

    def _notify(self) -> None:
        self._number += 1
        self._changed.notify_all()
