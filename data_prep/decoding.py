"""Decoding ahead on several threads, in order and in bounded memory, and what was unusable."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from data_prep.errors import DataError
from data_prep.geometry import Geometry, MissingImageError
from data_prep.policy import Fault, Policy
from data_prep.schema import Drive
from data_prep.shards.hdf5 import FRAMES_PER_CHUNK

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], *, ahead: int
) -> Iterator[Result]:
    """`function` of each item in order, with at most `ahead` of them in flight.

    Example:
        >>> with ThreadPoolExecutor(2) as pool:
        ...     list(read_ahead(pool, abs, [-3, -1, -2], ahead=2))
        [3, 1, 2]
    """
    remaining = iter(items)
    waiting = deque(pool.submit(function, item) for item in islice(remaining, ahead))
    while waiting:
        result = waiting.popleft().result()
        waiting.extend(pool.submit(function, item) for item in islice(remaining, 1))
        yield result


class Dropped:
    """The frames of one shard that were found unusable when they were read.

    Args:
        policy: whether one of them stops the run.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.by_reason: dict[str, list[int]] = {}
        """Reason to the frames' numbers, in the order in which they were read."""

    def add(self, frame: int, fault: DataError) -> None:
        """Notes a frame, or raises its fault where the policy refuses it."""
        reason: Fault = "missing_image" if isinstance(fault, MissingImageError) else "undecodable_image"
        if self._policy.stops_at(reason):
            raise fault
        self.by_reason.setdefault(reason, []).append(frame)


class Decoded(NamedTuple):
    """One frame on the output grid."""

    frame: int
    image: UInt8[np.ndarray, "h w 3"]
    cause: Bool[np.ndarray, "h w"] | None


class Unusable(NamedTuple):
    """A frame whose image cannot be read, and why."""

    frame: int
    fault: DataError


def decoded(
    drive: Drive, frames: Int64[np.ndarray, " n"], geometry: Geometry, *, threads: int
) -> Iterator[Decoded | Unusable]:
    """The images of some frames of a drive, in order, cropped and resized.

    A source that can only be read front to back says so with an attribute `sequential = True` and
    is read once, here. Others are read by `threads` threads in short ranges.

    Args:
        drive: where the images come from.
        frames: indices in the drive, increasing.
        geometry: what to make of each image.
        threads: how many threads may decode; OpenCV does so without the interpreter's lock.
    """
    wanted = [int(frame) for frame in frames]
    if not wanted:
        return
    if getattr(drive.images, "sequential", False):
        chosen = set(wanted)
        yield from (
            item for item in _read(drive, wanted[0], wanted[-1] + 1, geometry) if item.frame in chosen
        )
        return
    # A pool even for one thread: glibc's allocator hands the main thread's images back to the system
    # after every frame, and faulting their pages in again costs as much as decoding.
    with ThreadPoolExecutor(threads) as pool:
        spans = read_ahead(
            pool, lambda span: [*_read(drive, *span, geometry)], _spans(wanted), ahead=2 * threads
        )
        for span in spans:
            yield from span


def _spans(wanted: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of consecutive frames, at most a chunk long."""
    start = previous = wanted[0]
    for frame in wanted[1:]:
        if frame != previous + 1 or frame - start == FRAMES_PER_CHUNK:
            yield start, previous + 1
            start = frame
        previous = frame
    yield start, previous + 1


def _read(drive: Drive, start: int, stop: int, geometry: Geometry) -> Iterator[Decoded | Unusable]:
    """Frames `start` to `stop` (exclusive); after one that cannot be read, reading starts anew behind it."""
    frame = start
    while frame < stop:
        try:
            causes = None if drive.causes is None else drive.causes.read(frame, stop)
            for image in drive.images.read(frame, stop):
                cause = None if causes is None else geometry.apply_mask(next(causes))
                small = geometry.apply(image)
                # Two full images at a time would make the allocator give pages back and fault them in again.
                del image
                yield Decoded(frame, small, cause)
                frame += 1
            if frame < stop:
                raise DataError(
                    f"drive {drive.name}: frame {frame} is not in the recording; check the source"
                )
        except DataError as fault:
            yield Unusable(frame, fault)
            frame += 1
