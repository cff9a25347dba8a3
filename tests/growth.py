"""How work grows with the data, by counting what is gone through and not by timing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MOST_EXPONENT = 1.1


def exponent(sizes: Sequence[int], counts: Sequence[int]) -> float:
    """The slope of count against size, both as logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(counts), 1)[0])


class Counted(np.ndarray):
    """An array that adds up the elements that NumPy is asked to go through."""

    seen = 0

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        Counted.seen += max(np.size(each) for each in inputs)
        plain = [np.asarray(each) if isinstance(each, Counted) else each for each in inputs]
        result = getattr(ufunc, method)(*plain, **options)
        return result.view(Counted) if isinstance(result, np.ndarray) else result
