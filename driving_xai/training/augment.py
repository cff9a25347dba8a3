"""Changes to a window of frames that keep its label true, or change it with them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from data_prep.values import Checked, Count, Ge, Interval
from driving_xai.training.processes import Part, whole


@dataclass(frozen=True, kw_only=True)
class Augmentation(Checked):
    """What happens to training windows; each window draws once, all its frames alike."""

    flip: bool = True
    """Mirror half of the windows and negate their steering."""
    brightness: Annotated[float, Ge(0)] = 0.4
    """Frames are multiplied by exp of a uniform draw from +-brightness."""
    contrast: Annotated[float, Ge(0)] = 0.2
    """Frames are stretched about their mean by 1 + a uniform draw from +-contrast."""
    saturation: Annotated[float, Ge(0)] = 0.0
    """Colours are blended with their grey: by 1 + a uniform draw from +-saturation, at least 0."""
    shift: Count = 0
    """Frames are moved sideways by up to so many pixels, the edge repeated; the label is left alone."""
    pitch: Count = 0
    """Frames are moved up or down by up to so many pixels, the edge repeated."""
    shadow: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Probability that one side of a random line is darkened."""
    flip_rows: bool = False
    """Turn half of the windows upside down; for images without a floor, the label is left alone."""
    rotation_deg: Annotated[float, Interval(ge=0, le=180)] = 0.0
    """Frames are turned about their centre by a uniform draw from +-rotation_deg, the edge repeated; the label is left
    alone."""
    crop: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """A window with 1 - crop of the area or more, from 3/4 as wide as the frame's shape to 4/3, is stretched to the frame."""
    erase: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Probability that a rectangle of 2 to 33 % of the area shows the frame's mean colour."""


def augment(
    frames: Float[Tensor, "B T 3 H W"],
    target: Float[Tensor, "B T"],
    how: Augmentation,
    generator: torch.Generator,
    *,
    part: Part | None = None,
) -> tuple[Float[Tensor, "B T 3 H W"], Float[Tensor, "B T"]]:
    """Frames and targets after one draw of the augmentation.

    Args:
        generator: a CPU generator; the draw is the same on every device.
        part: of which global batch these windows are; it is drawn for, so that the windows change as they
            would in the whole batch. None is all of it.
    """
    device = frames.device
    part = whole(len(frames)) if part is None else part

    def uniform(reach: float) -> Tensor:
        drawn = torch.rand(part.total, generator=generator)[part.inside] * 2 - 1
        return (drawn * reach).to(device).view(-1, 1, 1, 1, 1)

    if how.flip:
        mirrored = (torch.rand(part.total, generator=generator)[part.inside] < 0.5).to(device)
        frames = torch.where(mirrored.view(-1, 1, 1, 1, 1), frames.flip(-1), frames)
        target = torch.where(mirrored.view(-1, 1), -target, target)
    else:
        frames = frames.clone()
    if how.shift or how.pitch:
        frames = _moved(frames, how, generator, part)
    if how.flip_rows:
        turned = (torch.rand(part.total, generator=generator)[part.inside] < 0.5).to(device)
        frames = torch.where(turned.view(-1, 1, 1, 1, 1), frames.flip(-2), frames)
    if how.rotation_deg or how.crop:
        frames = _warped(frames, how, generator, part)
    # From here on in place: a batch is large beside the caches.
    if how.saturation:
        grey = frames.mean(2, keepdim=True)
        frames.sub_(grey).mul_((1 + uniform(how.saturation)).clamp_min_(0)).add_(grey)
    if how.contrast:
        mean = frames.mean((1, 2, 3, 4), keepdim=True)
        frames.sub_(mean).mul_(1 + uniform(how.contrast)).add_(mean)
    if how.shadow:
        frames.mul_(_shadows(frames, how.shadow, generator, part))
    if how.brightness:
        frames.mul_(uniform(how.brightness).exp())
    if how.erase:
        _erase(frames, how.erase, generator, part)
    return frames.clamp_(0, 1), target


