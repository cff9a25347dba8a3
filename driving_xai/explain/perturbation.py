"""What the target loses when parts of the frame are hidden: occlusion and RISE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from driving_xai.errors import OptionError
from driving_xai.explain.base import Explainer, require_at_least
from driving_xai.explain.variants import ReferenceScores, keep
from driving_xai.perturb import Fill, blank
from driving_xai.types import FrameModel, Frames, Saliency, Target


@dataclass(frozen=True, kw_only=True)
class Occlusion(Explainer):
    """How much the target falls when a window over a pixel is hidden, averaged over the windows on it.

    Windows start at every multiple of the stride; those that reach over the far edges are cut there.

    Source: Zeiler and Fergus 2014, section 4.1; windows and averaging as in captum.

    Args:
        window_px: height and width of the window.
        stride_px: down and across; no larger than the window, so that no pixel is left out.
        fill: what hides, see `perturb.blank`.
        batch_size: most edited frames in one pass, see `perturb.batches`.

    Raises:
        ValueError: the stride leaves gaps between windows, or an option is out of range.

    Example:
        >>> from driving_xai.models.steering import SteeringConfig, SteeringModel
        >>> from driving_xai.targets import magnitude
        >>> model = SteeringModel(SteeringConfig(hidden_size=8)).eval()
        >>> Occlusion(window_px=(40, 40), stride_px=(40, 40))(model.at(None), torch.rand(2, 3, 80, 160), magnitude).shape
        torch.Size([2, 80, 160])
    """

    window_px: tuple[int, int] = (16, 16)
    stride_px: tuple[int, int] = (8, 8)
    fill: Fill = "black"
    batch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        for window, stride in zip(self.window_px, self.stride_px, strict=True):
            if not 1 <= stride <= window or self.batch_size < 1:
                raise ValueError(
                    f"got window {window} px, stride {stride} px, batch_size {self.batch_size}; "
                    "expected 1 <= stride <= window, and 1 or more"
                )

    def _explain(self, model: FrameModel, frames: Frames, target: Target) -> Saliency:
        rows, columns = (
            _windows(pixels, window, stride).to(frames.device)
            for pixels, window, stride in zip(frames.shape[-2:], self.window_px, self.stride_px, strict=True)
        )
        hiding = blank(frames, self.fill)
        places = torch.cartesian_prod(torch.arange(len(rows)), torch.arange(len(columns)))

        def hidden(part: slice) -> Frames:
            down, across = places[part].unbind(1)
            return keep(frames, hiding, ~(rows[down, :, None] & columns[across, None, :])[None])

        clean = ReferenceScores(model, frames, target)
        values = clean.of_variants(hidden, len(places), batch_size=self.batch_size)
        falls = (clean.values[:, None] - values).unflatten(1, (len(rows), len(columns)))
        over, beside = rows.to(falls), columns.to(falls)
        return (over.T @ falls @ beside) / torch.outer(over.sum(0), beside.sum(0))


@dataclass(frozen=True, kw_only=True)
class RISE(Explainer):
    """The target of randomly masked frames, averaged for each pixel over the masks that show it.

    S = (1 / (E[M] N)) sum_i y(x * M_i) M_i. A mask is a coarse grid of random bits, upsampled
    bilinearly and shifted by a random fraction of a cell. The same masks serve every frame. They are
    never stored: a mask is its bits and its shift, and a sum over masks is taken on the coarse grid for
    each shift, upsampling being linear.

    Source: Petsiuk et al. 2018 (RISE), eq. 6 and section 3.2.

    Args:
        samples: N, the number of masks; 1 or more.
        grid: cells of a mask along each axis, 1 or more.
        shown: probability of a cell to be shown, between 0 and 1.
        normalisation: divides by what a pixel is shown on average over all masks (`expected`, the paper), or
            by what it was shown in those drawn (`observed`), which takes away the noise that a target far
            from zero brings; `centred` then subtracts the mean over the masks, so that the sign says whether
            showing a pixel raises the target.
        fill: what hides, see `perturb.blank`.
        seed: of the masks.
        batch_size: most masked frames in one pass, see `perturb.batches`.

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> from driving_xai.models.steering import SteeringConfig, SteeringModel
        >>> from driving_xai.targets import magnitude
        >>> model = SteeringModel(SteeringConfig(hidden_size=8)).eval()
        >>> RISE(samples=16)(model.at(None), torch.rand(2, 3, 80, 160), magnitude).shape
        torch.Size([2, 80, 160])
    """

    samples: int = 4000
    grid: int = 7
    shown: float = 0.5
    normalisation: Literal["expected", "observed", "centred"] = "expected"
    fill: Fill = "black"
    seed: int = 0
    batch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(
            {"samples": (self.samples, 1), "grid": (self.grid, 1), "batch_size": (self.batch_size, 1)}
        )
        if not 0 < self.shown < 1:
            raise ValueError(f"got shown {self.shown}; expected between 0 and 1")

    def _explain(self, model: FrameModel, frames: Frames, target: Target) -> Saliency:
        masks = self.draw(frames)
        hiding = blank(frames, self.fill)
        values = ReferenceScores(model, frames, target).of_variants(
            lambda part: keep(frames, hiding, masks.rendered(part)[None]),
            self.samples,
            batch_size=self.batch_size,
        )
        sums = masks.summed(values)
        if self.normalisation == "expected":
            # Exact: a masked pixel is a mean of bits with weights that add up to one.
            return sums / (self.samples * self.shown)
        shown = masks.summed(torch.ones_like(values[:1]))
        if not (shown > 0).all():
            raise OptionError(
                f"got {self.samples} masks of which none shows some pixels; expected more masks"
            )
        means = sums / shown
        return means - values.mean(1)[:, None, None] if self.normalisation == "centred" else means

    def draw(self, frames: Frames) -> ShiftedGrids:
        """The masks for frames of this size, dtype and device."""
        generator = torch.Generator().manual_seed(self.seed)
        bits = torch.rand(self.samples, self.grid, self.grid, generator=generator) < self.shown
        cells_px = [-(-pixels // self.grid) for pixels in frames.shape[-2:]]
        shifts = [torch.randint(cell, (self.samples,), generator=generator) for cell in cells_px]
        weights = [
            _shifted(pixels, self.grid, cell).to(frames)
            for pixels, cell in zip(frames.shape[-2:], cells_px, strict=True)
        ]
        return ShiftedGrids(bits.to(frames.device), *(each.to(frames.device) for each in shifts), *weights)


class ShiftedGrids(NamedTuple):
    """Masks as coarse grids of bits with a shift each."""

    bits: Bool[Tensor, "N g g"]
    down: Int64[Tensor, " N"]
    """The shift of each, in pixels."""
    across: Int64[Tensor, " N"]
    row_weights: Float[Tensor, "shifts H g"]
    """How much each row of the frame takes from each row of the grid, for every shift."""
    column_weights: Float[Tensor, "shifts W g"]

    def rendered(self, part: slice) -> Float[Tensor, "v H W"]:
        """Some of the masks in full."""
        rows, columns = self.row_weights[self.down[part]], self.column_weights[self.across[part]]
        return rows @ self.bits[part].to(rows.dtype) @ columns.transpose(1, 2)

    def summed(self, values: Float[Tensor, "B N"]) -> Float[Tensor, "B H W"]:
        """The sum of all masks, each times its value, for every row of values."""
        return torch.stack([self._summed(each) for each in values])

    def _summed(self, values: Float[Tensor, " N"]) -> Float[Tensor, "H W"]:
        grid, shifts = self.bits.shape[-1], (len(self.row_weights), len(self.column_weights))
        # A sum of thousands: float64 keeps it independent of how the model rounds.
        coarse = torch.zeros(shifts[0] * shifts[1], grid, grid, dtype=torch.float64, device=values.device)
        coarse.index_add_(0, self.down * shifts[1] + self.across, values.double()[:, None, None] * self.bits)
        columns = torch.einsum("dcij,cwj->diw", coarse.unflatten(0, shifts), self.column_weights.double())
        return torch.einsum("diw,dhi->hw", columns, self.row_weights.double()).to(values.dtype)


def _windows(pixels: int, window: int, stride: int) -> Bool[Tensor, "windows pixels"]:
    """Which pixels along an axis each window covers."""
    count = 1 + max(0, -(-(pixels - window) // stride))
    offset = torch.arange(pixels)[None, :] - stride * torch.arange(count)[:, None]
    return (offset >= 0) & (offset < window)


def _shifted(pixels: int, grid: int, cell_px: int) -> Float[Tensor, "shifts pixels grid"]:
    """Bilinear weights of a grid stretched to one cell more than the frame has, for every shift.

    Before the first and behind the last cell's centre the grid is mirrored there, as in RISE's code.
    """
    last = grid - 1
    within = torch.arange(pixels)[None, :] + torch.arange(cell_px)[:, None] + 0.5
    at = (within.double() * grid / ((grid + 1) * cell_px) - 0.5).abs()
    at = (last - (last - at).abs()).clamp_min(0)
    return (1 - (at[..., None] - torch.arange(grid)).abs()).clamp_min(0)
