"""Deletion and insertion of one network: ours, torch-cam's metric, and one edited image after the other.

    python tests/benchmarks/bench_deletion.py [--images 2] [--steps 20] [--rounds 3] [--batch-size 8]

ResNet-50 with initial weights on noise of 224 x 224, Grad-CAM maps, float32. All three explain, rank, edit
and judge the same images; torch-cam lays its maps over the image with another alignment. Reported is processor time, which a busy machine disturbs
less than the clock, and what part of it was spent outside the network's forward and backward passes.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from driving_xai.explain.cam import GradCAM
from driving_xai.metrics.curves import area, deletion, insertion, rank
from driving_xai.targets import outputs_at
from driving_xai.types import Outputs

Areas = tuple[float, float]


class Net(nn.Module):
    """A network of torchvision's as a `FrameModel`, which counts the time in its forward passes."""

    outputs = Outputs(kind="multiclass", names=tuple(map(str, range(1000))))

    def __init__(self, network: str = "resnet50") -> None:
        super().__init__()
        self.net = torchvision.models.get_model(network).eval().to(memory_format=torch.channels_last)
        self.inside_s = 0.0

    def forward(self, frames: Tensor) -> Tensor:
        with self.counted():
            return self.net(frames.contiguous(memory_format=torch.channels_last))

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Counts the block as time inside the network."""
        begun = time.process_time()
        yield
        self.inside_s += time.process_time() - begun


def ours(net: Net, frames: Tensor, steps: int, batch_size: int) -> Areas:
    with torch.no_grad():
        clean = net(frames)
    target = outputs_at(clean.argmax(1))
    saliency = GradCAM(layer=net.net.layer4)(net, frames, target)
    ranks = rank(saliency, torch.Generator().manual_seed(0))
    fractions = _fractions(steps, frames)
    chosen = clean.argmax(1)
    found = []
    for curve in (deletion, insertion):
        scores = curve(net, frames, ranks, fractions, batch_size=batch_size, clean=clean)
        values = scores.softmax(-1).gather(-1, chosen[:, None, None].expand(-1, scores.shape[1], 1))
        found.append(float(area(fractions, values.squeeze(-1)).mean()))
    return found[0], found[1]


def torch_cam(net: Net, frames: Tensor, steps: int, batch_size: int) -> Areas:
    from torchcam.methods import GradCAM as TorchCamGradCAM
    from torchcam.metrics import DeletionInsertionMetric

    with TorchCamGradCAM(net, target_layer=net.net.layer4) as extractor:
        metric = DeletionInsertionMetric(
            extractor, lambda scores: scores.softmax(-1), steps=steps, batch_size=batch_size
        )
        metric.update(frames)
    summary = metric.summary()
    return float(summary["deletion_auc"]), float(summary["insertion_auc"])


def one_by_one(net: Net, frames: Tensor, steps: int, batch_size: int) -> Areas:
    """What RISE's evaluation does: one edited image, one forward pass; here without its device copies."""
    with torch.no_grad():
        clean = net(frames)
    chosen = clean.argmax(1)
    saliency = GradCAM(layer=net.net.layer4)(net, frames, outputs_at(chosen))
    fractions = _fractions(steps, frames)
    areas: list[list[float]] = [[], []]
    for at, frame in enumerate(frames):
        order = saliency[at].flatten().argsort(descending=True, stable=True)
        for which, (start, end) in enumerate(((frame, frame * 0), (frame * 0, frame))):
            edited, values, done = start.clone(), [], 0
            for fraction in fractions:
                count = round(fraction * order.numel())
                part = order[done:count]
                edited.flatten(1)[:, part] = end.flatten(1)[:, part]
                done = count
                with torch.no_grad():
                    values.append(net(edited[None]).softmax(-1)[0, chosen[at]])
            areas[which].append(float(area(fractions, torch.stack(values))))
    return statistics.mean(areas[0]), statistics.mean(areas[1])


def _fractions(steps: int, frames: Tensor) -> list[float]:
    pixels = frames.shape[2] * frames.shape[3]
    step = -(-pixels // steps)
    return [count / pixels for count in (*range(0, pixels, step), pixels)]


CASES: dict[str, Callable[[Net, Tensor, int, int], Areas]] = {
    "ours": ours,
    **({"torch-cam": torch_cam} if find_spec("torchcam") else {}),
    "one by one": one_by_one,
}
"""torch-cam where it is installed."""


def measure(
    *,
    images: int,
    steps: int,
    rounds: int,
    batch_size: int,
    network: str = "resnet50",
    side_px: int = 224,
) -> dict[str, Any]:
    """Medians over rounds, the cases taking turns."""
    torch.manual_seed(0)
    net = Net(network).eval()
    frames = torch.rand(images, 3, side_px, side_px)
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    outside: dict[str, list[float]] = {name: [] for name in CASES}
    areas: dict[str, Areas] = {}
    for number in range(rounds + 1):
        for name, run in CASES.items():
            net.inside_s, begun = 0.0, time.process_time()
            areas[name] = run(net, frames, steps, batch_size)
            if number:  # The first warms up.
                seconds[name].append(time.process_time() - begun)
                outside[name].append(1 - net.inside_s / seconds[name][-1])
    best = statistics.median(seconds["ours"])
    return {
        "areas": areas,
        "cases": {
            name: {
                "seconds": statistics.median(seconds[name]),
                "times_ours": statistics.median(seconds[name]) / best,
                "outside_forward": statistics.median(outside[name]),
            }
            for name in CASES
        },
        "images": images,
        "steps": steps,
        "batch_size": batch_size,
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "torchcam") if find_spec(name)},
        "machine": platform.processor() or platform.machine(),
    }


def test_every_case_runs_on_a_small_network() -> None:
    found = measure(images=1, steps=3, rounds=1, batch_size=2, network="resnet18", side_px=64)
    assert found["areas"]["one by one"] == pytest.approx(found["areas"]["ours"], abs=1e-4)
    assert all(0 <= area <= 1 for areas in found["areas"].values() for area in areas)
    assert found["cases"].keys() == CASES.keys()
    assert found["cases"]["ours"]["times_ours"] == 1


@pytest.mark.bench
def test_ours_finds_the_areas_of_single_images() -> None:
    found = measure(images=1, steps=20, rounds=1, batch_size=8)
    print(json.dumps(found, indent=2))
    assert found["areas"]["one by one"] == pytest.approx(found["areas"]["ours"], abs=1e-4)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8)
    given = parser.parse_args()
    print(
        json.dumps(
            measure(images=given.images, steps=given.steps, rounds=given.rounds, batch_size=given.batch_size),
            indent=2,
        )
    )
