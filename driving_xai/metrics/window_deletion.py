"""Deletion over a whole window of a drive: every frame loses the pixels that are most salient in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from driving_xai.errors import DataError
from driving_xai.metrics.base import Category, Columns, Metric
from driving_xai.metrics.batch import EvalBatch, RankedMaps, Window
from driving_xai.metrics.faithfulness import DELETED, columns_of_curve, describe_curve
from driving_xai.metrics.perturbation_curves import PerturbationCurve, Stretch, scores_of_stretches
from driving_xai.metrics.quantities import Quantity
from driving_xai.perturb import FILLS, Fill, Mixture, blank


@dataclass(frozen=True, kw_only=True)
class WindowDeletion(Metric):
    """The area under the last frame's error while every frame of its window loses its most salient pixels.

    Each frame is explained by itself, with the past that the unedited frames before it left, and loses its own
    pixels; the state is carried through the edited window from the unedited past before it. A high area is good
    of an error.

    Args:
        fill: what a removed pixel shows.
        fractions: of each frame's pixels, rising, in [0, 1].
        batch_size: most edited frames in one forward pass, but never fewer than one window of every frame.
        seed: of ties between equal saliencies.

    Source: Tashiro and Awano 2023, Fig. 6, which leaves open whether the frames before are masked too.

    Example:
        >>> from driving_xai.metrics.quantities import STEERING_ERROR
        >>> WindowDeletion().faithful(STEERING_ERROR)
        'high'
    """

    name: ClassVar[str] = "deletion-window"
    category: ClassVar[Category] = "faithfulness"
    higher_is_better: ClassVar[bool] = False

    fill: Fill = "black"
    fractions: tuple[float, ...] = DELETED

    def __post_init__(self) -> None:
        if self.fill not in FILLS:
            raise ValueError(f"got fill {self.fill!r}, expected one of: {', '.join(FILLS)}")

    def require(self, quantity: Quantity) -> None:
        """See `Metric.require`."""
        if quantity.is_probability:
            raise DataError(
                f"measure {self.name} edits windows of a drive, and these are images; take deletion"
            )

    def prefers_high(self, quantity: Quantity) -> bool:
        """Of an error, which rises without evidence."""
        return quantity.without_evidence != "falls"

    @torch.no_grad()
    def measure(self, batch: EvalBatch, ranked: RankedMaps) -> Iterator[tuple[str, Columns]]:
        """The columns for each reference; see `Metric.measure`."""
        if batch.window is None:
            raise DataError(
                f"measure {self.name} needs the frames before; name it as a measure of a run along a drive's shards"
            )
        size = batch.frames.shape[2] * batch.frames.shape[3]
        curve = PerturbationCurve.of_pixels("deletion", self.fractions, pixels=size, fill=self.fill)
        ranks = torch.stack([*ranked.earlier, ranked.ranks], 2)
        yield from columns_of_curve(batch, curve, self._scores(batch, batch.window, ranks, curve))

    def _scores(
        self, batch: EvalBatch, window: Window, ranks: Int64[Tensor, "B M T P"], curve: PerturbationCurve
    ) -> Float[Tensor, "B M V K"]:
        frames = torch.stack([*(each.frames for each in window.earlier), batch.frames], 1)
        flat = frames.flatten(0, 1)
        mixture, counts = Mixture(flat, blank(flat, self.fill)), torch.tensor(curve.counts)
        counts = counts[counts > 0]
        together = frames.shape[:2]

        def variants(order: Int64[Tensor, "N P"], start: int, stop: int) -> Float[Tensor, "B v T 3 H W"]:
            edited = mixture(order, counts[start:stop]).unflatten(0, (*together, -1))
            return edited.transpose(1, 2)

        stretches = (
            Stretch(len(counts), partial(variants, order.flatten(0, 1))) for order in ranks.unbind(1)
        )
        most = max(len(frames), self.batch_size // frames.shape[1])
        found = scores_of_stretches(window.scores, stretches, frames=len(frames), batch_size=most)
        if len(counts) == len(curve.counts):
            return torch.stack(found, 1)
        return torch.stack([torch.cat([batch.clean[:, None], each], 1) for each in found], 1)

    def describe(self, quantity: Quantity) -> dict[str, Any]:
        """See `Metric.describe`."""
        about = describe_curve(quantity, fractions=self.fractions, fill=self.fill)
        edited = "every frame of the window, each by its own map"
        return {**about, "edited": edited, "faithful": self.faithful(quantity)}
