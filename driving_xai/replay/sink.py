"""H.264 video that a browser plays: yuv420p, each picture at its time, faststart; whole or absent."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, cast, get_args

import av

from data_prep.h264 import ENCODER, declare_colours, reproducible, to_i420, why_missing
from data_prep.schema import Image
from data_prep.shards.atomic import replacing
from driving_xai.errors import VideoError

Preset = Literal[
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"
]


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How pictures become H.264.

    Raises:
        ValueError: an option is out of range; the message says what is possible.
    """

    preset: Preset = "veryfast"
    """x264's trade of speed for size."""
    crf: int = 20
    """x264's constant quality, 0 (lossless) to 51; 18 to 23 look alike to most."""
    keyframe_s: float = 2.0
    """Most seconds between keyframes: how far a player decodes when one seeks."""
    most_bits_per_s: int | None = None
    """Above this the quality gives way, by x264's model of a buffer of one second; None: never."""

    def __post_init__(self) -> None:
        if self.preset not in get_args(Preset):
            raise ValueError(f"got preset {self.preset!r}, expected one of: {', '.join(get_args(Preset))}")
        if not 0 <= self.crf <= 51 or self.keyframe_s <= 0:
            raise ValueError(f"got crf {self.crf}, keyframe_s {self.keyframe_s}; expected 0 to 51 and over 0")


_AROUND_S = 3.0
"""What the buffer and the container take, as seconds of film at the bound."""
_LEAST_BITS_PER_PIXEL = 0.004
"""Of a picture: with fewer x264 does not keep to its bound, and nothing could be seen."""


def bounded_rate(most_mb: float, film_s: float, *, height: int, width: int, rate: Fraction) -> int:
    """Bits a second at which a film stays below a size.

    Args:
        most_mb: the most megabytes that the file may have.
        film_s: how long it plays, cards included.
        height: of the pictures.
        width: of the pictures.
        rate: pictures a second.

    Raises:
        VideoError: so small a film would show nothing.

    Example:
        >>> bounded_rate(1.0, 17.0, height=480, width=640, rate=Fraction(20))
        400000
    """
    found = int(most_mb * 8e6 / (film_s + _AROUND_S))
    least = _LEAST_BITS_PER_PIXEL * height * width * float(rate)
    if found < least:
        raise VideoError(
            f"{film_s:.3g} s of {width}x{height} pixels cannot be kept below {most_mb:g} MB; allow "
            f"{math.ceil(least * (film_s + _AROUND_S) / 8e5) / 10:g} MB, or choose a smaller --size or a shorter part"
        )
    return found


def require_encoder() -> None:
    """Checks that H.264 can be written, before any work is spent.

    Raises:
        VideoError: this PyAV has no libx264.
    """
    if reason := why_missing(ENCODER):
        raise VideoError(reason)


_FINE = Fraction(1, 90_000)
"""The time base of pictures that do not come at a constant rate: that of MPEG, which every player knows."""


