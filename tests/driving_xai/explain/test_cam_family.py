"""The other class activation maps: slow twins, other libraries, and one pass instead of two, in float64."""

from __future__ import annotations

from functools import partial

import pytest
import pytorch_grad_cam
import torch
import torchcam.methods
from torch import nn

from driving_xai.errors import UnsupportedModelError
from driving_xai.explain.cam import (
    AttentionGuidedCAM,
    GradCAM,
    GradCAMPlusPlus,
    SmoothGradCAMPlusPlus,
    XGradCAM,
)
from driving_xai.explain.capture import LayerGradient, layer_gradient
from driving_xai.explain.registry import FAMILIES, METHODS, explainer_class, fitted
from driving_xai.models.channel_spatial import ChannelSpatialAttention
from driving_xai.models.steering import SteeringConfig, SteeringModel
from driving_xai.targets import magnitude, output
from driving_xai.types import Outputs

CAMS = {name: explainer_class(METHODS[name]) for name in FAMILIES["class activation maps"]}


class Net(nn.Module):
    """Maps that are >= 0, and a head that is pooled and linear or neither."""

    outputs = Outputs(kind="multiclass", names=("a", "b", "c"))

    def __init__(self, *, pooled: bool) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1), nn.Tanh(), nn.Conv2d(6, 7, 3, 2, 1), nn.Softplus()
        )
        self.pooled = pooled
        self.head = nn.Linear(7, 3) if pooled else nn.Linear(7 * 4 * 6, 3)
        self.bend = nn.Identity() if pooled else nn.Tanh()

    def forward(self, frames):
        maps = self.encoder(frames)
        return self.bend(self.head(maps.mean((2, 3)) if self.pooled else maps.flatten(1)))


def _net(*, pooled: bool) -> Net:
    torch.manual_seed(3)
    return Net(pooled=pooled).double().eval()


