"""How fast explanations and their deletion curves are, and how much of the time is not the network's.

    python tests/benchmarks/bench_explainers.py [--frames 1000] [--masks 4000]

Three measurements: the deletion curves of a drive under five explainers, with the time every method
takes for a frame; RISE on a ResNet-50, with the memory it adds; LIME's fit. Weights are random, which
does not change the time. Prints one line each, with the machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from driving_xai.contracts import FrameModel, Frames
from driving_xai.explain import build
from driving_xai.explain.lime import LIME, Grid
from driving_xai.explain.perturbation import RISE
from driving_xai.faithfulness.curve import deletion, rank
from driving_xai.models.steering import SteeringConfig, SteeringModel
from driving_xai.targets import magnitude, output

FIVE = ("sign-attention", "grad-cam", "gradient", "gradient-x-input", "visual-backprop")
SLOWER = ("sign-attention-filtered", "smoothgrad", "integrated-gradients", "occlusion", "lime", "rise")
FRACTIONS = [step / 100 for step in range(26)]
BATCH = 32


class Timed:
    """A frame model that knows how long it has run and on how many frames."""

    def __init__(self, model: FrameModel) -> None:
        self.model, self.outputs = model, model.outputs
        self.seconds, self.frames = 0.0, 0

    def __call__(self, frames: Frames) -> Tensor:
        begun = time.perf_counter()
        scores = self.model(frames)
        self.seconds += time.perf_counter() - begun
        self.frames += len(frames)
        return scores

    def attention(self, frames: Frames) -> Tensor:
        return self.model.attention(frames)  # type: ignore[attr-defined]


class Classifier(nn.Module):
    """A network of torchvision's as a frame model."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.outputs = network, None

    def forward(self, frames: Frames) -> Tensor:
        return self.network(frames)


def curves_of_a_route(frames: int) -> None:
    """Explains, ranks and deletes: `frames` frames, 25 steps, five explainers; one clean pass shared."""
    torch.manual_seed(0)
    model = SteeringModel(SteeringConfig()).eval().fold_normalisation()
    explainers = {name: build(name, model, batch_size=BATCH) for name in FIVE}
    explained = curves = network = 0.0
    with torch.no_grad():
        state = model.step(torch.rand(BATCH, 3, 80, 160), None)[2]
    for start in range(0, frames, BATCH):
        batch = torch.rand(min(BATCH, frames - start), 3, 80, 160)
        past = type(state)(*(part[: len(batch)] for part in state))
        view = Timed(model.at(past))
        begun = time.perf_counter()
        maps = torch.stack([explain(view.model, batch, magnitude) for explain in explainers.values()], 1)
        explained += time.perf_counter() - begun
        begun = time.perf_counter()
        ranks = rank(maps.flatten(0, 1), torch.Generator().manual_seed(0)).unflatten(0, maps.shape[:2])
        deletion(view, batch, ranks, FRACTIONS, batch_size=BATCH)
        curves += time.perf_counter() - begun
        network += view.seconds
    whole = explained + curves
    print(
        f"{frames} frames, 25 steps, {len(FIVE)} explainers: {whole:.1f} s, of it explaining {explained:.1f} s; "
        f"ranking and curves {curves:.1f} s, of it outside the network {100 * (1 - network / curves):.1f} %"
    )


def milliseconds_a_frame() -> None:
    """Every method on one frame of a drive, beside one forward pass of the same frame."""
    torch.manual_seed(0)
    model = SteeringModel(SteeringConfig()).eval().fold_normalisation()
    batch = torch.rand(BATCH, 3, 80, 160)
    with torch.no_grad():
        state = model.step(batch[:1], None)[2]
        view = model.at(state)
        view(batch)
        begun = time.perf_counter()
        for _ in range(5):
            view(batch)
        forward = (time.perf_counter() - begun) / 5 / BATCH
    print(f"one frame of a batch of {BATCH} forward: {1e3 * forward:.2f} ms")
    for name in (*FIVE, *SLOWER):
        explain, timed = build(name, model, batch_size=BATCH), Timed(view)
        explain(timed, batch[:1], magnitude)
        timed.seconds, timed.frames = 0.0, 0
        begun, repeats = time.perf_counter(), 1 if name in SLOWER else 20
        for _ in range(repeats):
            explain(timed, batch[:1], magnitude)
        spent = (time.perf_counter() - begun) / repeats
        print(
            f"  {name:24} {1e3 * spent:8.1f} ms a frame, {spent / forward:7.1f} forward passes' worth, "
            f"outside the forward passes {100 * (1 - timed.seconds / repeats / spent):5.1f} %"
        )


def rise_on_resnet(masks: int) -> tuple[float, float]:
    """Seconds and memory of RISE; returns the share outside the network and the extra MiB."""
    from torchvision.models import resnet50

    torch.manual_seed(0)
    network = resnet50(weights=None).eval().to(memory_format=torch.channels_last)
    model, frame = Timed(Classifier(network)), torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        # What the network itself needs for a batch is there before the measurement.
        for _ in range(3):
            model(torch.rand(8, 3, 224, 224))
    model.seconds = 0.0
    before = _peak_mib()
    begun = time.perf_counter()
    saliency = RISE(masks=masks, batch_size=8)(model, frame, output(0))
    whole = time.perf_counter() - begun
    assert saliency.isfinite().all()
    outside, extra = 1 - model.seconds / whole, _peak_mib() - before
    print(
        f"RISE, {masks} masks, ResNet-50 at 224 x 224, batch 8: {whole:.1f} s, outside the network "
        f"{whole - model.seconds:.2f} s = {100 * outside:.2f} %; extra memory {extra:.0f} MiB"
    )
    return outside, extra


def lime_fit() -> float:
    """Seconds of LIME's fit of 1,000 patterns of 49 patches, rendering the patterns not counted."""
    explain, patches = LIME(segmentation=Grid()), 49
    values, times = torch.rand(1000, dtype=torch.float64), []
    for _ in range(5):
        begun = time.perf_counter()
        patterns = explain.patterns(patches)
        _ = explain.solver(patterns) @ values
        times.append(time.perf_counter() - begun)
    print(
        f"LIME, 1,000 patterns of {patches} patches: draw and fit {1e3 * sorted(times)[2]:.1f} ms (median of 5)"
    )
    return sorted(times)[2]


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def describe_machine() -> None:
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")]
    print(
        f"{models[0] if models else platform.machine()}, {len(os.sched_getaffinity(0))} cores, "
        f"torch {torch.__version__} with {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"
    )


@pytest.mark.bench
def test_explanations_cost_little_more_than_their_passes() -> None:
    describe_machine()
    assert lime_fit() <= 0.1
    outside, extra_mib = rise_on_resnet(400)
    assert outside <= 0.02
    assert extra_mib <= 100


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--masks", type=int, default=4000)
    given = parser.parse_args(arguments)
    describe_machine()
    lime_fit()
    rise_on_resnet(given.masks)
    milliseconds_a_frame()
    curves_of_a_route(given.frames)


if __name__ == "__main__":
    main()
