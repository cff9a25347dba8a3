"""Videos of every kind that a decoder stumbles over; each frame bears its number as black and white blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest
from jaxtyping import UInt8

HEIGHT, WIDTH = 48, 160
_BITS = 10


def numbered(number: int) -> UInt8[np.ndarray, "48 160 3"]:
    """A grey frame with ten blocks, the lowest bit first: white is 1."""
    image = np.full((HEIGHT, WIDTH, 3), 128, dtype=np.uint8)
    for bit in range(_BITS):
        image[:16, 16 * bit : 16 * (bit + 1)] = 255 if number >> bit & 1 else 0
    image[24:40, number % WIDTH] = 255  # something that moves
    return image


def number_of(image: UInt8[np.ndarray, "h w 3"]) -> int:
    """The number that a frame bears."""
    return sum(int(image[8, 16 * bit + 8].mean() > 127) << bit for bit in range(_BITS))


class Kind(NamedTuple):
    """How to make a video."""

    suffix: str
    codec: str
    options: Mapping[str, str] = {}
    format: str | None = None


_X265 = "log-level=none:keyint=15:min-keyint=15"
KINDS: Mapping[str, Kind] = {
    "h264": Kind(".mp4", "libx264", {"g": "12", "bf": "2"}),
    "h264 open GOP": Kind(".mp4", "libx264", {"g": "12", "bf": "3", "x264-params": "open-gop=1:b-pyramid=0"}),
    "h264 intra refresh": Kind(".mp4", "libx264", {"x264-params": "intra-refresh=1:keyint=20"}),
    "h264 mkv": Kind(".mkv", "libx264", {"g": "12", "bf": "2"}),
    "hevc open GOP": Kind(".mp4", "libx265", {"x265-params": _X265 + ":open-gop=1"}),
    "hevc mkv": Kind(".mkv", "libx265", {"x265-params": _X265 + ":open-gop=1"}),
    "MPEG-TS": Kind(".ts", "libx264", {"g": "30", "bf": "0"}, "mpegts"),
    "MPEG-TS with B-frames": Kind(".ts", "libx264", {"g": "30", "bf": "2"}, "mpegts"),
    "MPEG-TS named mp4": Kind(".mp4", "libx264", {"g": "30", "bf": "2"}, "mpegts"),
    "MPEG-TS with HEVC": Kind(".ts", "libx265", {"x265-params": _X265}, "mpegts"),
    "MPEG-2": Kind(".mpg", "mpeg2video", {"g": "12", "bf": "2", "b": "2000k"}, "vob"),
    "MPEG-2 in mp4": Kind(".mp4", "mpeg2video", {"g": "12", "bf": "2", "b": "2000k"}),
    "MPEG-4": Kind(".mp4", "mpeg4", {"g": "12", "bf": "2", "b": "2000k"}),
    "AVI": Kind(".avi", "libx264", {"g": "30", "bf": "0"}),
    "AVI with B-frames": Kind(".avi", "libx264", {"g": "12", "bf": "2"}),
    "AVI with MPEG-4 and B-frames": Kind(".avi", "mpeg4", {"g": "12", "bf": "2", "b": "2000k"}),
    "AVI with JPEG": Kind(".avi", "mjpeg"),
    "WebM with VP8": Kind(".webm", "libvpx", {"g": "30", "auto-alt-ref": "1", "lag-in-frames": "16"}),
    "WebM with VP9": Kind(".webm", "libvpx-vp9", {"g": "30", "cpu-used": "8", "lag-in-frames": "16"}),
}


def write(
    path: Path,
    kind: Kind,
    count: int = 100,
    *,
    stamps_ms: Sequence[int] | None = None,
    turn: Sequence[int] | None = None,
    pixel_aspect: Fraction | None = None,
    pictures: Sequence[UInt8[np.ndarray, "h w 3"]] | None = None,
) -> Path:
    """Writes numbered frames at 20 Hz; skips the test where the encoder is not built in.

    Args:
        path: where to.
        kind: codec and container.
        count: how many frames.
        stamps_ms: when each frame is shown, instead.
        turn: a, b, c, d of a display matrix.
        pixel_aspect: width over height of a pixel.
        pictures: frames instead of numbered ones.
    """
    try:
        av.Codec(kind.codec, "w")
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f"this build of FFmpeg has no encoder {kind.codec}")
    pictures = pictures or [numbered(number) for number in range(count)]
    with av.open(str(path), "w", format=kind.format) as container:
        stream = container.add_stream(kind.codec, rate=20, options=dict(kind.options))
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuvj420p" if kind.codec == "mjpeg" else "yuv420p"
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if stamps_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if turn is not None:
            a, b, c, d = (65536 * each for each in turn)
            stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number if stamps_ms is None else stamps_ms[number]
            frame.time_base = Fraction(1, 20) if stamps_ms is None else Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def without_index(path: Path) -> Path:
    """Cuts off an AVI's index, as a loss of power does."""
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"idx1")])
    return path


def write_raw(path: Path, codec: str, count: int = 100) -> Path:
    """A raw stream: pictures without times."""
    options = {"x265-params": _X265} if codec == "libx265" else {"g": "12", "bf": "2"}
    return write(path, Kind(path.suffix, codec, options, "hevc" if codec == "libx265" else "h264"), count)


def decoded_in_one_pass(path: Path) -> list[UInt8[np.ndarray, "h w 3"]]:
    """The slow twin: every frame of the best stream from the start, as coded."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
