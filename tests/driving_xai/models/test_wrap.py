"""Any network as a model: normalised and resized inside, and refused where its scores are not as named."""

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from driving_xai import evaluate, explain, metrics
from driving_xai.errors import FrameSizeError, UnsupportedModelError
from driving_xai.models.backbone import IMAGENET_MEAN, IMAGENET_STD
from driving_xai.models.wrap import wrap
from driving_xai.targets import output
from driving_xai.types import Outputs


def network(outputs: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(outputs)).eval()


def test_frames_are_resized_and_normalised_inside() -> None:
    net, frames = network(), torch.rand(3, 3, 20, 30)
    with torch.no_grad():
        model = wrap(net, outputs="multiclass", names=("a", "b"), normalise="imagenet", size=(16, 24))
        small = F.interpolate(frames, (16, 24), mode="bilinear", antialias=True)
        mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
        torch.testing.assert_close(model(frames), net((small - mean) / std), rtol=0, atol=0)
        torch.testing.assert_close(model(small), model(frames), rtol=0, atol=0)
    assert model.input_size == (16, 24)


def test_a_regressor_has_no_memory_along_a_drive() -> None:
    frames = torch.rand(2, 3, 16, 24)
    model = wrap(network(1), outputs="regression", names=("steering",))
    with torch.no_grad():
        scores, attention, state = model.step(frames, None)
        assert attention is None
        assert state == ()
        assert torch.equal(scores, model.at(state)(frames))
    assert model.outputs.unit == "1/m"


EQUAL_SETTINGS = {
    "names": ({0: "a", 1: "b"}.values(), {"a": 0, "b": 1}.keys(), np.array(["a", "b"]), iter(["a", "b"])),
    "normalise": (
        (np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.2, 0.1])),
        (torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([[0.2], [0.2], [0.1]])),
        ([np.float64(0.5), np.float32(0.4), 0.3], (0.2, 0.2, np.float16(0.1))),
    ),
    "size": ((np.int64(16), np.int32(24)), torch.zeros(3, 16, 24).shape[1:]),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, each) for name in EQUAL_SETTINGS for each in EQUAL_SETTINGS[name]]
)
def test_numpy_torch_and_a_mappings_values_say_the_same_as_tuples(name, value) -> None:
    plain = {"names": ("a", "b"), "normalise": ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1)), "size": (16, 24)}
    expected = wrap(network(), outputs="multiclass", **plain)
    found = wrap(network(), outputs="multiclass", **(plain | {name: value}))
    assert (found.outputs, found.input_size) == (expected.outputs, expected.input_size)
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.std, expected.std, rtol=1e-3, atol=0)


def exported(net: nn.Module) -> nn.Module:
    batch = torch.export.Dim("batch", min=2)
    return torch.export.export(net, (torch.rand(2, 3, 16, 24),), dynamic_shapes=({0: batch},)).module()


def test_an_exported_network_is_explained_as_the_one_it_was_written_from() -> None:
    net, frames = nn.Sequential(nn.Dropout(0.5), *network()).eval(), torch.rand(3, 3, 16, 24)
    net(frames)
    written = exported(net)
    explainer, score = explain.IntegratedGradients(steps=2), metrics.Deletion()
    expected = explainer(net, frames, output(1))
    torch.testing.assert_close(explainer(written, frames, output(1)), expected)
    model = wrap(written, outputs="multiclass", names=("a", "b")).train().eval()
    torch.testing.assert_close(explainer(model, frames, output(1)), expected)
    found, twin = (
        score(each, frames, expected, output(1)).value
        for each in (model, wrap(net, outputs="multiclass", names=("a", "b")))
    )
    torch.testing.assert_close(found, twin)


def test_a_network_exported_in_training_mode_is_refused() -> None:
    net = nn.Sequential(nn.Dropout(0.5), *network())
    net(torch.rand(2, 3, 16, 24))
    written = exported(net.train())
    for model in (written, wrap(written, outputs="multiclass", names=("a", "b"))):
        with pytest.raises(UnsupportedModelError, match="exported in training mode"):
            explain.RISE(samples=2)(model, torch.rand(2, 3, 16, 24), output(0))


@pytest.mark.parametrize("gave", [lambda frames: frames.mean((2, 3)), lambda frames: (frames,)])
def test_scores_that_are_not_those_named_are_refused(gave) -> None:
    net = nn.Module()
    net.forward = gave  # type: ignore[method-assign]
    with pytest.raises(UnsupportedModelError, match=r"expected \(2, 2\): a score for each"):
        wrap(net, outputs="multilabel", names=("a", "b"))(torch.rand(2, 3, 4, 4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"names": ()}, "one or more texts"),
        ({"names": ("a", "a")}, "none twice"),
        ({"names": ("a",), "normalise": ((0.0,) * 3, (1.0, 0.0, 1.0))}, "expected over 0"),
    ],
)
def test_settings_that_say_nothing_are_refused(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        wrap(network(1), outputs="multiclass", **settings)


SETTINGS = {
    "normalise": (
        *("imagnet", None, 0.5, (), ((0, 0, 0),), ((0, 0, 0), (1, 1)), ((0, 0, 0, 0), (1, 1, 1, 1))),
        *((0.5, 0.5), ("abc", "def"), ((0, 0, float("nan")), (1, 1, 1)), ((0,) * 3, (1,) * 3, (2,) * 3)),
    ),
    "size": (224, "224", (), (224,), (0, 224), (-1, 5), (224.0, 224), (True, True), (3, 224, 224)),
    "names": ("ab", (1, 2), ("a", None), 2, {"a", "b"}, {"a": 0, "b": 1}),
    "outputs": ("classes", None, 3),
}


@pytest.mark.parametrize(("name", "value"), [(name, each) for name in SETTINGS for each in SETTINGS[name]])
def test_each_setting_of_another_type_or_length_is_one_line(name, value) -> None:
    settings = {"outputs": "multiclass", "names": ("a", "b"), name: value}
    with pytest.raises(ValueError, match=f"^got {name} .*; expected ") as caught:
        wrap(network(), **settings)
    assert "\n" not in str(caught.value)


def test_what_is_no_network_is_one_line() -> None:
    with pytest.raises(UnsupportedModelError, match=r"function is no torch\.nn\.Module"):
        wrap(lambda frames: frames, outputs="multiclass", names=("a",))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: timm.create_model("vit_tiny_patch16_224", num_classes=2), r"height \(96\) .*\(224\)"),
        (lambda: torchvision.models.vit_b_16(num_classes=2), "Expected 224 but got 96"),
    ],
)
def test_a_transformer_of_another_size_says_what_it_got_and_expected(make, expected) -> None:
    model = wrap(make().eval(), outputs="multiclass", names=("a", "b"))
    with pytest.raises(
        FrameSizeError, match=rf"does not take frames of 96 x 128 px \(.*{expected}"
    ) as caught:
        model(torch.rand(1, 3, 96, 128))
    assert "size=" in str(caught.value)
    with torch.no_grad():
        sized = wrap(model.network, outputs="multiclass", names=("a", "b"), size=(224, 224))
        assert sized(torch.rand(1, 3, 96, 128)).isfinite().all()


