"""comma2k19: a minute of highway in each segment, consecutive segments in a route.

Arrays are NumPy files without an extension, times in seconds since the device booted. The steering
wheel's angle is in degrees, positive to the left; speed in m/s; frames are a raw HEVC stream.
"""

from __future__ import annotations

import tokenize
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from data_prep.errors import DataError
from data_prep.readers.paths import drive_name, visible
from data_prep.schema import VEHICLES, Drive, Image, Signal
from data_prep.signals import MOST_SPEED_MPS, credible
from data_prep.video_stream import Presentation, decoded, opened, packets_of

NAME = "comma2k19"
VIDEO = "video.hevc"
MAX_ARRAY_BYTES = 64 * 2**20
"""A minute of 100 Hz has 48 kB."""
MOST_STEERING_DEG = 1080.0
"""Three turns of the wheel: what a car's column does not exceed."""

_CAN = Path("processed_log", "CAN")
_STEERING = ("steering_angle",)
_SPEED = ("speed", "car_speed")
"""The data has `speed`, its documentation `car_speed`."""
_POSES = ("global_pose", "global_pos")
_DEPTH = 3
"""A root holds chunks of routes of segments."""
_LATEST_S = 1e9
_ARRAY_MAGIC = b"\x93NUMPY"
# What NumPy lets through for a file that is not one of its arrays.
_ARRAY_FAULTS = (
    ValueError,
    TypeError,
    OverflowError,
    EOFError,
    SyntaxError,
    tokenize.TokenError,
    RecursionError,
    MemoryError,
    OSError,
)


def recognises(source: Path) -> bool:
    """Whether the source is a segment, or holds one: in a route, a chunk, or the whole data set."""
    return next(_segments(source), None) is not None


def drives(source: Path) -> list[Drive]:
    """Reads one segment, or every route below a folder as one drive of its consecutive segments.

    A minute of a route resembles the next, so its segments are one drive: divided by drives, no
    route is in two parts. Where a segment is missing the drive has a hole in time.

    The cars are a RAV4 (chunks 1 and 2) and a Civic, whose steering ratio and wheelbase are close
    to those of comma.ai's public formula for an Acura ILX; that one vehicle is given for both.

    Args:
        source: a segment, a route, a chunk, or the folder of the chunks.

    Raises:
        DataError: there is no segment, an array is missing or malformed, or no segment has its video.
    """
    segments = list(_segments(source))
    if not segments:
        raise DataError(
            f"{source}: no comma2k19 segment found; expected {_CAN}/ in it, or in segments up to "
            f"{_DEPTH} folders below"
        )
    without = [path for path in segments if not (path / VIDEO).is_file()]
    if len(without) == len(segments):
        raise DataError(
            f"{source}: has steering and speed but no {VIDEO} in {len(segments)} segments, and labels alone "
            f"are no frames; put each segment's {VIDEO} beside its {_CAN.parts[0]}/"
        )
    found = [_drive(name, paths) for name, paths in _routes(source, segments, set(without))]
    if without:
        missing = tuple(f"{path.parent.name}/{path.name}" for path in without)
        found[0] = replace(found[0], left_out={"missing_video": missing, **found[0].left_out})
    return found


def _segments(source: Path) -> Iterator[Path]:
    """Segments in or below the source, by name; links that lead out of it are not followed."""
    root = source.resolve()

    def below(folder: Path, depth: int) -> Iterator[Path]:
        if (folder / _CAN).is_dir():
            yield folder
        elif depth < _DEPTH and folder.is_dir():
            for entry in visible(folder):
                if entry.is_dir() and entry.resolve().is_relative_to(root):
                    yield from below(entry, depth + 1)

    return below(root, 0)


