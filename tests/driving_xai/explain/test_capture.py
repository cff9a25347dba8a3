"""Gradients at a layer: equal to autograd's, and nothing about the model is left changed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from driving_xai.errors import UnsupportedModelError
from driving_xai.explain.capture import layer_gradient
from driving_xai.targets import left
from driving_xai.types import Outputs


class Toy(nn.Module):
    """Two convolutions and an in-place activation after the second."""

    outputs = Outputs(kind="regression", names=("u",))

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 5, 3, stride=2, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(5, 1)

    def forward(self, frames):
        return self.head(self.act(self.second(self.first(frames).tanh())).square().mean((2, 3)))


@pytest.fixture
def toy() -> Toy:
    torch.manual_seed(0)
    return Toy().double().eval()


@pytest.fixture
def frames() -> torch.Tensor:
    return torch.rand(3, 3, 8, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_gradient_is_that_of_the_tail_written_out(toy, frames):
    found = layer_gradient(toy, frames, left, layer=toy.second)
    activation = toy.second(toy.first(frames).tanh()).detach().requires_grad_()
    toy.head(activation.relu().square().mean((2, 3))).sum().backward()
    torch.testing.assert_close(found.activation, activation.detach(), rtol=0, atol=0)
    torch.testing.assert_close(found.gradient, activation.grad, rtol=1e-12, atol=1e-15)


def test_a_sample_is_explained_by_itself(toy, frames):
    together = layer_gradient(toy, frames, left, layer=toy.second).gradient
    alone = torch.cat([layer_gradient(toy, frame[None], left, layer=toy.second).gradient for frame in frames])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-15)


def _snapshot(model: nn.Module):
    return {
        name: (tensor.clone(), tensor.requires_grad, getattr(tensor, "grad", None))
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    }


@pytest.mark.parametrize("target_fails", [False, True])
def test_everything_is_left_as_it_was(toy, frames, target_fails):
    def failing(scores):
        raise KeyError("from the target")

    before, given = _snapshot(toy), frames.clone()
    toy.head.weight.requires_grad_(False)
    grad_mode, cudnn = torch.is_grad_enabled(), torch.backends.cudnn.enabled
    if target_fails:
        with pytest.raises(KeyError, match="from the target"):
            layer_gradient(toy, frames, failing, layer=toy.second)
    else:
        layer_gradient(toy, frames, left, layer=toy.second)
    assert not toy.head.weight.requires_grad
    toy.head.weight.requires_grad_(True)
    for name, (tensor, requires_grad, grad) in _snapshot(toy).items():
        assert torch.equal(tensor, before[name][0]), name
        assert (requires_grad, grad) == (before[name][1], None), name
    assert torch.equal(frames, given)
    assert not frames.requires_grad
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in toy.modules())
    assert not nn.modules.module._global_forward_pre_hooks
    assert not any(module.training for module in toy.modules())
    assert (torch.is_grad_enabled(), torch.backends.cudnn.enabled) == (grad_mode, cudnn)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_grad_mode_does_not_matter(toy, frames, mode):
    expected = layer_gradient(toy, frames, left, layer=toy.second).gradient
    with mode():
        enabled = torch.is_grad_enabled()
        found = layer_gradient(toy, frames.clone(), left, layer=toy.second).gradient
        assert torch.is_grad_enabled() == enabled
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_nothing_is_recorded_before_the_layer(toy, frames):
    recording = []
    handle = toy.first.register_forward_hook(
        lambda _layer, _inputs, output: recording.append(output.requires_grad)
    )
    layer_gradient(toy, frames, left, layer=toy.second)
    handle.remove()
    assert recording == [False]


def test_a_layer_in_training_mode_is_refused(toy, frames):
    with pytest.raises(UnsupportedModelError, match=r"training mode; call eval\(\)"):
        layer_gradient(toy.train(), frames, left, layer=toy.second)


def test_a_layer_that_does_not_run_is_refused(toy, frames):
    with pytest.raises(UnsupportedModelError, match="ran 0 times"):
        layer_gradient(toy, frames, left, layer=nn.Conv2d(3, 3, 1).eval())


def test_a_layer_that_runs_twice_is_refused(toy, frames):
    toy.second, toy.head = nn.Conv2d(4, 4, 1).double().eval(), nn.Linear(4, 1).double()
    toy.act = toy.second
    with pytest.raises(UnsupportedModelError, match="ran 2 times"):
        layer_gradient(toy, frames, left, layer=toy.second)


def test_a_layer_without_feature_maps_is_refused(toy, frames):
    with pytest.raises(UnsupportedModelError, match=r"put out shape \(3, 1\), expected \(B, C, h, w\)"):
        layer_gradient(toy, frames, left, layer=toy.head)


def test_a_target_that_ignores_the_layer_is_refused(toy, frames):
    with pytest.raises(UnsupportedModelError, match="does not depend on layer Conv2d"):
        layer_gradient(toy, frames, lambda scores: torch.ones(3), layer=toy.second)


class Recurrent(Toy):
    """A CNN-LSTM with the kind of layer that has no backward pass in cuDNN's eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 5, batch_first=True)

    def forward(self, frames):
        features = self.second(self.first(frames)).mean((2, 3))
        return self.head(self.lstm(features[:, None])[0][:, 0])


def test_recurrent_layers_leave_cudnn_and_convolutions_do_not(frames):
    torch.manual_seed(0)
    model = Recurrent().double().eval()
    used = {}
    for name in ("first", "second", "lstm"):
        layer = getattr(model, name)
        layer.register_forward_hook(lambda *_, name=name: used.update({name: torch.backends.cudnn.enabled}))
    found = layer_gradient(model, frames, left, layer=model.second)
    assert used == {"first": True, "second": True, "lstm": False}
    assert torch.backends.cudnn.enabled
    assert found.gradient.abs().sum() > 0


@pytest.mark.gpu
def test_recurrent_layers_go_backward_in_eval_mode_on_cuda(frames):
    torch.manual_seed(0)
    model = Recurrent().double().eval()
    expected = layer_gradient(model, frames, left, layer=model.second).gradient
    found = layer_gradient(model.cuda(), frames.cuda(), left, layer=model.second).gradient
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())
