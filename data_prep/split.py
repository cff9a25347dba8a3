"""Who trains, who validates, who tests: whole drives, or blocks of time with a gap. Never frames.

Neighbouring frames of a drive are near copies, so dividing them at random would test on what was
trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int32, Int64

from data_prep.errors import DataError

PARTS = ("train", "val", "test", "gap")
Part = Literal["train", "val", "test"]


@dataclass(frozen=True, kw_only=True)
class BlockSplit:
    """Each drive in blocks of consecutive frames: the last tests, the one before it validates."""

    blocks: int = 5
    gap_s: float = 2.0
    """Frames this near to a boundary between two parts belong to neither."""

    def __post_init__(self) -> None:
        if self.blocks < 3:
            raise DataError(
                f"blocks is {self.blocks}; expected 3 or more: train, validate and test need one each"
            )
        if not self.gap_s >= 0.0:
            raise DataError(f"gap_s is {self.gap_s}; expected 0 or more seconds")

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

    def parts(self, time_ns: Int64[np.ndarray, " T"]) -> np.ndarray:
        """`train`, `val`, `test` or `gap` for each frame of one drive, as an array of text.

        Raises:
            DataError: there are fewer frames than blocks, or the gaps leave a part without frames.
        """
        by_block = np.array(["train"] * (self.blocks - 2) + ["val", "test"], dtype=object)
        part = by_block[self.numbers(len(time_ns))]
        gap_ns = round(self.gap_s * 1e9)
        near = np.zeros(len(time_ns), dtype=bool)
        for last in np.flatnonzero(part[1:] != part[:-1]):
            # The boundary is anywhere between the two frames: each side is measured from the other's.
            near[: last + 1] |= time_ns[last + 1] - time_ns[: last + 1] < gap_ns
            near[last + 1 :] |= time_ns[last + 1 :] - time_ns[last] < gap_ns
        part[near] = "gap"
        empty = [name for name in ("train", "val", "test") if name not in part]
        if empty:
            lasts_s = (time_ns[-1] - time_ns[0]) / 1e9
            raise DataError(
                f"a drive of {lasts_s:.1f} s in {self.blocks} blocks with gaps of {self.gap_s} s leaves no frame for "
                f"{' and '.join(empty)}; use a shorter gap_s, fewer blocks, or split test"
            )
        return part


@dataclass(frozen=True, kw_only=True)
class DriveSplit:
    """Whole drives: those named, otherwise a seeded choice of about a fifth each for val and test."""

    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    seed: int = 0

    def parts(self, drives: Sequence[str]) -> dict[str, Part]:
        """The part of each drive, by name. The order in which drives are listed changes nothing.

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

    def _choose(self, drives: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        if len(drives) < 3:
            raise DataError(
                f"{len(drives)} drive(s) cannot make train, val and test; use --split block or name them"
            )
        shuffled = [drives[i] for i in np.random.default_rng(self.seed).permutation(len(drives))]
        each = max(1, round(len(drives) / 5))
        return tuple(shuffled[:each]), tuple(shuffled[each : 2 * each])
