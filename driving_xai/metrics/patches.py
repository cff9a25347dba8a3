"""Insertion minus deletion: pixel by pixel as in RISE, and in square patches."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from driving_xai.metrics.curves import area
from driving_xai.metrics.quantities import Value
from driving_xai.perturb import Fill, Mixture, batches, blank
from driving_xai.types import FrameModel, Frames, Scores

PATCHES_PX = (1, 2, 4, 8, 16)
"""Sides of the patches in Iida et al. 2022, Table 2."""
MOST_STEPS = 64
"""Points of a curve by default, besides its start; the authors' have 39 to 157 on 224 x 224 pixels."""


class InsertionDeletion(NamedTuple):
    """Two curves over the same counts, from the untouched picture on."""

    fractions: Float[Tensor, " V"]
    """Of patches inserted or deleted, 0 and 1 included."""
    insertion: Float[Tensor, "B *values V"]
    """Of each method; of several references at once, these come before the methods."""
    deletion: Float[Tensor, "B *values V"]

    @property
    def score(self) -> Float[Tensor, "B *values"]:
        """Area under insertion minus area under deletion, -1 to 1 for a probability; high is good."""
        fractions = self.fractions.tolist()
        return area(fractions, self.insertion) - area(fractions, self.deletion)


def patch_ranks(
    ranks: Int64[Tensor, "B *methods P"], size: tuple[int, int], patch_px: int
) -> tuple[Int64[Tensor, "B *methods P"], int]:
    """The position of each pixel's patch in the order of the patches, and how many patches there are.

    A patch comes as early as its most salient pixel. Pixels have no ties (`curves.rank` settles them),
    so patches have none. Patches at the right and lower border may be cut.

    Args:
        size: height and width; P is their product.

    Source: Iida et al. 2022, section 4.3: a patch scores as its maximum.
    """
    height, width = size
    rows, columns = -(-height // patch_px), -(-width // patch_px)
    patch = (torch.arange(height)[:, None] // patch_px) * columns + torch.arange(width) // patch_px
    patch = patch.flatten().to(ranks.device).expand_as(ranks)
    first = ranks.new_full((*ranks.shape[:-1], rows * columns), height * width)
    first = first.scatter_reduce(-1, patch, ranks, "amin")
    # The position in the order of first pixels: an order's order.
    return first.argsort(-1).argsort(-1).gather(-1, patch), rows * columns


@torch.no_grad()
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
) -> InsertionDeletion:
    """Inserts a frame's patches into the fill, and deletes them from the frame, most salient first.

    The curves have a point at 0 and after every `patches_per_step` patches, exactly so many, and at
    all. Both share the scores of the frame and of the fill. With `patch_px=1` patches are pixels.

    Args:
        ranks: of pixels, one ranking a frame or one for each method; see `curves.rank`.
        value: of scores, as a rule `confidence.OfClass`: the probability of the true class in the paper; or
            `Batch.values`, which puts several references' values side by side.
        fill: a named fill, or the bias image b.
        patches_per_step: None makes at most `MOST_STEPS` steps.
        batch_size: most edited frames in one forward pass, but never fewer than B; changes no score.
        clean: the scores of the unedited frames, where they are known.

    Source: Iida et al. 2022, eqs. 14 to 16.
    Deviation: patches are ordered descending; the paper prints ascending, which would insert the least
    salient first, and its own m = 1 equals RISE's score only when descending. The curve starts at
    n = 0, and ties add no patches. Black by default, as RISE deletes and as the authors compute;
    the bias image of eq. 16 is an option.
    """
    size = (frames.shape[2], frames.shape[3])
    places, patches = patch_ranks(ranks, size, patch_px)
    step = patches_per_step or -(-patches // MOST_STEPS)
    counts = torch.tensor([*range(0, patches, step), patches])
    nothing = _filled(frames, fill)
    whole = model(frames) if clean is None else clean
    empty = model(nothing)
    inserted = _scores(model, nothing, frames, places, counts, empty, whole, batch_size)
    deleted = _scores(model, frames, nothing, places, counts, whole, empty, batch_size)
    return InsertionDeletion((counts.double() / patches).to(frames.device), value(inserted), value(deleted))


@torch.no_grad()
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
) -> InsertionDeletion:
    """RISE's two curves: pixels inserted into a blurred frame, and deleted to black.

    Arguments as for `patch_insertion_deletion`; RISE's step is a row of 224 pixels.

    Source: Petsiuk et al. 2018 (RISE), section 3.3.
    Deviation: black is 0 in RGB, where RISE's is 0 after normalisation; see `perturb.blank`.
    """
    pixels = ranks.shape[-1]
    step = pixels_per_step or -(-pixels // MOST_STEPS)
    counts = torch.tensor([*range(0, pixels, step), pixels])
    whole = model(frames) if clean is None else clean
    blurred, black = blank(frames, insertion_fill), blank(frames, deletion_fill)
    inserted = _scores(model, blurred, frames, ranks, counts, model(blurred), whole, batch_size)
    deleted = _scores(model, frames, black, ranks, counts, whole, model(black), batch_size)
    return InsertionDeletion((counts.double() / pixels).to(frames.device), value(inserted), value(deleted))


def _filled(frames: Frames, fill: Fill | Tensor) -> Frames:
    return blank(frames, fill) if isinstance(fill, str) else fill.to(frames).expand_as(frames)


def _scores(
    model: Callable[[Frames], Scores],
    start: Frames,
    end: Frames,
    ranks: Int64[Tensor, "B *methods P"],
    counts: Int64[Tensor, " V"],
    first: Scores,
    last: Scores,
    batch_size: int,
) -> Float[Tensor, "B *methods V K"]:
    """The scores of mixtures with so many first-ranked places from the end picture; its ends are known."""
    frames = len(start)
    per_method = ranks.int().reshape(frames, -1, ranks.shape[-1])
    inner, mixed = counts[1:-1], Mixture(start, end)
    found = []
    for order in per_method.unbind(1):
        points = [first[:, None]]
        for part in batches(len(inner), frames=frames, batch_size=batch_size):
            points.append(model(mixed(order, inner[part])).unflatten(0, (frames, -1)))
        found.append(torch.cat([*points, last[:, None]], 1))
    scores = torch.stack(found, 1)
    return scores.reshape(*ranks.shape[:-1], *scores.shape[2:])