def _routes(source: Path, segments: list[Path], without: set[Path]) -> list[tuple[str, list[Path]]]:
    """(drive name, its segments in order), also where a route is divided between chunks."""
    if segments == [source.resolve()]:
        name = drive_name(source)
        return [(f"{drive_name(source.resolve().parent)}-{name}" if name.isdecimal() else name, segments)]
    by_route: dict[str, dict[int, Path]] = {}
    for path in segments:
        if not path.name.isdecimal():
            raise DataError(f"{path}: a segment's folder is named by its number; rename it or pass it alone")
        numbered = by_route.setdefault(drive_name(path.parent), {})
        if int(path.name) in numbered:
            raise DataError(
                f"{path}: segment {path.name} of {path.parent.name} is there twice; remove one of them"
            )
        numbered[int(path.name)] = path
    ordered = {name: [found[number] for number in sorted(found)] for name, found in sorted(by_route.items())}
    usable = {name: [path for path in paths if path not in without] for name, paths in ordered.items()}
    return [(name, paths) for name, paths in usable.items() if paths]


def _drive(name: str, segments: list[Path]) -> Drive:
    times = [_frame_times(path) for path in segments]
    with ThreadPoolExecutor() as pool:  # FFmpeg reads without the interpreter's lock
        surplus = tuple(chain.from_iterable(pool.map(_without_time, segments, map(len, times))))
    return Drive(
        name=name,
        source=NAME,
        camera="road",
        vehicle=VEHICLES["acura-ilx"],
        time_ns=np.concatenate(times),
        images=SegmentVideos(
            paths=tuple(path / VIDEO for path in segments), frames=tuple(len(time) for time in times)
        ),
        steering_wheel=_joined(
            [_signal(path, _STEERING, most=MOST_STEERING_DEG) for path in segments], np.pi / 180.0
        ),
        speed=_joined([_signal(path, _SPEED, most=MOST_SPEED_MPS) for path in segments], 1.0),
        left_out={"frame_without_time": surplus} if surplus else {},
        provenance={
            "segments": [path.name for path in segments],
            "video_bytes": [(path / VIDEO).stat().st_size for path in segments],
        },
    )


def _frame_times(segment: Path) -> Int64[np.ndarray, " T"]:
    for folder in _POSES:
        path = segment / folder / "frame_times"
        if path.is_file():
            return _nanoseconds(path)
    raise DataError(f"{segment}: has no {_POSES[0]}/frame_times; restore it from the data set")


def _signal(segment: Path, names: Sequence[str], *, most: float) -> Signal | None:
    """The first of the named CAN signals that the segment has; None where it has none.

    A value beyond `most` is damage and becomes NaN, unknown.
    """
    for name in names:
        folder = segment / _CAN / name
        if folder.is_dir():
            time_ns, value = _nanoseconds(folder / "t"), _array(folder / "value")
            if len(time_ns) != len(value):
                raise DataError(
                    f"{folder}: {len(time_ns)} times and {len(value)} values; restore it from the data set"
                )
            return Signal(time_ns=time_ns, value=credible(value, most=most))
    return None


def _joined(signals: list[Signal | None], factor: float) -> Signal | None:
    known = [signal for signal in signals if signal is not None]
    if not known:
        return None
    return Signal(
        time_ns=np.concatenate([signal.time_ns for signal in known]),
        value=np.concatenate([signal.value for signal in known]) * factor,
    )


def _nanoseconds(path: Path) -> Int64[np.ndarray, " N"]:
    seconds = _array(path)
    if not np.all((seconds >= 0.0) & (seconds < _LATEST_S)):  # also where one is NaN
        raise DataError(f"{path}: holds times that are not seconds since the device booted; restore it")
    return np.round(seconds * 1e9).astype(np.int64)


