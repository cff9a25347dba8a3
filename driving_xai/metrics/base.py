"""Base classes of metrics: of maps, and of explainers; and what a metric returns."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from driving_xai.errors import DataError
from driving_xai.explain.base import Explainer
from driving_xai.explain.cells import CellValues
from driving_xai.metrics.aupc import Statistic
from driving_xai.metrics.batch import EvalBatch, Mask, RankedMaps
from driving_xai.metrics.quantities import Quantity
from driving_xai.models.capabilities import frame_model, require_eval_mode, unwrapped
from driving_xai.models.forward_trace import frames_taken
from driving_xai.targets import checked
from driving_xai.types import Frames, Saliency, Target

Category = Literal["faithfulness", "confidence", "localisation", "complexity", "robustness", "randomisation"]
"""The field's families of metrics."""
Need = Literal["ground truth", "probability"]
"""What a metric may need: the pixels that cause the label, or a quantity that is a probability."""
Columns = Mapping[str, Tensor]
"""A `value` [B, M] for each frame and method, and with it, where there are such, `normalised`,
`base_corrected`, `chance` [B, M], `curve` [B, M, V] and the curve's `fractions` [V]."""


@dataclass(frozen=True, kw_only=True)
class MetricResult:
    """What a metric says of each of B maps.

    Args:
        value: in `unit`; NaN where the map says nothing.
        unit: of the value.
        higher_is_better: of this value, for this model.
        curve: the quantity as more of the frame is edited, where the metric has a curve.
        fractions: of pixels, patches or tokens that are edited, for each point of the curve.
        normalised: the area divided by the range of fractions.
        base_corrected: the area above the unedited frame's height.
        chance: what a random map reaches on average.
        mean: over the frames that have a value; of metrics that are of all frames together, their value.

    Example:
        >>> MetricResult(value=torch.tensor([0.2, 0.4]), unit="probability", higher_is_better=False, mean=0.3).area
        tensor([0.2000, 0.4000])
    """

    value: Float[Tensor, " B"]
    unit: str
    higher_is_better: bool
    mean: float
    curve: Float[Tensor, "B V"] | None = None
    fractions: tuple[float, ...] | None = None
    normalised: Float[Tensor, " B"] | None = None
    base_corrected: Float[Tensor, " B"] | None = None
    chance: Float[Tensor, " B"] | None = None

    @property
    def area(self) -> Float[Tensor, " B"]:
        """The area under each curve, which is the value of metrics of curves."""
        return self.value


