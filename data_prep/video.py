"""The frames of a video file: when each is shown, and its picture by number.

The frames are those that a decode from the file's start gives, in that order. Pictures are as a player
shows them: the display matrix and the pixel aspect ratio of the container are applied.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import av
import numpy as np
from av.container import InputContainer
from av.format import Flags
from jaxtyping import Int64

from data_prep.errors import DataError
from data_prep.schema import Image
from data_prep.video_index import FrameTimes, Packets, times_by_decoding
from data_prep.video_stream import Presentation, decoded_packets, opened, packets_of

SLOWEST_HZ, FASTEST_HZ = 0.01, 1000.0


def frame_durations_ns(time_ns: Int64[np.ndarray, " T"]) -> Int64[np.ndarray, " T"]:
    """How long each frame is shown: until the next; the last as long as the median of the others, or 0 if alone.

    Args:
        time_ns: when frames are shown, increasing.

    Example:
        >>> frame_durations_ns(np.array([0, 40, 80, 200])).tolist()
        [40, 40, 120, 40]
    """
    apart = np.diff(time_ns)
    last = int(np.median(apart)) if len(apart) else 0
    return np.append(apart, last).astype(np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Video:
    """The frames of a video by number: an `ImageSource`.

    Example:
        >>> Video.index(Path("no.mp4"))
        Traceback (most recent call last):
        data_prep.errors.DataError: no.mp4: no such video; check the path
    """

    path: Path
    codec: str
    width: int
    """Pixels as shown, of the first frame."""
    height: int
    time_ns: Int64[np.ndarray, " T"]
    """When each frame is shown: the container's own time, or numbers over a stated rate."""
    stamps: Int64[np.ndarray, " T"] | None
    """The same in the stream's time base, increasing. None where frames bear no times that find them again: then
    a frame is found by counting from the start."""
    keyframes: Int64[np.ndarray, " K"]
    """Numbers of frames from which decoding may begin, increasing; a seek may still land elsewhere."""
    keyframe_bytes: Int64[np.ndarray, " K"]
    """The size of each one's packet, by which it is known again after a seek."""
    damaged_before: tuple[int, ...] = ()
    """For each packet that could not be decoded the number of the frame that follows. Known where the whole video
    was decoded to count its frames; otherwise frames that cannot be decoded are found on reading."""
    _missing: set[int] = field(default_factory=set, repr=False)
    """Frames that turned out not to be decodable, so that none of them is tried twice."""

    sequential: ClassVar[bool] = True
    """Decoding one frame decodes all since the last keyframe: ranges are read whole, not in pieces."""

    def __len__(self) -> int:
        return len(self.time_ns)

    @classmethod
    def index(cls, path: Path, *, rate_hz: float | None = None) -> Video:
        """Finds the frames of a video.

        The packets' times are believed, and only the first frames decoded, where the container states when each
        frame is shown and the first frames bear those times. Otherwise the whole video is decoded once, to count.

        Args:
            path: the file.
            rate_hz: frames a second of a raw stream, which has no times; None for every other video.

        Raises:
            DataError: it cannot be opened, holds no frame, or needs a rate or has no use for one.
        """
        with opened(path) as (container, stream):
            _check_rate(path, container, rate_hz)
            codec, time_base = stream.codec_context.name, Fraction(stream.time_base or 0)
            packets = Packets.of(container, stream)
            if packets.first is None:
                raise DataError(f"{path}: a video without frames; check that it was recorded to the end")
            try:
                width, height = Presentation(stream.sample_aspect_ratio).size(packets.first)
            except DataError as fault:
                raise DataError(f"{path}: {fault}") from None
        found = packets.times if packets.believable else times_by_decoding(path)
        if rate_hz is not None:
            found = found._replace(stamps=None)  # those of a raw stream are FFmpeg's guess
        keyframes, keyframe_bytes = packets.keyframes(found.stamps)
        return cls(
            path=path.resolve(),
            codec=codec,
            width=width,
            height=height,
            time_ns=_time_ns(path, found, time_base, rate_hz),
            stamps=found.stamps,
            keyframes=keyframes,
            keyframe_bytes=keyframe_bytes,
            damaged_before=found.damaged_before,
        )

    def read(self, start: int, stop: int) -> Iterator[Image]:
        """Yields the RGB frames `start` to `stop` (exclusive) in order, as a decode from the start gives them.

        Raises:
            DataError: a frame cannot be decoded; the message gives its number.
        """
        if start >= stop:
            return
        if start in self._missing:
            raise self._undecodable(start)
        decode = self._decode_from(start)
        try:
            for expected in range(start, stop):
                if decode.number > expected:
                    self._missing.update(range(expected, decode.number))
                    raise self._undecodable(expected)
                image = decode.image()
                decode.advance()
                yield image
        finally:
            _LAST.put(self, decode)

    def files(self, start: int, stop: int) -> Iterator[tuple[str, str]]:
        """The video, whatever the frames."""
        yield self.path.name, str(self.path)

    def _undecodable(self, number: int) -> DataError:
        return DataError(f"{self.path.name}: frame {number} cannot be decoded; copy or re-encode the video")

    def _decode_from(self, start: int) -> _Decode:
        """A decode whose next frame is `start`, or the first one behind it that can be decoded."""
        before = self.keyframes[self.keyframes <= start]
        nearest = int(before[-1]) if len(before) else 0
        decode = _LAST.take(self)
        if decode is not None and not nearest <= decode.number <= start:
            decode.close()
            decode = None
        if decode is None:
            decode = self._landed(start, before)
        while decode.number < start:
            decode.advance()
        return decode

    def _landed(self, start: int, before: Int64[np.ndarray, " n"]) -> _Decode:
        """Seeks to keyframes farther and farther back until the landing is not behind `start`.

        A seek may land too late: in an open GOP, in a container without index, before a recovery point.
        """
        back = 1
        while back < len(before):
            decode = _Decode(self, keyframe=int(before[-back]))
            if decode.number <= start:
                return decode
            decode.close()
            back *= 2
        return _Decode(self, keyframe=None)