def _moved(frames: Tensor, how: Augmentation, generator: torch.Generator, part: Part) -> Tensor:
    """Each window moved by its own whole number of columns and rows, the edges repeated."""
    height, width = frames.shape[-2:]
    columns, rows = (
        torch.randint(0, 2 * reach + 1, (part.total,), generator=generator)[part.inside].tolist()
        for reach in (how.shift, how.pitch)
    )
    edge = (how.shift, how.shift, how.pitch, how.pitch)
    padded = F.pad(frames.flatten(1, 2), edge, mode="replicate").unflatten(1, frames.shape[1:3])
    moved = torch.empty_like(frames)
    for i, (row, column) in enumerate(zip(rows, columns, strict=True)):
        moved[i] = padded[i, ..., row : row + height, column : column + width]
    return moved


def _warped(frames: Tensor, how: Augmentation, generator: torch.Generator, part: Part) -> Tensor:
    """Each window turned by its own angle, and its own part of it stretched to the frame."""
    height, width = frames.shape[-2:]
    turn, size, shape, *place = (torch.rand(part.total, 5, generator=generator)[part.inside]).unbind(1)
    angle = (2 * turn - 1) * math.radians(how.rotation_deg)
    area, ratio = 1 - how.crop * size, ((2 * shape - 1) * math.log(4 / 3)).exp()
    wide, high = ((area * each).sqrt().clamp_max(1) for each in (ratio, 1 / ratio))
    if not how.crop:
        wide, high = torch.ones_like(wide), torch.ones_like(high)
    across, down = ((2 * each - 1) * (1 - part_of) for each, part_of in zip(place, (wide, high), strict=True))
    # From the output's coordinates, -1 to 1 in both directions, to the input's.
    cosine, sine = angle.cos(), angle.sin()
    rows = (
        torch.stack((wide * cosine, -high * sine * height / width, across), 1),
        torch.stack((wide * sine * width / height, high * cosine, down), 1),
    )
    flat = frames.flatten(1, 2)
    grid = F.affine_grid(torch.stack(rows, 1).to(frames), list(flat.shape), align_corners=False)
    warped = F.grid_sample(flat, grid, padding_mode="border", align_corners=False)
    return warped.unflatten(1, frames.shape[1:3])


def _erase(frames: Tensor, probability: float, generator: torch.Generator, part: Part) -> None:
    """Fills a rectangle of some windows with the mean of each frame's channels, in place."""
    height, width = frames.shape[-2:]
    for window, drawn in zip(
        frames, torch.rand(part.total, 5, generator=generator)[part.inside].tolist(), strict=True
    ):
        chosen, size, shape, down, across = drawn
        if chosen >= probability:
            continue
        area, ratio = (0.02 + 0.31 * size) * height * width, math.exp((2 * shape - 1) * math.log(3.3))
        rows, columns = (
            min(side, max(1, round(math.sqrt(area * each))))
            for side, each in ((height, ratio), (width, 1 / ratio))
        )
        top, left = int(down * (height - rows + 1)), int(across * (width - columns + 1))
        window[..., top : top + rows, left : left + columns] = window.mean((-2, -1), keepdim=True)


def _shadows(frames: Tensor, probability: float, generator: torch.Generator, part: Part) -> Tensor:
    """A factor per pixel: darker on one side of a random line, for some of the windows."""
    batch, height, width = len(frames), *frames.shape[-2:]
    drawn = torch.rand(part.total, 4, generator=generator)[part.inside].to(frames.device)
    across = torch.linspace(0, 1, width, device=frames.device)
    down = torch.linspace(0, 1, height, device=frames.device).view(-1, 1)
    line = drawn[:, 0].view(-1, 1, 1) + (drawn[:, 1] - drawn[:, 0]).view(-1, 1, 1) * down
    dark = (across < line) & (drawn[:, 2] < probability).view(-1, 1, 1)
    factor = torch.where(dark, 0.3 + 0.5 * drawn[:, 3].view(-1, 1, 1), 1.0)
    return factor.view(batch, 1, 1, height, width)
