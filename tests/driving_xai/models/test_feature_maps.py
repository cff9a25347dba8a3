"""Finding the last feature map, its cells and the head, on torchvision's and timm's networks."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from driving_xai.errors import UnsupportedModelError
from driving_xai.explain.cam import GradCAM
from driving_xai.models.capabilities import feature_map_of
from driving_xai.models.feature_maps import cell_centres, last_feature_map, linear_head, named_layer
from driving_xai.models.forward_trace import removed_after
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
    first, step, *_ = cell_centres(network, frames, network[2])
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


def swin_of_any_size() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.SwinTransformer(
        [4, 4], 12, [1, 1, 1, 1], [1, 1, 1, 1], [7, 7], num_classes=3
    ).eval()


def swin_of_one_size() -> nn.Module:
    torch.manual_seed(0)
    shape = {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "window_size": 12}
    return timm.create_model("swin_tiny_patch4_window7_224", img_size=384, num_classes=3, **shape).eval()


def convnext() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "convnext_tiny", depths=(1, 1, 1, 1), dims=(12, 12, 12, 12), num_classes=3
    ).eval()


@pytest.mark.parametrize(
    ("network", "layer", "layout"),
    [
        (swin_of_any_size, "norm", "channels-last"),
        (swin_of_any_size, "permute", "channels-first"),
        (swin_of_any_size, "features.1", "channels-last"),
        (swin_of_one_size, "norm", "channels-last"),
        (convnext, "stages.3", "channels-first"),
        (convnext, "stages.3.blocks.0.norm", "channels-last"),
    ],
)
def test_a_layout_is_not_taken_from_numbers_that_happen_to_be_alike(network, layer, layout):
    """At 384 px a stage of 12 channels has 12 x 12 cells, and one of 96 has 96 x 96."""
    net = network()
    found = feature_map_of(net, torch.rand(1, 3, 384, 384), layer=layer)
    assert found.layout == layout


class Ambiguous(nn.Module):
    """Takes one size, and its layers of both kinds put out [1, 4, 4, 4]."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 4, 4), nn.Linear(4, 4)
        self.head = nn.Linear(64, 2)

    def forward(self, frames):
        assert frames.shape[2:] == (16, 16), "16 x 16 only"
        return self.head(self.last(self.first(frames)).flatten(1))


def test_a_layout_that_cannot_be_known_is_refused_by_name():
    with pytest.raises(UnsupportedModelError, match=r"Linear put out shape \(1, 4, 4, 4\).*first or last"):
        feature_map_of(Ambiguous().eval(), torch.rand(1, 3, 16, 16))


