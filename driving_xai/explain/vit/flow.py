"""Attention explainers of Vision Transformers: which patches CLS drew on, block by block.

All of them end in one number for each patch token, upsampled bilinearly between the patches' centres.
What a method needs of the attention is followed as a single row vector through the blocks, from CLS
down, in tiles of a few query rows.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from driving_xai.errors import UnsupportedModelError
from driving_xai.explain.base import Explainer, require_at_least
from driving_xai.explain.vit.capture import AttentionState, TokenGrid, attention_states, check_vit
from driving_xai.explain.vit.gradient import Memory, attention_gradients
from driving_xai.explain.vit.tiles import (
    TILE_ROWS,
    added_to_cls,
    attention_flow,
    attention_of_cls,
    gradient_flow,
    gradient_of_cls,
    tile_rows_for,
    value_norms,
)
from driving_xai.models.capabilities import vision_transformer_of
from driving_xai.types import FrameModel, Frames, Saliency, Target

Relevance = Float[Tensor, "C B N"]
"""Of each token, prefix tokens included, for C targets of B frames."""

Product = Literal["flow", "literal"]
"""Row 0 of Ā^L ... Ā¹, the order in which information has flowed to CLS, or of Ā¹ ... Ā^L."""

ValueNorms = Literal["none", "key", "query"]
"""Whether attention A_ij is weighted by ‖v̂_j‖ of the token attended to, by ‖v̂_i‖ of the one attending, or not."""


@dataclass(frozen=True, kw_only=True)
class AttentionExplainer(Explainer):
    """What the methods share: the transformer is found, targets share its passes, tokens become maps.

    A method leaves weights, modes and hooks of the model as they are, and its fused attention on.
    """

    def _check(self, model: object, frames: Frames) -> None:
        check_vit(self.transformer(model, frames))

    def transformer(self, model: object, frames: Frames) -> nn.Module:
        """The Vision Transformer that a model's scores come from.

        Raises:
            UnsupportedModelError: the model has none.
        """
        return self._remembered(model, frames, _transformer)

    def _explain(self, model: FrameModel, frames: Frames, target: Target) -> Saliency:
        return self._explain_each(model, frames, [target]).squeeze(1)

    def _explain_each(
        self, model: FrameModel, frames: Frames, targets: Sequence[Target]
    ) -> Float[Tensor, "B C H W"]:
        with torch.inference_mode(False), torch.no_grad():
            grid, relevance = self.tokens(model, frames, targets)
            # Autocast is for the model: stretching would leave two or three digits of the map.
            with torch.autocast(frames.device.type, enabled=False):
                return grid.on_frames(relevance, frames)

    @abstractmethod
    def tokens(
        self, model: FrameModel, frames: Frames, targets: Sequence[Target]
    ) -> tuple[TokenGrid, Relevance]:
        """Relevance before it is upsampled: of CLS, the registers, then the patches in reading order."""


@dataclass(frozen=True, kw_only=True)
class RawAttention(AttentionExplainer):
    """A^L[0, :], the mean over heads of what CLS attends to in the last block. The same for every target.

    Args:
        head: one head alone, counted from 0; None is the mean over all.

    Source: Jain and Wallace 2019, as RawAtt in Zhu et al. 2024; by head in their Fig. 9.
    Deviation: the mean over heads; the paper does not say.
    """

    head: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head is not None:
            require_at_least({"head": (self.head, 0)})

    def _check(self, model: object, frames: Frames) -> None:
        super()._check(model, frames)
        if self.head is not None and self.head >= (heads := heads_of(model)):
            raise UnsupportedModelError(
                f"head is {self.head}, and the last block has heads 0 to {heads - 1}; take one of those"
            )

    def tokens(
        self, model: FrameModel, frames: Frames, targets: Sequence[Target]
    ) -> tuple[TokenGrid, Relevance]:
        grid, states = attention_states(self.transformer(model, frames), model, frames, blocks="last")
        of_heads = attention_of_cls(next(states))
        return grid, _for_each(targets, of_heads.mean(1) if self.head is None else of_heads[:, self.head])


@dataclass(frozen=True, kw_only=True)
class Rollout(AttentionExplainer):
    """Row 0 of Π_l ½(I + mean_h A^l), from the last block down. The same for every target.

    Source: Abnar and Zuidema 2020, eq. 1, "Quantifying attention flow in transformers".
    """

    tile_rows: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_tile_rows(self.tile_rows)

    def tokens(
        self, model: FrameModel, frames: Frames, targets: Sequence[Target]
    ) -> tuple[TokenGrid, Relevance]:
        grid, states = attention_states(self.transformer(model, frames), model, frames)
        relevance: Float[Tensor, "B N"] | None = None
        for state in states:
            rows = 1 if relevance is None else None
            before = _cls_only(state.key[:, 0, :, 0]) if relevance is None else relevance
            passed = attention_flow(state, before, rows=rows, tile_rows=tile_rows_for(frames, self.tile_rows))
            relevance = (before + passed.mean(1)) / 2
        assert relevance is not None
        return grid, _for_each(targets, relevance)


@dataclass(frozen=True, kw_only=True)
class NormAttention(AttentionExplainer):
    """What each token's value adds to CLS in the last block, by length. The same for every target.

    With â_j^h = A^h_0j v_j^h W_O^h: `sum` is ‖Σ_h â_j^h‖, `heads` is mean_h ‖â_j^h‖.

    Source: Kobayashi et al. 2020, "Attention is not only a weight"; AttIN in Zhu et al. 2024, whose
    ‖A^L v̂^L‖ leaves the heads open.
    Deviation: the authors' "norm_att" is SNNA without smoothing: `SNNA(..., samples=0)`.
    """

    form: Literal["sum", "heads"] = "sum"

    def tokens(
        self, model: FrameModel, frames: Frames, targets: Sequence[Target]
    ) -> tuple[TokenGrid, Relevance]:
        grid, states = attention_states(self.transformer(model, frames), model, frames, blocks="last")
        last = next(states)
        if self.form == "heads":
            return grid, _for_each(targets, (attention_of_cls(last) * value_norms(last)).mean(1))
        return grid, _for_each(targets, added_to_cls(last).norm(dim=-1))


@dataclass(frozen=True, kw_only=True)
class AttentionGradient(AttentionExplainer):
    """Attention of CLS times the gradient of the target with respect to it.

    `all-blocks` is Σ_l mean_h (A^l ∇A^l)⁺, >= 0; `last-block` is mean_h A^L ∇A^L, signed; both of row 0.

    Source: Zhu et al. 2024, section 4.2 (AttGrad), after Chrysostomou and Aletras 2021.
    Deviation: the paper prints the last block, without a word on heads; the authors' code sums the
    positive parts over all blocks, which is the default here.
    """

    form: Literal["all-blocks", "last-block"] = "all-blocks"
    memory: Memory = "keep"

    def tokens(
        self, model: FrameModel, frames: Frames, targets: Sequence[Target]
    ) -> tuple[TokenGrid, Relevance]:
        grid, _, states = attention_gradients(
            self.transformer(model, frames), model, frames, targets, memory=self.memory
        )
        if self.form == "last-block":
            return grid, _of_cls(next(iter(states))).mean(2)
        summed: Relevance | float = 0.0
        for state in states:
            summed = summed + _of_cls(state).clamp_min(0).mean(2)
        assert isinstance(summed, Tensor)
        return grid, summed


@dataclass(frozen=True, kw_only=True)
class GenericAttention(AttentionExplainer):
    """Row 0 of Π_l (I + mean_h (A^l ∇A^l)⁺), from the last block down; >= 0.

    Source: Chefer et al. 2021, "Generic attention-model explainability", eqs. 5 and 6.
    Deviation: Zhu et al. 2024 print the product the other way round: `product="literal"`.

    Example:
        >>> from driving_xai.models.actions import ActionConfig, ActionModel
        >>> from driving_xai.targets import output
        >>> config = ActionConfig(backbone="vit_tiny_patch16_224", depth=2, blocks=2, image_size=(32, 64))
        >>> model = ActionModel(config).eval()
        >>> explain = GenericAttention()
        >>> explain.explain_each(model, torch.rand(1, 3, 32, 64), [output(0), output(2)]).shape
        torch.Size([1, 2, 32, 64])
    """

    product: Product = "flow"
    memory: Memory = "keep"
    tile_rows: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_tile_rows(self.tile_rows)

    def tokens(
        self, model: FrameModel, frames: Frames, targets: Sequence[Target]
    ) -> tuple[TokenGrid, Relevance]:
        grid, _, states = attention_gradients(
            self.transformer(model, frames), model, frames, targets, memory=self.memory
        )
        ordered = in_order(states, self.product)
        return grid, cls_relevance(ordered, norms="none", tile_rows=tile_rows_for(frames, self.tile_rows))


def cls_relevance(
    states: Iterable[AttentionState], *, norms: ValueNorms, tile_rows: int = TILE_ROWS
) -> Relevance:
    """Row 0 of a product of Ā = I + mean_h (A ∇A ν)⁺, the leftmost factor first.

    As A and ν are not negative, r Ā = r + mean_h (Σ_i r_i (A_ij ∇A_ij)⁺) ν_j for norms of the keys, and
    with r_i ν_i in place of r_i for norms of the queries.

    Source: Zhu et al. 2024, eq. 6; without norms Chefer et al. 2021, eq. 5.
    """
    relevance: Relevance | None = None
    for state in states:
        assert state.gradient is not None
        rows = 1 if relevance is None else None
        before = _cls_only(state.gradient[..., 0, :, 0]) if relevance is None else relevance
        of_query = value_norms(state) if norms == "query" else 1.0
        of_key = value_norms(state) if norms == "key" else 1.0
        passed = gradient_flow(state, before[:, :, None] * of_query, rows=rows, tile_rows=tile_rows)
        relevance = before + (passed * of_key).mean(2)
    assert relevance is not None
    return relevance


def heads_of(model: object) -> int:
    """How many heads the last block of a model's transformer has.

    Raises:
        UnsupportedModelError: the model has no transformer whose attention can be read.
    """
    transformer = vision_transformer_of(model)
    check_vit(transformer)
    blocks = list(transformer.blocks)  # type: ignore[arg-type]  # torch types every attribute as a tensor or a module
    return int(blocks[-1].attn.num_heads)


def require_tile_rows(tile_rows: int | None) -> None:
    """Raises ValueError where an option is no number of rows."""
    if tile_rows is not None:
        require_at_least({"tile_rows": (tile_rows, 1)})


def _transformer(model: object, frames: Frames) -> nn.Module:
    return vision_transformer_of(model)


def in_order(states: Iterable[AttentionState], product: Product) -> Iterable[AttentionState]:
    """States that come from the last block down; the literal order keeps the queries, keys, values and
    gradients of all blocks until the first one's are known."""
    return states if product == "flow" else reversed(list(states))


def _of_cls(state: AttentionState) -> Float[Tensor, "C B h N"]:
    """Row 0 of A ∇A, by head."""
    return attention_of_cls(state) * gradient_of_cls(state)


def _cls_only(like: Float[Tensor, "*batch N"]) -> Float[Tensor, "*batch N"]:
    """e₀: all relevance on CLS."""
    start = torch.zeros_like(like)
    start[..., 0] = 1
    return start


def _for_each(targets: Sequence[Target], relevance: Float[Tensor, "B N"]) -> Relevance:
    return relevance.expand(len(targets), -1, -1)
