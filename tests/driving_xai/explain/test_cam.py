"""Grad-CAM against its equation, against other libraries, and on the steering model."""

from __future__ import annotations

import warnings

import captum.attr
import pytest
import torch
import torchcam.methods
from pytorch_grad_cam import GradCAM as PeerGradCAM
from torch import nn

from driving_xai.explain.cam import GradCAM
from driving_xai.models.steering import SteeringConfig, SteeringModel
from driving_xai.targets import left, magnitude, output, right
from driving_xai.types import Outputs


class Classifier(nn.Module):
    outputs = Outputs(kind="multiclass", names=("a", "b", "c"))

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Tanh(), nn.Conv2d(6, 7, 3, 2, 1))
        self.head = nn.Sequential(nn.Flatten(), nn.Tanh(), nn.Linear(7 * 4 * 6, 3))

    def forward(self, frames):
        return self.head(self.encoder(frames))


class PooledClassifier(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(7, 3)

    def forward(self, frames):
        return self.head(self.encoder(frames).mean((2, 3)))


@pytest.fixture
def frames() -> torch.Tensor:
    return torch.rand(2, 3, 16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model() -> Classifier:
    torch.manual_seed(3)
    return Classifier().double().eval()


def _upsampled_by_hand(grid: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Bilinear interpolation between cell centres, clamped at the border, one pixel at a time."""
    result = torch.empty(height, width, dtype=grid.dtype)
    rows, columns = grid.shape
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * rows / height - 0.5, 0), rows - 1)
            x = min(max((j + 0.5) * columns / width - 0.5, 0), columns - 1)
            top, start = int(y), int(x)
            bottom, end = min(top + 1, rows - 1), min(start + 1, columns - 1)
            above = grid[top, start] * (1 - x + start) + grid[top, end] * (x - start)
            below = grid[bottom, start] * (1 - x + start) + grid[bottom, end] * (x - start)
            result[i, j] = above * (1 - y + top) + below * (y - top)
    return result


def test_pooled_classifier_has_the_cam_of_its_weights(frames):
    """After global pooling dy_c/dA^k is w_ck / Z everywhere: Grad-CAM is CAM over Z, without a gradient."""
    torch.manual_seed(0)
    model = PooledClassifier().double().eval()
    maps = GradCAM(layer=model.encoder[2], cells="even")(model, frames, output(1))
    activation = model.encoder(frames).detach()
    for saliency, features in zip(maps, activation, strict=True):
        cells = features[0] * 0
        for k, weight in enumerate(model.head.weight[1].detach()):
            cells += weight / cells.numel() * features[k]
        expected = _upsampled_by_hand(cells.clamp(min=0), 16, 24)
        torch.testing.assert_close(saliency, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("column", [0, 1, 2])
def test_equals_captum(model, frames, column):
    layer = model.encoder[2]
    peer = captum.attr.LayerGradCam(model, layer).attribute(frames, target=column, relu_attributions=True)
    peer = captum.attr.LayerAttribution.interpolate(peer, (16, 24), "bilinear")[:, 0]
    ours = GradCAM(layer=layer, cells="even")(model, frames, output(column))
    torch.testing.assert_close(ours, peer.detach(), rtol=1e-12, atol=1e-14)


def test_equals_torchcam_before_it_normalises(model, frames):
    layer = model.encoder[2]
    with torchcam.methods.GradCAM(model, layer) as extractor:
        (peer,) = extractor(1, model(frames.clone().requires_grad_()), normalized=False)
    ours = GradCAM(layer=layer, cells="even")(model, frames, output(1))
    expected = torch.stack([_upsampled_by_hand(cells, 16, 24) for cells in peer.detach()])
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


def test_orders_pixels_as_pytorch_grad_cam(model, frames):
    """That library stretches each map to [0, 1]; ours, stretched alike, is the same map in float32."""
    layer = model.encoder[2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = PeerGradCAM(model.float(), [layer])(frames.float(), targets=[lambda scores: scores[1]] * 2)
    ours = GradCAM(layer=layer, cells="even")(model.double(), frames, output(1))
    low, high = ours.amin((1, 2), keepdim=True), ours.amax((1, 2), keepdim=True)
    stretched = ((ours - low) / (high - low)).float()
    torch.testing.assert_close(stretched, torch.as_tensor(peer), rtol=0, atol=2e-5)


def test_regression_explains_the_side_the_model_chose(frames):
    """For a negative output, `magnitude` is `right`; the output itself would show the other side's evidence."""
    torch.manual_seed(0)
    model = PooledClassifier().double().eval()
    model.head = nn.Linear(7, 1).double()
    explain = GradCAM(layer=model.encoder[2])
    towards_left, towards_right = (explain(model, frames, target) for target in (left, right))
    chosen = explain(model, frames, magnitude)
    went_left = model(frames)[:, 0] > 0
    expected = torch.where(went_left[:, None, None], towards_left, towards_right)
    torch.testing.assert_close(chosen, expected, rtol=1e-12, atol=1e-15)
    assert not torch.allclose(towards_left, towards_right)


def test_values_carry_the_targets_unit(model, frames):
    explain = GradCAM(layer=model.encoder[2])
    once = explain(model, frames, output(0))
    thrice = explain(model, frames, lambda scores: 3 * scores[:, 0])
    torch.testing.assert_close(thrice, 3 * once, rtol=1e-12, atol=0)
    assert once.max() > 0


@pytest.mark.parametrize("attention", ["none", "soft", "sign"])
@pytest.mark.parametrize("readout", ["gated", "linear"])
def test_steering_instants_are_explained_each_with_its_own_past(attention, readout):
    torch.manual_seed(0)
    config = SteeringConfig(hidden_size=8, attention=attention, output=readout, height=32, width=48)
    model = SteeringModel(config).eval()
    clips = torch.rand(2, 3, 3, 32, 48)
    state = None
    with torch.no_grad():
        for t in range(2):
            state = model.step(clips[:, t], state)[2]
    explain = GradCAM(layer=model.feature_map.layer)
    together = explain(model.at(state), clips[:, 2], magnitude)
    for b in range(2):
        alone = type(state)(*(part[b : b + 1] for part in state))
        expected = explain(model.at(alone), clips[b : b + 1, 2], magnitude)[0]
        torch.testing.assert_close(together[b], expected, rtol=1e-4, atol=1e-7)
    assert together.abs().sum() > 0
