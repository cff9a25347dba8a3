"""How well a map finds the pixels that are known to cause the label, each measure beside its chance level.

Frames whose causes are unknown, nowhere or everywhere have no localisation: their values are NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from driving_xai.types import Saliency

Causes = Bool[Tensor, "B H W"]
Ranks = Int64[Tensor, "B P"]


class Localised(NamedTuple):
    """A measure of each frame, and what a random ranking reaches on average."""

    value: Float[Tensor, " B"]
    chance: Float[Tensor, " B"]


Localisation = Callable[[Saliency, Ranks, Causes], Localised]


def pointing_game(saliency: Saliency, ranks: Ranks, causes: Causes, *, tolerance_px: int = 5) -> Localised:
    """1 where the most salient pixel lies within `tolerance_px` of a causing pixel, else 0.

    Chance is the share of pixels that would hit.

    Source: Zhang et al. 2018, "Top-down neural attention by excitation backprop": 15 pixels on images
    of about 224.
    Deviation: 5 pixels, as frames are 80 x 160; a map without a single maximum points by the seeded
    ranking; a frame without causes is left out rather than hit.
    """
    reached = _dilated(causes, tolerance_px).flatten(1)
    pointed = ranks.argmin(1, keepdim=True)
    return _defined(reached.gather(1, pointed).squeeze(1), reached.double().mean(1), causes)


def mass_inside(saliency: Saliency, ranks: Ranks, causes: Causes) -> Localised:
    """The share of the map's positive mass that lies on causing pixels, in [0, 1].

    NaN for a map without positive mass. Chance is the share of causing pixels.

    Source: the energy-based pointing game of Wang et al. 2020 (Score-CAM).
    """
    mass, flat = saliency.flatten(1).double().clamp(min=0), causes.flatten(1)
    return _defined((mass * flat).sum(1) / mass.sum(1), flat.double().mean(1), causes)


def top_k_precision(saliency: Saliency, ranks: Ranks, causes: Causes) -> Localised:
    """The share of causing pixels among the k first-ranked, with k the number of causing pixels.

    At this k, precision equals recall. Chance is the share of causing pixels.
    """
    flat = causes.flatten(1)
    size = flat.sum(1)
    found = (flat & (ranks < size[:, None])).sum(1)
    return _defined(found / size.double(), flat.double().mean(1), causes)


def auroc(saliency: Saliency, ranks: Ranks, causes: Causes) -> Localised:
    """The probability that a causing pixel ranks before one that is not. Chance is 1/2.

    Deviation: ties are settled by the seeded ranking; on average that is the usual half.
    """
    flat = causes.flatten(1)
    inside = flat.sum(1).double()
    outside = flat.shape[1] - inside
    # The ranks of the causing pixels, less the lowest they could have, count the misordered pairs.
    misordered = (ranks * flat).sum(1).double() - inside * (inside - 1) / 2
    value = 1 - misordered / (inside * outside)
    return _defined(value, torch.full_like(value, 0.5), causes)


def average_precision(saliency: Saliency, ranks: Ranks, causes: Causes) -> Localised:
    """The precision at each causing pixel of the ranking, averaged.

    Chance is its exact expectation for a random ranking, a little above the share of causing pixels.
    """
    flat = causes.flatten(1)
    in_order = torch.zeros_like(flat).scatter_(1, ranks, flat)
    pixels = flat.shape[1]
    places = torch.arange(1, pixels + 1, device=ranks.device, dtype=torch.float64)
    inside = flat.sum(1).double()
    value = ((in_order.cumsum(1) / places) * in_order).sum(1) / inside
    harmonic = places.reciprocal().sum() / pixels
    chance = harmonic + (inside - 1) / (pixels - 1) * (1 - harmonic)
    return _defined(value, chance, causes)


def _defined(value: Tensor, chance: Tensor, causes: Causes) -> Localised:
    share = causes.flatten(1).double().mean(1)
    defined = (share > 0) & (share < 1)
    unknown = torch.full_like(share, torch.nan)
    return Localised(*(torch.where(defined, part.double(), unknown) for part in (value, chance)))


def _dilated(causes: Causes, radius: int) -> Causes:
    """Causes grown to every pixel within a Euclidean distance."""
    offsets = torch.arange(-radius, radius + 1, device=causes.device)
    disc = (offsets[:, None] ** 2 + offsets[None, :] ** 2 <= radius**2).float()
    reached = F.conv2d(causes.unsqueeze(1).float(), disc[None, None], padding=radius)
    return reached.squeeze(1) > 0.5