class Attention(nn.Module):
    """Written out, so that its softmax and its dropout are modules that put out [B, heads, N, N]."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.qkv, self.project = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.softmax, self.dropout, self.norm = nn.Softmax(-1), nn.Dropout(0.1), nn.LayerNorm(width // heads)

    def forward(self, tokens):
        query, key, value = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = self.dropout(self.softmax(self.norm(query) @ key.mT))
        return self.project((weights @ value).transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    def __init__(self, *, size=None):
        super().__init__()
        self.size, self.embed, self.attention = size, nn.Conv2d(3, 24, 8, 8), Attention(24, 2)
        self.head = nn.Linear(24, 3)

    def forward(self, frames):
        assert self.size in (None, frames.shape[2]), "another size"
        tokens = self.embed(frames).flatten(2).mT
        return self.head((tokens + self.attention(tokens)).mean(1))


@pytest.mark.parametrize("size", [None, 64])
def test_attention_between_tokens_is_no_feature_map(size):
    network, frames = Transformer(size=size).eval(), torch.rand(1, 3, 64, 64)
    with pytest.raises(UnsupportedModelError, match="turns its feature map into tokens"):
        feature_map_of(network, frames)
    for layer in ("attention.softmax", "attention.dropout", "attention.norm"):
        with pytest.raises(UnsupportedModelError, match="tokens of a grid; choose another"):
            feature_map_of(network, frames, layer=layer)
    found = feature_map_of(network, frames, layer="attention")
    assert (found.layout, found.grid) == ("tokens", (8, 8))


class Edited(nn.Module):
    """Does something to the frame before its convolution, and something to the grid behind it."""

    def __init__(self, before, after):
        super().__init__()
        self.before, self.after = before, after
        self.read, self.last, self.head = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

    def forward(self, frames):
        return self.head(self.last(self.after(self.read(self.before(frames)))).mean((2, 3)))


@pytest.mark.parametrize(
    ("before", "after", "cells"),
    [
        (lambda x: x[:, :, 24:, 8:], nn.Identity(), Cells(9.5, 4.0, None, (16.0, 0.0))),
        (lambda x: x[..., -32:, :], nn.Identity(), Cells(1.5, 4.0, None, (32.0, 0.0))),
        (lambda x: F.pad(x, (8, 0, 4, 0)), nn.Identity(), Cells(-6.5, 4.0, None, (4.0, 0.0))),
        (lambda x: F.interpolate(x, (32, 80)), nn.Identity(), Cells(1.5, 4.0, (32, 80))),
        (lambda x: x, lambda x: F.max_pool2d(x, 2), Cells(3.5, 8.0)),
        (lambda x: x, lambda x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 1), Cells(1.5, 4.0)),
        (lambda x: x, lambda x: x[:, :, 2:, 2:], Cells(9.5, 4.0)),
    ],
)
def test_cells_are_followed_through_what_forward_does_to_the_grid(before, after, cells):
    network = Edited(before, after).eval()
    assert feature_map_of(network, torch.rand(1, 3, 64, 96)).cells == cells


def test_a_bright_spot_below_what_the_network_cuts_off_lies_where_it_is():
    network = Edited(lambda x: x[:, :, 32:, :], nn.Identity()).eval()
    for weights in (network.read.weight, network.last.weight, network.head.weight):
        nn.init.ones_(weights)
    frames = torch.zeros(1, 3, 64, 64)
    frames[..., 48:52, 16:20] = 1
    maps = GradCAM()(network, frames, lambda scores: scores[:, 0])[0]
    assert divmod(int(maps.argmax()), 64) in [(row, column) for row in (49, 50) for column in (17, 18)]


def _grid_of(frames: torch.Tensor) -> torch.Tensor:
    turned = torch.tensor([[[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    return torch.nn.functional.affine_grid(turned, list(frames.shape), align_corners=False)


@pytest.mark.parametrize(
    "edit",
    [
        lambda x: x.flip(3),
        lambda x: x.flip((1, -2)),
        lambda x: x.roll(5, 3),
        lambda x: x.roll(7),
        lambda x: x.mT,
        lambda x: torch.nn.functional.grid_sample(x, _grid_of(x), align_corners=False),
    ],
)
def test_maps_of_mirrored_rolled_and_warped_frames_are_refused(edit) -> None:
    """Their cells lie elsewhere in a grid as large: nothing would show it."""
    network = Edited(edit, nn.Identity()).eval()
    with pytest.raises(UnsupportedModelError, match="mirrored, turned, rolled or warped"):
        GradCAM()(network, torch.rand(1, 3, 64, 64), lambda scores: scores[:, 0])


@pytest.mark.parametrize(
    "edit",
    [
        lambda x: x.flip(1),
        lambda x: torch.nn.functional.interpolate(x, size=(32, 48), mode="area"),
        lambda x: torch.nn.functional.adaptive_avg_pool2d(x, (32, 48)),
    ],
)
def test_maps_of_frames_made_smaller_or_of_other_channels_are_placed(edit) -> None:
    network = Edited(edit, nn.Identity()).eval()
    for weights in (network.read.weight, network.last.weight, network.head.weight):
        nn.init.ones_(weights)
    frames = torch.zeros(1, 3, 64, 96)
    frames[..., 44:56, 12:24] = 1
    maps = GradCAM()(network, frames, lambda scores: scores[:, 0])[0]
    row, column = divmod(int(maps.argmax()), 96)
    assert 44 <= row < 56
    assert 12 <= column < 24


def test_what_cannot_be_followed_from_a_cut_frame_is_refused_in_one_line():
    network = Edited(lambda x: x.index_select(2, torch.arange(20, 60)), nn.Identity()).eval()
    frames = torch.rand(1, 3, 64, 96)
    with pytest.raises(UnsupportedModelError, match="cut or padded before the network's first layer"):
        GradCAM().check(network, frames)
    assert GradCAM(cells="even").feature_map(network, frames).cells is None
    assert GradCAM(cells=Cells(21.5, 4.0)).feature_map(network, frames).cells == Cells(21.5, 4.0)


def test_names_inside_a_wrapped_network_serve_as_well_as_whole_ones():
    network = _torchvision("resnet18")
    model = wrap(network, outputs="multiclass", names=("a", "b", "c"))
    for name in ("layer4.1", "network.layer4.1"):
        assert feature_map_of(model, FRAMES, layer=name).layer is network.layer4[1]
    with pytest.raises(UnsupportedModelError, match=r"'layer9' is unknown: ResNet has conv1, bn1"):
        feature_map_of(model, FRAMES, layer="layer9")


class Auxiliary(nn.Module):
    """A convolution at the end that no score depends on, and one that runs twice."""

    def __init__(self):
        super().__init__()
        self.twice, self.read, self.beside = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 2, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, frames):
        maps = self.read(self.twice(self.twice(frames)))
        self.kept = self.beside(maps)
        return self.head(maps.mean((2, 3)))


def test_an_auxiliary_layer_is_not_the_last_map_and_a_check_is_as_strict_as_a_call():
    network, frames = Auxiliary().eval(), torch.rand(1, 3, 16, 16)
    assert last_feature_map(network, frames) is network.read
    GradCAM().check(network, frames)
    for layer, message in (("beside", "does not depend on layer"), ("twice", "ran 2 times")):
        with pytest.raises(UnsupportedModelError, match=message):
            GradCAM(layer=layer).check(network, frames)
        with pytest.raises(UnsupportedModelError, match=message):
            GradCAM(layer=layer)(network, frames, lambda scores: scores[:, 0])
