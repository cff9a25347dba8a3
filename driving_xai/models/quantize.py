"""Rounding and signs that train: the quantiser and the sign of the sign-attention network.

Forward passes are exact; backward passes are straight-through estimators.

Source: Tashiro and Awano 2023, eqs. 4-8; Hubara et al. 2016 for the estimators.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

RangeRule = Literal["ema-max", "percentile", "fixed", "learned"]
SignEstimator = Literal["clipped", "identity", "tanh"]


class _Quantize(torch.autograd.Function):
    """Q(x) with the identity as gradient inside [0, high]; above it the gradient goes to `high` (PACT)."""

    @staticmethod
    def forward(ctx, x: Tensor, high: Tensor, levels: int) -> Tensor:
        ctx.save_for_backward(x, high)
        step = high / (levels - 1)
        return torch.round(x.clamp(min=0).minimum(high) / step) * step

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, high = ctx.saved_tensors
        above = x > high
        to_x = gradient.masked_fill(above | (x < 0), 0.0)
        to_high = (gradient * above).sum().to(high.dtype) if ctx.needs_input_grad[1] else None
        return to_x, to_high, None


def quantize(x: Float[Tensor, "..."], high: Float[Tensor, ""], bits: int) -> Float[Tensor, "..."]:
    """Rounds to one of 2**bits levels spread evenly over [0, high]; values outside are clipped.

    Source: Tashiro and Awano 2023, eqs. 6-8 with a = 0.
    Deviation: the step is high / (2**bits - 1); the paper prints (b - x) / (n - 1), a typo.
    """
    return _Quantize.apply(x, high, 2**bits)


class _SignOfWeighted(torch.autograd.Function):
    """sign(x * weight) for positive weights, with an estimate of the product's gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, estimator: SignEstimator) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.estimator = estimator
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, weight = ctx.saved_tensors
        if ctx.estimator == "clipped":
            gradient = gradient.masked_fill((x * weight).abs() > 1, 0.0)
        elif ctx.estimator == "tanh":
            gradient = gradient * (1 - torch.tanh(x * weight) ** 2)
        return gradient * weight, (gradient * x).sum_to_size(weight.shape), None


def sign_of_weighted(
    x: Float[Tensor, "..."], weight: Float[Tensor, "..."], estimator: SignEstimator = "clipped"
) -> Float[Tensor, "..."]:
    """sign(x * weight), sign(0) = +1, for weights > 0 that broadcast against x.

    Args:
        estimator: the gradient taken for that of the sign, at p = x * weight: `clipped` is 1 where
            |p| <= 1 and 0 elsewhere, `identity` 1 everywhere, `tanh` the slope of tanh(p).

    Source: Tashiro and Awano 2023, eq. 4; `identity` Bengio et al. 2013, `clipped` Hubara et al. 2016.
    Deviation: a positive weight cannot change a sign, so the product is not formed in the forward
    pass; formed, it underflows for tiny weights and turns negatives into +1.
    """
    return _SignOfWeighted.apply(x, weight, estimator)


def straight_through(hard: Float[Tensor, "..."], soft: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The values of `hard` with the gradient of `soft`.

    Source: Bengio et al. 2013, "Estimating or propagating gradients through stochastic neurons".
    """
    return hard.detach() + (soft - soft.detach())


class _Gate(torch.autograd.Function):
    """1 where relative > 1, else 0; gradient 1 where |relative - 1| <= 1."""

    @staticmethod
    def forward(ctx, relative: Tensor) -> Tensor:
        ctx.save_for_backward(relative)
        return (relative > 1).to(relative.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (relative,) = ctx.saved_tensors
        return gradient.masked_fill((relative - 1).abs() > 1, 0.0)


def gate(relative: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Opens (1) where attention is above its mean: `relative` is attention over the mean attention."""
    return _Gate.apply(relative)


class Quantizer(nn.Module):
    """Quantises magnitudes to `bits` over [0, high], where `high` follows `range_rule`.

    `ema-max` and `percentile` (99.9 %) track the training activations and freeze in eval mode;
    `fixed` stays at 6; `learned` is a parameter (PACT).
    """

    high: Tensor
    seen: Tensor

    def __init__(self, *, bits: int, range_rule: RangeRule, momentum: float = 0.99) -> None:
        super().__init__()
        self.bits, self.range_rule, self.momentum = bits, range_rule, momentum
        if range_rule == "learned":
            self.high = nn.Parameter(torch.tensor(6.0))
        else:
            self.register_buffer("high", torch.tensor(6.0))
        self.register_buffer("seen", torch.tensor(False))

    def forward(self, magnitude: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        if self.training and self.range_rule in ("ema-max", "percentile"):
            self._track(magnitude.detach())
        return quantize(magnitude, self.high.to(magnitude.dtype, copy=True), self.bits)

    @torch.no_grad()
    def _track(self, magnitude: Tensor) -> None:
        if self.range_rule == "ema-max":
            top = magnitude.max()
        else:
            rank = max(1, round(0.999 * magnitude.numel()))
            top = magnitude.flatten().float().kthvalue(rank).values
        top = top.to(self.high.dtype)
        self.high.copy_(torch.where(self.seen, torch.lerp(top, self.high, self.momentum), top))
        self.seen.fill_(True)
