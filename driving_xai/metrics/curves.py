"""Saliency to ranking, ranking to edited frames to scores, scores to an area.

Deletion removes the most salient pixels first; insertion shows them first. A saliency map is ranked
once, and every edited frame is built from that ranking.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from driving_xai.errors import NonFiniteError
from driving_xai.metrics.quantities import Quantity
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


Curves = TypeVar("Curves", Tensor, np.ndarray)
"""Heights along a curve, [..., V]; NumPy where several areas a frame must cost little."""


def area(fractions: Sequence[float], values: Curves) -> Curves:
    """The area under curves by the trapezoid rule, in the unit of the values times the fraction.

    Args:
        fractions: the V places along the curve, rising.
        values: [..., V].

    Source: Petsiuk et al. 2018 (RISE). Over 0..1 in equal steps it is their (sum - ends / 2) / n.

    Example:
        >>> float(area([0, 0.5, 1], np.array([1.0, 0.5, 0.0])))
        0.5
    """
    if isinstance(values, np.ndarray):
        return np.trapezoid(values, np.asarray(fractions, dtype=values.dtype), axis=-1)
    return torch.trapezoid(values, torch.tensor(fractions, dtype=values.dtype, device=values.device))


class Areas(NamedTuple, Generic[Curves]):
    """The area under curves, stated in three ways; each [...]."""

    value: Curves
    """In the quantity's `area_unit`."""
    normalised: Curves
    """Divided by the range of fractions: the mean height."""
    base_corrected: Curves
    """In `area_unit`, of what lies above the height of the unedited frame."""


def areas(
    fractions: Sequence[float], curves: Curves, unedited: Curves, *, quantity: Quantity
) -> Areas[Curves]:
    """The areas under curves of a quantity: as stated, normalised, and above the unedited frame.

    Args:
        fractions: of the pixels edited, the V places along the curve, rising.
        curves: the quantity along them, [..., V].
        unedited: the quantity of the unedited frame, [...] or broadcast to it; of a deletion curve its start.
        quantity: what the curves are drawn of.

    Source: Tashiro and Awano 2023, Fig. 6, for the area in degree x percent.

    Example:
        >>> from driving_xai.metrics.quantities import STEERING_ERROR
        >>> curve = np.array([1.0, 3.0])
        >>> found = areas([0, 0.25], curve, curve[0], quantity=STEERING_ERROR)
        >>> [float(each) for each in found]
        [50.0, 2.0, 25.0]
    """
    span = fractions[-1] - fractions[0]
    factor, under = quantity.area_factor(span), area(fractions, curves)
    return Areas(factor * under, under / span, factor * (under - span * unedited))


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
