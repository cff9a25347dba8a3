"""A batch of frames with what is known of them, and the ranked maps that explain it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from driving_xai.explain.base import Explainer, finite
from driving_xai.explain.cells import CellValues
from driving_xai.metrics.curves import rank
from driving_xai.metrics.quantities import PROBABILITY, Quantity, Value
from driving_xai.models.capabilities import outputs_of, scores_of
from driving_xai.targets import ExplainedScore, explained_by, probabilities, single
from driving_xai.types import FrameModel, Frames, Outputs, Saliency, Scores, Target

Mask = Bool[Tensor, "B H W"]
"""The pixels that cause the label; none or all of a frame where they are unknown."""


class Window(NamedTuple):
    """The frames of drives before a batch's, and the model over whole windows."""

    earlier: tuple[EvalBatch, ...]
    """The batch's drives a frame before and more, the oldest first; each frame with its own past."""
    scores: Callable[[Float[Tensor, "N T 3 H W"]], Scores]
    """Of each window's last frame, the past before its first being the unedited drive's; window n is of drive
    n // (N // B)."""


class EvalBatch(NamedTuple):
    """Frames that are scored together.

    Attributes:
        rows: positions in the evaluation data's index.
        model: of one instant; a recurrent model's view of it.
        frames: unedited.
        clean: the scores of the unedited frames.
        target: what is explained.
        targets: its name for each frame.
        quantity: what curves are drawn of.
        references: the quantity of each frame, by what it compares with.
        known: columns `prediction`, `truth` and `error`; NaN where unknown.
        ground_truth_mask: the pixels that cause the label, where they are known and asked for.
        labels: 0 or 1 for each output, of several that may be true at once; None where unknown.
        baseline: another network of the same outputs, for metrics that ask it instead; see `LimeRankCorrelation`.
        bias_image: the mean of the shards' train split, which the fill of that name shows.
        window: of drives, the frames before, for metrics that edit them too.
        instant: of a drive, one of the frames as a batch of its own, by its place.

    Example:
        >>> from driving_xai.targets import output
        >>> from driving_xai.types import Outputs
        >>> net = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten())
        >>> net.outputs = Outputs(kind="multiclass", names=("red", "green", "blue"))
        >>> batch = EvalBatch.of(net, torch.zeros(2, 3, 4, 4), output(0))
        >>> batch.values(batch.clean[:, None]).shape, batch.quantity.unit
        (torch.Size([2, 1, 1]), 'probability')
    """

    rows: Int64[np.ndarray, " B"]
    model: FrameModel
    frames: Frames
    clean: Scores
    target: Target
    targets: Sequence[str]
    quantity: Quantity
    references: Mapping[str, Value]
    known: Mapping[str, Float[np.ndarray, " B"]]
    ground_truth_mask: Mask | None
    labels: Float[Tensor, "B K"] | None = None
    baseline: FrameModel | None = None
    bias_image: Float[Tensor, "3 H W"] | None = None
    instant: Callable[[int], EvalBatch] | None = None
    window: Window | None = None

    def values(self, scores: Float[Tensor, "B *variants K"]) -> Float[Tensor, "B R *variants"]:
        """The quantity by each of the R references, in their order.

        As a metric's `value` it serves all of them with one run of the model.
        """
        return torch.stack([value(scores) for value in self.references.values()], 1)

    def target_of(self, method: str, *, score: ExplainedScore = "probability") -> Target:
        """What a method of this name explains: `target`, or the probability that it takes; see `targets.explained_by`."""
        if not self.quantity.is_probability:
            return self.target
        return explained_by(method, self.target, outputs_of(self.model), score=score)

    def parts(self, explain: Explainer) -> list[EvalBatch]:
        """The batch as a method takes it: whole, or a drive's frames one by one where it cannot keep several
        pasts apart."""
        if self.instant is None or not explain.takes_one_instant:
            return [self]
        return [self.instant(place) for place in range(len(self.frames))]

    def explained(
        self, explain: Explainer, method: str, *, score: ExplainedScore = "probability"
    ) -> Saliency:
        """Each frame's map by a method of this name."""
        maps = [
            explain(part.model, part.frames, part.target_of(method, score=score))
            for part in self.parts(explain)
        ]
        return torch.cat(maps) if len(maps) > 1 else maps[0]

    @classmethod
    def of(
        cls,
        model: FrameModel,
        frames: Frames,
        target: Target,
        *,
        clean: Scores | None = None,
        ground_truth_mask: Mask | None = None,
        labels: Float[Tensor, "B K"] | None = None,
    ) -> EvalBatch:
        """Frames in memory, without a data set around them.

        A classifier is scored by the probability that the target takes from its outputs, a regressor by how far
        the target moves from where it is for the unedited frame, in the output's own unit.

        Args:
            model: with `outputs`; `dx.wrap` gives any network some.
            frames: RGB in [0, 1].
            target: what the maps explain.
            clean: the scores of the unedited frames, where they are known.
            ground_truth_mask: the pixels that cause the label.
            labels: 0 or 1 for each output.

        Raises:
            NonFiniteError: a score of an unedited frame is NaN or infinite.
        """
        if clean is None:
            clean = scores_of(model, frames)
        finite(clean)
        outputs = outputs_of(model)
        (reference, quantity), value = quantity_of(outputs), _value_of(outputs, clean, target)
        unknown = np.full(len(frames), np.nan)
        prediction = value(clean[:, None])[:, 0].double().cpu().numpy()
        return cls(
            rows=np.arange(len(frames)),
            model=model,
            frames=frames,
            clean=clean,
            target=target,
            targets=["target"] * len(frames),
            quantity=quantity,
            references={reference: value},
            known={"prediction": prediction, "truth": unknown, "error": unknown},
            ground_truth_mask=ground_truth_mask,
            labels=labels,
        )


