"""A video file as a drive without labels, read front to back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import av
import numpy as np
from jaxtyping import Int64

from data_prep.errors import DataError
from data_prep.readers.paths import drive_name
from data_prep.schema import VEHICLES, Drive, Image

NAME = "video"
SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm", ".hevc"})


def recognises(source: Path) -> bool:
    """Whether the source is a file with a video's suffix, or a folder that holds one directly."""
    return bool(_files(source))


def drives(source: Path, *, vehicle: str = "lincoln-mkz") -> list[Drive]:
    """Reads a video file, or every video directly inside a folder; times are those of the frames.

    Args:
        source: the file or folder.
        vehicle: a name in `VEHICLES`, for turning a prediction into an angle.

    Raises:
        DataError: there is no video, or one cannot be opened or holds no frame.
    """
    if vehicle not in VEHICLES:
        raise DataError(f"vehicle {vehicle!r} is unknown; choose one of {', '.join(VEHICLES)}")
    files = _files(source)
    if not files:
        raise DataError(f"{source}: no video found; expected a file ending in {', '.join(sorted(SUFFIXES))}")
    return [_drive(path, vehicle) for path in files]


def _files(source: Path) -> list[Path]:
    candidates = sorted(source.iterdir()) if source.is_dir() else [source]
    return [path for path in candidates if path.is_file() and path.suffix.lower() in SUFFIXES]


def _drive(path: Path, vehicle: str) -> Drive:
    with _opened(path) as (container, stream):
        time_base = Fraction(stream.time_base or 0)
        pts = _presentation_times(container, stream)
        size = f"{stream.width}x{stream.height}"
        codec = stream.codec_context.name
    if not len(pts):
        raise DataError(f"{path}: a video without frames; check that it was recorded to the end")
    if time_base <= 0:
        raise DataError(f"{path}: a video without a time base; remux it, for example into MP4")
    period_ns = 1_000_000_000 * time_base
    time_ns = np.array([round(int(stamp) * period_ns) for stamp in pts], dtype=np.int64)
    return Drive(
        name=drive_name(path),
        source=NAME,
        camera="video",
        vehicle=VEHICLES[vehicle],
        time_ns=time_ns,
        images=VideoFrames(path=path.resolve(), pts=tuple(pts.tolist())),
        provenance={
            "file": path.name,
            "bytes": path.stat().st_size,
            "size": size,
            "codec": codec,
            "frames": len(pts),
        },
    )


@dataclass(frozen=True, kw_only=True)
class VideoFrames:
    """The frames of a video by range: an `ImageSource`."""

    path: Path
    pts: tuple[int, ...]
    """Presentation time of each frame in the stream's time base, increasing."""

    sequential: ClassVar[bool] = True
    """Decoding one frame decodes all since the last keyframe: ranges are read whole, not in pieces."""

    def read(self, start: int, stop: int) -> Iterator[Image]:
        """Yields the RGB frames `start` to `stop` (exclusive) in order, from the keyframe before.

        Raises:
            DataError: a frame cannot be decoded; the message gives its number.
        """
        if start >= stop:
            return
        expected = start
        with _opened(self.path) as (container, stream):
            container.seek(self.pts[start], stream=stream, backward=True)
            for frame in _frames(container, stream, self.path):
                stamp = frame.pts if frame.pts is not None else frame.dts
                if stamp is None or stamp < self.pts[expected]:
                    continue
                if stamp > self.pts[expected]:
                    break
                yield frame.to_ndarray(format="rgb24")
                expected += 1
                if expected == stop:
                    return
        raise DataError(f"{self.path.name}: frame {expected} cannot be decoded; copy or re-encode the video")

    def files(self, start: int, stop: int) -> Iterator[tuple[str, str]]:
        """The video, whatever the frames."""
        yield self.path.name, str(self.path)


def _frames(
    container: av.container.InputContainer, stream: av.VideoStream, path: Path
) -> Iterator[av.VideoFrame]:
    try:
        yield from container.decode(stream)
    except av.FFmpegError as error:
        raise DataError(f"{path.name}: damaged ({error.strerror}); copy or re-encode the video") from None


def _presentation_times(
    container: av.container.InputContainer, stream: av.VideoStream
) -> Int64[np.ndarray, " T"]:
    """Of every frame that a player would show, without decoding."""
    packets = (packet for packet in container.demux(stream) if packet.size and not packet.is_discard)
    stamps = (packet.pts if packet.pts is not None else packet.dts for packet in packets)
    return np.unique(np.array([stamp for stamp in stamps if stamp is not None], dtype=np.int64))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    try:
        # A title in a broken encoding is no reason to refuse the pictures.
        container = av.open(str(path), metadata_errors="ignore")
    except FileNotFoundError:
        raise DataError(f"{path}: no such video; check the path") from None
    except av.FFmpegError as error:
        raise DataError(f"{path}: not a video that can be read ({error.strerror}); check the file") from None
    with container:
        if not container.streams.video:
            raise DataError(f"{path}: has no video stream; choose another file")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise DataError(f"{path}: its video codec is unknown; re-encode the video, for example to H.264")
        stream.thread_type = "AUTO"
        yield container, stream
