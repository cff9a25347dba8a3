"""How accurate a classifier of several labels stays while its evidence is masked, as a measure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from driving_xai.errors import DataError
from driving_xai.explain.vit.capture import check_vit
from driving_xai.metrics.aupc import Masking, Statistic, accuracies, log_odds
from driving_xai.metrics.batch import Batch, Editing, Maps
from driving_xai.metrics.curves import deletion
from driving_xai.metrics.quantities import Quantity
from driving_xai.metrics.token_masks import (
    FRACTIONS,
    TokenMask,
    least_first,
    token_deletion,
    token_ranks,
)
from driving_xai.perturb import Fill

Part = Literal["pixel", "token", "attention"]
_LEAST_PATCHES = 45
"""So that each point masks one patch more than the last."""


@dataclass(frozen=True, kw_only=True)
class MaskedAccuracy:
    """AUPC or log-odds over ten points from 0 to 20 % masked.

    AUPC is a mean over frames; log-odds is of the mean accuracies of all frames, so that a frame has a
    curve but no value.

    Source: Zhu et al. 2024, eqs. 9 and 10, Table 1.
    """

    part: Part
    """What is masked: pixels, patches' embeddings, or the attention to and from patches."""
    of_set: Statistic | None = None
    """`aupc.log_odds`, computed of a set of frames; None is AUPC."""
    masking: Masking = field(default_factory=Masking)
    needs: None = None

    def __call__(self, batch: Batch, maps: Maps, how: Editing) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """The accuracy of each frame along each method's curve; see `measures.Measure`.

        Raises:
            DataError: the frames have no label for each output.
            UnsupportedModelError: patches are to be masked and the model is no Vision Transformer.
        """
        if batch.labels is None:
            raise DataError(
                "AUPC and log-odds need a label for each output; score labelled images of actions"
            )
        curves = accuracies(self._scores(batch, maps, how), batch.labels, rule=self.masking.rule)
        values = {"curve": curves}
        if self.of_set is None:
            values["value"] = 100 * curves.sum(-1)
        yield "labels", values

    def _scores(self, batch: Batch, maps: Maps, how: Editing) -> Float[Tensor, "B M V K"]:
        ranks, masked = maps.ranks, partial(deletion, fill=self.masking.fill)
        if self.part != "pixel":
            vit: Any = getattr(batch.model, "vit", None)
            check_vit(vit)
            ranks = self._patch_ranks(maps, vit.patch_embed.patch_size, how.seed)
            masked = partial(token_deletion, vit=vit, mask=self._token_mask())
        if self.masking.order == "least-first":
            ranks = least_first(ranks)
        return masked(
            batch.model, batch.frames, ranks, FRACTIONS, batch_size=how.batch_size, clean=batch.clean
        )

    def _token_mask(self) -> TokenMask:
        if self.part != "attention":
            return "token"
        return "attention" if self.masking.attention_blocks == "first" else "attention-all-blocks"

    def _patch_ranks(self, maps: Maps, patch_px: tuple[int, int], seed: int) -> Int64[Tensor, "B M T"]:
        height, width = maps.saliency.shape[-2:]
        patches = (height // patch_px[0], width // patch_px[1])
        if patches[0] * patches[1] < _LEAST_PATCHES:
            raise DataError(
                f"frames of {height} x {width} have {patches[0] * patches[1]} patches of {patch_px[0]} px; "
                f"ten points up to 20 % need {_LEAST_PATCHES}: larger frames or smaller patches"
            )
        whole = maps.saliency[..., : patches[0] * patch_px[0], : patches[1] * patch_px[1]]
        drawn = torch.Generator().manual_seed(seed)
        return token_ranks(whole.flatten(0, 1), patches, drawn).unflatten(0, whole.shape[:2])

    def describe(self, quantity: Quantity, *, fill: Fill | None = None) -> dict[str, Any]:
        """See `measures.Measure`."""
        most_first = self.masking.order == "most-first"
        return {
            "kind": "accuracy of all outputs",
            "rule": f"predicted where the {self.masking.rule} is over 1/2",
            "masked": self.part,
            "order": f"{'most' if most_first else 'least'} salient first",
            **({"fill": self.masking.fill} if self.part == "pixel" else {}),
            **({"attention_blocks": self.masking.attention_blocks} if self.part == "attention" else {}),
            "unit": "percent, summed over points" if self.of_set is None else "natural logarithm",
            "normalised_unit": "share of outputs that are right",
            "fractions": list(FRACTIONS),
            "faithful": "low" if most_first else "high",
        }


_PARTS: Mapping[str, Part] = {"": "pixel", "-token": "token", "-attention": "attention"}
_FOLLOWED_BY: Mapping[str, tuple[Part, ...]] = {
    "rule": tuple(_PARTS.values()),
    "order": tuple(_PARTS.values()),
    "attention_blocks": ("attention",),
    "fill": ("pixel",),
}
"""Settings of `Masking` to the parts whose masks they change."""


def masked_accuracies(masking: Masking) -> dict[str, MaskedAccuracy]:
    """AUPC and log-odds of each part, by their names as measures."""
    return {
        f"{name}{suffix}": MaskedAccuracy(part=part, of_set=of_set, masking=masking)
        for name, of_set in (("aupc", None), ("log-odds", log_odds))
        for suffix, part in _PARTS.items()
    }


def require_followed(masking: Masking, measures: Collection[str]) -> None:
    """Raises ValueError where a setting is not the default and none of these measures follows it."""
    known = masked_accuracies(masking)
    for setting, parts in _FOLLOWED_BY.items():
        given, following = getattr(masking, setting), [name for name in known if known[name].part in parts]
        if given != getattr(Masking(), setting) and not set(measures) & set(following):
            raise ValueError(
                f"got {setting} {given!r} for masks, which no measure of this run follows; "
                f"leave it out, or add any of: {', '.join(following)}"
            )
