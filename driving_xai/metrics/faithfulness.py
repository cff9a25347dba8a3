"""Metrics of curves: deletion, insertion, and insertion less deletion by pixels and by patches."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from driving_xai.errors import DataError
from driving_xai.metrics.base import Category, Columns, Metric
from driving_xai.metrics.batch import EvalBatch, RankedMaps
from driving_xai.metrics.curves import InsertionDeletionCurves, areas, both_ways
from driving_xai.metrics.perturbation_curves import Edit, PerturbationCurve, scores_along
from driving_xai.metrics.quantities import Quantity
from driving_xai.perturb import CURVE_FILLS, CurveFill, Fill

DELETED = tuple(percent / 100 for percent in range(26))
"""Of pixels, 0 to 25 % in steps of 1 %: Tashiro and Awano 2023, Fig. 6."""
INSERTED = tuple(percent / 100 for percent in range(0, 101, 4))
"""Of pixels: RISE's range, in as many points as deletion."""


@dataclass(frozen=True, kw_only=True)
class _OfCurves(Metric):
    """A metric of perturbation curves; `measured` lets several share forward passes."""

    category: ClassVar[Category] = "faithfulness"

    fill: CurveFill = "black"

    def __post_init__(self) -> None:
        if self.fill not in CURVE_FILLS:
            raise ValueError(f"got fill {self.fill!r}, expected one of: {', '.join(CURVE_FILLS)}")

    @abstractmethod
    def curves(self, batch: EvalBatch) -> tuple[PerturbationCurve, ...]:
        """Along which the model is run."""

    def _shown(self, batch: EvalBatch) -> Fill | Float[Tensor, "3 H W"]:
        """The fill, as a picture where only the data have it."""
        if self.fill != "bias-image":
            return self.fill
        if batch.bias_image is None:
            raise DataError(
                "fill 'bias-image' is the mean of training images, and there are none here; take another fill"
            )
        return batch.bias_image

    @abstractmethod
    def columns(
        self,
        batch: EvalBatch,
        curves: Sequence[PerturbationCurve],
        scores: Sequence[Float[Tensor, "B M V K"]],
    ) -> Iterator[tuple[str, Columns]]:
        """What `measure` gives, of the scores along each curve."""

    @final
    def measure(self, batch: EvalBatch, ranked: RankedMaps) -> Iterator[tuple[str, Columns]]:
        """The columns for each reference; see `Metric.measure`."""
        ((_, found),) = measured({self.name: self}, batch, ranked)
        yield from found

    def prefers_high(self, quantity: Quantity) -> bool:
        """`higher_is_better` of a probability, its opposite of an error, which rises without evidence."""
        return self.higher_is_better == (quantity.without_evidence == "falls")


def measured(
    metrics: Mapping[str, Metric], batch: EvalBatch, ranked: RankedMaps
) -> Iterator[tuple[str, Iterable[tuple[str, Columns]]]]:
    """What each metric measures; those of curves with one fill and batch size run the model together.

    Metrics of different fills do not, so that scores under a fill are those of a run with this fill alone, to the
    last bit. Which metrics and methods run together changes scores by rounding only.

    Args:
        metrics: by name.
        batch: frames, the model, and what is known of them.
        ranked: the maps of several methods.

    Example:
        >>> from driving_xai.targets import output
        >>> from driving_xai.types import Outputs
        >>> net = torch.nn.Sequential(torch.nn.AvgPool2d(10), torch.nn.Flatten())
        >>> net.outputs = Outputs(kind="multiclass", names=("red", "green", "blue"))
        >>> batch = EvalBatch.of(net, torch.rand(1, 3, 10, 10), output(0))
        >>> maps = RankedMaps.of(torch.rand(1, 1, 10, 10))
        >>> [name for name, _ in measured({"a": Deletion(), "b": Insertion()}, batch, maps)]
        ['a', 'b']
    """
    together: dict[tuple[CurveFill, int], dict[str, _OfCurves]] = {}
    for name, metric in metrics.items():
        if isinstance(metric, _OfCurves):
            together.setdefault((metric.fill, metric.batch_size), {})[name] = metric
    found: dict[str, Iterable[tuple[str, Columns]]] = {}
    for (_, batch_size), group in together.items():
        found |= _measured_together(group, batch, ranked, batch_size)
    for name, metric in metrics.items():
        yield name, found[name] if name in found else metric.measure(batch, ranked)


def _measured_together(
    metrics: Mapping[str, _OfCurves], batch: EvalBatch, ranked: RankedMaps, batch_size: int
) -> dict[str, Iterable[tuple[str, Columns]]]:
    curves = {name: metric.curves(batch) for name, metric in metrics.items()}
    wanted = list(dict.fromkeys(chain.from_iterable(curves.values())))
    along = scores_along(
        batch.model, batch.frames, ranked.ranks, wanted, batch_size=batch_size, clean=batch.clean
    )
    scores = dict(zip(wanted, along, strict=True))
    return {
        name: metric.columns(batch, curves[name], [scores[curve] for curve in curves[name]])
        for name, metric in metrics.items()
    }


