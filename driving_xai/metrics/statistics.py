"""Intervals for means over the frames of a drive, whose neighbours are alike; rank correlation.

Frames 50 ms apart are no independent samples: treating them so makes an interval several times too
narrow. The moving-block bootstrap draws whole stretches of the drive instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Float64, Int, Num
from scipy import stats

_DRAWN_TOGETHER = 2**20
"""Starts of blocks in memory at a time."""
LEAST_BLOCKS = 8
"""Below that the percentiles of resampled drives are too narrow: docs/methods.md has the coverage."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and where it may lie."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class BlockBootstrap:
    """A moving-block bootstrap: percentile intervals from resampled stretches of `block` frames.

    The same seed draws the same stretches, so that intervals of methods on the same frames, and of
    their differences, come from the same resampled drives.

    Source: Künsch 1989; Efron and Tibshirani 1993, section 8.6.

    Example:
        >>> BlockBootstrap(block=5, resamples=200).interval(np.arange(40.0)).mean
        19.5
    """

    block: int
    """Frames that are drawn together; longer than neighbours stay alike, say 5 s."""
    resamples: int = 2000
    level: float = 0.95
    seed: int = 0

    def blocks(self, count: int) -> int:
        """How many blocks so many frames have, each of `block` frames or a little more."""
        return count // self.block

    def thinned(self, share: float) -> BlockBootstrap:
        """Blocks as long in time where only this share of the frames counts.

        Example:
            >>> BlockBootstrap(block=25).thinned(0.1).block
            2
        """
        return replace(self, block=max(1, round(self.block * share)))

    def interval(self, values: Float[np.ndarray, " N"]) -> Interval | None:
        """The interval of the mean; None below `LEAST_BLOCKS` blocks of frames.

        Args:
            values: finite, in the order of time. Of a paired comparison: the differences.

        Raises:
            ValueError: a value is not finite.
        """
        if not np.isfinite(values).all():
            raise ValueError("got values that are not finite; drop the frames without a value first")
        if self.blocks(len(values)) < LEAST_BLOCKS:
            return None
        tail = (1 - self.level) / 2
        low, high = np.quantile(self.means(values), [tail, 1 - tail])
        return Interval(mean=float(values.mean()), low=float(low), high=float(high))

    def means(self, values: Float[np.ndarray, "N *columns"]) -> Float[np.ndarray, "resamples *columns"]:
        """The mean of each resampled drive, as long as the drive itself: the last block is cut.

        Columns are means of the same resampled drives, which are drawn once for all of them. Memory does
        not grow with the number of resamples.

        Args:
            values: in the order of time; of several columns each is as it is alone.
        """
        if values.ndim > 1:
            return self._means(list(values.T)).T
        return self._means([values])[0]

    def _means(self, columns: Sequence[Float[np.ndarray, " N"]]) -> Float[np.ndarray, "columns resamples"]:
        count = len(columns[0])
        blocks = -(-count // self.block)
        last = count - (blocks - 1) * self.block
        sums = [np.concatenate(([0.0], np.cumsum(values, dtype=np.float64))) for values in columns]
        # Of each block by its start: one look-up for a drawn block. The last one is shorter.
        whole, cut = ([each[length:] - each[:-length] for each in sums] for length in (self.block, last))
        means = np.empty((len(columns), self.resamples))
        done = 0
        for starts in self._drawn(count):
            rows = slice(done, done := done + len(starts))
            for column in range(len(columns)):
                picked = whole[column].take(starts)
                picked[:, -1] = cut[column].take(starts[:, -1])
                means[column, rows] = picked.sum(1) / count
        return means

    def starts(self, count: int) -> Int[np.ndarray, "resamples blocks"]:
        """Where each drawn block of `count` frames begins."""
        return np.concatenate(list(self._drawn(count)))

    def _drawn(self, count: int) -> Iterator[Int[np.ndarray, "some blocks"]]:
        """The starts of some resampled drives at a time; how many does not change what is drawn."""
        blocks = -(-count // self.block)
        together = max(1, _DRAWN_TOGETHER // blocks)
        generator = np.random.default_rng(self.seed)
        for done in range(0, self.resamples, together):
            size = (min(together, self.resamples - done), blocks)
            yield generator.integers(0, count - self.block + 1, size=size)


def spearman(ours: Num[np.ndarray, "B n"], theirs: Num[np.ndarray, "B n"]) -> Float64[np.ndarray, " B"]:
    """The rank correlation of two rows of numbers, ties at their mean rank; NaN where one row is constant.

    Args:
        ours: finite.
        theirs: of the same shape.

    Source: Spearman 1904.

    Example:
        >>> spearman(np.array([[1, 2, 3], [1, 2, 3]]), np.array([[2, 4, 9], [3, 1, 0]]))
        array([ 1., -1.])
    """
    ranks = (stats.rankdata(values, axis=1) for values in (ours, theirs))
    first, second = (each - each.mean(1, keepdims=True) for each in ranks)
    length = np.sqrt((first**2).sum(1) * (second**2).sum(1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(length > 0, (first * second).sum(1) / length, np.nan)
