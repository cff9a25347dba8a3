"""Class activation mapping: feature maps weighted by what a target gains from them."""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from driving_xai.errors import UnsupportedModelError
from driving_xai.explain.base import Explainer, require_at_least
from driving_xai.explain.capture import LayerGradient, layer_gradient, pooled_gradient
from driving_xai.explain.grid import to_frame_grid
from driving_xai.explain.seeding import generators
from driving_xai.explain.variants import ReferenceScores
from driving_xai.models.capabilities import feature_map_of, frame_model
from driving_xai.models.channel_spatial import (
    ChannelSpatialAttention,
    Parts,
    drawn_block,
    load_block,
    parameter_free_attention,
)
from driving_xai.types import Cells, FeatureMap, FrameModel, Frames, Saliency, Target

Weights = Float[Tensor, "B C"]
_RANDOM = "random"
"""In place of a file: a block with random weights."""


@dataclass(frozen=True, kw_only=True)
class ClassActivationMap(Explainer):
    """L = ReLU(sum_k w_k A^k), upsampled bilinearly; a method says what w_k is.

    Values are raw, >= 0 and in the unit of the target; nothing is normalised. For a regressor, choose
    the target's direction: `targets.magnitude` asks what turns the wheel further the way the model
    itself chose, where the output as such would hide all evidence for the negative side.

    Args:
        layer: whose output A is weighted: a module of the network or its dotted name, `layer4.1`; channels
            may come first or last, or be a transformer's tokens. None takes the network's last feature map.
        cells: where the cells of that output lie; `measured` follows the windows of convolutions and pools
            down to the frame, `even` spreads the cells evenly over it, as every peer does: after padded,
            strided convolutions that is up to half a cell off.
        head: the linear layer that turns the spatial mean of that output into the scores, where there is
            one: the map then takes one forward pass and no backward pass. None takes the one that the
            network declares with its own feature map.
    """

    layer: str | nn.Module | None = None
    cells: Cells | Literal["measured", "even"] = "measured"
    head: nn.Linear | None = None
    _linear_target: ClassVar[bool] = True
    """Whether a declared head may stand in for the backward pass."""

    def _explain(self, model: FrameModel, frames: Frames, target: Target) -> Saliency:
        at = self.feature_map(model, frames)
        return self.map_of(self.gradient(model, frames, target, at), frames, at)

    def _check(self, model: object, frames: Frames) -> None:
        at = self.feature_map(model, frames)
        self.gradient(frame_model(model), frames, lambda scores: scores.sum(1), at)

    def feature_map(self, model: object, frames: Frames) -> FeatureMap:
        """What is weighted, in this model for frames of this size.

        Raises:
            UnsupportedModelError: there is no such layer, or it puts out no maps.
        """
        found = self._remembered(model, frames, self._find)
        head = self.head or (found.head if self._linear_target else None)
        return replace(found, head=head, cells=self._placed(found.cells))

    def _find(self, model: object, frames: Frames) -> FeatureMap:
        cells: Literal["measured", "even"] = "measured" if self.cells == "measured" else "even"
        return feature_map_of(model, frames, layer=self.layer, cells=cells)

    def _placed(self, measured: Cells | None) -> Cells | None:
        if self.cells == "measured":
            return measured
        return None if self.cells == "even" else self.cells

    def gradient(self, model: FrameModel, frames: Frames, target: Target, at: FeatureMap) -> LayerGradient:
        """The layer's output and the target's gradient there."""
        if at.head is not None:
            return pooled_gradient(model, frames, target, layer=at.layer, head=at.head)
        return layer_gradient(model, frames, target, layer=at)

    def map_of(self, found: LayerGradient, frames: Frames, at: FeatureMap) -> Saliency:
        """The map that follows from a gradient; methods that share a layer may share it."""
        combined = torch.einsum("bc,bchw->bhw", self.weights(found), found.activation)
        return to_frame_grid(combined.relu(), frames, at.cells)

    @abstractmethod
    def weights(self, at: LayerGradient) -> Weights:
        """How much each feature map counts."""


