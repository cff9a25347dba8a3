"""The architecture of the steering model as a configuration: what the paper leaves open, as options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from driving_xai.models.quantize import RangeRule, SignEstimator

AttentionKind = Literal["none", "soft", "sign"]
OWN_METHOD: Mapping[AttentionKind, str] = {"soft": "soft-attention", "sign": "sign-attention"}
"""The explainer that shows a model's own attention, where it has one."""
AttentionDerivative = Literal["actual", "straight-through"]
"""Of a trained sign network with respect to the attention inside its signs: zero, as it is, or what it learnt with."""
SignRole = Literal["training", "gate", "multiplicative", "ternary", "stochastic", "centred"]
_ENCODERS = ("table-1", "table-1-kernels", "pseudo-code")
OF_TIMM = "timm:"
"""How the names of encoders begin that are networks of timm."""


@dataclass(frozen=True, kw_only=True)
class SteeringConfig:
    """The architecture. Defaults follow the paper; see docs/models.md for each deviation."""

    attention: AttentionKind = "sign"
    attention_weights: Literal["learned", "uniform"] = "learned"
    """Uniform forces 1 / L in training and evaluation: the control for what attention brings."""
    sign_role: SignRole = "training"
    """How sign attention acts: only through training (the paper), or in one of five ways forward."""
    sign_estimator: SignEstimator = "clipped"
    """The gradient of the sign: see `quantize.sign_of_weighted`."""
    sign_threshold: float = 0.5
    """delta of `ternary`, tau of `centred`."""
    sign_sharpness: float = 2.0
    """kappa of `stochastic`."""
    sign_evaluation: Literal["expectation", "sampled"] = "expectation"
    """What `stochastic` predicts with: the mean sign, or signs from one fixed draw."""
    energy: Literal["additive", "scalar", "per-channel"] = "additive"
    """e_i = w.tanh(W x_i + W h + b), the paper's scalar equation, or its pseudo-code's 64 channels."""
    attention_scale: Literal["mean-one", "sum-to-one"] = "mean-one"
    """Whether attention enters as L * alpha or as alpha; maps are reported summing to one."""
    temperature: float = 1.0
    channels: Literal["split", "shared"] = "split"
    """Whether sign and magnitude come from 32 channels each or both from all 64."""
    bits: int | None = 10
    """Of the magnitude; None leaves it unquantised (the sign-only predecessor)."""
    quantizer_range: RangeRule = "ema-max"
    output: Literal["gated", "linear", "context"] = "gated"
    """Eq. 10, a linear layer on h_t, or Kim's sum of both."""
    encoder: str = "table-1"
    """table-1, table-1-kernels or pseudo-code, five convolutions each; or timm:NAME, the features of that network
    and a 1 x 1 convolution."""
    encoder_stride: int | None = None
    """Pixels between the cells of a network of timm; None is 16. The convolutions' is 8."""
    normalisation: Literal["batch", "none"] = "batch"
    """After each convolution; the paper names none. Without it held-out error is a fifth higher."""
    colour: Literal["hsv", "rgb"] = "hsv"
    """Networks of timm take rgb."""
    hidden_size: int = 1024
    dropout: float = 0.5
    height: int = 80
    width: int = 160

    def __post_init__(self) -> None:
        if self.bits is not None and not 1 <= self.bits <= 24:
            raise ValueError(f"bits is {self.bits}; expected 1 to 24, or none")
        if not self.temperature > 0 or self.hidden_size < 1 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"temperature is {self.temperature}, hidden_size {self.hidden_size}, dropout {self.dropout}; "
                "expected over 0, 1 or more, and 0 up to 1"
            )
        if min(self.height, self.width) < 1 or self.height * self.width > 2**22:
            raise ValueError(
                f"height is {self.height}, width {self.width}; expected at most {2**22:,} pixels: the network is run "
                "on one frame to size its layers"
            )
        if not self.sign_sharpness > 0 or not self.sign_threshold > 0:
            raise ValueError(
                f"sign_sharpness is {self.sign_sharpness}, sign_threshold {self.sign_threshold}; expected over 0"
            )
        self._check_encoder()

    def _check_encoder(self) -> None:
        if self.timm_name is None and self.encoder not in _ENCODERS:
            raise ValueError(f"encoder is {self.encoder!r}; expected {', '.join(_ENCODERS)} or {OF_TIMM}NAME")
        if self.timm_name is None and self.encoder_stride is not None:
            raise ValueError(
                f"encoder_stride is for encoders {OF_TIMM}NAME, and encoder is {self.encoder}; leave it out"
            )
        if self.timm_name is not None and self.colour != "rgb":
            raise ValueError(
                f"colour is {self.colour} and encoder {self.encoder}, which takes RGB; set model.colour to rgb"
            )
        if self.timm_name is not None and self.stride not in (4, 8, 16, 32):
            raise ValueError(f"encoder_stride is {self.encoder_stride}; expected 4, 8, 16 or 32")

    @property
    def timm_name(self) -> str | None:
        """The network of timm that is the encoder; None of five convolutions."""
        return self.encoder.removeprefix(OF_TIMM) if self.encoder.startswith(OF_TIMM) else None

    @property
    def stride(self) -> int:
        """Pixels of the frame between neighbouring cells."""
        return 8 if self.timm_name is None else self.encoder_stride or 16
