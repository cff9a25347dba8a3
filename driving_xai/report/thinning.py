"""Which frames a chart draws where there are more of them than a screen can show."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Float64, Int64, Num


def rows_to_draw(
    series: Sequence[Float64[np.ndarray, " N"]],
    segments: Num[np.ndarray, " N"],
    *,
    most: int,
    always: Collection[int] = (),
) -> Int64[np.ndarray, " rows"]:
    """The rows that are drawn: all, or of each of equal stretches those with each line's extremes.

    Each line that is drawn through these rows touches the lowest and highest values of every stretch. The ends
    of segments are drawn too, so that gaps stay where they are.

    Args:
        series: the lines, N values each, NaN where unknown.
        segments: the number of the unbroken stretch of each row.
        most: rows that may be drawn, apart from the ends of segments and those in `always`.
        always: rows that are drawn in any case.

    Example:
        >>> line = np.array([0.0, 1, 9, 1, 0, 1, 0, -5, 0, 1])
        >>> rows_to_draw([line], np.zeros(10), most=4)
        array([0, 2, 7, 9])
    """
    count = len(segments)
    if count <= most:
        return np.arange(count)
    stretches = max(1, most // (2 * max(1, len(series))))
    ends = np.linspace(0, count, stretches + 1).astype(np.int64)
    stretch = np.searchsorted(ends, np.arange(count), side="right")
    found = [np.array([0, count - 1]), np.array(sorted(always), dtype=np.int64)]
    breaks = np.flatnonzero(np.diff(segments))
    found += [breaks, breaks + 1]
    for values in series:
        known = np.flatnonzero(np.isfinite(values))
        order = known[np.lexsort((values[known], stretch[known]))]
        edges = np.flatnonzero(np.diff(stretch[order]))
        found += [order[:1], order[edges], order[edges + 1], order[-1:]]
    return np.unique(np.concatenate(found))
