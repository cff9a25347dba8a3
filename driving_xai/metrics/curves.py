"""Saliency to ranking, ranking to edited frames to scores, scores to an area.

Deletion removes the most salient pixels first; insertion shows them first; both may go by square
patches. A saliency map is ranked once, and every edited frame is built from that ranking. One loop,
`scores_along`, runs the model along the curves of pixels, patches and tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from driving_xai.errors import NonFiniteError
from driving_xai.metrics.perturbation_curves import PerturbationCurve, patch_count, scores_along
from driving_xai.metrics.quantities import Quantity, Value
from driving_xai.perturb import Fill
from driving_xai.types import FrameModel, Frames, Scores

MOST_STEPS = 64
"""Points of a curve by default, besides its start; the authors' have 39 to 157 on 224 x 224 pixels."""


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
        batch_size: most edited frames in one forward pass, but never fewer than B; changes scores by rounding only.
        clean: the scores of the unedited frames, where they are known.

    Source: Petsiuk et al. 2018 (RISE), section 3.3; on steering Tashiro and Awano 2023, section 4.
    Deviation: exactly k pixels by a seeded ranking, so that ties delete no more and no less.
    """
    curve = PerturbationCurve.of_pixels("deletion", fractions, pixels=ranks.shape[-1], fill=fill)
    return scores_along(model, frames, ranks, [curve], batch_size=batch_size, clean=clean)[0]


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
    curve = PerturbationCurve.of_pixels("insertion", fractions, pixels=ranks.shape[-1], fill=fill)
    return scores_along(model, frames, ranks, [curve], batch_size=batch_size, clean=clean)[0]


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


class InsertionDeletionCurves(NamedTuple):
    """Two curves over the same counts, from the untouched picture on."""

    fractions: Float[Tensor, " V"]
    """Of patches inserted or deleted, 0 and 1 included."""
    insertion: Float[Tensor, "B *values V"]
    """Of each method; of several references at once, these come before the methods."""
    deletion: Float[Tensor, "B *values V"]

    @classmethod
    def of(
        cls,
        counts: Sequence[int],
        insertion: Float[Tensor, "B *values V"],
        deletion: Float[Tensor, "B *values V"],
    ) -> InsertionDeletionCurves:
        """Over counts of which the last is all patches."""
        fractions = torch.tensor(counts, dtype=torch.float64, device=deletion.device) / counts[-1]
        return cls(fractions, insertion, deletion)

    @property
    def score(self) -> Float[Tensor, "B *values"]:
        """Area under insertion minus area under deletion, -1 to 1 for a probability; high is good."""
        fractions = self.fractions.tolist()
        return area(fractions, self.insertion) - area(fractions, self.deletion)


def both_ways(
    size: tuple[int, int],
    *,
    insertion_fill: Fill | Float[Tensor, "3 H W"] = "black",
    deletion_fill: Fill | Float[Tensor, "3 H W"] = "black",
    patch_px: int = 1,
    patches_per_step: int | None = None,
) -> tuple[PerturbationCurve, PerturbationCurve]:
    """Insertion and deletion over the same counts: 0, every `patches_per_step` patches, and all.

    Args:
        size: height and width of the frames.
        insertion_fill: what a patch shows before it is inserted.
        deletion_fill: what a deleted patch shows.
        patch_px: side of the patches; 1 for pixels.
        patches_per_step: None makes at most `MOST_STEPS` steps.

    Example:
        >>> insertion, deletion = both_ways((4, 6), patch_px=2, patches_per_step=4)
        >>> insertion.counts, deletion.edit
        ((0, 4, 6), 'deletion')
    """
    patches = patch_count(size, patch_px)
    step = patches_per_step or -(-patches // MOST_STEPS)
    counts = (*range(0, patches, step), patches)
    return (
        PerturbationCurve("insertion", counts, insertion_fill, patch_px),
        PerturbationCurve("deletion", counts, deletion_fill, patch_px),
    )


def patch_insertion_deletion(
    model: FrameModel,
    frames: Frames,
    ranks: Int64[Tensor, "B *methods P"],
    value: Value,
    *,
    patch_px: int = 1,
    fill: Fill | Float[Tensor, "3 H W"] = "black",
    patches_per_step: int | None = None,
    batch_size: int = 32,
    clean: Scores | None = None,
) -> InsertionDeletionCurves:
    """Inserts a frame's patches into the fill, and deletes them from the frame, most salient first.

    The curves have a point at 0 and after every `patches_per_step` patches, exactly so many, and at
    all. Both share the scores of the frame and of the fill. With `patch_px=1` patches are pixels.

    Args:
        ranks: of pixels, one ranking a frame or one for each method; see `curves.rank`.
        value: of scores, as a rule `confidence.OfClass`: the probability of the true class in the paper; or
            `EvalBatch.values`, which puts several references' values side by side.
        fill: a named fill, or the bias image b.
        patches_per_step: None makes at most `MOST_STEPS` steps.
        batch_size: most edited frames in one forward pass, but never fewer than B; changes scores by rounding only.
        clean: the scores of the unedited frames, where they are known.

    Source: Iida et al. 2022, eqs. 14 to 16.
    Deviation: patches are ordered descending; the paper prints ascending, which would insert the least
    salient first, and its own m = 1 equals RISE's score only when descending. The curve starts at
    n = 0, and ties add no patches. Black by default, as RISE deletes and as the authors compute;
    the bias image of eq. 16 is an option.
    """
    curves = both_ways(
        (frames.shape[2], frames.shape[3]),
        insertion_fill=fill,
        deletion_fill=fill,
        patch_px=patch_px,
        patches_per_step=patches_per_step,
    )
    scores = scores_along(model, frames, ranks, curves, batch_size=batch_size, clean=clean)
    return InsertionDeletionCurves.of(curves[0].counts, *map(value, scores))


def insertion_deletion(
    model: FrameModel,
    frames: Frames,
    ranks: Int64[Tensor, "B *methods P"],
    value: Value,
    *,
    insertion_fill: Fill = "blur",
    deletion_fill: Fill = "black",
    pixels_per_step: int | None = None,
    batch_size: int = 32,
    clean: Scores | None = None,
) -> InsertionDeletionCurves:
    """RISE's two curves: pixels inserted into a blurred frame, and deleted to black.

    Arguments as for `patch_insertion_deletion`; RISE's step is a row of 224 pixels.

    Source: Petsiuk et al. 2018 (RISE), section 3.3.
    Deviation: black is 0 in RGB, where RISE's is 0 after normalisation; see `perturb.blank`.
    """
    curves = both_ways(
        (frames.shape[2], frames.shape[3]),
        insertion_fill=insertion_fill,
        deletion_fill=deletion_fill,
        patches_per_step=pixels_per_step,
    )
    scores = scores_along(model, frames, ranks, curves, batch_size=batch_size, clean=clean)
    return InsertionDeletionCurves.of(curves[0].counts, *map(value, scores))