@dataclass(frozen=True, kw_only=True)
class GradCAM(ClassActivationMap):
    """Grad-CAM: w_k is the spatial mean of dy/dA^k.

    Source: Selvaraju et al. 2017, eqs. 1 and 2; compared on steering in Tashiro and Awano 2023, Fig. 6.
    Deviation: the target of a regressor is sign(u) * u; neither paper says how the ReLU meets a
    signed output.

    Example:
        >>> from driving_xai.models.steering import SteeringConfig, SteeringModel
        >>> from driving_xai.targets import magnitude
        >>> model = SteeringModel(SteeringConfig(hidden_size=8)).eval()
        >>> GradCAM()(model, torch.rand(2, 3, 80, 160), magnitude).shape
        torch.Size([2, 80, 160])
    """

    def weights(self, at: LayerGradient) -> Weights:
        return at.gradient.mean((2, 3))


@dataclass(frozen=True, kw_only=True)
class XGradCAM(ClassActivationMap):
    """XGrad-CAM: w_k = sum_ij A^k_ij dy/dA^k_ij / sum_ij A^k_ij.

    After pooling and a linear layer the gradient is one number a map, and this is Grad-CAM. A map whose
    values sum to zero counts nothing.

    Source: Fu et al. 2020, eq. 8.
    Deviation: the equation is for maps that are >= 0. Where values of both signs nearly cancel, as in
    the steering model's last layer, the quotient is ill-conditioned.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).eval()
        >>> XGradCAM()(net, torch.rand(2, 3, 16, 16), lambda scores: scores[:, 0]).shape
        torch.Size([2, 16, 16])
    """

    def weights(self, at: LayerGradient) -> Weights:
        return _quotient((at.activation * at.gradient).sum((2, 3)), at.activation.sum((2, 3)))


@dataclass(frozen=True, kw_only=True)
class GradCAMPlusPlus(ClassActivationMap):
    """Grad-CAM++: w_k = sum_ij alpha_ij ReLU(g_ij), alpha_ij = g_ij^2 / (2 g_ij^2 + g_ij^3 sum_ab A_ab).

    Here g = dy/dA^k. The powers are the derivatives of exp(y), the class score the authors choose,
    less the common factor exp(y), which scales a frame's map and overflows.

    Source: Chattopadhay et al. 2018, eqs. 5, 6 and 10 to 19.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).eval()
        >>> GradCAMPlusPlus()(net, torch.rand(2, 3, 16, 16), lambda scores: scores[:, 0]).shape
        torch.Size([2, 16, 16])
    """

    def weights(self, at: LayerGradient) -> Weights:
        return _plus_plus(at.activation, at.gradient, at.gradient.square(), at.gradient.pow(3))


@dataclass(frozen=True, kw_only=True)
class SmoothGradCAMPlusPlus(GradCAMPlusPlus):
    """Smooth Grad-CAM++: Grad-CAM++ whose three derivatives are means over noisy copies of the frame.

    The maps that are weighted are the clean frame's. The noise is normal; a frame's draw depends on
    the seed and on its own pixels only.

    With a `head` of one's own one clean pass gives the map, which is Grad-CAM++'s: every copy has the same
    gradient. That holds for a target that is linear in the scores; give no head for any other.

    Source: Omeiza et al. 2019, eqs. 5 to 7.
    Deviation: the numerator of alpha is the second derivative, as in Grad-CAM++; the paper prints the
    first. Derivatives as in `GradCAMPlusPlus`, without the factor exp(y), which differs between copies.

    Args:
        samples: noisy copies of each frame, 1 or more.
        noise_std: standard deviation of the noise, of frames in [0, 1]; 0 or more.
        seed: of the noise.

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 2)).eval()
        >>> explain = SmoothGradCAMPlusPlus(samples=3, seed=1)
        >>> explain(net, torch.rand(2, 3, 16, 16), lambda scores: scores[:, 0]).shape
        torch.Size([2, 16, 16])
    """

    samples: int = 10
    noise_std: float = 0.15
    seed: int = 0
    _linear_target: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least({"samples": (self.samples, 1), "noise_std": (self.noise_std, 0)})

    def _explain(self, model: FrameModel, frames: Frames, target: Target) -> Saliency:
        if self.head is not None:
            return super()._explain(model, frames, target)
        at = self.feature_map(model, frames)
        # Noise may turn a wheel over to the other side; what is explained stays the clean frame's.
        held = ReferenceScores(model, frames, target).target
        clean = self.gradient(model, frames, held, at)
        drawn = generators(frames, seed=self.seed)
        moments = [torch.zeros_like(clean.gradient) for _ in range(3)]
        for _ in range(self.samples):
            noise = torch.stack([torch.randn(frames.shape[1:], generator=each) for each in drawn])
            noisy = frames + self.noise_std * noise.to(frames)
            found = layer_gradient(model, noisy, held, layer=at).gradient
            for power, moment in enumerate(moments, start=1):
                moment.add_(found.pow(power), alpha=1 / self.samples)
        weights = _plus_plus(clean.activation, *moments)
        return to_frame_grid(torch.einsum("bc,bchw->bhw", weights, clean.activation).relu(), frames, at.cells)


