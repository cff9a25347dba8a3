"""Who trains, who validates, who tests: whole drives, or blocks of time with a gap. Never frames.

Neighbouring frames of a drive are near copies, so dividing them at random would test on what was
trained on. Neighbours are those in time, not those in one file: a recorder that splits its output
puts one road into two drives, and the gap lies across that seam too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Int32, Int64

from data_prep.errors import DataError

PARTS = ("train", "val", "test", "gap")
Part = Literal["train", "val", "test"]

UNIX_FROM_NS = 10**18
"""Times from here on, September 2001, are nanoseconds since 1970 and can be compared between drives.
Lesser ones are of a clock of the drive's own, such as a video's or that of a device since it booted."""


MOST_GAP_S = 1e6
"""Eleven days; a gap must be shorter."""


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """When the kept frames of one drive were taken."""

    drive: str
    recording: str
    """The cameras of one recording share it: what they saw at one instant stays together."""
    time_ns: Int64[np.ndarray, " T"]
    """Increasing."""


class NoRoomError(DataError):
    """A drive is too short for its blocks and gaps."""

    def __init__(self, message: str, *, shortest: Timeline) -> None:
        super().__init__(message)
        self.shortest = shortest
        """The recording that has the least time."""


class Division(NamedTuple):
    """Of each frame of one drive."""

    block: Int32[np.ndarray, " T"]
    """Time block, or the number of the recording."""
    part: np.ndarray
    """`train`, `val`, `test` or `gap`."""


class SplitRule(Protocol):
    """Divides drives between parts."""

    def divide(self, timelines: Sequence[Timeline]) -> list[Division]:
        """The division of each drive, in order.

        Raises:
            DataError: a part would be left without a frame.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class OnePart:
    """Everything into one part."""

    part: Part

    def divide(self, timelines: Sequence[Timeline]) -> list[Division]:
        return [
            Division(_filled(number, line), np.full(len(line.time_ns), self.part, dtype=object))
            for number, line in enumerate(timelines)
        ]


@dataclass(frozen=True, kw_only=True)
class BlockSplit:
    """Each recording in blocks of consecutive frames: the last tests, the one before it validates."""

    blocks: int = 5
    gap_s: float = 2.0
    """Frames this near to a frame of another part belong to none."""

    def __post_init__(self) -> None:
        if self.blocks < 3:
            raise DataError(
                f"blocks is {self.blocks}; expected 3 or more: train, validate and test need one each"
            )
        check_gap(self.gap_s)

    def numbers(self, frames: int) -> Int32[np.ndarray, " T"]:
        """The block of each frame of one drive. Sizes differ by one at most.

        Raises:
            DataError: there are fewer frames than blocks.
        """
        if frames < self.blocks:
            raise DataError(
                f"a drive of {frames} frames cannot be cut into {self.blocks} blocks; use fewer or --split test"
            )
        sizes = [len(part) for part in np.array_split(np.empty(frames), self.blocks)]
        return np.repeat(np.arange(self.blocks, dtype=np.int32), sizes)

    def divide(self, timelines: Sequence[Timeline]) -> list[Division]:
        """Blocks of the first camera of each recording; another camera's frame goes with its nearest.

        Raises:
            DataError: there are fewer frames than blocks, or the gaps leave a part without frames.
        """
        by_block = np.array(["train"] * (self.blocks - 2) + ["val", "test"], dtype=object)
        first = {line.recording: line for line in reversed(timelines)}
        numbers = {name: self.numbers(len(line.time_ns)) for name, line in first.items()}
        blocks = [
            numbers[line.recording][_nearest(first[line.recording].time_ns, line.time_ns)]
            for line in timelines
        ]
        parts = with_gaps(timelines, [by_block[block] for block in blocks], gap_s=self.gap_s)
        mine: defaultdict[str, list[np.ndarray]] = defaultdict(list)
        for line, part in zip(timelines, parts, strict=True):
            mine[line.recording].append(part)
        for name, line in first.items():
            self._check_parts(line, np.concatenate(mine[name]), first.values())
        return [Division(block, part) for block, part in zip(blocks, parts, strict=True)]

    def _check_parts(self, line: Timeline, part: np.ndarray, all_lines: Iterable[Timeline]) -> None:
        empty = [name for name in ("train", "val", "test") if name not in part]
        if empty:
            lasts_s = (line.time_ns[-1] - line.time_ns[0]) / 1e9
            raise NoRoomError(
                f"a drive of {lasts_s:.1f} s in {self.blocks} blocks with gaps of {self.gap_s} s leaves no frame for "
                f"{' and '.join(empty)}; use split test, or a shorter gap_s and a larger smoothing",
                shortest=min(all_lines, key=lambda each: int(each.time_ns[-1] - each.time_ns[0])),
            )


