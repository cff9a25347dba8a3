"""Classifiers as frame models: what explainers find in them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from driving_xai.errors import UnsupportedModelError
from driving_xai.explain.grid import Cells
from driving_xai.explain.registry import FAMILIES, fitted
from driving_xai.models.channel_spatial import ChannelSpatialAttention
from driving_xai.models.classify import Classifier, ClassifierConfig
from driving_xai.models.lambda_layer import LambdaLayer
from driving_xai.targets import output

LAMBDAS = {
    "stages": (1, 1),
    "width": 8,
    "stem": "small",
    "heads": 2,
    "key_depth": 4,
    "context": 5,
    "split": 1,
}


def _model(network: str, **more) -> Classifier:
    torch.manual_seed(0)
    config = ClassifierConfig(classes=("a", "b", "c"), network=network, image_size=(32, 48), **more)
    return Classifier(config).eval()


@pytest.mark.parametrize(
    ("network", "more", "cells", "pooled"),
    [
        ("small-cnn", {"channels": (4, 8), "pooled": 2}, (1.5, 4.0), True),
        ("resnet18", {}, (0.0, 32.0), True),
        ("cbam-resnet10t", {}, (0.0, 32.0), True),
        ("lambda-resnet", LAMBDAS, (0.0, 2.0), True),
        ("labn", LAMBDAS, (0.0, 2.0), True),
    ],
)
def test_the_layer_its_cells_and_the_head_are_known(network, more, cells, pooled):
    model = _model(network, **more)
    assert model.feature_map.cells == Cells(*cells)
    assert (model.feature_map.head is not None) == pooled
    frames = torch.rand(2, 3, 32, 48)
    explainer = fitted("grad-cam", model)
    assert explainer.feature_map(model, frames) == model.feature_map
    target = output(1)
    fast = explainer(model, frames, target)
    at = replace(model.feature_map, head=None)
    slow = explainer.map_of(explainer.gradient(model, frames, target, at), frames, at)
    torch.testing.assert_close(fast, slow, rtol=1e-3, atol=1e-6)
    names = set(model.state_dict())
    assert names == {f"network.{name}" for name in model.network.state_dict()} | {"mean", "std"}


def test_maps_of_a_labn():
    model = _model("labn", **LAMBDAS)
    model.network.threshold = 0.2
    frames = torch.rand(2, 3, 32, 48)
    given = frames.clone()
    for name in (*FAMILIES["class activation maps"], "labn", "lambda-attention"):
        explainer = fitted(name, model, seed=1)
        saliency = explainer(model, frames, output(0))
        assert saliency.shape == (2, 32, 48), name
        assert saliency.isfinite().all(), name
    assert torch.equal(frames, given)
    assert model.own_maps["labn"].cells == Cells(0.0, 1.0)
    # The last lambda layer before the gate, or the second: one behind it would have seen the attention.
    for split, place in ((1, 0), (2, 1)):
        network = _model("labn", **{**LAMBDAS, "stages": (3,), "split": split})
        layers = [each for each in network.modules() if isinstance(each, LambdaLayer)]
        assert network.own_maps["lambda-attention"].layer is layers[place].content
    with pytest.raises(UnsupportedModelError, match="it writes lambda-attention"):
        fitted("labn", _model("lambda-resnet", **LAMBDAS))


def test_cbam_sits_before_every_sum():
    model = _model("cbam-resnet10t", reduction=8)
    blocks = [module for module in model.modules() if isinstance(module, ChannelSpatialAttention)]
    assert [block.describe[2].out_features for block in blocks] == [64, 128, 256, 512]
    seen: list[int] = []
    for block in blocks:
        block.register_forward_hook(lambda _block, _taken, given: seen.append(given.shape[1]))
    model(torch.rand(1, 3, 32, 48))
    assert seen == [64, 128, 256, 512]


@pytest.mark.parametrize("network", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_a_transformer_of_one_size_is_built_for_the_images(network):
    model = _model(network)
    frames = torch.rand(2, 3, 32, 48)
    patches = model.network.patch_embed.grid_size
    assert patches == ((2, 3) if "vit" in network else (8, 12))
    # Every corner of the frame counts: nothing is cut off or resized to another size.
    for row, column in ((0, 0), (0, 47), (31, 0), (31, 47)):
        changed = frames.clone()
        changed[:, :, row, column] = 1 - changed[:, :, row, column]
        assert not torch.equal(model(changed), model(frames))
    with pytest.raises(UnsupportedModelError, match=r"frames are 16 x 48 px .* takes 32 x 48 px only"):
        model(frames[:, :, :16])
    # Channels that come last, and a transformer's tokens, are weighted as maps.
    saliency = fitted("grad-cam", model)(model, frames, output(1))
    assert saliency.shape == (2, 32, 48)
    assert saliency.max() > 0


@pytest.mark.parametrize("network", ["vit_tiny_patch16_224", "small-cnn"])
def test_frames_that_a_network_cannot_take_are_refused_in_one_line(network):
    config = ClassifierConfig(classes=("a", "b"), network=network, image_size=(3, 48))
    with pytest.raises(UnsupportedModelError, match=f"{network} takes no frames of 3 x 48 px") as caught:
        Classifier(config)
    assert "\n" not in str(caught.value)


def test_normalisation_is_inside():
    model = _model("small-cnn", channels=(4, 8))
    frames = torch.rand(2, 3, 32, 48)
    by_hand = (frames - model.mean) / model.std
    assert torch.equal(model(frames), model.network(by_hand))


def test_without_normalisation_the_network_sees_pixels_as_they_are():
    model, frames = _model("small-cnn", normalisation="none"), torch.rand(2, 3, 32, 48)
    assert torch.equal(model.normalised(frames), frames)
    assert torch.equal(model(frames), model.network(frames))


@pytest.mark.parametrize(
    ("name", "hint"),
    [("resnet19", "did you mean resnet"), ("cbam-mobilenetv3_small_050", "no residual blocks")],
)
def test_unknown_networks_are_refused(name, hint):
    with pytest.raises(UnsupportedModelError, match=hint):
        _model(name)


@pytest.mark.parametrize("wrong", [{"classes": ("a",)}, {"classes": ("a", "a")}, {"image_size": (32,)}])
def test_impossible_configurations_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        ClassifierConfig(**wrong)


def test_a_transformer_of_several_branches_has_no_maps_to_weigh():
    config = ClassifierConfig(classes=("a", "b"), network="crossvit_tiny_240", image_size=(240, 240))
    assert Classifier(config).feature_map is None