@pytest.fixture
def frames() -> torch.Tensor:
    return torch.rand(2, 3, 16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _on_grid(explainer, net, frames, target):
    """The method's map before upsampling."""
    at = layer_gradient(net, frames, target, layer=explainer.layer)
    return torch.einsum("bc,bchw->bhw", explainer.weights(at), at.activation).relu()


def _twin(name: str, at: LayerGradient) -> torch.Tensor:
    """The papers' sums, one position at a time."""
    count, channels, height, width = at.activation.shape
    weights = torch.zeros(count, channels, dtype=at.activation.dtype)
    for b in range(count):
        for k in range(channels):
            total = sum(at.activation[b, k, i, j] for i in range(height) for j in range(width))
            for i in range(height):
                for j in range(width):
                    slope, value = at.gradient[b, k, i, j], at.activation[b, k, i, j]
                    if name == "xgrad-cam":
                        weights[b, k] += value / total * slope
                    else:
                        weights[b, k] += slope**2 / (2 * slope**2 + total * slope**3) * max(slope, 0)
    return weights


@pytest.mark.parametrize(("name", "method"), [("xgrad-cam", XGradCAM), ("grad-cam++", GradCAMPlusPlus)])
def test_weights_are_the_papers_sums(frames, name, method):
    net = _net(pooled=False)
    at = layer_gradient(net, frames, output(1), layer=net.encoder)
    found = method(layer=net.encoder).weights(at)
    torch.testing.assert_close(found, _twin(name, at), rtol=1e-12, atol=1e-15)
    assert found.abs().max() > 1e-4


def test_grad_cam_plus_plus_has_the_derivatives_of_the_exponential(frames):
    """The powers of the gradient are, up to exp(y), what autograd gives for exp(y)."""
    net = _net(pooled=True)
    maps = net.encoder(frames).detach()[:1].requires_grad_()
    score = net.head(maps.mean((2, 3)))[0, 1].exp()
    derivatives, current = [], score
    for _ in range(3):
        (full,) = torch.autograd.grad(current, maps, create_graph=True)
        derivatives.append(full)
        current = full[0, 2, 1, 1]
    factor = score.detach()
    first, second, third = (each.detach()[0, 2, 1, 1] / factor for each in derivatives)
    alpha = second / (2 * second + maps.detach()[0, 2].sum() * third)
    at = layer_gradient(net, frames[:1], output(1), layer=net.encoder)
    weight = GradCAMPlusPlus(layer=net.encoder).weights(at)[0, 2]
    # After pooling every position of a map counts alike.
    torch.testing.assert_close(weight, alpha * first.relu() * maps[0, 2].numel(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize(
    ("method", "peer"),
    [
        (GradCAM, pytorch_grad_cam.GradCAM),
        (XGradCAM, pytorch_grad_cam.XGradCAM),
        (GradCAMPlusPlus, pytorch_grad_cam.GradCAMPlusPlus),
    ],
)
def test_weights_equal_pytorch_grad_cams(frames, pooled, method, peer):
    """Its weights from the same activations and gradients; it adds 1e-6 to denominators."""
    net = _net(pooled=pooled)
    # The larger the gradient, the less that epsilon counts; scaling a score is no change of method.
    at = layer_gradient(net, frames, lambda scores: 1e4 * scores[:, 1], layer=net.encoder)
    library = peer(net, [net.encoder])
    theirs = library.get_cam_weights(frames, None, None, at.activation.numpy(), at.gradient.numpy())
    ours = method(layer=net.encoder).weights(at)
    torch.testing.assert_close(ours, torch.as_tensor(theirs), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("method", "peer", "pooled"),
    [
        (XGradCAM, torchcam.methods.XGradCAM, False),
        (XGradCAM, torchcam.methods.XGradCAM, True),
        # Its smooth variant with next to no noise: the plain one is another equation, see below. It sums
        # A g^3 over positions where the paper multiplies g^3 by the sum of A: the same only where the
        # gradient is the same everywhere.
        (GradCAMPlusPlus, partial(torchcam.methods.SmoothGradCAMpp, num_samples=1, std=1e-12), True),
    ],
)
def test_maps_equal_torchcams(frames, method, peer, pooled):
    net = _net(pooled=pooled)
    with torch.no_grad():
        net.head.weight *= 1e3  # Its 1e-8 in denominators vanishes.
        net.bend = nn.Identity()
    with peer(net, net.encoder) as extractor:
        scores = net(frames.clone().requires_grad_())
        (theirs,) = extractor(1, scores, normalized=False)
    ours = _on_grid(method(layer=net.encoder), net, frames, output(1))
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-6, atol=1e-9)


def test_torchcams_grad_cam_plus_plus_is_another_equation(frames):
    """torch-cam 0.5 divides a masked copy, so that its alpha stays g^2, which no paper says."""
    net = _net(pooled=True)
    with torchcam.methods.GradCAMpp(net, net.encoder) as extractor:
        (theirs,) = extractor(1, net(frames.clone().requires_grad_()), normalized=False)
    at = layer_gradient(net, frames, output(1), layer=net.encoder)
    undivided = (at.gradient.square() * at.gradient.relu()).sum((2, 3))
    expected = torch.einsum("bc,bchw->bhw", undivided, at.activation).relu()
    torch.testing.assert_close(theirs.detach(), expected, rtol=1e-10, atol=0)


def test_smoothing_is_the_mean_of_noisy_derivatives(frames):
    """Slow twin: the copies one by one, their derivatives averaged, the clean maps weighted."""
    net = _net(pooled=False)
    explain = SmoothGradCAMPlusPlus(layer=net.encoder, cells="even", samples=4, noise_std=0.2, seed=5)
    seen: list[torch.Tensor] = []
    handle = net.register_forward_pre_hook(lambda _net, taken: seen.append(taken[0].detach().clone()))
    found = explain(net, frames, output(1))
    handle.remove()
    *clean, first, second, third, fourth = seen
    noisy = [first, second, third, fourth]
    assert all(torch.equal(each, frames[: len(each)]) for each in clean)
    assert 0.15 < (torch.stack(noisy) - frames).std() < 0.25
    slopes = torch.stack([layer_gradient(net, each, output(1), layer=net.encoder).gradient for each in noisy])
    first, second, third = (slopes.pow(power).mean(0) for power in (1, 2, 3))
    maps = net.encoder(frames).detach()
    alpha = second / (2 * second + maps.sum((2, 3), keepdim=True) * third)
    combined = ((alpha * first.relu()).sum((2, 3), keepdim=True) * maps).sum(1).relu()
    expected = nn.functional.interpolate(combined[:, None], size=(16, 24), mode="bilinear")[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def test_noise_belongs_to_the_frame(frames):
    """Batch and order change nothing, the seed does."""
    net = _net(pooled=False)
    explain = SmoothGradCAMPlusPlus(layer=net.encoder, samples=3, seed=5)
    both = explain(net, frames, output(1))
    for b in (1, 0):
        torch.testing.assert_close(explain(net, frames[b : b + 1], output(1))[0], both[b], rtol=1e-10, atol=0)
    other = SmoothGradCAMPlusPlus(layer=net.encoder, samples=3, seed=6)(net, frames, output(1))
    assert not torch.allclose(both, other)


@pytest.mark.parametrize("name", CAMS)
@pytest.mark.parametrize("bent", [False, True])
def test_a_pooled_linear_head_needs_no_gradient(frames, name, bent):
    """One forward pass, no backward pass, the same map, also for a target that is not linear."""
    net = _net(pooled=True)
    more = {"samples": 3} if name == "smooth-grad-cam++" else {}
    target = (lambda scores: scores.softmax(1)[:, 1]) if bent and name != "smooth-grad-cam++" else output(1)
    slow = CAMS[name](layer=net.encoder, **more)(net, frames, target)
    explain = CAMS[name](layer=net.encoder, head=net.head)
    explain.check(net, frames)
    passes: list[int] = []
    handle = net.register_forward_pre_hook(lambda _net, taken: passes.append(len(taken[0])))
    fast = explain(net, frames, target)
    handle.remove()
    assert passes == [2]
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-15)
    assert fast.max() > 0


def test_an_and_joes_two_peers_are_one_method_on_a_pooled_network(frames):
    """Their Table 3 tells these two apart."""
    net = _net(pooled=True)
    cam, x_cam = (CAMS[name](layer=net.encoder)(net, frames, output(1)) for name in ("grad-cam", "xgrad-cam"))
    assert cam.max() > 0
    torch.testing.assert_close(x_cam, cam, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("option", [{"samples": 0}, {"noise_std": -0.1}])
def test_noise_out_of_range_is_refused(option):
    with pytest.raises(ValueError, match=r"got (samples|noise_std) .*; expected"):
        SmoothGradCAMPlusPlus(**option)


def test_a_head_that_is_not_linear_in_the_mean_is_refused(frames):
    net = _net(pooled=True)
    net.bend = nn.Tanh()
    with pytest.raises(UnsupportedModelError, match="no linear layer of the mean"):
        GradCAM(layer=net.encoder, head=net.head)(net, frames, output(0))
    net.bend = nn.Identity()
    with pytest.raises(UnsupportedModelError, match="no linear layer of the mean"):
        GradCAM(layer=net.encoder[0], head=net.head)(net, frames, output(0))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_attention_guides_grad_cams_terms(frames):
    """With an attention that changes nothing it is Grad-CAM; one that doubles everything doubles it."""
    net = _net(pooled=False)
    plain = GradCAM(layer=net.encoder)(net, frames, output(1))
    for factor in (1.0, 2.0):

        class Scale(nn.Module):
            def forward(self, maps, factor=factor):
                return factor * maps

        guided = AttentionGuidedCAM(layer=net.encoder, attention=Scale())(net, frames, output(1))
        torch.testing.assert_close(guided, factor * plain, rtol=1e-12, atol=0)


def test_a_trained_block_is_applied_to_the_activation(frames):
    net = _net(pooled=True)
    torch.manual_seed(0)
    block = ChannelSpatialAttention(7, reduction=2).double().eval()
    guided = AttentionGuidedCAM(layer=net.encoder, cells="even", head=net.head, attention=block)(
        net, frames, output(1)
    )
    with torch.no_grad():
        refined = block(net.encoder(frames))
        combined = torch.einsum("k,bkhw->bhw", net.head.weight[1] / 24, refined).relu()
    expected = nn.functional.interpolate(combined[:, None], size=(16, 24), mode="bilinear")[:, 0]
    torch.testing.assert_close(guided, expected, rtol=1e-10, atol=1e-14)
    assert not guided.requires_grad


@pytest.mark.parametrize("name", CAMS)
def test_steering_takes_the_whole_family(name):
    torch.manual_seed(0)
    model = SteeringModel(SteeringConfig(hidden_size=8, height=32, width=48)).eval()
    frames = torch.rand(2, 3, 32, 48)
    together = fitted(name, model, seed=1)(model.at(None), frames, magnitude)
    assert together.isfinite().all()
    assert together.abs().sum() > 0
    alone = fitted(name, model, seed=1)(model.at(None), frames[1:], magnitude)
    torch.testing.assert_close(together[1:], alone, rtol=1e-3, atol=1e-6)