def columns_of_curve(
    batch: EvalBatch, curve: PerturbationCurve, scores: Float[Tensor, "B M V K"]
) -> Iterator[tuple[str, Columns]]:
    """The quantity along each method's curve of pixels, and its area, for each reference.

    Args:
        batch: what was edited.
        curve: how.
        scores: along it.
    """
    # As edited: a percent of a small frame is no whole number of pixels.
    pixels = batch.frames.shape[2] * batch.frames.shape[3]
    edited = torch.tensor(curve.counts, dtype=torch.float64) / pixels
    for reference, value in batch.references.items():
        heights = value(scores)
        found = areas(edited.tolist(), heights, value(batch.clean[:, None]), quantity=batch.quantity)
        yield reference, {**found._asdict(), "curve": heights, "fractions": edited}


def describe_curve(quantity: Quantity, *, fractions: Sequence[float], fill: CurveFill) -> dict[str, Any]:
    """What the numbers of a curve of pixels mean, as JSON; see `Metric.describe`.

    Args:
        quantity: what the curve is drawn of.
        fractions: of pixels edited.
        fill: what they show.
    """
    return {
        "kind": "curve",
        "quantity": quantity.name,
        "unit": quantity.area_unit,
        "normalised_unit": quantity.unit,
        "fractions": list(fractions),
        "endpoints": "both included",
        "fill": fill,
    }


@dataclass(frozen=True, kw_only=True)
class _Curve(_OfCurves):
    """The area under a quantity, as a growing part of the frame is edited."""

    fractions: tuple[float, ...]

    _edit: ClassVar[Edit]

    def curves(self, batch: EvalBatch) -> tuple[PerturbationCurve, ...]:
        """One, of pixels."""
        pixels, fill = batch.frames.shape[2] * batch.frames.shape[3], self._shown(batch)
        return (PerturbationCurve.of_pixels(self._edit, self.fractions, pixels=pixels, fill=fill),)

    def columns(
        self,
        batch: EvalBatch,
        curves: Sequence[PerturbationCurve],
        scores: Sequence[Float[Tensor, "B M V K"]],
    ) -> Iterator[tuple[str, Columns]]:
        """The quantity along each method's curve, and its area."""
        yield from columns_of_curve(batch, curves[0], scores[0])

    def describe(self, quantity: Quantity) -> dict[str, Any]:
        """See `Metric.describe`."""
        about = describe_curve(quantity, fractions=self.fractions, fill=self.fill)
        return {**about, "faithful": self.faithful(quantity)}


@dataclass(frozen=True, kw_only=True)
class Deletion(_Curve):
    """The area under a quantity while the most salient pixels are removed first.

    A low area is good of a probability, a high one of an error: `result.higher_is_better` says which.

    Args:
        fill: what a removed pixel shows.
        fractions: of pixels removed, rising, in [0, 1]; each removes the nearest whole number.
        batch_size: most edited frames in one forward pass; changes results by rounding only.
        seed: of ties between equal saliencies.

    Source: Petsiuk et al. 2018 (RISE), section 3.3; on steering Tashiro and Awano 2023, section 4.
    Deviation: exactly k pixels by a seeded ranking, so that ties delete no more and no less.

    Example:
        >>> from driving_xai.targets import output
        >>> from driving_xai.types import Outputs
        >>> net = torch.nn.Sequential(torch.nn.AvgPool2d(10), torch.nn.Flatten()).eval()
        >>> net.outputs = Outputs(kind="multiclass", names=("red", "green", "blue"))
        >>> frames = torch.zeros(1, 3, 10, 10)
        >>> frames[:, 0, :2] = 1
        >>> result = Deletion()(net, frames, frames[:, 0], output(0))
        >>> result.curve.shape, result.higher_is_better
        (torch.Size([1, 26]), False)
        >>> bool(result.area < Deletion()(net, frames, -frames[:, 0], output(0)).area)
        True
    """

    name: ClassVar[str] = "deletion"
    _edit: ClassVar[Edit] = "deletion"
    higher_is_better: ClassVar[bool] = False

    fractions: tuple[float, ...] = DELETED


@dataclass(frozen=True, kw_only=True)
class Insertion(_Curve):
    """The area under a quantity while the most salient pixels are shown first.

    A high area is good of a probability, a low one of an error.

    Args:
        fill: what a pixel shows before it is inserted.
        fractions: of pixels shown, rising, in [0, 1]; each shows the nearest whole number.
        batch_size: most edited frames in one forward pass; changes results by rounding only.
        seed: of ties between equal saliencies.

    Source: Petsiuk et al. 2018 (RISE), section 3.3.
    Deviation: as for `Deletion`.

    Example:
        >>> from driving_xai.metrics.quantities import STEERING_ERROR
        >>> Insertion(fill="blur").describe(STEERING_ERROR)["faithful"]
        'low'
    """

    name: ClassVar[str] = "insertion"
    _edit: ClassVar[Edit] = "insertion"
    higher_is_better: ClassVar[bool] = True

    fractions: tuple[float, ...] = INSERTED