@dataclass(frozen=True, kw_only=True)
class Metric(ABC):
    """Scores maps. It holds its options and no model, so that one object serves any.

    A subclass says `name`, `category` and `higher_is_better`, and computes in `measure`.

    Args:
        batch_size: most edited frames in one forward pass, but never fewer than one of every frame; changes
            results by rounding only.
        seed: of ties between equal saliencies, and of metrics that draw.

    Example:
        >>> class Mass(Metric):
        ...     name, category, higher_is_better = "mass", "localisation", False
        ...     def measure(self, batch, ranked):
        ...         yield "map", {"value": ranked.saliency.mean((2, 3))}
        >>> from driving_xai.targets import output
        >>> from driving_xai.types import Outputs
        >>> net = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten()).eval()
        >>> net.outputs = Outputs(kind="multiclass", names=("red", "green", "blue"))
        >>> Mass()(net, torch.rand(2, 3, 4, 4), torch.ones(2, 4, 4), output(0)).value
        tensor([1., 1.])
    """

    name: ClassVar[str]
    category: ClassVar[Category]
    higher_is_better: ClassVar[bool]
    """Of a quantity that falls without evidence, as a probability does; see `prefers_high`."""
    needs: ClassVar[Need | None] = None

    batch_size: int = 32
    seed: int = 0

    @abstractmethod
    def measure(self, batch: EvalBatch, ranked: RankedMaps) -> Iterator[tuple[str, Columns]]:
        """The columns for each reference that the metric compares with.

        Args:
            batch: frames, the model, and what is known of them.
            ranked: the maps of several methods.
        """

    def cell_grid(self, batch: EvalBatch) -> tuple[int, int] | None:
        """Rows and columns of the cells that are ranked, where it is not pixels.

        A map that was made of such cells is ranked by them; any other by its means over them.
        """
        return None

    @classmethod
    def of_set(cls) -> Statistic | None:
        """Where the value is of all frames together: how it is made of their mean curve."""
        return None

    def describe(self, quantity: Quantity) -> dict[str, Any]:
        """What the numbers mean, as JSON; `faithful` says whether `high` or `low` is good.

        Args:
            quantity: what the model's curves are drawn of.
        """
        return {"kind": self.category, "faithful": self.faithful(quantity)}

    @property
    def label(self) -> str:
        """The name with what distinguishes this object: `pid-8`."""
        return self.name

    def prefers_high(self, quantity: Quantity) -> bool:
        """Whether a high value is good where curves are drawn of this quantity."""
        return self.higher_is_better

    def faithful(self, quantity: Quantity) -> Literal["high", "low"]:
        """`high` or `low`: which end is good."""
        return "high" if self.prefers_high(quantity) else "low"

    def require(self, quantity: Quantity) -> None:
        """Raises DataError where the metric is not defined for this quantity."""
        if self.needs == "probability" and not quantity.is_probability:
            raise DataError(
                f"measure {self.label} needs a probability, and this is scored by its {quantity.name}"
            )

    def require_mask(self, given: bool) -> None:
        """Raises DataError where the metric compares with a mask and none is given."""
        if self.needs == "ground truth" and not given:
            raise DataError(f"measure {self.label} needs ground_truth_mask: the pixels that cause the label")

    def __call__(
        self,
        model: object,
        frames: Frames,
        maps: Float[Tensor, "..."],
        target: Target,
        *,
        cells: CellValues | None = None,
        ground_truth_mask: Mask | None = None,
        labels: Float[Tensor, "B K"] | None = None,
    ) -> MetricResult:
        """Scores one map a frame.

        Args:
            model: a network with `outputs`, its view of one instant, or a loaded checkpoint; see `EvalBatch.of` for what is drawn of them.
            frames: RGB in [0, 1].
            maps: on the frames' grid, finite.
            target: what the maps explain.
            cells: that the maps are pictures of, for metrics of patches; see `explain.cells.cells_kept`.
            ground_truth_mask: the pixels that cause the label, for metrics of localisation.
            labels: 0 or 1 for each output, for accuracy under masks.

        Raises:
            ValueError: there are no frames, maps are not on the frames' grid, or the target does not give one number for each frame.
            NonFiniteError: a map, or a score of an unedited frame, has NaN or infinity.
            UnsupportedModelError: the model says nothing of its outputs, is in training mode, or does not take frames
                of this size.
            DataError: the metric needs a mask, labels or a probability, and there is none.
        """
        expected = (len(frames), *frames.shape[2:])
        if tuple(maps.shape) != expected:
            raise ValueError(
                f"got maps of shape {tuple(maps.shape)}; expected {expected}, one a frame on its grid"
            )
        if len(frames) == 0:
            raise ValueError("got no frames; give one or more")
        require_eval_mode(model)
        view = frame_model(model)
        with frames_taken(view, frames):
            batch = EvalBatch.of(
                view, frames, checked(target), ground_truth_mask=ground_truth_mask, labels=labels
            )
        self.require(batch.quantity)
        if self.needs == "ground truth" and ground_truth_mask is None:
            raise DataError(f"measure {self.label} needs ground_truth_mask: the pixels that cause the label")
        ranked = RankedMaps.of(maps.detach().float()[:, None], seed=self.seed, cells=[cells])
        _, columns = next(iter(self.measure(batch, ranked)))
        return self._result(columns, batch.quantity)

    def _result(self, columns: Columns, quantity: Quantity) -> MetricResult:
        of_frame = {name: each[:, 0] for name, each in columns.items() if name != "fractions"}
        curve = of_frame.get("curve")
        value = of_frame.pop("value", None)
        if value is None:
            assert curve is not None
            value = curve.new_full((len(curve),), math.nan)
        statistic = self.of_set()
        if statistic is None:
            mean = float(value[value.isfinite()].double().mean())
        else:
            assert curve is not None
            mean = float(statistic(curve.double().mean(0).cpu().numpy()))
        return MetricResult(
            value=value,
            unit=self.describe(quantity).get("unit", "share"),
            higher_is_better=self.prefers_high(quantity),
            mean=mean,
            fractions=tuple(columns["fractions"].tolist()) if "fractions" in columns else None,
            **of_frame,
        )


@dataclass(frozen=True, kw_only=True)
class ExplainerMetric(ABC):
    """Scores an explainer: what its maps do as the model or the frame changes.

    Such a metric makes maps itself. It is therefore called with the explainer in the place of the maps.

    Args:
        seed: of what the metric draws.
    """

    name: ClassVar[str]
    category: ClassVar[Category]
    higher_is_better: ClassVar[bool]

    seed: int = 0

    def __call__(
        self,
        model: object,
        frames: Frames,
        explainer: Explainer,
        target: Target,
        *,
        maps: Saliency | None = None,
    ) -> MetricResult:
        """Scores the explainer on each frame.

        Args:
            model: a network, or a loaded checkpoint.
            frames: RGB in [0, 1].
            explainer: makes the maps.
            target: what is explained.
            maps: the explainer's of these frames, where they are known.

        Raises:
            UnsupportedModelError: the model lacks what the explainer or the metric needs, or is in training mode.
            ValueError: the target does not give one number for each frame.
        """
        require_eval_mode(model)
        target = checked(target)
        # What a network is wrapped in for speed hides its layers.
        model = unwrapped(model)
        if maps is None:
            maps = explainer(model, frames, target)
        return self.measure(model, frames, explainer, target, maps)

    @abstractmethod
    def measure(
        self, model: object, frames: Frames, explainer: Explainer, target: Target, maps: Saliency
    ) -> MetricResult:
        """The score of each frame.

        Args:
            model: in eval mode.
            frames: RGB in [0, 1].
            explainer: for maps of other frames or of other weights.
            target: what is explained.
            maps: the explainer's of these frames.
        """