class VideoSink:
    """Takes RGB pictures of one size, each with the time at which it is shown; made by `open_sink`."""

    def __init__(
        self,
        container: av.container.OutputContainer,
        *,
        height: int,
        width: int,
        frame_rate: Fraction,
        constant: bool,
        encoding: Encoding,
    ) -> None:
        self.size = (height, width)
        self.encoded_size = (height + height % 2, width + width % 2)
        """yuv420p stores colour for 2 x 2 pixels: an odd side gets its last row or column once more."""
        self._container = container
        self._time_base = 1 / frame_rate if constant else _FINE
        self._usual = round(1 / frame_rate / self._time_base)
        self._starts: list[int] = []
        self._zero: int | None = None
        self._end, self._last_start = 0, -1
        self._first_dts: int | None = None
        self._stream = cast(av.VideoStream, container.add_stream(ENCODER, rate=frame_rate))
        self._stream.height, self._stream.width = self.encoded_size
        self._stream.pix_fmt = "yuv420p"
        self._stream.time_base = self._stream.codec_context.time_base = self._time_base
        self._stream.options = {"preset": encoding.preset, "crf": str(encoding.crf), **reproducible()}
        if encoding.most_bits_per_s is not None:
            bound = str(encoding.most_bits_per_s)
            self._stream.options |= {"maxrate": bound, "bufsize": bound}
        codec = self._stream.codec_context
        # By default as many as there are cores, and the bytes are other ones on other machines.
        codec.thread_count = 1
        codec.gop_size = max(1, round(encoding.keyframe_s * frame_rate))
        declare_colours(codec)

    @property
    def frames(self) -> int:
        """How many pictures it took."""
        return len(self._starts)

    @property
    def starts_s(self) -> list[float] | None:
        """When each picture is shown, without those that were held; None where each follows for one frame period."""
        if self._starts == [number * self._usual for number in range(self.frames)]:
            return None
        return [round(float(start * self._time_base), 4) for start in self._starts]

    def write(self, picture: Image, *, at_ns: int | None = None, for_ns: int | None = None) -> None:
        """Encodes one picture.

        Args:
            picture: RGB.
            at_ns: when it is shown; the video begins with its first picture. None: when the one before ends.
            for_ns: for how long, where no other picture follows. None: one frame period.

        Raises:
            VideoError: the picture has another size, or the disk does not take the bytes.
        """
        if picture.shape != (*self.size, 3):
            raise VideoError(
                f"got a picture of {picture.shape}, expected {(*self.size, 3)}; one size a video"
            )
        frame = av.VideoFrame.from_ndarray(to_i420(picture), format="yuv420p")
        start, duration = self._place(at_ns, for_ns)
        frame.pts, frame.time_base = start, self._time_base
        self._starts.append(start)
        self._last_start, self._end = start, start + duration
        self._mux(self._encoded(frame))

    def hold(self, picture: Image, *, for_s: float) -> None:
        """Shows a picture that is none of the drive's for some seconds, at the usual rate; what follows comes later.

        Raises:
            VideoError: see `write`.
        """
        frames = self._starts
        self._starts = []
        for _ in range(max(1, round(for_s / self._usual / self._time_base))):
            self.write(picture)
        self._starts = frames

    def finish(self) -> None:
        """Encodes what the encoder still holds."""
        packets = self._encoded(None)
        last_dts = packets[-1].dts if packets else None
        if last_dts is not None and self._first_dts is not None:
            # A track lasts from its first decoding time to the end of its last packet.
            packets[-1].duration = self._end - (last_dts - self._first_dts)
        self._mux(packets)

    def _place(self, at_ns: int | None, for_ns: int | None) -> tuple[int, int]:
        """The start and the duration of the next picture, in the time base."""
        if at_ns is None:
            start = self._end
        elif self._zero is None:
            start, self._zero = self._end, self._ticks(at_ns) - self._end
        else:
            # Times nearer than the time base would coincide.
            start = max(self._ticks(at_ns) - self._zero, self._last_start + 1)
        return start, self._usual if for_ns is None else max(1, self._ticks(for_ns))

    def _ticks(self, time_ns: int) -> int:
        return round(Fraction(time_ns, 10**9) / self._time_base)

    def _encoded(self, frame: av.VideoFrame | None) -> list[av.Packet]:
        packets = self._stream.encode(frame)
        if packets and self._first_dts is None:
            self._first_dts = packets[0].dts
        return packets

    def _mux(self, packets: list[av.Packet]) -> None:
        try:
            self._container.mux(packets)
        except av.FFmpegError as error:
            raise VideoError(
                f"the video cannot be written ({error.strerror}); check the free space"
            ) from error


@contextmanager
def open_sink(
    path: Path,
    *,
    height: int,
    width: int,
    frame_rate: Fraction,
    constant: bool = True,
    encoding: Encoding,
    comment: str = "",
) -> Iterator[VideoSink]:
    """Opens a video for writing. It appears under its name only when it is complete.

    Args:
        path: ends in .mp4; an existing file is replaced at the end.
        height: of the pictures.
        width: of the pictures.
        frame_rate: pictures a second, exactly.
        constant: whether pictures come at multiples of its period; otherwise it is only the usual one.
        encoding: how they are compressed.
        comment: provenance, stored in the file's metadata.

    Raises:
        VideoError: the name is not that of an MP4, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "grey.mp4"
        >>> with open_sink(
        ...     path, height=48, width=64, frame_rate=Fraction(20), encoding=Encoding()
        ... ) as sink:
        ...     sink.write(np.full((48, 64, 3), 128, dtype=np.uint8))
        >>> path.exists()
        True
    """
    if path.suffix.lower() != ".mp4":
        raise VideoError(f"{path}: not a name of an MP4 video; end it in .mp4")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        try:
            container = av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"})
        except av.FFmpegError as error:
            raise VideoError(f"{path}: cannot be written ({error.strerror}); check the folder") from error
        with container:
            container.metadata["comment"] = comment
            sink = VideoSink(
                container,
                height=height,
                width=width,
                frame_rate=frame_rate,
                constant=constant,
                encoding=encoding,
            )
            yield sink
            if not sink.frames:
                raise VideoError(f"{path}: no picture came, so there is no video; check the source")
            sink.finish()
