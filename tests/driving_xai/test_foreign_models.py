"""Networks of other people: explained alike in every wrapping, Grad-CAM as the reference has it, bad input in one line."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import pytorch_grad_cam
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

import driving_xai as dx
from data_prep.prepare import PrepConfig, prepare
from driving_xai.cli import app

from .foreign_networks import built, frames_for, target_of

CONVOLUTIONAL = {
    "ResNet-50": "network.layer4",
    "VGG-11": "network.features",
    "MobileNetV3": "network.features",
    "ConvNeXt-T": "network.features",
    "Swin-T": "network.norm",
    "EffNet-Lite0": "network.bn2",
    "PilotNet": "network.network.conv",
}
"""Their last feature maps; Swin's has its channels last."""


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_grad_cam_is_that_of_pytorch_grad_cam(name: str) -> None:
    model = built(name).double()
    frames = frames_for(64, 64).double()
    target = target_of(model)
    if name == "PilotNet":
        # With these weights nothing speaks for the side that it chose.
        target = dx.targets.left if bool((model(frames) < 0).all()) else dx.targets.right
    layer = model.get_submodule(CONVOLUTIONAL[name])
    found = dx.explain.GradCAM(cells="even")(model, frames, target)

    class Target:
        """The target's sum is the sum of frames' targets; the library asks frame by frame."""

        def __call__(self, scores):
            return target(scores[None])[0]

    def channels_first(output):
        return output.permute(0, 3, 1, 2) if name == "Swin-T" else output

    raw = []
    with pytorch_grad_cam.GradCAM(model, [layer], reshape_transform=channels_first) as cam:
        weighted = cam.get_cam_image
        cam.get_cam_image = lambda *given, **options: raw.append(weighted(*given, **options)) or raw[-1]
        cam(frames.clone(), targets=[Target()] * len(frames))
    expected = F.interpolate(
        torch.as_tensor(np.maximum(raw[0], 0))[:, None],
        frames.shape[2:],
        mode="bilinear",
        align_corners=False,
    )[:, 0]
    assert expected.amax() > 0, "a map of zeros would equal anything"
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 5, 4), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 3)
    ).eval()


EVERYWHERE = (
    "grad-cam",
    "gradient",
    "integrated-gradients",
    "visual-backprop",
    "captum:DeepLift",
    "zennit:EpsilonPlus",
)


def compiled(net: nn.Module) -> nn.Module:
    return torch.compile(net, backend="eager")


def frozen(net: nn.Module) -> nn.Module:
    return net.requires_grad_(False)


@pytest.mark.parametrize("name", EVERYWHERE)
@pytest.mark.parametrize("how", [compiled, nn.DataParallel, frozen])
def test_a_compiled_parallel_or_frozen_network_has_the_same_maps(how, name: str) -> None:
    plain = dx.wrap(small(), outputs="multiclass", names=("a", "b", "c"))
    other = how(dx.wrap(small(), outputs="multiclass", names=("a", "b", "c")))
    inside = dx.wrap(how(small()), outputs="multiclass", names=("a", "b", "c"))
    frames = frames_for()
    explainer = dx.explain.build(name)
    expected = explainer(plain, frames, dx.targets.output(1))
    for model in (other, inside):
        torch.testing.assert_close(explainer(model, frames, dx.targets.output(1)), expected)


@pytest.mark.parametrize("name", ["grad-cam", "gradient", "rise"])
def test_half_precision_is_explained_and_its_maps_can_be_ranked(name: str) -> None:
    plain = dx.wrap(small(), outputs="multiclass", names=("a", "b", "c"))
    half = dx.wrap(small(), outputs="multiclass", names=("a", "b", "c")).bfloat16()
    options = {"samples": 20} if name == "rise" else {}
    frames, explainer = frames_for(), dx.explain.build(name, **options)
    expected = explainer(plain, frames, dx.targets.output(1))
    for given in (frames, frames.bfloat16()):
        found = explainer(half, given, dx.targets.output(1))
        assert found.dtype == torch.float32
        assert torch.corrcoef(torch.stack([expected.flatten(), found.flatten()]))[0, 1] > 0.98


