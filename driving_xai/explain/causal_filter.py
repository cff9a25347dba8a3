"""Causal filtering: of an attention map, only the regions without which the prediction changes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import ConvexHull, KDTree
from torch import Tensor

from driving_xai.explain.base import Explainer, require_at_least
from driving_xai.explain.seeding import generators
from driving_xai.explain.variants import ReferenceScores, keep
from driving_xai.perturb import Fill, blank
from driving_xai.types import FrameModel, Frames, Saliency, Target

Points = Float[np.ndarray, "n 2"]
"""Row and column, in pixels."""


class Regions(NamedTuple):
    """What a filter found; frames with fewer than R regions have empty ones at the end."""

    attention: Saliency
    masks: Bool[Tensor, "B R H W"]
    changes: Float[Tensor, "B R"]
    """By how much the target changes, either way, when a region is hidden."""
    kept: Bool[Tensor, "B R"]


@dataclass(frozen=True, kw_only=True)
class CausalFilter(Explainer):
    """An attention map cut down to the regions whose hiding changes the target.

    Particles are drawn with the attention as their density; those that lie dense make clusters; the
    convex hull of each cluster is hidden in the frame. Hulls that change the target by too little are
    spurious: the map is zero outside the others, and is zero everywhere where none is left.

    Source: Kim and Canny 2017, causal filtering; Ester et al. 1996 (DBSCAN).
    Deviation: written from descriptions of the method, the paper's own text not being at hand: the
    number of particles, the clusters' density and the threshold are choices of ours. Clusters are of one
    frame alone. A point between two clusters belongs to the one with the nearest core point.

    Args:
        attention: whose maps, >= 0, are filtered.
        particles: drawn for each frame, 1 or more.
        radius: how far neighbours lie apart at most, as a fraction of the frame's diagonal; over 0.
        density: a particle is of a cluster's core where it has so many times the neighbours that an even
            attention would give it; over 0.
        min_share: a region stays that changes the target by this share or more of what the frame's strongest
            region does; 0 or more.
        min_change: and by more than this, in the target's unit; 0 or more.
        fill: what hides a region, see `perturb.blank`.
        seed: of the particles.
        batch_size: most edited frames in one pass, see `perturb.batches`.

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> from driving_xai.explain.attention import LearnedMap
        >>> from driving_xai.models.steering import SteeringConfig, SteeringModel
        >>> from driving_xai.targets import magnitude
        >>> model = SteeringModel(SteeringConfig(hidden_size=8, attention="soft")).eval()
        >>> explain = CausalFilter(attention=LearnedMap())
        >>> explain(model.at(None), torch.rand(2, 3, 80, 160), magnitude).shape
        torch.Size([2, 80, 160])
    """

    attention: Explainer
    particles: int = 500
    radius: float = 0.03
    density: float = 2.0
    min_share: float = 0.1
    min_change: float = 0.0
    fill: Fill = "black"
    seed: int = 0
    batch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(
            {
                "particles": (self.particles, 1),
                "batch_size": (self.batch_size, 1),
                "min_share": (self.min_share, 0),
                "min_change": (self.min_change, 0),
            }
        )
        if not min(self.radius, self.density) > 0:
            raise ValueError(f"got radius {self.radius}, density {self.density}; expected over 0")

    def _check(self, model: object, frames: Frames) -> None:
        self.attention.check(model, frames)

    def _explain(self, model: FrameModel, frames: Frames, target: Target) -> Saliency:
        found = self.regions(model, frames, target)
        causal = (found.masks & found.kept[:, :, None, None]).any(1)
        return found.attention * causal

    def regions(self, model: FrameModel, frames: Frames, target: Target) -> Regions:
        """The regions of each frame's attention, and what each does to the target.

        Raises:
            UnsupportedModelError: the attention is none of this model's, or it is in training mode.
            ValueError: the target or the attention is not finite.
        """
        attention = self.attention(model, frames, target)
        drawn = generators(frames, seed=self.seed)
        found = [self._hulls(each, generator) for each, generator in zip(attention.cpu(), drawn, strict=True)]
        most = max(len(hulls) for hulls in found)
        masks = torch.zeros(len(frames), most, *frames.shape[2:], dtype=torch.bool)
        for mask, hulls in zip(masks, found, strict=True):
            mask[: len(hulls)] = torch.from_numpy(hulls)
        masks = masks.to(frames.device)
        hiding, clean = blank(frames, self.fill), ReferenceScores(model, frames, target)
        if most == 0:
            return Regions(attention, masks, clean.values[:, None][:, :0], masks.flatten(2).any(2))
        values = clean.of_variants(
            lambda part: keep(frames, hiding, ~masks[:, part]), most, batch_size=self.batch_size
        )
        changes = (values - clean.values[:, None]).abs()
        enough = (changes > self.min_change) & (changes >= self.min_share * changes.amax(1, keepdim=True))
        return Regions(attention, masks, changes, enough & masks.flatten(2).any(2))

    def _hulls(
        self, attention: Float[Tensor, "H W"], generator: torch.Generator
    ) -> Bool[np.ndarray, "R H W"]:
        height, width = attention.shape
        weights = attention.clamp_min(0).flatten()
        if not weights.any():
            return np.zeros((0, height, width), dtype=bool)
        pixels = torch.multinomial(weights, self.particles, replacement=True, generator=generator).numpy()
        points = np.stack(np.divmod(pixels, width), 1).astype(np.float64)
        radius_px = self.radius * math.hypot(height, width)
        even = self.particles * math.pi * radius_px**2 / (height * width)
        labels = density_clusters(points, radius_px=radius_px, least=max(2, math.ceil(self.density * even)))
        hulls = [hull_mask(points[labels == label], (height, width)) for label in range(labels.max() + 1)]
        return np.stack(hulls) if hulls else np.zeros((0, height, width), dtype=bool)


def density_clusters(points: Points, *, radius_px: float, least: int) -> Int64[np.ndarray, " n"]:
    """The cluster of each point, from 0 on; -1 where it is of none.

    A point with `least` points, itself included, within the radius is a core point; core points within
    the radius of each other are of one cluster, and others join the nearest core point within it.

    Source: Ester et al. 1996 (DBSCAN).
    """
    pairs = KDTree(points).query_pairs(radius_px, output_type="ndarray")
    core = np.bincount(pairs.ravel(), minlength=len(points)) + 1 >= least
    labels = np.full(len(points), -1)
    if not core.any():
        return labels
    linked = pairs[core[pairs].all(1)]
    graph = coo_array((np.ones(len(linked)), (linked[:, 0], linked[:, 1])), shape=(len(points),) * 2)
    labels[core] = np.unique(connected_components(graph, directed=False)[1][core], return_inverse=True)[1]
    distance, nearest = KDTree(points[core]).query(points[~core])
    labels[~core] = np.where(distance <= radius_px, labels[core][nearest], -1)
    return labels


def hull_mask(points: Points, size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """The pixels whose centre lies in the convex hull of the points' pixels, as squares."""
    corners = (points[:, None] + [(-0.5, -0.5), (-0.5, 0.5), (0.5, -0.5), (0.5, 0.5)]).reshape(-1, 2)
    sides = ConvexHull(corners).equations
    centres = np.indices(size).reshape(2, -1)
    return (sides[:, :2] @ centres + sides[:, 2:] <= 1e-9).all(0).reshape(size)
