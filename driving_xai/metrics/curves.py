"""Saliency to ranking, ranking to edited frames to scores, scores to an area.

Deletion removes the most salient pixels first; insertion shows them first. A saliency map is ranked
once, and every edited frame is built from that ranking.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from driving_xai.errors import NonFiniteError
from driving_xai.perturb import Fill, Mixture, batches, blank, pixel_counts
from driving_xai.types import FrameModel, Frames, Scores


def rank(saliency: Float[Tensor, "B *grid"], generator: torch.Generator) -> Int64[Tensor, "B P"]:
    """The position of each pixel in the order from the most to the least salient, 0 first.

    A permutation of the P pixels, H * W in reading order, or patches. Equal values, compared in float32, follow
    an order of pixels drawn once from the generator and shared by all maps of the call: with a
    generator of the same seed, a map's ranking does not depend on its batch.

    Raises:
        NonFiniteError: a map is not finite everywhere.
    """
    values = saliency.detach().flatten(1).float() + 0.0  # Turns -0.0 into 0.0: they are equal.
    if not values.isfinite().all():
        raise NonFiniteError(
            "got a saliency map with NaN or infinity; expected finite values; check the weights"
        )
    pixels = values.shape[1]
    drawn = torch.randperm(pixels, generator=generator, device=generator.device).to(values.device)
    # One integer per pixel: the float's bits, made to fall where the value rises, above its place in
    # the drawn order. Sorting these settles ties without needing a stable sort.
    bits = values[:, drawn].view(torch.int32)
    falling = ~(bits ^ ((bits >> 31) & 0x7FFFFFFF))
    places = torch.arange(pixels, device=values.device)
    order = drawn[_sorted((falling.long() << 32) | places) & 0xFFFFFFFF]
    return torch.empty_like(order).scatter_(1, order, places.expand_as(order))


def _sorted(keys: Int64[Tensor, "B P"]) -> Int64[Tensor, "B P"]:
    if keys.device.type == "cpu":
        # Without the indices torch always returns, NumPy's vectorised sort is three times as fast.
        return torch.from_numpy(np.sort(keys.numpy(), axis=1))
    return keys.sort(dim=1).values


def deletion(
    model: FrameModel,
    frames: Frames,
    ranks: Int64[Tensor, "B *methods P"],
    fractions: Sequence[float],
    *,
    fill: Fill = "black",
    batch_size: int = 32,
    clean: Scores | None = None,
) -> Float[Tensor, "B *methods V K"]:
    """The scores with a growing fraction of each frame's most salient pixels removed.

    Args:
        ranks: one ranking a frame, or one for each method; all share the clean pass.
        fractions: of pixels removed, rising, in [0, 1]; each removes the nearest whole number.
        batch_size: most edited frames in one forward pass, but never fewer than B; changes no score.
        clean: the scores of the unedited frames, where they are known.

    Source: Petsiuk et al. 2018 (RISE), section 3.3; on steering Tashiro and Awano 2023, section 4.
    Deviation: exactly k pixels by a seeded ranking, so that ties delete no more and no less.
    """
    pair = _Pair(frames, blank(frames, fill), clean, None)
    return _curve(model, pair, ranks, fractions, batch_size)


def insertion(
    model: FrameModel,
    frames: Frames,
    ranks: Int64[Tensor, "B *methods P"],
    fractions: Sequence[float],
    *,
    fill: Fill = "black",
    batch_size: int = 32,
    clean: Scores | None = None,
) -> Float[Tensor, "B *methods V K"]:
    """The scores with a growing fraction of each frame's most salient pixels shown on the fill.

    Arguments and source as for `deletion`; `fractions` are of pixels shown.
    """
    pair = _Pair(blank(frames, fill), frames, None, clean)
    return _curve(model, pair, ranks, fractions, batch_size)


def area(fractions: Sequence[float], values: Float[Tensor, "... V"]) -> Float[Tensor, "..."]:
    """The area under curves by the trapezoid rule, in the unit of the values times the fraction.

    Source: Petsiuk et al. 2018 (RISE). Over 0..1 in equal steps it is their (sum - ends / 2) / n.
    """
    return torch.trapezoid(values, torch.tensor(fractions, dtype=values.dtype, device=values.device))


class _Pair(NamedTuple):
    """The two pictures of a curve, and their scores where known."""

    start: Frames
    end: Frames
    start_scores: Scores | None
    end_scores: Scores | None


@torch.no_grad()
def _curve(
    model: FrameModel,
    pair: _Pair,
    ranks: Int64[Tensor, "B *methods P"],
    fractions: Sequence[float],
    batch_size: int,
) -> Float[Tensor, "B *methods V K"]:
    count, pixels = len(ranks), ranks.shape[-1]
    per_method = ranks.int().reshape(count, -1, pixels)
    counts = pixel_counts(fractions, pixels)
    inner = counts[(counts > 0) & (counts < pixels)]
    mixed = Mixture(pair.start, pair.end)
    chunks = [inner[part] for part in batches(len(inner), frames=count, batch_size=batch_size)]
    points: list[Float[Tensor, "B methods v K"]] = []
    if counts[0] == 0:
        points.append(_end(model, pair.start, pair.start_scores, per_method))
    for chunk in chunks:
        scores = [model(mixed(order, chunk)) for order in per_method.unbind(1)]
        points.append(torch.stack([each.unflatten(0, (count, len(chunk))) for each in scores], 1))
    if counts[-1] == pixels:
        points.append(_end(model, pair.end, pair.end_scores, per_method))
    curves = torch.cat(points, 2)
    return curves.reshape(*ranks.shape[:-1], *curves.shape[2:])


def _end(model: FrameModel, frames: Frames, known: Scores | None, ranks: Tensor) -> Tensor:
    """The score of an unmixed picture, once for all methods."""
    scores = model(frames) if known is None else known
    return scores[:, None, None].expand(-1, ranks.shape[1], -1, -1)
