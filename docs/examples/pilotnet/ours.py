"""An explainer and a metric of one's own: `--method ours:Darkness --measure ours:LowerHalf`."""

from __future__ import annotations

from dataclasses import dataclass

from driving_xai.explain.base import Explainer
from driving_xai.metrics.base import Metric


@dataclass(frozen=True, kw_only=True)
class Darkness(Explainer):
    """How dark a pixel is: an explanation that ignores the model."""

    def _explain(self, model, frames, target):
        return 1 - frames.mean(1)


@dataclass(frozen=True, kw_only=True)
class LowerHalf(Metric):
    """The share of a map's mass in the lower half of the frame, where the road is."""

    name, category, higher_is_better = "lower-half", "localisation", True

    def measure(self, batch, ranked):
        """One value for each frame and method."""
        maps = ranked.saliency.abs()
        yield "map", {"value": maps[..., maps.shape[2] // 2 :, :].sum((2, 3)) / maps.sum((2, 3))}
