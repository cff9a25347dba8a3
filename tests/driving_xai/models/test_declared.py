"""What a model declares counts by its type: attributes of the same name that mean something else are not declarations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from driving_xai import evaluate, explain, metrics
from driving_xai.checkpoint import Checkpoint
from driving_xai.errors import NonFiniteError, UnsupportedModelError
from driving_xai.models.capabilities import (
    encoder_of,
    frame_model,
    network_of,
    outputs_of,
    own_map_of,
    require_eval_mode,
    sample_frames,
    vision_transformer_of,
)
from driving_xai.models.declared import at_instant, declared_input_size, takes_windows
from driving_xai.models.foreign import as_checkpoint
from driving_xai.models.wrap import wrap
from driving_xai.replay.methods import default_method
from driving_xai.targets import output
from driving_xai.types import Outputs


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    return nn.Sequential(*layers).eval()


FRAMES = torch.rand(2, 3, 12, 16)
NAMESAKES = {
    "input_size": 224,
    "feature_map": "layer4",
    "feature_info": [{"num_chs": 64}],
    "network": "resnet18",
    "encoder": "resnet18",
    "vit": "small",
    "own_maps": ["cam"],
    "step": 3,
    "at": "2026-11-28",
}


@pytest.mark.parametrize("name", [*NAMESAKES, "all"])
def test_attributes_of_the_same_name_change_nothing(name: str) -> None:
    plain, odd = network(), network()
    odd.load_state_dict(plain.state_dict())
    for each, value in NAMESAKES.items():
        if name in (each, "all"):
            setattr(odd, each, value)
    assert frame_model(odd) is odd
    assert network_of(odd) is odd
    assert sample_frames(odd).shape == (1, 3, 224, 224)
    assert encoder_of(odd, FRAMES) is odd
    assert default_method(odd) == "grad-cam"
    with pytest.raises(UnsupportedModelError, match="it writes no maps"):
        own_map_of(odd, "sign-attention")
    with pytest.raises(UnsupportedModelError, match="has no Vision Transformer"):
        vision_transformer_of(odd)
    for explainer in (explain.GradCAM(), explain.VisualBackProp()):
        expected, found = (explainer(net, FRAMES, output(0)) for net in (plain, odd))
        assert torch.equal(expected, found)


@pytest.mark.parametrize("size", [224, "224", (3, 224, 224), (224.0, 224.0), (0, 224), (True, True), [224]])
def test_a_size_is_two_whole_numbers_of_pixels(size) -> None:
    odd = network()
    odd.input_size = size
    assert sample_frames(odd).shape == (1, 3, 224, 224)


def test_outputs_that_are_no_outputs_are_not_declared() -> None:
    odd = network()
    odd.outputs = 1000
    with pytest.raises(UnsupportedModelError, match="Sequential says nothing of its outputs; wrap it"):
        outputs_of(odd)
    with pytest.raises(UnsupportedModelError, match="Sequential says nothing of its outputs; wrap it"):
        evaluate(odd, FRAMES, methods=["gradient"], metrics=["deletion"])


def test_a_parallel_model_is_the_model_inside() -> None:
    inside = wrap(network(), outputs="multiclass", names=("a", "b"))
    parallel = nn.DataParallel(inside)
    assert outputs_of(parallel) == inside.outputs
    assert outputs_of(torch.compile(inside, backend="eager")) == inside.outputs
    plain, found = as_checkpoint(inside), as_checkpoint(parallel)
    assert isinstance(found, Checkpoint)
    assert (found.sha256, found.path, found.outputs) == (plain.sha256, plain.path, plain.outputs)
    tables = [
        evaluate(each, FRAMES, methods=["gradient"], metrics=["deletion"]).per_frame
        for each in (inside, parallel)
    ]
    assert tables[0]["value"].tolist() == tables[1]["value"].tolist()


class Drops(nn.Module):
    """A view of a network that it only calls."""

    outputs = Outputs(kind="multiclass", names=("a", "b"))

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, frames):
        return self.net(frames)


def test_a_layer_in_training_mode_is_named() -> None:
    model = Drops(nn.Sequential(nn.Dropout(), *network())).eval()
    require_eval_mode(model)
    model.net[0].train()
    with pytest.raises(
        UnsupportedModelError,
        match=r"^layer net.0 \(Dropout\) is in training mode; call eval\(\) on the model first$",
    ):
        require_eval_mode(nn.DataParallel(model))
    require_eval_mode(lambda frames: frames)


@pytest.mark.parametrize("name", list(metrics.METRICS))
def test_metrics_refuse_a_model_in_training_mode(name: str) -> None:
    model = Drops(nn.Sequential(nn.Dropout(), *network())).train()
    with pytest.raises(UnsupportedModelError, match="is in training mode"):
        metrics.build(name)(model, FRAMES, torch.rand(2, 12, 16), output(0))


@pytest.mark.parametrize("metric", [metrics.MaxSensitivity(), metrics.ModelRandomisation()])
def test_metrics_of_explainers_refuse_a_model_in_training_mode(metric) -> None:
    model = Drops(nn.Sequential(nn.Dropout(), *network())).train()
    with pytest.raises(UnsupportedModelError, match="is in training mode"):
        metric(model, FRAMES, explain.RandomOrder(seed=0), output(0))


def test_an_evaluation_refuses_a_model_in_training_mode() -> None:
    model = Drops(nn.Sequential(nn.Dropout(), *network())).train()
    with pytest.raises(UnsupportedModelError, match="is in training mode"):
        evaluate(model, FRAMES, methods={"random-too": explain.RandomOrder(seed=1)}, metrics=["deletion"])


@pytest.mark.parametrize("name", list(metrics.METRICS))
def test_metrics_refuse_scores_that_are_not_finite(name: str) -> None:
    model = Drops(network())
    model.net[4].weight.data.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="got NaN or infinity from the model"):
        metrics.build(name)(model.eval(), FRAMES, torch.rand(2, 12, 16), output(0))


class Built(nn.Module):
    """A recurrent model that builds its view of an instant anew, as a module around a part of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()

    def step(self, frames, state):
        return self.layers(frames), state

    def at(self, state):
        return nn.Sequential(self.layers, nn.Dropout())


@pytest.mark.parametrize("training", [False, True])
def test_a_view_that_is_built_anew_is_in_the_mode_of_its_model(training: bool) -> None:
    model = Built().train(training)
    assert at_instant(model).training is training
    if training:
        with pytest.raises(UnsupportedModelError, match="in training mode"):
            require_eval_mode(frame_model(model))
    else:
        require_eval_mode(frame_model(model))


def test_a_part_of_a_models_own_keeps_its_mode_in_a_view() -> None:
    model = Built().eval()
    model.layers[1].train()
    view = at_instant(model)
    assert [module.training for module in view.modules()] == [
        False,
        False,
        False,
        True,
        False,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize("size", [(64, 96), [64, 96], (np.int64(64), np.int32(96))])
def test_a_size_is_any_two_whole_numbers(size) -> None:
    net = nn.Identity()
    net.input_size = size
    found = declared_input_size(net)
    assert found == (64, 96)
    assert [type(side) for side in found] == [int, int]


@pytest.mark.parametrize("size", [(64, 96.0), (0, 96), (True, 96), "64", (64,)])
def test_other_sizes_are_not_declared(size) -> None:
    net = nn.Identity()
    net.input_size = size
    assert declared_input_size(net) is None


def test_steps_of_another_meaning_are_no_windows() -> None:
    net = nn.Identity()
    net.steps = 1000
    assert not takes_windows(net)
    net.steps = lambda windows, state: iter(())
    assert takes_windows(net)
