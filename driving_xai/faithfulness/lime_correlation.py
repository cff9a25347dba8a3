"""Does a map order patches as hiding them does? Rank correlation with LIME by patch.

Patches are the cells of a grid laid over the frame. Random patterns hide about half of them; a linear
model of the scores on what was left gives each patch a worth. A map that agrees in rank explains the
model that was hidden from, which need not be the one that wrote the map.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor

from driving_xai.contracts import FrameModel, Frames, Target


@dataclass(frozen=True)
class PatchLIME:
    """LIME on a grid of patches: ordinary least squares with an intercept, without weights.

    All frames share the patterns, so that the fit is one product with a pseudo-inverse.

    Source: Ribeiro et al. 2016; Baumhauer et al. 2021, section 4.3.
    Deviation: the paper leaves open how often a patch stays, what hides it and which score is fitted.
    Here: half the time, black, and what `target` says.

    Example:
        >>> from driving_xai.models.steering import SteeringConfig, SteeringModel
        >>> from driving_xai.targets import magnitude
        >>> model = SteeringModel(SteeringConfig(hidden_size=8)).eval()
        >>> PatchLIME(grid=(2, 4), patterns=50)(model.at(None), torch.rand(3, 80, 160), magnitude).shape
        (2, 4)
    """

    grid: tuple[int, int] = (7, 7)
    """Rows and columns; 7 x 7 are patches of 32 x 32 on 224 x 224."""
    patterns: int = 1000
    kept: float = 0.5
    """Probability that a patch stays."""
    fill: float = 0.0
    """What hides a patch, in every channel."""
    seed: int = 0

    def __post_init__(self) -> None:
        patches = self.grid[0] * self.grid[1]
        if self.patterns <= patches or not 0 < self.kept < 1:
            raise ValueError(
                f"patterns is {self.patterns}, kept {self.kept}; expected more than the {patches} patches, "
                "and between 0 and 1"
            )

    @cached_property
    def left(self) -> Bool[np.ndarray, "P n"]:
        """Which patches each pattern leaves, in reading order."""
        size = (self.patterns, self.grid[0] * self.grid[1])
        return np.random.default_rng(self.seed).random(size) < self.kept

    @cached_property
    def _solver(self) -> Float[np.ndarray, "n P"]:
        design = np.column_stack([np.ones(self.patterns), self.left])
        return np.linalg.pinv(design)[1:]

    def occlusions(self, frame: Float[Tensor, "3 H W"], *, batch_size: int = 64) -> Iterator[Frames]:
        """The frame under every pattern, in order, a batch at a time."""
        rows, columns = (
            torch.arange(pixels, device=frame.device) * cells // pixels
            for pixels, cells in zip(frame.shape[1:], self.grid, strict=True)
        )
        for start in range(0, self.patterns, batch_size):
            left = torch.from_numpy(self.left[start : start + batch_size]).to(frame.device)
            mask = left.unflatten(1, self.grid)[:, rows][:, :, columns]
            yield torch.where(mask[:, None], frame, self.fill)

    def fit(self, scores: Float[np.ndarray, "... P"]) -> Float[np.ndarray, "... n"]:
        """The worth of each patch, in the unit of the scores under each pattern; any number of frames."""
        return np.asarray(scores, dtype=np.float64) @ self._solver.T

    @torch.no_grad()
    def __call__(
        self, model: FrameModel, frame: Float[Tensor, "3 H W"], target: Target, *, batch_size: int = 64
    ) -> Float[np.ndarray, "h w"]:
        """The worth of each patch of one frame for the target; one forward pass a pattern."""
        batches = self.occlusions(frame, batch_size=batch_size)
        scores = torch.cat([target(model(batch)) for batch in batches])
        return self.fit(scores.double().cpu().numpy()).reshape(self.grid)


def lime_rank_correlation(
    lime: Float[np.ndarray, "B n"], maps: Float[np.ndarray, "B n"]
) -> Float[np.ndarray, " B"]:
    """Spearman's correlation of each map with LIME's worths over the patches, from -1 to 1.

    Equal values share the mean of their ranks: a bounded selection has many. NaN where a map or the worths
    are the same on every patch, which orders nothing.

    Args:
        lime: worth of each patch, from `PatchLIME`.
        maps: values of the same patches, in the same order.

    Raises:
        ValueError: the shapes differ, or a value is not finite.

    Source: Baumhauer et al. 2021, Table 2; Spearman 1904.

    Example:
        >>> lime_rank_correlation(np.array([[0.1, 0.5, 0.2]]), np.array([[0.0, 9.0, 0.0]])).round(3)
        array([0.866])
    """
    lime, maps = np.asarray(lime, dtype=np.float64), np.asarray(maps, dtype=np.float64)
    if lime.shape != maps.shape:
        raise ValueError(f"got worths of shape {lime.shape} and maps of {maps.shape}; expected the same")
    if not (np.isfinite(lime).all() and np.isfinite(maps).all()):
        raise ValueError("got values that are not finite; drop those frames first")
    ranks = [stats.rankdata(values, axis=1) for values in (lime, maps)]
    ours, theirs = (each - each.mean(1, keepdims=True) for each in ranks)
    length = np.sqrt((ours**2).sum(1) * (theirs**2).sum(1))
    with np.errstate(invalid="ignore"):
        return np.where(length > 0, (ours * theirs).sum(1) / length, np.nan)