@dataclass(frozen=True, kw_only=True)
class DriveSplit:
    """Whole recordings: those named, otherwise a seeded choice of about a fifth each for val and test."""

    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    seed: int = 0
    gap_s: float = 2.0
    """Frames this near to a frame of another part belong to none: recordings may follow each other."""

    def __post_init__(self) -> None:
        check_gap(self.gap_s)

    def parts(self, drives: Sequence[str]) -> dict[str, Part]:
        """The part of each recording, by name. The order in which they are listed changes nothing.

        Raises:
            DataError: a named drive does not exist or is named twice, or nothing is left to train on.
        """
        unknown = sorted({*self.val, *self.test} - set(drives))
        if unknown:
            raise DataError(f"no drive is named {', '.join(unknown)}; there are {', '.join(sorted(drives))}")
        both = sorted(set(self.val) & set(self.test))
        if both:
            raise DataError(f"{', '.join(both)} is named for val and for test; name it once")
        val, test = (self.val, self.test) if self.val or self.test else self._choose(sorted(drives))
        parts: dict[str, Part] = {
            name: "val" if name in val else "test" if name in test else "train" for name in drives
        }
        if "train" not in parts.values():
            raise DataError(f"{len(drives)} drive(s) leave none to train on; use --split block or name fewer")
        return parts

    def divide(self, timelines: Sequence[Timeline]) -> list[Division]:
        """As `parts` says, less the frames at seams.

        Raises:
            DataError: as `parts`, or the gaps leave a part without frames.
        """
        recordings = list(dict.fromkeys(line.recording for line in timelines))
        numbers = {name: number for number, name in enumerate(recordings)}
        chosen = self.parts(recordings)
        whole = [np.full(len(line.time_ns), chosen[line.recording], dtype=object) for line in timelines]
        parts = with_gaps(timelines, whole, gap_s=self.gap_s)
        if lost := sorted(set(chosen.values()) - {str(name) for part in parts for name in set(part)}):
            raise DataError(
                f"gaps of {self.gap_s} s leave no frame for {' and '.join(lost)}: its drives ran at the same time as "
                "others; use a shorter gap_s or name other drives"
            )
        return [
            Division(_filled(numbers[line.recording], line), part)
            for line, part in zip(timelines, parts, strict=True)
        ]

    def _choose(self, drives: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        if len(drives) < 3:
            raise DataError(
                f"{len(drives)} drive(s) cannot make train, val and test; use --split block or name them"
            )
        shuffled = [drives[i] for i in np.random.default_rng(self.seed).permutation(len(drives))]
        each = max(1, round(len(drives) / 5))
        return tuple(shuffled[:each]), tuple(shuffled[each : 2 * each])


def with_gaps(
    timelines: Sequence[Timeline], parts: Sequence[np.ndarray], *, gap_s: float
) -> list[np.ndarray]:
    """The parts, `gap` in place of those less than `gap_s` from a frame of another part on the same clock."""
    time_ns = np.concatenate([line.time_ns for line in timelines])
    name = np.concatenate([np.full(len(line.time_ns), line.recording, dtype=object) for line in timelines])
    part = np.concatenate(parts)
    clock = clocks(name, time_ns)
    near = np.zeros(len(part), dtype=bool)
    for each in sorted(set(part)):
        mine = part == each
        near[mine] = near_on_clock(time_ns, clock, mine, ~mine, gap_s=gap_s)
    ends = np.cumsum([len(line.time_ns) for line in timelines])[:-1]
    return np.split(np.where(near, "gap", part), ends)


def near_on_clock(
    time_ns: Int64[np.ndarray, " N"],
    clock: Int64[np.ndarray, " N"],
    asked: Bool[np.ndarray, " N"],
    anchors: Bool[np.ndarray, " N"],
    *,
    gap_s: float,
) -> Bool[np.ndarray, " M"]:
    """Whether each frame asked for is less than `gap_s` from an anchor on its own clock.

    Example:
        >>> time_ns = np.array([0, 1, 5]) * 10**9
        >>> asked = np.array([True, True, False])
        >>> near_on_clock(time_ns, np.zeros(3, dtype=np.int64), asked, ~asked, gap_s=4.5).tolist()
        [False, True]
    """
    rows = np.flatnonzero(asked | anchors)
    rows = rows[np.lexsort((time_ns[rows], clock[rows]))]
    is_anchor, place = anchors[rows], np.arange(len(rows))
    before = np.maximum.accumulate(np.where(is_anchor, place, -1))
    after = np.minimum.accumulate(np.where(is_anchor, place, len(rows))[::-1])[::-1]
    near = np.zeros(len(time_ns), dtype=bool)
    for neighbour in (before, after):
        here = np.flatnonzero((neighbour >= 0) & (neighbour < len(rows)))
        there = rows[neighbour[here]]
        same = clock[there] == clock[rows[here]]
        distance = np.abs(time_ns[there[same]] - time_ns[rows[here[same]]])
        near[rows[here[same]]] |= distance < round(gap_s * 1e9)
    return near[asked]


def clocks(name: np.ndarray, time_ns: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, " N"]:
    """A number for each frame, equal where times can be compared.

    Args:
        name: of the drive or recording of each frame; those without Unix time have a clock each.
        time_ns: of each frame.

    Example:
        >>> clocks(np.array(["a", "b"], dtype=object), np.array([0, 0])).tolist()
        [0, 1]
        >>> clocks(np.array(["a", "b"], dtype=object), np.array([10**18, 10**18])).tolist()
        [-1, -1]
    """
    own = np.unique(name.astype(str), return_inverse=True)[1]
    return np.where(np.asarray(time_ns) >= UNIX_FROM_NS, -1, own)


def clock_names(timelines: Sequence[Timeline]) -> Mapping[str, str]:
    """Drive to `unix` or `own`, for the manifest."""
    return {line.drive: "unix" if line.time_ns[0] >= UNIX_FROM_NS else "own" for line in timelines}


def check_gap(gap_s: float) -> None:
    """Raises DataError where it is no gap: its nanoseconds must fit 64 bits, and damage be told apart."""
    if not 0.0 <= gap_s < MOST_GAP_S:
        raise DataError(f"gap_s is {gap_s}; expected 0 or more seconds, under {MOST_GAP_S:,.0f}")


def _filled(number: int, line: Timeline) -> Int32[np.ndarray, " T"]:
    return np.full(len(line.time_ns), number, dtype=np.int32)


def _nearest(there: Int64[np.ndarray, " N"], here: Int64[np.ndarray, " M"]) -> Int64[np.ndarray, " M"]:
    """Position of the nearest of some increasing times."""
    if len(there) == 1:
        return np.zeros(len(here), dtype=np.int64)
    after = np.clip(np.searchsorted(there, here), 1, len(there) - 1)
    return after - (here - there[after - 1] <= there[after] - here)
