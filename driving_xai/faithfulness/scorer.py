"""One batch of instants to per-frame rows: explain, rank, edit, measure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from driving_xai.contracts import Explainer, FrameModel, Frames, Saliency, Scores, Target
from driving_xai.faithfulness.curve import area, rank
from driving_xai.faithfulness.localisation import Causes
from driving_xai.faithfulness.measures import (
    MEASURES,
    CurveMeasure,
    LocalisationMeasure,
    SteeringError,
    angle_deg,
)
from driving_xai.perturb import Fill, pixel_counts


class Maps(NamedTuple):
    """The maps of several methods for the same frames."""

    saliency: Float[Tensor, "B M H W"]
    ranks: Int64[Tensor, "B M P"]
    degenerate: Bool[Tensor, "B M"]
    """Whether a map is constant, zero everywhere included: it says nothing, and its order is the draw's."""


class Instant(NamedTuple):
    """A batch of frames with what is known of them."""

    model: FrameModel
    frames: Frames
    clean: Scores
    truth_deg: Float64[Tensor, " B"]
    """NaN where unknown."""
    degrees_per_unit: Float64[Tensor, " B"]
    causes: Causes | None


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Scores several methods under several measures on the same frames, sharing the clean pass."""

    explainers: Mapping[str, Explainer]
    measures: Sequence[str]
    target: Target
    fill: Fill
    batch_size: int
    seed: int
    """Of ties."""

    def table(self, instant: Instant) -> pd.DataFrame:
        """A row for each frame, measure, reference and method; `position` is the frame's in the batch."""
        maps = self.explain(instant.model, instant.frames)
        prediction = angle_deg(instant.clean, instant.degrees_per_unit)
        known = {
            "prediction": prediction.cpu().numpy(),
            "truth": instant.truth_deg.cpu().numpy(),
            "error": (prediction - instant.truth_deg).abs().cpu().numpy(),
        }
        tables = []
        for name in self.measures:
            measure = MEASURES[name]
            measured = (
                self._along_curve(measure, instant, maps)
                if isinstance(measure, CurveMeasure)
                else self._against_causes(measure, instant, maps)
            )
            for reference, columns in measured:
                tables.append(self._rows(name, reference, columns, known, maps.degenerate))
        return pd.concat(tables, ignore_index=True)

    def explain(self, model: FrameModel, frames: Frames) -> Maps:
        """Each method's maps, ranked once.

        Raises:
            ValueError: a map is not finite or not on the frames' grid.
        """
        saliency = torch.stack([self._map(name, model, frames) for name in self.explainers], 1)
        # A generator of the same seed each time: a map's order does not depend on batch or method.
        ranks = rank(saliency.flatten(0, 1), torch.Generator().manual_seed(self.seed))
        flat = saliency.flatten(2)
        return Maps(saliency, ranks.unflatten(0, saliency.shape[:2]), flat.amax(2) == flat.amin(2))

    def _map(self, name: str, model: FrameModel, frames: Frames) -> Saliency:
        saliency = self.explainers[name](model, frames, self.target)
        expected = (len(frames), *frames.shape[2:])
        if saliency.shape != expected:
            raise ValueError(f"method {name} gave maps of shape {tuple(saliency.shape)}, expected {expected}")
        return saliency.float()

    def _along_curve(
        self, measure: CurveMeasure, instant: Instant, maps: Maps
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """The error against the truth and against the clean prediction, as the frame is edited."""
        scores = measure.scores(
            instant.model,
            instant.frames,
            maps.ranks,
            measure.fractions,
            fill=self.fill,
            batch_size=self.batch_size,
            clean=instant.clean,
        )
        clean_deg = angle_deg(instant.clean, instant.degrees_per_unit)
        pixels = maps.ranks.shape[-1]
        # As removed: a percent of a small frame is no whole number of pixels.
        fractions = (pixel_counts(measure.fractions, pixels).double() / pixels).tolist()
        span = fractions[-1] - fractions[0]
        for reference, angle in (("truth", instant.truth_deg), ("clean", clean_deg)):
            value = SteeringError(degrees_per_unit=instant.degrees_per_unit, reference_deg=angle)
            curves = value(scores)
            unedited = value(instant.clean[:, None])
            under = area(fractions, curves)
            yield (
                reference,
                {
                    "value": 100 * under,
                    "normalised": under / span,
                    "base_corrected": 100 * (under - span * unedited),
                    "curve": curves,
                },
            )

    def _against_causes(
        self, measure: LocalisationMeasure, instant: Instant, maps: Maps
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        assert instant.causes is not None
        found = [
            measure.localise(saliency, ranks, instant.causes)
            for saliency, ranks in zip(maps.saliency.unbind(1), maps.ranks.unbind(1), strict=True)
        ]
        value, chance = (torch.stack(parts, 1) for parts in zip(*found, strict=True))
        yield "cause", {"value": value, "chance": chance}

    def _rows(
        self,
        measure: str,
        reference: str,
        columns: dict[str, Tensor],
        known: dict[str, np.ndarray],
        degenerate: Bool[Tensor, "B M"],
    ) -> pd.DataFrame:
        count, methods = degenerate.shape
        absent = torch.full((count, methods), torch.nan, dtype=torch.float64)
        table = pd.DataFrame(
            {
                "position": np.repeat(np.arange(count), methods),
                "method": list(self.explainers) * count,
                "measure": measure,
                "reference": reference,
                **{name: np.repeat(values, methods) for name, values in known.items()},
                "degenerate": degenerate.flatten().cpu().numpy(),
            }
        )
        for name in ("value", "normalised", "base_corrected", "chance"):
            table[name] = columns.get(name, absent).flatten().cpu().numpy()
        curves = columns.get("curve")
        table["curve"] = None if curves is None else list(curves.flatten(0, 1).float().cpu().numpy())
        return table
