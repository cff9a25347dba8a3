"""The cells that a map was made of, before they were upsampled to the frame: what a measure of cells ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from driving_xai.types import Saliency

CellValues = Float[Tensor, "B h w"]
"""One number for each cell of a feature grid: a patch token, or a place of a feature map."""


class _Upsampled(NamedTuple):
    cells: CellValues
    map: Saliency


class KeptCells:
    """What was upsampled last while `cells_kept` was open."""

    def __init__(self) -> None:
        self._last: _Upsampled | None = None

    def of(self, saliency: Saliency) -> CellValues | None:
        """The cells whose picture this map is, bit for bit.

        None for maps that were made on pixels, and for those that were changed after they were upsampled: a
        product with a map on pixels, say, is no picture of cells.
        """
        if self._last is None or not torch.equal(self._last.map, saliency):
            return None
        return self._last.cells

    def keep(self, cells: CellValues, upsampled: Saliency) -> None:
        """Notes what was upsampled, and to what."""
        # A copy: the caller may go on with its map in place.
        self._last = _Upsampled(cells.detach(), upsampled.detach().clone())


_open: ContextVar[KeptCells | None] = ContextVar("kept_cells", default=None)


@contextmanager
def cells_kept() -> Iterator[KeptCells]:
    """Keeps the cells that explainers in this thread upsample.

    Example:
        >>> from driving_xai.explain.grid import to_frame_grid
        >>> frames, cells = torch.zeros(1, 3, 4, 4), torch.tensor([[[0.0, 1.0], [2.0, 3.0]]])
        >>> with cells_kept() as kept:
        ...     saliency = to_frame_grid(cells, frames)
        >>> kept.of(saliency).tolist(), kept.of(saliency + 1)
        ([[[0.0, 1.0], [2.0, 3.0]]], None)
    """
    kept = KeptCells()
    token = _open.set(kept)
    try:
        yield kept
    finally:
        _open.reset(token)


def noted(upsampled: Saliency, cells: CellValues) -> Saliency:
    """The upsampled map as it is; an open `cells_kept` learns of it."""
    kept = _open.get()
    if kept is not None:
        kept.keep(cells, upsampled)
    return upsampled