def _check_rate(path: Path, container: InputContainer, rate_hz: float | None) -> None:
    raw = bool(Flags(container.format.flags) & Flags.no_timestamps)
    if raw and rate_hz is None:
        raise DataError(
            f"{path}: a raw {container.format.name} stream has no times; give its frames a second, as "
            f"--option rate=20, or remux it: ffmpeg -framerate 20 -i {path.name} -c copy {path.stem}.mp4"
        )
    if rate_hz is not None and not raw:
        raise DataError(f"{path}: has times of its own; leave the rate out, it is for raw streams")
    if rate_hz is not None and not SLOWEST_HZ <= rate_hz <= FASTEST_HZ:
        raise DataError(f"rate is {rate_hz:g}; expected {SLOWEST_HZ:g} to {FASTEST_HZ:g} frames a second")


def _time_ns(
    path: Path, found: FrameTimes, time_base: Fraction, rate_hz: float | None
) -> Int64[np.ndarray, " T"]:
    if rate_hz is not None:
        times, period_ns = np.arange(found.frames), 10**9 / Fraction(rate_hz).limit_denominator(1001)
    elif found.times is not None and time_base > 0:
        times, period_ns = found.times, 10**9 * time_base
    else:
        raise DataError(f"{path}: a video whose frames have no times; remux it, for example into MP4")
    # Exactly, one by one: a period in ns is no whole number.
    return np.array([round(int(time) * period_ns) for time in times], dtype=np.int64)


class _Decode:
    """A decode that goes forward, and the frame that it stands at."""

    def __init__(self, video: Video, *, keyframe: int | None) -> None:
        self._video = video
        self._stack = ExitStack()
        container, stream = self._stack.enter_context(opened(video.path))
        self._presentation = Presentation(stream.sample_aspect_ratio)
        self._sought = keyframe is not None
        packets = packets_of(container, stream)
        if keyframe is not None and video.stamps is not None:
            try:
                container.seek(int(video.stamps[keyframe]), stream=stream, backward=True)
                packets = self._from_known_keyframe(packets)
            except av.FFmpegError:
                packets = iter(())  # as a landing behind the end: the caller goes farther back
        self._frames = self._numbered(decoded_packets(stream, packets))
        self.number = -1
        self.advance()

    def advance(self) -> None:
        """Goes to the next frame; at the end the number is the count of frames."""
        self.number, self._frame = next(self._frames, (len(self._video), None))

    def image(self) -> Image:
        assert self._frame is not None
        try:
            return self._presentation.image(self._frame)
        except DataError as fault:
            raise DataError(f"{self._video.path.name}: frame {self.number}: {fault}") from None

    def close(self) -> None:
        self._frames.close()
        self._stack.close()

    def _from_known_keyframe(self, packets: Iterator[av.Packet | None]) -> Iterator[av.Packet | None]:
        """Packets from the first keyframe on, or none where that bears another time than when it was indexed.

        A program stream states some times only; what FFmpeg fills in depends on where reading began.
        """
        video = self._video
        first = next((packet for packet in packets if packet is None or packet.is_keyframe), None)
        if first is None or first.pts is None or video.stamps is None:
            return
        at = np.flatnonzero(video.stamps[video.keyframes] == first.pts)
        if len(at) and video.keyframe_bytes[at[0]] == first.size:
            yield first
            yield from packets

    def _numbered(
        self, frames: Iterator[av.VideoFrame | None]
    ) -> Generator[tuple[int, av.VideoFrame | None]]:
        stamps, number = self._video.stamps, -1
        for frame in frames:
            # Behind a recovery point the first pictures lack what they refer to.
            if frame is None or (self._sought and number < 0 and frame.is_corrupt):
                continue
            if stamps is None:
                number += 1
            else:
                at = np.searchsorted(stamps, frame.pts) if frame.pts is not None else len(stamps)
                if at == len(stamps) or stamps[at] != frame.pts or at <= number:
                    continue
                number = int(at)
            yield number, frame


class _LastDecode:
    """The decode that was read from last in this process: the next shard of its video goes on where it stands.

    One only, whatever the number of videos: a decoder holds a file and some dozen frames.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._video: Video | None = None
        self._decode: _Decode | None = None

    def take(self, video: Video) -> _Decode | None:
        """Hands the decode over if it is this video's."""
        with self._lock:
            if self._video is not video:
                return None
            decode, self._video, self._decode = self._decode, None, None
            return decode

    def put(self, video: Video, decode: _Decode) -> None:
        """Keeps the decode in place of the one before, unless it is at its end."""
        closing: _Decode | None = decode
        with self._lock:
            if decode.number < len(video):
                closing, self._video, self._decode = self._decode, video, decode
        if closing is not None:
            closing.close()


_LAST = _LastDecode()
