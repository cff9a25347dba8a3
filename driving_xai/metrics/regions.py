"""Where else in its frame a region may lie: the places that its removal is compared with."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int64
from scipy.signal import fftconvolve

PLACES = 19
"""Other places by default: a region without effect changes the scores most of all 20 in one of 20 cases."""


def other_places(
    mask: Bool[np.ndarray, "H W"], *, most: int = PLACES, seed: int = 0
) -> Int64[np.ndarray, "N 2"]:
    """Where a region fits into its frame without touching itself, drawn evenly and without repetition.

    Args:
        mask: the region, one pixel or more.
        most: places to draw; fewer come where fewer fit.
        seed: of the draw.

    Raises:
        ValueError: the region is empty.

    Example:
        >>> other_places(np.array([[True, False, False]])).tolist()
        [[0, 1], [0, 2]]
        >>> other_places(np.ones((2, 2), bool)).shape
        (0, 2)
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        raise ValueError("got an empty region; expected one pixel or more")
    region = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = region.shape
    # From the highest place to the lowest, and from the leftmost to the rightmost.
    down = np.arange(-rows[0], len(mask) - rows[-1])
    right = np.arange(-columns[0], mask.shape[1] - columns[-1])
    # The pixels that a region shares with itself when it is moved: its autocorrelation.
    shared = np.rint(fftconvolve(region.astype(np.float64), region[::-1, ::-1].astype(np.float64)))
    near_down, near_right = np.abs(down) < height, np.abs(right) < width
    free = np.ones((len(down), len(right)), dtype=bool)
    free[np.ix_(near_down, near_right)] = (
        shared[np.ix_(down[near_down] + height - 1, right[near_right] + width - 1)] == 0
    )
    fitting = np.stack([down[:, None] + 0 * right, right + 0 * down[:, None]], axis=-1)[free]
    if len(fitting) > most:
        fitting = fitting[np.random.default_rng(seed).choice(len(fitting), size=most, replace=False)]
    return fitting.astype(np.int64)


def moved(mask: Bool[np.ndarray, "H W"], offset: Int64[np.ndarray, " 2"]) -> Bool[np.ndarray, "H W"]:
    """A region at another place, which has to lie inside the frame.

    Example:
        >>> moved(np.array([[True, False]]), np.array([0, 1])).tolist()
        [[False, True]]
    """
    return np.roll(mask, tuple(offset.tolist()), axis=(0, 1))
