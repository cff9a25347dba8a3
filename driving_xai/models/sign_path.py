"""What becomes of a feature's sign under attention: the paper's reading, and five in which attention acts.

Each role is a function of the features x, whose signs are taken, and of relative attention
r = L * alpha, whose mean is one. Its result is multiplied by the quantised magnitude.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from driving_xai.models.quantize import SignEstimator, gate, sign_of_weighted, straight_through
from driving_xai.models.steering_config import AttentionDerivative, SignRole

_NOISE_SEED = 0
"""Of the draw that `sampled` signs share."""

DETACHED: tuple[SignRole, ...] = ("training", "gate", "multiplicative")
"""Roles whose trained networks' gradients leave out attention inside a sign; the others have one derivative."""

Features = Float[Tensor, "B L c"]
Relative = Float[Tensor, "B L channels"]


def ternary_sign(x: Features, relative: Relative, *, threshold: float) -> Features:
    """sign(x) where r * |x| > threshold, else 0; the gradient of r * x where |r * x| <= 1.

    Source: ternary weights of Li and Liu 2016, with attention inside the comparison.
    """
    product = relative * x
    hard = torch.where(product.abs() > threshold, torch.where(x >= 0, 1.0, -1.0), 0.0).to(x.dtype)
    return straight_through(hard, product.clamp(-1, 1))


def centred_sign(x: Features, relative: Relative, *, threshold: float) -> Features:
    """sign(r * x - threshold), sign(0) = +1; the gradient of the difference where it is within +-1.

    A position without attention says -1 in every channel.
    """
    centred = relative * x - threshold
    return straight_through(torch.where(centred >= 0, 1.0, -1.0).to(x.dtype), centred.clamp(-1, 1))


def expected_sign(x: Features, relative: Relative, *, sharpness: float) -> Features:
    """E[s] = 2P - 1 for P(s = +1) = sigmoid(sharpness * r * x)."""
    return torch.tanh(0.5 * sharpness * relative * x)


def stochastic_sign(
    x: Features, relative: Relative, *, sharpness: float, uniform: Float[Tensor, "... L c"]
) -> Float[Tensor, "... L c"]:
    """Signs drawn with P(+1) = sigmoid(sharpness * r * x); the gradient is that of their expectation.

    Args:
        uniform: draws from [0, 1); a sign is +1 where they lie below its probability.

    Source: the stochastic binarisation of Courbariaux et al. 2016, with attention inside.
    """
    expected = expected_sign(x, relative, sharpness=sharpness)
    drawn = torch.where(uniform.to(expected.dtype) < (expected.detach() + 1) / 2, 1.0, -1.0)
    return straight_through(drawn.to(x.dtype), expected)


class SignPath(nn.Module):
    """The sign of each feature as attention lets it act.

    Source: Tashiro and Awano 2023, eq. 4, for the role `training`.
    Deviation: the other roles are not the paper's; in them the map changes the prediction.
    """

    noise: Tensor

    def __init__(
        self,
        *,
        role: SignRole,
        estimator: SignEstimator,
        threshold: float,
        sharpness: float,
        evaluation: Literal["expectation", "sampled"],
        positions: int,
        channels: int,
    ) -> None:
        super().__init__()
        self.role, self.estimator = role, estimator
        self.threshold, self.sharpness, self.evaluation = threshold, sharpness, evaluation
        # The same draw for every frame, so that predictions depend on no batch and on no earlier call.
        draw = torch.rand(positions, channels, generator=torch.Generator().manual_seed(_NOISE_SEED))
        self.register_buffer("noise", draw, persistent=False)

    def forward(
        self, x: Features, relative: Relative, weight: Relative, *, derivative: AttentionDerivative = "actual"
    ) -> Features:
        """Signs in [-1, 1], scaled by attention in the role `multiplicative`.

        Args:
            relative: attention times L.
            weight: attention as the configuration scales it.
            derivative: what gradients in eval mode are; training takes the straight-through one.

        Deviation: a trained network's gradients leave out the path through attention inside a sign, which it
        cannot change; the paper does not say which derivative its Grad-CAM takes.
        """
        if self.role == "ternary":
            return ternary_sign(x, relative, threshold=self.threshold)
        if self.role == "centred":
            return centred_sign(x, relative, threshold=self.threshold)
        if self.role == "stochastic":
            return self._stochastic(x, relative)
        straight = self.training or derivative == "straight-through"
        signs = sign_of_weighted(x, weight if straight else weight.detach(), self.estimator)
        if self.role == "gate":
            return signs * gate(relative)
        return signs * weight if self.role == "multiplicative" else signs

    def _stochastic(self, x: Features, relative: Relative) -> Features:
        if not self.training and self.evaluation == "expectation":
            return expected_sign(x, relative, sharpness=self.sharpness)
        uniform = torch.rand_like(x, dtype=torch.float32) if self.training else self.noise
        return stochastic_sign(x, relative, sharpness=self.sharpness, uniform=uniform)
