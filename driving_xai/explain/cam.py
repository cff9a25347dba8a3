"""Class activation mapping: feature maps weighted by what a target gains from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from driving_xai.explain.capture import LayerGradient, layer_gradient, pooled_gradient
from driving_xai.explain.grid import Cells, to_frame_grid
from driving_xai.explain.seeding import generators
from driving_xai.explain.variants import Clean, finite
from driving_xai.models.channel_spatial import Parts, parameter_free_attention
from driving_xai.types import FrameModel, Frames, Saliency, Target

Weights = Float[Tensor, "B C"]


class ClassActivationMap(ABC):
    """L = ReLU(sum_k w_k A^k), upsampled bilinearly; a method says what w_k is.

    Values are raw, >= 0 and in the unit of the target; nothing is normalised. For a regressor, choose
    the target's direction: `targets.magnitude` asks what turns the wheel further the way the model
    itself chose, where the output as such would hide all evidence for the negative side.
    """

    def __init__(
        self, *, layer: nn.Module, cells: Cells | None = None, head: nn.Linear | None = None
    ) -> None:
        """Chooses what is weighted.

        Args:
            layer: its output is weighted, as a rule the last convolution; see `feature_maps`.
            cells: where the cells of its output lie; see `to_frame_grid`.
            head: the linear layer that turns the spatial mean of that output into the scores, where
                there is one: the map then takes one forward pass and no backward pass.
        """
        self.layer, self.cells, self.head = layer, cells, head

    def __call__(self, model: FrameModel, frames: Frames, target: Target) -> Saliency:
        """Explains each frame; see `types.Explainer`.

        Raises:
            UnsupportedModelError: layer or head do not serve; see `capture`.
        """
        return self.map_of(self.gradient(model, frames, target), frames)

    def gradient(self, model: FrameModel, frames: Frames, target: Target) -> LayerGradient:
        """The layer's output and the target's gradient there."""
        if self.head is not None:
            return pooled_gradient(model, frames, target, layer=self.layer, head=self.head)
        return layer_gradient(model, frames, target, layer=self.layer)

    def map_of(self, at: LayerGradient, frames: Frames) -> Saliency:
        """The map that follows from a gradient; methods that share a layer may share it."""
        return self._on_frames(torch.einsum("bc,bchw->bhw", self.weights(at), at.activation), frames)

    @abstractmethod
    def weights(self, at: LayerGradient) -> Weights:
        """How much each feature map counts."""

    def _on_frames(self, combined: Float[Tensor, "B h w"], frames: Frames) -> Saliency:
        return finite(to_frame_grid(combined.relu(), frames, self.cells))


class GradCAM(ClassActivationMap):
    """Grad-CAM: w_k is the spatial mean of dy/dA^k.

    Source: Selvaraju et al. 2017, eqs. 1 and 2; compared on steering in Tashiro and Awano 2023, Fig. 6.
    Deviation: the target of a regressor is sign(u) * u; neither paper says how the ReLU meets a
    signed output.

    Example:
        >>> from driving_xai.models.steering import SteeringConfig, SteeringModel
        >>> from driving_xai.targets import magnitude
        >>> model = SteeringModel(SteeringConfig(hidden_size=8)).eval()
        >>> GradCAM(layer=model.cam_layer)(model.at(None), torch.rand(2, 3, 80, 160), magnitude).shape
        torch.Size([2, 80, 160])
    """

    def weights(self, at: LayerGradient) -> Weights:
        return at.gradient.mean((2, 3))


class XGradCAM(ClassActivationMap):
    """XGrad-CAM: w_k = sum_ij A^k_ij dy/dA^k_ij / sum_ij A^k_ij.

    After pooling and a linear layer the gradient is one number a map, and this is Grad-CAM. A map whose
    values sum to zero counts nothing.

    Source: Fu et al. 2020, eq. 8.
    Deviation: the equation is for maps that are >= 0. Where values of both signs nearly cancel, as in
    the steering model's last layer, the quotient is ill-conditioned.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).eval()
        >>> XGradCAM(layer=net[1])(net, torch.rand(2, 3, 16, 16), lambda scores: scores[:, 0]).shape
        torch.Size([2, 16, 16])
    """

    def weights(self, at: LayerGradient) -> Weights:
        return _quotient((at.activation * at.gradient).sum((2, 3)), at.activation.sum((2, 3)))


class GradCAMPlusPlus(ClassActivationMap):
    """Grad-CAM++: w_k = sum_ij alpha_ij ReLU(g_ij), alpha_ij = g_ij^2 / (2 g_ij^2 + g_ij^3 sum_ab A_ab).

    Here g = dy/dA^k. The powers are the derivatives of exp(y), the class score the authors choose,
    less the common factor exp(y), which scales a frame's map and overflows.

    Source: Chattopadhay et al. 2018, eqs. 5, 6 and 10 to 19.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).eval()
        >>> GradCAMPlusPlus(layer=net[1])(net, torch.rand(2, 3, 16, 16), lambda scores: scores[:, 0]).shape
        torch.Size([2, 16, 16])
    """

    def weights(self, at: LayerGradient) -> Weights:
        return _plus_plus(at.activation, at.gradient, at.gradient.square(), at.gradient.pow(3))


class SmoothGradCAMPlusPlus(GradCAMPlusPlus):
    """Smooth Grad-CAM++: Grad-CAM++ whose three derivatives are means over noisy copies of the frame.

    The maps that are weighted are the clean frame's. The noise is normal; a frame's draw depends on
    the seed and on its own pixels only.

    With a `head` one clean pass gives the map, which is Grad-CAM++'s: every copy has the same gradient.
    That holds for a target that is linear in the scores; give no head for any other.

    Source: Omeiza et al. 2019, eqs. 5 to 7.
    Deviation: the numerator of alpha is the second derivative, as in Grad-CAM++; the paper prints the
    first. Derivatives as in `GradCAMPlusPlus`, without the factor exp(y), which differs between copies.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 2)).eval()
        >>> explain = SmoothGradCAMPlusPlus(layer=net[1], samples=3, seed=1)
        >>> explain(net, torch.rand(2, 3, 16, 16), lambda scores: scores[:, 0]).shape
        torch.Size([2, 16, 16])
    """

    def __init__(
        self,
        *,
        layer: nn.Module,
        cells: Cells | None = None,
        head: nn.Linear | None = None,
        samples: int = 10,
        deviation: float = 0.15,
        seed: int = 0,
    ) -> None:
        """`samples` noisy copies of each frame; `deviation` of the noise, of frames in [0, 1].

        Raises:
            ValueError: an option is out of range.
        """
        super().__init__(layer=layer, cells=cells, head=head)
        if samples < 1 or deviation < 0:
            raise ValueError(
                f"got samples {samples}, deviation {deviation}; expected 1 or more, and 0 or more"
            )
        self.samples, self.deviation, self.seed = samples, deviation, seed

    def __call__(self, model: FrameModel, frames: Frames, target: Target) -> Saliency:
        if self.head is not None:
            return super().__call__(model, frames, target)
        # Noise may turn a wheel over to the other side; what is explained stays the clean frame's.
        held = Clean(model, frames, target).target
        clean = self.gradient(model, frames, held)
        drawn = generators(frames, seed=self.seed)
        moments = [torch.zeros_like(clean.gradient) for _ in range(3)]
        for _ in range(self.samples):
            noise = torch.stack([torch.randn(frames.shape[1:], generator=each) for each in drawn])
            noisy = frames + self.deviation * noise.to(frames)
            found = layer_gradient(model, noisy, held, layer=self.layer).gradient
            for power, moment in enumerate(moments, start=1):
                moment.add_(found.pow(power), alpha=1 / self.samples)
        weights = _plus_plus(clean.activation, *moments)
        return self._on_frames(torch.einsum("bc,bchw->bhw", weights, clean.activation), frames)


class AttentionGuidedCAM(ClassActivationMap):
    """Grad-CAM's maps under channel and spatial attention, before they are summed.

    With `attention=None` (option A) the weighted maps w_k A^k go through an attention without
    parameters: L = ReLU(sum_k M_s M_c w_k A^k). With a module, such as `ChannelSpatialAttention`,
    the layer's output goes through it: L = ReLU(sum_k w_k attention(A)_k). Trained on the frozen
    network that is option B (`training.attention`), with random weights option C, a negative control.

    Source: An and Joe 2022, section 3.2.
    Deviation: the paper leaves open what F is, how the modules are trained and how the map is
    combined; its explained network is unchanged, so that the modules lie beside its path.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).eval()
        >>> AttentionGuidedCAM(layer=net[1])(net, torch.rand(2, 3, 16, 16), lambda scores: scores[:, 0]).shape
        torch.Size([2, 16, 16])
    """

    def __init__(
        self,
        *,
        layer: nn.Module,
        cells: Cells | None = None,
        head: nn.Linear | None = None,
        attention: nn.Module | None = None,
        parts: Parts = "both",
    ) -> None:
        """`attention` is in eval mode; `parts` of the attention without parameters, for ablations."""
        super().__init__(layer=layer, cells=cells, head=head)
        self.attention, self.parts = attention, parts

    def weights(self, at: LayerGradient) -> Weights:
        return at.gradient.mean((2, 3))

    @torch.no_grad()
    def map_of(self, at: LayerGradient, frames: Frames) -> Saliency:
        weights = self.weights(at)[:, :, None, None]
        if self.attention is None:
            attended = parameter_free_attention(weights * at.activation, parts=self.parts)
        else:
            attended = weights * self.attention(at.activation)
        return self._on_frames(attended.sum(1), frames)


def maps_from_one_pass(
    explainers: Mapping[str, ClassActivationMap], model: FrameModel, frames: Frames, target: Target
) -> dict[str, Saliency]:
    """The maps of several methods on one layer from one gradient.

    Args:
        explainers: all with the layer and head of the first. Smooth Grad-CAM++ is then Grad-CAM++.
    """
    at = next(iter(explainers.values())).gradient(model, frames, target)
    return {name: explainer.map_of(at, frames) for name, explainer in explainers.items()}


def _plus_plus(activation: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Weights:
    """Grad-CAM++'s weights from the three derivatives at each position."""
    total = activation.sum((2, 3), keepdim=True)
    return (_quotient(second, 2 * second + total * third) * first.relu()).sum((2, 3))


def _quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, 0 where the denominator is 0."""
    return numerator / torch.where(denominator == 0, torch.inf, denominator)


CAMS: Mapping[str, type[ClassActivationMap]] = {
    "grad-cam": GradCAM,
    "grad-cam++": GradCAMPlusPlus,
    "smooth-grad-cam++": SmoothGradCAMPlusPlus,
    "xgrad-cam": XGradCAM,
    "attention-guided-cam": AttentionGuidedCAM,
}
"""The family by its literature names; each takes `layer`, `cells` and `head`."""
