"""The measures by their literature names, and what a score is worth to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from driving_xai.metrics import localisation
from driving_xai.metrics.aupc import Masking, Statistic
from driving_xai.metrics.batch import Batch, Editing, Maps
from driving_xai.metrics.confidence import (
    SHOWN_FRACTIONS,
    average_drop,
    increase,
    percentage_in,
    scores_of_weighted,
)
from driving_xai.metrics.curves import areas, deletion, insertion
from driving_xai.metrics.localisation import Localisation
from driving_xai.metrics.masked_accuracy import masked_accuracies
from driving_xai.metrics.patches import PATCHES_PX, insertion_deletion, patch_insertion_deletion
from driving_xai.metrics.quantities import Quantity
from driving_xai.metrics.rank_correlation import LimeRankCorrelation
from driving_xai.perturb import Fill, pixel_counts

Columns = Mapping[str, Tensor]
"""Of `results.PER_FRAME_SCHEMA`: a `value` for each frame and method, and what goes with it."""


Need = Literal["causes", "probability"]
"""What a measure may need: the pixels that cause the label, or a quantity that is a probability."""


class Measure(Protocol):
    """Judges the maps of a batch."""

    @property
    def needs(self) -> Need | None: ...

    def __call__(self, batch: Batch, maps: Maps, how: Editing) -> Iterator[tuple[str, Columns]]:
        """The columns for each reference."""
        ...

    def describe(self, quantity: Quantity, *, fill: Fill | None = None) -> dict[str, Any]:
        """What its numbers mean, as JSON.

        Args:
            fill: of the run's `Editing`, None where that is stated elsewhere. The `fill` in the description
                is the one the measure really edits with.
        """
        ...


def statistics_of_sets(names: Iterable[str]) -> dict[str, Statistic]:
    """Of these measures, those whose value is of all frames together and not a mean over frames."""
    found = {name: getattr(MEASURES[name], "of_set", None) for name in names}
    return {name: statistic for name, statistic in found.items() if statistic is not None}


def chosen(names: Iterable[str], masking: Masking) -> dict[str, Measure]:
    """These measures by name, those of accuracy under masks with this masking."""
    known = {**MEASURES, **masked_accuracies(masking)}
    return {name: known[name] for name in names}


@dataclass(frozen=True, kw_only=True)
class CurveMeasure:
    """The area under a quantity, as a growing part of the frame is edited."""

    scores: Callable[..., Float[Tensor, "B *methods V K"]]
    """`curves.deletion` or `curves.insertion`."""
    fractions: tuple[float, ...]
    """Of pixels edited, rising."""
    salient: Literal["removed", "shown"]
    """What happens to the most salient pixels first."""
    needs: Need | None = None

    def __call__(self, batch: Batch, maps: Maps, how: Editing) -> Iterator[tuple[str, Columns]]:
        """The quantity along each method's curve; see `Measure`."""
        scores = self.scores(
            batch.model,
            batch.frames,
            maps.ranks,
            self.fractions,
            fill=how.fill,
            batch_size=how.batch_size,
            clean=batch.clean,
        )
        pixels = maps.ranks.shape[-1]
        # As edited: a percent of a small frame is no whole number of pixels.
        fractions = (pixel_counts(self.fractions, pixels).double() / pixels).tolist()
        for reference, value in batch.references.items():
            curves = value(scores)
            found = areas(fractions, curves, value(batch.clean[:, None]), quantity=batch.quantity)
            yield reference, {**found._asdict(), "curve": curves}

    def describe(self, quantity: Quantity, *, fill: Fill | None = None) -> dict[str, Any]:
        """See `Measure`."""
        rises = (quantity.without_evidence == "rises") == (self.salient == "removed")
        return {
            "kind": "curve",
            "quantity": quantity.name,
            "unit": quantity.area_unit,
            "normalised_unit": quantity.unit,
            "fractions": list(self.fractions),
            "endpoints": "both included",
            **({} if fill is None else {"fill": fill}),
            "faithful": "high" if rises else "low",
        }


@dataclass(frozen=True, kw_only=True)
class LocalisationMeasure:
    """A comparison of the map with the pixels known to cause the label; high is good."""

    localise: Localisation
    needs: Need | None = "causes"

    def __call__(self, batch: Batch, maps: Maps, how: Editing) -> Iterator[tuple[str, Columns]]:
        """Each method's maps against the causes; see `Measure`."""
        assert batch.causes is not None
        found = [
            self.localise(saliency, ranks, batch.causes)
            for saliency, ranks in zip(maps.saliency.unbind(1), maps.ranks.unbind(1), strict=True)
        ]
        value, chance = (torch.stack(parts, 1) for parts in zip(*found, strict=True))
        yield "cause", {"value": value, "chance": chance}

    def describe(self, quantity: Quantity, *, fill: Fill | None = None) -> dict[str, Any]:
        """See `Measure`."""
        return {"kind": "localisation", "reference": "pixels that cause the label", "faithful": "high"}