class AutocastHead(nn.Module):
    """The head in half precision, as mixed training leaves it."""

    outputs = Outputs(kind="multiclass", names=("a", "b"))

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(4, 2)

    def forward(self, frames):
        features = self.trunk(frames)
        with torch.autocast("cpu", torch.bfloat16):
            return self.head(features)


@pytest.mark.parametrize("wrapped", [True, False])
def test_scores_of_half_precision_are_explained_and_scored(wrapped: bool) -> None:
    """A head under autocast: the maps and scores of the same network in single precision, up to bfloat16's rounding."""
    half, frames = AutocastHead().eval(), torch.rand(2, 3, 16, 24)
    full = nn.Sequential(*half.trunk, half.head).eval()
    assert half(frames).dtype == torch.bfloat16
    full.outputs = half.outputs
    if wrapped:
        half = wrap(half, outputs="multiclass", names=("a", "b"))
        assert half(frames).dtype == torch.float32
    for explainer in (explain.GradCAM(), explain.Gradient(), explain.Occlusion(), explain.RISE(samples=10)):
        expected, found = (explainer(each, frames, output(0)) for each in (full, half))
        assert found.dtype == torch.float32
        assert (found - expected).abs().max() < 0.05 * max(expected.abs().max(), 1)
    maps = explain.Gradient()(full, frames, output(0))
    for metric in (metrics.Deletion(), metrics.Insertion(), metrics.AverageDrop()):
        expected, found = (metric(each, frames, maps, output(0)).value for each in (full, half))
        assert found.isfinite().all()
        torch.testing.assert_close(
            found.float(), expected.float(), rtol=0.1, atol=0.05 * float(expected.abs().max())
        )
    assert evaluate(half, frames, methods=["grad-cam"], metrics=["deletion"]).per_frame["value"].notna().all()


def test_a_network_made_half_after_it_was_wrapped_is_given_half_frames() -> None:
    model = wrap(
        network().double(), outputs="multiclass", names=("a", "b"), normalise="imagenet", size=(16, 24)
    )
    frames = torch.rand(2, 3, 16, 24)
    with torch.no_grad():
        expected = model(frames)
        model.network.bfloat16()
        found = model(frames)
    assert found.dtype == frames.dtype
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_weights_of_two_precisions_that_do_not_go_together_are_one_line() -> None:
    net = network()
    net[3].to(torch.bfloat16)
    with pytest.raises(
        UnsupportedModelError,
        match=r"Sequential has weights of torch\.bfloat16 and torch\.float32, which do not go",
    ):
        wrap(net, outputs="multiclass", names=("a", "b"))(torch.rand(1, 3, 16, 24))


def test_a_network_that_takes_more_than_frames_is_one_line() -> None:
    class WithSpeed(nn.Module):
        def forward(self, frames, speed):
            return frames.mean((2, 3)) * speed

    for names in (None, ("a", "b", "c")):
        with pytest.raises(UnsupportedModelError, match=r"WithSpeed is called with frames alone, .*'speed'"):
            wrap(WithSpeed(), outputs="multiclass", names=names)(torch.rand(1, 3, 8, 8))


def test_names_are_counted_at_the_size_that_a_network_declares() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 6, 3)).eval()
    net.input_size = (4, 6)
    assert wrap(net, outputs="multiclass").outputs.names == ("0", "1", "2")
    with pytest.raises(FrameSizeError, match="does not take frames of 8 x 8 px"):
        wrap(net, outputs="multiclass", size=(8, 8))
    with pytest.raises(UnsupportedModelError, match=r"gave shape \(1, 3, 4, 6\), expected scores \(B, K\)"):
        wrap(nn.Identity(), outputs="multiclass", size=(4, 6))


def test_a_regressor_of_half_precision_is_scored() -> None:
    net = AutocastHead().eval()
    net.outputs = Outputs(kind="regression", names=("steering", "speed"), unit="1/m")
    result = metrics.Deletion()(net, torch.rand(2, 3, 16, 24), torch.rand(2, 16, 24), output(0))
    assert result.value.dtype.itemsize >= 4
    assert evaluate(net, torch.rand(2, 3, 16, 24), methods=["gradient"], metrics=["deletion"]).summary
