"""What attention passes on, computed tile by tile: no N x N matrix outlives its tile.

Sums over all query rows go to fused kernels where these can serve, see `fused`.

A tile holds the scores of a few query rows against all keys. Equations name the attention of one
head A (N x N, rows sum to one), the heads' outputs A V, a target's gradient with respect to them D;
then the gradient with respect to A itself is D Vᵀ, of which only a tile exists at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from driving_xai.errors import UnsupportedModelError
from driving_xai.explain.vit import fused
from driving_xai.explain.vit.capture import AttentionState

TILE_ROWS = 128
"""Query rows of a tile. On a CPU 32 to 256 take the same time; fewer save memory."""
GPU_TILE_ROWS = 512
"""On a GPU, which waits less often for larger products. The number changes maps by rounding only."""


def tile_rows_for(frames: Tensor, tile_rows: int | None) -> int:
    """The rows asked for, or as many as suit the frames' device."""
    return tile_rows or (GPU_TILE_ROWS if frames.is_cuda else TILE_ROWS)


def attention_of_cls(state: AttentionState) -> Float[Tensor, "B h N"]:
    """Row 0 of each head's attention: what CLS attends to."""
    with _unlowered(state):
        return (state.query[:, :, :1] @ state.key.mT).softmax(-1).squeeze(2)


def gradient_of_cls(state: AttentionState) -> Float[Tensor, "C B h N"]:
    """Row 0 of ∇A = D Vᵀ by head: what the targets gain from what CLS attends to."""
    assert state.gradient is not None
    with _unlowered(state):
        return (state.gradient[..., :1, :] @ state.value.mT).squeeze(3)


def attention_flow(
    state: AttentionState,
    weights: Float[Tensor, "B N"],
    *,
    rows: int | None = None,
    tile_rows: int = TILE_ROWS,
) -> Float[Tensor, "B h N"]:
    """Σ_i w_i A_ij: what rows weighted by `weights` attend to, by head.

    Args:
        rows: only the first so many rows have a weight; None: all may have one.
    """
    if fused.serves(state):
        return fused.attention_flow(state, weights, rows=rows)
    flow = torch.zeros_like(state.key[..., 0])
    with _unlowered(state):
        for tile, attention in _tiles(state, rows, tile_rows):
            flow += (weights[:, None, None, tile] @ attention).squeeze(2)
    return flow


def gradient_flow(
    state: AttentionState,
    weights: Float[Tensor, "C B #h N"],
    *,
    rows: int | None = None,
    tile_rows: int = TILE_ROWS,
) -> Float[Tensor, "C B h N"]:
    """Σ_i w_i (A_ij ∇A_ij)⁺, ∇A = D Vᵀ: what rows attend to and the targets gain from, by head.

    The tiles of A are shared by all targets.

    Args:
        weights: not negative, so that they may stand inside the positive part.
        rows: only the first so many rows have a weight; None: all may have one.
    """
    assert state.gradient is not None
    if fused.serves(state):
        return fused.gradient_flow(state, weights, rows=rows)
    weighted = state.gradient * weights[..., None]
    value = state.value.mT
    flow = torch.zeros_like(weighted[..., 0])
    with _unlowered(state):
        for tile, attention in _tiles(state, rows, tile_rows):
            for into, rows_of_target in zip(flow, weighted, strict=True):
                into += (rows_of_target[:, :, tile] @ value).mul_(attention).clamp_min_(0).sum(2)
    return flow


def value_norms(state: AttentionState) -> Float[Tensor, "B h N"]:
    """ν_j = ‖v_j W_O‖₂ by head, the length of what a token's value adds to the residual stream.

    By the d x d Gram matrix of the output projection, ν² = v (W_O W_Oᵀ) vᵀ: no N x D vector exists.

    Raises:
        UnsupportedModelError: see `output_projection`.

    Source: Kobayashi et al. 2020; Zhu et al. 2024, eq. 5, whose output bias belongs to no head.
    """
    projection = output_projection(state)
    with _unlowered(state):
        gram = projection @ projection.mT
        return ((state.value @ gram) * state.value).sum(-1).clamp_min(0).sqrt()


def added_to_cls(state: AttentionState) -> Float[Tensor, "B N D"]:
    """Σ_h A_0j v_j W_O: what each token adds to CLS in the residual stream.

    Raises:
        UnsupportedModelError: see `output_projection`.
    """
    attention, projection = attention_of_cls(state), output_projection(state)
    with _unlowered(state):
        return torch.einsum("bhn,bhnd,hdm->bnm", attention, state.value, projection)


def output_projection(state: AttentionState) -> Float[Tensor, "h d D"]:
    """W_O by head.

    Raises:
        UnsupportedModelError: the block has no linear map from its heads' outputs to its own.
    """
    if state.projection is None:
        raise UnsupportedModelError(
            "the transformer normalises or gates its heads' outputs, so that a value adds no fixed length to the "
            "residual stream; use generic-attention, which needs no norms"
        )
    return state.projection


def _unlowered(state: AttentionState) -> torch.autocast:
    """Leaves autocast, so that relevance is summed in the state's own precision where the model runs in bf16."""
    return torch.autocast(state.query.device.type, enabled=False)


def _tiles(
    state: AttentionState, rows: int | None, tile_rows: int
) -> Iterator[tuple[slice, Float[Tensor, "B h r N"]]]:
    """The attention of some rows at a time; a tile's size does not grow with the number of frames."""
    count, tokens = len(state.query), state.query.shape[2]
    end = tokens if rows is None else rows
    step = max(1, tile_rows // count)
    keys = state.key.mT
    for start in range(0, end, step):
        tile = slice(start, min(start + step, end))
        yield tile, (state.query[:, :, tile] @ keys).softmax(-1)
