"""Steering models that see with a network of timm: the features of timm's own, places of cells, what is refused."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file

from driving_xai.errors import CheckpointError, UnsupportedModelError
from driving_xai.explain.registry import build
from driving_xai.models.steering import SteeringConfig, SteeringModel
from driving_xai.models.steering_encoders import TimmEncoder
from driving_xai.targets import magnitude

HEIGHT, WIDTH = 64, 96
SMALL = {"colour": "rgb", "hidden_size": 4, "height": HEIGHT, "width": WIDTH, "output": "linear"}


def model_of(name: str, **keywords) -> SteeringModel:
    torch.manual_seed(0)
    return SteeringModel(SteeringConfig(encoder=f"timm:{name}", **SMALL, **keywords)).eval()


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return torch.rand(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "stride", "level"),
    [("test_efficientnet", 16, 3), ("test_efficientnet", 8, 2), ("test_resnet", 32, 4)],
)
def test_the_features_are_timms_own_with_the_weights_of_a_file(tmp_path, frames, name, stride, level) -> None:
    torch.manual_seed(3)
    theirs = timm.create_model(name).eval()
    save_file(theirs.state_dict(), tmp_path / "net.safetensors")
    own = timm.create_model(name, features_only=True, out_indices=(level,)).eval()
    kept = {key: value for key, value in theirs.state_dict().items() if key in own.state_dict()}
    own.load_state_dict(kept)
    ours = TimmEncoder(name, stride, batch=True).eval()
    ours.load(str(tmp_path / "net.safetensors"))
    ours.eval()
    with torch.no_grad():
        (expected,) = own(frames)
        torch.testing.assert_close(ours.features(frames), expected)
    assert expected.shape[2:] == (HEIGHT // stride, WIDTH // stride)
    # What lies behind the features is left out: it would be weights that no prediction depends on.
    assert len(ours.trunk.state_dict()) <= len(own.state_dict())


@pytest.mark.parametrize("attention", ["none", "soft", "sign"])
def test_a_window_of_kept_features_is_the_window_of_frames(frames, attention) -> None:
    model = model_of("test_efficientnet", attention=attention)
    with torch.no_grad():
        kept = model.encoder.features(model.converted(frames))
        for ours, whole in zip(model.of_features(kept[None]), model(frames[None]), strict=True):
            torch.testing.assert_close(ours, whole, rtol=0, atol=0)


def test_every_part_is_trained_through_and_frames_are_standardised_as_timm_says(frames) -> None:
    model = model_of("test_efficientnet").train()
    scores, _, _ = model(frames[:, None])
    scores.sum().backward()
    reached = {name for name, weight in model.encoder.named_parameters() if weight.grad is not None}
    assert reached == {name for name, _ in model.encoder.named_parameters()}
    given = timm.get_pretrained_cfg("test_efficientnet")
    torch.testing.assert_close(model.input_mean.flatten(), torch.tensor(given.mean))
    torch.testing.assert_close(model.input_std.flatten(), torch.tensor(given.std))


def test_folding_the_normalisation_changes_nothing_but_rounding(frames) -> None:
    model = model_of("test_efficientnet", attention="soft")
    norm = model.encoder.project[1]
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        before = model(frames[None])[0]
        torch.testing.assert_close(model.fold_normalisation()(frames[None])[0], before)
    assert len(model.encoder.project) == 1


@pytest.mark.parametrize(
    ("name", "first_px"),
    [
        # Four convolutions of stride 2, each centred on the first cell that it reads.
        ("test_efficientnet", 0.0),
        # TensorFlow pads the right and lower side more: a step of 1, 2, 4 and 8 px to the right.
        ("tf_efficientnet_lite0", 1.0 + 2 + 4 + 8),
    ],
)
def test_cells_lie_where_the_strided_convolutions_put_them(name, first_px) -> None:
    cells = model_of(name).feature_map.cells
    assert (cells.first_px, cells.stride_px, cells.offset_px) == (first_px, 16.0, (0.0, 0.0))


@pytest.mark.parametrize(
    "method",
    ["grad-cam", "sign-attention", "sign-attention-filtered", "integrated-gradients", "removal-pursuit"],
)
def test_it_is_explained(frames, method) -> None:
    model = model_of("test_efficientnet", temperature=0.2)
    maps = build(method, batch_size=4)(model.at(None), frames, magnitude)
    assert maps.shape == (2, HEIGHT, WIDTH)
    assert torch.isfinite(maps).all()
    assert (maps.flatten(1).std(1) > 0).all()


def test_a_map_of_all_layers_is_refused(frames) -> None:
    with pytest.raises(UnsupportedModelError, match="no plain chain of layers"):
        build("visual-backprop")(model_of("test_efficientnet").at(None), frames, magnitude)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (
            {"encoder": "table-2"},
            "encoder is 'table-2'; expected table-1, table-1-kernels, pseudo-code or timm:NAME",
        ),
        ({"encoder_stride": 16}, "encoder is table-1; leave it out"),
        ({"encoder": "timm:resnet18"}, "set model.colour to rgb"),
        ({"encoder": "timm:resnet18", "colour": "rgb", "encoder_stride": 5}, "expected 4, 8, 16 or 32"),
    ],
)
def test_configurations_that_contradict_themselves(wrong, says) -> None:
    with pytest.raises(ValueError, match=says):
        SteeringConfig(**wrong)


@pytest.mark.parametrize(
    ("name", "stride", "says"),
    [
        ("test_efficientnett", 16, "did you mean test_efficientnet"),
        ("test_vit", 8, "features of stride 16, not of 8"),
        ("test_coatnet", 16, "does not take frames of 64 x 64 px"),
        ("test_convnext", 2, "features of stride 4, 8, 16, 32, not of 2"),
    ],
)
def test_networks_that_do_not_fit(name, stride, says) -> None:
    with pytest.raises(UnsupportedModelError, match=says):
        TimmEncoder(name, stride, batch=True)


def test_weights_of_another_network(tmp_path) -> None:
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match=r"net\.safetensors"):
        TimmEncoder("test_efficientnet", 16, batch=True).load(str(tmp_path / "net.safetensors"))