@dataclass(frozen=True, kw_only=True)
class InsertionDeletionMeasure:
    """The area under insertion less that under deletion, over all pixels; high is good of a probability."""

    patch_px: int | None
    """Side of square patches, both curves on the fill; None is RISE's: pixels, insertion on a blur."""
    needs: Need | None = None

    def __call__(self, batch: Batch, maps: Maps, how: Editing) -> Iterator[tuple[str, Columns]]:
        """The difference for each method; see `Measure`."""
        if self.patch_px is None:
            edited = partial(insertion_deletion, deletion_fill=how.fill)
        else:
            edited = partial(patch_insertion_deletion, patch_px=self.patch_px, fill=how.fill)
        found = edited(
            batch.model,
            batch.frames,
            maps.ranks,
            batch.values,
            batch_size=how.batch_size,
            clean=batch.clean,
        )
        curves = (found.insertion - found.deletion).unbind(1)
        for reference, value, difference in zip(batch.references, found.score.unbind(1), curves, strict=True):
            yield reference, {"value": value, "curve": difference}

    def describe(self, quantity: Quantity, *, fill: Fill | None = None) -> dict[str, Any]:
        """See `Measure`."""
        inserted_on = "blur" if self.patch_px is None else fill
        return {
            "kind": "difference of curves",
            "quantity": quantity.name,
            "unit": quantity.unit,
            "normalised_unit": quantity.unit,
            "patch_px": self.patch_px or 1,
            **({} if fill is None else {"fill": {"insertion": inserted_on, "deletion": fill}}),
            "range": "0 to 1, endpoints included",
            "faithful": "high" if quantity.without_evidence == "falls" else "low",
        }


@dataclass(frozen=True, kw_only=True)
class WeightedFrameMeasure:
    """What a classifier still says of a frame multiplied with its stretched map."""

    compare: Callable[[Tensor, Tensor], Tensor]
    """`confidence.average_drop` or `confidence.increase`."""
    faithful: Literal["high", "low"]
    needs: Need | None = "probability"

    def __call__(self, batch: Batch, maps: Maps, how: Editing) -> Iterator[tuple[str, Columns]]:
        """The percentage for each method; see `Measure`."""
        weighted = [
            scores_of_weighted(batch.model, batch.frames, saliency, batch_size=how.batch_size)
            for saliency in maps.saliency.unbind(1)
        ]
        scores = torch.stack(weighted, 1)
        for reference, value in batch.references.items():
            yield reference, {"value": self.compare(value(batch.clean[:, None])[:, 0], value(scores))}

    def describe(self, quantity: Quantity, *, fill: Fill | None = None) -> dict[str, Any]:
        """See `Measure`."""
        return {
            "kind": "weighted frame",
            "quantity": quantity.name,
            "unit": "percent",
            "fill": "black",
            "faithful": self.faithful,
        }


@dataclass(frozen=True, kw_only=True)
class PercentageInMeasure:
    """The probability that is left where only the most salient pixels are shown, on black."""

    fractions: tuple[float, ...] = SHOWN_FRACTIONS
    needs: Need | None = "probability"

    def __call__(self, batch: Batch, maps: Maps, how: Editing) -> Iterator[tuple[str, Columns]]:
        """A curve over the fractions, and its mean; see `Measure`."""
        shown = percentage_in(
            batch.model,
            batch.frames,
            maps.ranks,
            batch.values,
            fractions=self.fractions,
            batch_size=how.batch_size,
        )
        for reference, left in zip(batch.references, shown.unbind(1), strict=True):
            yield reference, {"value": left.mean(-1), "curve": left}

    def describe(self, quantity: Quantity, *, fill: Fill | None = None) -> dict[str, Any]:
        """See `Measure`."""
        return {
            "kind": "shown pixels",
            "quantity": quantity.name,
            "unit": quantity.unit,
            "normalised_unit": quantity.unit,
            "fractions": list(self.fractions),
            "fill": "black",
            "faithful": "high",
        }


MEASURES: Mapping[str, Measure] = {
    # Tashiro and Awano 2023, Fig. 6: 0 to 25 % in steps of 1 %.
    "deletion": CurveMeasure(
        scores=deletion,
        fractions=tuple(percent / 100 for percent in range(26)),
        salient="removed",
    ),
    # RISE's range, in as many points as deletion.
    "insertion": CurveMeasure(
        scores=insertion,
        fractions=tuple(percent / 100 for percent in range(0, 101, 4)),
        salient="shown",
    ),
    "insertion-deletion": InsertionDeletionMeasure(patch_px=None),
    # Iida et al. 2022, Table 2.
    **{f"pid-{side}": InsertionDeletionMeasure(patch_px=side) for side in PATCHES_PX},
    "average-drop": WeightedFrameMeasure(compare=average_drop, faithful="low"),
    "increase": WeightedFrameMeasure(compare=increase, faithful="high"),
    "percentage-in": PercentageInMeasure(),
    **masked_accuracies(Masking()),
    "lime-rank-correlation": LimeRankCorrelation(),
    "pointing-game": LocalisationMeasure(localise=localisation.pointing_game),
    "mass-inside": LocalisationMeasure(localise=localisation.mass_inside),
    "top-k-precision": LocalisationMeasure(localise=localisation.top_k_precision),
    "auroc": LocalisationMeasure(localise=localisation.auroc),
    "average-precision": LocalisationMeasure(localise=localisation.average_precision),
}