MODELS = """
import torch
from torch import nn
import driving_xai as dx
from driving_xai.types import Outputs

def net():
    return nn.Sequential(nn.Conv2d(3, 4, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))

def good():
    return dx.wrap(net(), outputs="regression", names=["curvature"])

def two_scores():
    return dx.wrap(nn.Sequential(*net()[:-1], nn.Linear(4, 2)), outputs="regression", names=["curvature"])

def flat():
    return dx.wrap(nn.Sequential(net(), nn.Flatten(0)), outputs="regression", names=["curvature"])

def fixed():
    return dx.wrap(nn.Sequential(nn.Flatten(), nn.Linear(30, 1)), outputs="regression", names=["curvature"])

def raises():
    raise RuntimeError("no licence\\nfor this")

def unwrapped():
    return net()

class Nan(nn.Module):
    def forward(self, frames):
        return frames.mean((1, 2, 3))[:, None] * torch.nan

def nan():
    return dx.wrap(Nan(), outputs="regression", names=["curvature"])

class Odd(nn.Module):
    outputs = Outputs(kind="regression", names=("curvature",), unit="1/m")
    def __init__(self):
        super().__init__()
        self.net = net()
    def forward(self, frames):
        return self.net(frames)
    def step(self, frames, state):
        return self.net(frames), None, {"memory": "a text"}
    def at(self, state):
        return self

def odd():
    return Odd()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds of driving, an image, and a module of models that are wrong in several ways."""
    here = tmp_path_factory.mktemp("bad")
    route = here / "route.toml"
    route.write_text("seconds = 4.0\nrate_hz = 10.0\nheight = 48\nwidth = 80\n")
    prepare(PrepConfig(reader="synthetic", source=route, gap_s=0.1, smoothing=0.99), here / "shards")
    (here / "models_gone_wrong.py").write_text(MODELS)
    Image.fromarray(np.zeros((48, 80, 3), np.uint8)).save(here / "frame.png")
    save_file({"4.weight": torch.zeros(7, 9), "4.bias": torch.zeros(7)}, here / "other.safetensors")
    return here


EXPLAIN, SCORE, REPLAY = (
    "explain MODEL frame.png -o OUT",
    "score MODEL shards --split all -o OUT",
    "replay MODEL shards -o OUT.mp4",
)


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        (f"{SCORE} --method grad-cam", "two_scores", r"gave \(\d+, 2\), expected \(\d+, 1\)"),
        (f"{EXPLAIN} --method grad-cam", "flat", r"gave \(\d+,\), expected \(1, 1\)"),
        (f"{EXPLAIN} --method gradient", "fixed", r"Linear|shapes"),
        (
            f"{EXPLAIN} --method grad-cam --set options.grad-cam.layer=network.9",
            "good",
            r"has no option layer|network\.9.*has 0, 1",
        ),
        (f"{EXPLAIN} --method gradient", "missing", r"has no missing"),
        (f"{EXPLAIN} --method gradient", "raises", r"raised RuntimeError: no licence"),
        (
            f"{EXPLAIN} --method gradient",
            "unwrapped",
            r"does not say what its scores mean; return driving_xai\.wrap",
        ),
        (
            f"{EXPLAIN} --method gradient --weights other.safetensors",
            "good",
            r"other\.safetensors.*(expected|needs|lacks|misses)",
        ),
        (f"{EXPLAIN} --method gradient", "nan", r"NaN"),
        (f"{SCORE} --method gradient", "nan", r"NaN"),
        (f"{REPLAY} --method gradient", "nan", r"NaN"),
        (f"{SCORE} --method gradient", "odd", r"state"),
    ],
)
def test_bad_input_is_one_line_with_its_exit_code(folder, tmp_path, monkeypatch, line, code, message) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    words = line.replace("MODEL", f"models_gone_wrong:{code}").replace("OUT", str(tmp_path / "out")).split()
    result = CliRunner().invoke(app, words, prog_name="driving-xai")
    last = result.output.strip().splitlines()[-1]
    assert result.exit_code == (1 if code == "nan" else 3), f"{result.output}\n{result.exception!r}"
    assert last.startswith("driving-xai: "), result.output
    assert re.search(message, last), last
    assert not list(tmp_path.glob("**/results.json"))
