"""AUPC and log-odds: how accurate a classifier of several labels stays while its evidence is masked."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from driving_xai.errors import DataError, UnsupportedModelError
from driving_xai.explain.vit.capture import check_vit
from driving_xai.metrics.aupc import Masking, Statistic, accuracies, log_odds
from driving_xai.metrics.base import Category, Columns, Metric
from driving_xai.metrics.batch import EvalBatch, RankedMaps
from driving_xai.metrics.curves import deletion, rank
from driving_xai.metrics.quantities import Quantity
from driving_xai.metrics.token_masks import (
    FRACTIONS,
    TokenMask,
    least_first,
    token_deletion,
    token_ranks,
)
from driving_xai.models.capabilities import vision_transformer_of

Part = Literal["pixel", "token", "attention"]
_LEAST_PATCHES = 45
"""So that each point masks one patch more than the last."""


@dataclass(frozen=True, kw_only=True)
class _MaskedAccuracy(Metric):
    """The accuracy along ten points from 0 to 20 % masked."""

    category: ClassVar[Category] = "faithfulness"
    higher_is_better: ClassVar[bool] = False
    unit: ClassVar[str]

    part: Part = "pixel"
    masking: Masking = field(default_factory=Masking)

    def __post_init__(self) -> None:
        if self.part not in get_args(Part):
            raise ValueError(f"got part {self.part!r}, expected one of: {', '.join(get_args(Part))}")

    @property
    def label(self) -> str:
        """The name with the part that is masked, pixels excepted."""
        return self.name if self.part == "pixel" else f"{self.name}-{self.part}"

    def prefers_high(self, quantity: Quantity) -> bool:
        """Accuracy should fall where the most salient parts are masked, and stay where the least are."""
        return self.masking.order == "least-first"

    def measure(self, batch: EvalBatch, ranked: RankedMaps) -> Iterator[tuple[str, Columns]]:
        """The accuracy of each frame along each method's curve; see `Metric.measure`.

        Raises:
            DataError: the frames have no label for each output.
            UnsupportedModelError: patches are to be masked and the model is no Vision Transformer.
        """
        if batch.labels is None:
            raise DataError(
                "AUPC and log-odds need a label for each output; score labelled images of actions"
            )
        curves = accuracies(self._scores(batch, ranked), batch.labels, rule=self.masking.rule)
        found = {"curve": curves, "fractions": torch.tensor(FRACTIONS, dtype=torch.float64)}
        yield "labels", {**found, **self._values(curves)}

    def cell_grid(self, batch: EvalBatch) -> tuple[int, int] | None:
        """The patches, where they are masked; see `Metric.cell_grid`."""
        if self.part == "pixel":
            return None
        height, width = batch.frames.shape[2:]
        patch_px = self._transformer(batch.model).patch_embed.patch_size
        return height // patch_px[0], width // patch_px[1]

    def _values(self, curves: Float[Tensor, "B M V"]) -> Columns:
        return {}

    def _transformer(self, model: object) -> Any:
        try:
            vit = vision_transformer_of(model)
        except UnsupportedModelError:
            raise UnsupportedModelError(
                f"measure {self.label} masks a Vision Transformer's patches, and this model is none; use aupc or "
                "log-odds, which mask pixels"
            ) from None
        check_vit(vit)
        return vit

    def _scores(self, batch: EvalBatch, ranked: RankedMaps) -> Float[Tensor, "B M V K"]:
        ranks, masked = ranked.ranks, partial(deletion, fill=self.masking.fill)
        if self.part != "pixel":
            vit = self._transformer(batch.model)
            ranks = self._patch_ranks(batch, ranked)
            masked = partial(token_deletion, vit=vit, mask=self._token_mask())
        if self.masking.order == "least-first":
            ranks = least_first(ranks)
        return masked(
            batch.model, batch.frames, ranks, FRACTIONS, batch_size=self.batch_size, clean=batch.clean
        )

    def _token_mask(self) -> TokenMask:
        if self.part != "attention":
            return "token"
        return "attention" if self.masking.attention_blocks == "first" else "attention-all-blocks"

    def _patch_ranks(self, batch: EvalBatch, ranked: RankedMaps) -> Int64[Tensor, "B M T"]:
        grid, patch_px = self.cell_grid(batch), self._transformer(batch.model).patch_embed.patch_size
        assert grid is not None
        height, width = ranked.saliency.shape[-2:]
        if grid[0] * grid[1] < _LEAST_PATCHES:
            raise DataError(
                f"frames of {height} x {width} have {grid[0] * grid[1]} patches of {patch_px[0]} px; "
                f"ten points up to 20 % need {_LEAST_PATCHES}: larger frames or smaller patches"
            )
        whole = ranked.saliency[..., : grid[0] * patch_px[0], : grid[1] * patch_px[1]]

        def of_method(method: int) -> Int64[Tensor, "B T"]:
            drawn, own = torch.Generator().manual_seed(self.seed), ranked.cells_on(method, grid)
            return token_ranks(whole[:, method], grid, drawn) if own is None else rank(own, drawn)

        return torch.stack([of_method(method) for method in range(whole.shape[1])], 1)

    def describe(self, quantity: Quantity) -> dict[str, Any]:
        """See `Metric.describe`."""
        most_first = self.masking.order == "most-first"
        return {
            "kind": "accuracy of all outputs",
            "rule": f"predicted where the {self.masking.rule} is over 1/2",
            "masked": self.part,
            "order": f"{'most' if most_first else 'least'} salient first",
            **({"fill": self.masking.fill} if self.part == "pixel" else {}),
            **({"attention_blocks": self.masking.attention_blocks} if self.part == "attention" else {}),
            "unit": self.unit,
            "normalised_unit": "share of outputs that are right",
            "fractions": list(FRACTIONS),
            "faithful": self.faithful(quantity),
        }


@dataclass(frozen=True, kw_only=True)
class AUPC(_MaskedAccuracy):
    """The area under the perturbation curve: accuracies in percent, summed over ten points; low is good.

    It is a mean over frames. With the least salient parts masked first, high is good.

    Args:
        part: what is masked: pixels, patches' embeddings, or the attention to and from patches.
        masking: the order, the fill, and when an output counts as predicted.
        batch_size: most edited frames in one forward pass; changes results by rounding only.
        seed: of ties between equal saliencies.

    Source: Zhu et al. 2024, eq. 9, Table 1.
    Deviation: see `aupc.accuracies`.

    Example:
        >>> AUPC(part="token").label
        'aupc-token'
    """

    name: ClassVar[str] = "aupc"
    unit: ClassVar[str] = "percent, summed over points"

    def _values(self, curves: Float[Tensor, "B M V"]) -> Columns:
        return {"value": 100 * curves.sum(-1)}


@dataclass(frozen=True, kw_only=True)
class LogOdds(_MaskedAccuracy):
    """The logarithm of accuracy under masks to the clean accuracy, summed over points; low is good.

    It is of the mean accuracies of all frames: a frame has a curve and no value.

    Args:
        part: what is masked: pixels, patches' embeddings, or the attention to and from patches.
        masking: the order, the fill, and when an output counts as predicted.
        batch_size: most edited frames in one forward pass; changes results by rounding only.
        seed: of ties between equal saliencies.

    Source: Zhu et al. 2024, eq. 10, Table 1.
    Deviation: see `aupc.log_odds`.

    Example:
        >>> LogOdds(part="attention").label
        'log-odds-attention'
    """

    name: ClassVar[str] = "log-odds"
    unit: ClassVar[str] = "natural logarithm"

    @classmethod
    def of_set(cls) -> Statistic:
        """See `Metric.of_set`."""
        return log_odds


_FOLLOWED_BY: Mapping[str, tuple[Part, ...]] = {
    "rule": get_args(Part),
    "order": get_args(Part),
    "attention_blocks": ("attention",),
    "fill": ("pixel",),
}
"""Settings of `Masking` to the parts whose masks they change."""


def require_followed(masking: Masking, measures: Collection[str]) -> None:
    """Raises ValueError where a setting is not the default and none of these measures follows it."""
    known = [kind(part=part) for kind in (AUPC, LogOdds) for part in get_args(Part)]
    for setting, parts in _FOLLOWED_BY.items():
        given, following = (
            getattr(masking, setting),
            [metric.label for metric in known if metric.part in parts],
        )
        if given != getattr(Masking(), setting) and not set(measures) & set(following):
            raise ValueError(
                f"got {setting} {given!r} for masks, which no measure of this run follows; "
                f"leave it out, or add any of: {', '.join(following)}"
            )
