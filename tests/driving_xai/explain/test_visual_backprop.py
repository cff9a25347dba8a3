"""VisualBackProp against its definition written out, pixel by pixel."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from driving_xai.errors import UnsupportedModelError
from driving_xai.explain.visual_backprop import Stage, VisualBackProp, stages
from driving_xai.models.steering import SteeringConfig, SteeringModel
from driving_xai.targets import left, right
from driving_xai.types import Outputs


class Pilot(nn.Module):
    """A chain as PilotNet's: strides, a pooling, odd sizes, in-place activations, none at the end."""

    outputs = Outputs(kind="regression", names=("u",))

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 4, 5, 2, 2),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 5, 3, (1, 2), (0, 1)),
            nn.ReLU(inplace=True),
            nn.Conv2d(5, 6, 3, 1, 1),
        )
        self.head = nn.LazyLinear(1)

    def forward(self, frames):
        return self.head(self.encoder(frames).flatten(1))


@pytest.fixture
def pilot() -> Pilot:
    torch.manual_seed(0)
    model = Pilot()
    model(torch.rand(4, 3, 17, 22))  # Batch statistics that are not trivial, and the head's size.
    return model.double().eval()


def _spread(cells: torch.Tensor, size, kernel, stride, padding) -> torch.Tensor:
    """Adds each cell to every input position that its window covers, one at a time."""
    result = torch.zeros(size, dtype=cells.dtype)
    for i in range(cells.shape[0]):
        for j in range(cells.shape[1]):
            for di in range(kernel[0]):
                for dj in range(kernel[1]):
                    row, column = i * stride[0] - padding[0] + di, j * stride[1] - padding[1] + dj
                    if 0 <= row < size[0] and 0 <= column < size[1]:
                        result[row, column] += cells[i, j]
    return result


def test_it_is_its_definition(pilot):
    frames = torch.rand(2, 3, 17, 22, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours = VisualBackProp(stages=stages(pilot.encoder))(pilot, frames, left)
    layers = pilot.encoder
    with torch.no_grad():
        first = layers[2](layers[1](layers[0](frames)))
        pooled = layers[3](first)
        second = layers[5](layers[4](pooled))
        last = layers[6](second).clamp(min=0)
    for b in range(2):
        means = [features[b].mean(0) for features in (first, pooled, second, last)]
        mask = means[2] * _spread(means[3], means[2].shape, (3, 3), (1, 1), (1, 1))
        mask = means[1] * _spread(mask, means[1].shape, (3, 3), (1, 2), (0, 1))
        mask = means[0] * _spread(mask, means[0].shape, (2, 2), (2, 2), (0, 0))
        mask = _spread(mask, (17, 22), (5, 5), (2, 2), (2, 2))
        torch.testing.assert_close(ours[b], mask, rtol=1e-10, atol=1e-13)
    assert ours.max() > 0


def test_only_a_bright_spot_shows():
    """One pixel that all layers answer to: the map lies within what the layers saw it from."""
    model = nn.Sequential(*(nn.Conv2d(*pair, 3, 1, 1, bias=False) for pair in ((3, 2), (2, 2)))).double()
    for layer in model:
        nn.init.ones_(layer.weight)
    frames = torch.zeros(1, 3, 11, 13, dtype=torch.float64)
    frames[0, :, 5, 6] = 1
    saliency = VisualBackProp(stages=stages(model.eval()))(model, frames, left)[0]
    assert saliency.flatten().argmax() == 5 * 13 + 6
    rows, columns = saliency.nonzero().unbind(1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (3, 7, 4, 8)


@pytest.mark.parametrize("attention", ["sign", "none"])
@pytest.mark.parametrize("folded", [False, True])
def test_a_steering_instant_leaves_everything_alone(attention, folded, untouched):
    torch.manual_seed(0)
    model = SteeringModel(SteeringConfig(hidden_size=8, attention=attention, height=32, width=48)).eval()
    model = model.fold_normalisation() if folded else model
    frames = torch.rand(2, 3, 32, 48)
    explain = VisualBackProp(stages=stages(model.encoder))
    assert len(explain.stages) == 5
    with untouched(model, frames):
        saliency = explain(model.at(None), frames, left)
    alone = torch.cat([explain(model.at(None), frame[None], right) for frame in frames])
    torch.testing.assert_close(saliency, alone, rtol=1e-4, atol=1e-7)
    assert saliency.min() >= 0
    assert saliency.std() > 0


def test_hooks_are_gone_after_a_failure(pilot, untouched):
    frames = torch.rand(1, 3, 17, 22, dtype=torch.float64)
    broken = [*stages(pilot.encoder), Stage(pilot.encoder[6], pilot.head)]
    with (
        untouched(pilot, frames),
        pytest.raises(UnsupportedModelError, match="Linear puts out no feature maps"),
    ):
        VisualBackProp(stages=broken)(pilot, frames, left)
    idle = [Stage(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))]
    with pytest.raises(UnsupportedModelError, match="Conv2d gave 0 outputs in one forward pass"):
        VisualBackProp(stages=idle)(pilot, frames, left)
    skipping = stages(pilot.encoder)[::2]
    with pytest.raises(UnsupportedModelError, match=r"Conv2d does not turn .* choose other stages"):
        VisualBackProp(stages=skipping)(pilot, frames, left)
    with torch.no_grad():
        pilot.encoder[6].bias[0] = torch.inf
    with pytest.raises(ValueError, match="got NaN or infinity"):
        VisualBackProp(stages=stages(pilot.encoder))(pilot, frames, left)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1))), "Sequential is no single layer"),
        (nn.Sequential(nn.ReLU()), "does not begin with a convolution"),
        (nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(3, 3, 1)), "does not begin with a convolution"),
    ],
)
def test_what_is_no_plain_chain_is_refused(encoder, message):
    with pytest.raises(UnsupportedModelError, match=message):
        stages(encoder)
