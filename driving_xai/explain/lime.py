"""LIME: a linear model of what each segment of the frame adds to the target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from driving_xai.errors import OptionError
from driving_xai.explain.base import Explainer, require_at_least
from driving_xai.explain.variants import ReferenceScores, keep
from driving_xai.perturb import Fill, blank
from driving_xai.types import FrameModel, Frames, Saliency, Target

Segmentation = Callable[[Float[np.ndarray, "H W 3"]], Int64[np.ndarray, "H W"]]
"""An RGB frame in [0, 1] to the number of the segment that each pixel belongs to."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Rectangles of equal size, but for rounding."""

    rows: int = 7
    columns: int = 7

    def __call__(self, frame: Float[np.ndarray, "H W 3"]) -> Int64[np.ndarray, "H W"]:
        height, width = frame.shape[:2]
        down, across = (
            np.arange(pixels) * parts // pixels
            for pixels, parts in ((height, self.rows), (width, self.columns))
        )
        return down[:, None] * self.columns + across[None, :]


@dataclass(frozen=True, kw_only=True)
class Slic:
    """Superpixels of alike colour, about `segments` of them.

    Source: Achanta et al. 2012, as in scikit-image.
    """

    segments: int = 50
    compactness: float = 10.0
    """Larger makes them squarer."""

    def __call__(self, frame: Float[np.ndarray, "H W 3"]) -> Int64[np.ndarray, "H W"]:
        from skimage.segmentation import slic  # Slow to import.

        return slic(frame, n_segments=self.segments, compactness=self.compactness, start_label=0)


@dataclass(frozen=True, kw_only=True)
class Quickshift:
    """Superpixels as the lime package cuts them by default; their number follows the frame.

    Source: Vedaldi and Soatto 2008, as in scikit-image; defaults of the lime package.
    """

    kernel_size: float = 4.0
    max_dist: float = 200.0
    ratio: float = 0.2
    seed: int = 0

    def __call__(self, frame: Float[np.ndarray, "H W 3"]) -> Int64[np.ndarray, "H W"]:
        from skimage.segmentation import quickshift  # Slow to import.

        return quickshift(
            frame.astype(np.float64),
            kernel_size=self.kernel_size,
            max_dist=self.max_dist,
            ratio=self.ratio,
            rng=self.seed,
        )


Named = Literal["slic", "quickshift", "grid"]
SEGMENTATIONS: Mapping[Named, Callable[[], Segmentation]] = {
    "slic": Slic,
    "quickshift": Quickshift,
    "grid": Grid,
}
"""By name, each with its own defaults."""


class LocalModel(NamedTuple):
    """The linear model around one frame."""

    segments: Int64[Tensor, "H W"]
    """The segment of each pixel, 0 up to d - 1."""
    coefficients: Float[Tensor, " d"]
    """What showing each segment adds to the target."""