def _array(path: Path) -> Float64[np.ndarray, " N"]:
    """One value for each sample, from an array [N] or [N, 1]. Never unpickles.

    Raises:
        DataError: the file is missing, no NumPy array, or an array of another shape or type.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(_ARRAY_MAGIC)) != _ARRAY_MAGIC:  # NumPy would try archives and pickles too
                raise ValueError
        if path.stat().st_size > MAX_ARRAY_BYTES:
            raise ValueError
        # Mapped, so that a header that claims more than the file holds allocates nothing.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path}: no such array; restore it from the data set") from None
    except _ARRAY_FAULTS:
        raise DataError(
            f"{path}: not a NumPy array, cut short, or over {MAX_ARRAY_BYTES:,} bytes; restore it from the data set"
        ) from None
    if array.shape not in ((array.size,), (array.size, 1)) or array.dtype.kind not in "fiu":
        raise DataError(
            f"{path}: holds {array.dtype} of shape {array.shape}, expected one number for each sample; restore it"
        )
    return np.array(array, dtype=np.float64).reshape(-1)


class _Range(NamedTuple):
    """Frames of one segment's video."""

    segment: int
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class SegmentVideos:
    """The frames of consecutive segments by range: an `ImageSource`.

    A raw HEVC stream has no index: a range is decoded from the start of its segment.
    """

    paths: tuple[Path, ...]
    frames: tuple[int, ...]
    """Of each segment, by its frame times."""
    ends: dict[int, int] = field(default_factory=dict, compare=False, repr=False)
    """Segment to the frame at which its video turned out to end or break, so that it is not decoded
    again for every frame behind."""

    sequential: ClassVar[bool] = True

    def read(self, start: int, stop: int) -> Iterator[Image]:
        """Yields the RGB frames `start` to `stop` (exclusive) in order.

        Raises:
            DataError: a video is shorter than its frame times, or damaged; the message names it.
        """
        for wanted in self._ranges(start, stop):
            yield from self._segment(wanted)

    def files(self, start: int, stop: int) -> Iterator[tuple[str, str]]:
        """The videos that hold some of the frames."""
        paths = (self.paths[wanted.segment] for wanted in self._ranges(start, stop))
        return ((f"{path.parent.name}/{path.name}", str(path)) for path in paths)

    def _ranges(self, start: int, stop: int) -> Iterator[_Range]:
        firsts = accumulate(self.frames, initial=0)
        for segment, (first, count) in enumerate(zip(firsts, self.frames, strict=False)):
            local = _Range(segment, max(start - first, 0), min(stop - first, count))
            if local.start < local.stop:
                yield local

    def _segment(self, wanted: _Range) -> Iterator[Image]:
        position = 0
        if wanted.start < self.ends.get(wanted.segment, wanted.stop):
            for image in _images(self.paths[wanted.segment], first=wanted.start):
                if image is not None:
                    yield image
                position += 1
                if position == wanted.stop:
                    return
            self.ends[wanted.segment] = position
        path = self.paths[wanted.segment]
        raise DataError(
            f"{path.parent.name}/{path.name}: ends or breaks at frame {self.ends[wanted.segment]}, expected "
            f"{self.frames[wanted.segment]} frames; copy it again"
        )


def _images(path: Path, *, first: int) -> Iterator[Image | None]:
    """Every frame, None before the first that is wanted, up to the end or the first that cannot be decoded.

    What follows a frame that is lost could not be counted, and would be given the times of others.
    """
    try:
        with opened(path, container_format="hevc") as (container, stream):
            presentation = Presentation(stream.sample_aspect_ratio)
            for number, frame in enumerate(decoded(container, stream)):
                if frame is None:
                    return
                yield presentation.image(frame) if number >= first else None
    except DataError:
        return


def _without_time(segment: Path, times: int) -> list[str]:
    """Names of the frames that a segment's video has more than its frame times.

    Packets are counted, not decoded: half a second for a minute of 45 MB, a tenth of decoding it.
    """
    try:
        with opened(segment / VIDEO, container_format="hevc") as (container, stream):
            frames = sum(packet is not None for packet in packets_of(container, stream))
    except DataError:  # its frames will be counted as undecodable
        return []
    name = f"{segment.parent.name}/{segment.name}/{VIDEO}"
    return [f"{name} frame {number}" for number in range(times, frames)]
