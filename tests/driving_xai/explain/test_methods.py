"""The table of methods: names that fit the model, and a clear word where they do not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from driving_xai.errors import UnsupportedModelError
from driving_xai.explain.attention import LearnedMap
from driving_xai.explain.cam import GradCAM
from driving_xai.explain.registry import METHODS, fitted, options_of
from driving_xai.models.steering import SteeringConfig, SteeringModel
from driving_xai.targets import left, magnitude, right


def _model(attention: str) -> SteeringModel:
    torch.manual_seed(0)
    return SteeringModel(SteeringConfig(hidden_size=8, attention=attention, height=32, width=48)).eval()


def _fits(name: str, model: SteeringModel) -> bool:
    try:
        fitted(name, model)
    except UnsupportedModelError:
        return False
    return True


@pytest.mark.parametrize("kind", ["sign", "soft"])
def test_attention_is_the_models_own_upsampled(kind):
    model, frames = _model(kind), torch.rand(2, 3, 32, 48)
    view = model.at(None)
    saliency = fitted(f"{kind}-attention", model)(view, frames, left)
    grid = view.attention(frames).detach()
    torch.testing.assert_close(grid.sum((1, 2)), torch.ones(2))
    # Each cell is centred on every eighth pixel, from the first on; see test_grid.py.
    torch.testing.assert_close(saliency[:, ::8, ::8], grid)
    assert not saliency.requires_grad
    whatever = LearnedMap()(view, frames, right)
    torch.testing.assert_close(saliency, whatever, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "attention"), [("sign-attention", "soft"), ("soft-attention", "none")])
def test_a_name_that_does_not_fit_the_model_is_refused(name, attention):
    with pytest.raises(
        UnsupportedModelError, match=rf"does not write {name} \(it writes .*(soft-attention|no maps)"
    ):
        fitted(name, _model(attention))


def test_a_model_without_attention_or_layer_is_refused():
    model = nn.Linear(1, 1)
    for name in ("sign-attention", "snna", "visual-backprop"):
        with pytest.raises(UnsupportedModelError):
            fitted(name, model)
    with pytest.raises(
        UnsupportedModelError, match="Linear writes no attention map; use a method that needs none"
    ):
        LearnedMap()(model, torch.rand(1, 3, 4, 4), left)


def test_an_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match=r"'gradcam' is unknown; expected .*grad-cam:METHOD"):
        fitted("gradcam", _model("sign"))


def test_every_method_leaves_model_and_frames_alone():
    model, frames = _model("sign"), torch.rand(2, 3, 32, 48)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    given = frames.clone()
    fitting = [name for name in METHODS if _fits(name, model)]
    assert {"sign-attention", "grad-cam", "random", "centre-prior"} <= set(fitting)
    for name in fitting:
        saliency = fitted(name, model, seed=1)(model.at(None), frames, left)
        assert saliency.isfinite().all(), name
        assert saliency.shape == (2, 32, 48), name
    assert torch.equal(frames, given)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert not model.training


def test_grad_cam_uses_the_models_layer():
    model = _model("sign")
    explainer = fitted("grad-cam", model)
    assert isinstance(explainer, GradCAM)
    assert explainer.feature_map(model, torch.rand(1, 3, 32, 48)).layer is model.encoder[-1]


@pytest.mark.parametrize(
    "name", ["smoothgrad", "integrated-gradients", "occlusion", "rise", "lime", "sign-attention-filtered"]
)
def test_one_batch_size_bounds_every_method(name):
    """No pass of the model holds more edited frames than asked, whatever the method."""
    model, frames, sizes = _model("sign"), torch.rand(2, 3, 32, 48), []
    model.encoder[0].register_forward_pre_hook(lambda _layer, inputs: sizes.append(len(inputs[0])))
    fewer = {"samples": 60} if "samples" in options_of(name) else {}
    explain = fitted(name, model, batch_size=6, options=fewer)
    explain(model.at(None), frames, left)
    assert max(sizes) <= 6
    assert len(sizes) > 2


@pytest.mark.gpu
@pytest.mark.parametrize(
    "name",
    [
        "gradient",
        "smoothgrad",
        "integrated-gradients",
        "occlusion",
        "lime",
        "visual-backprop",
        "sign-attention-filtered",
    ],
)
def test_cuda_gives_the_maps_of_the_cpu(name):
    model, frames = _model("sign").double(), torch.rand(2, 3, 32, 48, dtype=torch.float64)
    expected = fitted(name, model)(model.at(None), frames, left)
    model.cuda()
    found = fitted(name, model)(model.at(None), frames.cuda(), left).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7 * expected.abs().max().item())


@pytest.mark.parametrize("name", ["sign-attention", "grad-cam", "visual-backprop"])
def test_a_model_in_training_mode_is_refused_and_left_as_it_was(name):
    torch.manual_seed(0)
    model = SteeringModel(SteeringConfig(hidden_size=8, height=32, width=48)).eval()
    explain, frames = fitted(name, model), torch.rand(2, 3, 32, 48)
    model.encoder.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UnsupportedModelError, match="training mode"):
        explain(model.at(None), frames, magnitude)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["sign-attention", "grad-cam", "visual-backprop", "gradient"])
def test_maps_that_are_not_finite_are_refused(name):
    model = SteeringModel(SteeringConfig(hidden_size=8, height=32, width=48)).eval()
    with torch.no_grad():
        model.encoder[0].weight[0] = torch.nan
    with pytest.raises(ValueError, match="check the weights"):
        fitted(name, model)(model.at(None), torch.rand(1, 3, 32, 48), magnitude)
