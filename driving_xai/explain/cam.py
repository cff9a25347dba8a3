"""Class activation mapping: feature maps weighted by what a target gains from them."""

from __future__ import annotations

import torch
from torch import nn

from driving_xai.contracts import FrameModel, Frames, Saliency, Target
from driving_xai.explain.capture import layer_gradient
from driving_xai.explain.grid import Cells, to_frame_grid


class GradCAM:
    """Grad-CAM: L = ReLU(sum_k w_k A^k) with w_k the spatial mean of dy/dA^k, upsampled bilinearly.

    Values are raw, >= 0 and in the unit of the target; nothing is normalised. For a regressor, choose
    the target's direction: `targets.magnitude` asks what turns the wheel further the way the model
    itself chose, where the output as such would hide all evidence for the negative side.

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

    def __init__(self, *, layer: nn.Module, cells: Cells | None = None) -> None:
        """`layer` is the one whose output is weighted, as a rule the last convolution; `cells` says where
        the cells of its output lie, see `to_frame_grid`."""
        self.layer, self.cells = layer, cells

    def __call__(self, model: FrameModel, frames: Frames, target: Target) -> Saliency:
        """Explains each frame; see `contracts.Explainer`.

        Raises:
            UnsupportedModelError: the layer does not serve; see `capture.layer_gradient`.
        """
        activation, gradient = layer_gradient(model, frames, target, layer=self.layer)
        weights = gradient.mean((2, 3))
        return to_frame_grid(torch.einsum("bc,bchw->bhw", weights, activation).relu(), frames, self.cells)
