"""Maps from a feature grid to the frame's own grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from driving_xai.explain.cells import noted
from driving_xai.types import Cells, Frames


def to_frame_grid(
    maps: Float[Tensor, "N h w"], frames: Frames, cells: Cells | None = None
) -> Float[Tensor, "N H W"]:
    """Upsamples maps bilinearly to the frames' height and width; values keep their scale.

    A map whose cells are all equal stays so, bit for bit: rounding would give it an order.

    Args:
        cells: where the grid's cells are centred; beyond the outermost centres their value is repeated.
            None spreads the cells evenly over the frame, as every peer does. After padded, strided
            convolutions that is up to half a cell off: 3.5 px for a stride of 8.
    """
    constant = (maps.amax((1, 2)) == maps.amin((1, 2)))[:, None, None]
    return noted(torch.where(constant, maps[:, :1, :1], _bilinear(maps, frames, cells)), maps)


def _bilinear(maps: Float[Tensor, "N h w"], frames: Frames, cells: Cells | None) -> Float[Tensor, "N H W"]:
    height, width = frames.shape[-2:]
    if cells is None:
        size = (height, width)
        return F.interpolate(maps.unsqueeze(1), size=size, mode="bilinear", align_corners=False).squeeze(1)
    rows, columns = (
        _interpolation(pixels, count, cells, axis).to(maps)
        for axis, pixels, count in ((0, height, maps.shape[1]), (1, width, maps.shape[2]))
    )
    return rows @ maps @ columns.T


def repeat_on_frame_grid(
    maps: Float[Tensor, "N h w"], frames: Frames, cells: Cells | None = None
) -> Float[Tensor, "N H W"]:
    """Gives each pixel the value of the cell centred nearest to it, bit for bit: equal cells stay equal.

    Args:
        cells: as for `to_frame_grid`.
    """
    height, width = frames.shape[-2:]
    rows, columns = (
        _nearest(pixels, count, cells, axis).to(maps.device)
        for axis, pixels, count in ((0, height, maps.shape[1]), (1, width, maps.shape[2]))
    )
    return noted(maps[:, rows[:, None], columns], maps)


def _nearest(pixels: int, count: int, cells: Cells | None, axis: int) -> Int64[Tensor, " pixels"]:
    stride_px = pixels / count
    evenly = Cells(first_px=(stride_px - 1) / 2, stride_px=stride_px)
    return (_positions(pixels, count, cells or evenly, axis) + 0.5).floor().long()


def _positions(pixels: int, count: int, cells: Cells, axis: int) -> Float[Tensor, " pixels"]:
    """Where each pixel lies along one axis, counted in cells."""
    at_px = torch.arange(pixels, dtype=torch.float64)
    if cells.frame_px is not None:
        # Where the pixel's centre comes to lie in the resized frame.
        at_px = (at_px + 0.5) * cells.frame_px[axis] / pixels - 0.5
    return ((at_px - cells.first_px - cells.offset_px[axis]) / cells.stride_px).clamp(0, count - 1)


def _interpolation(pixels: int, count: int, cells: Cells, axis: int) -> Float[Tensor, "pixels count"]:
    """Each pixel's weights on the cells along one axis: a hat around each centre."""
    at = _positions(pixels, count, cells, axis)
    return (1 - (at[:, None] - torch.arange(count)).abs()).clamp_min(0)
