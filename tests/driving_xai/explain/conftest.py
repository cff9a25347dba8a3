"""Small models in float64, and what every explainer has to leave alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
from torch import nn

from driving_xai.models.steering import SteeringConfig, SteeringModel
from driving_xai.types import Outputs


class Smooth(nn.Module):
    """A differentiable regressor with weights of every sign, so that no target is trivial."""

    outputs = Outputs(kind="regression", names=("u",))

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.Tanh(), nn.Conv2d(5, 4, 3, 2, 1), nn.Tanh())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 3 * 4, 2))

    def forward(self, frames):
        return self.head(self.encoder(frames))


class Linear(nn.Module):
    """u = sum of weights times pixels, plus a constant: every explanation has a closed form."""

    outputs = Outputs(kind="regression", names=("u",))

    def __init__(self, height: int, width: int, *, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, height, width, dtype=torch.float64))
        self.bias = bias

    def forward(self, frames):
        return (frames * self.weight).sum((1, 2, 3))[:, None] + self.bias


@pytest.fixture
def smooth(frames: torch.Tensor) -> Smooth:
    """Its outputs lie on both sides of zero."""
    torch.manual_seed(0)
    model = Smooth().double().eval()
    with torch.no_grad():
        model.head[1].bias -= model(frames).mean(0)
    return model


@pytest.fixture
def linear() -> Callable[..., Linear]:
    def build(height: int = 12, width: int = 16, *, bias: float = 0.0) -> Linear:
        torch.manual_seed(1)
        return Linear(height, width, bias=bias).eval()

    return build


@pytest.fixture
def frames() -> torch.Tensor:
    return torch.rand(3, 3, 12, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def instant():
    """A steering model's view of one instant of two drives, with its frames: (model, view, frames)."""
    torch.manual_seed(0)
    model = (
        SteeringModel(SteeringConfig(hidden_size=8, attention="soft", height=32, width=48)).double().eval()
    )
    clips = torch.rand(2, 2, 3, 32, 48, dtype=torch.float64)
    with torch.no_grad():
        state = model.step(clips[:, 0], None)[2]
    return model, model.at(state), clips[:, 1]


@pytest.fixture
def untouched():
    """A check that model, frames and hooks are, after the `with`, as they were before."""

    @contextlib.contextmanager
    def check(model: nn.Module, frames: torch.Tensor):
        given = frames.clone()
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        modes = [module.training for module in model.modules()]
        grad_mode, cudnn = torch.is_grad_enabled(), torch.backends.cudnn.enabled
        yield
        assert torch.equal(frames, given)
        assert not frames.requires_grad
        assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
        assert all(each.requires_grad and each.grad is None for each in model.parameters())
        assert [module.training for module in model.modules()] == modes
        assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())
        assert not nn.modules.module._global_forward_pre_hooks
        assert not nn.modules.module._global_forward_hooks
        assert (torch.is_grad_enabled(), torch.backends.cudnn.enabled) == (grad_mode, cudnn)

    return check