@dataclass(frozen=True, kw_only=True)
class AttentionGuidedCAM(ClassActivationMap):
    """Grad-CAM's maps under channel and spatial attention, before they are summed.

    With `attention=None` (option A) the weighted maps w_k A^k go through an attention without
    parameters: L = ReLU(sum_k M_s M_c w_k A^k). With a block the layer's output goes through it:
    L = ReLU(sum_k w_k attention(A)_k). Trained on the frozen network that is option B (`train attention` writes
    a file of it), with random weights option C, a negative control.

    Source: An and Joe 2022, section 3.2.
    Deviation: the paper leaves open what F is, how the modules are trained and how the map is
    combined; its explained network is unchanged, so that the modules lie beside its path.

    Args:
        attention: None for option A; `random`, or a file that `train attention` wrote; or a module in eval mode.
        parts: of the attention, for ablations; a module keeps its own.
        reduction: of the random block's hidden layer.
        seed: of the random block.

    Raises:
        CheckpointError: the file cannot be read, or holds no block.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).eval()
        >>> AttentionGuidedCAM()(net, torch.rand(2, 3, 16, 16), lambda scores: scores[:, 0]).shape
        torch.Size([2, 16, 16])
    """

    attention: nn.Module | str | None = None
    parts: Parts = "both"
    reduction: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least({"reduction": (self.reduction, 1)})

    def _check(self, model: object, frames: Frames) -> None:
        at = self.feature_map(model, frames)
        found = self.gradient(frame_model(model), frames, lambda scores: scores.sum(1), at)
        if self.attention is not None:
            self._block(found.activation)

    def weights(self, at: LayerGradient) -> Weights:
        return at.gradient.mean((2, 3))

    @cached_property
    def _stored(self) -> ChannelSpatialAttention:
        return load_block(Path(str(self.attention)), parts=self.parts)

    @torch.no_grad()
    def map_of(self, found: LayerGradient, frames: Frames, at: FeatureMap) -> Saliency:
        attended = self._attended(self.weights(found)[:, :, None, None], found.activation)
        return to_frame_grid(attended.sum(1).relu(), frames, at.cells)

    def _attended(
        self, weights: Float[Tensor, "B C 1 1"], activation: Float[Tensor, "B C h w"]
    ) -> Float[Tensor, "B C h w"]:
        if self.attention is None:
            return parameter_free_attention(weights * activation, parts=self.parts)
        return weights * self._block(activation)(activation)

    def _block(self, activation: Float[Tensor, "B C h w"]) -> nn.Module:
        """The block for maps of so many channels, where they are."""
        if isinstance(self.attention, nn.Module):
            return self.attention
        channels = activation.shape[1]
        if self.attention == _RANDOM:
            block = drawn_block(channels, reduction=self.reduction, seed=self.seed, parts=self.parts)
            return block.to(activation)
        if self._stored.channels != channels:
            raise UnsupportedModelError(
                f"{self.attention} is for maps of {self._stored.channels} channels and this layer has {channels}; "
                "train it on this network"
            )
        # A copy: `to` converts a module in place, and half precision would round the block for good.
        return copy.deepcopy(self._stored).to(activation)


def _plus_plus(activation: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Weights:
    """Grad-CAM++'s weights from the three derivatives at each position."""
    total = activation.sum((2, 3), keepdim=True)
    return (_quotient(second, 2 * second + total * third) * first.relu()).sum((2, 3))


def _quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, 0 where the denominator is 0."""
    return numerator / torch.where(denominator == 0, torch.inf, denominator)
