"""Rank correlation of a map with LIME, by patch: does it order patches as hiding them does?

Patches are the cells of a grid laid over the frame. Random patterns hide about half of them; a linear
model of the scores on what was left gives each patch a coefficient. A map that agrees in rank explains the
model that was hidden from, which need not be the one that wrote the map.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from driving_xai.errors import DataError
from driving_xai.explain.lime import LIME, Grid
from driving_xai.metrics.base import Category, Columns, Metric
from driving_xai.metrics.batch import EvalBatch, RankedMaps
from driving_xai.metrics.quantities import Quantity
from driving_xai.metrics.statistics import spearman
from driving_xai.perturb import Fill
from driving_xai.types import FrameModel, Saliency, Scores, Target

PATCHES = Grid(rows=7, columns=7)
"""Of 32 x 32 pixels on frames of 224 x 224."""

_ROUNDING = 64
"""Units in the last place of the largest score by which passes of the same frame may differ."""


def patch_lime(
    *,
    grid: Grid = PATCHES,
    samples: int = 1000,
    shown: float = 0.5,
    fill: Fill = "black",
    seed: int = 0,
    batch_size: int = 32,
) -> LIME:
    """LIME on a grid of patches: ordinary least squares with an intercept, every pattern weighing the same.

    Source: Ribeiro et al. 2016; Baumhauer et al. 2021, section 4.3.
    Deviation: the paper leaves open how often a patch is shown, what hides it and which score is fitted;
    they are arguments, here and of the call.
    """
    return LIME(
        segmentation=grid,
        samples=samples,
        shown=shown,
        kernel_width=None,
        ridge=0,
        fill=fill,
        seed=seed,
        batch_size=batch_size,
    )


def patch_means(maps: Saliency, *, grid: Grid = PATCHES) -> Float[np.ndarray, "B n"]:
    """The mean of each map over each patch, in reading order: what a map on the frame's pixels says of them.

    Raises:
        ValueError: a side has more patches than pixels.
    """
    height, width = maps.shape[1:]
    if height < grid.rows or width < grid.columns:
        raise ValueError(
            f"maps are {height} x {width}; expected at least {grid.rows} x {grid.columns}, a pixel for a patch"
        )
    patch = torch.from_numpy(grid(np.empty((height, width, 3)))).flatten().to(maps.device)
    sums = maps.new_zeros(len(maps), grid.rows * grid.columns, dtype=torch.float64)
    sums.index_add_(1, patch, maps.flatten(1).double())
    return (sums / torch.bincount(patch)).cpu().numpy()


def lime_rank_correlation(
    lime: Float[np.ndarray, "B n"], maps: Float[np.ndarray, "B n"]
) -> Float[np.ndarray, " B"]:
    """Spearman's correlation of each map with LIME's coefficients over the patches, from -1 to 1.

    Equal values share the mean of their ranks: a bounded selection has many. NaN where a map or the
    coefficients are the same on every patch, which orders nothing.

    Args:
        lime: of each patch, the coefficients of `patch_lime().fit(...)`.
        maps: values of the same patches, in the same order; `patch_means` has them of a map on pixels.

    Raises:
        ValueError: the shapes differ, or a value is not finite.

    Source: Baumhauer et al. 2021, Table 2; Spearman 1904.

    Example:
        >>> lime_rank_correlation(np.array([[0.1, 0.5, 0.2]]), np.array([[0.0, 9.0, 0.0]])).round(3)
        array([0.866])
    """
    lime, maps = np.asarray(lime, dtype=np.float64), np.asarray(maps, dtype=np.float64)
    if lime.shape != maps.shape:
        raise ValueError(
            f"got coefficients of shape {lime.shape} and maps of {maps.shape}; expected the same"
        )
    if not (np.isfinite(lime).all() and np.isfinite(maps).all()):
        raise ValueError("got values that are not finite; drop those frames first")
    return spearman(lime, maps)


@dataclass(frozen=True, kw_only=True)
class LimeRankCorrelation(Metric):
    """Spearman's correlation of a map's patches with LIME's coefficients; high is good. One fit serves all methods.

    LIME fits what is explained: the probability of an image's output, of steering the target itself, which
    for `magnitude` keeps the side of the unedited frame. Its patterns are the seed's, the same for every frame.
    It is fitted on the explained network, or on the batch's `baseline`: the paper compares an interpretable
    network's map with LIME on the one that it was made from. A map that was made of as many cells as there are
    patches is compared cell by patch; of any other map each patch counts as its mean.

    Args:
        grid: the patches.
        patterns: that LIME is fitted on.
        fill: what a hidden patch shows.
        batch_size: most edited frames in one forward pass; changes results by rounding only.
        seed: of the patterns.

    Source: Baumhauer et al. 2021, Table 2.
    Deviation: the paper leaves open which score is fitted, and has image models only.

    Example:
        >>> LimeRankCorrelation(patterns=200).label
        'lime-rank-correlation'
    """

    name: ClassVar[str] = "lime-rank-correlation"
    category: ClassVar[Category] = "faithfulness"
    higher_is_better: ClassVar[bool] = True

    grid: Grid = PATCHES
    patterns: int = 1000
    fill: Fill = "black"

    def measure(self, batch: EvalBatch, ranked: RankedMaps) -> Iterator[tuple[str, Columns]]:
        """A correlation for each method, NaN where its map orders nothing; see `Metric.measure`.

        Raises:
            DataError: the frames have fewer pixels than the grid has patches.
        """
        height, width = batch.frames.shape[2:]
        if height < self.grid.rows or width < self.grid.columns:
            raise DataError(
                f"frames are {height} x {width} px; lime-rank-correlation lays {self.grid.rows} x "
                f"{self.grid.columns} patches over them: prepare larger frames, or leave the measure out"
            )
        lime = patch_lime(
            grid=self.grid,
            samples=self.patterns,
            fill=self.fill,
            seed=self.seed,
            batch_size=self.batch_size,
        )
        fitted_on = batch if batch.baseline is None else _on_baseline(batch, batch.baseline)
        fitted = lime.fit(fitted_on.model, batch.frames, _change_of_explained(fitted_on))
        coefficients = torch.stack([each.coefficients for each in fitted]).cpu().numpy()
        found = [
            lime_rank_correlation(coefficients, self._patches(ranked, method))
            for method in range(ranked.saliency.shape[1])
        ]
        yield "lime", {"value": torch.from_numpy(np.stack(found, 1))}

    def cell_grid(self, batch: EvalBatch) -> tuple[int, int]:
        """The patches; see `Metric.cell_grid`."""
        return self.grid.rows, self.grid.columns

    def _patches(self, ranked: RankedMaps, method: int) -> Float[np.ndarray, "B n"]:
        """A map's own cells where there is one for each patch, else its means over the patches."""
        own = ranked.cells_on(method, (self.grid.rows, self.grid.columns))
        if own is None:
            values = patch_means(ranked.saliency[:, method], grid=self.grid)
        else:
            values = own.flatten(1).cpu().numpy()
        # As in a ranking of pixels, values equal in float32 are equal.
        return values.astype(np.float32)

    def describe(self, quantity: Quantity) -> dict[str, Any]:
        """See `Metric.describe`."""
        return {
            "kind": "rank correlation",
            "reference": "LIME's worth of each patch",
            "quantity": quantity.name if quantity.is_probability else "explained output",
            "unit": "Spearman's correlation",
            "patches": [self.grid.rows, self.grid.columns],
            "patterns": self.patterns,
            "fill": self.fill,
            "faithful": self.faithful(quantity),
        }


@torch.no_grad()
def _on_baseline(batch: EvalBatch, baseline: FrameModel) -> EvalBatch:
    """The same frames and explained outputs, as another network scores them."""
    return batch._replace(model=baseline, clean=baseline(batch.frames))


def _change_of_explained(batch: EvalBatch) -> Target:
    """What is explained of a frame's variant, less what it is of the unedited frame.

    The difference takes nothing from LIME's coefficients. A change no larger than what other batch sizes make of
    the same frame is none: where no pattern changes anything the coefficients are zero, and no order is made of
    rounding.
    """

    def explained(scores: Scores) -> Float[Tensor, " B"]:
        if batch.quantity.is_probability:
            return batch.references["target"](scores.double()[:, None])[:, 0]
        return batch.target(scores.double())

    unedited = explained(batch.clean)
    rounding = _ROUNDING * torch.finfo(batch.clean.dtype).eps * batch.clean.abs().amax(1)

    def change(scores: Scores) -> Float[Tensor, " B"]:
        # Of the scores themselves: a probability near one changes by less than its logits' rounding.
        same = (scores - batch.clean).abs().amax(1) <= rounding
        return (explained(scores) - unedited).masked_fill(same, 0)

    return change