@dataclass(frozen=True, kw_only=True)
class _Difference(_OfCurves):
    """The area under insertion less that under deletion."""

    higher_is_better: ClassVar[bool] = True

    @property
    def _insertion_fill(self) -> CurveFill:
        """What a pixel shows before it is inserted."""
        return self.fill

    @property
    def _side_px(self) -> int:
        return 1

    @property
    def _per_step(self) -> int | None:
        return None

    def curves(self, batch: EvalBatch) -> tuple[PerturbationCurve, ...]:
        """Insertion, then deletion."""
        shown = self._shown(batch)
        return both_ways(
            (batch.frames.shape[2], batch.frames.shape[3]),
            insertion_fill="blur" if self._insertion_fill == "blur" else shown,
            deletion_fill=shown,
            patch_px=self._side_px,
            patches_per_step=self._per_step,
        )

    def columns(
        self,
        batch: EvalBatch,
        curves: Sequence[PerturbationCurve],
        scores: Sequence[Float[Tensor, "B M V K"]],
    ) -> Iterator[tuple[str, Columns]]:
        """The difference for each method."""
        found = InsertionDeletionCurves.of(curves[0].counts, *map(batch.values, scores))
        differences = (found.insertion - found.deletion).unbind(1)
        for reference, value, curve in zip(batch.references, found.score.unbind(1), differences, strict=True):
            yield reference, {"value": value, "curve": curve, "fractions": found.fractions}

    def describe(self, quantity: Quantity) -> dict[str, Any]:
        """See `Metric.describe`."""
        return {
            "kind": "difference of curves",
            "quantity": quantity.name,
            "unit": quantity.unit,
            "normalised_unit": quantity.unit,
            "patch_px": self._side_px,
            **({} if self._per_step is None else {"patches_per_step": self._per_step}),
            "fill": {"insertion": self._insertion_fill, "deletion": self.fill},
            "range": "0 to 1, endpoints included",
            "faithful": self.faithful(quantity),
        }


@dataclass(frozen=True, kw_only=True)
class InsertionDeletion(_Difference):
    """The area under insertion into a blurred frame less that under deletion, over all pixels.

    From -1 to 1 of a probability, where high is good.

    Args:
        fill: what a deleted pixel shows; insertion starts from a blur in any case.
        batch_size: most edited frames in one forward pass; changes results by rounding only.
        seed: of ties between equal saliencies.

    Source: Petsiuk et al. 2018 (RISE), section 3.3.
    Deviation: black is 0 in RGB, where RISE's is 0 after normalisation; see `perturb.blank`.

    Example:
        >>> from driving_xai.metrics.quantities import PROBABILITY
        >>> InsertionDeletion().describe(PROBABILITY)["fill"]
        {'insertion': 'blur', 'deletion': 'black'}
    """

    name: ClassVar[str] = "insertion-deletion"

    @property
    def _insertion_fill(self) -> CurveFill:
        return "blur"


@dataclass(frozen=True, kw_only=True)
class PID(_Difference):
    """Patch insertion and deletion: the area under insertion less that under deletion, by square patches.

    From -1 to 1 of a probability, where high is good.

    Args:
        patch_px: side of the patches.
        patches_per_step: between two points of a curve; None makes at most `curves.MOST_STEPS` steps.
        fill: what a patch shows that is deleted, or not inserted yet.
        batch_size: most edited frames in one forward pass; changes results by rounding only.
        seed: of ties between equal saliencies.

    Source: Iida et al. 2022, eqs. 14 to 16.
    Deviation: see `curves.patch_insertion_deletion`; black is the default, as in the authors' code, and the bias
    image of eq. 16 is `fill="bias-image"`.

    Example:
        >>> PID(patch_px=16).label
        'pid-16'
    """

    name: ClassVar[str] = "pid"

    patch_px: int = 8
    patches_per_step: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patches_per_step is not None and self.patches_per_step < 1:
            raise ValueError(f"got patches_per_step {self.patches_per_step}, expected 1 or more, or None")
        if self.patch_px < 1:
            raise ValueError(f"got patch_px {self.patch_px}, expected 1 or more")

    @property
    def label(self) -> str:
        """The name with the patches' side."""
        return f"pid-{self.patch_px}"

    @property
    def _side_px(self) -> int:
        return self.patch_px

    @property
    def _per_step(self) -> int | None:
        return self.patches_per_step