def quantity_of(outputs: Outputs) -> tuple[str, Quantity]:
    """What is drawn of frames in memory, and the name of what it is compared with; see `EvalBatch.of`.

    Args:
        outputs: the model's.
    """
    if outputs.kind != "regression":
        return "target", PROBABILITY
    change = Quantity(
        name="absolute change of the explained output",
        unit=outputs.unit or "unit of the output",
        area="times percent",
        without_evidence="rises",
    )
    return "clean", change


def _value_of(outputs: Outputs, clean: Scores, target: Target) -> Value:
    """How that quantity is taken from scores."""

    def of_variants(scores: Float[Tensor, "B *variants K"]) -> Float[Tensor, "B *variants"]:
        return target(scores.flatten(0, -2)).view(scores.shape[:-1])

    if outputs.kind != "regression":
        return lambda scores: of_variants(probabilities(scores, outputs))
    before = single(target(clean))

    def change(scores: Float[Tensor, "B *variants K"]) -> Float[Tensor, "B *variants"]:
        return (single(of_variants(scores)) - before.view(-1, *[1] * (scores.dim() - 2))).abs()

    return change


class RankedMaps(NamedTuple):
    """The maps of M methods for the same B frames, and their orders of pixels.

    Example:
        >>> ranked = RankedMaps.of(torch.tensor([[[[0.0, 2.0, 1.0]], [[1.0, 1.0, 1.0]]]]))
        >>> ranked.ranks[0, 0].tolist(), ranked.degenerate.tolist()
        ([2, 0, 1], [[False, True]])
    """

    saliency: Float[Tensor, "B M H W"]
    ranks: Int64[Tensor, "B M P"]
    """See `curves.rank`."""
    degenerate: Bool[Tensor, "B M"]
    """Whether a map is constant, zero everywhere included: it says nothing, and its order is the draw's."""
    cells: tuple[CellValues | None, ...] = ()
    """Of each method, the cells that its maps are pictures of, where they are such; () knows of none."""
    earlier: tuple[Int64[Tensor, "B M P"], ...] = ()
    """The ranks of the maps of a window's earlier frames, the oldest first; see `Window`."""

    def cells_on(self, method: int, grid: tuple[int, int]) -> CellValues | None:
        """A method's own cells, where they are those of this grid; a measure of cells ranks them as they are.

        Args:
            method: its position among the M.
            grid: rows and columns.
        """
        own = self.cells[method] if self.cells else None
        return own if own is not None and tuple(own.shape[1:]) == grid else None

    @classmethod
    def of(
        cls,
        saliency: Float[Tensor, "B M H W"],
        *,
        seed: int = 0,
        cells: Sequence[CellValues | None] = (),
    ) -> RankedMaps:
        """Ranks each map once.

        Args:
            saliency: finite.
            seed: of ties; a map's order depends neither on its batch nor on the other methods.
            cells: see the attribute.

        Raises:
            NonFiniteError: a map has NaN or infinity.
        """
        ranks = rank(saliency.flatten(0, 1), torch.Generator().manual_seed(seed))
        flat = saliency.flatten(2)
        degenerate = flat.amax(2) == flat.amin(2)
        return cls(saliency, ranks.unflatten(0, saliency.shape[:2]), degenerate, tuple(cells))