@dataclass(frozen=True, kw_only=True)
class LIME(Explainer):
    """Fits the target of a frame with random segments hidden by a weighted linear model.

    Minimises sum_i w_i (y_i - b - z_i . c)^2 + ridge |c|^2 over patterns z_i of shown segments; w_i falls
    with the cosine distance of z_i from showing all, w = exp(-d^2 / (2 width^2)). A pixel's saliency is
    the coefficient of its segment, with its sign.

    Source: Ribeiro et al. 2016, section 3; kernel, distance, width and ridge as in the lime package.
    Deviation: solved in closed form, without its choice of a few segments; frames with equally many
    segments share their patterns; hidden segments show `fill`, not the segment's mean colour.

    Args:
        segmentation: one of `SEGMENTATIONS`, or a function from an image [H, W, 3] to labels [H, W].
        samples: patterns, 2 or more; the first shows all.
        shown: probability of each segment to be shown, between 0 and 1.
        kernel_width: width of w; None weighs all patterns alike.
        ridge: 0 or more. Ordinary least squares is `kernel_width=None` with `ridge=0`.
        fill: what hides, see `perturb.blank`.
        seed: of the patterns.
        batch_size: most edited frames in one pass, see `perturb.batches`.

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> from driving_xai.models.steering import SteeringConfig, SteeringModel
        >>> from driving_xai.targets import magnitude
        >>> model = SteeringModel(SteeringConfig(hidden_size=8)).eval()
        >>> explain = LIME(segmentation=Grid(rows=2, columns=4), samples=20)
        >>> explain(model.at(None), torch.rand(2, 3, 80, 160), magnitude).shape
        torch.Size([2, 80, 160])
    """

    segmentation: Segmentation | Named = "slic"
    samples: int = 1000
    shown: float = 0.5
    kernel_width: float | None = 0.25
    ridge: float = 1.0
    fill: Fill = "black"
    seed: int = 0
    batch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(
            {"samples": (self.samples, 2), "batch_size": (self.batch_size, 1), "ridge": (self.ridge, 0)}
        )
        if not 0 < self.shown < 1:
            raise ValueError(f"got shown {self.shown}; expected between 0 and 1")
        if self.kernel_width is not None and not self.kernel_width > 0:
            raise ValueError(f"got kernel_width {self.kernel_width}; expected over 0, or none")

    def _explain(self, model: FrameModel, frames: Frames, target: Target) -> Saliency:
        return torch.stack([found.coefficients[found.segments] for found in self.fit(model, frames, target)])

    def fit(self, model: FrameModel, frames: Frames, target: Target) -> list[LocalModel]:
        """The linear model around each frame.

        Raises:
            UnsupportedModelError: the model is in training mode.
            ValueError: the target is not finite, or least squares without a ridge has fewer samples
                than unknowns.
        """
        segments = [self._segments(frame) for frame in frames.detach()]
        drawn = {
            count: self.patterns(count).to(frames.device) for count in {int(s.max()) + 1 for s in segments}
        }
        patterns = [drawn[int(each.max()) + 1] for each in segments]
        hiding = blank(frames, self.fill)

        def shown(part: slice) -> Frames:
            # Selecting numbers is four times as fast as indexing bits.
            kept = [
                z[part].to(frames.dtype).index_select(1, where.flatten())
                for z, where in zip(patterns, segments, strict=True)
            ]
            return keep(frames, hiding, torch.stack(kept).unflatten(2, frames.shape[2:]))

        clean = ReferenceScores(model, frames, target)
        values = clean.of_variants(shown, self.samples, batch_size=self.batch_size)
        solve = {count: self.solver(z) for count, z in drawn.items()}
        return [
            LocalModel(where, (solve[z.shape[1]] @ y.double()).to(y.dtype))
            for where, z, y in zip(segments, patterns, values, strict=True)
        ]

    def patterns(self, segments: int) -> Bool[Tensor, "samples segments"]:
        """Which segments each sample shows: all in the first, the others at random from the seed.

        Raises:
            OptionError: too few samples for least squares without a ridge.
        """
        if self.ridge == 0 and self.samples <= segments:
            raise OptionError(
                f"got {self.samples} samples for {segments} segments without a ridge; expected more samples than segments"
            )
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.rand(self.samples, segments, generator=generator) < self.shown
        drawn[0] = True
        return drawn

    def solver(self, patterns: Bool[Tensor, "samples segments"]) -> Float[Tensor, "segments samples"]:
        """The matrix, in float64, that turns the samples' values into coefficients: one for all frames."""
        shown = patterns.double()
        weights = self._weights(shown)
        # Centring by the weighted mean solves for the intercept.
        centred = shown - (weights @ shown) / weights.sum()
        weighted = centred.T * weights
        gram = weighted @ centred
        gram.diagonal().add_(self.ridge)
        return torch.linalg.pinv(gram, hermitian=True) @ weighted

    def _weights(self, shown: Float[Tensor, "samples segments"]) -> Float[Tensor, " samples"]:
        if self.kernel_width is None:
            return torch.ones_like(shown[:, 0])
        distance = 1 - shown.mean(1).sqrt()  # The cosine distance of bits from all ones.
        return torch.exp(-(distance**2) / (2 * self.kernel_width**2))

    @property
    def _segment(self) -> Segmentation:
        chosen = self.segmentation
        return SEGMENTATIONS[chosen]() if isinstance(chosen, str) else chosen

    def _segments(self, frame: Float[Tensor, "3 H W"]) -> Int64[Tensor, "H W"]:
        labels = self._segment(frame.permute(1, 2, 0).cpu().numpy())
        _, numbered = np.unique(labels, return_inverse=True)
        return torch.from_numpy(numbered.reshape(labels.shape)).to(frame.device)
