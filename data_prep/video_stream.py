"""A video file's best stream: opening it, decoding it, and a frame as a player shows it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from jaxtyping import Int64

from data_prep.errors import DataError
from data_prep.geometry import MAX_PIXELS
from data_prep.schema import Image

_AS_CODED = np.eye(2, dtype=np.int64)
_NO_PICTURE = Disposition.attached_pic | Disposition.timed_thumbnails


@contextmanager
def opened(
    path: Path, *, container_format: str | None = None
) -> Iterator[tuple[InputContainer, av.VideoStream]]:
    """Opens a video at the stream that a player would choose; cover art is no such stream.

    Args:
        path: the file.
        container_format: FFmpeg's name of its container; None recognises it.

    Raises:
        DataError: it is missing, no video, or of an unknown codec.
    """
    try:
        # A title in a broken encoding is no reason to refuse the pictures.
        container = av.open(str(path.absolute()), format=container_format, metadata_errors="ignore")
    except FileNotFoundError:
        raise DataError(f"{path}: no such video; check the path") from None
    except (av.FFmpegError, OSError) as error:
        reason = error.strerror or type(error).__name__
        raise DataError(f"{path}: not a video that can be read ({reason}); check the file") from None
    with container:
        stream = _best_stream(container)
        if stream is None:
            raise DataError(f"{path}: has no video stream; choose another file")
        if stream.codec_context is None:
            raise DataError(f"{path}: its video codec is unknown; re-encode the video, for example to H.264")
        if stream.width * stream.height > MAX_PIXELS:
            raise DataError(
                f"{path}: frames are {stream.width}x{stream.height}; expected at most {MAX_PIXELS:,} pixels"
            )
        stream.thread_type = "AUTO"
        yield container, stream


def _best_stream(container: InputContainer) -> av.VideoStream | None:
    streams = [stream for stream in container.streams.video if not stream.disposition & _NO_PICTURE]
    best = container.streams.best("video")
    chosen = [stream for stream in streams if best is not None and stream.index == best.index]
    return next(iter(chosen or streams), None)


class Presentation:
    """How the frames of a stream are shown: upright, and with square pixels."""

    def __init__(self, pixel_aspect: Fraction | None = None) -> None:
        """Applies to the frames of one stream.

        Args:
            pixel_aspect: width over height of a pixel, as the stream says; None and 0 are square. The shorter side
                of the pixels is stretched, so nothing is lost.
        """
        self._pixel_aspect = pixel_aspect if pixel_aspect and pixel_aspect > 0 else Fraction(1)
        self._matrices: dict[int, Int64[np.ndarray, "2 2"]] = {}

    def size(self, frame: av.VideoFrame) -> tuple[int, int]:
        """Width and height as shown.

        Raises:
            DataError: the frame is turned by an angle that is not a multiple of 90 degrees.
        """
        width, height = self._square(frame)
        return (width, height) if self._matrix(frame)[0, 0] else (height, width)

    def image(self, frame: av.VideoFrame) -> Image:
        """The frame as RGB.

        Raises:
            DataError: the frame is too large, or turned by an angle that is not a multiple of 90 degrees.
        """
        matrix = self._matrix(frame)
        width, height = self._square(frame)
        if width * height > MAX_PIXELS:
            raise DataError(f"a frame of {width}x{height}; expected at most {MAX_PIXELS:,} pixels")
        image: Image = frame.to_ndarray(format="rgb24")
        if (width, height) != (frame.width, frame.height):
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR).astype(
                np.uint8, copy=False
            )
        if np.array_equal(matrix, _AS_CODED):
            return image
        turned = image if matrix[0, 0] else image.swapaxes(0, 1)
        right, down = matrix.sum(axis=0)
        return np.ascontiguousarray(turned[::down, ::right])

    def _square(self, frame: av.VideoFrame) -> tuple[int, int]:
        wide = max(self._pixel_aspect, Fraction(1))
        return round(frame.width * wide), round(frame.height * wide / self._pixel_aspect)

    def _matrix(self, frame: av.VideoFrame) -> Int64[np.ndarray, "2 2"]:
        # Side data refers to its frame and back, so a frame that was asked for it is freed late: once is enough.
        if frame.rotation not in self._matrices:
            self._matrices[frame.rotation] = _display_matrix(frame)
        return self._matrices[frame.rotation]


def _display_matrix(frame: av.VideoFrame) -> Int64[np.ndarray, "2 2"]:
    """Where a step to the right (first row) and down (second row) of the coded frame leads: right, down.

    Source: FFmpeg, libavutil/display.h: 3x3 numbers of 16.16 bits, a pixel times the matrix is where it is shown.
    """
    sides: Any = (
        frame.side_data
    )  # PyAV's types say a dictionary by names; it looks up members of its enumeration
    if SideData.DISPLAYMATRIX not in sides:
        return _AS_CODED
    steps = (
        np.frombuffer(bytes(sides[SideData.DISPLAYMATRIX]), np.int32)[[0, 1, 3, 4]]
        .reshape(2, 2)
        .astype(np.float64)
    )
    lengths = np.abs(steps).max(axis=1, keepdims=True)
    if not lengths.all():  # no transformation at all: players take it for none
        return _AS_CODED
    matrix = np.round(steps / lengths).astype(np.int64)
    if np.abs(steps / lengths - matrix).max() > 0.02 or abs(round(np.linalg.det(matrix))) != 1:
        raise DataError(
            "frames are turned by an angle that is not a multiple of 90 degrees; re-encode the video upright"
        )
    return matrix


def decoded(container: InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame | None]:
    """The frames from here to the end; None in place of a packet that cannot be decoded.

    After such a packet nothing comes until the next keyframe: what refers to the lost frame is damaged too.
    """
    return decoded_packets(stream, packets_of(container, stream))


def decoded_packets(
    stream: av.VideoStream, packets: Iterator[av.Packet | None]
) -> Iterator[av.VideoFrame | None]:
    whole = True
    for packet in packets:
        try:
            frames = stream.codec_context.decode(packet)
        except av.FFmpegError:
            whole = False
            yield None
            continue
        for frame in frames:
            whole = whole or frame.key_frame
            if whole:
                yield frame


def packets_of(container: InputContainer, stream: av.VideoStream) -> Iterator[av.Packet | None]:
    """Packets to the end, or to where the file cannot be read on; then None, which drains a decoder."""
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield packet
    except av.FFmpegError:
        pass
    yield None
