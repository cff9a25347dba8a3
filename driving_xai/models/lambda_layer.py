"""The lambda layer: long-range interactions as one small linear function for each position."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

Form = Literal["auto", "convolution", "rows", "dense"]

_MOST_DENSE_CELLS = 200
"""Measured with a context of 23: at 7 x 7 cells dense is 3.6 times as fast, at 14 x 14 2.7, at 16 x 16 0.6."""


class LambdaLayer(nn.Module):
    """y_n^h = (lambda_c + lambda_p[n])^T q_n^h, for each position n and head h; heads are concatenated.

    lambda_c = sum_m softmax_m(k)_m v_m^T says what the whole map holds, lambda_p[n] = sum_m E_{m-n} v_m^T
    (+ bias) what lies around n within the local context. Queries and values are batch-normalised.

    Source: Bello 2021, sections 3 and 4.2; Iida et al. 2022, eqs. 3 to 7.
    Deviation: Iida et al. print Q = V = Conv(h); as in their code and in Bello, queries, keys and values
    have 1 x 1 convolutions of their own, and there is one value a position (u = 1).

    Example:
        >>> LambdaLayer(8, heads=2, key_depth=4, context=5)(torch.rand(2, 8, 6, 7)).shape
        torch.Size([2, 8, 6, 7])
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int = 4,
        key_depth: int = 16,
        context: int = 23,
        form: Form = "auto",
    ) -> None:
        """Builds the layer.

        Args:
            channels: of input and output; a multiple of `heads`.
            key_depth: of queries and keys, in each head.
            context: side of the square that lambda_p sees, in cells; odd.
            form: how lambda_p is applied; all give the same numbers. `convolution` forms lambda_p, at
                d_k d_v operations for each pair of positions. `rows` and `dense` re-associate,
                sum_m (q_n E_{m-n}) v_m, at heads (d_k + d_v): `rows` over the rows of the context,
                `dense` over all pairs of positions. `auto` takes `dense` for maps of up to 200 cells
                and `convolution` for larger ones: the faster in training on a CPU.

        Raises:
            ValueError: channels are no multiple of heads, or the context is even.
        """
        super().__init__()
        if channels % heads or context % 2 == 0:
            raise ValueError(
                f"channels are {channels}, heads {heads}, context is {context}; "
                "expected a multiple of heads, and an odd context"
            )
        self.heads, self.key_depth, self.context, self.form = heads, key_depth, context, form
        # Over positions in a row, not over maps: on a CPU, torch 2.15's BatchNorm2d returns wrong gradients
        # for a single image whose incoming gradient is laid out channels last, as einsum leaves it.
        self.queries = nn.Sequential(
            nn.Conv1d(channels, heads * key_depth, 1, bias=False), nn.BatchNorm1d(heads * key_depth)
        )
        self.keys = nn.Conv1d(channels, key_depth, 1, bias=False)
        width = channels // heads
        self.values = nn.Sequential(nn.Conv1d(channels, width, 1, bias=False), nn.BatchNorm1d(width))
        self.embedding = nn.Parameter(torch.empty(key_depth, context, context))
        self.embedding_bias = nn.Parameter(torch.zeros(key_depth))
        nn.init.normal_(self.embedding, std=1 / context)
        self.content = nn.Identity()
        """lambda_c^T q passes through here, B x heads * d_v x h x w, so that a hook can see it."""

    def forward(self, maps: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        size = maps.shape[2:]
        cells = maps.flatten(2)
        queries = self.queries(cells).unflatten(1, (self.heads, self.key_depth))
        keys, values = self.keys(cells).softmax(-1), self.values(cells)
        shared = torch.einsum("bkm,bvm->bkv", keys, values)
        content = torch.einsum("bhkn,bkv->bhvn", queries, shared).flatten(1, 2)
        position = self._position(queries, values.unflatten(-1, size)).flatten(1, 2)
        return self.content(content.unflatten(-1, size)) + position.unflatten(-1, size)

    def _position(
        self, queries: Float[Tensor, "B heads k n"], values: Float[Tensor, "B v h w"]
    ) -> Float[Tensor, "B heads v n"]:
        form = self.form
        if form == "auto":
            form = "dense" if values[0, 0].numel() <= _MOST_DENSE_CELLS else "convolution"
        apply = {"convolution": self._convolved, "rows": self._by_rows, "dense": self._densely}[form]
        bias = torch.einsum("bhkn,k->bhn", queries, self.embedding_bias)
        return apply(queries, values) + bias.unsqueeze(2)

    def _convolved(self, queries: Tensor, values: Tensor) -> Tensor:
        lambdas = F.conv2d(
            values.flatten(0, 1).unsqueeze(1), self.embedding.unsqueeze(1), padding=self.context // 2
        )
        lambdas = lambdas.flatten(2).unflatten(0, values.shape[:2])
        return torch.einsum("bhkn,bvkn->bhvn", queries, lambdas)

    def _by_rows(self, queries: Tensor, values: Tensor) -> Tensor:
        height, width = values.shape[2:]
        margin = self.context // 2
        # B x v x rows x width x context: each cell's neighbours to both sides.
        sides = F.pad(values, (margin,) * 4).unfold(3, self.context, 1)
        total = values.new_zeros(*queries.shape[:2], values.shape[1], height, width)
        for row in range(self.context):
            weights = torch.einsum("bhkn,kx->bhnx", queries, self.embedding[:, row])
            weights = weights.unflatten(2, (height, width))
            total = total + torch.einsum("bhyxc,bvyxc->bhvyx", weights, sides[:, :, row : row + height])
        return total.flatten(3)

    def _densely(self, queries: Tensor, values: Tensor) -> Tensor:
        taps = F.pad(self.embedding.flatten(1), (0, 1))  # The last one, 0, is beyond the context.
        pairs = taps[:, _taps_of_pairs(*values.shape[2:], self.context).to(taps.device)]
        weights = torch.einsum("bhkn,knm->bhnm", queries, pairs)
        return torch.einsum("bhnm,bvm->bhvn", weights, values.flatten(2))


@lru_cache(maxsize=16)
def _taps_of_pairs(height: int, width: int, context: int) -> Int64[Tensor, "n m"]:
    """For each pair of positions the place of their offset in the context, context ** 2 where beyond it."""
    rows = torch.arange(height).repeat_interleave(width)
    columns = torch.arange(width).repeat(height)
    down = rows[None, :] - rows[:, None] + context // 2
    across = columns[None, :] - columns[:, None] + context // 2
    inside = (down >= 0) & (down < context) & (across >= 0) & (across < context)
    return torch.where(inside, down * context + across, context**2)
