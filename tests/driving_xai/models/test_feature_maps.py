"""Finding the last feature map, its cells and the head, on torchvision's and timm's networks."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn

from driving_xai.errors import UnsupportedModelError
from driving_xai.models.capabilities import feature_map_of
from driving_xai.models.feature_maps import (
    cell_centres,
    last_feature_map,
    linear_head,
    named_layer,
    removed_after,
)
from driving_xai.models.wrap import wrap
from driving_xai.types import Cells

FRAMES = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def _torchvision(name: str) -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None, num_classes=3).eval()


def _timm(name: str) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False, num_classes=3).eval()


@pytest.mark.parametrize(
    ("network", "layer", "pooled", "cells"),
    [
        (lambda: _torchvision("resnet18"), "layer4", True, (0.0, 32.0)),
        # A max pool of 2 x 2 lies between cells: half a cell at each of five levels.
        (lambda: _torchvision("vgg11"), "features", False, (15.5, 32.0)),
        (lambda: _torchvision("squeezenet1_1"), "classifier.2", False, None),
        # Its last normalisation is followed by a ReLU outside the module: no linear head.
        (lambda: _torchvision("densenet121"), "features", False, None),
        (lambda: _timm("efficientnet_b0"), "bn2", True, (0.0, 32.0)),
        (lambda: _timm("resnet18d"), "layer4", True, (0.0, 32.0)),
        # TensorFlow's padding depends on the size: where the cells lie is not said.
        (lambda: _timm("tf_efficientnet_lite0"), "bn2", True, None),
    ],
    ids=["resnet18", "vgg11", "squeezenet", "densenet", "efficientnet", "resnet18d", "tf-lite0"],
)
def test_layers_are_found(network, layer, pooled, cells):
    network = network()
    found = last_feature_map(network, FRAMES)
    assert found is named_layer(network, layer)
    assert (linear_head(network, FRAMES, found) is not None) == pooled
    if cells is not None:
        assert cell_centres(network, FRAMES, found) == Cells(*cells)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(5, 2, 1), (3, 2, 1), (4, 4, 0), (7, 1, 0)])
def test_centres_are_where_the_gradient_is_centred(kernel, stride, padding):
    """Uniform weights: the centre of mass of a cell's gradient on the frame is the centre it is said to have."""
    network = nn.Sequential(nn.Conv2d(3, 1, kernel, stride, padding), nn.MaxPool2d(2), nn.Conv2d(1, 1, 3))
    for module in (network[0], network[2]):
        nn.init.ones_(module.weight)
    network[1] = nn.AvgPool2d(2)
    frames = torch.zeros(1, 3, 64, 64, requires_grad=True)
    first, step, _ = cell_centres(network, frames, network[2])
    network(frames)[0, 0, 2, 1].backward()
    mass = frames.grad[0, 0]
    row = float((mass.sum(1) * torch.arange(64)).sum() / mass.sum())
    column = float((mass.sum(0) * torch.arange(64)).sum() / mass.sum())
    assert (row, column) == pytest.approx((first + 2 * step, first + step))


def test_the_mode_of_each_part_is_left_as_it_was():
    network = _torchvision("resnet18").train()
    network.layer3.eval()
    last_feature_map(network, FRAMES)
    assert network.layer4.training
    assert not network.layer3.training


def test_names_that_do_not_exist_and_networks_without_maps_are_refused():
    network = _torchvision("resnet18")
    with pytest.raises(UnsupportedModelError, match=r"'layer4.7' is unknown: layer4 has 0, 1"):
        named_layer(network, "layer4.7")
    with pytest.raises(UnsupportedModelError, match="no feature map of more than one cell"):
        last_feature_map(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 96, 2)), FRAMES)


def test_hooks_of_a_registration_that_fails_on_its_way_are_removed():
    layers = [nn.Identity(), nn.Identity()]

    def handles():
        yield layers[0].register_forward_hook(lambda *_: None)
        raise AttributeError("the second has no such part")

    with pytest.raises(AttributeError, match="no such part"), removed_after(handles()):
        raise AssertionError("nothing runs without its hooks")
    assert not layers[0]._forward_hooks


def test_a_last_map_of_one_row_is_found_and_placed_at_the_networks_own_size():
    """PilotNet: 66 x 200 pixels become 1 x 18 cells; unpadded, the first is centred on pixel 30."""
    layers = []
    for taken, given, kernel, stride in [
        (3, 2, 5, 2),
        (2, 2, 5, 2),
        (2, 2, 5, 2),
        (2, 2, 3, 1),
        (2, 4, 3, 1),
    ]:
        layers += [nn.Conv2d(taken, given, kernel, stride), nn.ELU()]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(72, 1)).eval()
    model = wrap(net, outputs="regression", names=["curvature"], size=(66, 200))
    found = feature_map_of(model, torch.rand(1, 3, 80, 160))
    assert (found.layer, found.layout) == (net[9], "channels-first")
    assert found.cells == Cells(30.0, 8.0, frame_px=(66, 200))
    assert feature_map_of(model, torch.rand(1, 3, 66, 200)).cells == Cells(30.0, 8.0)
